"""The command line: what a user can get wrong ends in one clear line, and nothing is lost."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numba
import pytest

from sae_lab import tiny
from sae_lab.cli import VERBS, main
from sae_lab.cli.progress import watched
from sae_lab.runs import Run
from sae_lab.training.steps import Record, Step

SHORT = ["--d-sae", "64", "--k", "4", "--tokens", "8192", "--batch", "1024", "--evaluation", "0", "--site", "L1R"]
SLOW = ["--d-sae", "64", "--k", "4", "--tokens", "50000000", "--batch", "1024", "--evaluation", "0", "--log-every", "1"]


def refused(capsys, *argv: str, code: int = 2) -> str:
    """The one line that a refused command says."""
    assert main(list(argv)) == code
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    lines = [line for line in err.splitlines() if line.startswith("sae-lab: ")]
    assert len(lines) == 1, err
    return lines[0]


@pytest.fixture
def start():
    """Starts `sae-lab ...` as a process; none outlives its test."""
    started = []

    def start(*argv: str, cwd: Path, **options) -> subprocess.Popen:
        command = [sys.executable, "-c", "import sys; from sae_lab.cli import main; sys.exit(main())", *argv]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, cwd=cwd, **pipes, **options))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def wait_for_steps(run: Run, n: int, process: subprocess.Popen) -> None:
    while True:
        if run.status.get("step", 0) >= n:
            return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_without_a_verb_it_lists_the_verbs(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    assert all(verb in out for verb in VERBS)


def test_an_unknown_verb_names_the_known_ones(capsys):
    assert main(["trian"]) == 2
    assert "train" in capsys.readouterr().err


def test_an_unknown_variant_names_the_nearest(capsys, here):
    assert "Did you mean 'topk'?" in refused(capsys, "train", "topkk", *SHORT)


def test_more_latents_a_token_than_there_are(capsys, here):
    assert "k=65 must be at most d_sae=64" in refused(capsys, "train", "topk", *SHORT, "--k", "65")


def test_a_site_the_model_lacks(capsys, here):
    assert "layers 0 to" in refused(capsys, "train", "topk", *SHORT, "--site", "L77R")


def test_a_model_that_is_not_there(capsys, here):
    assert "no/such-model" in refused(capsys, "train", "topk", *SHORT, "--model", "no/such-model")


def test_an_empty_text_file(capsys, here):
    (here / "empty.txt").write_text("")
    assert "empty.txt" in refused(capsys, "train", "topk", *SHORT, "--text", "empty.txt")


def test_a_truncated_model_file(capsys, here):
    shutil.copytree(tiny.folder("tiny"), here / "cut")
    weights = here / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    said = refused(capsys, "train", "topk", *SHORT, "--model", str(here / "cut"))
    assert "cut" in said


def test_a_truncated_sae_file(capsys, here):
    assert main(["train", "topk", *SHORT, "--run", "runs/a"]) == 0
    weights = here / "runs/a/sae/weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "weights.safetensors" in refused(capsys, "evaluate", "runs/a")


def test_train_then_list_then_evaluate(capsys, here):
    assert main(["train", "topk", *SHORT, "--run", "runs/a", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["status"]["state"] == "done"
    assert main(["runs", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["variant"], row["state"]) == ("topk", "done")
    assert main(["evaluate", "runs/a", "--tokens", "2000", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["l0"]["value"] == pytest.approx(4, abs=0.5)


def test_quickstart_tells_machines_and_people_what_it_found(capsys, here):
    small = ["--tokens", "30000", "--d-sae", "512", "--k", "16", "--held-out", "10000"]
    assert main(["quickstart", *small, "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert {key: found["sae"][key] for key in ("variant", "k", "d_sae")} == {
        "variant": "batchtopk",
        "k": 16,
        "d_sae": 512,
    }
    assert {"fvu", "l0", "ce_recovered", "ce_recovered_mean", "dead"} <= set(found["evaluation"])
    l0 = found["evaluation"]["l0"]
    assert l0["low"] <= l0["value"] <= l0["high"]
    assert {"latents", "random", "neurons"} <= set(found["concepts"])
    assert {"untouched", "latent", "random latent"} <= set(found["steering"])
    assert set(found["seconds"]) >= {"train", "evaluate", "concepts", "steer"}
    page = (here / "runs/quickstart/report.html").read_text()
    assert found["steering"]["concept"] in page
    assert "report.html" in err
    assert Run(here / "runs/quickstart").eval["fvu"] == found["evaluation"]["fvu"]


def test_a_first_compile_is_announced_once_and_a_second_run_says_nothing(capsys):
    kernels = [numba.njit(lambda x: x + 1), numba.njit(lambda x: x + 2)]
    record = Record("L1R", "topk", {}, 0.5, 4.0, 0, 1e-3)

    def steps():
        for index, kernel in enumerate(kernels):
            kernel(index)
            yield Step(index + 1, 2, 1, 1.0, 1, (record,))

    assert [step.index for step in watched(steps(), "train")] == [1, 2]
    assert capsys.readouterr().err.count("compiling kernels") == 1
    assert len(list(watched(steps(), "train"))) == 2
    assert "compiling" not in capsys.readouterr().err


def test_an_empty_place_says_how_to_begin(capsys, here):
    assert main(["runs"]) == 0
    assert "sae-lab quickstart" in capsys.readouterr().out
    assert "No run in 'runs/none'" in refused(capsys, "stop", "runs/none")


def test_a_run_folder_in_use_is_left_alone(capsys, here, start):
    process = start("train", "topk", *SLOW, "--run", "runs/a", cwd=here)
    wait_for_steps(Run(here / "runs/a"), 1, process)
    said = refused(capsys, "train", "topk", *SLOW, "--run", "runs/a", code=1)
    assert "runs/a" in said
    assert process.poll() is None


def test_ctrl_c_checkpoints_and_says_how_to_go_on(here, start):
    run = Run(here / "runs/a")
    process = start("train", "topk", *SLOW, "--run", "runs/a", cwd=here)
    wait_for_steps(run, 3, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "sae-lab train topk" in err
    assert run.checkpoints.steps
    assert run.status["state"] == "stopped"


def test_a_full_disk_loses_nothing(here, start):
    """A file-size limit stands in for the disk: the final SAE does not fit, the checkpoint's files neither."""

    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    argv = ["train", "topk", *SHORT, "--d-sae", "512", "--run", "runs/a"]
    env = {**os.environ, "NUMBA_DISABLE_JIT": "0"}
    process = start(*argv, cwd=here, preexec_fn=small_files, env=env)
    _, err = process.communicate()
    assert process.returncode == 1, err
    assert "Traceback" not in err
    assert "room" in err or "space" in err
    again = start(*argv, cwd=here)
    _, err = again.communicate()
    assert again.returncode == 0, err
    assert Run(here / "runs/a").sae.cfg.d_sae == 512
