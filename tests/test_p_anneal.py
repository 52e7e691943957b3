"""p-annealing: when p falls, and that the penalty does not jump when it does."""

import pytest
import torch

from sae_lab.saes import Batch, build
from sae_lab.sparse import Adam
from sae_lab.toys import Planted

D_IN, D_SAE = 8, 48


def sae(**config):
    model = build("p_anneal", d_in=D_IN, d_sae=D_SAE, **config).double()
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        model.b_dec.copy_(torch.linspace(-0.2, 0.2, D_IN))
        model.b_enc.copy_(torch.randn(D_SAE, generator=rng, dtype=torch.float64) / 5)
    return model


def batch(progress, seed=0, tok=40):
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(tok, D_IN, generator=rng, dtype=torch.float64)
    target = x + 0.1 * torch.randn(x.shape, generator=rng, dtype=torch.float64)
    return Batch(x.requires_grad_(), target, torch.zeros(D_SAE, dtype=torch.bool), progress)


def dense(model, b):
    return ((b.x - model.b_dec) @ model.W_enc.T + model.b_enc).relu()


def powers(model, b, p):
    """Sum of z^p over the batch's latents, averaged over tokens."""
    z = dense(model, b)
    return (z[z > 0] ** p).sum() / len(z)


def walk(model, points):
    """The penalty at each (progress, seed); the weights stay."""
    return [model.objective(batch(*point)).terms["lpp"].item() for point in points]


def test_p_falls_from_one_to_its_end_in_equal_steps_at_equal_shares():
    model, seen = sae(p_end=0.2, anneal_start=0.2, updates=4), []
    for progress in (0.0, 0.19, 0.2, 0.39, 0.41, 0.61, 0.79, 0.81, 0.99, 1.0):
        model.objective(batch(progress))
        seen.append(round(model.p(int(model.updated)), 6))
    assert seen == [1, 1, 0.8, 0.8, 0.6, 0.4, 0.4, 0.2, 0.2, 0.2]


def test_values_and_gradients_equal_dense_autograd():
    """After two falls, with the price that six batches made of it."""
    points = [(0.05, 0), (0.07, 1), (0.09, 2), (0.12, 3), (0.15, 4), (0.35, 5)]
    results = []
    for mine in (True, False):
        model, b = sae(p_end=0.4, anneal_start=0.1, updates=3, l1_weight=2.0), batch(0.38, 6)
        if mine:
            walk(model, points)
            out = model.objective(b)
            x_hat, terms = out.x_hat, out.terms
            assert int(model.updated) == 1
        else:
            with torch.no_grad():
                old = [batch(*point) for point in points[:4]]
                balance = sum(powers(model, o, 1.0) for o in old) / sum(powers(model, o, 0.8) for o in old)
            z = dense(model, b)
            x_hat = z @ model.W_dec + model.b_dec
            error = (x_hat - b.target).square().sum(1).mean()
            terms = {"mse": error, "lpp": 2.0 * balance * powers(model, b, 0.8)}
        sum(terms.values()).backward()
        results.append((x_hat, terms["mse"], terms["lpp"], b.x.grad, *(p.grad for p in model.parameters())))
    for a, c in zip(*results, strict=True):
        torch.testing.assert_close(a, c, rtol=1e-10, atol=1e-12)


def test_the_price_is_rebalanced_on_the_last_batches_and_no_others():
    model = sae(p_end=0.5, anneal_start=0.5, updates=1, queue=3)
    walk(model, [(0.40 + seed / 100, seed) for seed in range(8)])
    assert model.balance == 1
    walk(model, [(0.5, 8)])
    last = [batch(0.5, seed) for seed in (6, 7, 8)]
    want = sum(powers(model, b, 1.0) for b in last) / sum(powers(model, b, 0.5) for b in last)
    torch.testing.assert_close(model.balance.double(), want.detach(), rtol=1e-6, atol=0)


def test_the_penalty_does_not_jump_when_p_falls():
    """On one batch again and again it stays what it was, though z^p alone does not."""
    model = sae(p_end=0.2, updates=8)
    penalties = walk(model, [(progress / 100, 0) for progress in range(5, 101)])
    assert max(penalties) / min(penalties) < 1 + 1e-6
    assert int(model.updated) == 8 and abs(powers(model, batch(1.0), 0.2) / powers(model, batch(1.0), 1.0) - 1) > 0.05


def test_a_run_too_short_for_every_fall_is_rebalanced_all_the_same():
    slow, fast = sae(updates=10), sae(updates=10)
    a = walk(slow, [(progress / 100, 0) for progress in range(5, 101)])[-1]
    c = walk(fast, [(0.05, 1), (0.09, 1), (1.0, 0)])[-1]
    assert abs(a / c - 1) < 1e-6


def test_a_resumed_run_goes_on_with_the_same_price():
    """p, price and queue lie in the state_dict."""
    points = [(step / 40, step) for step in range(40)]
    whole, half = sae(updates=5), sae(updates=5)
    want = walk(whole, points)
    walk(half, points[:23])
    later = sae(updates=5)
    later.load_state_dict(half.state_dict())
    assert walk(later, points[23:]) == want[23:]


def test_nothing_firing_leaves_the_price_finite():
    model = sae(updates=2)
    with torch.no_grad():
        model.b_enc.fill_(-1e3)
    assert walk(model, [(0.05, 0), (0.2, 0), (0.9, 0)]) == [0, 0, 0] and model.balance == 1


def test_p_that_ends_at_one_is_an_l1_penalty_for_good():
    model = sae(p_end=1.0, l1_weight=3.0)
    for point in [(0.05, 0), (0.5, 1), (1.0, 2)]:
        (got,) = walk(model, [point])
        assert got == pytest.approx(3.0 * powers(model, batch(*point), 1.0).item(), rel=1e-6)


def test_annealing_reconstructs_better_with_fewer_latents_than_l1():
    """What the paper claims of it, on one stream and with one price."""
    l0, fvu = {}, {}
    for p_end in (0.2, 1.0):
        source = Planted(d_in=16, features=32, k=3)
        model = build("p_anneal", d_in=16, d_sae=32, l1_weight=1.0, p_end=p_end, choose_in="float32")
        adam = Adam(model.named_parameters(), lr=3e-3, unit=["W_dec"])
        for step in range(400):
            x = source.next(256)["L0R"].x * 2
            sum(model.objective(Batch(x, x, torch.zeros(32, dtype=torch.bool), step / 399)).terms.values()).backward()
            adam.step()
            adam.zero_grad()
        x = source.next(4096)["L0R"].x * 2
        l0[p_end] = float(model.encode(x).l0)
        fvu[p_end] = ((model(x) - x).square().sum() / (x - x.mean(0)).square().sum()).item()
    assert l0[0.2] < 0.9 * l0[1.0] and fvu[0.2] < 0.95 * fvu[1.0]
