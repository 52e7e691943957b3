"""Llama Scope: the norm-aware choice, the annealed K, the published loss, the search and the conversion."""

import copy
import math

import pytest
import torch

from sae_lab.saes import Batch, build

D_IN, D_SAE, K = 8, 48, 3


def sae(**config):
    """Decoder norms from 0.05 to 2, biases that are not zero."""
    model = build("llama_scope", **{"d_in": D_IN, "d_sae": D_SAE, "k": K, "choose_in": "float32"} | config).double()
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        model.b_dec.copy_(torch.linspace(-0.2, 0.2, D_IN))
        model.b_enc.copy_(torch.randn(D_SAE, generator=rng, dtype=torch.float64) / 5)
        model.W_dec *= torch.logspace(-1, 0.6, D_SAE, dtype=torch.float64)[torch.randperm(D_SAE, generator=rng), None]
    return model


def batch(tok=60, seed=0, progress=1.0):
    rng = torch.Generator().manual_seed(seed)
    x = 3 * torch.randn(tok, D_IN, generator=rng, dtype=torch.float64)
    target = x + torch.randn(x.shape, generator=rng, dtype=torch.float64)
    return Batch(x.requires_grad_(), target, torch.arange(D_SAE) < 9, progress)


def twin(model, b, k):
    """The released code's step, densely: choose by a * |d|, keep a; squared error over the norm of the target."""
    a = (b.x @ model.W_enc.T + model.b_enc).relu()
    best = (a * model.W_dec.norm(dim=1)).topk(k, dim=1).indices
    f = torch.zeros_like(a).scatter(1, best, a.gather(1, best))
    x_hat = f @ model.W_dec + model.b_dec
    spread = (b.target - b.target.mean(0)).square().sum(1, keepdim=True).clamp(min=1e-8).sqrt()
    return x_hat, f, ((x_hat - b.target) ** 2 / spread).mean()


@pytest.mark.parametrize("progress", [0.0, 0.03, 1.0])
def test_values_and_gradients_equal_dense_autograd(progress):
    results = []
    for mine in (True, False):
        model, b = sae(k_init=20), batch(progress=progress)
        if mine:
            out = model.objective(b)
            x_hat, f, error = out.x_hat, out.z.dense(), sum(out.terms.values())
        else:
            x_hat, f, error = twin(model, b, {0.0: 20, 0.03: 15, 1.0: 3}[progress])  # 20 - 17 * 0.3 = 14.9
        error.backward()
        results.append((x_hat, f, error, b.x.grad, *(p.grad for p in model.parameters())))
    for a, c in zip(*results, strict=True):
        torch.testing.assert_close(a, c, rtol=1e-10, atol=1e-12)


def test_decoder_norms_decide_the_choice_unless_they_are_equal():
    b = batch()

    def chosen(model):
        return model.objective(b).z.dense() != 0

    def largest(model):
        a = (b.x @ model.W_enc.T + model.b_enc).relu()
        return torch.zeros_like(a).scatter(1, a.topk(K).indices, 1) * a != 0

    model = sae()
    assert not torch.equal(chosen(model), largest(model))
    with torch.no_grad():
        model.W_dec /= model.W_dec.norm(dim=1, keepdim=True) * 7
    assert torch.equal(chosen(model), largest(model))


def test_a_bf16_choice_is_the_exact_one():
    for seed in range(5):
        b = batch(seed=seed)
        x = b.x.detach().float()
        whole, half = (sae(choose_in=dtype).float() for dtype in ("float32", "bfloat16"))
        supports = [model.objective(Batch(x, x, b.dead, 1.0)).z.support.latent for model in (whole, half)]
        assert torch.equal(*supports)


def test_k_falls_in_a_line_from_half_the_width_to_k_in_a_tenth_of_the_run():
    model = build("llama_scope", d_in=4096, d_sae=4096, k=50)
    steps = 1000
    kept = [model.kept(step / steps) for step in range(steps + 1)]
    r = 4096 / (2 * 50)
    published = [math.ceil(round(max(1, r + (1 - r) * step / 100) * 50, 6)) for step in range(steps + 1)]
    assert kept == published and kept[0] == 2048 and kept[99] == 70 and set(kept[100:]) == {50}


def test_k_never_exceeds_the_dictionary_nor_falls_below_k():
    assert build("llama_scope", d_in=64, d_sae=20, k=4).kept(0.0) == 20
    assert build("llama_scope", d_in=8, d_sae=20, k=6).kept(0.0) == 6  # d_in / 2 is less than k
    assert build("llama_scope", d_in=64, d_sae=200, k=6, k_anneal=0.0).kept(0.0) == 6
    assert sae(k_init=11).objective(batch(progress=0.0)).z.l0 > K == sae(k_init=11).objective(batch()).z.l0


def test_rows_start_tied_at_norm_one_half_and_for_transcoders_apart():
    tied, apart = (build("llama_scope", d_in=D_IN, d_sae=D_SAE, k=K, tied_init=tied) for tied in (True, False))
    assert torch.equal(tied.W_enc, tied.W_dec) and not torch.equal(apart.W_enc, apart.W_dec)
    for rows in (tied.W_dec, apart.W_enc, apart.W_dec):
        torch.testing.assert_close(rows.norm(dim=1), torch.full((D_SAE,), 0.5))
    with pytest.raises(ValueError, match="init_norm=None searches with tied rows only"):
        build("llama_scope", d_in=D_IN, d_sae=D_SAE, k=K, init_norm=None, tied_init=False)


@pytest.mark.parametrize("first", [3, 6])
def test_the_search_finds_the_norm_of_least_loss_at_the_first_steps_k(first):
    """Against every hundredth, densely; and without init_norm=None nothing is searched."""
    x = batch(tok=400).x.detach()
    model = build("llama_scope", d_in=D_IN, d_sae=D_SAE, k=K, k_init=first, init_norm=None).double()
    directions = 2 * model.W_dec.detach().clone()
    losses = {}
    for norm in (step / 100 for step in range(5, 111)):
        trial = copy.deepcopy(model)
        trial.W_enc.data.copy_(directions * norm), trial.W_dec.data.copy_(directions * norm)
        losses[norm] = twin(trial, Batch(x, x, batch().dead), first)[2].item()
    best = min(losses, key=losses.get)
    assert 0.1 < best < 1.0 and abs(best - 0.5) > 0.05
    model.prepare(x, x)
    torch.testing.assert_close(model.W_dec.norm(dim=1), torch.full((D_SAE,), best).double(), rtol=0, atol=0.011)
    torch.testing.assert_close(model.W_enc, model.W_dec)
    torch.testing.assert_close(model.W_dec / model.W_dec.norm(dim=1, keepdim=True), directions)
    fixed = build("llama_scope", d_in=D_IN, d_sae=D_SAE, k=K).double()
    fixed.prepare(x, x)
    torch.testing.assert_close(fixed.W_dec.norm(dim=1), torch.full((D_SAE,), 0.5).double())


def test_until_converted_a_token_keeps_its_k_best_and_then_one_threshold_decides():
    model, b = sae(), batch(tok=4096)
    x = b.x.detach()
    trained = copy.deepcopy(model)
    assert torch.equal(model.encode(x).dense(), model.objective(b).z.dense())
    model.calibrate(x.split(1000))
    torch.testing.assert_close(model.W_dec.norm(dim=1), torch.ones(D_SAE).double())
    pre = x @ model.W_enc.T + model.b_enc
    torch.testing.assert_close(model.encode(x).dense(), pre * (pre > model.threshold))
    assert abs(model.encode(x).l0 / K - 1) < 0.005
    # the same as the unfolded SAE's latents whose activation times norm exceeds the threshold
    norms = trained.W_dec.norm(dim=1)
    a = (x @ trained.W_enc.T + trained.b_enc).relu()
    x_hat = (a * (a * norms > model.threshold)) @ trained.W_dec + trained.b_dec
    torch.testing.assert_close(model(x), x_hat)


def test_a_latent_without_a_direction_stays_silent_and_finite():
    model, x = sae(), batch(tok=500).x.detach()
    with torch.no_grad():
        model.W_dec[5] = 0
    model.calibrate([x])
    assert model.W_dec.isfinite().all() and not model.encode(x).fired[5]


def test_a_token_at_the_mean_does_not_divide_by_zero():
    x = torch.ones(4, D_IN).double()
    out = sae().objective(Batch(x, x, torch.zeros(D_SAE, dtype=torch.bool), 1.0))
    assert out.terms["error"].isfinite()
