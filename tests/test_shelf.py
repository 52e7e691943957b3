"""The shelf by its own names: load, convert, verify and push, in a notebook and on the command line."""

import json

import pytest
import torch
from hubserver import Repo
from test_cli import refused
from test_hub import TOKEN, files_of, hub, same, scope, small  # noqa: F401  (fixtures)

import sae_lab as sl
from sae_lab.cli import main
from sae_lab.pretrained import Form
from sae_lab.pretrained import hub as door


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run of the embedded Llama, measured."""
    folder, lm = tmp_path_factory.mktemp("runs") / "first", sl.load_model("tiny")
    sae = sl.build("batchtopk", d_in=lm.d_model, d_sae=256, k=8, seed=0)
    source = sl.activations(lm, "L2R", context=128)
    for _ in sl.train(sae, source, tokens=60_000, batch=512, lr=2e-3, run=folder, about={"model": "tiny"}):
        pass
    sl.Run(folder).write_eval(sl.evaluate(sl.load_sae(folder), lm, tokens=2_000, spliced=500).to_json())
    return folder


@pytest.mark.parametrize("format", ["sae_lab", "saelens", "dictionary_learning", "llama_scope"])
def test_a_run_is_converted_and_loaded_again(run, tmp_path, capsys, format):
    assert main(["convert", str(run), str(tmp_path / "out"), "--format", format]) == 0
    said = capsys.readouterr().out
    assert f"batchtopk in the format {format}" in said
    ours, theirs = sl.load_sae(run), sl.load_sae(tmp_path / "out")
    x = 20 * torch.randn(30, ours.cfg.d_in, generator=torch.Generator().manual_seed(0))
    assert torch.equal(theirs.encode(x).dense(), ours.encode(x).dense()) and ours.encode(x).l0 > 1
    assert theirs.origin["site"] == "L2R"


def test_what_cannot_be_converted_ends_in_one_line(run, tmp_path, capsys):
    ours = ("convert", str(run), str(tmp_path / "out"), "--format", "sae_lab", "--dtype", "bfloat16")
    assert "keeps the bits that were trained" in refused(capsys, *ours)
    assert "it keeps k latents of each token" in refused(
        capsys, "convert", str(run), str(tmp_path / "out"), "--format", "sparsify"
    )
    assert not (tmp_path / "out").exists()
    assert "No SAE and no run" in refused(capsys, "convert", str(tmp_path / "none"), str(tmp_path / "out"))


def test_verify_says_what_fits_and_fails_where_another_reading_does(run, tmp_path, capsys):
    assert main(["verify", str(run), "--tokens", "1000", "--l0", "8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["healthy"] and found["verdict"].startswith("As published")
    mistake = next(m for m in sl.pretrained.MISTAKES if m.name == "output in other units")
    sl.save_sae(mistake.make(Form.of(sl.load_sae(run)), found["about"]["scale"]).sae(), tmp_path / "wrong", "saelens")
    asked = ("verify", str(tmp_path / "wrong"), "--model", "tiny", "--tokens", "1000")
    assert "Suspect: output in other units" in refused(capsys, *asked, code=1)
    sae = sl.load_sae(run)
    alone = tmp_path / "alone"
    sae.origin = {"site": "L2R"}
    sl.save_sae(sae, alone)
    assert "does not say of which model it is: give --model" in refused(capsys, "verify", str(alone))


def test_a_name_on_the_hub_is_loaded_by_its_site(hub, scope):  # noqa: F811
    loaded = sl.load_sae("OpenMOSS-Team/Llama3_1-8B-Base-LXR-8x", "L15R")
    same(loaded, scope)
    assert loaded.origin["site"] == "L15R"
    some = sl.load_latents("OpenMOSS-Team/Llama3_1-8B-Base-LXR-8x", [3], "L15R")
    assert torch.equal(some.W_dec[0], scope.W_dec[3])


@pytest.mark.parametrize("format", ["sae_lab", "saelens"])
def test_a_run_is_pushed_with_its_numbers_and_read_back(hub, run, monkeypatch, capsys, format):  # noqa: F811
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(door, "get_token", lambda: TOKEN)
    assert main(["push", str(run), "me/mine", "--format", format]) == 0
    assert "me/mine" in capsys.readouterr().out
    written = hub.repos["me/mine"].files["README.md"].decode()
    assert "bussmann2024batchtopk" in written and "fvu" in written.lower() and TOKEN not in written
    ours, theirs = sl.load_sae(run), sl.load_sae("me/mine")
    x = 20 * torch.randn(30, ours.cfg.d_in, generator=torch.Generator().manual_seed(0))
    assert torch.equal(theirs.encode(x).dense(), ours.encode(x).dense())


def test_an_sae_is_pushed_without_a_run(hub, monkeypatch):  # noqa: F811
    monkeypatch.setattr(door, "get_token", lambda: TOKEN)
    hub.repos["me/mine"] = Repo({})
    sae = small("topk")
    sl.push(sae, "me/mine", format="sparsify")
    same(sl.load_sae("me/mine"), sae)
    assert {"cfg.json", "sae.safetensors", "README.md"} <= set(hub.repos["me/mine"].files)
