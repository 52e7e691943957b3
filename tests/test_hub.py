"""The hub: one SAE's files and no others, what is said where they cannot be had, and an SAE pushed with its card."""

import os
import re
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
import yaml
from hubserver import Repo, at_home, serving
from huggingface_hub import constants
from markdown_it import MarkdownIt

from sae_lab import pretrained
from sae_lab.pretrained import hub as door
from sae_lab.pretrained.card import card, plain
from sae_lab.runs import Run
from sae_lab.saes import SAE, build

D, F = 16, 48
SCOPE, L15 = "OpenMOSS-Team/Llama3_1-8B-Base-LXR-8x", "Llama3_1-8B-Base-L15R-8x"
CONFIG, WEIGHTS = "hyperparams.json", "checkpoints/final.safetensors"
TOKEN = "hf_thisIsNobodysTokenAtAll0123456789"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with serving() as served:
        at_home(monkeypatch, served.url, tmp_path / "home")
        yield served
        huggingface_hub.close_session()


@pytest.fixture
def go_offline(monkeypatch):
    return lambda: monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def small(name: str = "llama_scope", **config) -> SAE:
    """An SAE with numbers of its own everywhere."""
    config |= {"k": 5} if name in ("llama_scope", "topk") else {}
    sae, g = build(name, d_in=D, d_sae=F, **config), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensor in sae.parameters():
            tensor += 0.3 * torch.randn(tensor.shape, generator=g)
        if name == "llama_scope":
            sae.threshold.fill_(0.25)
    sae.origin = {"site": "L15R", "model": "meta-llama/Llama-3.1-8B", "context": 1024}
    return sae


def holding(*names: str, gated: bool = False) -> Repo:
    """A repository of files that hold their own names."""
    return Repo({name: name.encode() for name in names}, gated=gated)


def lost(says: str):
    return pytest.raises(FileNotFoundError, match=says)


def cut(says: str):
    return pytest.raises(ConnectionError, match=says)


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def scope(hub, tmp_path):
    """A Llama Scope repository of three layers, and the SAE of the middle one."""
    sae, repo = small(), Repo({"README.md": b"# Llama Scope", ".gitattributes": b""})
    files = files_of(pretrained.write(sae, tmp_path / "scope", "llama_scope"))
    assert set(files) == {CONFIG, WEIGHTS}
    for layer in (14, 15, 16):
        repo.files |= {f"Llama3_1-8B-Base-L{layer}R-8x/{name}": data for name, data in files.items()}
    repo.files |= {f"{L15}/plot.png": b"png", f"{L15}/checkpoints/steps/1.safetensors": b"old"}
    hub.repos[SCOPE] = repo
    return sae


def same(sae: SAE, other: SAE) -> None:
    x = 3 * torch.randn(50, D, generator=torch.Generator().manual_seed(4))
    z = sae.encode(x)
    assert (z.dense() > 0).sum(1).float().mean() > 1
    assert torch.equal(other.encode(x).dense(), z.dense())
    torch.testing.assert_close(other(x), sae(x))


# fetching


def test_a_site_of_llama_scope_is_fetched_by_its_short_name_with_its_files_alone(hub, scope):
    folder = door.fetch(SCOPE, "L15R")
    same(scope, pretrained.read(folder).sae())
    assert folder.name == L15
    assert sorted(set(hub.fetched)) == [f"{L15}/{WEIGHTS}", f"{L15}/{CONFIG}"]


def test_what_was_fetched_needs_no_hub_a_second_time(hub, scope, go_offline):
    first = door.fetch(SCOPE, "L15R")
    hub.stop()
    assert door.fetch(SCOPE, "L15R") == first
    go_offline()
    assert door.fetch(SCOPE, "L15R") == first
    with lost(r"HF_HUB_OFFLINE=1.*Place hyperparams.json and checkpoints/final.safe"):
        door.fetch(SCOPE, "L16R")
    same(scope, pretrained.read(first).sae())


def test_a_file_that_is_gone_from_the_cache_is_named(hub, scope, go_offline):
    (door.fetch(SCOPE, "L15R") / WEIGHTS).unlink()
    hub.stop()
    with lost(rf"cannot be reached.*Place {CONFIG} and {WEIGHTS} of {L15} into a folder"):
        door.fetch(SCOPE, "L15R")


def test_the_environment_alone_decides_where_the_hub_is(hub, scope, tmp_path):
    code = "import sys; from sae_lab.pretrained import hub; print(hub.fetch(*sys.argv[1:]))"
    env = {name: value for name, value in os.environ.items() if not re.match("HF_|.*_proxy$", name, re.I)}
    env |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "other"), "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
    asked = [sys.executable, "-c", code, SCOPE, "L15R"]
    done = subprocess.run(asked, env=env, capture_output=True, text=True, check=True)
    assert str(tmp_path / "other" / "hub") in done.stdout
    same(scope, pretrained.read(done.stdout.strip()).sae())


@pytest.mark.parametrize("inside", ["layers/3", "layers/3/", "./layers/3", "layers/3/sae.safetensors"])
def test_a_folder_or_a_file_is_fetched_with_the_configs_beside_it(hub, inside):
    names = ["layers/3/cfg.json", "layers/3/sae.safetensors", "layers/30/cfg.json", "layers/3/deep/a.npz", "a.pt"]
    hub.repos["lab/saes"] = holding(*names)
    found = door.fetch("lab/saes", inside)
    assert sorted(set(hub.fetched)) == names[:2] and found.exists() and found.is_dir() != inside.endswith("safetensors")


def test_the_configs_of_a_checkpoint_lie_a_folder_above_it(hub, scope):
    file = door.fetch(SCOPE, f"{L15}/{WEIGHTS}")
    assert sorted(set(hub.fetched)) == [f"{L15}/{WEIGHTS}", f"{L15}/{CONFIG}"]
    assert file.is_file()
    assert door.fetch(SCOPE, f"{L15}/checkpoints").is_dir()


def test_an_sae_at_the_root_is_fetched_without_what_is_below(hub):
    hub.repos["lab/one"] = holding("cfg.json", "sae_weights.safetensors", "x/y.safetensors", "x/cfg.json", "a[1].json")
    assert sorted(files_of(door.fetch("lab/one"))) == ["a[1].json", "cfg.json", "sae_weights.safetensors"]


@pytest.mark.parametrize("place", ["../x", "/etc", "a/../../b", "..", "a\\b", "C:/x", "\\\\host\\x"])
def test_a_path_that_climbs_out_is_refused_before_anything_is_asked(hub, place):
    for asked in (("lab/one", place), ("lab/one", "a", place), (place,)):
        with pytest.raises(ValueError, match=r"climbs out of where it is looked for|is no name on the hub"):
            door.fetch(*asked)
    assert not hub.sent


def test_a_site_must_be_of_the_repositorys_part(hub):
    with pytest.raises(ValueError, match=r"'L15M' is of part M, and .*LXR-8x' holds part R. Give 'L15R'"):
        door.fetch(SCOPE, "L15M")
    with pytest.raises(ValueError, match="layers 0 to 31"):
        door.fetch("fnlp/Llama3_1-8B-Base-LXTC-32x", "L32TC")
    assert not hub.sent


def test_the_short_names_are_the_folders_of_llama_scope(hub):
    repo, folder = "fnlp/Llama3_1-8B-Base-LXTC-32x", "Llama3_1-8B-Base-L8TC-32x"
    hub.repos[repo] = holding(f"{folder}/{CONFIG}", f"{folder}/{WEIGHTS}")
    assert door.fetch(repo, "L8TC").name == folder


# what is said where it cannot be had


def test_a_folder_that_is_not_there_is_answered_with_eight_that_are(hub, scope):
    hub.repos[SCOPE].files |= {f"other{n}/a.safetensors": b"" for n in range(20)}
    with lost(rf"has no SAE at 'Llama3_1-8B-Base-L1R-8x'\. It has {L15[:-5]}") as error:
        door.fetch(SCOPE, "L1R")
    assert str(error.value).count(",") == 8 and "and 16 more" in str(error.value)
    with lost(r"has no SAE at its root\. It has"):
        door.fetch(SCOPE)
    hub.repos["lab/text"] = Repo({"README.md": b""})
    with lost(r"holds no weights \(.safetensors"):
        door.fetch("lab/text")


def test_a_repository_that_is_not_there_or_is_gated_is_said_to_be_so(hub):
    with lost("The hub has no repository 'lab/sae', or it is private: set HF_TOKEN.*No local folder") as error:
        door.fetch("lab/sae")
    assert error.value.__cause__ is None and error.value.__suppress_context__
    hub.repos["lab/sae"] = holding("cfg.json", "sae.pt", gated=True)
    with lost(r"gated: accept its terms at http.*/lab/sae and set HF_TOKEN.*Place cfg.json and sae.pt of lab/sae"):
        door.fetch("lab/sae")


def test_a_revision_that_is_not_there(hub, scope):
    with lost(r"has no revision 'v9'\. Leave revision= out"):
        door.fetch(SCOPE, "L15R", "v9")
    assert door.fetch(SCOPE, "L15R", hub.repos[SCOPE].sha).name == L15


def test_a_hub_that_does_not_answer_is_not_a_traceback_of_httpx(hub):
    for status, says in ((200, "does not answer as a hub does"), (500, "answered 500"), (401, "refuses your token")):
        hub.broken = status
        with lost(rf"{says}.*Place its .json files and its weights"):
            door.fetch("lab/sae")
    hub.stop()
    with lost(r"127.0.0.1:\d+ cannot be reached \(ConnectError\)\. Place its .json files and"):
        door.fetch("lab/sae", "layers/3")
    with lost(r"Place hyperparams.json and checkpoints/final.safetensors of Llama3_1-8B-Base-L15R"):
        door.fetch(SCOPE, "L15R")


def test_a_language_model_is_not_fetched(hub):
    hub.repos["meta-llama/Llama-3.1-8B"] = holding("config.json", "tokenizer.json", "model.safetensors")
    with pytest.raises(ValueError, match=r"holds a language model, not an SAE: load_model\("):
        door.fetch("meta-llama/Llama-3.1-8B")
    assert not hub.fetched


def test_a_hub_name_is_told_from_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "first").mkdir(parents=True)
    assert door.is_hub_name(SCOPE) and door.is_hub_name("runs/second")
    for text in ("runs/first", "first", "a/b/c", "../x", "/a/b", "./b", "~/b", "a\\b", "", "a/b.git", "x" * 300 + "/y"):
        assert not door.is_hub_name(text)


# pushing


@pytest.fixture
def run(tmp_path):
    """A run's folder, with a name that would break YAML and HTML."""
    made = Run(tmp_path / "--- <script>alert(1)<|script> `x` [a](javascript:b) | c")
    model = "meta-llama/Llama-3.1-8B"
    source = {"model": model, "text": "/home/me/secrets/diary.txt", "context": 1024, "split": "train"}
    asked = {"variant": "topk", "sae": {"k": 5}, "train": {"tokens": 2_000_000, "lr": None}, "lr": 0.0007}
    made.describe(asked | {"source": source})
    fvu, l0 = {"value": 0.2831973, "low": 0.2783295, "high": 0.2882121}, {"value": 16.93, "low": 16.82, "high": 17.06}
    about = {"site": "L15R", "split": "test", "tokens": 205_547, "documents": 1259, "model": model}
    made.write_eval({"fvu": fvu, "l0": l0, "odd": {"value": float("nan"), "low": 0.0, "high": 1.0}, "about": about})
    return made


def test_what_is_pushed_comes_back_as_the_same_sae_with_a_card_of_its_numbers(hub, run, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    sae = small("topk")
    address = door.push(sae, "lab/mine", run=run, citation="@article{gao2024, title = {Scaling}}")
    files = hub.repos["lab/mine"].files
    assert address == f"{hub.url}/lab/mine" and set(files) == {"README.md", "cfg.json", "sae_weights.safetensors"}
    assert not hub.repos["lab/mine"].private
    same(sae, pretrained.read(door.fetch("lab/mine")).sae())
    said = files["README.md"].decode()
    assert "| fvu | 0.2832 | 0.2783 to 0.2882 |" in said and "| l0 | 16.93 | 16.82 to 17.06 |" in said
    assert "odd" not in said and "nan" not in said and "documents: 1259" in said
    assert (
        "| tokens | 2000000 |" in said
        and "| lr | 0.0007 |" in said
        and "| sae.k | 5 |" in said
        and "@article{gao2024" in said
    )
    assert 'sl.load_sae("lab/mine")' in said and "SAE.load_from_disk(folder)" in said
    assert any(token and TOKEN in token for _, _, token in hub.sent)
    assert "/home/me" not in said and not any(TOKEN.encode() in data for data in files.values())


@pytest.mark.parametrize("format", ["llama_scope", "gemma_scope", "dictionary_learning"])
def test_a_push_is_private_in_the_format_asked_for_and_may_be_repeated(hub, monkeypatch, format):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    sae = small()
    for _ in range(2):
        door.push(sae, "lab/mine", format=format, private=True)
    assert hub.repos["lab/mine"].private
    form = pretrained.read(door.fetch("lab/mine"))
    assert form.origin["format"] == format
    same(sae, form.sae())


def test_a_push_that_would_mix_or_expose_is_refused(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.repos |= {"lab/other": Repo({"ae.pt": b""}), "lab/public": Repo({"README.md": b"before"})}
    with pytest.raises(FileExistsError, match=r"'lab/other' already holds ae.pt: one repository, one SAE"):
        door.push(small(), "lab/other")
    with pytest.raises(PermissionError, match="'lab/public' is there already, in public"):
        door.push(small(), "lab/public", private=True)
    assert hub.repos["lab/public"].files == {"README.md": b"before"}


def test_a_push_that_cannot_be_says_why_in_a_sentence(hub, monkeypatch, go_offline):
    with pytest.raises(PermissionError, match="No token for the hub: set HF_TOKEN"):
        door.push(small(), "lab/mine")
    assert not hub.sent
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for repo, format, says in (("mine", "saelens", "is no name on the hub"), ("a/b", "gguf", "No format 'gguf'")):
        with pytest.raises(ValueError, match=says):
            door.push(small(), repo, format=format)
    assert not hub.sent
    hub.readonly = True
    with pytest.raises(PermissionError, match=r"refuses 'lab/mine' \(403\): take a token .* write to 'lab'") as error:
        door.push(small(), "lab/mine")
    assert TOKEN not in str(error.value)
    hub.broken = 500
    with cut(r"'lab/mine' was not uploaded: .* answered 500"):
        door.push(small(), "lab/mine")
    hub.stop()
    with cut("cannot be reached"):
        door.push(small(), "lab/mine")
    go_offline()
    with cut("HF_HUB_OFFLINE=1 forbids"):
        door.push(small(), "lab/mine")


# the card


def front(text: str) -> dict:
    _, head, _ = text.split("---\n", 2)
    return yaml.safe_load(head)


def test_the_head_of_a_card_names_a_base_model_of_the_hub_alone():
    sae, tags = small("relu"), ["sparse-autoencoder", "interpretability"]
    said = {"library_name": "sae_lab", "tags": tags, "base_model": "meta-llama/Llama-3.1-8B"}
    assert front(card(sae)) == said
    for model in ("tiny", "/home/me/model", 'a/b"\ntags: [x]', "x\n---\n<b>", None):
        sae.origin["model"] = model
        said = card(sae)
        assert "base_model" not in front(said) and "/home/me" not in said and "<b>" not in said


def test_names_from_data_are_shown_and_not_obeyed(run):
    sae = small("topk")
    sae.origin |= {"model": "a|b\n---\nx: y <img src=x>\u202e![p](http://q)", "of": "`<b>`"}
    said = card(sae, run, repo='a"b/c', format="<i>", citation="```\n# title <u>")
    shown = MarkdownIt("commonmark").enable("table").render(said.split("---\n", 2)[2])
    assert "<table>" in shown and "&lt;img src=x&gt;" in shown
    for tag in ("script", "img", "a", "b", "i", "u", "h3", "hr"):
        assert not re.search(rf"<{tag}[\s>]", shown), tag
    assert "\u202e" not in said and 'a"b' not in said and "<u>" in said
    assert said.count("\n---\n") == 1 and front(said)["library_name"] == "sae_lab"
    assert r"--- &lt;script&gt;alert(1)&lt;\|script&gt;" in said
    assert all(line.replace("\\|", "").count("|") == 3 for line in said.splitlines() if line.startswith("| run"))


@pytest.mark.parametrize(
    ("sae", "says"),
    [
        (small("relu", centred=True), ["`b_dec` is subtracted", "its pre-activation is above 0", "raw activations"]),
        (small("relu"), ["`b_dec` is not subtracted"]),
        (small("topk"), ["The 5 latents with the largest pre-activations"]),
        (small("topk", per_token="layer_norm"), ["subtracts each token's mean"]),
        (small(), ["above its threshold (0.25 for all)", "`b_dec` is not subtracted"]),
        (small("jumprelu"), ["each has its own, "]),
        (small("gated"), ["relu(exp(`r_mag`) u + `b_mag`)"]),
        (small("topk", transcode=True, skip=True), ["`W_skip` x", "| predicts | the MLP output of layer 15 |"]),
    ],
    ids=lambda value: value.name if isinstance(value, SAE) else "",
)
def test_a_card_says_the_conventions_in_words(sae, says):
    said = card(sae)
    assert all(words in said for words in says), said
    assert f"| d_sae | {F} (3 latents per dimension) |" in said


def test_a_card_tells_of_the_files_and_not_of_the_sae_before_it_was_written():
    sae = small("relu", centred=True)
    assert "its part has been moved into `b_enc`" in card(sae, format="gemma_scope")
    assert "has been moved" not in card(sae, format="saelens")


def test_a_card_without_a_run_has_no_numbers_and_no_invented_settings():
    said = card(small("relu"))
    assert "## Measured" not in said and "| lr |" not in said and "| context | 1024 |" in said
    assert "## Citation" not in said and "arXiv" in said


def test_plain_text_is_one_line_without_marks():
    assert plain("a\x00\n# b\u200b") == "a # b"
    assert plain("x" * 1000) == "x" * 200 and plain("|é") == "\\|é"
