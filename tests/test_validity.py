"""Validity: true concepts against counting, ranks against scipy, and what is told of too few latents."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from loopback import serving
from scipy.stats import spearmanr
from small import identity, small_llama

import sae_lab as sl
from sae_lab.cli import main
from sae_lab.matching import mcc, shared
from sae_lab.validity import TRUTH, _truth

ASKED = {"site": "L1R", "tokens": 5000, "n": 10, "context": 128, "scorers": ["detection", "logistic"]}


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return small_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def sae():
    return identity(over=50.0, silent=[2, 11])  # the others fire on some of the tokens, in some of the windows


@pytest.fixture(scope="module")
def said(sae, lm):
    return sl.explain(sae, lm, **ASKED)


@pytest.fixture(scope="module")
def found(sae, lm):
    return sl.validate(sae, lm, [other(sae, seed) for seed in (1, 2)], **ASKED)


def other(sae, seed):
    made, rng = identity(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in (made.W_enc, made.W_dec):
            weight.copy_(weight.roll(5, 0))  # a latent has another number there
        made.W_dec.add_(0.17 * torch.randn(made.W_dec.shape, generator=rng))
    return made


def test_a_latents_truth_is_the_f1_on_one_text_of_the_concept_it_names_best_on_the_other(said):
    learnt, held = said.readings
    rows = np.array([0, 5, 40])
    told = _truth(learnt, held, rows)
    often = [np.diff(r.labels.indptr) for r in (learnt, held)]
    usual = np.flatnonzero(np.min(often, 0) >= 50)
    for latent, concept, f1 in zip(rows, told["concept"], told[TRUTH]):
        z, z_held = (r.acts[:, [latent]].toarray()[:, 0] for r in (learnt, held))
        best = {c: max(cuts(z, learnt.labels[:, [c]].toarray()[:, 0])) for c in usual}
        mine = held.names.index(concept)
        assert best[mine][0] == max(best.values())[0]
        y, on = held.labels[:, [mine]].toarray()[:, 0], z_held >= best[mine][1]
        assert f1 == pytest.approx(2 * (on & y).sum() / (on.sum() + y.sum()))


def cuts(z, y):
    """(F1, threshold) of every threshold."""
    order = np.argsort(-z, kind="stable")[: (z > 0).sum()]
    f1 = 2 * np.cumsum(y[order]) / (np.arange(1, len(order) + 1) + y.sum())
    return zip(f1.tolist(), z[order].tolist())


def test_every_score_is_ranked_against_the_truth_as_scipy_does(found):
    table = found.table
    assert set(found.scores) >= {"detection", "logistic", "match over seeds", "shared by seeds", "density"}
    for row in table.itertuples():
        both = found.latents[[row.score, TRUTH]].dropna()
        assert row.latents == len(both)
        if len(both) >= 10 and both[row.score].nunique() > 1:
            assert row.value == pytest.approx(spearmanr(*both.to_numpy().T).statistic)
            assert row.low <= row.value <= row.high
    assert table.value.dropna().is_monotonic_decreasing
    assert json.loads(json.dumps(found.to_json()))["about"]["peers"] == 2
    alone, beyond = found.figure.data
    shown = {"alone": dict(zip(alone.y, alone.x)), "beyond": dict(zip(beyond.y, beyond.x))}
    row = table.set_index("score").loc["detection"]
    assert (shown["alone"]["detection"], shown["beyond"]["detection"]) == (row.value, row.beyond_value)
    assert len(alone.y) == len(table) and "Spearman" in repr(found)


def test_scores_and_densities_are_those_of_the_latent_that_they_stand_beside(found, said):
    held = said.readings[1]
    numbers, fired = said.numbers.set_index("latent"), (held.acts.toarray() > 0).mean(0)
    for row in found.latents.itertuples():
        assert (row.detection, row.logistic) == (numbers.detection[row.latent], numbers.logistic[row.latent])
        assert row.density == pytest.approx(fired[row.latent])
    assert found.latents.density.nunique() > 10


def test_absorption_is_the_mean_rate_of_a_latents_children_and_unknown_of_others(found, sae, lm, monkeypatch):
    two = found.latents.latent[1]
    rates = pd.DataFrame({"latent": [two, two, 63], "absorbed": [0.5, 0.25, 1.0]})
    monkeypatch.setattr(sl.validity, "absorbed", lambda *a, **k: SimpleNamespace(table=rates))
    latents = sl.validate(sae, lm, latents=found.latents.latent[:3], **ASKED).latents
    assert latents.absorbed.tolist()[1] == 0.375 and latents.absorbed.isna().tolist() == [True, False, True]


def test_beyond_density_is_the_partial_correlation_of_the_ranks():
    from scipy.stats import rankdata

    rng = np.random.default_rng(0)
    density = rng.random(60)
    score, truth = density + 0.3 * rng.random(60), density + 0.3 * rng.random(60)
    a, b, c = map(rankdata, (score, truth, density))
    a, b = (r - np.polyval(np.polyfit(c, r, 1), c) for r in (a, b))
    frame = pd.DataFrame({"latent": 0, "concept": "", TRUTH: truth, "density": density, "detection": score})
    told = sl.validity.Validity(frame, {"site": "L1R"})
    assert told.spearman("detection", "density").value == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert told.spearman("detection").value > 0.8
    assert told.table.set_index("score").loc["detection", "beyond_value"] == pytest.approx(np.corrcoef(a, b)[0, 1])


def test_consistency_is_the_mean_cosine_of_the_matches(found, sae):
    matched = []
    for seed in (1, 2):
        pairs = mcc(sae.W_dec, other(sae, seed).W_dec)[1]
        matched.append(dict(zip(pairs.a.tolist(), pairs.cosine.tolist())))
    has = np.mean([shared(sae, other(sae, seed)).numpy() for seed in (1, 2)], 0)
    for _, row in found.latents.iterrows():
        assert row["match over seeds"] == pytest.approx(np.mean([m[row.latent] for m in matched]))
        assert row["shared by seeds"] == has[row.latent]
    assert set(found.latents["shared by seeds"]) == {0.0, 0.5, 1.0}


def test_a_score_of_few_latents_is_no_number(found):
    few = sl.validity.Validity(found.latents.head(9), found.about)
    assert np.isnan(few.spearman("detection").value) and few.to_json()["spearman"][0]["value"] is None
    assert np.isfinite(sl.validity.Validity(found.latents.head(10), found.about).spearman("detection").value)
    with pytest.raises(KeyError, match="No score 'detecting'"):
        few.spearman("detecting")


def test_what_cannot_be_validated_is_told(sae, lm):
    with pytest.raises(ValueError, match="give more tokens"):
        sl.validate(sae, lm, latents=[1, 2], **ASKED)
    with pytest.raises(ValueError, match="give seeds of one shape"):
        sl.validate(sae, lm, [identity(16)], **ASKED)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    lm, folder = sl.load_model("tiny"), tmp_path_factory.mktemp("runs") / "first"
    source = sl.activations(lm, "L1R", context=64)
    made = sl.build("topk", d_in=lm.d_model, d_sae=48, k=4)
    list(sl.train(made, source, tokens=2048, batch=512, run=folder, about={"model": "tiny"}))
    return str(folder)


def test_the_command_line_explains_and_validates(run, capsys):
    short = ["--tokens", "3000", "--json"]
    assert main(["explain", run, "--latents", "0", "1", "2", "3", "4", "5", "--scorers", "detection", *short]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["latents"][0]["explanation"]["by"] == "rule"
    with serving(lambda body: "1" if "one digit" in body["messages"][0]["content"] else "a word") as server:
        asks = ["--explainer", "endpoint", "--endpoint", server.url, "--asks", "m", "--scorers", "detection"]
        assert main(["explain", run, "--latents", str(told["latents"][0]["latent"]), *asks, *short]) == 0
    assert json.loads(capsys.readouterr().out)["latents"][0]["explanation"]["text"] == "a word"
    assert main(["explain", run, "--explainer", "endpoint"]) == 2 and "Nobody to ask" in capsys.readouterr().err
    assert main(["validity", run, "--peers", run, *short]) == 0
    assert json.loads(capsys.readouterr().out)["about"]["peers"] == 1
