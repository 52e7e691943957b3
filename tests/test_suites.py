"""Suites: one call trains and studies, another goes on to the same bytes; the table says what its studies found."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import t
from small import small_llama

import sae_lab as sl
from sae_lab import reading
from sae_lab.cli import main
from sae_lab.intervals import Estimate
from sae_lab.models import LM
from sae_lab.runs import Damaged, Run, RunInUse
from sae_lab.suites import Suite, results, studies, work
from sae_lab.suites.studies import studies as listed
from sae_lab.sweeps import Plan, Sweep

SHARES = (("children", ("shared", "split", "related", "new")), ("parents", ("split",)))
KNOBS = {"site": "L1R", "k": [4], "d_sae": [24, 48], "seeds": 2, "tokens": 2048, "batch": 256, "lr": 1e-2}
KNOBS |= {"evaluation": 500, "calibration_tokens": 512, "snapshots": 0, "tolerance": 0.3}
STUDIED = 2500


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("suite")


@pytest.fixture(scope="module")
def knobs(folder):
    small_llama(folder / "model")
    return KNOBS | {"model": str(folder / "model")}


def line(knobs: dict, **more) -> list[str]:
    words = [(f"--{name.replace('_', '-')}", value) for name, value in (knobs | more).items()]
    return [w for name, v in words for w in (name, *(map(str, v) if isinstance(v, list) else [str(v)]))]


@pytest.fixture(scope="module")
def swept(folder, knobs) -> Path:
    """A sweep as the command line makes it, not studied yet."""
    assert main(["sweep", "--variants", "topk", *line(knobs, folder=folder / "swept")]) == 0
    return folder / "swept"


@pytest.fixture(scope="module")
def found(folder, knobs, swept) -> Suite:
    """The suite of that sweep, straight through."""
    shutil.copytree(swept, folder / "straight")
    return sl.suite("topk", folder=folder / "straight", studied=STUDIED, **knobs)


@pytest.fixture
def counted(monkeypatch):
    """The studies that are made, in order, by a stand-in that says what it was asked for."""
    made = []

    def stand_in(study):
        def measure(saes, lm, tokens):
            made.append((study, *(sae.cfg.seed for sae in saes)))
            total = sum(float(sae.W_dec.detach().double().sum()) for sae in saes)
            shares = {side: {kind: {"share": 0.5, "null": 0.5} for kind in kinds} for side, kinds in SHARES}
            return {"sum": total, "tokens": tokens, **shares}

        return measure

    for table in (studies.PER_KIND, studies.PER_SAE):
        for name in table:
            monkeypatch.setitem(table, name, stand_in(name))
    monkeypatch.setattr(studies, "splitting", stand_in("splitting"))
    return made


def said(folder: Path) -> bytes:
    return (folder / "suite.json").read_bytes()


def test_a_sweep_that_the_command_line_made_is_studied_as_it_is(found, folder, knobs, swept, monkeypatch):
    """Nothing was trained or measured again, and a second call studies nothing."""
    for name in (row["run"] for row in found.sweep.rows):
        for file in ("status.json", "eval.json", "log.jsonl"):
            assert (folder / "straight" / name / file).read_bytes() == (swept / name / file).read_bytes()
    before = said(folder / "straight")
    monkeypatch.setattr(work, "reader", None)
    monkeypatch.setattr(work, "_measured", None)
    again = sl.suite("topk", folder=folder / "straight", studied=STUDIED, **knobs)
    assert said(folder / "straight") == before
    assert again.to_json() == found.to_json()


def test_every_seed_width_and_pair_is_studied_once(counted, folder, knobs, swept, tmp_path):
    shutil.copytree(swept, tmp_path / "s")
    sl.suite("topk", folder=tmp_path / "s", studied=7000, **knobs)
    expected = [(study, *seeds) for study in ("consistency", "validity") for seeds in ((0, 1), (2, 3))]  # of each width
    expected += [(study, seed) for study in ("absorption", "concepts") for seed in range(4)]
    expected += [("splitting", 0, 2, 3), ("splitting", 1, 3, 2)]  # narrow, wide, another wide one
    assert counted == expected
    sl.suite("topk", folder=tmp_path / "s", studied=8000, **knobs)  # more tokens: other studies, those stay
    assert counted == expected * 2
    assert Suite.load(tmp_path / "s", 7000).found["concepts"]["topk-k4-d24-s0"]["tokens"] == 7000


def test_each_variant_and_pair_of_neighbouring_widths_is_studied_by_itself():
    names = [study.name for study in listed(Plan.of(VARIANTS, k=[16], d_sae=[4096, 256, 1024], seeds=3).saes)]
    assert len(names) == len(set(names)) == 15 + 15 + 45 + 45 + 30
    assert [n for n in names if n.startswith("splitting/relu")] == [
        f"splitting/relu-k16-d{a}-s{i}-in-relu-k16-d{b}-s{j}"
        for a, b, pairs in ((256, 1024, ((3, 6), (4, 7), (5, 8))), (1024, 4096, ((6, 0), (7, 1), (8, 2))))
        for i, j in pairs
    ]


@pytest.mark.parametrize("left", [0, 1, 7, 11])
def test_a_suite_that_was_killed_goes_on_with_the_next_study_to_the_same_bytes(
    left, counted, knobs, swept, tmp_path, monkeypatch
):
    ask = {"studied": 7000, **knobs}
    shutil.copytree(swept, tmp_path / "straight")
    sl.suite("topk", folder=tmp_path / "straight", **ask)
    whole, real = list(counted), work._measured
    counted.clear()

    def tired(*args):
        if len(counted) == left:
            raise KeyboardInterrupt
        return real(*args)

    shutil.copytree(swept, tmp_path / "left")
    monkeypatch.setattr(work, "_measured", tired)
    with pytest.raises(KeyboardInterrupt):
        sl.suite("topk", folder=tmp_path / "left", **ask)
    assert not (tmp_path / "left/suite.json").exists()
    monkeypatch.setattr(work, "_measured", real)
    sl.suite("topk", folder=tmp_path / "left", **ask)
    assert counted == whole
    assert said(tmp_path / "left") == said(tmp_path / "straight")


def test_the_command_resumes_after_sigkill_to_the_same_bytes(found, folder, knobs, swept, tmp_path, capsys):
    """`sae-lab suite` as a process of its own, killed amid its studies; the same line again."""
    shutil.copytree(swept, tmp_path / "s")
    argv = ["suite", "--variants", "topk", *line(knobs, folder=tmp_path / "s", studied=STUDIED)]
    command = [sys.executable, "-c", "import sys; from sae_lab.cli import main; sys.exit(main())", *argv]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    while not (done := list((tmp_path / "s/studies").rglob("[a-z]*.json"))) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert done, process.communicate()[1]
    process.communicate()
    assert not (tmp_path / "s/suite.json").exists()
    stamps = {path: path.stat().st_mtime_ns for path in done}
    assert main([*argv, "--json"]) == 0
    out, err = capsys.readouterr()
    assert said(tmp_path / "s") == said(folder / "straight")
    assert json.loads(out) == found.to_json()
    assert "14/14 studies, splitting/topk-k4-d24-s1-in-topk-k4-d48-s3" in err
    assert {path: path.stat().st_mtime_ns for path in done} == stamps


def test_numbers_are_those_of_the_verbs(found, folder):
    """Text that is read once for all studies changes none of them."""
    lm = sl.load_model(str(folder / "model"))
    load = lambda name: sl.load_sae(folder / "straight" / name)  # noqa: E731
    seeds = [load(f"topk-k4-d48-s{i}") for i in (2, 3)]
    row = found.table.set_index("d_sae").loc[48]
    alike = sl.compare(seeds, lm, tokens=STUDIED)
    for name, theirs in (("mcc", "mcc"), ("mcc_alive", "alive"), ("mcc_weighted", "weighted"), ("shared", "shared")):
        assert row[name] == alike.numbers[theirs].value
        assert row[f"{name}_chance"] == alike.floors[theirs]
    f1 = [sl.recover(sae, lm, tokens=STUDIED).mean().value for sae in seeds]
    assert row.concept_f1 == np.mean(f1)
    assert row.random_f1 == np.mean([sl.recover(sae, lm, tokens=STUDIED).mean("random").value for sae in seeds])
    assert row.concept_f1_high - row.concept_f1 == pytest.approx(t(1).ppf(0.975) * np.std(f1, ddof=1) / 2**0.5)
    narrow = [load(f"topk-k4-d24-s{i}") for i in (0, 1)]
    splits = [sl.split([n, w], lm, null=[w, o], tokens=STUDIED) for n, w, o in zip(narrow, seeds, seeds[::-1])]
    (link,) = found.splits.to_dict("records")
    assert (link["from"], link["to"], link["seeds"]) == (24, 48, 2)
    for name, (side, kind) in results.KINDS.items():
        rows = pd.concat([s.table[(s.table.of == side) & (s.table.kind == kind)] for s in splits])
        assert len(rows) == 2
        assert link[name] == pytest.approx(rows.share.mean()) and link[f"{name}_null"] == pytest.approx(
            rows.null.mean()
        )
    evals = [Run(folder / "straight" / f"topk-k4-d48-s{i}").eval for i in (2, 3)]
    assert row.fvu == np.mean([e["fvu"]["value"] for e in evals])


def test_a_study_that_refuses_is_kept_with_its_reason(found, folder):
    """A Llama of random weights has no concept that 24 latents name: absorption says so, the rest has numbers."""
    assert {name.split("/")[0] for name in found.refused} == {"absorption"}
    assert len(found.refused) == 4
    assert "Absorption needs a parent with a probe" in found.refused["absorption/topk-k4-d24-s0"]
    assert found.table[["absorption", "absorption_low"]].isna().all(axis=None)
    assert found.table[["mcc", "concept_f1", "fvu"]].notna().all(axis=None)
    saved = json.loads(said(folder / "straight"), parse_constant=lambda name: pytest.fail(f"{name} in the JSON"))
    assert saved["table"][0]["absorption"] is None and saved["table"][0]["mcc_low"] is None  # two seeds: no jackknife
    assert "refused: absorption/topk-k4-d24-s0: " in repr(found)


def test_a_suite_is_read_from_its_json_alone(found, folder, tmp_path):
    found.save(tmp_path / "suite.json")
    assert (tmp_path / "suite.json").read_bytes() == said(folder / "straight")
    read = Suite.read(tmp_path / "suite.json")
    for name in ("table", "splits"):
        pd.testing.assert_frame_equal(getattr(read, name), getattr(found, name))
    assert repr(read) == repr(found) and read.refused == found.refused
    assert str(folder) not in json.dumps(read.found) + json.dumps(read.sweep.rows)
    assert len(read.figure.data) and len(read.splits_figure.data) and len(read.sweep.figure.data)
    with pytest.raises(FileNotFoundError):
        Suite.read(tmp_path / "none.json")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(Damaged, match="holds no suite"):
        Suite.read(tmp_path / "other.json")
    (tmp_path / "other.json").write_bytes((tmp_path / "suite.json").read_bytes()[:500])
    with pytest.raises(Damaged, match="cut short"):
        Suite.read(tmp_path / "other.json")


# Numbers written by hand

BASE = {"shared": 0.1, "split": 0.2, "related": 0.3, "new": 0.4}
BEYOND = {"beyond_value": 0.02, "beyond_low": -0.1, "beyond_high": 0.1}
NULLS = (0.49, 0.5, 0.54)
VARIANTS, WIDTHS = ["topk", "batchtopk", "relu", "jumprelu", "matryoshka"], [256, 1024, 4096]


def by_hand(l0=lambda asked: 16.0) -> Suite:
    """The issue's 45 SAEs; every number is a simple function of width and seed."""
    plan = Plan.of(VARIANTS, site="L2R", k=[16], d_sae=WIDTHS, seeds=3, tokens=20_000_000)
    rows = []
    for asked in plan.saes:
        aim, numbers = l0(asked), {"alive": 1.0, "fvu": 0.25, "ce_recovered": 0.75}
        off = {"l0": aim, "off": aim / 16 - 1, "matched": abs(aim / 16 - 1) <= plan.tolerance}
        rows.append(
            {**asked._asdict(), "state": "done", "tokens": 2e7, **off, **numbers, "run": asked.name, "said": ""}
        )
    found = {}
    for study in listed(plan.saes):
        kind, name = study.name.split("/")
        seed = study.saes[0].seed % 3
        e = lambda v: {"value": v, "low": v - 0.1, "high": v + 0.1}  # noqa: E731
        saved = {
            "consistency": {n: e(0.5) | {"chance": 0.125} for n in results.OVER_PAIRS},
            "validity": {
                "spearman": [{"score": f"score {i}", **e(i / 30), **BEYOND, "latents": 256} for i in range(10)]
            },
            "absorption": {"absorption": e(seed / 10), "left out": {"entity": "on 30% of the tokens"}},
            "concepts": {"latents": e(0.4 + seed / 10), "random": e(0.2), "neurons": e(0.3), "matched": e(0.35)},
            "splitting": {
                side: {
                    kind: {"share": BASE[kind] + 0.05 * (side == "parents") + 0.1 * seed, "null": NULLS[seed]}
                    for kind in kinds
                }
                for side, kinds in SHARES
            },
        }[kind]
        found.setdefault(kind, {})[name] = {"saes": [a.name for a in study.saes], **saved}
    return Suite(Sweep(plan, Path(), rows), *results._told_once(found), 50_000)


def test_intervals_are_students_over_seeds_and_jackknife_over_pairs():
    suite = by_hand()
    assert len(suite.table) == 15 and len(suite.splits) == 10
    row, link = suite.table.iloc[0], suite.splits.iloc[0]
    reach = t(2).ppf(0.975)
    assert (row.absorption, row.absorption_high) == (pytest.approx(0.1), pytest.approx(0.1 + reach * 0.1 / 3**0.5))
    assert (row.concept_f1, row.random_f1, row.neurons_f1) == pytest.approx((0.5, 0.2, 0.3))
    assert (row.mcc, row.mcc_low, row.mcc_chance) == pytest.approx((0.5, 0.4, 0.125))
    assert (link.shared, link.split, link.parents_split) == pytest.approx((0.2, 0.3, 0.35))
    assert (link.new, link.new_low) == (pytest.approx(0.5), pytest.approx(0.5 - reach * 0.1 / 3**0.5))
    off = np.array(NULLS) - np.mean(NULLS)  # leaving out a seed leaves the one pair that it is not in
    assert link.new_null == pytest.approx(np.mean(NULLS))
    assert link.new_null_high == pytest.approx(np.mean(NULLS) + reach * (2 / 3 * (off**2).sum()) ** 0.5)
    assert suite.parents == {"entity": "45 SAEs: on 30% of the tokens"}


def test_a_refused_study_counts_for_nothing():
    whole = by_hand()
    name, pair = "topk-k16-d256-s0", "topk-k16-d256-s0-in-topk-k16-d1024-s3"
    spoilt = {
        "absorption": whole.found["absorption"] | {name: {"saes": [name], "refused": "no parent"}},
        "splitting": whole.found["splitting"]
        | {pair: {"saes": whole.found["splitting"][pair]["saes"], "refused": "too few"}},
    }
    suite = replace(whole, found=whole.found | spoilt)
    row = suite.table.set_index(["variant", "d_sae"]).loc["topk", 256]
    link = suite.splits.set_index(["variant", "from"]).loc["topk", 256]
    assert row.absorption == pytest.approx(0.15)  # seeds 1 and 2
    assert (link.seeds, link.new, link.new_null) == (2, pytest.approx(0.55), pytest.approx((0.5 + 0.54) / 2))
    assert np.isnan(link.new_null_low)  # without one of the three seeds no pair is left
    assert (link.new_low, link.new_high) == (0, 1)  # of two seeds nothing is known, and a share is no more than that
    assert set(suite.refused) == {f"absorption/{name}", f"splitting/{pair}"}


def test_scores_are_asked_of_the_first_seed_beside_the_others(knobs, monkeypatch):
    asked = []

    def validate(sae, lm, peers, latents, tokens):
        asked.append((sae, peers, latents, tokens))
        return SimpleNamespace(to_json=lambda: {"spearman": ["rows"]}, about={"judged": 3})

    monkeypatch.setattr(studies, "validate", validate)
    saes = [sl.build("random", d_in=4, d_sae=600, k=2, seed=seed) for seed in range(3)]
    assert studies.validity(saes, sl.load_model(knobs["model"]), 77) == {"spearman": ["rows"], "latents": 3}
    ((sae, peers, latents, tokens),) = asked
    assert (sae, peers, tokens) == (saes[0], saes[1:], 77)
    assert len(set(latents)) == len(latents) == 256 and max(latents) > 500 and min(latents) >= 0


def test_studies_ask_their_verbs_for_the_tokens_and_keep_each_number_under_its_own_name(knobs, monkeypatch):
    asked = []

    def stand_in(name, **told):
        monkeypatch.setattr(studies, name, lambda *given, **how: asked.append((given, how)) or SimpleNamespace(**told))

    numbers = {name: Estimate(i, i, i) for i, name in enumerate(("mcc", "alive", "weighted", "shared"))}
    about = {"measure": "mcc", "threshold": 0.7, "remarks": []}
    stand_in("compare", numbers=numbers, floors={name: e.value / 10 for name, e in numbers.items()}, about=about)
    pairs = pd.DataFrame({"parent": ["a", "a", "b"]})
    stand_in("absorbed", pairs=pairs, mean=Estimate(0.3, 0.2, 0.4), refused={"c": "rare"})
    stand_in("recover", recoveries=["latents", "random"], mean=lambda units: Estimate(len(units), 0, 0))
    rows = pd.DataFrame({"of": ["children", "parents"], "kind": "split", "share": [0.1, 0.2], "null": [0.3, 0.4]})
    stand_in("split", table=rows, rule=SimpleNamespace(cosine=0.6))
    lm, saes = sl.load_model(knobs["model"]), [sl.build("random", d_in=4, d_sae=8, k=2, seed=i) for i in range(3)]
    alike, lost, named, parts = (
        measure(saes, lm, 77)
        for measure in (studies.consistency, studies.absorption, studies.concepts, studies.splitting)
    )
    assert [alike[name]["value"] for name in results.OVER_PAIRS] == [0, 1, 2, 3]
    assert [alike[name]["chance"] for name in results.OVER_PAIRS] == pytest.approx([0, 0.1, 0.2, 0.3])
    assert (lost["absorption"]["value"], lost["parents"], lost["children"], lost["left out"]) == (
        0.3,
        2,
        3,
        {"c": "rare"},
    )
    assert {units: e["value"] for units, e in named.items()} == {"latents": 7, "random": 6}
    assert (parts["children"], parts["parents"]) == (
        {"split": {"share": 0.1, "null": 0.3}},
        {"split": {"share": 0.2, "null": 0.4}},
    )
    assert [how["tokens"] for _, how in asked] == [77] * 4 and [given[1] for given, _ in asked] == [lm] * 4
    assert [given[0] for given, _ in asked] == [saes, saes[0], saes[0], saes[:2]] and asked[3][1]["null"] == saes[1:]


def test_the_json_of_the_whole_table_is_small():
    assert len(json.dumps(by_hand().to_json(), indent=1)) < 200_000


def test_what_has_another_l0_is_shown_and_marked():
    suite = by_hand(lambda asked: 19.0 if asked.variant == "jumprelu" and asked.seed == 4 else 16.0)
    off = suite.table[~suite.table.matched]
    assert off[["variant", "d_sae"]].to_numpy().tolist() == [["jumprelu", 1024]]
    assert off.mcc.notna().all()
    assert repr(suite).count("(not matched)") == 1
    for trace in suite.figure.data:
        open_ones = [symbol == "circle-open" for symbol in trace.marker.symbol]
        assert open_ones == [trace.name == "jumprelu" and x == 1024 for x in trace.x]


def test_the_picture_has_a_panel_per_number_a_line_per_variant_and_chance():
    suite = by_hand()
    figure = suite.figure
    assert [a.text for a in figure.layout.annotations] == ["PW-MCC", "shared", "absorption", "concept F1", "FVU"]
    first = [trace for trace in figure.data if trace.xaxis == "x"]
    assert [trace.name for trace in first] == [*VARIANTS, "chance"]
    assert all(trace.showlegend for trace in first)
    assert first[0].x.tolist() == WIDTHS and first[0].error_y.array.tolist() == pytest.approx([0.1] * 3)
    assert [trace.name for trace in figure.data if trace.xaxis == "x3"] == VARIANTS
    splits = suite.splits_figure
    assert {(trace.name.endswith("null"), *set(trace.marker.symbol)) for trace in splits.data} == {
        (False, "circle"),
        (True, "circle-open"),
    }
    names = ["256 to 1,024", "256 to 1,024, null", "1,024 to 4,096", "1,024 to 4,096, null"]
    assert [trace.name for trace in splits.data if trace.xaxis == "x"] == names


def test_the_picture_of_validity_has_each_scores_mean_alone_and_beyond_density():
    alone, beyond = by_hand().validity_figure.data
    assert alone.y.tolist() == [f"score {i}" for i in reversed(range(10))]
    assert alone.x.tolist() == pytest.approx([i / 30 for i in reversed(range(10))])
    assert beyond.x.tolist() == pytest.approx([0.02] * 10)


# What else can happen


def test_a_study_that_is_added_is_made_kept_and_read_back(counted, knobs, swept, tmp_path, monkeypatch):
    monkeypatch.setitem(studies.PER_KIND, "validity", lambda saes, lm, tokens: {"peers": len(saes), "r": float("nan")})
    shutil.copytree(swept, tmp_path / "s")
    suite = sl.suite("topk", folder=tmp_path / "s", studied=7000, **knobs)
    read = Suite.read(tmp_path / "s/suite.json").found["validity"]
    assert list(read) == ["topk-k4-d24", "topk-k4-d48"]
    assert read["topk-k4-d24"] == {"saes": ["topk-k4-d24-s0", "topk-k4-d24-s1"], "peers": 2, "r": None}
    assert suite.found["validity"] == read


def test_validity_is_a_row_per_kind_and_score_and_a_picture_of_their_means(found, folder):
    rows = [
        {"score": s, "value": v, "beyond_value": v, "low": -1.0, "high": 1.0, "latents": 9}
        for s, v in (("a", 0.5), ("b", None))
    ]
    told = replace(
        found, found=found.found | {"validity": {"topk-k4-d24": {"spearman": rows}, "topk-k4-d48": {"refused": "so"}}}
    )
    assert told.validity[["d_sae", "score"]].to_numpy().tolist() == [[24, "a"], [24, "b"]]
    assert [trace.x.tolist() for trace in told.validity_figure.data] == [[0.5], [0.5]]
    told.save(folder / "told.json")
    assert Suite.read(folder / "told.json").validity.equals(told.validity)
    assert replace(found, found={}).validity.empty


def test_a_sweep_that_was_stopped_is_not_studied(counted, knobs, tmp_path):
    for step in sl.sweeps.run_sweep(Plan.of("topk", **knobs), tmp_path / "s"):
        if step.index == 2:
            Run(tmp_path / "s").control("stop")
    with pytest.raises(RuntimeError, match="has not finished"):
        list(work.run_studies(Plan.of("topk", **knobs), tmp_path / "s"))
    assert not counted


def test_an_sae_that_could_not_be_trained_is_left_out_and_said(counted, knobs, swept, tmp_path):
    shutil.copytree(swept, tmp_path / "s")
    lost = Run(tmp_path / "s/topk-k4-d24-s0")
    shutil.rmtree(lost.folder / "sae")
    (lost.folder / "eval.json").unlink()
    lost.mark("failed", error="the gradient is nan", diverged=True)
    suite = sl.suite("topk", folder=tmp_path / "s", studied=7000, **knobs)
    assert counted[0] == ("consistency", 1) and counted[-1] == ("splitting", 1, 2, 3)
    assert suite.refused == {"topk-k4-d24-s0": "the gradient is nan"}
    assert not suite.table.matched[0] and suite.table.matched[1]


def test_two_at_once_and_another_sweeps_folder_are_refused(counted, knobs, swept, tmp_path):
    shutil.copytree(swept, tmp_path / "s")
    going = work.run_studies(Plan.of("topk", **knobs), tmp_path / "s")
    next(going)
    with pytest.raises(RunInUse):
        sl.suite("topk", folder=tmp_path / "s", **knobs)
    going.close()
    with pytest.raises(ValueError, match="was made with seeds=2, not 3"):
        sl.suite("topk", folder=tmp_path / "s", **knobs | {"seeds": 3})
    with pytest.raises(KeyError, match="Did you mean 'topk'"):
        sl.suite(["topkk"], folder=tmp_path / "new", **knobs)
    assert not (tmp_path / "new").exists()


def test_a_damaged_study_or_sae_is_no_refusal(found, folder, knobs, tmp_path):
    shutil.copytree(folder / "straight", tmp_path / "s")
    study = tmp_path / f"s/studies/{STUDIED}/concepts/topk-k4-d24-s0.json"
    study.write_bytes(study.read_bytes()[:20])
    with pytest.raises(Damaged, match="cut short"):
        sl.suite("topk", folder=tmp_path / "s", studied=STUDIED, **knobs)
    study.unlink()
    weights = tmp_path / "s/topk-k4-d24-s0/sae/weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(Damaged, match=r"weights\.safetensors"):
        sl.suite("topk", folder=tmp_path / "s", studied=STUDIED, **knobs)
    assert not study.exists()


def test_within_reading_once_the_model_reads_a_text_once(folder, knobs, monkeypatch):
    lm, calls, real = sl.load_model(knobs["model"]), [], LM.read
    monkeypatch.setattr(LM, "read", lambda *a, **k: calls.append(1) or real(*a, **k))
    sae = sl.build("random", d_in=32, d_sae=24, k=4)

    def read(split="test", tokens=1000, site="L1R"):
        rows = list(reading.walk(lm, reading.held_out(lm, "world", split, 0), [sl.Site(site)], tokens, sae))
        return torch.cat([page.acts[sl.Site(site)] for page in rows])

    alone = read()
    once = len(calls)
    with reading.reading_once():
        next(reading.walk(lm, reading.held_out(lm, "world", "test", 0), [sl.Site("L1R")], 1000, sae))  # not to its end
        calls.clear()
        assert torch.equal(read(), alone) and len(calls) == once
        assert torch.equal(read(), alone) and len(calls) == once
        for other in ({"split": "validation"}, {"site": "L0R"}, {"tokens": 500}):
            calls.clear()
            assert not torch.equal(read(**other)[:400], alone[:400]) or "tokens" in other
            assert calls
        monkeypatch.setattr(reading, "SHELF", 0)
        calls.clear()
        assert len(read("train")) and len(read("train")) and len(calls) >= 2 * once
    calls.clear()
    assert torch.equal(read(), alone) and len(calls) == once


def test_more_seeds_make_no_null_without_another():
    """One seed: no pairs, no null; and the plan still says what to study."""
    plan = replace(Plan.of("topk", **KNOBS), seeds=1)
    assert [(s.name, len(s.saes)) for s in listed(plan.saes)][-1] == ("splitting/topk-k4-d24-s0-in-topk-k4-d48-s1", 2)
    *_, last = listed(replace(plan, seeds=2).saes)
    assert [a.name for a in last.saes] == ["topk-k4-d24-s1", "topk-k4-d48-s3", "topk-k4-d48-s2"]
