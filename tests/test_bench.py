"""Timings: what is timed is what it is called, and the figures are of one another. No test looks at a time."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from sae_lab import peers
from sae_lab.bench import (
    PRODUCT,
    BenchHarvest,
    BenchScaling,
    BenchStep,
    BenchTraining,
    cut,
    sized,
    sparse_at,
    step_of,
    taking_turns,
)
from sae_lab.cli import main
from sae_lab.models import load_model
from sae_lab.saes import REGISTRY

LITTLE = {"shapes": ("64x16x48x3",), "rounds": 1}


def test_ways_take_turns_and_medians_are_over_the_bound(monkeypatch):
    now, turns = [0.0], []

    def way(name, seconds):
        def run():
            turns.append(name)
            now[0] += next(seconds)

        return run

    monkeypatch.setattr("sae_lab.bench.time.perf_counter", lambda: now[0])
    a, b = iter([9, 9, 2, 1, 3]), iter([9, 9, 8, 4, 90])
    found = taking_turns({"a": way("a", a), "b": way("b", b)}, "a", 100, 3, {"shape": 1})
    assert turns == ["a", "b"] * 5
    assert found.rows["ms"].tolist() == [2000, 8000]
    assert found.rows["quickest"].tolist() == [1000, 4000]
    assert found.rows["over"].tolist() == [1, 4]
    assert found.rows["tokens_per_s"].tolist() == [50, 12.5]
    assert json.loads(json.dumps(found.to_json()))["ways"][1]["over"] == 4
    assert list(found.figure.data[0].x) == [1, 4]
    assert "shape 1" in repr(found)


def test_every_trained_variant_is_stepped():
    found = BenchStep(**LITTLE, dead=0.25).run()
    trained = {name for name in REGISTRY if REGISTRY[name].trainable}
    assert trained <= set(found.rows["way"])
    assert found.rows.set_index("way")["over"][PRODUCT] == 1
    assert {"shapes", "threads", "peak_gb", "torch"} <= set(found.about)


def test_a_grid_has_the_rows_of_every_shape():
    found = BenchStep(shapes=("64x16x48x3", "32x8x24x2"), rounds=1, variants=("topk",)).run()
    assert {"64x16x48x3 topk", "32x8x24x2 topk"} < set(found.rows["way"])
    assert (found.rows.set_index("way").loc[[f"64x16x48x3 {PRODUCT}", f"32x8x24x2 {PRODUCT}"], "over"] == 1).all()
    assert sized("small") == (4096, 512, 8192, 32)


@pytest.mark.parametrize("name", [name for name in sorted(REGISTRY) if REGISTRY[name].trainable])
def test_a_step_fires_about_k_latents_and_moves_the_weights(name):
    x = torch.randn(512, 16)
    sae = sparse_at(name, x, 64, 4)
    before = sae.W_dec.clone()
    step = step_of(sae, x, 0.0)
    step()
    assert not torch.equal(sae.W_dec, before)
    assert all(p.grad is None for p in sae.parameters())
    if "k" not in REGISTRY[name].Config.__dataclass_fields__:
        assert 3 < float(sae.encode(x).l0) < 5


def test_the_plain_model_is_the_model_up_to_the_site():
    lm = load_model("tiny")
    ids = torch.randint(3, lm.vocab, (2, 30))
    with torch.no_grad():
        plain = cut(lm.module, 1)(ids, use_cache=False)[0]
    assert torch.equal(plain, lm.read(ids, "L1R")["L1R"])


@pytest.mark.parametrize("over", ["tokens", "d_sae"])
def test_scaling_has_the_slope_of_its_times(over):
    found = BenchScaling(over=over, first=8, other=16, d_in=8, k=2, rounds=1).run()
    assert found.rows["way"].tolist() == [f"{n:,} {over}" for n in (8, 25, 80, 253, 800)]
    times = found.rows["ms"].to_numpy()
    size = np.array([8, 25, 80, 253, 800])
    assert found.about["slope"] == pytest.approx(np.polyfit(np.log(size), np.log(times), 1)[0], abs=1e-3)
    tokens = size if over == "tokens" else 16
    assert found.rows["tokens_per_s"].tolist() == pytest.approx((tokens / times * 1e3).tolist())


def test_harvest_and_training_are_timed():
    found = BenchHarvest(rows=2, width=8, rounds=1).run()
    assert found.rows["way"].tolist() == ["plain forward, cut", "read L2R"]
    found = BenchTraining(d_sae=32, k=2, batch=16_384, rounds=1, variant="topk").run()
    assert found.rows["way"].tolist() == ["harvest", "steps", "harvest and steps"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BenchStep(**LITTLE, variants=("topq",)).run(), "topk"),
        (lambda: BenchHarvest(site="L9R").run(), "layers 0 to 3"),
        (lambda: BenchStep(**LITTLE | {"rounds": 0}), "rounds"),
        (lambda: BenchStep(shapes=("64x16x48",)), "64x16x48.*small, large, wide"),
        (lambda: BenchStep(shapes=("huge",)), "huge"),
    ],
)
def test_what_cannot_be_timed_is_said(make, message):
    with pytest.raises((KeyError, ValueError), match=message):
        make()


def test_the_command_line_prints_a_table_or_one_object(capsys, tmp_path):
    line = ["bench", "step", "--variants", "topk", "--rounds", "1", "--shapes", "64x16x48x3"]
    assert main(line) == 0
    table = capsys.readouterr().out
    assert PRODUCT in table and "tokens_per_s" in table
    assert main([*line, "--json", "--picture", str(tmp_path / "speed.html")]) == 0
    assert "plotly" in (tmp_path / "speed.html").read_text(encoding="utf-8")
    given = json.loads(capsys.readouterr().out)
    assert given["bound"] == PRODUCT and {way["way"] for way in given["ways"]} >= {"topk", PRODUCT}
    assert main(["bench", "speed"]) != 0
    assert "step, scaling, harvest, training" in capsys.readouterr().err


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A dictionary_learning of our own, which this Python finds."""
    package = tmp_path / "dictionary_learning" / "trainers"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(peers, "environment", lambda library: sys.executable)
    return package / "batch_top_k.py"


def test_a_peer_steps_when_it_is_told_to(library, tmp_path):
    log = tmp_path / "log"
    library.write_text(
        "print('a library that says hello')\n"
        "class BatchTopKTrainer:\n"
        "    def __init__(self, **config): self.config = config\n"
        "    def update(self, step, x):\n"
        f"        open({str(log)!r}, 'a').write(f\"{{step}} {{tuple(x.shape)}} {{self.config['dict_size']}}\\n\")\n"
    )
    with peers.peer("dictionary-learning", (6, 4, 8, 2)) as step:
        step()
        step()
    assert log.read_text().splitlines() == [f"{i} (6, 4) 8" for i in (1, 2, 3)]  # the first warms up


def test_a_peer_waits_as_its_own_users_would(library, tmp_path, monkeypatch):
    assert subprocess.run(
        [sys.executable, "-c", "import os, sae_lab; print(os.environ['GOMP_SPINCOUNT'])"],
        env={n: v for n, v in os.environ.items() if n not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")},
        capture_output=True,
        text=True,
    ).stdout.split() == [peers.OURS[1]]
    log = tmp_path / "log"
    library.write_text(
        "import os\n"
        "class BatchTopKTrainer:\n"
        "    def __init__(self, **config): pass\n"
        "    def update(self, step, x):\n"
        f"        open({str(log)!r}, 'a').write(os.environ.get('GOMP_SPINCOUNT', 'its own') + ' ')\n"
    )
    for given in (peers.OURS[1], "7"):  # 7: the user's wish
        monkeypatch.setenv("GOMP_SPINCOUNT", given)
        with peers.peer("dictionary-learning", (6, 4, 8, 2)):
            pass
    assert log.read_text().split() == ["its", "own", "7"]


def test_a_peer_that_fails_says_why(library):
    library.write_text("raise RuntimeError('no such trainer')\n")
    with pytest.raises(RuntimeError, match="no such trainer"), peers.peer("dictionary-learning", (6, 4, 8, 2)):
        pass


def test_a_peer_that_dies_between_two_steps_says_why(tmp_path):
    command = [sys.executable, "-c", "raise SystemExit('out of memory')"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with (tmp_path / "said").open("w+") as said, subprocess.Popen(command, text=True, stderr=said, **pipes) as process:
        process.wait()
        with pytest.raises(RuntimeError, match="out of memory"):
            peers._answer(process, "a library", said, b"\n")


def test_peers_are_not_timed_beside_another_device():
    with pytest.raises(ValueError, match="device='cuda'"):
        BenchStep(peers=True, device="cuda")


def test_a_library_that_cannot_be_installed_is_no_end(tmp_path, monkeypatch):
    monkeypatch.setenv("SAE_LAB_PEERS", str(tmp_path))
    monkeypatch.setattr(peers, "LIBRARIES", {"no-such": "1.0"})
    monkeypatch.setattr(peers.subprocess, "run", lambda *a, **b: subprocess.CompletedProcess(a, 1, "", "not found"))
    with pytest.raises(RuntimeError, match="not found"):
        peers.environment("no-such")


def test_without_peers_none_is_asked_for():
    with peers.peers(None) as none:
        assert none == {}
