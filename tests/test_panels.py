"""Panels without a browser: what they show of runs, what may be asked when, and what is sent."""

import json
import time
from dataclasses import asdict
from pathlib import Path

import ipywidgets as W
import pandas as pd
import pytest

import sae_lab as sl
from sae_lab.costs import Cost, Probe, amount, duration
from sae_lab.launcher import Job, Launched
from sae_lab.panels import Runs, RunsPanel, Selection, Training, TrainingForm, TrainPanel
from sae_lab.panels.curves import thinned
from sae_lab.panels.faces import grid as grids
from sae_lab.panels.faces.grid import Grid
from sae_lab.runs import Run, Tail
from sae_lab.saes import configured
from sae_lab.training import TrainConfig

HOSTILE = '<img src=x onerror="window.x=1"></div><script>x</script> \u202e\x1b[31m'
SMALL = {"d_sae": 32, "k": 4, "batch": 64, "tokens": 6400, "log_every": 1}


def written(folder: Path, state: str = "running", steps: int = 40, done: int = 20, name: str = "a", **sae) -> Run:
    """A run's folder as a training leaves it, of this process."""
    run = Run(folder / name)
    made = asdict(configured("topk", **{"d_in": 16, "d_sae": 32, "k": 4} | sae))
    loop = asdict(TrainConfig(tokens=steps * 64, batch=64))
    run.describe({"variant": "topk", "site": "L2R", "lr": 1e-3, "sae": made, "train": loop, "scale": 1.0})
    for step in range(1, done + 1):
        log(run, step)
    run.beat(state, step=done, steps=steps, tokens=done * 64, rate=1234.5, eta=75.0)
    return run


def log(run: Run, step: int, **more) -> None:
    row = {
        "site": "L2R",
        "variant": "topk",
        "step": step,
        "tokens": step * 64,
        "fvu": 1 / step,
        "l0": 4.0,
        "dead": 3,
        "lr": 1e-3,
        "rate": 1000.0,
    }
    run.append(row | {"terms": {"mse": 2 / step}} | more)


def training(folder: Path, **knobs) -> Training:
    return Training(TrainingForm("topk", model="planted", site="L0R", **SMALL | knobs), folder)


def texts(widget: W.Widget) -> str:
    """All that is shown in a panel and below it."""
    own = "".join(str(getattr(widget, name, "")) for name in ("value", "description", "tooltip"))
    return own + "".join(texts(child) for child in getattr(widget, "children", ()))


@pytest.fixture
def silent(monkeypatch):
    """Panels that look only when they are told to."""
    monkeypatch.setattr("sae_lab.panels.faces.panel.Panel.watch", lambda self: None)


# The tail of a growing file


def test_a_tail_gives_each_row_once_and_waits_for_the_rest_of_a_line(tmp_path):
    path = tmp_path / "log.jsonl"
    tail = Tail(path)
    assert tail.new() == []
    path.write_text('{"step": 1}\n{"step"')
    assert tail.new() == [{"step": 1}]
    assert tail.new() == []
    with open(path, "a") as file:
        file.write(': 2}\nnot json\n{"step": 3}\n')
    assert tail.new() == [{"step": 2}, {"step": 3}] and not tail.restarted


def test_a_tail_begins_anew_when_the_file_was_rewritten(tmp_path):
    run = written(tmp_path, done=20)
    tail = Tail(run.folder / "log.jsonl")
    assert len(tail.new()) == 20
    run.rewind(5)
    log(run, 6)
    assert [row["step"] for row in tail.new()] == [1, 2, 3, 4, 5, 6] and tail.restarted


# How a training stands


def test_without_a_run_a_training_can_only_be_launched_and_only_if_the_form_is_right(tmp_path):
    t = training(tmp_path)
    assert t.view().can == {"launch"} and t.view().said == "no run yet"
    t.form.set("k", "99")
    assert t.view().can == set()
    with pytest.raises(RuntimeError, match="Cannot launch now"):
        t.ask("launch")
    with pytest.raises(FileNotFoundError, match="There are: none"):
        t.attach(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("state", "can"),
    [
        ("running", {"pause", "stop", "save"}),
        ("starting", {"pause", "stop", "save"}),
        ("paused", {"resume", "stop"}),
        ("evaluating", {"stop"}),
        ("done", {"launch"}),
        ("stopped", {"launch", "resume"}),
        ("failed", {"launch", "resume"}),
    ],
)
def test_what_may_be_asked_follows_the_state(tmp_path, state, can):
    run = written(tmp_path, state)
    run.describe({"cwd": str(tmp_path)}, file="job.json")
    (tmp_path / "a" / "status.json").write_text(json.dumps(run.status | {"state": state, **_other_process(state)}))
    t = training(tmp_path)
    t.attach(run.folder)
    assert t.view().can == can
    for action in {"launch", "pause", "resume", "stop", "save"} - can:
        with pytest.raises(RuntimeError, match=f"Cannot {action} now"):
            t.ask(action)


def _other_process(state: str) -> dict:
    """Of a run that has ended the process is gone."""
    return {} if state in ("running", "starting", "paused", "evaluating") else {"pid": 2**22, "create_time": 0.0}


def test_a_run_that_nobody_launched_cannot_be_resumed_by_a_click(tmp_path):
    run = written(tmp_path, "stopped")
    t = training(tmp_path)
    t.attach(run.folder)
    assert "resume" not in t.view().can


def test_a_process_that_lives_and_says_nothing_is_stuck(tmp_path):
    run = written(tmp_path)
    status = run.status
    (run.folder / "status.json").write_text(json.dumps(status | {"heartbeat": time.time() - 60}))
    t = training(tmp_path)
    t.attach(run.folder)
    assert t.view().state == "stuck" and t.view().said.startswith("stuck")


def test_what_was_asked_is_said_until_it_came_true(tmp_path):
    run = written(tmp_path)
    t = training(tmp_path)
    t.attach(run.folder)
    assert t.view().said == "running · step 20 of 40 · 1,234 tokens/s · 1:15 left" and t.view().share == 0.5
    t.ask("pause")
    assert run.wanted == "pause" and t.view().said.startswith("pausing")
    run.beat("paused", step=20, steps=40, tokens=20 * 64)
    assert t.view().said == "paused · step 20 of 40"


def test_curves_have_the_whole_history_and_grow(tmp_path):
    run = written(tmp_path, done=20)
    run.study("recovered/00000010", lambda: {"step": 10, "tokens": 640, "ce_recovered": 0.5})
    t = training(tmp_path)
    t.attach(run.folder)
    curves = t.view().curves
    assert curves["fvu"].dropna().tolist() == [1 / s for s in range(1, 21)]
    assert curves["terms.mse"].dropna().iloc[-1] == 0.1 and curves["ce_recovered"].dropna().tolist() == [0.5]
    assert t.view().curves is curves  # nothing new, nothing done
    log(run, 21)
    assert len(t.view().curves["fvu"].dropna()) == 21
    run.rewind(10)
    assert len(t.view().curves["fvu"].dropna()) == 10  # resumed from a checkpoint
    assert t.view().numbers["fvu"] == 0.1


def test_a_thinned_curve_keeps_its_spikes():
    rows = pd.DataFrame({"tokens": range(20_000), "fvu": 0.5, "terms.mse": 1.0})
    rows.loc[[7_777, 12_345], "terms.mse"] = 99.0, -3.0
    few = thinned(rows, 400)
    assert len(few) <= 1200 and {0, 7_777, 12_345, 19_999} <= set(few["tokens"])
    assert thinned(rows.head(300), 400) is not few and len(thinned(rows.head(300), 400)) == 300


def test_findings_and_errors_of_a_run_are_in_the_view(tmp_path):
    run = written(tmp_path)
    for step in range(21, 80):
        log(run, step, fvu=1.5, dead=32)
    run.beat("failed", step=79, steps=80, error=f"Diverged: {HOSTILE}")
    t = training(tmp_path)
    t.attach(run.folder)
    assert t.view().findings and t.view().error.startswith("Diverged")


# Launched for real


def test_a_training_is_launched_paused_resumed_reattached_and_stopped(tmp_path):
    t = training(tmp_path, tokens=64 * 200_000, checkpoint_minutes=0)
    t.ask("launch")
    until(lambda: t.view().state == "running" and len(t.view().curves))
    assert t.run.folder.parent == tmp_path and t.view().can == {"pause", "stop", "save"}
    t.ask("pause")
    until(lambda: t.view().state == "paused")
    step = t.run.status["step"]
    t.ask("resume")
    until(lambda: t.view().state == "running" and t.run.status["step"] > step)
    again = training(tmp_path)
    again.attach(again.runs[0])  # as after a restart of the kernel
    assert again.view().curves["fvu"].iloc[0] == t.view().curves["fvu"].iloc[0]
    again.ask("stop")
    until(lambda: again.view().state == "stopped" and not again.run.alive)
    assert "resume" in again.view().can
    assert Launched(again.run.folder).checkpoints.steps


def until(holds, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.05)


def test_what_a_training_costs_is_measured_by_its_first_steps(tmp_path):
    job = Job.of(variant="topk", model="planted", site="L0R", **SMALL | {"tokens": 64 * 10**6})
    cost = sl.estimate(job, timeout=120)
    assert cost.tokens == 64 * 10**6 and cost.seconds == cost.tokens / cost.rate > 1
    assert 50e6 < cost.memory < 5e9 and cost.device_memory == 0
    weights = 4 * (2 * 32 * 16 + 32 + 16)
    assert 10 * weights < cost.disk < 1e6
    assert cost.to_json()["seconds"] == cost.seconds and " a second: " in str(cost)
    assert not list(tmp_path.iterdir())


def test_a_training_that_cannot_begin_says_so_before_it_is_launched():
    probe = Probe(Job.of(variant="topk", model="/no/such/model", **SMALL))
    for _ in range(2):  # and again, whoever asks
        with pytest.raises(RuntimeError, match="cannot begin"):
            probe.wait(120)
    with pytest.raises(ValueError, match="k=99"):
        sl.estimate(variant="topk", model="planted", **SMALL | {"k": 99})


def test_costs_are_told_as_one_reads_them(monkeypatch):
    assert (duration(65), duration(3600), duration(90_061)) == ("1:05", "1:00:00", "1 d 1:01:01")
    assert (amount(2.5e9), amount(3e6)) == ("2.5 GB", "3 MB")
    assert Cost(100, 10.0, 10**18, 0, 1).shortage.startswith("memory: 1,000,000 TB of ")
    assert Cost(100, 10.0, 1, 0, 1).shortage == ""


# Faces


def test_the_buttons_follow_the_view_and_the_panel_the_run(tmp_path, silent):
    seen = Selection()
    panel = TrainPanel("topk", model="planted", site="L0R", folder=tmp_path, selection=seen, **SMALL)
    assert [n for n, b in panel._buttons.items() if not b.disabled] == ["launch"]
    panel._form.set("k", "99")
    assert all(b.disabled for b in panel._buttons.values())
    run = written(tmp_path)
    panel.attach(run.folder)
    assert [n for n, b in panel._buttons.items() if not b.disabled] == ["pause", "stop", "save"]
    assert seen.run == str(run.folder) and panel._bar.value == 0.5
    panel._buttons["pause"].click()
    assert run.wanted == "pause" and "pausing" in texts(panel)
    panel._buttons["resume"].click()  # a click that came too late
    assert "Cannot resume now" in texts(panel)


def test_what_a_training_costs_or_why_it_cannot_be_is_said_before_launch(tmp_path, silent, monkeypatch):
    panel = TrainPanel("topk", model="planted", site="L0R", folder=tmp_path, **SMALL)
    found = [None, Cost(10**6, 1000.0, 10**9, 0, 10**6)]
    monkeypatch.setattr(Training, "estimate", lambda self: None)
    monkeypatch.setattr(Training, "cost", property(lambda self: found[0]))
    panel._price.click()
    panel.refresh()
    assert "measuring" in panel._cost.value
    del found[0]
    panel.refresh()
    assert "1,000,000 tokens at 1,000 a second: 16:40; 1.0 GB of memory, 1 MB of disk" in panel._cost.value
    monkeypatch.setattr(Training, "cost", property(lambda self: (_ for _ in ()).throw(RuntimeError("no such model"))))
    panel._price.click()
    panel.refresh()
    panel.refresh()
    assert "no such model" in panel._cost.value and panel._fault.value == ""


def test_a_panel_that_shows_nothing_new_sends_nothing(tmp_path, silent):
    panel = TrainPanel(
        "topk", model="planted", site="L0R", folder=tmp_path, run=written(tmp_path, "done").folder, **SMALL
    )
    sent = []
    for widget in every(panel):
        widget.observe(lambda change: sent.append(change["name"]))
    panel.refresh()
    assert sent == []


def every(widget: W.Widget):
    yield widget
    for child in getattr(widget, "children", ()):
        yield from every(child)


def test_hostile_names_notes_and_errors_are_text(tmp_path, silent):
    run = written(tmp_path, "failed", name="<b>x" + HOSTILE.replace("/", ""))
    run.append({"step": 20, "note": HOSTILE})
    run.beat("failed", step=20, steps=40, error=HOSTILE)
    panel = TrainPanel("topk", model="planted", site="L0R", folder=tmp_path, run=run.folder, **SMALL)
    for shown in (panel.snapshot(), panel._state.value + panel._words.value, RunsPanel(tmp_path).snapshot()):
        assert "<script" not in shown and "<img" not in shown and "\x1b" not in shown and "&lt;img" in shown
    page = panel.to_html(tmp_path / "page.html").read_text()
    assert "<script>x" not in page and "<img src=x" not in page


def test_a_panel_prints_cheaply_and_has_a_static_side(tmp_path, silent):
    panel = TrainPanel("topk", model="planted", site="L0R", folder=tmp_path, run=written(tmp_path).folder, **SMALL)
    assert repr(panel) == f"<training panel: {tmp_path / 'a'}, {panel.training.view().said}>"
    assert "<polyline" in panel._repr_mimebundle_()["text/html"]


# Runs


def test_runs_are_rows_with_what_was_measured_last(tmp_path):
    written(tmp_path, "done", name="a")
    other = written(tmp_path, "running", done=10, name="b", seed=1, d_sae=64)
    other.write_eval({"fvu": {"value": 0.25}, "l0": {"value": 4.5}})
    table = Runs(tmp_path).table()
    assert table["run"].tolist() == ["a", "b"] and table["FVU"].tolist() == [1 / 20, 0.25]
    assert table["L0"].tolist() == [4.0, 4.5] and table["d_sae"].tolist() == [32, 64]


def test_runs_are_filtered_by_all_words_and_saved_as_filtered(tmp_path):
    written(tmp_path, "done", name="a")
    written(tmp_path, "done", name="b", seed=7)
    written(tmp_path, "stopped", name="=c")
    runs = Runs(tmp_path)
    runs.words = "DONE topk"
    assert runs.table()["run"].tolist() == ["a", "b"]
    runs.words = "=c"
    assert runs.csv().splitlines()[1].startswith("'=c,stopped,topk,L2R,32,4.0,0.05,")
    runs.words = "nothing like it"
    assert len(runs.table()) == 0 and runs.csv().count("\n") == 1


def test_settings_that_differ_are_listed_and_no_others(tmp_path):
    a, b = written(tmp_path, name="a"), written(tmp_path, name="b", k=8, seed=3)
    differ = Runs(tmp_path).differences([str(a.folder), str(b.folder)])
    assert differ.loc["sae.k"].tolist() == ["4", "8"] and set(differ.index) == {"sae.k", "sae.seed"}
    assert Runs(tmp_path).differences([str(a.folder)]).empty


def test_a_damaged_run_is_a_row_that_says_so(tmp_path):
    written(tmp_path, name="a")
    (tmp_path / "a" / "config.json").write_text("{")
    assert Runs(tmp_path).table()["state"].iloc[0].startswith("damaged:")


def test_a_click_on_a_run_moves_the_selection_and_draws_it(tmp_path, silent):
    seen, run = Selection(), written(tmp_path, "done")
    other = written(tmp_path, "done", name="b", seed=1)
    panel = RunsPanel(tmp_path, selection=seen)
    assert "Click a run" in texts(panel)
    panel._grid.on_top = str(run.folder)
    panel.choose(run.folder, other.folder)
    assert seen.run == str(run.folder) and len(panel._curves.children[0].figure.data) == 2
    assert "sae.seed" in panel._differ.value
    panel.filter("b")
    assert panel.chosen == [str(other.folder)] and "1 run<" in panel._count.value


def test_an_empty_folder_says_what_to_do(tmp_path, silent):
    panel = RunsPanel(tmp_path / "none")
    assert "TrainPanel" in panel._grid.empty and "0 runs" in panel._count.value


def test_a_grid_counts_what_it_does_not_draw(monkeypatch):
    monkeypatch.setattr(grids, "MOST", 3)
    grid = Grid()
    grid.chosen = ["1", "9"]
    grid.show(pd.DataFrame({"n": [1.5, float("nan"), 3.0, 4.0], "s": ["a", None, HOSTILE, "d"]}))
    seen = HOSTILE.replace("\u202e", "\\u202e").replace("\x1b", "\\u001b")
    assert grid.rows == [["0", [1.5, "1.5"], "a"], ["1", [None, ""], ""], ["2", [3.0, "3"], seen]]
    assert grid.more == 1 and grid.columns == [["n", True], ["s", False]] and grid.chosen == ["1"]


def test_the_tour_links_all_panels_and_opens_on_nothing(tmp_path, silent):
    tour = sl.panels.tour(tmp_path, variant="topk", model="planted", site="L0R", **SMALL)
    assert "no run is chosen" in texts(tour) and "0 runs" in texts(tour)
    run = written(tmp_path, "done")
    tour.runs.show()
    tour.runs._grid.on_top = str(run.folder)
    assert {tour.selection.run} == {str(run.folder)} and "has no trained SAE yet" in texts(tour.latents)
    tour._tabs.selected_index = 3
    assert tour.geometry is None  # not trained
    assert "Choose a run" in texts(tour) and repr(tour).startswith("<tour: <selection:")
    tour.snapshot()
