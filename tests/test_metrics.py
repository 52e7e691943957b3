"""Metrics: what they say of known cases."""

import torch

from sae_lab import metrics
from sae_lab.sparse import Latents, Support

RNG = torch.Generator().manual_seed(0)
X = torch.randn(60, 5, generator=RNG) + 3
X_HAT = X + 0.3 * torch.randn(60, 5, generator=RNG)
MASK = torch.rand(60, 9, generator=RNG) < 0.3
MASK[:, 4] = False
Z = Latents(torch.ones(int(MASK.sum())), Support.where(MASK))


def test_fvu_is_0_for_the_identity_and_1_for_the_mean():
    assert metrics.fvu(X, X) == 0
    assert abs(metrics.fvu(X.mean(0).expand_as(X), X) - 1) < 1e-12


def test_fvu_cosine_and_bias_follow_their_definitions():
    x, y = X.double(), X_HAT.double()
    assert abs(metrics.fvu(X_HAT, X) - ((x - y) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()) < 1e-12
    assert abs(metrics.cosine(X_HAT, X) - torch.cosine_similarity(x, y).mean()) < 1e-12
    assert abs(metrics.bias(0.5 * X, X) - 0.5) < 1e-12


def test_density_is_the_share_of_tokens_on_which_a_latent_fires():
    assert torch.equal(metrics.density(Z), MASK.double().mean(0)) and Z.l0 == MASK.sum(1).float().mean()


def test_sums_are_float64():
    """Far from the origin float32 sums would lose the variance."""
    x = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(1)) + 1000
    expected = 2 * 20_000 / (x.double() - x.double().mean(0)).square().sum()
    assert abs(metrics.fvu(x + 1, x) / expected - 1) < 1e-3


def test_a_stored_zero_does_not_fire():
    z = Latents(torch.tensor([0.0, 2.0]), Support(torch.tensor([0, 1]).int(), torch.tensor([0, 1, 2]), 3))
    assert metrics.density(z).tolist() == [0, 0.5, 0] and z.l0 == 0.5 and z.fired.tolist() == [False, True, False]
