"""A model on a server: what comes from there is what the model itself gives, whatever happens on the way."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import little
import pytest
import torch

import sae_lab as sl
from sae_lab import reading
from sae_lab.caching import caching, fill
from sae_lab.cli import main
from sae_lab.harvest import activations
from sae_lab.launcher.job import Job, place
from sae_lab.models import Edit, RemoteFailed, Server, load_model
from sae_lab.models import server as door
from sae_lab.reading import model_of
from sae_lab.runs import Run

STORIES = [" ".join(f"cat {i} sat on mat {j}." for j in range(1 + i % 4)) for i in range(400)]
HOW = {"text": STORIES, "split": "all", "documents": 16}
KEY = "a-key-of-this-test"


@contextmanager
def serving(folder, port=0, name="lab/little"):
    """The address of a server in a process of its own that cannot import sae_lab."""
    command = [sys.executable, str(Path(__file__).parent / "ndif.py"), str(folder), name, str(port)]
    bare = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"NDIF_API_KEY": KEY, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=bare, cwd="/")
    try:
        yield f"http://127.0.0.1:{child.stdout.readline().strip()}"
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return little.save(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def address(folder):
    with serving(folder) as where:
        yield where


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("NDIF_API_KEY", KEY)
    monkeypatch.setattr(door, "FIRST", 0.01)


@pytest.fixture(scope="module")
def here(folder):
    return load_model(folder)


@pytest.fixture(scope="module")
def far(address, folder):
    return load_model("lab/little", remote=Server(address, deadline=60), files=folder, dtype="float32")


@pytest.fixture(scope="module")
def text(here):
    return here.encode(["the cat sat on a mat.", "no, the dog"])


def asked(address, *faults):
    """What goes wrong next; the requests that came since are counted from here on."""
    urllib.request.urlopen(f"{address}/faults", json.dumps(faults).encode()).close()


def requests(address):
    with urllib.request.urlopen(f"{address}/faults") as reply:
        return len(json.load(reply)["received"])


def equal(one, two):
    assert list(one) == list(two)
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_what_is_read_is_what_the_model_has_cast_the_same_way(here, address, folder, text, kind):
    far = load_model("lab/little", remote=address, files=folder, dtype=kind)
    (ids, mask), sites = text, here.sites()
    assert far.dtype == getattr(torch, kind) and far.sites() == sites and far.vocab == here.vocab
    equal({s: x.to(far.dtype) for s, x in here.read(ids, sites, mask).items()}, far.read(ids, sites, mask))
    keep = mask & ~here.special(ids)
    equal({s: x.to(far.dtype) for s, x in here.rows(ids, sites, mask, keep).items()}, far.rows(ids, sites, mask, keep))
    equal({"": here.logits(ids, mask).to(far.dtype)}, {"": far.logits(ids, mask)})


def test_any_function_is_spliced_in_and_costs_what_it_costs_here(here, far, text):
    ids, mask = text
    sae = sl.build("topk", d_in=here.d_model, d_sae=64, k=4)
    weight = torch.randn(here.d_model)
    for sites in (
        {"L1R": sae},
        {"L1R": lambda x: x + weight},
        {"L0TC": lambda x: 1.5 * x, "L1M": torch.zeros_like, "L2A": lambda x: -x},
    ):
        moved = ["L2R"] if "L1R" in sites else []
        one, two = (lm.splice(ids, sites, mask=mask, moved=moved) for lm in (here, far))
        equal(one.moved, two.moved)
        equal(*({n: getattr(s, n) for n in ("ce", "ce_clean", "kl", "counts")} for s in (one, two)))
        assert two.logits is None and two.kl[two.counts].mean() > 0
    with pytest.raises(ValueError, match="one at a time"):
        far.splice(ids, {"L0TC": lambda x: x, "L0N": lambda x: x}, mask=mask)
    with pytest.raises(ValueError, match="loaded here"):
        far.splice(ids, "L1R", sae, mask=mask, grad=True)
    with pytest.raises(ValueError, match="Keep the shape"):
        far.splice(ids, "L1R", lambda x: x[..., :2], mask=mask)


def test_an_evaluation_finds_the_same_numbers(here, far):
    sae = sl.build("batchtopk", d_in=here.d_model, d_sae=64, k=4)
    how = {"site": "L1R", "tokens": 400, "text": STORIES}
    one, two = (sl.evaluate(sae, lm, **how).table for lm in (here, far))
    assert one.drop(columns="of", errors="ignore").equals(two.drop(columns="of", errors="ignore"))


def test_steered_texts_are_those_it_writes_here(here, far):
    vector, prompts = torch.randn(here.d_model, generator=torch.Generator().manual_seed(0)), ["the cat", "a"]
    edits = [None, Edit("L1R", vector, 3.0), (Edit("L0M", vector, -2.0, prompt=False), Edit("L1R", vector, 2.0))]
    for how in ({}, {"temperature": 1.0, "top_p": 0.9, "n": 2, "seed": 3}, {"temperature": 0.7, "seed": 1}):
        one, two = (lm.generate(prompts, edits, 12, **how) for lm in (here, far))
        assert one.texts == two.texts and one.ids == two.ids
        assert len(set(one.texts)) > 2
    ids, mask = here.encode(prompts)
    rows = [edits[1:2], edits[2]]
    equal({"": here.edited(ids, rows, mask)}, {"": far.edited(ids, rows, mask)})
    equal(*({"": lm.logit_lens(vector[None], "L1R")} for lm in (here, far)))
    equal(*({"": lm.logit_lens(torch.ones(2, here.mlp_width), "L1N")} for lm in (here, far)))
    with pytest.raises(ValueError, match='mode="add"'):
        far.generate(prompts, [Edit("L1R", vector, lambda x: x.sum(-1))])


def test_a_latent_steers_it_as_it_steers_here(here, far):
    sae = sl.build("topk", d_in=here.d_model, d_sae=64, k=4)
    how = {"site": "L1R", "text": STORIES, "max_new_tokens": 8}
    one, two = (sl.steer(sae, lm, {7: 6.0}, "the cat", **how) for lm in (here, far))
    assert one.table.equals(two.table)
    with pytest.raises(ValueError, match='mode="add"'):
        sl.steer(sae, far, sl.Push(7, "ablate"), "the cat", **how)


def test_attribution_is_refused(far):
    with pytest.raises(ValueError, match="Load the model here"):
        sl.attribute(sl.build("topk", d_in=far.d_model, d_sae=64, k=4), far, "the cat", of="ce", site="L1R")


def test_a_text_ends_there_where_it_ends_here(here, far):
    text = here.generate("the cat", n=8, temperature=1.0, max_new_tokens=8)
    assert len(text.texts) == 8
    stop = max((new for _, new in text.ids), key=len)[2]
    for lm in (here, far):
        lm.special_ids = tuple(sorted({*lm.special_ids, stop}))
    try:
        one, two = (
            [w.ids for w in lm.generate("the cat", n=8, temperature=1.0, max_new_tokens=8)] for lm in (here, far)
        )
    finally:
        for lm in (here, far):
            lm.special_ids = tuple(i for i in lm.special_ids if i != stop)
    assert one == two and -1 in one[-1] and any(stop in ids for ids in one)


def test_gradients_come_where_there_is_a_graph_and_are_refused_where_there_is_none(here, far, address, text):
    ids, mask = text
    sites = ["L0R", "L1TC", "L2M"]
    for of in ("ce", 5, (5, 6)):
        equal(*(lm.gradients(ids, sites, of, mask=mask) for lm in (here, far)))
    asked(address, "sandbox")
    try:
        with pytest.raises(RuntimeError, match="without an autograd graph"):
            far.gradients(ids, sites, mask=mask)
    finally:
        asked(address)


def test_a_cache_is_filled_by_one_request_a_shard_and_no_more(here, far, address, tmp_path):
    asked(address)
    cost = sl.cache_cost(far, ["L1R", "L0TC"], 1500, dtype="float32", **HOW)
    found = sl.cache(far, ["L1R", "L0TC"], 1500, tmp_path / "far", dtype="float32", **HOW)
    assert requests(address) == len(found.manifests) and abs(cost.requests - len(found.manifests)) <= 1
    assert abs(cost.tokens - found.tokens) < 0.1 * found.tokens and abs(cost.disk - found.bytes) < 0.15 * found.bytes
    assert cost.received == cost.tokens * 3 * here.d_model * 4 and "minutes" in str(cost)
    own = sl.cache(here, ["L1R", "L0TC"], 1500, tmp_path / "here", dtype="float32", **HOW)
    for number in range(len(own.manifests)):
        equal(own.block(number), found.block(number))
    sae = sl.build("topk", d_in=here.d_model, d_sae=64, k=4)
    assert list(sl.train({"L1R": sae}, sl.Cached(tmp_path / "far", buffer=256), tokens=512, batch=64))
    assert requests(address) == len(found.manifests)
    assert not any(KEY.encode() in p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    assert KEY not in repr(far) + repr(far.server)


def test_training_on_a_server_directly_is_refused(far, address, tmp_path):
    source = activations(far, "L1R", **HOW)
    sae = sl.build("topk", d_in=far.d_model, d_sae=64, k=4)
    with pytest.raises(ValueError, match="Fill a cache"):
        list(sl.train(sae, source, tokens=512, batch=64))
    with pytest.raises(ValueError, match="cache="):
        sl.launch(model="lab/little", remote=address, site="L1R", d_sae=64, run=str(tmp_path))
    with pytest.raises(ValueError, match="cache_cost"):
        sl.estimate(model="lab/little", remote=address, site="L1R", d_sae=64, cache=str(tmp_path))


FAULTS = {"silent": 1, "busy": 1, "lost": 2, "cut": 1, "garbled": 1, "slow": 1, "noise": 1, "queue": 1, "drip": 1}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_goes_wrong_once_is_tried_again(here, address, folder, text, fault, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    deadline = 1.0 if fault in ("silent", "lost", "slow", "queue", "drip") else 60.0
    far = load_model("lab/little", remote=Server(address, deadline=deadline), files=folder, dtype="float32")
    asked(address, fault)
    equal(here.read(*[text[0], ["L1R"]]), far.read(text[0], ["L1R"]))
    assert requests(address) == FAULTS[fault]  # what was computed and only lost on its way is fetched again
    assert far.server.requests == 1 and not (Path("/") / "opened-as-a-pickle").exists()
    assert not Path("opened-as-a-pickle").exists()


def test_a_job_whose_state_never_came_is_asked_after_again(here, address, folder, text):
    far = load_model("lab/little", remote=Server(address, deadline=1.5), files=folder, dtype="float32")
    asked(address, "early", "drip")
    equal(here.read(text[0], ["L1R"]), far.read(text[0], ["L1R"]))
    assert requests(address) == 1


def test_a_server_that_asks_for_patience_has_it(far, address, text, monkeypatch):
    pauses = []
    asked(address, "limit")
    monkeypatch.setattr(door.time, "sleep", pauses.append)
    assert far.read(text[0], ["L1R"]) and pauses.count(7.0) == 1


def test_a_result_that_could_execute_is_refused(address, folder, text, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    asked(address, "evil")
    with pytest.raises(RemoteFailed, match="which could execute"):
        load_model("lab/little", remote=address, files=folder).read(text[0], ["L1R"])
    assert not Path("opened-as-a-pickle").exists()


def test_what_goes_wrong_for_ever_ends_at_the_deadline(address, folder, text):
    far = load_model("lab/little", remote=Server(address, deadline=0.5, attempts=2), files=folder, dtype="float32")
    asked(address, "lost", "lost", "lost")
    with pytest.raises(RemoteFailed, match=r"2 attempts of up to 0.5 s.*deadline passed"):
        far.read(text[0], ["L1R"])
    asked(address)
    assert far.read(text[0], ["L1R"])


def test_a_server_that_goes_down_costs_no_shard_twice(here, folder, tmp_path):
    reading = dict(HOW, dtype="float32")
    with serving(folder) as address:
        server = Server(address, deadline=60, attempts=2)
        far = load_model("lab/little", remote=server, files=folder, dtype="float32")
        steps = caching(far, "L1R", 1500, tmp_path / "far", **reading)
        before = [next(steps) for _ in range(3)]
    with pytest.raises(RemoteFailed, match="what is in a cache stays there"):
        next(steps)
    with serving(folder, address.rpartition(":")[2]) as address:
        asked(address)
        found = sl.cache(far, "L1R", 1500, tmp_path / "far", **reading)
        assert requests(address) == len(found.manifests) - len(before)
    own = sl.cache(here, "L1R", 1500, tmp_path / "here", **reading)
    equal(own.block(2), found.block(2))
    equal(own.block(len(own.manifests) - 1), found.block(len(own.manifests) - 1))


def test_a_job_that_outlives_its_client_is_fetched_and_not_asked_for_again(here, folder, tmp_path):
    reading = dict(HOW, dtype="float32")
    with serving(folder) as address:
        brief = Server(address, deadline=1.0, attempts=1)
        asked(address, "queue")
        far = load_model("lab/little", remote=brief, files=folder, dtype="float32")
        with pytest.raises(RemoteFailed):
            sl.cache(far, "L1R", 300, tmp_path / "far", **reading)
        left = json.loads((tmp_path / "far" / "asked.json").read_text())
        assert left["shard"] == 0 and left["host"] == address and len(left["jobs"]) == 1
        far = load_model("lab/little", remote=Server(address, deadline=60), files=folder, dtype="float32")
        found = sl.cache(far, "L1R", 300, tmp_path / "far", **reading)
        assert requests(address) == len(found.manifests) == far.server.requests
        assert not (tmp_path / "far" / "asked.json").exists()
    equal(sl.cache(here, "L1R", 300, tmp_path / "here", **reading).block(0), found.block(0))


def test_what_another_thread_asks_is_no_part_of_a_shard(far, address, tmp_path):
    seen, whole = [], far.rows

    def rows(*asked):
        other = Thread(target=lambda: seen.append(far.server.memory))
        other.start()
        other.join()
        seen.append(far.server.memory)
        return whole(*asked)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(far, "rows", rows)
        sl.cache(far, "L1R", 100, tmp_path, **dict(HOW, dtype="float32"))
    assert set(seen[::2]) == {None} and None not in seen[1::2]
    assert far.server.memory is None


@pytest.mark.parametrize("said", ["", "[]", '{"shard": 0, "jobs": [7, "../x"]}', '{"shard": 0, "jobs": ["gone"]}'])
def test_a_job_that_nobody_knows_is_asked_for_anew(far, address, tmp_path, said):
    (tmp_path / "asked.json").write_text(said.replace("}", f', "host": "{address}"}}'))
    asked(address)
    found = sl.cache(far, "L1R", 300, tmp_path, **dict(HOW, dtype="float32"))
    assert requests(address) == len(found.manifests)


def test_a_fault_in_the_middle_of_a_harvest_loses_nothing(here, address, folder, tmp_path):
    far = load_model("lab/little", remote=Server(address, deadline=60), files=folder, dtype="float32")
    asked(address, "cut", "busy", "garbled")
    found = sl.cache(far, "L1R", 1000, tmp_path, dtype="float32", **HOW)
    assert requests(address) == len(found.manifests) == far.server.requests


def test_a_key_is_never_repeated(far, address, text, monkeypatch, tmp_path):
    monkeypatch.setenv("NDIF_API_KEY", "sekrit\u2603")
    with pytest.raises(ValueError, match="holds characters") as error:
        far.read(text[0], ["L1R"])
    assert "sekrit" not in str(error.value)
    monkeypatch.setenv("NDIF_API_KEY", f"{KEY}\r\n")  # as a file ends
    assert far.read(text[0], ["L1R"])
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # which would see it
    assert far.read(text[0], ["L1R"])
    monkeypatch.setenv("NDIF_API_KEY", "wrong-key")
    with pytest.raises(RemoteFailed) as error:
        far.read(text[0], ["L1R"])
    assert "wrong-key" not in str(error.value)


def test_a_result_that_was_not_asked_for_is_stored_nowhere(far, tmp_path, monkeypatch):
    whole = Server.answer
    for spoil in (lambda x: x[1:], lambda x: x[:, :1], lambda x: x.long(), lambda x: None):

        def answer(self, *args, spoil=spoil):
            return {k: {n: spoil(x) for n, x in v.items()} for k, v in whole(self, *args).items()}

        monkeypatch.setattr(Server, "answer", answer)
        with pytest.raises(RemoteFailed, match=r"asked for \(\d+, 16\) in torch.float32"):
            sl.cache(far, "L1R", 300, tmp_path / "c", dtype="float32", **HOW)
        assert not list((tmp_path / "c").glob("0*"))


def test_a_cache_that_holds_enough_is_taken_as_it_is(far, address, tmp_path):
    sl.cache(far, ["L1R", "L2R"], 600, tmp_path, dtype="int8", **HOW)
    asked(address)
    fill(far, ["L1R"], 500, str(tmp_path), None, **HOW)
    assert requests(address) == 0
    fill(far, ["L2R"], 1200, str(tmp_path), None, **HOW)
    found = sl.Cached(tmp_path)
    assert requests(address) > 0 and found.tokens >= 1200 and found.head["stored"] == "int8"


def test_a_file_does_not_say_where_the_key_is_sent(far, address, tmp_path, monkeypatch):
    sl.cache(far, "L1R", 300, tmp_path, dtype="float32", **HOW)
    sae = sl.build("topk", d_in=far.d_model, d_sae=64, k=4)
    list(sl.train(sae, sl.Cached(tmp_path, buffer=128), tokens=128, batch=64))
    assert sae.origin["remote"] is True and sae.origin["model"] == "lab/little"
    asked = []
    monkeypatch.setattr(reading, "load_model", lambda *args, **how: asked.append((args, how)) or far)
    sae.origin["remote"] = "https://example.org"
    model_of(sae)
    model_of(sae, "tiny")
    assert [(name, how["remote"]) for (name,), how in asked] == [("lab/little", True), ("tiny", False)]


def test_a_job_says_how_long_it_waits_and_where_its_sae_is(far, here, address):
    job = Job.of(model="lab/little", remote=address, deadline=7.0, cache="c", device="cuda:1")
    assert job.from_json(job.to_json()) == job and job.to_json()["deadline"] == 7.0
    assert "deadline" not in Job().to_json()
    assert place(job, far) == torch.device("cuda:1")  # the model is elsewhere, the SAE is not
    assert place(job.but(remote=None), here) == here.device


def test_a_wrong_key_an_unknown_model_and_a_trace_that_fails_are_said(far, address, folder, text, monkeypatch):
    other = load_model("lab/other", remote=address, files=folder)
    with pytest.raises(RemoteFailed, match="lab/other is not deployed"):
        other.read(text[0], ["L1R"])
    with pytest.raises(RemoteFailed, match=r"The trace failed on .*: ValueError: invalid literal.*boom.*\n\nTraceback"):
        far.gradients(text[0], "L1R", of=lambda logits: [][0] if logits is None else int("boom"))
    monkeypatch.setenv("NDIF_API_KEY", "another")
    with pytest.raises(RemoteFailed, match="Set NDIF_API_KEY"):
        far.read(text[0], ["L1R"])


def test_results_come_from_https_or_this_machine_alone(far, address, text):
    for host in ("http://example.org", "ftp://127.0.0.1", "http://127.0.0.1.example.org:80", "http://[::2]"):
        with pytest.raises(ValueError, match="neither https nor this machine"):
            Server(host)
    assert Server("https://example.org/").host == "https://example.org"
    asked(address, "elsewhere")
    with pytest.raises(ValueError, match=r"203\.0\.113\.1"):
        far.read(text[0], ["L1R"])
    with pytest.raises(ValueError, match="deadline=0"):
        Server(address, deadline=0)


def test_a_server_has_nothing_of_this_package(address, folder):
    """What would make the tests above pass for the wrong reason."""
    lines = (
        "import sys; sys.argv = ['x']; sys.path.insert(0, 'tests'); import ndif; sys.meta_path.insert(0, ndif.Hidden())"
    )
    bare = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    tried = subprocess.run(
        [sys.executable, "-c", f"{lines}; import sae_lab"],
        cwd=Path(__file__).parents[1],
        env=bare,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "No module named 'sae_lab' (on the server)" in tried.stderr


def test_an_installed_package_is_sent_as_well(address, folder, text, tmp_path):
    """nnsight sends what is not installed by itself, and of what is installed no more than its name."""
    site = tmp_path / "site-packages"
    about = site / "sae_lab-0.1.0.dist-info"
    about.mkdir(parents=True)
    (site / "sae_lab").symlink_to(Path(sl.__file__).parent)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: sae-lab\nVersion: 0.1.0\n")
    (about / "RECORD").write_text("sae_lab/__init__.py,,\n")
    (about / "top_level.txt").write_text("sae_lab\n")
    said = f"""
import sae_lab as sl, torch
assert sl.__file__.startswith({str(site)!r})
far = sl.load_model("lab/little", remote={address!r}, files={str(folder)!r}, dtype="float32")
print(far.read(torch.tensor({text[0].tolist()}), ["L1R"])["L1R"].shape)
"""
    (tmp_path / "read.py").write_text(said)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "read.py")],
        env=os.environ | {"PYTHONPATH": str(site)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "torch.Size([2, 8, 16])" in done.stdout, done.stderr[-2000:]


def test_a_detached_training_fills_its_cache_first_and_is_told_to_stop_there(folder, tmp_path):
    (tmp_path / "stories.txt").write_text("\n<|endoftext|>\n".join(STORIES))
    with serving(folder, name=str(folder)) as address:
        job = {"model": str(folder), "remote": address, "site": "L1R", "text": str(tmp_path / "stories.txt")}
        job |= {"variant": "topk", "d_sae": 64, "k": 4, "tokens": 1024, "batch": 64, "calibration_tokens": 512}
        job |= {"cache": str(tmp_path / "cache"), "run": str(tmp_path / "run"), "evaluation": 256, "sample": 64}
        asked(address, "lost")  # the first request never ends
        run = sl.launch(**job)
        wait_for(lambda: requests(address) == 1)
        assert run.status["state"] == "starting"
        run.control("stop")
        asked(address)
        urllib.request.urlopen(f"{address}/finish", b"").close()
        run.wait(120)
        assert run.status["state"] == "stopped" and run.status["cached"] > 0
        before = len(sl.Cached(tmp_path / "cache").manifests)
        assert before == 1
        run.resume().wait(120)
        assert run.status["state"] == "done" and run.eval
        assert sl.Cached(tmp_path / "cache").tokens >= 1024 + 512 + 64
        assert run.config["source"]["cache"] == str(tmp_path / "cache")


def wait_for(holds):
    for _ in range(2000):
        if holds():
            return
        time.sleep(0.05)
    raise AssertionError("it never came true")


def test_the_command_line_says_what_a_cache_would_take(capsys, tmp_path):
    main(["cache", str(tmp_path / "c"), "--plan", "--tokens", "5000", "--json"])
    said = json.loads(capsys.readouterr().out)
    assert said["requests"] == 0 and said["tokens"] >= 5000 and not (tmp_path / "c").exists()


def test_an_embedded_model_is_on_no_server(address, tmp_path):
    with pytest.raises(ValueError, match="loaded here"):
        load_model("tiny", remote=address)
    with pytest.raises(ValueError, match="for remote=True"):
        load_model("tiny", files=str(tmp_path))
    assert not Run(tmp_path).exists
