"""Exact matching: the sum that scipy's Hungarian reaches, and a proof that no other is higher."""

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from sae_lab import matching
from sae_lab.matching import agreed, chance_floor, mcc, nearest
from sae_lab.sparse.assignment import assign


def directions(latents, d_in, seed=0):
    rows = torch.randn(latents, d_in, generator=torch.Generator().manual_seed(seed))
    return rows / rows.norm(dim=1, keepdim=True)


def clusters(latents, d_in, noise, seed):
    """Rows around a few centres, more around some than around others: the same centres for every seed."""
    which = (len(CENTRES) * torch.rand(latents, generator=torch.Generator().manual_seed(seed)) ** (1 + seed)).long()
    rows = CENTRES[which, :d_in] + noise * directions(latents, d_in, seed + 10)
    return rows / rows.norm(dim=1, keepdim=True)


CENTRES = directions(9, 24, seed=99)
HALF_DEAD = directions(300, 24) * (torch.arange(300) % 2)[:, None]
TWINS = directions(20, 24).repeat(15, 1)
CASES = {
    "random": (directions(300, 24), directions(300, 24, 1)),
    "fewer rows": (directions(120, 24), directions(300, 24, 1)),
    "fewer columns": (directions(300, 24), directions(40, 24, 1)),
    "one row": (directions(1, 24), directions(300, 24, 1)),
    "one of each": (directions(1, 24), directions(1, 24, 1)),
    "clusters of other sizes": (clusters(300, 24, 0.3, 0), clusters(300, 24, 0.3, 1)),
    "fewer rows in clusters": (clusters(150, 24, 0.05, 0), clusters(300, 24, 0.05, 1)),
    "rows of zeros": (HALF_DEAD, HALF_DEAD.flip(0)),
    "nothing but zeros": (torch.zeros(50, 24), torch.zeros(60, 24)),
    "the same rows many times": (TWINS, clusters(300, 24, 0.0, 1)),
    "two dimensions": (directions(300, 2), directions(300, 2, 1)),
    "double precision": (directions(200, 24).double(), clusters(200, 24, 0.1, 1).double()),
}


@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
@pytest.mark.parametrize("case", CASES)
def test_no_matching_that_scipy_finds_is_better_and_the_proof_is_tight(case, signed):
    A, B = CASES[case]
    unit = [W / W.norm(dim=1, keepdim=True).clamp(min=1e-30) for W in (A, B)]
    cosine = (unit[0] @ unit[1].T).double().numpy()
    cosine = cosine if signed else np.abs(cosine)
    best = cosine[linear_sum_assignment(cosine, True)].mean()
    score, pairs = mcc(A, B, signed)
    assert score == pytest.approx(best, abs=1e-7)
    assert 0 <= pairs.slack < 1e-9
    assert len(set(pairs.b.tolist())) == len(pairs.b) == min(len(A), len(B))
    assert pairs.a.tolist() == sorted(set(pairs.a.tolist()))
    np.testing.assert_allclose(pairs.cosine, cosine[pairs.a, pairs.b], atol=1e-6)


def test_the_slack_of_a_matching_that_is_not_the_best_is_what_it_lacks_at_least(monkeypatch):
    """Prices prove nothing that is not so: with two columns exchanged, or with prices of zero, the slack is there."""
    A, B = CASES["random"]
    best = mcc(A, B)[0]

    def exchanged(gain):
        partner, price = assign(gain)
        partner[[0, 1]] = partner[[1, 0]]
        return partner, price

    monkeypatch.setattr(matching, "assign", exchanged)
    worse, found = mcc(A, B)
    assert found.slack == pytest.approx(best - worse, abs=1e-9) and best - worse > 1e-4
    monkeypatch.setattr(matching, "assign", lambda gain: (assign(gain)[0], np.zeros(gain.shape[1])))
    score, found = mcc(A, B)
    assert score == best
    assert found.slack == pytest.approx((A @ B.T).amax(1).double().mean().item() - best, abs=1e-6)


def test_columns_left_over_cost_nothing():
    """Else the proof would not hold where one dictionary is wider."""
    gain = (CASES["fewer rows in clusters"][0] @ CASES["fewer rows in clusters"][1].T).numpy()
    partner, price = assign(gain)
    left = np.setdiff1d(np.arange(300), partner)
    assert price.min() == 0 == np.abs(price[left]).max() and price.max() > 0


def test_pairs_seen_from_the_other_side_are_the_same_pairs():
    A, B = CASES["fewer rows"]
    there, back = mcc(A, B)[1], mcc(B, A)[1].swapped
    assert torch.equal(there.a, back.a) and torch.equal(there.b, back.b)
    assert torch.equal(there.cosine, back.cosine)
    once = there.swapped
    assert torch.equal(once.a, there.b.sort().values)
    assert dict(zip(once.b.tolist(), once.a.tolist())) == dict(zip(there.a.tolist(), there.b.tolist()))


def test_the_nearest_is_the_largest_cosine_of_each_row_whatever_the_chunks(monkeypatch):
    A, B = directions(50, 12), directions(70, 12, 1)
    monkeypatch.setattr(matching, "ROWS", 16)
    for signed, cosine in ((True, A @ B.T), (False, (A @ B.T).abs())):
        found = nearest(A, B, signed)
        assert torch.equal(found.b, cosine.argmax(1)) and torch.equal(found.a, torch.arange(50))
        torch.testing.assert_close(found.cosine.float(), cosine.amax(1))
        assert np.isnan(found.slack)


def test_agreed_pairs_are_those_of_both_matchings_over_the_threshold_in_both():
    def pairs(b, cosine):
        return matching.Pairs(torch.arange(5), torch.tensor(b), torch.tensor(cosine).double())

    encoder = pairs([0, 1, 2, 4, 3], [0.9, 0.6, 0.9, 0.9, 0.9])
    decoder = pairs([0, 1, 2, 3, 4], [0.8, 0.8, 0.71, 0.9, 0.9])
    found = agreed(encoder, decoder, 0.7)
    assert found.a.tolist() == found.b.tolist() == [0, 2]
    assert found.cosine.tolist() == pytest.approx([0.8, 0.71])
    assert agreed(encoder, decoder, 0.75).a.tolist() == [0]
    assert len(agreed(encoder, decoder, 0.95).a) == 0


def test_a_narrow_dictionary_finds_more_by_chance_in_a_wide_one(monkeypatch):
    def drawn(few, many):
        return mcc(directions(few, 16, 5), directions(many, 16, 6))[0]

    assert chance_floor(16, 32, wider=512) == pytest.approx(drawn(32, 512), abs=0.03)
    assert chance_floor(16, 512, wider=32) == chance_floor(16, 32, wider=512) > chance_floor(16, 32) + 0.1
    straight = chance_floor(24, 128, wider=1024)
    chance_floor.cache_clear()
    monkeypatch.setattr(matching, "DRAWN", 256)
    assert straight != chance_floor(24, 128, wider=1024) == pytest.approx(straight, abs=0.01)
    chance_floor.cache_clear()
