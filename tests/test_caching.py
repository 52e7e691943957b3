"""Activations on a disk: what is read from there is what the model gave, or nothing at all."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections import namedtuple
from contextlib import contextmanager
from pathlib import Path

import little
import pytest
import torch
from safetensors.torch import load_file, save

import sae_lab as sl
from sae_lab.caching import caching, filling, making, size
from sae_lab.cli import main
from sae_lab.harvest import activations, stream
from sae_lab.launcher import Job, run_job
from sae_lab.models import load_model
from sae_lab.runs import Damaged, RunInUse

STORIES = [" ".join(f"cat {i} sat on mat {j}." for j in range(1 + i % 4)) for i in range(400)]
HOW = {"text": STORIES, "split": "all", "documents": 16}


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return load_model(little.save(tmp_path_factory.mktemp("llama")))


@pytest.fixture(scope="module")
def made(lm, tmp_path_factory):
    """A whole cache that nobody may change."""
    folder = tmp_path_factory.mktemp("cache") / "made"
    return sl.cache(lm, ["L1R", "L0TC"], 2500, folder, dtype="float32", **HOW)


@pytest.fixture
def copied(made, tmp_path):
    return shutil.copytree(made.shards.root, tmp_path / "copied")


def shard(folder, number=0, ending="safetensors"):
    return Path(folder) / f"{number:06d}.{ending}"


def same(one, two, **near):
    for site in one:
        for field in ("x", "target", "grad", "doc", "position"):
            a, b = getattr(one[site], field), getattr(two[site], field)
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b, **(near if a.is_floating_point() else {"rtol": 0, "atol": 0}))
    assert list(one) == list(two)


def test_batches_are_those_of_the_model(lm, made):
    live, cached = activations(lm, ["L1R", "L0TC"], buffer=512, **HOW), sl.Cached(made.shards.where, buffer=512)
    for _ in range(15):
        same(live.next(96), cached.next(96), rtol=0, atol=0)
    assert cached.statistics("L0M").mean_square == live.statistics("L0M").mean_square
    assert cached.d_in("L0M") == lm.d_model and cached.served == 15 * 96 < cached.tokens >= 2500


def test_gradients_are_stored_where_they_are_needed(lm, tmp_path):
    how = HOW | {"needs": {"grad"}}
    live, cached = activations(lm, "L1R", buffer=256, **how), sl.cache(lm, "L1R", 600, tmp_path, dtype="float32", **how)
    cached = sl.Cached(tmp_path, buffer=256)
    batch = cached.next(64)
    same(live.next(64), batch, rtol=0, atol=0)
    assert batch["L1R"].grad.abs().sum() > 0
    sae = sl.build("gradient", d_in=lm.d_model, d_sae=64, k=4)
    assert list(sl.train(sae, sl.Cached(tmp_path, buffer=256), tokens=256, batch=64))


def test_every_row_has_its_token(lm, made):
    blocks = activations(lm, "L1R", **HOW).blocks
    for number in range(len(made.manifests)):
        block, rows = blocks.block(number), made.block(number)
        assert torch.equal(rows["token"], block.ids[block.keep])
        assert torch.equal(rows["doc"], block.doc[block.keep]) and torch.equal(
            rows["position"], block.position[block.keep]
        )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
def test_what_the_precision_loses_is_measured(lm, made, tmp_path, dtype):
    cached = sl.cache(lm, ["L1R", "L0TC"], 2500, tmp_path, dtype=dtype, **HOW)
    x = torch.cat([made.block(i)["L1R"] for i in range(len(made.manifests))])
    if dtype == "int8":
        scale = x.abs().amax(1, keepdim=True) / 127
        stored = (x / scale).round() * scale
    else:
        stored = x.to(getattr(torch, dtype)).float()
    found = torch.cat([cached.block(i)["L1R"].float() for i in range(len(cached.manifests))])
    torch.testing.assert_close(found, stored, rtol=1e-6, atol=0)
    assert cached.error["L1R"] == pytest.approx(float((stored - x).norm() / (x - x.mean(0)).norm()), rel=0.1)
    assert cached.error["L1R"] < {"float16": 5e-4, "bfloat16": 5e-3, "int8": 2e-2}[dtype]  # of the spread, not the norm
    assert cached.bytes == pytest.approx(size([lm.d_model] * 3, cached.tokens, dtype), rel=0.05)
    one, two = sl.Cached(tmp_path, buffer=512).next(64), sl.Cached(made.shards.where, buffer=512).next(64)
    same(one, two, rtol=0.02, atol=0.03)


def test_numbers_that_cannot_be_stored_are_refused():
    x = torch.tensor([[1.0, 7e4]])
    for bad in (torch.inf, torch.nan):
        with pytest.raises(ValueError, match="not finite: the model overflows"):
            making.packed(torch.tensor([[1.0, bad]]), "int8")
    assert making.packed(torch.zeros(2, 3), "int8")[1] == 0
    with pytest.raises(ValueError, match=r"7e\+04 is beyond float16: take dtype='bfloat16'"):
        making.packed(x, "float16")
    assert making.packed(x, "bfloat16")[1] < 0.01
    rows = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    for much in (1e-30, 1.0, 1e30):
        assert making.packed(much * rows, "int8")[1] == pytest.approx(making.packed(rows, "int8")[1], rel=1e-3)
    assert making.packed(rows + 100, "int8")[1] > 30 * making.packed(rows, "int8")[1]  # about the mean, not 0


def test_a_cache_that_ends_begins_again_and_resumes_exactly(made, monkeypatch):
    monkeypatch.setattr(stream, "SAVED_RING", 0)
    source = sl.Cached(made.shards.where, "L1R", buffer=256)
    seen = [source.next(128) for _ in range(2 * made.tokens // 128)]
    assert len({(int(d), int(p)) for b in seen for d, p in zip(b["L1R"].doc, b["L1R"].position)}) == made.tokens
    tensors, told = source.state()
    assert "ring.L1R" not in tensors
    again = sl.Cached(made.shards.where, "L1R", buffer=256)
    again.restore({k: v.clone() for k, v in tensors.items()}, json.loads(json.dumps(told)))
    for _ in range(9):
        same(source.next(128), again.next(128), rtol=0, atol=0)


def test_a_text_that_ends_is_cached_once(lm, tmp_path):
    cached = sl.cache(lm, "L1R", 10**6, tmp_path, text=STORIES[:40], split="all", documents=16)
    docs = torch.cat([cached.block(i)["doc"] for i in range(len(cached.manifests))])
    assert len(cached.manifests) == 3 and cached.tokens < 2000 and set(range(40)) <= set(docs.tolist())
    again = list(caching(lm, "L1R", 10**6, tmp_path, text=STORIES[:40], split="all", documents=16))
    assert [step.fresh for step in again] == [False]


def test_where_one_stands_does_not_matter(made, monkeypatch):
    folder = Path(made.shards.root)
    monkeypatch.chdir(folder.parent)
    near, far = sl.Cached(folder.name), sl.Cached(f"{folder}/")
    assert near.describe() == far.describe() == sl.Cached(f"file://{folder}").describe()


def test_more_is_added_behind_what_is_there_and_nothing_read_twice(lm, made, copied, monkeypatch):
    before, read = sl.Cached(copied, buffer=512).next(64), []
    whole = lm.read
    monkeypatch.setattr(lm, "read", lambda ids, *rest: read.append(ids) or whole(ids, *rest))
    steps = list(caching(lm, ["L1R", "L0TC"], 4000, copied, dtype="float32", **HOW))
    assert not steps[0].fresh and all(step.fresh for step in steps[1:]) and steps[-1].tokens >= 4000
    assert len(read) >= len(steps) - 1
    grown = sl.Cached(copied, buffer=512)
    assert grown.tokens == steps[-1].tokens and len(grown.manifests) == steps[-1].shards
    as_before = sl.Cached(copied, tokens=made.tokens, buffer=512)
    same(before, as_before.next(64), rtol=0, atol=0)
    assert as_before.tokens == made.tokens and as_before.describe()["tokens"] == made.tokens
    read.clear()
    again = list(caching(lm, ["L1R", "L0TC"], 4000, copied, dtype="float32", **HOW))
    assert [step.fresh for step in again] == [False] and not read


KILLED = """
import os, sys, threading, time
import sae_lab as sl
from sae_lab.caching import caching
lm = sl.load_model(sys.argv[1])
texts = [" ".join(f"cat {i} sat on mat {j}." for j in range(1 + i % 4)) for i in range(400)]
print("ready", flush=True)
for step in caching(lm, ["L1R", "L0TC"], 2500, sys.argv[2], dtype="float32", text=texts, split="all", documents=16):
    print(step.shards, flush=True)
"""


def test_a_kill_loses_at_most_the_shard_in_progress(lm, made, tmp_path):
    for shards in (0, 2, 3):
        folder, last = tmp_path / str(shards), "ready" if shards == 0 else str(shards)
        command = [sys.executable, "-c", KILLED, lm.name, str(folder)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert any(line.strip() == last for line in child.stdout), "the child ended early"
            time.sleep(0.002 * shards)  # somewhere within the next shard
            os.kill(child.pid, signal.SIGKILL)
        there = len(sl.Cached(folder).manifests) if shard(folder, 0, "json").exists() else 0
        assert there >= shards
        sl.cache(lm, ["L1R", "L0TC"], 2500, folder, dtype="float32", **HOW)
        for file in sorted(Path(made.shards.root).glob("*.safetensors")):
            assert (folder / file.name).read_bytes() == file.read_bytes()


def test_what_has_no_manifest_is_not_there(lm, made, copied):
    last = len(made.manifests) - 1
    shard(copied, last, "json").unlink()
    shard(copied, last).write_bytes(b"half of it")
    assert sl.Cached(copied).tokens == made.tokens - made.manifests[-1]["rows"]
    again = sl.cache(lm, ["L1R", "L0TC"], 2500, copied, dtype="float32", **HOW)
    assert again.tokens == made.tokens and again.verify() == last + 1


def test_a_flipped_bit_is_found_before_anything_of_it_is_served(copied, capsys):
    data = bytearray(shard(copied, 1).read_bytes())
    data[len(data) // 2] ^= 1
    shard(copied, 1).write_bytes(data)
    source = sl.Cached(copied, "L1R", buffer=64)
    with pytest.raises(Damaged, match=r"000001\.safetensors is not what was written: its crc32 differs"):
        source.verify()
    served = (source.next(32) for _ in range(40))
    with pytest.raises(Damaged, match="crc32 differs"):
        list(served)
    assert main(["cache", str(copied), "--verify"]) == 2
    assert "crc32 differs" in capsys.readouterr().err


def test_files_that_lie_are_told(copied):
    head = json.loads((Path(copied) / "cache.json").read_text())
    said = json.loads(shard(copied, 0, "json").read_text())
    shard(copied, 0, "json").write_text(json.dumps(said | {"bytes": said["bytes"] + 1}))
    with pytest.raises(Damaged, match="bytes that its manifest says"):
        sl.Cached(copied)
    shard(copied, 0, "json").write_text(json.dumps(said | {"rows": said["rows"] + 1}))
    with pytest.raises(Damaged, match="lacks rows of 'token'"):
        sl.Cached(copied, buffer=64).next(32)
    shard(copied, 0, "json").write_text('{"rows": 3')
    with pytest.raises(Damaged, match="not readable as JSON"):
        sl.Cached(copied)
    shard(copied, 0, "json").write_text("[]")
    with pytest.raises(Damaged, match="no manifest of a shard"):
        sl.Cached(copied)
    (Path(copied) / "cache.json").write_text(json.dumps(head | {"format": "other"}))
    with pytest.raises(Damaged, match="no cache of this package's"):
        sl.Cached(copied)


@pytest.mark.parametrize(
    ("file", "wrong"),
    [
        *(("json", {"error": e}) for e in (None, {"L1R": float("nan")}, {"L1R": "small"})),
        *(("json", said) for said in ({"crc32": "7"}, {"rows": True}, {"rows": -3})),
        *(("cache.json", said) for said in ({"sites": "L1R"}, {"widths": {"L1R": 0}}, {"seed": None}, {"needs": [3]})),
    ],
)
def test_what_is_no_number_or_name_is_not_believed(copied, file, wrong):
    path = Path(copied) / file if file == "cache.json" else shard(copied, 0, file)
    path.write_text(json.dumps(json.loads(path.read_text()) | wrong))
    with pytest.raises(Damaged, match=r"no manifest of a shard|does not say what was cached"):
        sl.Cached(copied)


def test_scales_that_do_not_fit_are_told(lm, tmp_path):
    sl.cache(lm, "L1R", 500, tmp_path, dtype="int8", **HOW)
    said, tensors = json.loads(shard(tmp_path, 0, "json").read_text()), load_file(shard(tmp_path))
    bare = {name: t for name, t in tensors.items() if name != "L1R.scale"}
    for scale in ({"L1R.scale": tensors["L1R.scale"][:, None]}, {}):
        data = save(bare | scale)
        shard(tmp_path).write_bytes(data)
        shard(tmp_path, 0, "json").write_text(json.dumps(said | {"bytes": len(data), "crc32": zlib.crc32(data)}))
        with pytest.raises(Damaged, match="scales of 'L1R' that do not fit"):
            sl.Cached(tmp_path).verify()


def test_a_second_process_that_adds_is_refused(lm, copied):
    first = caching(lm, ["L1R", "L0TC"], 9000, copied, dtype="float32", **HOW)
    next(first)
    with pytest.raises(RunInUse, match="Another process is adding to the cache"):
        sl.cache(lm, ["L1R", "L0TC"], 9000, copied, dtype="float32", **HOW)
    assert sl.Cached(copied).tokens >= 2500, "readers are welcome"
    first.close()
    assert sl.cache(lm, ["L1R", "L0TC"], 3000, copied, dtype="float32", **HOW).tokens >= 3000


def test_a_cache_of_something_else_is_refused(lm, copied, tmp_path_factory):
    how = HOW | {"dtype": "float32"}
    for other, said in (
        ({"dtype": "float16"}, "stored='float32', not 'float16'"),
        ({"text": STORIES[1:]}, "digest="),
        ({"seed": 3}, "seed=0, not 3"),
        ({"needs": {"grad"}}, r"needs=\[\], not \['grad'\]"),
    ):
        with pytest.raises(ValueError, match=f"was made with {said}.*A cache never changes"):
            sl.cache(lm, ["L1R", "L0TC"], 2500, copied, **how | other)
    other = load_model(lm.name)
    other.module.model.layers[0].mlp.up_proj.weight.data.mul_(1.01)
    with pytest.raises(ValueError, match="made with weights='"):
        sl.cache(other, ["L1R", "L0TC"], 2500, copied, **how)
    assert load_model(lm.name).fingerprint == lm.fingerprint


def test_another_text_of_the_same_name_is_refused(lm, tmp_path):
    how = {"split": "all", "documents": 16}
    sl.cache(lm, "L1R", 500, tmp_path, text=lambda: iter(STORIES), **how)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match="other tokens than this text begins with"):
        sl.cache(lm, "L1R", 900, tmp_path, text=lambda: iter(STORIES[1:]), **how)
    assert sorted(tmp_path.iterdir()) == before
    assert sl.cache(lm, "L1R", 900, tmp_path, text=lambda: iter(STORIES), **how).tokens >= 900


def test_mistakes_are_told_with_the_way_out(lm, made, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="dtype='float8' is not one of float16"):
        sl.cache(lm, "L1R", 100, tmp_path / "a", dtype="float8", **HOW)
    with pytest.raises(ValueError, match="tokens=0 must be at least 1"):
        sl.cache(lm, "L1R", 0, tmp_path / "a", **HOW)
    with pytest.raises(ValueError, match="patched_kl needs the model itself"):
        sl.cache(lm, "L1R", 100, tmp_path / "a", needs={"patched_kl"}, **HOW)
    with pytest.raises(FileNotFoundError, match=r"no cache.json. Make one: sl.cache"):
        sl.Cached(tmp_path / "b")
    with pytest.raises(ValueError, match=r"has no L2R: it has L1R, L0TC"):
        sl.Cached(made.shards.where, "L2R")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(making.shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 10**6, 10**6))
    read = []
    monkeypatch.setattr(lm, "read", lambda *a: read.append(a))
    with pytest.raises(OSError, match=r"1,000,000 tokens of L1R in float16 need 0.\d+ GB.*0.001 GB free"):
        sl.cache(lm, "L1R", 10**6, tmp_path / "c")
    assert not read and not list((tmp_path / "c").glob("0*"))
    monkeypatch.undo()
    monkeypatch.setattr(making.shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 10**6, 10**6))
    assert sl.cache(lm, "L1R", 10**6, tmp_path / "c", **HOW).tokens < 20_000  # the text ends long before the disk


def test_any_address_that_fsspec_knows_will_do(lm, made):
    there = sl.cache(lm, ["L1R", "L0TC"], 2500, "memory://caches/one", dtype="float32", **HOW)
    same(there.next(64), sl.Cached(made.shards.where).next(64), rtol=0, atol=0)
    assert there.verify() == len(made.manifests)
    assert sl.cache(lm, ["L1R", "L0TC"], 3000, "memory://caches/one", dtype="float32", **HOW).tokens >= 3000


def test_a_training_from_a_cache_is_that_of_the_model_and_resumes(lm, made, tmp_path):
    saes = [sl.build("topk", d_in=lm.d_model, d_sae=64, k=4) for _ in range(3)]
    sources = (
        activations(lm, "L1R", buffer=512, **HOW),
        *(sl.Cached(made.shards.where, "L1R", buffer=512) for _ in "ab"),
    )
    knobs = {"tokens": 1280, "batch": 128, "lr": 1e-3, "calibration_tokens": 128, "sample": 128}
    list(sl.train(saes[0], sources[0], **knobs))
    for step in sl.train(saes[1], sources[1], run=tmp_path / "run", checkpoint_steps=3, **knobs):
        if step.index == 7:
            break
    saes[1] = sl.build("topk", d_in=lm.d_model, d_sae=64, k=4)
    list(sl.train(saes[1], sources[2], run=tmp_path / "run", checkpoint_steps=3, **knobs))
    assert torch.equal(saes[0].W_dec, saes[1].W_dec) and torch.equal(saes[0].W_enc, saes[1].W_enc)
    about = sl.Run(tmp_path / "run").config["source"]
    assert about["cache"] == made.shards.where and about["model"] == lm.name and about["stored"] == "float32"
    assert sl.load_sae(tmp_path / "run").origin["model"] == lm.name


def test_the_command_line_makes_one_and_trains_from_it(tmp_path, capsys):
    folder, run = str(tmp_path / "cache"), str(tmp_path / "run")
    make = ["cache", folder, "--model", "tiny", "--sites", "L1R", "L2R", "--tokens", "4000", "--json"]
    assert main(make) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["tokens"] >= 4000 and told["sites"] == ["L1R", "L2R"] and told["stored"] == "float16"
    assert told["error"].keys() == {"L1R", "L2R"} and 0 < told["error"]["L1R"] < 1e-3
    assert main([*make[:2], "--verify"]) == 0
    assert f"{told['shards']} shards are what was written" in capsys.readouterr().out
    train = ["train", "topk", "--cache", folder, "--site", "L2R", "--d-sae", "64", "--k", "4", "--tokens", "2048"]
    assert main([*train, "--batch", "256", "--evaluation", "2000", "--run", run, "--json"]) == 0
    found = sl.Run(run)
    assert found.config["source"]["cache"] == folder and found.eval["fvu"]["value"] < 1.5
    assert main([*train[:4], "--site", "L3R", *train[6:8], "--run", str(tmp_path / "x")]) == 2
    assert "has no L3R: it has L1R, L2R" in capsys.readouterr().err


def test_a_shard_is_plain_safetensors(made):
    tensors = load_file(shard(made.shards.root))
    assert set(tensors) == {"token", "doc", "position", "L1R", "L0TC", "L0M"}
    said = json.loads(shard(made.shards.root, 0, "json").read_text())
    assert len(tensors["L1R"]) == said["rows"] and set(said["error"]) == {"L1R", "L0TC", "L0M"}


def test_a_shard_that_is_missing_is_made_again_and_no_other(lm, copied):
    whole = sl.Cached(copied)
    number, before = len(whole.manifests), {p.name: p.stat().st_mtime_ns for p in copied.glob("0*")}
    shard(copied, 1).unlink()
    shard(copied, 1, "json").unlink()
    with pytest.raises(Damaged, match="lacks shard 1"):
        sl.Cached(copied)
    steps = list(caching(lm, ["L1R", "L0TC"], 2500, copied, dtype="float32", **HOW))
    assert [step.fresh for step in steps] == [False, True] and len(sl.Cached(copied).manifests) == number
    after = {p.name: p.stat().st_mtime_ns for p in copied.glob("0*")}
    assert {name for name in before if before[name] != after[name]} == {"000001.json", "000001.safetensors"}
    assert torch.equal(sl.Cached(copied).block(1)["L1R"], whole.block(2 - 1)["L1R"])


def test_verify_reads_what_was_read_before(copied):
    found = sl.Cached(copied)
    found.block(0)
    data = bytearray(shard(copied).read_bytes())
    data[-1] ^= 1
    shard(copied).write_bytes(data)
    with pytest.raises(Damaged):
        found.verify()


def test_a_run_goes_on_though_its_cache_has_grown(lm, copied, tmp_path):
    asked = {"variant": "topk", "model": lm.name, "site": "L1R", "d_sae": 64, "k": 4, "tokens": 1280, "batch": 128}
    asked |= {"buffer": 512, "calibration_tokens": 128, "sample": 128, "checkpoint_steps": 3, "evaluation": 0}
    jobs = [Job.of(**asked, cache=str(copied), run=tmp_path / name) for name in ("calm", "grown")]
    assert list(run_job(jobs[0]))
    for step in run_job(jobs[1]):
        if step.index == 7:
            break
    assert sl.cache(lm, ["L1R", "L0TC"], 4000, copied, dtype="float32", **HOW).tokens >= 4000
    assert [step.index for step in run_job(jobs[1])] == [8, 9, 10]
    calm, grown = (sl.load_sae(tmp_path / name) for name in ("calm", "grown"))
    assert torch.equal(calm.W_dec, grown.W_dec)


def test_a_run_waits_for_another_that_fills_its_cache(lm, tmp_path, monkeypatch):
    first, waited = caching(lm, "L1R", 900, tmp_path / "cache", **HOW), []
    next(first)
    run = sl.Run(tmp_path / "run")
    run.describe({"made": "up"}, file="job.json")

    def sleep(seconds):
        waited.append(run.status["state"])
        if len(waited) == 3:
            first.close()

    monkeypatch.setattr(filling.time, "sleep", sleep)
    filling.fill(lm, ["L1R"], 900, str(tmp_path / "cache"), run, **HOW)
    assert waited == ["starting"] * 3 and sl.Cached(tmp_path / "cache").tokens >= 900
    with caching_elsewhere(lm, tmp_path / "cache"), pytest.raises(RunInUse):
        filling.fill(lm, ["L1R"], 5000, str(tmp_path / "cache"), None, **HOW)


@contextmanager
def caching_elsewhere(lm, folder):
    steps = caching(lm, "L1R", 5000, folder, **HOW)
    next(steps)
    yield
    steps.close()
