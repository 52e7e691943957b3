"""Bootstrap over documents, against cases whose answer is known."""

import numpy as np
import pytest
from scipy import stats

from sae_lab.intervals import DocSums, Estimate, draws, interval, rank_correlation


def ratio(s):
    return s["a"] / s["n"]


def sums(docs=200, per=50, spread=1.0, seed=0):
    rng = np.random.default_rng(seed)
    level = spread * rng.normal(size=docs)
    out = DocSums()
    for half in np.array_split(np.arange(docs), 2):
        doc = np.repeat(half, per)
        out.add(doc, a=level[doc] + 0.01 * rng.normal(size=len(doc)), n=np.ones(len(doc)))
    return out, level


def test_the_value_is_the_plain_ratio():
    out, level = sums()
    assert out.estimate(ratio).value == pytest.approx(level.mean(), abs=0.002)


def test_the_interval_knows_that_tokens_of_a_document_agree():
    """With all variance between documents the half-width is 1.96 / sqrt(documents), not / sqrt(tokens)."""
    e = sums()[0].estimate(ratio)
    assert (e.high - e.low) / 2 == pytest.approx(1.96 / np.sqrt(200), rel=0.15)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    hits = [e.low <= 0 <= e.high for e in (sums(60, 3, seed=s)[0].estimate(ratio, 300) for s in range(100))]
    assert 86 <= sum(hits) <= 100


def test_the_first_draw_is_the_sample_itself():
    w = draws(7, 20)
    assert w[0].tolist() == [1.0] * 7
    assert (w[1:].sum(1) == 7).all()


def test_an_interval_always_holds_its_value():
    e = interval(np.array([5.0, 1.0, 1.1, 1.2]))
    assert e.low <= e.value <= e.high


def test_a_share_has_wilsons_interval():
    e = Estimate.share(8, 10)
    assert (e.low, e.high) == (pytest.approx(0.490, abs=1e-3), pytest.approx(0.943, abs=1e-3))
    assert Estimate.share(0, 64).low == 0
    with pytest.raises(ValueError, match="at least one"):
        Estimate.share(0, 0)


def test_a_mean_has_students_interval_and_its_jackknife_is_the_same():
    values = np.array([1.0, 2.0, 4.0, 4.5])
    low, high = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
    e, without = Estimate.mean(values.tolist()), [np.delete(values, i).mean().item() for i in range(4)]
    assert (e.low, e.high) == pytest.approx((low, high))
    assert (Estimate.jackknife(float(values.mean()), without).low, e.value) == pytest.approx((low, values.mean()))
    assert np.isnan([Estimate.mean([1.0]).low, Estimate.jackknife(1.0, [1.0, 2.0]).low]).all()


def test_a_partial_rank_correlation_is_one_of_what_is_left_of_both():
    """y is x in other units but for a third number, which has most of the variance and of which y has the opposite."""
    rng = np.random.default_rng(0)
    own, common = rng.normal(size=(2, 400))
    x, y = own + 3 * common, own - 3 * common
    alone, beyond = rank_correlation(x, y), rank_correlation(x, y, common)
    assert alone.value < -0.7 and 0.6 < beyond.value < 1
    ranks = [stats.rankdata(v) for v in (x, y, common)]
    a, b = (r - np.polyval(np.polyfit(ranks[2], r, 1), ranks[2]) for r in ranks[:2])
    assert beyond.value == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert 0.005 < (beyond.high - beyond.low) / 4 < 0.03
    assert np.isnan(rank_correlation(x, y, np.ones(400)).value)


def test_vectors_are_summed_per_document():
    out = DocSums()
    out.add(np.array([0, 0, 1, 2]), v=np.arange(8.0).reshape(4, 2))
    assert out.sums["v"][:3].tolist() == [[2, 4], [4, 5], [6, 7]]
