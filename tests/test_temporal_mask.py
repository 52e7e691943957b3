"""Adaptive temporal masking: three moving averages, an importance, a threshold, a chance, a draw."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from test_every_sae import temporal_mask_twin

from sae_lab.saes import Batch, build

TOK, D_IN, D_SAE = 30, 8, 20


def sae(seed=0, **config):
    model = build("temporal_mask", d_in=D_IN, d_sae=D_SAE, seed=seed, l1_weight=0.5, init_norm=1.0, **config).double()
    with torch.no_grad():
        model.b_enc.copy_(torch.linspace(-0.6, 0.2, D_SAE))
        model.b_dec.copy_(torch.linspace(-0.2, 0.2, D_IN))
        model.W_dec *= torch.linspace(0.5, 2, D_SAE, dtype=torch.float64)[:, None]
    return model


def batch(seed=0, progress=0.5):
    rng = torch.Generator().manual_seed(seed)
    x, target = (torch.randn(TOK, D_IN, generator=rng, dtype=torch.float64) for _ in range(2))
    return Batch(x, x + 0.3 * target, torch.zeros(D_SAE, dtype=torch.bool), progress)


def dense(model, x):
    """Latents that fire if nobody is masked."""
    return (x @ model.W_enc.T + model.b_enc).relu().detach()


def judged(importance, **config):
    """An SAE whose latents have this importance, times a constant."""
    model = sae(by_magnitude=0.0, by_contribution=0.0, **config)
    model.averages[1] = importance
    model.seen.fill_(1.0)
    return model


@pytest.mark.parametrize("progress", [0.01, 0.5])
def test_every_gradient_equals_dense_autograd_with_some_masked(progress):
    results = []
    for way in (lambda p, b: (p.objective(b).x_hat, p.objective(b).terms), temporal_mask_twin):
        model, b = sae(), batch(progress=progress)
        model.masked[::3] = True
        b.x.requires_grad_()
        x_hat, terms = way(model, b)
        sum(terms.values()).backward()
        results.append([x_hat, terms["mse"], terms["l1"], b.x.grad, *(p.grad for p in model.parameters())])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def test_a_masked_latent_neither_fires_nor_learns_and_all_others_do():
    model = sae()
    model.masked[::3] = True
    out = model.objective(batch())
    sum(out.terms.values()).backward()
    assert not out.z.fired[::3].any() and out.z.fired[1::3].all()
    for p in (model.W_enc, model.W_dec, model.b_enc):
        moved = p.grad.view(D_SAE, -1).abs().sum(1) > 0
        assert torch.equal(moved, ~model.masked)


def test_nobody_is_masked_during_the_warm_up():
    model = sae(mask_warmup=0.2)
    model.masked.fill_(True)
    assert model.objective(batch(progress=0.19)).z.fired.all()
    assert not model.objective(batch(progress=0.2)).z.fired.any()


def test_contribution_is_what_the_mse_rises_by_without_the_latent():
    """By leaving out one latent after the other; the target is another than x."""
    model, b = sae(momentum=0.0), batch()
    model.objective(b)
    z = dense(model, b.x)

    def error(z):
        return (b.target - z @ model.W_dec - model.b_dec).square().sum(-1).mean().detach()

    for latent in range(D_SAE):
        without = z.clone()
        without[:, latent] = 0
        torch.testing.assert_close(model.averages[2, latent], error(without) - error(z))


def test_the_averages_forget_exponentially_from_the_first_step_on():
    """Importance from the last batches alone, weighted momentum^age, as a plain sum over them."""
    model, steps = sae(momentum=0.8), 6
    for seed in range(steps):
        model.objective(batch(seed))
    weight = 0.8 ** torch.arange(steps - 1, -1, -1, dtype=torch.float64)
    activation, firings, rise = [], [], []
    for seed in range(steps):
        b = batch(seed)
        z = dense(model, b.x)
        missed = b.target - z @ model.W_dec.detach() - model.b_dec.detach()
        activation.append(z.sum(0))
        firings.append((z > 0).double().sum(0))
        rise.append((2 * z * (missed @ model.W_dec.detach().T) + z**2 * model.W_dec.detach().square().sum(1)).mean(0))
    a, n, c = (weight @ torch.stack(rows) for rows in (activation, firings, rise))
    magnitude, frequency, rise = a / n, n / TOK / weight.sum(), (c / weight.sum()).relu()
    expected = sum(part / part.mean() for part in (magnitude, frequency, rise)) / 3
    torch.testing.assert_close(model.importance(), expected)
    torch.testing.assert_close(model.averages[1], 0.2 * n / TOK)


def test_who_sits_out_is_not_observed_and_loses_no_standing():
    model = sae(momentum=0.5)
    model.objective(batch(0))
    before, seen = model.averages.clone(), model.seen.clone()
    model.masked[4] = True
    model.objective(batch(1))
    assert torch.equal(model.averages[:, 4], before[:, 4]) and model.seen[4] == seen[4]
    others = torch.arange(D_SAE) != 4
    assert (model.averages[:2, others] != before[:2, others]).all() and (model.seen[others] > seen[others]).all()


def test_a_latent_seen_only_early_is_not_taken_for_a_rare_one():
    """The averages start at nothing; each is read against the weight of its own observations."""
    model = sae(momentum=0.9, by_magnitude=0.0, by_contribution=0.0)
    model.objective(batch())
    first = model.importance()
    model.masked[4] = True
    for _ in range(10):
        model.objective(batch())
    torch.testing.assert_close(model.importance(), first)


def test_importance_has_no_unit():
    """Activations ten times as large make a tenfold magnitude and a hundredfold rise, and the same importance."""
    model = sae()
    model.objective(batch())
    importance = model.importance()
    model.averages *= torch.tensor([10.0, 1.0, 100.0])[:, None]
    torch.testing.assert_close(model.importance(), importance)


@pytest.mark.parametrize(("c", "r"), [(0.0, 1.0), (0.5, 1.0), (-0.5, 2.5), (2.0, 0.3)])
def test_the_chance_is_the_papers(c, r):
    shares = torch.linspace(0.02, 0.9, D_SAE, dtype=torch.float64) ** 2
    model = judged(shares, c=c, r=r)
    importance = (shares / shares.mean() / 3).tolist()  # frequency's share of importance is a third
    mean = sum(importance) / D_SAE
    theta = mean + c * math.sqrt(sum((i - mean) ** 2 for i in importance) / D_SAE)
    expected = [1 - math.exp(-r * (theta - i) / theta) if i < theta else 0.0 for i in importance]
    torch.testing.assert_close(model.mask_probability().tolist(), expected)


def test_the_chance_falls_with_importance_and_is_nothing_over_the_threshold():
    model = judged(torch.linspace(0.02, 0.9, D_SAE, dtype=torch.float64))
    p, importance = model.mask_probability(), model.importance()
    over = importance >= importance.mean()
    assert over.any() and not p[over].any()
    assert (p[~over].diff() < 0).all() and p.min() >= 0 and p.max() < 1
    assert judged(importance, r=100.0).mask_probability().max() == 0.95
    assert judged(importance, r=100.0, mask_limit=0.5).mask_probability().max() == 0.5
    assert not judged(importance, r=0.0).mask_probability().any()


@pytest.mark.parametrize("importance", [0.0, 0.4])
def test_where_all_are_alike_nobody_is_masked(importance):
    model = judged(torch.full((D_SAE,), importance).double())
    assert not (model.mask_probability() > 1e-9).any()
    assert not sae().mask_probability().any()


def test_a_mask_is_drawn_as_often_as_its_chance_says():
    model = judged(torch.linspace(0.02, 0.9, D_SAE, dtype=torch.float64))
    p, draws, masked = model.mask_probability(), 1500, torch.zeros(D_SAE)
    for _ in range(draws):
        model.after_step()
        masked += model.masked
    assert ((masked / draws - p).abs() < 4.5 * (p * (1 - p) / draws).sqrt() + 1e-9).all()


def masks(model, steps=40):
    out = []
    for _ in range(steps):
        model.after_step()
        out.append(model.masked.clone())
    return torch.stack(out)


def test_masks_hang_on_seed_and_step_and_on_no_other_draw():
    importance = torch.linspace(0.02, 0.9, D_SAE, dtype=torch.float64)
    first = masks(judged(importance))
    torch.manual_seed(3)
    assert torch.equal(first, masks(judged(importance)))
    assert not torch.equal(first, masks(judged(importance, seed=1)))
    assert len({tuple(row.tolist()) for row in first}) > 30


def test_a_saved_state_goes_on_with_the_same_masks_and_averages():
    model = judged(torch.linspace(0.02, 0.9, D_SAE, dtype=torch.float64))
    masks(model, 5)
    twin = type(model)(model.cfg).double()
    twin.load_state_dict(copy.deepcopy(model.state_dict()))
    for m in (model, twin):
        m.objective(batch())
    assert torch.equal(model.averages, twin.averages)
    assert torch.equal(masks(model), masks(twin))


def test_inference_does_not_draw_and_knows_no_mask():
    model, x = sae(), batch().x
    z = model.encode(x).dense()
    torch.testing.assert_close(z, dense(model, x))
    model.masked.fill_(True)
    assert torch.equal(z, model.encode(x).dense())


def test_inference_can_be_left_to_the_important():
    importance = torch.linspace(0.02, 0.9, D_SAE, dtype=torch.float64)
    model, x = judged(importance, inference="important"), batch().x
    keep = importance >= importance.mean()
    torch.testing.assert_close(model.encode(x).dense(), dense(model, x) * keep)
    assert (sae(inference="important").encode(x).dense() > 0).any(0).all()  # before training all are alike


def test_shares_of_importance_are_knobs():
    alone = []
    for name in ("by_magnitude", "by_frequency", "by_contribution"):
        model = sae(**({"by_magnitude": 0.0, "by_frequency": 0.0, "by_contribution": 0.0} | {name: 1.0}))
        model.objective(batch())
        alone.append(model.importance())
    model = sae()
    model.objective(replace(batch(), progress=0.9))
    torch.testing.assert_close(model.importance(), sum(alone) / 3)
    assert not torch.allclose(alone[0], alone[1]) and not torch.allclose(alone[1], alone[2])
