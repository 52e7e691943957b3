"""A sweep from the training panel: what is typed, what it asks for, and how its SAEs are shown."""

import json
import os

import pytest
from small import llama_and_text
from test_panels import HOSTILE, log, texts, until, written

import sae_lab as sl
from sae_lab.launcher import Launched, active
from sae_lab.panels import Runs, Training, TrainingForm, TrainPanel
from sae_lab.runs import Run
from sae_lab.sweeps import Plan

SMALL = {"d_sae": 32, "k": 4, "batch": 64, "tokens": 6400, "log_every": 1}


@pytest.fixture
def panel(tmp_path, monkeypatch):
    monkeypatch.setattr("sae_lab.panels.faces.panel.Panel.watch", lambda self: None)
    return TrainPanel("topk", folder=tmp_path, **SMALL)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return llama_and_text(tmp_path_factory.mktemp("llama")) | {"context": 64}


def swept(folder, plan: Plan, done: int) -> Run:
    """A sweep's folder with some of its SAEs trained."""
    run = Run(folder / "sweep")
    run.describe({"kind": "sweep", **plan.to_json()})
    for i, asked in enumerate(plan.saes[:done]):
        one = written(run.folder, "done", name=asked.name, done=10 + i)
        found = {"l0": 4.0, "fvu": 0.5 + i / 10, "ce_recovered": 0.9, "dead": 0.25}
        one.write_eval({name: {"value": value} for name, value in found.items()})
    run.beat("running", step=5, steps=40, tokens=320, rate=100.0, eta=9.0)
    return run


# What is typed


def test_several_values_of_any_knob_are_a_sweep(panel):
    training, form = panel.training, panel.over
    assert not training.varying.active and panel._buttons["launch"].description == "Launch"
    form.set("lr", "1e-3, 3e-4")
    form.set("k", "4,8")
    form.set("aux_weight", "0")
    form.set("seeds", 2)
    plan = training.varying.plan
    assert (plan.variants, plan.k, plan.d_sae, plan.seeds) == (("topk",), (4, 8), (32,), 2)
    assert plan.over == {"lr": (1e-3, 3e-4), "aux_weight": (0,)} and plan.job.train.batch == 64
    assert "8 SAEs in 2 passes over the text: the model reads 12,800 tokens" in texts(panel)
    assert panel._buttons["launch"].description == "Launch sweep" and not panel._buttons["launch"].disabled
    asked = []
    call = training.varying.call("there")
    eval(call, {"sl": type("sl", (), {"sweep": lambda *a, folder, detach, **k: asked.append(Plan.of(*a, **k))})})
    assert asked == [plan] and "sweep-topk-L2R" in form._foot.value
    for name in ("lr", "k", "aux_weight"):
        form.set(name, "")
    form.set("seeds", 1)
    assert not training.varying.active and "begins a sweep" in form._foot.value


def test_every_knob_that_the_form_has_can_vary_but_for_those_of_the_machine(panel):
    rows = panel.training.varying.rows
    left = set(panel.training.form.rows) - set(rows)
    assert left == {"model", "device", "dtype", "seed", "run", "evaluation"}
    for name in rows:
        panel.training.varying.begin(name)
        assert panel.training.varying.asked.pop(name) != ""
    with pytest.raises(TypeError, match=r"cannot vary 'seed'\. Did you mean"):
        panel.over.set("seed", "1,2")


def test_a_click_begins_a_row_with_the_value_of_the_form(panel):
    panel.over._pick.value = "lr"
    panel.over._pick.value = "tokens"
    assert list(panel.over._rows) == ["lr", "tokens"] and panel.over._pick.value.startswith("vary")
    assert panel.training.varying.asked == {"lr": "None", "tokens": "6400"}
    assert "lr" not in panel.over._pick.options
    panel.over._rows["lr"][1].value = "1e-3,1e-4"
    assert panel.training.varying.values["lr"] == [1e-3, 1e-4]
    panel.over._rows["tokens"][0].children[1].click()
    assert list(panel.over._rows) == ["lr"] and "tokens" in panel.over._pick.options


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("k", "4, many", "k='many' must be int"),
        ("lr", "1e-3, 7", "lr=7 must lie in"),
        ("k", "4, 4", "each once"),
        ("d_sae", "32, 2", "k=4 must be at most d_sae=2"),
        ("text", "a/b, a_b", "alike in a folder"),
        ("variant", "topk, topkk", "is not one of"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_can_be_launched(panel, name, given, said):
    panel.over.set(name, given)
    assert said in texts(panel).replace("&#x27;", "'") and panel._buttons["launch"].disabled
    panel.over.set(name, "")
    assert not panel._buttons["launch"].disabled


def test_variants_vary_and_each_has_the_knobs_it_knows(panel):
    panel._form.set("aux_weight", "0.25")
    panel.over.set("variant", "topk, jumprelu, batchtopk")
    plan = panel.training.varying.plan.check()
    own = {asked.variant: plan.job_of(asked, plan_folder()).sae for asked in plan.saes}
    assert own["topk"]["aux_weight"] == own["batchtopk"]["aux_weight"] == 0.25
    assert own["topk"]["k"] == own["batchtopk"]["k"] == own["jumprelu"]["target_l0"] == 4
    panel._form.set("variant", "relu")  # another form: what it has no knob for is left out
    panel.over.set("aux_weight", "")
    assert "sae-wrong" not in panel.over._foot.value


def plan_folder():
    return Run("x").folder


def test_without_an_l0_to_ask_for_a_penalty_can_vary(tmp_path):
    training = Training(TrainingForm("relu", d_sae=32, tokens=6400, batch=64), tmp_path)
    name = next(n for n in training.varying.rows if n.startswith("l1"))
    training.varying.set(name, "0.1, 1")
    assert training.varying.plan.check().k == (None,) and training.varying.errors == {}


# How its SAEs are shown


def test_a_sweep_is_shown_with_a_row_and_a_curve_for_each_sae(panel, tmp_path):
    plan = Plan.of(["topk"], k=[4], d_sae=[32], seeds=2, lr=[1e-3, 3e-4], tokens=6400, batch=64)
    run = swept(tmp_path, plan, 2)
    panel.attach(run.folder)
    rows = panel.training.swept.table
    assert rows["fvu"].tolist()[:2] == [0.5, 0.6] and rows["fvu"].isna().tolist() == [False, False, True, True]
    assert list(rows.columns[:2]) == ["lr", "seed"] and len(panel._swept._grid.rows) == 4
    figure = panel._swept._curves.children[0].figure
    assert [trace.name for trace in figure.data] == [asked.name for asked in plan.saes[:2]]
    assert [len(trace.x) for trace in figure.data] == [10, 11]
    by_knob = panel._swept._against.children[0].figure
    assert by_knob.layout.xaxis.title.text == "lr" and len(panel._swept._front.children[0].figure.data)
    log(Run(run.folder / plan.saes[1].name), 12)
    panel._drawn = -1e9
    panel.refresh()
    assert len(panel._swept._curves.children[0].figure.data[1].x) == 12
    panel._swept._grid.on_top = str(run.folder / plan.saes[0].name)
    assert panel.selection.run == str(run.folder / plan.saes[0].name)
    assert "running" in panel._state.value and "step 5 of 40" in panel._state.value
    assert "<svg" not in panel._swept.snapshot() and "0.6" in panel.snapshot()
    panel.attach(run.folder / plan.saes[0].name)
    assert panel.training.swept is None and panel._swept.layout.display == "none"


def test_nothing_new_sends_nothing(panel, tmp_path):
    plan = Plan.of(["topk"], k=[4], d_sae=[32], seeds=2, tokens=6400, batch=64)
    run = swept(tmp_path, plan, 2)
    run.mark("done")
    panel.attach(run.folder)
    before, panel._drawn = panel._swept._curves.children[0].figure, -1e9
    panel.refresh()
    assert panel._swept._curves.children[0].figure is before


def test_a_sweep_that_measures_can_be_stopped_and_is_not_killed(tmp_path):
    plan = Plan.of(["topk"], k=[4], d_sae=[32], seeds=2, tokens=6400, batch=64)
    run = swept(tmp_path, plan, 1)
    run.mark("evaluating")
    training = Training(TrainingForm("topk", **SMALL), tmp_path)
    training.attach(run.folder)
    assert training.view().can == {"pause", "stop"} and not training.run.measuring
    with pytest.raises(TimeoutError):  # this process, which would be gone
        Launched(run.folder).stop(timeout=0.2)
    assert run.wanted == "stop" and run.status["pid"] == os.getpid()


def test_runs_at_work_are_named_where_none_is_shown(panel, tmp_path):
    assert "active" not in panel._state.value
    run = written(tmp_path, "running", name="<b>one")
    plan = Plan.of(["topk"], k=[4], d_sae=[32], seeds=2, tokens=6400, batch=64)
    sweep = swept(tmp_path, plan, 0)
    written(sweep.folder, "running", name=plan.saes[0].name)
    assert active(tmp_path) == sorted([str(run.folder), str(sweep.folder)])
    panel.training._looked = -1e9
    panel.refresh()
    assert "2 runs are active: " in panel._state.value and "<b>" not in panel._state.value


def test_hostile_values_are_text(panel):
    panel.over.set("text", HOSTILE)
    rows = "".join(said.value for _, _, said in panel.over._rows.values())
    for shown in (panel.over._foot.value, panel.over.snapshot(), rows):
        assert "<script" not in shown and "\x1b" not in shown and "\u202e" not in shown
    assert "&lt;script" in panel.over.snapshot()


def test_a_sweep_is_launched_and_ends_measured(model, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    knobs = SMALL | model | {"site": "L1R", "evaluation": 200, "calibration_tokens": 256, "sample": 256, "tokens": 640}
    training = Training(TrainingForm("topk", **knobs), tmp_path)
    training.varying.set("lr", "1e-2, 1e-3")
    training.ask("launch")
    assert training.swept is not None and training.run.folder.name == "sweep-topk-L1R"
    until(lambda: training.view().state == "done", 120)
    until(lambda: training.swept.read() or training.swept.table["fvu"].notna().all(), 10)
    assert training.swept.table["fvu"].notna().all() and set(training.swept.logs) == {
        "topk-k4-d32-lr0.01-s0",
        "topk-k4-d32-lr0.001-s0",
    }
    assert json.loads((training.run.folder / "job.json").read_text())["over"] == {"lr": [1e-2, 1e-3]}
    assert sl.Sweep.load(training.run.folder).plan == training.varying.plan


def test_tokens_that_vary_are_those_that_were_asked_for_while_it_trains(tmp_path):
    plan = Plan.of(["topk"], k=[4], d_sae=[32], seeds=1, tokens=[6401, 12800], batch=64)
    run = swept(tmp_path, plan, 1)
    found = sl.Sweep.load(run.folder)
    assert found.table["tokens"].tolist() == [6401, 12800] and found.summary["total"].tolist() == [1, 1]
    assert "several" not in found.subtitle and "tokens of" not in found.subtitle
    other = Plan.of(["topk"], k=[None, 4], d_sae=[32], seeds=1, site=["L1R", "L2R"], tokens=6400, batch=64)
    found = sl.Sweep.read(other, tmp_path / "none")
    assert "4 SAEs at several sites of tiny, 6,400 tokens of world each in 1 pass;" in found.subtitle
    assert "NaN" not in json.dumps(found.to_json())


def test_none_is_a_value_to_vary_over(panel, tmp_path):
    plan = Plan.of(["topk"], k=[4], d_sae=[32], seeds=1, lr=[None, 1e-3], tokens=6400, batch=64)
    panel.attach(swept(tmp_path, plan, 2).folder)
    figure = panel._swept._against.children[0].figure
    assert [set(trace[axis]) for trace in figure.data[:1] for axis in "xy"][1] == {"None", "0.001"}
    assert panel.training.swept.table["lr"].isna().tolist() == [True, False]


def test_a_row_that_the_form_has_no_knob_for_any_more_counts_for_nothing(panel):
    panel.over.set("aux_weight", "0, 1")
    assert panel.training.varying.active
    panel._form.set("variant", "relu")
    assert not panel.training.varying.active and panel._buttons["launch"].description == "Launch"
    panel._form.set("variant", "topk")
    assert panel.training.varying.active


def test_values_are_given_and_names_are_short(panel):
    panel.over.set("variant", ",")
    assert panel.over.varying.errors == {"variant": "variant has no values: give some, with commas between."}
    panel.over.set("variant", "")
    panel.over.set("text", f"{'x' * 300}, y")
    assert "would be too long" in panel.over.varying.errors[""]
    with pytest.raises(ValueError, match=r"over={'lr': 0.001} must hold a list"):
        Plan.of(["topk"], over={"lr": 1e-3})
    with pytest.raises(ValueError, match="train cannot vary"):
        Plan.of(["topk"], over={"train": [1, 2]})


def test_a_damaged_run_is_no_reason_not_to_open(tmp_path, monkeypatch):
    monkeypatch.setattr("sae_lab.panels.faces.panel.Panel.watch", lambda self: None)
    run = written(tmp_path, "stopped")
    (run.folder / "job.json").write_text("{")
    (run.folder / "status.json").write_text(json.dumps(run.status | {"pid": 2**22}))
    assert "no run yet" in TrainPanel("topk", folder=tmp_path, **SMALL)._state.value
    with pytest.raises(RuntimeError, match="No run is shown"):
        TrainPanel("topk", folder=tmp_path, **SMALL).wait()


def test_a_run_is_called_as_the_other_panels_call_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "runs", "done")
    for folder in ("runs", str(tmp_path / "runs")):
        training = Training(TrainingForm("topk", **SMALL), folder)
        for given in ("runs/a", str(tmp_path / "runs" / "a"), training.runs[0]):
            training.attach(given)
            assert training.name == training.runs[0] == Runs(folder).table().index[0]
            assert training.run.folder.is_absolute()
