"""Metrics: what they say of known cases, and that streaming changes nothing."""

import torch

from sae_lab import metrics
from sae_lab.metrics import Tally
from sae_lab.sparse import Latents, Support

RNG = torch.Generator().manual_seed(0)
X = torch.randn(60, 5, generator=RNG) + 3
X_HAT = X + 0.3 * torch.randn(60, 5, generator=RNG)
MASK = torch.rand(60, 9, generator=RNG) < 0.3
MASK[:, 4] = False
Z = Latents(torch.ones(int(MASK.sum())), Support.where(MASK))
DOC = torch.arange(60) // 7 * 1_000_003


def latents(rows):
    return Latents(torch.ones(int(MASK[rows].sum())), Support.where(MASK[rows]))


def streamed(*bounds):
    tally = Tally()
    for rows in map(slice, bounds, bounds[1:]):
        tally.add(X_HAT[rows], X[rows], latents(rows), DOC[rows])
    return tally


def test_fvu_is_0_for_the_identity_and_1_for_the_mean():
    assert metrics.fvu(X, X) == 0
    assert abs(metrics.fvu(X.mean(0).expand_as(X), X) - 1) < 1e-12


def test_fvu_cosine_and_bias_follow_their_definitions():
    x, y = X.double(), X_HAT.double()
    assert abs(metrics.fvu(X_HAT, X) - ((x - y) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()) < 1e-12
    assert abs(metrics.cosine(X_HAT, X) - torch.cosine_similarity(x, y).mean()) < 1e-12
    assert abs(metrics.bias(0.5 * X, X) - 0.5) < 1e-12


def test_streaming_changes_nothing():
    for tally in (streamed(0, 60), streamed(0, 1, 13, 14, 60)):
        assert abs(tally.fvu - metrics.fvu(X_HAT, X)) < 1e-12
        assert abs(tally.cosine - metrics.cosine(X_HAT, X)) < 1e-12
        assert abs(tally.bias - metrics.bias(X_HAT, X)) < 1e-12
        assert abs(tally.l0 - MASK.sum(1).double().mean()) < 1e-12
        assert torch.equal(tally.density, MASK.double().mean(0)) and torch.equal(tally.density, metrics.density(Z))


def test_dead_latents_are_those_that_never_fire():
    assert streamed(0, 20, 60).dead.tolist() == [i == 4 for i in range(9)]


def test_sums_are_kept_per_document_even_when_a_document_is_cut_by_a_batch():
    sums = streamed(0, 3, 31, 60).documents
    assert sums.tokens.tolist() == [7] * 8 + [4]
    error = (X_HAT.double() - X.double()).square().sum(1)
    spread = (X.double() - X.double().mean(0)).square().sum(1)
    for i in range(9):
        at = slice(7 * i, 7 * i + 7)
        assert abs(sums.error[i] - error[at].sum()) < 1e-10
        assert abs(sums.spread[i] - spread[at].sum()) < 1e-10
        assert sums.l0[i] == MASK[at].sum()


def test_sums_are_float64():
    """A million tokens far from the origin: float32 sums would lose the variance."""
    x = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(1)) + 1000
    tally = Tally()
    for _ in range(50):
        tally.add(x + 1, x, Latents(torch.ones(20_000), Support.rows(torch.zeros(20_000, 1, dtype=torch.long), 3)))
    assert abs(tally.fvu / metrics.fvu(x + 1, x) - 1) < 1e-6


def test_a_stored_zero_does_not_fire():
    z = Latents(torch.tensor([0.0, 2.0]), Support(torch.tensor([0, 1]).int(), torch.tensor([0, 1, 2]), 3))
    assert metrics.density(z).tolist() == [0, 0.5, 0] and z.l0 == 0.5 and z.fired.tolist() == [False, True, False]
