"""A killed training goes on to the same bits as one that was never killed."""

import signal
import subprocess
import sys

import pytest
import torch
import trainee
from streams import Stream
from trainee import KNOBS, digest, saes, trained

from sae_lab.runs import Checkpoints, Run
from sae_lab.training import train

# Which checkpoints the killed process leaves. One SAE syncs 2 times for config.json, then 7 times per checkpoint
# (weights, stream, generators, state, manifest, their folder; renamed; the parent). Of two SAEs: 4, then 7 + 5.
LEFT = {
    "step:3:1": [],
    "step:17:1": ["00000006", "00000012"],
    "fsync:9:1": ["00000006"],
    **{f"fsync:{i}:1": [".tmp", "00000006"] for i in range(10, 16)},
    "fsync:16:1": ["00000006", "00000012"],
    "fsync:17:1": [".tmp", "00000006", "00000012"],
    "step:17:2": ["00000006", "00000012", "00000006", "00000012"],
    "fsync:22:2": [".tmp", "00000006", "00000006"],
    "fsync:25:2": ["00000006", "00000012", ".tmp", "00000006"],
}


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A folder of killed trainings, by scenario."""
    root = tmp_path_factory.mktemp("killed")
    done = subprocess.run(
        [sys.executable, trainee.__file__, str(root), *LEFT], capture_output=True, text=True, check=False
    )
    assert done.stdout.split("\n")[:-1] == [f"{scenario} {-signal.SIGKILL}" for scenario in LEFT], done.stderr
    return {scenario: (root / scenario.replace(":", "-"), left(root / scenario.replace(":", "-"))) for scenario in LEFT}


def left(folder):
    """What a killed training has of checkpoints, half-written ones by ".tmp"."""
    found = sorted(folder.glob("**/checkpoints/*"), key=lambda p: (p.parent, p.name))
    return [p.name[:4] if p.name.startswith(".tmp") else p.name for p in found]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The digest of an uninterrupted training, of one SAE and of two."""
    root = tmp_path_factory.mktemp("straight")
    for n in (1, 2):
        trained(root / str(n), n)
    return {n: digest(root / str(n), n) for n in (1, 2)} | {"log": plain(Run(root / "1"))}


def plain(run):
    """The measured rows without what the clock says."""
    return [{k: v for k, v in row.items() if k != "rate"} for row in run.rows if "fvu" in row]


@pytest.mark.parametrize("scenario", LEFT)
def test_a_killed_training_resumes_to_the_same_bits(killed, straight, scenario):
    folder, found = killed[scenario]
    n = int(scenario[-1])
    assert found == LEFT[scenario], "the kill fell elsewhere than this scenario says"
    trained(folder, n)
    assert digest(folder, n) == straight[n]
    if n == 1:
        assert plain(Run(folder)) == straight["log"]
        assert left(folder) == ["00000018", "00000024"]


@pytest.mark.parametrize(
    "lost", ["the ring", "the cursor", "the dice of the ring", "torch's generator", "the optimiser"]
)
def test_other_bits_follow_if_a_checkpoint_lacks(lost, straight, tmp_path, monkeypatch):
    """So the equality above is no accident."""
    break_off(tmp_path / "run")
    load = Checkpoints.load

    def lossy(self, step):
        point = load(self, step)
        stream, sae, rng = (point.files[name] for name in ("stream", "sae", "rng"))
        match lost:
            case "the ring":
                stream["ring"][0] += 1
            case "the cursor":
                point.state["stream"]["block"] = 1
            case "the dice of the ring":
                stream["dice"] = torch.Generator().manual_seed(9).get_state()
            case "torch's generator":
                rng["cpu"] = torch.Generator().manual_seed(9).get_state()
            case "the optimiser":
                sae["adam.v.W_enc"].zero_()
        return point

    monkeypatch.setattr(Checkpoints, "load", lossy)
    trained(tmp_path / "run")
    assert digest(tmp_path / "run") != straight[1]


def break_off(folder):
    """A training that is left after 20 steps."""
    steps = train(saes()[0], Stream(), run=folder, **KNOBS)
    for step in steps:
        if step.index == 20:
            break
    steps.close()


def damage(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_a_corrupted_newest_checkpoint_is_set_aside_and_the_one_before_is_used(straight, tmp_path):
    break_off(tmp_path / "run")
    run = Run(tmp_path / "run")
    assert run.checkpoints.steps == [20, 18]
    damage(run.folder / "checkpoints" / "00000020" / "sae.safetensors")
    first, *_ = trained(run.folder)
    assert first.index == 19
    assert "checkpoint 20 was damaged" in first.note
    assert "resumed at step 18" in first.note
    assert any("checkpoint 20 was damaged" in note for note in run.notes)
    assert list(run.checkpoints.folder.glob(".bad-00000020-*"))
    assert digest(run.folder) == straight[1]
    assert plain(run) == straight["log"]
