"""One SAE on several processes trains to what it becomes on one."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import little
import psutil
import pytest
import slices
from safetensors.torch import load_file

import sae_lab as sl
from sae_lab.launcher import Job, checked
from sae_lab.runs import Run

LAYOUTS = {"2 slices": (2, 2), "2 parts": (2, 1), "2 x 2": (4, 2)}
ASKED = ["topk", "batchtopk", "jumprelu", "relu", "matryoshka"]
NEAR = {"p_anneal": 1e-9}  # z^p has no bounded slope at 0: rounding grows
MORE = ["gated", "p_anneal", "llama_scope", "gradient"]


def shared(tmp_path, world, latents, *variants):
    """(exit status, what was said) of several processes that train."""
    tmp_path.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, slices.__file__, str(world), str(latents), str(tmp_path), *variants]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        said = child.communicate(timeout=300)[1]
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
    return child.returncode, said


def together(tmp_path, world, latents, *variants):
    """What several processes made of each variant."""
    status, said = shared(tmp_path, world, latents, *variants)
    assert status == 0, said[-3000:]
    names = [v.partition("@")[0] for v in variants]
    return {name: load_file(tmp_path / f"{name}.safetensors") for name in names}


@pytest.fixture(scope="module")
def alone():
    """What one process makes of each, and its last numbers."""
    return {variant: slices.trained(variant) for variant in (*ASKED, *MORE)}


def far(one, other):
    """The largest difference of any parameter or buffer."""
    return max((one[name].double() - other[name].double()).abs().max().item() for name in one)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_mesh_trains_what_one_process_trains(alone, tmp_path, layout):
    made = together(tmp_path, *LAYOUTS[layout], *ASKED, *(MORE if layout == "2 x 2" else ()))
    for variant, found in made.items():
        sae, steps = alone[variant]
        weights = {name: t for name, t in found.items() if not name.startswith("told.")}
        assert far(sae.state_dict(), weights) < NEAR.get(variant, 1e-12), variant
        last = steps[-1].saes[0]
        for name, value in ({"fvu": last.fvu, "l0": last.l0, "dead": last.dead} | last.terms | last.vitals).items():
            assert found[f"told.{name}"].item() == pytest.approx(value, rel=1e-6), (variant, name)


def test_processes_read_in_turn_what_all_are_trained_on(tmp_path):
    little.save(tmp_path / "llama")
    source = slices.Read(tmp_path / "llama")
    sae, _ = slices.trained("topk", source=source)
    found = together(tmp_path, 2, 2, "topk:text")["topk:text"]
    passes = found.pop("told.passes").item()
    assert far(sae.state_dict(), found) < 1e-12
    assert source.passes / 2 <= passes <= source.passes / 2 + 1


def test_what_one_process_cannot_read_ends_all_with_its_reason(tmp_path):
    little.save(tmp_path / "llama")
    status, said = shared(tmp_path, 2, 2, "topk:unread")
    assert status == 1 and said.count("ValueError: Block 3 is blank") == 2


def test_each_mistake_is_seen(tmp_path):
    alone = {variant: slices.trained(variant, **slices.BRIEF) for variant in ("topk", "batchtopk")}
    bugs = ["topk:b_dec", "topk:gradients", "batchtopk:threshold", "topk:cut", "topk:dead"]
    made = together(tmp_path, 4, 2, *bugs)
    for name, found in made.items():
        sae, _ = alone[name.partition(":")[0]]
        assert far(sae.state_dict(), found) > 1e-6, name


def test_a_checkpoint_goes_on_in_any_layout(alone, tmp_path):
    for world, latents, until in ((2, 2, 20), (4, 2, 30), (2, 1, 40)):
        together(tmp_path, world, latents, f"topk@{until}", f"jumprelu@{until}")
        for variant in ("topk", "jumprelu"):
            run = Run(tmp_path / f"run-{variant}")
            assert run.status["state"] == "stopped" and run.checkpoints.steps[0] == until
            names = {name for name in run.checkpoints.sums(until) if name.startswith("sae")}
            assert names == {f"sae-{i}.safetensors" for i in range(latents)}
    for variant in ("topk", "jumprelu"):
        sae, steps = slices.trained(variant, run=tmp_path / f"run-{variant}", snapshots=1)
        assert steps[0].index == 41 and far(sae.state_dict(), alone[variant][0].state_dict()) < 1e-12
        assert [row["step"] for row in Run(tmp_path / f"run-{variant}").rows if "fvu" in row] == [1, 10, 20, 30, 40, 50]
        assert Run(tmp_path / f"run-{variant}").snapshots == [25]


def job(folder, **more):
    asked = {"variant": "batchtopk", "model": "planted", "site": "L1R", "d_sae": 128, "k": 8, "tokens": 60 * 256}
    asked |= {"batch": 256, "checkpoint_steps": 10, "snapshots": 0, "gpus": 2, "device": "cpu", "run": str(folder)}
    return asked | {"calibration_tokens": 1024, "choose_in": "float32"} | more


def workers(run):
    """The processes that train."""
    try:
        found = psutil.Process(run.status["pid"]).children(recursive=True)
        return [p for p in found if "sae_lab.launcher.worker" in " ".join(p.cmdline())]
    except psutil.Error:
        return []


def at_work(folder):
    """Agents and workers of jobs in a folder."""
    told = [(p.info["environ"] or {}).get("SAE_LAB_JOB", "") for p in psutil.process_iter(["environ"])]
    return [job for job in told if str(folder) in job]


def wait_for(holds):
    for _ in range(2400):
        if found := holds():
            return found
        time.sleep(0.05)
    raise AssertionError("it never came true")


def test_a_worker_that_is_killed_costs_nothing_but_time(tmp_path):
    calm, killed = (sl.launch(**job(tmp_path / name)) for name in ("calm", "killed"))
    wait_for(lambda: killed.checkpoints.steps and len(workers(killed)) == 2)
    os.kill(workers(killed)[1].pid, signal.SIGKILL)
    calm.wait(300)
    killed.wait(300)
    assert any("resumed at step" in note for note in killed.notes) and not calm.notes
    one, other = (run.sae.state_dict() for run in (calm, killed))
    assert far(one, other) < 1e-12 and one.keys() == other.keys()
    assert [row["step"] for row in killed.rows if "fvu" in row] == [row["step"] for row in calm.rows if "fvu" in row]
    alone = sl.launch(**job(tmp_path / "alone", gpus=1)).wait(300)
    assert far(alone.sae.state_dict(), one) < 0.05  # float32: near, not equal


def test_a_shared_training_pauses_stops_and_goes_on(tmp_path):
    run = sl.launch(**job(tmp_path / "run", slices=1, tokens=3000 * 256))
    wait_for(lambda: run.rows)
    run.pause()
    before = run.status["step"]
    assert run.status["state"] == "paused" and run.alive
    run.resume()
    wait_for(lambda: run.status["step"] > before)
    run.stop(120)
    assert run.status["state"] == "stopped" and run.checkpoints.steps[0] == run.status["step"] < 3000
    wait_for(lambda: not workers(run))
    os.kill(sl.launch(**job(tmp_path / "run", slices=1, tokens=3000 * 256)).status["pid"], 0)
    wait_for(lambda: workers(run) and run.status["state"] == "running")
    os.kill(run.status["pid"], signal.SIGKILL)  # nobody listens to the agent any more
    wait_for(lambda: run.status["state"] == "lost")
    wait_for(lambda: not at_work(tmp_path))


def test_what_cannot_be_shared_is_refused_before_it_starts(tmp_path):
    for odd, why in {
        "gpus": ({"device": None}, "this machine has"),
        "slices": ({"slices": 3}, "does not divide"),
        "variant": ({"variant": "feature_choice"}, "is trained on one device"),
        "batch": ({"batch": 255, "slices": 1}, "shared out"),
        "nodes": ({"nodes": 2}, "rendezvous"),
    }.values():
        with pytest.raises(ValueError, match=why):
            checked(Job.of(**job(tmp_path, **odd)))
    run = sl.launch(**job(tmp_path / "odd", d_sae=129))
    with pytest.raises(RuntimeError, match="d_sae=129 cannot be shared out among 2"):
        run.wait(120)
