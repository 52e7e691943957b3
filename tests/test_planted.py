"""Planted dictionaries: the data are what they say, and TopK finds their features better than an L1 penalty does."""

import pytest
import torch
from bench_planted import SHAPE, fit, measured

from sae_lab.matching import chance_floor, mcc
from sae_lab.saes import build
from sae_lab.toys import Planted


@pytest.mark.parametrize("seed", [0, 3])
def test_no_sae_starts_from_the_true_features_whatever_its_seed(seed):
    """It did, where both seeds were alike: the first weights were drawn as the dictionary was."""
    true = Planted(**SHAPE, seed=seed).dictionary
    for other in (seed, seed + 1):
        start = build("topk", d_in=16, d_sae=32, k=3, seed=other)
        assert mcc(start.W_dec, true)[0] < chance_floor(16, 32) + 0.1


def test_activations_are_sparse_sums_of_unit_directions():
    source = Planted(**SHAPE)
    x, codes = source.rows(1000, 3000)
    torch.testing.assert_close(x, codes @ source.dictionary)
    torch.testing.assert_close(source.dictionary.norm(dim=1), torch.ones(32))
    assert ((codes > 0).sum(1) == 3).all()
    assert (codes > 0).double().mean(0).sub(3 / 32).abs().max() < 0.03
    assert abs(codes[codes > 0].square().mean() - 1) < 0.05  # |N(0, 1)|


def test_rows_are_the_same_however_they_are_asked_for():
    source, again = Planted(**SHAPE), Planted(**SHAPE)
    parts = torch.cat([source.next(n)["L0R"].x for n in (700, 1, 999)])
    assert torch.equal(parts, again.rows(0, 1700)[0])
    assert not torch.equal(Planted(**SHAPE, stream=1).rows(0, 1700)[0], parts)


def test_frequencies_follow_the_law_that_was_asked_for():
    often = (Planted(**SHAPE, zipf=1.0).rows(0, 20_000)[1] > 0).double().mean(0)
    assert often[0] > 3 * often[8] > 3 * often[31] > 0


def test_a_child_never_comes_without_its_parent():
    codes = Planted(**SHAPE, hierarchical=True).rows(0, 3000)[1]
    child, parent = codes[:, 1::2] > 0, codes[:, ::2] > 0
    assert child.any() and (parent | ~child).all() and (parent & ~child).any()


@pytest.fixture(scope="module")
def found():
    """GT-MCC and the rest after 250 quick steps of 1,024 tokens; `bench_planted.py` takes the reference's 4,000."""
    return {
        name: measured(*fit(f"reference {name}", seeds=2, steps=250, lr=1e-2), tokens=20_000)
        for name in ("topk", "relu")
    }


def test_topk_finds_the_true_features_and_finds_them_again(found):
    """As measured elsewhere: GT-MCC 0.94, PW-MCC 0.90, at FVU 0.08; one seed there began at the true features."""
    assert found["topk"]["GT-MCC"] > 0.85 and found["topk"]["PW-MCC"] > 0.8
    assert found["topk"]["FVU"] < 0.1 and found["topk"]["dead"] < 0.05
    assert found["topk"]["L0"] == pytest.approx(3, abs=0.01)


def test_a_cheap_l1_penalty_explains_more_and_finds_less(found):
    """Low FVU is not recovered features: it is bought with five times as many latents."""
    topk, relu = found["topk"], found["relu"]
    assert relu["FVU"] < 0.5 * topk["FVU"] and 12 < relu["L0"] < 17
    assert relu["GT-MCC"] < topk["GT-MCC"] - 0.1 and relu["PW-MCC"] < topk["PW-MCC"] - 0.1
    assert relu["GT-MCC"] > chance_floor(16, 32) + 0.1 and relu["PW-MCC"] > chance_floor(16, 32) + 0.1
