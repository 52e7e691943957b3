"""Sweeps: every SAE is what it would be alone, whatever comes between; and only equal L0 is compared."""

import json
import os
import signal
import threading
import time
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from small import llama_and_text
from streams import Stream

from sae_lab import plots
from sae_lab.cli import main
from sae_lab.intervals import Estimate
from sae_lab.knobs import knob
from sae_lab.launcher import ps
from sae_lab.models import LM
from sae_lab.runs import Run, RunInUse
from sae_lab.saes import REGISTRY, build
from sae_lab.saes.topk import TopK
from sae_lab.sweeps import Plan, Sweep, run_sweep, sweep, work
from sae_lab.sweeps import plan as plans
from sae_lab.training import Diverged, train

LOOP = {"tokens": 64 * 12, "batch": 64, "lr": 1e-2, "snapshots": 0, "sample": 256, "calibration_tokens": 512}
SMALL = {"site": "L1R", "k": [2, 3], "d_sae": [24], "seeds": 2, "choose_in": "float32", "evaluation": 500, **LOOP}
TWO = ["topk", "batchtopk"]
NAMES = [f"{v}-k{k}-d24-s{s}" for v in TWO for k in (2, 3) for s in (0, 1)]


class NoModel(LM):
    device = torch.device("cpu")

    def __init__(self):
        pass


class Counted(Stream):
    """A stream that counts batches, over all streams of a test."""

    batches = 0

    def next(self, n):
        Counted.batches += 1
        return super().next(n)


def measured(sae, lm, tokens, spliced):
    """What stands in for an evaluation: FVU, L0 and deadness on rows that no training saw."""
    x = Stream(ring=tokens, seed=0)._fresh(tokens)
    z = sae.requires_grad_(False).encode(x)
    fvu = float((sae.decode(z) - x).square().sum() / (x - x.mean(0)).square().sum())
    numbers = {"fvu": fvu, "l0": float(z.l0), "dead": 1 - float(z.fired.float().mean()), "ce_recovered": 1 - fvu}
    return SimpleNamespace(to_json=lambda: {name: {"value": value} for name, value in numbers.items()})


@pytest.fixture
def made_up(monkeypatch):
    """Sweeps on made-up activations, with no model; the names of the SAEs that were measured, in order."""
    seen = []

    def evaluate(sae, *args, **knobs):
        seen.append((sae.name, sae.cfg.k, sae.cfg.seed))
        return measured(sae, *args, **knobs)

    monkeypatch.setattr(work, "reader", lambda job: NoModel())
    monkeypatch.setattr(work, "held_out", lambda *a, **k: SimpleNamespace(block=lambda i: None))
    monkeypatch.setattr(work, "stream", lambda job, lm, needs, sites: Counted(seed=job.text_seed, sites=sites))
    monkeypatch.setattr(work, "evaluate", evaluate)
    monkeypatch.setattr(Counted, "batches", 0)
    return seen


@pytest.fixture
def broken(monkeypatch):
    """A variant whose loss is no number from the sixth step on, for seeds from `trouble` on."""

    class Broken(TopK):
        def objective(self, batch):
            out = super().objective(batch)
            ill = batch.progress > 0.4 and self.cfg.seed >= self.trouble
            return out._replace(terms={"mse": out.terms["mse"] * (float("nan") if ill else 1)})

    Broken.name, Broken.trouble = "broken", 0
    monkeypatch.setitem(REGISTRY, "broken", Broken)


def weights(found):
    return {name: Run(found.folder / name).sae.state_dict() for name in NAMES}


def same(a, b):
    return all(torch.equal(x, y) for name in a for x, y in zip(a[name].values(), b[name].values(), strict=True))


def numbers(found):
    return found.table.drop(columns="run")


def steps_until(n, folder):
    """A sweep that is left after n steps."""
    for done, _ in enumerate(run_sweep(Plan.of(TWO, **SMALL), folder), 1):
        if done == n:
            break


def test_every_sae_of_a_sweep_is_bit_by_bit_what_it_is_alone(made_up, tmp_path):
    found = sweep(TWO, folder=tmp_path, **SMALL)
    assert [row["run"] for row in found.rows] == [str(tmp_path / name) for name in NAMES]
    for asked in found.plan.saes:
        alone = build(asked.variant, d_in=16, d_sae=24, k=asked.k, seed=asked.seed, choose_in="float32")
        list(train(alone, Stream(), **LOOP))
        assert same({"": alone.state_dict()}, {"": Run(tmp_path / asked.name).sae.state_dict()}), asked.name


def test_all_share_one_pass_and_smaller_groups_take_one_each_to_the_same_bits(made_up, tmp_path):
    whole = sweep(TWO, folder=tmp_path / "whole", **SMALL)
    once = 4 + 12 + 8  # a sample, the steps, the calibration
    assert Counted.batches == once
    parts = sweep(TWO, folder=tmp_path / "parts", at_once=5, **SMALL)
    assert Counted.batches == once + 2 * once
    assert same(weights(whole), weights(parts))
    pd.testing.assert_frame_equal(numbers(whole), numbers(parts))


@pytest.mark.parametrize("left", [1, 7, 12])
def test_a_sweep_that_was_left_goes_on_to_the_same_table(left, made_up, tmp_path):
    straight = sweep(TWO, folder=tmp_path / "straight", **SMALL)
    steps_until(left, tmp_path / "left")
    assert Run(tmp_path / "left").status["state"] == "stopped"
    assert len(made_up) == 8
    again = sweep(TWO, folder=tmp_path / "left", **SMALL)
    assert len(made_up) == 16
    assert same(weights(straight), weights(again))
    pd.testing.assert_frame_equal(numbers(straight), numbers(again))
    assert again.run.status["state"] == "done"


def test_a_sweep_cut_short_while_measuring_measures_the_rest_alone(made_up, tmp_path, monkeypatch):
    real = work.evaluate

    def tired(sae, *args, **knobs):
        if len(made_up) == 3:
            raise KeyboardInterrupt
        return real(sae, *args, **knobs)

    monkeypatch.setattr(work, "evaluate", tired)
    with pytest.raises(KeyboardInterrupt):
        sweep(TWO, folder=tmp_path, **SMALL)
    batches, partly = Counted.batches, Sweep.load(tmp_path)
    assert partly.table.fvu.notna().sum() == 3
    assert "3 of 8 SAEs measured" in repr(partly)
    monkeypatch.setattr(work, "evaluate", real)
    sweep(TWO, folder=tmp_path, **SMALL)
    assert Counted.batches == batches
    assert len(made_up) == len(set(made_up)) == 8


def test_a_finished_sweep_is_read_back_and_nothing_is_done_again(made_up, tmp_path, monkeypatch):
    first = sweep(TWO, folder=tmp_path, **SMALL)
    for name in ("reader", "stream", "evaluate", "write_page"):
        monkeypatch.setattr(work, name, None)
    again, loaded = sweep(TWO, folder=tmp_path, **SMALL), Sweep.load(tmp_path)
    assert again.to_json() == loaded.to_json() == first.to_json()
    assert loaded.plan == first.plan
    json.dumps(first.to_json(), allow_nan=False)


def test_a_folder_holds_one_sweep_for_one_at_a_time(made_up, tmp_path):
    going = run_sweep(Plan.of(TWO, **SMALL), tmp_path)
    next(going)
    with pytest.raises(RunInUse):
        sweep(TWO, folder=tmp_path, **SMALL)
    going.close()
    for detach in (False, True):
        with pytest.raises(ValueError, match="was made with seeds=2, not 3"):
            sweep(TWO, folder=tmp_path, detach=detach, **SMALL | {"seeds": 3})
    assert not (tmp_path / "job.json").exists()
    assert Run(tmp_path).status["state"] == "stopped"
    with pytest.raises(FileNotFoundError, match="No sweep in"):
        Sweep.load(tmp_path / NAMES[0])


def test_one_that_diverges_takes_no_other_with_it(broken, made_up, tmp_path):
    found = sweep(["topk", "broken", "batchtopk"], folder=tmp_path / "a", **SMALL)
    assert Counted.batches == (4 + 6) + (4 + 12 + 8)  # what was lost, and the others from the beginning
    assert same(weights(found), weights(sweep(TWO, folder=tmp_path / "b", **SMALL)))
    assert list(found.failed) == [f"broken-k{k}-d24-s{s}" for k in (2, 3) for s in (0, 1)]
    assert "gradient of broken at L1R is nan at step 6" in found.failed["broken-k2-d24-s0"]
    assert found.table.state.value_counts().to_dict() == {"done": 8, "failed": 4}
    assert found.unmatched.query("variant == 'broken'").seeds.tolist() == [0, 0]
    assert "broken, k 2" in (tmp_path / "a/report.html").read_text(encoding="utf-8")
    (note,) = found.run.notes
    assert note.count("broken-k") == 4
    batches = Counted.batches
    sweep(["topk", "broken", "batchtopk"], folder=tmp_path / "a", **SMALL)
    assert Counted.batches == batches


def test_training_says_which_saes_diverged(broken):
    saes = [build(name, d_in=16, d_sae=24, k=3, choose_in="float32") for name in ("broken", "topk", "broken")]
    for log_every, term in ((1, "Loss term 'mse' of broken"), (10, "The gradient of broken")):
        with pytest.raises(Diverged, match=term) as caught:
            list(train(saes, Stream(), **LOOP, log_every=log_every))
        assert caught.value.saes == (saes[0], saes[2])


def test_a_word_to_the_sweep_pauses_and_stops_it(made_up, tmp_path):
    run, states = Run(tmp_path), []

    def resume():
        while run.status["state"] != "paused":
            time.sleep(0.01)
        states.extend(Run(tmp_path / name).status["state"] for name in NAMES)
        run.control("run")

    other = threading.Thread(target=resume)
    for step in run_sweep(Plan.of(TWO, **SMALL), tmp_path):
        if step.index == 3:
            other.start()
            run.control("pause")
        if step.index == 7:
            run.control("stop")
    other.join()
    assert states == ["stopped"] * 8  # each with a checkpoint
    assert step.index == 7
    assert run.status["state"] == "stopped"
    assert run.status["steps"] == 12
    assert run.wanted == "run"
    assert same(weights(sweep(TWO, folder=tmp_path, **SMALL)), weights(sweep(TWO, folder=tmp_path / "b", **SMALL)))


def test_a_word_to_one_of_its_trainings_stops_the_sweep(made_up, tmp_path):
    for step in run_sweep(Plan.of(TWO, **SMALL), tmp_path):
        if step.index == 3:
            Run(tmp_path / NAMES[5]).control("stop")
    assert step.index == 3
    assert Run(tmp_path).status["state"] == "stopped"


def test_only_what_has_the_l0_that_was_asked_for_is_compared(made_up, tmp_path, monkeypatch):
    def off(sae, *args, **knobs):
        found = measured(sae, *args, **knobs).to_json()
        far = {2: 1.2, 3: 0.8}[sae.cfg.k] if sae.name == "batchtopk" and sae.cfg.seed else 0.96
        return SimpleNamespace(to_json=lambda: found | {"l0": {"value": sae.cfg.k * far}})

    monkeypatch.setattr(work, "evaluate", off)
    found = sweep(TWO, folder=tmp_path, **SMALL)
    assert found.table.matched.tolist() == [True] * 4 + [True, False] * 2
    assert found.table.off.tolist() == pytest.approx([-0.04] * 4 + [-0.04, 0.2, -0.04, -0.2])
    assert set(found.matched.variant) == {"topk"}
    assert found.unmatched.matched.tolist() == [1, 1]
    assert found.to_json()["unmatched"] == [["batchtopk", 2, 24], ["batchtopk", 3, 24]]
    assert "not compared: batchtopk, k 2, 24 latents: L0 2.2, +8%; 1 of 2 measured seeds match" in repr(found)
    assert "1 of 2 measured seeds match" in (tmp_path / "report.html").read_text(encoding="utf-8")
    marks = {trace.name: trace.marker.symbol for trace in found.figure.data if trace.name}
    assert marks == {"topk": ("circle", "circle"), "batchtopk": ("circle-open", "circle-open")}
    assert len(replace(found.plan, tolerance=0.25).saes) == 8
    assert Sweep.read(replace(found.plan, tolerance=0.25), tmp_path).unmatched.empty


def test_the_picture_has_a_colour_per_variant_intervals_and_the_l0_on_a_log_axis(made_up, tmp_path):
    found = sweep(TWO, folder=tmp_path, **SMALL | {"d_sae": [24, 32]})
    figure = found.figure
    fronts = [trace for trace in figure.data if trace.mode == "lines+markers"]
    assert len(fronts) == 2 * 2 * 2
    assert [trace.showlegend for trace in fronts] == [True, False] * 4
    colours = {trace.name.split()[0]: trace.line.color for trace in fronts}
    assert len(set(colours.values())) == 2
    assert {trace.line.dash for trace in fronts if trace.name.endswith("32")} == {"dash"}
    row = found.summary.iloc[0]
    assert fronts[0].error_y.array[0] == pytest.approx(row.fvu_high - row.fvu)
    assert figure.layout.xaxis.type == figure.layout.xaxis2.type == "log"
    assert figure.layout.xaxis.ticktext == ("2", "3")
    assert [s.x0 for s in figure.layout.shapes if s.xref == "x2"] == pytest.approx([1.9, 2.85])
    assert "FVU" in figure.layout.yaxis.title.text
    assert "CE recovered" in figure.layout.yaxis2.title.text
    assert len({*plots.COLOURS, *plots.MORE}) == 16


def test_a_mean_over_seeds_has_students_interval_and_a_single_seed_has_none(made_up, tmp_path):
    e = Estimate.mean([1.0, 2.0, 3.0])
    assert (e.value, e.high - e.value) == (2.0, pytest.approx(4.302653 / 3**0.5))
    found = sweep("topk", folder=tmp_path, **SMALL | {"seeds": 1, "k": 2})
    assert found.summary.loc[0, ["fvu_low", "fvu_high"]].isna().all()
    assert found.to_json()["summary"][0]["fvu_low"] is None
    assert found.summary.fvu[0] == found.table.fvu[0]


def test_seeds_may_read_a_text_of_their_own(made_up, tmp_path):
    plan = Plan.of(TWO, **SMALL, same_data=False)
    assert [[asked.seed for asked in group] for group in plan.groups] == [[0] * 4, [1] * 4]
    assert [plan.job_of(group[0], tmp_path).text_seed for group in plan.groups] == [0, 1]
    apart = sweep("topk", folder=tmp_path / "apart", same_data=False, **SMALL | {"k": 2})
    other = build("topk", d_in=16, d_sae=24, k=2, seed=1, choose_in="float32")
    list(train(other, Stream(seed=1), **LOOP))
    assert same({"": other.state_dict()}, {"": Run(apart.rows[1]["run"]).sae.state_dict()})


def test_every_width_has_seeds_of_its_own_so_that_none_begins_as_the_first_rows_of_another():
    plan = Plan.of("topk", **SMALL | {"d_sae": [24, 48]}, same_data=False)
    assert [(a.d_sae, a.seed) for a in plan.saes if a.k == 2] == [(24, 0), (24, 1), (48, 2), (48, 3)]
    assert [sorted({asked.seed for asked in group}) for group in plan.groups] == [[0, 2], [1, 3]]


def test_peers_of_one_that_diverges_are_not_trained_without_it(broken, made_up, tmp_path, monkeypatch):
    monkeypatch.setattr(REGISTRY["broken"], "needs", frozenset({"peers"}))
    monkeypatch.setattr(REGISTRY["broken"], "trouble", 1)
    found = sweep(["broken", "topk"], folder=tmp_path, **SMALL | {"k": 2})
    assert found.table.state.tolist() == ["failed", "failed", "done", "done"]
    assert Counted.batches == (4 + 6) + (4 + 12)


def test_peers_are_the_other_seeds_of_a_kind_and_nobody_else(monkeypatch):
    social = type("Social", (TopK,), {"needs": frozenset({"peers", "grad"})})
    monkeypatch.setitem(REGISTRY, "social", social)
    plan = Plan.of(["topk", "social"], **SMALL, at_once=3, same_data=False)
    names = [[asked.name for asked in group] for group in plan.groups]
    assert names[-2:] == [[f"social-k{k}-d24-s{s}" for s in (0, 1)] for k in (2, 3)]
    assert {plan.job_of(asked, plans.Path()).text_seed for group in plan.groups[-2:] for asked in group} == {0}
    assert plan.needs == {"peers", "grad"}


def test_a_variant_may_have_knobs_of_its_own_and_a_plan_survives_json():
    plan = Plan.of({"topk": {"aux_weight": 0.5}, "batchtopk": {}}, **SMALL)
    knobs = {asked.variant: plan.job_of(asked, plans.Path()).sae for asked in plan.saes}
    assert knobs["topk"]["aux_weight"] == 0.5
    assert "aux_weight" not in knobs["batchtopk"]
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert Plan.of("topk").job.train.sample == 4096


def test_any_other_knob_varies_too_and_only_what_is_read_alike_shares_a_pass(made_up, tmp_path):
    knobs = SMALL | {"k": 2, "seeds": 1, "lr": [1e-2, 3e-3], "aux_weight": [0.0, 0.5], "tokens": [64 * 6, 64 * 12]}
    found = sweep("topk", folder=tmp_path, **knobs)
    plan = found.plan
    assert plan.over == {"tokens": (64 * 6, 64 * 12), "lr": (1e-2, 3e-3), "aux_weight": (0.0, 0.5)}
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert [len(group) for group in plan.groups] == [2] * 4
    assert plan.saes[0].name == "topk-k2-d24-tokens384-lr0.01-aux_weight0.0-s0"
    assert (found.run.status["step"], found.run.status["steps"]) == (36, 36)
    assert found.run.status["tokens"] == 64 * 36
    for asked in plan.saes:
        own = dict(asked.more)
        alone = build("topk", d_in=16, d_sae=24, k=2, aux_weight=own.pop("aux_weight"), choose_in="float32")
        list(train(alone, Stream(), **LOOP | own))
        assert same({"": alone.state_dict()}, {"": Run(tmp_path / asked.name).sae.state_dict()}), asked.name
    assert found.summary[["lr", "aux_weight", "tokens"]].drop_duplicates().shape == (8, 3)
    assert found.figure.data[0].name == "topk, tokens 384, lr 0.01, aux_weight 0.0"
    against = found.against("lr")
    fvu = next(trace for trace in against.data if trace.name == "topk, tokens 768, aux_weight 0.5")
    wide = found.table.query("aux_weight == 0.5 and tokens == 768").sort_values("lr")
    assert list(fvu.x) == [3e-3, 1e-2] and list(fvu.y) == wide["fvu"].tolist()
    with pytest.raises(ValueError, match=r"'batch' does not vary here[.] What does: k, d_sae, tokens, lr, aux_weight"):
        found.against("batch")


def test_a_sweep_may_ask_for_no_l0(made_up, tmp_path):
    found = sweep({"topk": {"k": 3}}, folder=tmp_path, **SMALL | {"k": None, "seeds": 1, "aux_weight": [0.0, 0.5]})
    assert [Run(row["run"]).sae.cfg.k for row in found.rows] == [3, 3]
    assert [asked.name for asked in found.plan.saes] == ["topk-d24-aux_weight0.0-s0", "topk-d24-aux_weight0.5-s0"]
    assert found.matched.empty and found.table["off"].isna().all()
    assert "topk, 24 latents, aux_weight 0.5: no L0 was asked for" in repr(found)
    assert len(found.figure.data) and (tmp_path / "report.html").exists()


def test_a_sweep_without_other_knobs_is_saved_as_it_always_was():
    assert "over" not in Plan.of("topk", **SMALL).to_json()


def test_a_list_for_a_knob_that_holds_a_list_is_its_value(monkeypatch):
    class Listed(TopK):
        @dataclass(frozen=True)
        class Config(TopK.Config):
            parts: tuple[int, ...] = knob((1, 2), help="a list")

    monkeypatch.setitem(REGISTRY, "listed", Listed)
    assert Plan.of("listed", **SMALL, parts=(3, 4)).over == {}
    assert Plan.of("listed", **SMALL, parts=(3, 4)).job.sae["parts"] == (3, 4)


def test_a_variant_is_asked_for_its_l0_by_the_knob_that_it_has(monkeypatch):
    assert plans.asking("topk", 7) == {"k": 7}
    assert plans.asking("jumprelu", 7) == {"target_l0": 7}
    monkeypatch.setattr(plans, "variant", lambda name: SimpleNamespace(Config=Estimate))
    with pytest.raises(ValueError, match="'odd' has no knob for L0"):
        plans.asking("odd", 7)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"variants": ["topkk"]}, "Did you mean 'topk'"),
        ({"k": [25]}, "k=25 must be at most d_sae=24"),
        ({"k": []}, "must name at least one"),
        ({"variants": ["topk", "topk"]}, "each once"),
        ({"seeds": 0}, "seeds=0 must lie in"),
        ({"tokns": 5}, "no knob 'tokns'"),
        ({"model": "planted"}, "wants a model"),
        ({"lr": []}, "lr=.* must name at least one"),
        ({"aux_weight": [1, 1]}, "each once"),
        ({"seed": [0, 1]}, "seed cannot vary within a sweep; seeds="),
        ({"over": {"target_l0": [3, 4]}}, "target_l0 varies by a list of its own: k="),
        ({"over": {"tokns": [3, 4]}}, "no knob 'tokns'"),
        ({"text": ["a/b", "a_b"]}, "alike in a folder's name"),
        ({"evaluation": 0}, "evaluation=... tokens"),
    ],
)
def test_what_is_asked_wrongly_is_told_before_anything_is_made(wrong, said, tmp_path):
    with pytest.raises((ValueError, KeyError, TypeError), match=said):
        sweep(folder=tmp_path / "new", **{"variants": TWO} | SMALL | wrong)
    assert not (tmp_path / "new").exists()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a small Llama and a text: the knobs that name them."""
    return llama_and_text(tmp_path_factory.mktemp("llama")) | {"context": 64}


def test_the_command_line_sweeps_and_says_what_python_reads(model, tmp_path, capsys):
    knobs = {**model, "site": "L1R", "k": "2 4", "d_sae": 48, "seeds": 2, "tokens": 1024, "batch": 256, "sample": 256}
    knobs |= {"evaluation": 300, "calibration_tokens": 256, "lr": 1e-2, "folder": tmp_path / "swept"}
    line = [w for name, v in knobs.items() for w in (f"--{name.replace('_', '-')}", *str(v).split())]
    assert main(["sweep", "--variants", "topk", "gradient", *line, "--json"]) == 0  # one of them needs gradients
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found == json.loads(json.dumps(Sweep.load(tmp_path / "swept").to_json()))
    assert [row["l0"] for row in found["saes"] if row["variant"] == "topk"] == pytest.approx([2, 2, 4, 4], rel=0.05)
    assert all(0 < row["fvu"] < 2 and row["ce_recovered"] < 1.5 and 0 < row["alive"] <= 1 for row in found["saes"])
    assert "4/4 steps" in err
    assert "plotly" in (tmp_path / "swept/report.html").read_text(encoding="utf-8")
    assert main(["runs", str(tmp_path / "swept"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["variant"] for row in rows] == ["(sweep)", *["gradient"] * 4, *["topk"] * 4]
    assert main(["sweep", "--variants", "topkk", *line]) == 2
    assert "Did you mean 'topk'?" in capsys.readouterr().err
    line[line.index("--k") : line.index("--d-sae")] = ["--k", "2"]
    line[-1] = str(tmp_path / "varied")
    assert main(["sweep", "--variants", "topk", *line, "--vary", "lr=1e-2,1e-3", "aux-weight=0,1", "--json"]) == 0
    assert len({(row["lr"], row["aux_weight"]) for row in json.loads(capsys.readouterr().out)["saes"]}) == 4
    for wrong, said in (
        ("lr=1e-2,many", "lr='many' must be float"),
        ("tokenz=1", "Did you mean 'tokens'"),
        ("lr", "no knob"),
    ):
        assert main(["sweep", "--variants", "topk", *line, "--vary", wrong]) == 2
        assert said in capsys.readouterr().err


def test_a_detached_sweep_is_paused_killed_and_taken_up_again(model, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    knobs = SMALL | {"tokens": 64 * 60, "evaluation": 200, "k": [2]}
    found = sweep("topk", folder=tmp_path / "swept", detach=True, **knobs, **model)
    assert found.table.fvu.isna().all()
    with pytest.raises(RunInUse, match="at work already"):
        sweep("topk", folder=tmp_path / "swept", detach=True, **knobs, **model)
    found.run.pause(timeout=300)
    assert found.run.status["state"] == "paused"
    row = ps(tmp_path).set_index("run").loc[str(tmp_path / "swept")]
    assert (row.state, row.steps, row.pid) == ("paused", 60, found.run.status["pid"])
    os.kill(int(row.pid), signal.SIGKILL)
    while found.run.alive:
        found.run._until(lambda state: True, 1.0)  # reaps it
    assert found.run.status["state"] == "lost"
    found.run.resume()
    done = found.wait(timeout=300)
    assert done.run.errors == ""
    assert done.run.status["step"] == 60
    assert sweep("topk", folder=tmp_path / "swept", **knobs, **model).to_json() == done.to_json()
    straight = sweep("topk", folder=tmp_path / "straight", **knobs, **model)
    pd.testing.assert_frame_equal(numbers(done), numbers(straight))
