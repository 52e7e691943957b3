"""Validity: true concepts against counting, ranks against scipy, and what is told of too few latents."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from loopback import serving
from scipy.stats import spearmanr
from small import identity, small_llama

import sae_lab as sl
from sae_lab.cli import main
from sae_lab.matching import mcc
from sae_lab.validity import TRUTH, _truth

ASKED = {"site": "L1R", "tokens": 5000, "n": 10, "context": 128, "scorers": ["detection", "logistic"]}


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return small_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def sae():
    return identity(over=1.5)


@pytest.fixture(scope="module")
def found(sae, lm):
    return sl.validate(sae, lm, [other(sae, seed) for seed in (1, 2)], **ASKED)


def other(sae, seed):
    made, rng = identity(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        made.W_dec.add_(0.3 * torch.randn(made.W_dec.shape, generator=rng))
    return made


def test_a_latents_truth_is_the_f1_on_one_text_of_the_concept_it_names_best_on_the_other(sae, lm):
    learnt, held = sl.explain(sae, lm, **ASKED).readings
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
    assert json.loads(json.dumps(found.to_json()))["about"]["peers"] == 2
    assert len(found.figure.data[0].y) == len(table) and "Spearman" in repr(found)


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
    for row in found.latents.itertuples():
        assert found.latents.loc[row.Index, "match over seeds"] == pytest.approx(
            np.mean([m[row.latent] for m in matched])
        )


def test_a_score_of_few_latents_is_no_number(found):
    few = sl.validity.Validity(found.latents.head(9), found.about)
    assert np.isnan(few.spearman("detection").value) and few.to_json()["spearman"][0]["value"] is None
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
