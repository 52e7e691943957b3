"""A training in a process of its own: steered, stopped, killed and taken up again, it ends at the same bits."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from sae_lab.launcher import Job, Launched, launch, ps, run_job
from sae_lab.library import load_sae
from sae_lab.runs import Run, RunInUse
from sae_lab.toys import Planted
from sae_lab.training import TrainConfig, train

SAE = {"variant": "topk", "d_sae": 24, "k": 3, "choose_in": "float32"}
LOOP = {"tokens": 400 * 64, "batch": 64, "lr": 1e-3, "checkpoint_steps": 50, "snapshots": 0}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def until(holds):
    end = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < end, "waited two minutes in vain"
        time.sleep(0.01)


def test_a_detached_training_is_steered_killed_and_taken_up_again(tmp_path):
    job = Job.of(**SAE, **LOOP, model="planted", site="L0R", run=str(tmp_path / "run"))
    run = launch(job)
    assert run.alive
    until(lambda: run.status["step"] >= 1)
    pid = run.status["pid"]
    assert os.getsid(pid) == pid, "it would die with this session"
    with pytest.raises(RunInUse, match="at work already"):
        launch(job)

    run.pause()
    paused = run.status["step"]
    assert run.status["state"] == "paused"
    assert run.checkpoints.steps[0] == paused
    assert ps(tmp_path).loc[0, ["state", "step", "pid"]].tolist() == ["paused", paused, pid]
    run.resume()
    until(lambda: run.status["step"] > paused)

    run.stop()
    stopped = run.status["step"]
    assert run.status["state"] == "stopped"
    assert run.checkpoints.steps[0] == stopped < 400
    run.resume()
    until(lambda: run.status["step"] > stopped)

    os.kill(run.status["pid"], signal.SIGTERM)
    until(lambda: not run.alive)
    assert run.status["state"] == "stopped"
    termed = run.status["step"]
    run = Launched(run.folder).resume()
    until(lambda: run.status["step"] > termed)

    os.kill(run.status["pid"], signal.SIGKILL)
    until(lambda: not run.alive)
    assert run.status["state"] == "lost"
    with pytest.raises(RuntimeError, match="lost at step"):
        run.wait()
    run.resume().wait()

    straight = load_sae(run).__class__(load_sae(run).cfg)
    *_, last = train(straight, Planted(site="L0R"), **LOOP)
    assert all(torch.equal(a, b) for a, b in zip(run.sae.state_dict().values(), straight.state_dict().values()))
    assert run.log.fvu.iloc[-1] == last.fvu
    assert run.errors == ""
    assert run.job["cwd"] == os.getcwd()


def test_a_process_that_has_trained_and_is_about_to_evaluate_is_waited_for(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    run = Launched(tmp_path / "run")
    run.describe({"variant": "topk"}, file="job.json")
    run.mark("done", child.pid)
    with pytest.raises(TimeoutError, match="still going"):
        run.wait(timeout=0.2)
    child.communicate(b"")
    assert run.wait(timeout=60).status["state"] == "done"


def test_a_job_that_fails_says_why(tmp_path):
    run = launch(variant="pca", d_sae=64, model="planted", site="L0R", run=str(tmp_path / "run"))
    with pytest.raises(RuntimeError, match=r"failed at step 0: ValueError: d_sae=64 must be 2 \* d_in = 32"):
        run.wait()
    assert "Traceback" in run.errors


def test_mistakes_are_told_before_a_process_starts(tmp_path):
    folder = str(tmp_path / "run")
    with pytest.raises(KeyError, match="No SAE named 'topkk'"):
        launch(variant="topkk", run=folder)
    with pytest.raises(ValueError, match="k=33 must be at most d_sae=32"):
        launch(variant="topk", k=33, d_sae=32, run=folder)
    with pytest.raises(TypeError, match="has no knob 'tokns'"):
        launch(variant="topk", tokns=5, d_sae=32, run=folder)
    with pytest.raises(ValueError, match="batch=0 must lie in"):
        launch(variant="topk", d_sae=32, batch=0, run=folder)
    assert not (tmp_path / "run").exists()
    with pytest.raises(RuntimeError, match="Cannot pause"):
        Launched(folder).pause()
    with pytest.raises(ValueError, match="was not launched: go on with it"):
        Launched(folder).resume()


def test_a_job_is_told_apart_from_its_training_and_its_sae_and_survives_json():
    job = Job.of(variant="topk", k=7, d_sae=64, tokens=100, lr=0.1, seed=3, site="L1M")
    assert job.sae == {"k": 7, "d_sae": 64}
    assert job.train == TrainConfig(tokens=100, lr=0.1, seed=3)
    assert (job.variant, job.site, job.seed) == ("topk", "L1M", 3)
    assert Job.from_json(job.to_json()) == job


def test_a_job_runs_in_this_process_too(tmp_path):
    job = Job.of(**SAE, **LOOP | {"tokens": 640}, model="planted", site="L0R", run=str(tmp_path / "run"))
    steps = list(run_job(job))
    assert steps[-1].index == 10
    assert Run(tmp_path / "run").sae.cfg.d_sae == 24
    (again,) = run_job(job)
    assert "already trained" in again.note
