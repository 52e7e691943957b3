"""Matryoshka: every prefix reconstructs on its own, and so does the bias."""

import pytest
import torch

from sae_lab.saes import Batch, build
from sae_lab.sparse import Adam
from sae_lab.toys import Planted

D_IN, D_SAE, K = 8, 64, 5
ENDS = [4, 8, 16, 32, 64]  # the groups of the paper: 1/16, 1/16, 1/8, 1/4, 1/2


def sae(**config):
    model = build("matryoshka", d_in=D_IN, d_sae=D_SAE, k=K, k_aux=6, **config).double()
    with torch.no_grad():
        model.b_dec.copy_(torch.linspace(-0.2, 0.2, D_IN))
    return model


def batch(tok=50, seed=0):
    x = torch.randn(tok, D_IN, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    target = x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    return Batch(x.requires_grad_(), target, torch.arange(D_SAE) < 9)


def square(error):
    return error.square().sum(1).mean()


def prefixes(model, b):
    """Dense latents and the reconstruction of each prefix, the empty one first."""
    pre = (b.x - model.b_dec) @ model.W_enc.T + (0 if model.b_enc is None else model.b_enc)
    z = (pre * (pre >= pre.ravel().topk(K * len(b.x)).values[-1])).relu()
    return pre, z, [z[:, :end] @ model.W_dec[:end] + model.b_dec for end in [0, *ENDS]]


def test_prefixes_end_where_the_papers_groups_do():
    cfg = build("matryoshka", d_in=8, d_sae=36_864).cfg
    groups = torch.tensor([0, *cfg.bounds]).diff() / 36_864
    assert groups.tolist() == [1 / 16, 1 / 16, 1 / 8, 1 / 4, 1 / 2]
    assert sae(levels=1).cfg.bounds == [D_SAE]


@pytest.mark.parametrize("bias_level", [True, False])
@pytest.mark.parametrize("encoder_bias", [True, False])
def test_values_and_gradients_equal_dense_autograd(bias_level, encoder_bias):
    def theirs(model, b):
        pre, _, x_hats = prefixes(model, b)
        errors = [square(x_hat - b.target) for x_hat in (x_hats if bias_level else x_hats[1:])]
        top = pre[:, :9].topk(6)
        dead = torch.zeros_like(pre[:, :9]).scatter(1, top.indices, top.values.relu())
        aux = square(dead @ model.W_dec[:9] - (b.target - x_hats[-1]).detach()) / 32
        return x_hats[-1], sum(errors) / len(errors), aux

    def mine(model, b):
        out = model.objective(b)
        return out.x_hat, out.terms["mse"], out.terms["auxk"]

    results = []
    for way in (mine, theirs):
        model, b = sae(bias_level=bias_level, encoder_bias=encoder_bias), batch()
        if encoder_bias:
            model.b_enc.data.copy_(torch.linspace(-0.3, 0.3, D_SAE))
        x_hat, error, aux = way(model, b)
        (error + aux + (x_hat * b.target).sum()).backward()
        results.append((x_hat, error, aux, b.x.grad, *(p.grad for p in model.parameters())))
    for a, c in zip(*results, strict=True):
        torch.testing.assert_close(a, c, rtol=1e-10, atol=1e-12)


def test_a_level_is_what_remains_when_later_latents_are_silenced():
    model = sae()
    z = model.objective(batch()).z
    levels = model.levels(z, batch().x)
    assert torch.equal(levels[0], model.b_dec.expand(50, -1))
    for end, x_hat in zip([0, *ENDS], levels, strict=True):
        only = model.decode(z.to(z.value * (z.support.latent < end)))
        torch.testing.assert_close(x_hat, only)


def test_the_choice_is_one_batchtopk_whatever_the_levels():
    one, five = (sae(levels=levels).objective(batch()).z for levels in (1, 5))
    assert torch.equal(one.support.latent, five.support.latent) and one.l0 == K


def test_one_level_is_batchtopk_and_the_bias_level_halves_its_gradient():
    b = batch()
    plain = build("batchtopk", d_in=D_IN, d_sae=D_SAE, k=K, k_aux=6, aux_weight=0.0).double()
    with torch.no_grad():
        plain.b_dec.copy_(torch.linspace(-0.2, 0.2, D_IN))
    bare, biased = sae(levels=1, bias_level=False, aux_weight=0.0), sae(levels=1, aux_weight=0.0)
    for model in (plain, bare, biased):
        sum(model.objective(b).terms.values()).backward()
    for name in ("W_enc", "W_dec"):
        want = getattr(plain, name).grad
        torch.testing.assert_close(getattr(bare, name).grad, want)
        torch.testing.assert_close(getattr(biased, name).grad, want / 2)
    alone = 2 * (biased.b_dec - b.target).mean(0)
    torch.testing.assert_close(bare.b_dec.grad, plain.b_dec.grad)
    torch.testing.assert_close(biased.b_dec.grad, (plain.b_dec.grad + alone) / 2)


def test_3d_latents_have_3d_levels():
    model, x = sae(), batch(tok=48).x.detach()
    model.calibrate([x])
    flat, deep = (model.levels(model.encode(rows), rows) for rows in (x, x.view(4, 12, D_IN)))
    for a, c in zip(flat, deep, strict=True):
        torch.testing.assert_close(a.view(4, 12, D_IN), c)


def test_too_many_levels_for_the_width_say_so():
    with pytest.raises(ValueError, match=r"levels=5 need d_sae=15 to be at least 16\. Lower levels"):
        build("matryoshka", d_in=4, d_sae=15, k=2)
    assert build("matryoshka", d_in=4, d_sae=15, k=2, levels=4).cfg.bounds == [1, 3, 7, 15]


def test_early_latents_learn_to_fire_more_often():
    """As the paper finds, even where all features are equally frequent; BatchTopK on the same stream has no order."""
    share = {}
    for name in ("matryoshka", "batchtopk"):
        source = Planted(d_in=16, features=64, k=4)
        model = build(name, d_in=16, d_sae=64, k=4, choose_in="float32")
        adam, fired = Adam(model.named_parameters(), lr=3e-3, unit=["W_dec"]), torch.zeros(64)
        for step in range(200):
            x = source.next(256)["L0R"].x
            out = model.objective(Batch(x, x, torch.zeros(64, dtype=torch.bool)))
            sum(out.terms.values()).backward()
            adam.step()
            adam.zero_grad()
            if step >= 180:
                fired += torch.bincount(out.z.support.latent, minlength=64)
        share[name] = (fired[:16].sum() / fired.sum()).item()
    assert share["matryoshka"] > 0.4 > 0.3 > share["batchtopk"]
