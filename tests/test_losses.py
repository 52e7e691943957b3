"""Loss terms that every variant shares, where arithmetic is easily lost."""

import pytest
import torch

from sae_lab.saes.losses import energy, power


def test_power_is_the_distance_from_the_mean_however_far_that_is():
    x = torch.randn(500, 32, generator=torch.Generator().manual_seed(0)) * 0.1
    exact = x.double().var(0, correction=0).sum()
    for far in (0.0, 100.0, 10_000.0):
        moved = x + far * torch.linspace(-1, 1, 32)
        assert power(moved).item() == pytest.approx(exact.item(), rel=0.01 if far > 1000 else 1e-4)


def test_energy_and_its_gradient_are_the_mean_squares():
    x = torch.randn(50, 7, dtype=torch.float64, requires_grad=True)
    (3 * energy(x)).backward()
    torch.testing.assert_close(energy(x), x.square().sum(1).mean())
    torch.testing.assert_close(x.grad, 6 * x.detach() / 50)
    assert energy(torch.empty(0, 7)).isnan()  # as the mean over nothing is
