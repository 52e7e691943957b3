"""Run folders: what a reader sees, what a full disk and a damaged file leave, who may write."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import asdict

import pytest
import torch

from sae_lab.library import load_sae, save_sae
from sae_lab.runs import Checkpoint, Damaged, DiskFull, Run, RunInUse, files, find_runs, fresh
from sae_lab.saes import build

POINT = Checkpoint(6, {"sae": {"W": torch.arange(12.0).view(3, 4)}}, {"index": 6})


@contextmanager
def largest_file(size):
    """As on a full disk: no file grows beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def run(tmp_path):
    run = Run(tmp_path / "run")
    run.describe({"train": {"tokens": 5, "log_every": 1}, "variant": "topk"}, lambda: {"scale": 0.5})
    return run


@pytest.fixture
def sae():
    return build("topk", d_in=8, d_sae=16, k=2)


def test_a_file_is_replaced_in_one_moment(tmp_path, monkeypatch):
    file = tmp_path / "status.json"
    files.write_json(file, {"step": 1})

    def dies(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        files.write_json(file, {"step": 2})
    assert files.read_json(file) == {"step": 1}
    assert list(tmp_path.iterdir()) == [file]


def test_a_checkpoint_comes_back_as_it_was(run):
    run.checkpoints.save(POINT)
    found = run.checkpoints.load(6)
    assert torch.equal(found.files["sae"]["W"], POINT.files["sae"]["W"])
    assert found.state == {"index": 6}


def test_the_newest_two_checkpoints_are_kept_and_leftovers_swept(run):
    for step in (6, 12, 18):
        run.checkpoints.save(POINT._replace(step=step))
    (run.checkpoints.folder / ".tmp-00000024-1").mkdir()
    run.checkpoints.prune()
    assert sorted(p.name for p in run.checkpoints.folder.iterdir()) == ["00000012", "00000018"]


def test_a_checkpoint_can_be_written_again_at_the_same_step(run):
    run.checkpoints.save(POINT)
    run.checkpoints.save(POINT._replace(state={"index": 7}))
    assert run.checkpoints.load(6).state == {"index": 7}


@pytest.mark.parametrize("file", ["sae.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("harm", ["cut", "altered", "gone"])
def test_a_damaged_checkpoint_says_so(run, file, harm):
    run.checkpoints.save(POINT)
    path = run.checkpoints.folder / "00000006" / file
    data = path.read_bytes()
    match harm:
        case "cut":
            path.write_bytes(data[: len(data) // 2])
        case "altered":
            path.write_bytes(data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])
        case "gone":
            path.unlink()
    with pytest.raises(Damaged):
        run.checkpoints.load(6)


def test_a_full_disk_leaves_earlier_checkpoints_whole(run):
    run.checkpoints.save(POINT)
    large = Checkpoint(12, {"sae": {"W": torch.zeros(20_000)}}, {})
    with largest_file(10_000), pytest.raises(DiskFull, match="Everything saved before is intact") as caught:
        run.checkpoints.save(large)
    assert caught.value.errno == errno.EFBIG
    assert run.checkpoints.steps == [6]
    assert run.checkpoints.load(6).state == {"index": 6}
    assert [p.name for p in run.checkpoints.folder.iterdir()] == ["00000006"]


def test_no_space_left_is_a_full_disk_too(run, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFull, match="No space left"):
        run.checkpoints.save(POINT)
    assert run.checkpoints.steps == []


def test_another_error_of_the_disk_stays_itself(run, monkeypatch):
    def broken(_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output error") as caught:
        run.checkpoints.save(POINT)
    assert not isinstance(caught.value, DiskFull)


def test_a_log_row_that_found_no_room_is_written_with_the_next(run):
    run.append({"step": 1, "fvu": 0.5})
    with largest_file(30), pytest.raises(DiskFull):
        run.append({"step": 2, "fvu": 0.4, "more": "x" * 50})
    assert [row["step"] for row in run.rows] == [1]
    run.append({"step": 3, "fvu": 0.3})
    assert [row["step"] for row in run.rows] == [1, 2, 3]


def test_a_row_that_a_kill_cut_short_is_left_out(run):
    run.append({"step": 1, "fvu": 0.5, "terms": {"mse": 1.0}})
    with open(run.folder / "log.jsonl", "a") as file:
        file.write('{"step": 2, "fv')
    assert run.log["step"].tolist() == [1]
    assert run.log["terms.mse"].tolist() == [1.0]


def test_a_rewound_log_keeps_its_notes(run):
    run.append({"step": 1, "fvu": 0.5})
    run.append({"step": 3, "fvu": 0.4})
    run.append({"step": 3, "note": "disk full"})
    run.rewind(2)
    assert [row["step"] for row in run.rows] == [1, 3]
    assert run.notes == ["step 3: disk full"]


def test_a_run_from_before_a_knob_was_there_is_the_same_run(tmp_path):
    """What it lacks did what is now the default; anything else is another SAE."""
    run = Run(tmp_path / "old")
    cfg = asdict(build("topk", d_in=8, d_sae=16, k=2).cfg)
    old = {key: value for key, value in cfg.items() if key not in ("centred", "per_token")}
    run.describe({"variant": "topk", "sae": old})
    assert run.describe({"variant": "topk", "sae": cfg})["sae"] == old
    with pytest.raises(ValueError, match=r"sae\.centred=None, not False"):
        run.describe({"variant": "topk", "sae": cfg | {"centred": False}})
    with pytest.raises(ValueError, match=r"sae\.k=2, not 3"):
        run.describe({"variant": "topk", "sae": cfg | {"k": 3}})


def test_a_config_never_changes(run):
    asked = {"train": {"tokens": 6, "log_every": 1}, "variant": "topk"}
    with pytest.raises(ValueError, match=r"was made with train\.tokens=5, not 6"):
        run.describe(asked)
    assert run.config["train"]["tokens"] == 5


def test_what_is_measured_is_measured_once_and_what_moves_no_weight_may_change(run):
    asked = {"train": {"tokens": 5, "log_every": 7}, "variant": "topk"}
    assert run.describe(asked, lambda: {"scale": 99.0})["scale"] == 0.5


def test_a_folder_has_one_writer(run):
    run.acquire()
    with pytest.raises(RunInUse, match="this very process"):
        Run(run.folder).acquire()
    run.release()
    again = Run(run.folder)
    again.acquire()
    again.release()


HOLD = (
    "import sys, time, sae_lab.runs as r; run = r.Run(sys.argv[1]); run.acquire(); print(1, flush=True); time.sleep(99)"
)


def test_another_process_is_named_and_its_lock_dies_with_it(run):
    with subprocess.Popen([sys.executable, "-c", HOLD, run.folder], stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(RunInUse, match=f"in use by process {other.pid} "):
            run.acquire()
        other.send_signal(signal.SIGKILL)
        other.wait()
        run.acquire()
    run.release()


def test_a_run_whose_process_is_gone_is_lost(run):
    run.beat("running", step=3, steps=9)
    assert run.alive
    status = json.loads((run.folder / "status.json").read_text())
    for change in ({"pid": 2**22 + 1}, {"create_time": status["create_time"] - 100}, {"host": "elsewhere"}):
        (run.folder / "status.json").write_text(json.dumps(status | change))
        assert run.status["state"] == "lost"
        assert not run.alive


def test_a_finished_run_is_not_lost(run):
    run.beat("done", step=9, steps=9)
    (run.folder / "status.json").write_text((run.folder / "status.json").read_text().replace('"pid": ', '"pid": 9'))
    assert run.status["state"] == "done"


def test_only_known_wishes_are_taken(run):
    with pytest.raises(ValueError, match="is not one of 'run', 'pause', 'stop', 'save'"):
        run.control("pase")
    assert run.wanted == "run"
    run.control("pause")
    assert run.wanted == "pause"


def test_an_empty_folder_and_an_unfinished_run_say_what_to_do(run, tmp_path):
    with pytest.raises(FileNotFoundError, match="No run in"):
        _ = Run(tmp_path / "none").config
    run.beat("stopped", step=3, steps=9)
    with pytest.raises(FileNotFoundError, match="stopped at step 3 of 9"):
        _ = run.sae
    with pytest.raises(FileNotFoundError, match="No snapshot of step 4"):
        run.snapshot(4)
    with pytest.raises(FileNotFoundError, match="No SAE and no run"):
        load_sae(tmp_path / "none")


def test_a_fresh_name_is_found_beside_a_run_that_is_there(run, tmp_path):
    assert fresh(tmp_path / "other") == tmp_path / "other"
    assert fresh(run.folder) == tmp_path / "run-2"
    run.beat("done", step=0, steps=0)
    assert [found.folder for found in find_runs(tmp_path)] == [run.folder]


def test_a_saved_sae_comes_back_with_its_settings_and_origin(sae, tmp_path):
    sae.b_dec.data += 1
    sae.origin = {"site": "L3R", "text": "world"}
    save_sae(sae, tmp_path / "out")
    found = load_sae(tmp_path / "out")
    assert found.cfg == sae.cfg
    assert found.origin == sae.origin
    assert all(torch.equal(a, b) for a, b in zip(found.state_dict().values(), sae.state_dict().values()))


def test_an_sae_is_saved_over_another_but_never_over_other_files(sae, tmp_path):
    save_sae(sae, tmp_path / "out")
    sae.b_dec.data += 1
    save_sae(sae, tmp_path / "out")
    assert torch.equal(load_sae(tmp_path / "out").b_dec, sae.b_dec)
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"also holds 'thesis\.tex'"):
        save_sae(sae, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_leaves_the_saved_sae_that_was_there(sae, tmp_path):
    save_sae(sae, tmp_path / "out")
    before = load_sae(tmp_path / "out").b_dec.clone()
    sae.b_dec.data += 1
    with largest_file(500), pytest.raises(DiskFull):
        save_sae(sae, tmp_path / "out")
    assert torch.equal(load_sae(tmp_path / "out").b_dec, before)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_truncated_safetensors_file_says_how_much_is_there(sae, tmp_path):
    save_sae(sae, tmp_path / "out")
    file = tmp_path / "out" / "weights.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:-100])
    with pytest.raises(Damaged, match=f"{len(data) - 100:,} of {len(data):,} bytes"):
        load_sae(tmp_path / "out")
    file.write_bytes(data[:5])
    with pytest.raises(Damaged, match="5 bytes"):
        load_sae(tmp_path / "out")


def test_weights_that_do_not_fit_their_config_say_so(sae, tmp_path):
    save_sae(sae, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    config["config"]["d_sae"] = 17
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    with pytest.raises(Damaged, match="do not fit"):
        load_sae(tmp_path / "out")
    (tmp_path / "out" / "config.json").write_text("{")
    with pytest.raises(Damaged, match="not readable as JSON"):
        load_sae(tmp_path / "out")
