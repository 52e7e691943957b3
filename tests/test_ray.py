"""Sweeps on a Ray cluster, with its token authentication on: submitted, found again, a killed worker goes on."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from small import llama_and_text

import sae_lab as sl
from sae_lab.runs import Run
from sae_lab.sweeps import Plan, sweep

ray = pytest.importorskip("ray", reason="needs the extra: pip install 'sae-lab[ray]'")
RAY = Path(sys.executable).with_name("ray")
KNOBS = {"site": ["L0R", "L2R"], "k": 4, "d_sae": [48], "seeds": 1, "choose_in": "float32", "evaluation": 300}
KNOBS |= {"tokens": 128 * 150, "batch": 128, "lr": 1e-2, "snapshots": 0, "sample": 256, "calibration_tokens": 512}
KNOBS |= {"buffer": 2048, "at_once": 1, "checkpoint_steps": 10, "context": 64}


def free_ports(n: int) -> list[int]:
    held = [socket.socket() for _ in range(n)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """(address, environment) of a cluster of two CPUs that wants a token."""
    folder = tmp_path_factory.mktemp("ray")
    (folder / "token").write_text("0123456789abcdef0123456789abcdef")
    told = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token"), "RAY_USAGE_STATS_ENABLED": "0"}
    env = {**os.environ, **told, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(sl.__file__).parents[1])}
    session = f"/tmp/ray-{os.getpid()}"
    try:
        for _ in range(4):  # a node gives itself 30 seconds, which a busy machine may not have
            gcs, dashboard = free_ports(2)
            line = [RAY, "start", "--head", "--port", str(gcs), "--dashboard-port", str(dashboard), "--num-cpus", "3"]
            line += ["--dashboard-host", "127.0.0.1", "--temp-dir", session]
            done = subprocess.run(line, env=env, capture_output=True, text=True, timeout=300)
            if done.returncode == 0:
                break
            end(session)
        assert done.returncode == 0, done.stdout + done.stderr
        yield f"http://127.0.0.1:{dashboard}", env
    finally:
        end(session)
        shutil.rmtree(session, ignore_errors=True)


def end(session: str) -> None:
    """Ends the processes of that cluster: `ray stop` would end those of others, too."""
    for process in psutil.process_iter(["cmdline"]):
        if f"{session}/" in " ".join(process.info["cmdline"] or ()):
            process.kill()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return llama_and_text(tmp_path_factory.mktemp("llama"))


def python(code: str, env: dict) -> str:
    """What a process of its own says: a notebook that is closed afterwards."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_a_job_outlives_the_notebook_and_a_killed_worker_goes_on_to_the_same_weights(cluster, model, tmp_path):
    address, env = cluster
    folder, knobs = tmp_path / "swept", KNOBS | model
    call = (
        f"import sae_lab as sl; print(sl.submit(['topk'], folder={str(folder)!r}, address={address!r}, **{knobs!r}).id)"
    )
    first = python(call, env)
    victim = Run(folder / "topk-k4-d48-siteL0R-s0")
    for _ in range(3000):
        if victim.checkpoints.steps:
            break
        time.sleep(0.05)
    pid = victim.status["pid"]
    os.kill(pid, signal.SIGKILL)
    assert python(call, env) == first  # the same call finds the job
    again = f"import sae_lab as sl; job = sl.submitted({str(folder)!r}); job.wait(300); print(job.id, job.state)"
    assert python(again, env) == f"{first} SUCCEEDED"
    found, straight = sl.Sweep.load(folder), sweep(["topk"], folder=tmp_path / "straight", **knobs)
    assert found.table.state.tolist() == ["done", "done"]
    for a, b in zip(found.rows, straight.rows):
        pairs = zip(Run(a["run"]).sae.state_dict().values(), Run(b["run"]).sae.state_dict().values(), strict=True)
        assert all(torch.equal(x, y) for x, y in pairs)
        assert a["fvu"] == b["fvu"]
    assert any("killed by signal 9" in note for note in found.run.notes)
    assert any("resumed at step" in note for note in victim.notes) and victim.status["pid"] != pid
    nobody = {name: value for name, value in env.items() if not name.startswith("RAY_AUTH")} | {"HOME": str(tmp_path)}
    other = call.replace(str(folder), str(tmp_path / "other"))
    code = f"try:\n    exec({other!r})\nexcept RuntimeError as error: print(error)"
    assert "RAY_AUTH_TOKEN_PATH" in python(code, nobody)
    assert not (tmp_path / "other").exists()


def test_what_cannot_be_submitted_is_told_here(tmp_path):
    with pytest.raises(ValueError, match="seeds=0 must lie in"):
        sl.submit(["topk"], folder=tmp_path / "new", seeds=0)
    with pytest.raises(RuntimeError, match="No Ray cluster answers at http"):
        sl.submit(Plan.of(["topk"], **KNOBS), folder=tmp_path / "new", address="http://127.0.0.1:1")
    assert not (tmp_path / "new").exists()
    with pytest.raises(FileNotFoundError, match="No job was submitted"):
        sl.submitted(tmp_path)
