"""Files that lie, that were cut short, or that would run something: a clear error; nothing executed or written."""

import json
import os
import pickle
import struct
import warnings
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_formats import D, F, llama_scope, put, saelens, w  # noqa: F401  (a fixture)

import sae_lab as sl
from sae_lab import pretrained
from sae_lab.runs import Damaged


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("name", ["ae.pt", "sae.pth", "sae_weights.pt"])
def test_code_in_a_pickle_is_not_run(tmp_path, name):
    target = tmp_path / "harm"
    torch.save({"encoder.weight": torch.zeros(4, 2), "more": Bomb(target)}, tmp_path / name)
    for where in (tmp_path, tmp_path / name):
        with pytest.raises(Damaged, match="more than tensors in it, which could run code: it was not loaded"):
            sl.load_sae(where)
    assert not target.exists()


def test_code_in_an_array_is_not_run(tmp_path):
    target = tmp_path / "harm"
    array = np.array([Bomb(target)], dtype=object)
    np.savez(tmp_path / "params.npz", w_enc=array)
    with pytest.raises(Damaged, match=r"no plain array of numbers\. Nothing of it was loaded"):
        sl.load_sae(tmp_path)
    assert not target.exists()
    (tmp_path / "ae.pt").write_bytes(pickle.dumps(Bomb(target)))
    (tmp_path / "params.npz").unlink()
    with pytest.raises(Damaged):
        sl.load_sae(tmp_path)
    assert not target.exists()


def test_an_archive_whose_arrays_are_larger_than_they_say_is_refused(tmp_path):
    header = b"\x93NUMPY\x01\x00" + struct.pack("<H", 118)
    said = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2), }".ljust(117) + "\n"
    with zipfile.ZipFile(tmp_path / "params.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("W_enc.npy", header + said.encode() + bytes(2**26))
    with pytest.raises(Damaged, match="no plain array"):
        sl.load_sae(tmp_path)


@pytest.mark.parametrize("kept", [0, 4, 8, 100, 2000])
def test_a_file_cut_short_says_so(tmp_path, w, kept):  # noqa: F811
    folder = llama_scope(tmp_path, w, {"in": 4.0, "out": 4.0})
    file = folder / "checkpoints" / "final.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(Damaged, match=r"final\.safetensors cannot be read as safetensors: .+ Copy it again"):
        sl.load_sae(folder)


def test_a_header_of_any_size_is_bounded(tmp_path, w):  # noqa: F811
    folder = llama_scope(tmp_path, w, {"in": 4.0, "out": 4.0})
    file = folder / "checkpoints" / "final.safetensors"
    for size in (2**62, 2**31, len(file.read_bytes())):
        file.write_bytes(struct.pack("<Q", size) + file.read_bytes()[8:])
        with pytest.raises(Damaged, match="cannot be read as safetensors"):
            sl.load_sae(folder)


def test_tensors_that_share_bytes_or_leave_the_file_are_refused(tmp_path, w):  # noqa: F811
    folder = llama_scope(tmp_path, w, {"in": 4.0, "out": 4.0})
    file = folder / "checkpoints" / "final.safetensors"
    data = file.read_bytes()
    head = int.from_bytes(data[:8], "little")
    said = json.loads(data[8 : 8 + head])
    for name, change in (("encoder.bias", [0, 2**40]), ("encoder.bias", [0, F * 4])):
        lie = json.dumps(said | {name: said[name] | {"data_offsets": change}}).encode()
        file.write_bytes(struct.pack("<Q", len(lie)) + lie + data[8 + head :])
        with pytest.raises(Damaged, match="cannot be read as safetensors"):
            sl.load_sae(folder)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["W_enc", "W_dec", "b_enc", "b_dec", "threshold"])
def test_numbers_that_are_none_are_refused(tmp_path, w, name, bad):  # noqa: F811
    tensors = {"b_enc": w.b_enc, "threshold": w.theta}
    spoilt = tensors[name] if name in tensors else getattr(w, name)
    spoilt.view(-1)[3] = bad
    folder = saelens(tmp_path, w, "jumprelu", tensors)
    with pytest.raises(Damaged, match="numbers that are not finite"):
        sl.load_sae(folder)


@pytest.mark.parametrize("change", [{"d_sae": 2 * F}, {"d_model": D + 1}, {"d_model": -3}, {"d_sae": "many"}])
def test_a_config_that_lies_about_shapes_is_found(tmp_path, w, change):  # noqa: F811
    folder = llama_scope(tmp_path, w, {"in": 4.0, "out": 4.0}, **change)
    with pytest.raises((Damaged, ValueError), match=r"do not belong together|hyperparams"):
        sl.load_sae(folder)


@pytest.mark.parametrize("norms", [{"in": 0.0, "out": 1.0}, {"in": -2.0, "out": 1.0}, {"in": float("nan"), "out": 1.0}])
def test_a_norm_that_cannot_be_is_found(tmp_path, w, norms):  # noqa: F811
    with pytest.raises(Damaged, match="must be above 0 and finite"):
        sl.load_sae(llama_scope(tmp_path, w, norms))


def test_vectors_of_another_length_are_found(tmp_path, w):  # noqa: F811
    folder = saelens(tmp_path, w, "jumprelu", {"b_enc": w.b_enc[:-1], "threshold": w.theta})
    with pytest.raises(Damaged, match=r"b_enc"):
        sl.load_sae(folder)


@pytest.mark.parametrize("text", ["{", "[" * 100_000, '{"d_sae": }', "\x00\x01", "null", "[]", '"text"'])
def test_a_config_that_is_none_is_found(tmp_path, w, text):  # noqa: F811
    folder = llama_scope(tmp_path, w, {"in": 4.0, "out": 4.0})
    (folder / "hyperparams.json").write_text(text)
    with pytest.raises((Damaged, ValueError), match=r"hyperparams\.json|no SAE of a known format"):
        sl.load_sae(folder)


def test_a_config_without_what_it_must_say_is_found(tmp_path, w):  # noqa: F811
    folder = llama_scope(tmp_path, w, {"in": 4.0, "out": 4.0})
    whole = json.loads((folder / "hyperparams.json").read_text())
    for name in ("d_model", "jump_relu_threshold", "hook_point_in"):
        (folder / "hyperparams.json").write_text(json.dumps({k: v for k, v in whole.items() if k != name}))
        with pytest.raises(Damaged, match=rf"hyperparams\.json does not say {name!r}"):
            sl.load_sae(folder)
    for name, value in (("jump_relu_threshold", "high"), ("dataset_average_activation_norm", 3), ("d_model", [])):
        (folder / "hyperparams.json").write_text(json.dumps(whole | {name: value}))
        with pytest.raises(Damaged):
            sl.load_sae(folder)


def test_dictionaries_without_end_and_tensors_of_nothing_are_refused(tmp_path):
    deep = {"x": 1}
    for _ in range(60):
        deep = {"a": deep, "b": deep}
    torch.save(deep, tmp_path / "ae.pt")
    with pytest.raises(Damaged, match="dictionaries in dictionaries"):
        sl.load_sae(tmp_path)
    torch.save({"encoder.weight": torch.zeros(1).expand(10**6, 10**6)}, tmp_path / "ae.pt")
    with pytest.raises(Damaged, match="larger than what the file holds"):
        sl.load_sae(tmp_path)


def test_a_config_without_end_is_not_read(tmp_path, w):  # noqa: F811
    folder = llama_scope(tmp_path, w, {"in": 4.0, "out": 4.0})
    (folder / "hyperparams.json").unlink()
    (folder / "hyperparams.json").symlink_to("/dev/zero")
    with pytest.raises(Damaged, match="no file of its own"):
        sl.load_sae(folder)


def test_our_own_files_are_bounded_as_well(tmp_path):
    folder = sl.save_sae(sl.build("topk", d_in=4, d_sae=8, k=2), tmp_path / "own")
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(said | {"config": said["config"] | {"d_sae": 2**20, "d_in": 2**16}}))
    with pytest.raises(Damaged, match=r"do not fit its config\.json, by which W_enc is"):
        sl.load_sae(folder)
    (folder / "config.json").write_text("[" * 100_000)
    with pytest.raises(Damaged, match="not readable as JSON"):
        sl.load_sae(folder)


@pytest.mark.parametrize("inside", ["../secret", "/etc", "a/../../b", "..\\secret"])
def test_a_path_does_not_climb_out_of_its_folder(tmp_path, inside):
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match="climbs out of where it is looked for"):
        sl.load_sae(tmp_path / "a", inside)


def test_nothing_is_written_where_a_format_refuses_or_the_disk_is_full(tmp_path, monkeypatch):
    sae = sl.build("gated", d_in=D, d_sae=F)
    with pytest.raises(ValueError, match="cannot be written as llama_scope"):
        sl.save_sae(sae, tmp_path / "out", "llama_scope")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"No format 'numpy' to write\. Known: llama_scope"):
        sl.save_sae(sae, tmp_path / "out", "numpy")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="a folder of its own"):
        sl.save_sae(sae, tmp_path / "full", "saelens")
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["mine.txt"]


def test_weights_that_look_wrong_are_loaded_with_a_word(tmp_path, w):  # noqa: F811
    other = torch.randn(F, D, generator=torch.Generator().manual_seed(5))
    w.W_dec = other
    with pytest.warns(UserWarning, match="nothing in common"):
        sl.load_sae(saelens(tmp_path / "a", w, "standard", {"b_enc": w.b_enc}))
    w.W_dec = w.W_enc.clone()
    w.W_dec[: F - 10] = 0
    with pytest.warns(UserWarning, match="79% of the decoder's rows are zero"):
        sl.load_sae(saelens(tmp_path / "b", w, "standard", {"b_enc": w.b_enc}))
    w.W_dec = w.W_enc.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sl.load_sae(saelens(tmp_path / "c", w, "standard", {"b_enc": w.b_enc}))


def test_what_holds_no_sae_says_what_it_holds(tmp_path):
    put(tmp_path, None, {"lm_head.weight": torch.zeros(3, 3)}, weights="model.safetensors")
    with pytest.raises(ValueError, match=r"no SAE of a known format .+ It has model\.safetensors: lm_head\.weight"):
        sl.load_sae(tmp_path)
    with pytest.raises(FileNotFoundError, match="No SAE and no run"):
        sl.load_sae(tmp_path / "nothing")


def test_some_latents_are_read_as_all_are(tmp_path, w):  # noqa: F811
    folder = llama_scope(tmp_path / "l", w, {"in": 4.0, "out": 3.0})
    whole, some = pretrained.read(folder), sl.load_latents(folder, [7, 0, 47])
    for name in ("W_enc", "W_dec", "b_enc"):
        assert torch.equal(getattr(some, name), getattr(whole, name)[[7, 0, 47]])
    with pytest.raises(IndexError, match=r"no latent 48.*0 to 47"):
        sl.load_latents(folder, [48])
    with pytest.raises(IndexError, match=r"no latent -1"):
        sl.load_latents(folder, [-1])
    npz = {"W_enc": w.W_enc.T, "W_dec": w.W_dec, "b_enc": w.b_enc, "b_dec": w.b_dec, "threshold": w.theta}
    save_file({k.lower(): t.contiguous() for k, t in npz.items()}, tmp_path / "params.safetensors")
    some = sl.load_latents(tmp_path / "params.safetensors", [2])
    assert torch.equal(some.W_dec[0], w.W_dec[2]) and torch.equal(some.threshold, w.theta[2:3])
