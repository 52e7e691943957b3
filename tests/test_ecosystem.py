"""Other tools load what we write, and we read what they save: each by its own public loaders, where it is installed.

The tools live in an environment of their own, made once per machine in $SAE_LAB_CACHE or ~/.cache/sae_lab. It holds
them, pinned, and the few packages that importing them needs (120 MB, eight seconds). torch, transformers, safetensors
and the like are borrowed from this environment by a path file, behind what is installed there. Their full requirements
are gigabytes: nnsight 0.3 asks for any torchvision, whose newest brings a second torch with CUDA. This package itself
cannot be imported there. Without a package index the tests are skipped.
"""

import hashlib
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from elsewhere import D, F, K
from safetensors.torch import load_file, save_file

from sae_lab import pretrained
from sae_lab.peers import LIBRARIES
from sae_lab.runs.files import whole_folder
from sae_lab.saes import build

# What their imports need and we do not have, and no more: installed without what these ask for in turn.
NEEDED = ("transformer-lens==3.9.0", "wandb==0.31.0", "protobuf==7.36.2", "opentelemetry-api==1.45.2",
          "opentelemetry-sdk==1.45.2", "accelerate==1.15.0", "einops==0.8.2", "simple-parsing==0.1.9", "natsort==8.4.0",
          "schedulefree==1.4.1", "better-abc==0.0.3")  # fmt: skip
PACKAGES = (*(f"{name}=={version}" for name, version in LIBRARIES.items()), *NEEDED)
CLOSE = {"atol": 1e-4, "rtol": 0.0}
UNIT = ("dictionary-learning", "relu")  # its loader makes the decoder unit: a test of its own

SAE, TRANSCODER = {"centred": True}, {"transcode": True}
OURS = {
    "sae-lens": {
        "relu": ("relu", {}), "relu, centred": ("relu", SAE), "relu, layer norm": ("relu", {"per_token": "layer_norm"}),
        "relu, norm": ("relu", SAE | {"per_token": "norm"}), "topk": ("topk", {"k": K}),
        "topk, not centred": ("topk", {"k": K, "centred": False}), "batchtopk": ("batchtopk", {"k": K}),
        "batchtopk, with bias": ("batchtopk", {"k": K, "encoder_bias": True}), "matryoshka": ("matryoshka", {"k": K}),
        "jumprelu": ("jumprelu", {}), "jumprelu, centred": ("jumprelu", SAE), "gated": ("gated", {}),
        "gated, not centred": ("gated", {"centred": False}), "llama_scope": ("llama_scope", {"k": K}),
        "relu transcoder": ("relu", TRANSCODER), "jumprelu transcoder": ("jumprelu", TRANSCODER),
        "relu skip transcoder": ("relu", TRANSCODER | {"skip": True}),
        "jumprelu skip transcoder": ("jumprelu", TRANSCODER | {"skip": True}),
    },
    "dictionary-learning": {
        "relu": ("relu", SAE), "relu, not centred": ("relu", {}), "gated": ("gated", {}), "topk": ("topk", {"k": K}),
        "batchtopk": ("batchtopk", {"k": K}), "matryoshka": ("matryoshka", {"k": K}), "jumprelu": ("jumprelu", {}),
        "jumprelu, centred": ("jumprelu", SAE),
    },
    "eai-sparsify": {
        "topk": ("topk", {"k": K}), "groupmax": ("groupmax", {"k": 6}), "transcoder": ("topk", TRANSCODER | {"k": K}),
        "skip transcoder": ("topk", TRANSCODER | {"k": K, "skip": True}),
        "groupmax skip transcoder": ("groupmax", TRANSCODER | {"k": 6, "skip": True}),
    },
}  # fmt: skip
FORMAT = {"sae-lens": "saelens", "dictionary-learning": "dictionary_learning", "eai-sparsify": "sparsify"}
THEIRS = {
    "sae-lens": (
        "standard", "standard, not centred", "standard, layer norm", "standard, norm", "topk", "topk by norm",
        "jumprelu", "gated", "transcoder", "skip transcoder", "jumprelu transcoder", "jumprelu skip transcoder",
        "standard in training", "topk in training", "jumprelu in training", "gated in training",
        "topk, by norm, exported", "batchtopk, by norm, exported", "matryoshka, by norm, exported", "topk, exported",
        "batchtopk, exported", "matryoshka, exported", "batchtopk, by norm, in training",
        "matryoshka, by norm, in training", "batchtopk, in training", "matryoshka, in training"),
    "dictionary-learning": (
        "AutoEncoder", "AutoEncoder, p annealed", "AutoEncoder of April", "AutoEncoderNew", "GatedAutoEncoder",
        "GatedAutoEncoder, annealed", "JumpReluAutoEncoder", "AutoEncoderTopK", "BatchTopKSAE", "BatchTopKSAE, unset",
        "MatryoshkaBatchTopKSAE"),
    "eai-sparsify": (
        "topk", "topk, width by factor", "topk, decoder as it lies", "groupmax", "transcoder", "skip transcoder",
        "groupmax skip transcoder"),
}  # fmt: skip


def made(name, seed=0, **config):
    """One of ours with random weights, decoder norms between a third and three, and thresholds in plain sight."""
    sae, g = build(name, d_in=D, d_sae=F, **config), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in sae.parameters():
            tensor += 0.2 * torch.randn(tensor.shape, generator=g)
        norms = torch.linspace(1 / 3, 3, F)[torch.randperm(F, generator=g)]
        sae.W_dec *= (norms / sae.W_dec.norm(dim=1))[:, None]
        if hasattr(sae, "threshold"):
            theta = torch.rand(sae.threshold.shape, generator=g) / 2 + 0.1
            sae.log_threshold.copy_(theta.log()) if hasattr(sae, "log_threshold") else sae.threshold.copy_(theta)
    sae.origin = {"site": "L2TC" if sae.cfg.transcode else "L2R", "model": "tiny", "context": 128}
    return sae.eval()


def environment() -> Path:
    """The Python that has the tools, made if need be.

    Raises:
        subprocess.CalledProcessError: pip failed, or reached no index.
    """
    borrowed = [path for path in sys.path if path.endswith("-packages")]
    key = hashlib.sha256(json.dumps([sys.version, PACKAGES, borrowed]).encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    folder = Path(os.environ.get("SAE_LAB_CACHE", cache / "sae_lab")) / "ecosystem" / key
    if not folder.exists():
        with whole_folder(folder) as new:
            python = new / "bin" / "python"
            run(sys.executable, "-m", "venv", new)
            run(python, "-m", "pip", "install", "-q", "--no-deps", "--retries", "1", "--timeout", "20", *PACKAGES)
            where = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
            (Path(where) / "borrowed.pth").write_text("\n".join(borrowed))
    return folder / "bin" / "python"


def run(*command):
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def python():
    try:
        return environment()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"other tools could not be installed: {error.stderr.strip()[-300:]}")


@pytest.fixture(scope="module")
def heard(python, tmp_path_factory):
    """heard(tool): our SAEs, the activations, and what the tool made of both; each tool is started once."""

    @cache
    def hear(tool):
        folder, saes = tmp_path_factory.mktemp(tool), {}
        x = 3 * torch.randn(64, D, generator=torch.Generator().manual_seed(1))
        save_file({"x": x}, folder / "x.safetensors")
        for seed, (case, (name, config)) in enumerate(OURS[tool].items()):
            saes[case] = made(name, seed, **config)
            pretrained.write(saes[case], folder / "ours" / case, FORMAT[tool])
        if tool == "sae-lens":
            pretrained.write(made("topk", k=K), folder / "ours" / "layers.2", "sparsify")  # it goes by the name
        script = Path(__file__).with_name("elsewhere.py")
        ran = subprocess.run([python, "-I", script, tool, folder], capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr[-3000:]
        answers, refused = load_file(folder / "answers.safetensors"), json.loads((folder / "refused.json").read_text())
        return SimpleNamespace(folder=folder, x=x, saes=saes, answers=answers, refused=refused)

    return hear


def same(sae, heard, case, grown=1.0):
    """Our latents (times `grown`) and reconstructions are the tool's."""
    assert case not in heard.refused, heard.refused[case]
    z = sae.encode(heard.x)
    assert (z.dense() > 0).sum(1).float().mean() > 1  # else nothing was compared
    for name, mine in (("z", z.dense() * grown), ("x_hat", sae.reconstruct(z, heard.x))):
        theirs = heard.answers[f"{case}/{name}"]
        print(f"{case} {name}: {(theirs - mine).abs().max():.1e}")
        torch.testing.assert_close(theirs, mine.detach(), **CLOSE, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(
    ("tool", "case"), [(tool, case) for tool in OURS for case in OURS[tool] if (tool, case) != UNIT]
)
def test_another_tool_loads_what_we_write_and_computes_the_same(heard, tool, case):
    said = heard(tool)
    same(said.saes[case], said, f"ours/{case}")


@pytest.mark.parametrize(("tool", "case"), [(tool, case) for tool in THEIRS for case in THEIRS[tool]])
def test_we_read_what_another_tool_saves_and_compute_the_same(heard, tool, case):
    said = heard(tool)
    assert f"theirs/{case}" not in said.refused, said.refused[f"theirs/{case}"]
    form = pretrained.read(said.folder / "theirs" / case / ("trainer_0" if tool == "dictionary-learning" else ""))
    assert form.origin["format"] == FORMAT[tool]
    same(form.sae(), said, f"theirs/{case}")


def test_load_dictionary_makes_decoders_unit_so_that_its_relu_latents_are_ours_times_their_norms(heard):
    """A convention of theirs, and only of AutoEncoder: reconstructions stay, latents are in other units."""
    said = heard("dictionary-learning")
    sae = said.saes["relu"]
    same(sae, said, "ours/relu", sae.W_dec.detach().norm(dim=1))


def test_dictionary_learning_told_to_leave_the_decoder_alone_has_our_relu_latents(heard):
    said = heard("dictionary-learning")
    same(said.saes["relu"], said, "ours/relu, as it lies")


def test_defect_of_dictionary_learning_it_cannot_load_the_autoencodernew_that_its_trainer_saved(heard):
    """StandardTrainerAprilUpdate(dict_class=AutoEncoderNew) says "AutoEncoder" in its config; we go by the tensors."""
    assert (
        "Error(s) in loading state_dict for AutoEncoder" in heard("dictionary-learning").refused["again/AutoEncoderNew"]
    )


def test_defect_of_saelens_its_loader_of_sparsify_transposes_the_decoder_and_fails(heard):
    """sparsify stores W_dec as [d_sae, d_in] and SAELens's sparsify_disk_loader transposes it once more."""
    assert "size mismatch for W_dec" in heard("sae-lens").refused["ours/layers.2"]


def test_every_case_is_compared_and_nothing_else_is_refused(heard):
    for tool in OURS:
        said = heard(tool)
        cases = {name.rpartition("/")[0] for name in said.answers} | set(said.refused)
        expected = {f"ours/{case}" for case in OURS[tool]} | {f"theirs/{case}" for case in THEIRS[tool]}
        odd = {"ours/layers.2", "ours/relu, as it lies", "again/AutoEncoderNew"}
        assert cases - odd == expected
        assert set(said.refused) <= {"ours/layers.2", "again/AutoEncoderNew"}, said.refused
