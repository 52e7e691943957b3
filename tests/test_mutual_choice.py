"""Mutual Choice: the law of densities, who lacks how much of it, and what is done about it."""

import pytest
import torch

from sae_lab.saes import Batch, build
from sae_lab.saes.select import share_out, zipf_density

TOK, D_IN, D_SAE, K = 64, 8, 40, 6
NONE_DEAD = torch.zeros(D_SAE, dtype=torch.bool)


def batch(seed=0, progress=0.5):
    x = torch.randn(TOK, D_IN, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Batch(x, x, NONE_DEAD, progress)


def sae(**config):
    """Latents of very different densities, biases that are not zero."""
    model = build("mutual_choice", **({"d_in": D_IN, "d_sae": D_SAE, "k": K, "k_aux": 5} | config)).double()
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        model.b_dec.copy_(torch.linspace(-0.2, 0.2, D_IN))
        model.b_enc.copy_(torch.randn(D_SAE, generator=rng) / 5)
        model.density.copy_(2 * K / D_SAE * torch.rand(D_SAE, generator=rng))
    return model


def dense_law(density, k, exponent=1.0, shift=2.7):
    """The law again, its price found by bisection."""
    rank = (density[None] > density[:, None]).sum(1).double() + 1  # densities that are all different
    low, high = 0.0, 1e9
    for _ in range(200):
        price = (low + high) / 2
        law = (price / (rank + shift) ** exponent).clamp(max=1)
        low, high = (price, high) if law.sum() < k else (low, price)
    return law


def dense(model, b, mask):
    """The objective again, densely, for a 0-1 match matrix."""
    c = model.cfg
    pre = (b.x - model.b_dec) @ model.W_enc.T + model.b_enc
    x_hat = (pre * mask).relu() @ model.W_dec + model.b_dec
    missed = (b.x - x_hat).detach()
    short = (1 - model.density / dense_law(model.density, c.k, c.zipf, c.shift)).clamp(min=0)
    helped = pre.relu() * short
    best = helped.detach().topk(c.k_aux).indices
    guess = (helped * torch.zeros_like(helped).scatter(1, best, 1.0)) @ model.W_dec
    error, spread = (guess - missed).square().sum(), (missed - missed.mean(0)).square().sum()
    return (b.x - x_hat).square().sum() / TOK, c.aux_weight * error / spread


def matches(pre, n):
    return pre >= pre.flatten().sort(descending=True).values[n - 1]


@pytest.mark.parametrize("config", [{}, {"k": 20, "zipf": 2.0}, {"zipf": 0.0}, {"shift": 0.0, "k_aux": 3}])
def test_terms_and_every_gradient_equal_dense_autograd(config):
    """With k=20 and zipf=2 the law's head is cut at one firing per token."""
    mine, theirs, b = sae(**config), sae(**config), batch()
    terms = mine.objective(b).terms
    pre = (b.x - theirs.b_dec) @ theirs.W_enc.T + theirs.b_enc
    mse, aux = dense(theirs, b, matches(pre, mine.cfg.k * TOK))
    assert aux > 0
    torch.testing.assert_close(terms["mse"], mse)
    torch.testing.assert_close(terms["aux_zipf"], aux)
    (terms["mse"] + 3 * terms["aux_zipf"]).backward()
    (mse + 3 * aux).backward()
    for (name, p), q in zip(mine.named_parameters(), theirs.parameters()):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("k", [1, 6, 30])
@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 3.0])
def test_the_law_gives_k_firings_a_token_and_no_latent_more_than_one(k, exponent):
    density = torch.rand(D_SAE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    law = zipf_density(density, k, exponent, 2.7)
    torch.testing.assert_close(law.sum().item(), float(k))
    assert law.min() > 0 and law.max() <= 1
    torch.testing.assert_close(law, dense_law(density, k, exponent), rtol=1e-6, atol=0)


def test_the_law_goes_by_rank_and_falls_as_its_formula_says():
    law = zipf_density(torch.tensor([0.1, 0.7, 0.2, 0.1]), 1, 1.0, 2.0)
    torch.testing.assert_close(law / law[1], torch.tensor([3 / 5, 3 / 3, 3 / 4, 3 / 6]))  # a tie: the lower one first


def test_what_one_may_not_take_goes_to_the_others_in_proportion():
    share = share_out(torch.tensor([6.0, 1.0, 2.0, 1.0]), torch.tensor([2.0, 0.5, 9.0, 9.0]), 5)
    torch.testing.assert_close(share, torch.tensor([2.0, 0.5, 5 / 3, 2.5 / 3], dtype=torch.float64))
    torch.testing.assert_close(share_out(torch.ones(2), torch.tensor([1.0, 2.0]), 9).tolist(), [1.0, 2.0])


def test_aux_zipf_moves_a_latent_only_if_it_fires_too_rarely():
    model = sae(k_aux=D_SAE)
    lacks = model.density < zipf_density(model.density, K, 1.0, 2.7)
    model.objective(batch()).terms["aux_zipf"].backward()
    for weight in (model.W_enc, model.W_dec):
        assert torch.equal(weight.grad.abs().sum(1) > 0, lacks) and 0 < lacks.sum() < D_SAE


def test_latents_that_follow_the_law_get_no_help():
    model = sae()
    model.density.copy_(1.01 * zipf_density(model.density, K, 1.0, 2.7))
    assert model.objective(batch()).terms["aux_zipf"] == 0


def test_density_is_the_mean_of_few_batches_and_a_moving_average_of_many():
    model, seen = sae(momentum=0.75), []
    for seed in range(6):
        seen.append((model.objective(batch(seed)).z.dense() > 0).double().mean(0))
        if seed == 3:
            torch.testing.assert_close(model.density, torch.stack(seen[:3]).mean(0), rtol=1e-6, atol=1e-8)
        model.after_step()
    fourth = torch.stack(seen[:4]).mean(0)
    torch.testing.assert_close(model.density, 0.75 * (0.75 * fourth + 0.25 * seen[4]) + 0.25 * seen[5])
    torch.testing.assert_close(model.density.sum().item(), float(K))


def test_until_the_end_a_moving_average_stands_in_for_the_threshold():
    model, least = sae(momentum=0.75), []
    for seed in range(3):
        least.append(model.objective(batch(seed)).z.value.min())
    expected = 0.75 * (0.75 * least[0] + 0.25 * least[1]) + 0.25 * least[2]
    torch.testing.assert_close(model.threshold, expected.detach())
