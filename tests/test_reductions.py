"""Where one method becomes another: the cheapest proof that both are what their papers say."""

import math
from dataclasses import replace

import pytest
import torch

from sae_lab.saes import Batch, build
from sae_lab.sparse import Adam

D_IN, D_SAE, K = 8, 48, 5
DEAD = torch.arange(D_SAE) < 9


def batch(tok, seed=0, dead=DEAD):
    x = torch.randn(tok, D_IN, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Batch(x, x, dead)


def sae(name, **config):
    model = build(name, d_in=D_IN, d_sae=D_SAE, encoder_bias=False, **config).double()
    with torch.no_grad():
        model.b_dec.copy_(torch.linspace(-0.2, 0.2, D_IN))
    return model


def step(model, b):
    out = model.objective(b)
    sum(out.terms.values()).backward()
    return out, {name: p.grad for name, p in model.named_parameters()}


def same(a, b):
    for name in a:
        one, other = a[name].to_dense(), b[name].to_dense()  # AuxK alone gives rows
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_batchtopk_at_one_token_is_topk():
    for seed in range(20):
        one = batch(1, seed, dead=torch.zeros(D_SAE, dtype=torch.bool))
        (a, grads_a), (b, grads_b) = step(sae("topk", k=K), one), step(sae("batchtopk", k=K), one)
        assert torch.equal(a.z.support.latent, b.z.support.latent)
        torch.testing.assert_close(a.x_hat, b.x_hat)
        same(grads_a, grads_b)


def test_matryoshka_of_one_level_is_batchtopk():
    """Without the level of b_dec alone; with it the loss is the mean of the two."""
    (a, grads_a), (b, grads_b) = (
        step(sae("batchtopk", k=K), batch(40)),
        step(sae("matryoshka", k=K, levels=1, bias_level=False), batch(40)),
    )
    torch.testing.assert_close(a.x_hat, b.x_hat)
    same(a.terms, b.terms)
    same(grads_a, grads_b)
    model = sae("matryoshka", k=K, levels=1)
    alone = (model.b_dec - batch(40).target).square().sum(1).mean()
    torch.testing.assert_close(model.objective(batch(40)).terms["mse"], (a.terms["mse"] + alone) / 2)


def test_llama_scope_of_unit_rows_and_one_k_is_topk_under_another_loss():
    b = batch(40, dead=torch.zeros(D_SAE, dtype=torch.bool))
    topk, scope = sae("topk", k=K), sae("llama_scope", k=K, k_init=K, init_norm=1.0)
    with torch.no_grad():
        topk.b_dec.zero_(), scope.b_dec.zero_()  # topk subtracts b_dec before it encodes, llama_scope does not
        scope.W_enc.copy_(topk.W_enc), scope.W_dec.copy_(topk.W_dec)
    spread = (b.target - b.target.mean(0)).norm(dim=1)
    a = topk.objective(b)
    ((a.x_hat - b.target).square().mean(1) / spread).mean().backward()
    c, grads = step(scope, b)
    assert torch.equal(a.z.support.latent, c.z.support.latent)
    torch.testing.assert_close(a.x_hat, c.x_hat)
    same({name: getattr(topk, name).grad for name in ("W_enc", "W_dec")}, grads)


def test_p_anneal_whose_p_stays_one_is_relu_but_for_free_norms():
    b = Batch(batch(40).x, batch(40).x, DEAD, progress=0.7)
    anneal, relu = sae("p_anneal", p_end=1.0, l1_weight=2.0), sae("relu", l1_weight=2.0, init_norm=1.0)
    with torch.no_grad():
        anneal.b_dec.zero_(), relu.b_dec.zero_()  # p_anneal subtracts b_dec before it encodes, relu does not
        for model in (anneal, relu):
            model.W_enc.copy_(sae("topk", k=K).W_enc)
            model.W_dec.copy_(model.W_enc / model.W_enc.norm(dim=1, keepdim=True))
    (a, grads_a), (c, grads_c) = step(anneal, b), step(relu, b)
    torch.testing.assert_close(a.x_hat, c.x_hat)
    torch.testing.assert_close(a.terms["mse"], c.terms["mse"])
    torch.testing.assert_close(a.terms["lpp"], c.terms["l1"])
    same({"W_enc": grads_a["W_enc"]}, grads_c)
    along, rows = grads_c["W_dec"], relu.W_dec.detach()  # relu's price of a row's norm acts along the row
    torch.testing.assert_close(
        *(grad - (grad * rows).sum(1, keepdim=True) * rows for grad in (grads_a["W_dec"], along))
    )


def test_end_to_end_local_is_relu_but_for_free_norms_and_a_division_by_d_in():
    b = Batch(batch(40).x, batch(40).x, DEAD, progress=0.7)
    local, relu = sae("end_to_end", kind="local", l1_weight=2.0), sae("relu", l1_weight=2.0, init_norm=1.0)
    with torch.no_grad():
        local.W_dec /= local.W_dec.norm(dim=1, keepdim=True)
        relu.W_enc.copy_(local.W_enc), relu.W_dec.copy_(local.W_dec)
    (a, grads_a), (c, grads_c) = step(local, b), step(relu, b)
    torch.testing.assert_close(a.x_hat, c.x_hat)
    same({name: D_IN * term for name, term in a.terms.items()}, c.terms)
    same({name: D_IN * grads_a[name] for name in ("W_enc", "b_dec")}, grads_c)
    rows = relu.W_dec.detach()  # relu's price of a row's norm acts along the row
    across = [grad - (grad * rows).sum(1, keepdim=True) * rows for grad in (D_IN * grads_a["W_dec"], grads_c["W_dec"])]
    torch.testing.assert_close(*across)


def test_gradient_without_its_weight_is_topk():
    for seed in range(5):
        b = batch(40, seed)
        given = replace(b, grad=100 * torch.randn(b.x.shape, dtype=torch.float64))
        gradient, topk = sae("gradient", k=K, beta=0.0), sae("topk", k=K)
        (a, grads_a), (c, grads_c) = step(gradient, given), step(topk, b)
        assert torch.equal(a.z.support.latent, c.z.support.latent)
        torch.testing.assert_close(a.terms, c.terms)
        same(grads_a, grads_c)
        assert gradient.recipe.lr_for(D_SAE) == topk.recipe.lr_for(D_SAE)


def test_temporal_mask_that_never_masks_is_relu():
    """The same weights after some steps, with the same recipe."""
    mask, relu = sae("temporal_mask", r=0.0), sae("relu")
    assert mask.recipe == relu.recipe
    for model in (mask, relu):
        adam = Adam(model.named_parameters(), lr=1e-2)
        for i in range(8):
            step(model, replace(batch(40, i), progress=i / 7))
            adam.step()
            adam.zero_grad()
            model.after_step()
    same(dict(mask.named_parameters()), dict(relu.named_parameters()))
    assert torch.equal(mask.encode(batch(30).x).dense(), relu.encode(batch(30).x).dense())


def test_batchtopk_of_equal_tokens_is_topk():
    """The batch's budget falls out k to each."""
    x = batch(1).x.expand(6, -1).clone()
    b = Batch(x, x, torch.zeros(D_SAE, dtype=torch.bool))
    (a, mine), (c, theirs) = step(sae("topk", k=K), b), step(sae("batchtopk", k=K), b)
    assert c.z.l0 == K and torch.equal(a.z.support.latent, c.z.support.latent)
    same(mine, theirs)


@pytest.mark.parametrize("name", ["batchtopk", "matryoshka", "mutual_choice", "feature_choice", "llama_scope"])
def test_with_a_calibrated_threshold_it_is_a_jumprelu(name):
    """One threshold for all, or of feature_choice one per latent; a threshold of 0 is ReLU's."""
    model, x = sae(name, k=K), batch(300).x
    model.calibrate([batch(200, seed).x for seed in range(4)])
    jump = sae("jumprelu", centred=name != "llama_scope")
    with torch.no_grad():
        for key in ("W_enc", "W_dec", "b_dec"):
            getattr(jump, key).copy_(getattr(model, key))
        jump.log_threshold.copy_(model.threshold.log().expand(D_SAE))
    assert model.threshold.max() > 0.1
    torch.testing.assert_close(jump.encode(x).dense(), model.encode(x).dense())
    torch.testing.assert_close(jump(x), model(x))


def test_batchtopk_gives_a_louder_token_more_latents():
    x = batch(16).x
    x[3] *= 100
    out, _ = step(sae("batchtopk", k=K), Batch(x, x, DEAD))
    counts = out.z.support.start.diff()
    assert counts[3] == counts.max() > 2 * K and counts.sum() == 16 * K


def test_permuting_a_batch_permutes_batchtopk():
    b, order = batch(32), torch.randperm(32, generator=torch.Generator().manual_seed(0))
    out = sae("batchtopk", k=K).objective(b).z.dense()
    turned = sae("batchtopk", k=K).objective(Batch(b.x[order], b.x[order], DEAD)).z.dense()
    torch.testing.assert_close(turned, out[order])


def test_mutual_choice_is_batchtopk():
    b = batch(40)
    (a, mine), (c, theirs) = (
        step(sae("mutual_choice", k=K, aux_weight=0.0), b),
        step(sae("batchtopk", k=K, aux_weight=0.0), b),
    )
    assert torch.equal(a.z.support.latent, c.z.support.latent)
    torch.testing.assert_close(a.x_hat, c.x_hat)
    same(mine, theirs)


@pytest.mark.parametrize("progress", [0.0, 0.9])
def test_mutual_and_feature_choice_of_one_phase_are_one_method(progress):
    b = replace(batch(40), progress=progress)
    (a, mine), (c, theirs) = step(sae("mutual_choice", k=K), b), step(sae("feature_choice", k=K), b)
    assert torch.equal(a.z.support.latent, c.z.support.latent) == (progress == 0.0)
    if progress == 0.0:
        assert a.terms == c.terms
        same(mine, theirs)


@pytest.mark.parametrize("name", ["mutual_choice", "feature_choice"])
def test_aux_zipf_of_latents_that_are_dead_or_healthy_is_auxk(name):
    """The law is uniform, the dead never fire, the others do more than enough: TopK's scale, BatchTopK's choice."""
    b = batch(40)
    mine, theirs = sae(name, k=K, k_aux=4, zipf=0.0), sae("batchtopk", k=K, k_aux=4)
    mine.density.copy_(torch.where(DEAD, 0.0, 2 * K / D_SAE))
    a, c = mine.objective(b), theirs.objective(b)
    missed = b.x - c.x_hat.detach()
    variance = (missed - missed.mean(0)).square().sum(1).mean()
    torch.testing.assert_close(a.terms["aux_zipf"], c.terms["auxk"] / variance)
    a.terms["aux_zipf"].backward()
    (c.terms["auxk"] / variance).backward()
    same({n: p.grad for n, p in mine.named_parameters()}, {n: p.grad for n, p in theirs.named_parameters()})


def test_topk_of_all_latents_is_relu_without_a_penalty():
    b = batch(40, dead=torch.zeros(D_SAE, dtype=torch.bool))
    topk, relu = sae("topk", k=D_SAE), sae("relu", l1_weight=0.0, init_norm=1.0)
    with torch.no_grad():
        topk.b_dec.zero_(), relu.b_dec.zero_()  # topk subtracts b_dec before it encodes, relu does not
    (a, _), (c, _) = step(topk, b), step(relu, b)
    torch.testing.assert_close(a.x_hat, c.x_hat)
    torch.testing.assert_close(a.terms["mse"], c.terms["mse"])
    same({"W": topk.W_dec.grad}, {"W": relu.W_dec.grad})
    same({"W": topk.W_enc.grad}, {"W": relu.W_enc.grad})


def test_jumprelu_with_thresholds_near_zero_is_relu():
    b, jump, relu = batch(40), sae("jumprelu", bandwidth=1e-9), sae("relu", l1_weight=0.0, init_norm=1.0)
    with torch.no_grad():
        jump.log_threshold.fill_(-40.0)
    (a, grads), (c, others) = step(jump, b), step(relu, b)
    assert torch.equal(a.z.support.latent, c.z.support.latent)
    torch.testing.assert_close(a.x_hat, c.x_hat)
    same(others, grads)


def test_gated_with_gates_and_magnitudes_alike_is_relu():
    """b_mag = exp(r_mag) b_enc: a gate opens where the magnitude is positive. ReLU does not subtract b_dec."""
    b, rescale = batch(40), torch.linspace(0.5, 2, D_SAE, dtype=torch.float64)
    biases = torch.linspace(-0.4, 0.3, D_SAE, dtype=torch.float64)
    gated = build("gated", d_in=D_IN, d_sae=D_SAE).double()
    relu = build("relu", d_in=D_IN, d_sae=D_SAE, l1_weight=0.0, init_norm=1.0).double()
    with torch.no_grad():
        gated.r_mag.copy_(rescale.log()), gated.b_enc.copy_(biases), gated.b_mag.copy_(rescale * biases)
        relu.W_enc *= rescale[:, None]
        relu.b_enc.copy_(rescale * biases)
    a, (c, others) = gated.objective(b), step(relu, b)
    a.terms["mse"].backward()
    assert torch.equal(a.z.support.latent, c.z.support.latent)
    torch.testing.assert_close(a.x_hat, c.x_hat)
    same({"W_dec": gated.W_dec.grad, "b": gated.b_mag.grad}, {"W_dec": others["W_dec"], "b": others["b_enc"]})
    same({"W_enc": gated.W_enc.grad}, {"W_enc": rescale[:, None] * others["W_enc"]})


def test_random_is_a_topk_that_nobody_trains():
    b = batch(40)
    a, c = sae("random", k=K).objective(b), sae("topk", k=K).objective(b)
    torch.testing.assert_close(a.x_hat, c.x_hat)
    torch.testing.assert_close(a.terms["mse"], c.terms["mse"])


def test_auxk_of_no_weight_is_no_auxk():
    for name in ("topk", "batchtopk", "matryoshka"):
        quiet = Batch(batch(40).x, batch(40).x, torch.zeros(D_SAE, dtype=torch.bool))
        (_, a), (_, b) = step(sae(name, k=K, aux_weight=0.0), batch(40)), step(sae(name, k=K), quiet)
        same(a, b)
        loud, _ = step(sae(name, k=K), batch(40))
        assert loud.terms["auxk"] > 0  # or nothing would have been switched off


@pytest.mark.parametrize("k", [1, 3, 8])
def test_pca_explains_what_the_leading_eigenvalues_say(k):
    """With k = d_in everything; with fewer at least as much as the same number of leading components for all."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(4000, D_IN, generator=rng, dtype=torch.float64) * torch.linspace(0.2, 3, D_IN) + 5
    model = build("pca", d_in=D_IN, k=k).double()
    model.calibrate([x[:1500], x[1500:]])
    error = (model(x) - x).square().sum(-1).mean()
    values = torch.linalg.eigvalsh(x.T.cov(correction=0)).flip(0)
    assert error <= values[k:].sum() + 1e-9
    if k == D_IN:
        assert error < 1e-18 * x.square().sum(-1).mean() + 1e-20


def test_relu_fires_on_every_positive_pre_activation():
    model, x = sae("relu"), batch(30).x
    torch.testing.assert_close(model.encode(x).dense(), (x @ model.W_enc.T).relu())


def test_the_price_of_sparsity_rises_over_its_warm_up():
    model, b = sae("relu", l1_weight=2.0), batch(30)
    share = model.recipe.sparsity_warmup
    at = [model.objective(Batch(b.x, b.x, DEAD, p)).terms["l1"].item() for p in (0.0, share / 2, share, 1.0)]
    assert at[0] == 0 and math.isclose(at[1], at[3] / 2) and at[2] == at[3] > 0


def test_topks_learning_rate_follows_the_width():
    recipe = sae("topk").recipe
    assert recipe.lr_for(2**14) == 2e-4 and math.isclose(recipe.lr_for(2**16), 1e-4)


def test_topk_starts_from_the_geometric_median():
    """An outlier moves the mean, not the median."""
    x = batch(400).x
    x[0] = 1e6
    model = sae("topk", k=K)
    model.prepare(x, x)
    slope = ((model.b_dec - x) / (model.b_dec - x).norm(dim=1, keepdim=True)).sum(0)
    assert model.b_dec.norm() < 1 and slope.norm() < 0.1


@pytest.mark.parametrize("name", ["batchtopk", "matryoshka"])
def test_the_threshold_is_where_k_per_token_lie_above_it(name):
    model = sae(name, k=K)
    parts = [batch(100, seed).x for seed in range(4)]
    model.calibrate(parts)
    pre = torch.cat(parts) @ model.W_enc.T - model.b_dec @ model.W_enc.T
    assert (pre > model.threshold).sum() == 400 * K


def test_calibrating_on_nothing_is_an_error():
    with pytest.raises(ValueError, match="no activations"):
        sae("batchtopk", k=K).calibrate([])
    with pytest.raises(ValueError, match="no activations"):
        build("pca", d_in=D_IN, k=2).calibrate([])


@pytest.mark.parametrize("name", ["topk", "batchtopk"])
def test_multi_topk_adds_the_error_with_four_times_as_many_latents(name):
    quiet = Batch(batch(40).x, batch(40).x, torch.zeros(D_SAE, dtype=torch.bool))
    (a, plain), (b, wide) = step(sae(name, k=3), quiet), step(sae(name, k=12), quiet)
    both, grads = step(sae(name, k=3, multi=0.125), quiet)
    assert torch.equal(both.z.support.latent, a.z.support.latent)
    torch.testing.assert_close(both.terms["multi"], 0.125 * b.terms["mse"])
    same(grads, {key: plain[key] + 0.125 * wide[key] for key in grads})


@pytest.mark.parametrize("name", ["topk", "batchtopk"])
def test_k_falls_in_a_line_from_k_init_and_multi_topk_with_it(name):
    model = sae(name, k=3, k_init=13, k_anneal=0.5, multi=0.125)
    for progress, k in ((0.0, 13), (0.25, 8), (0.26, 8), (0.5, 3), (1.0, 3)):
        b = Batch(batch(40).x, batch(40).x, torch.zeros(D_SAE, dtype=torch.bool), progress)
        found, wanted = model.objective(b), sae(name, k=k, multi=0.125).objective(b)
        assert torch.equal(found.z.support.latent, wanted.z.support.latent)
        torch.testing.assert_close(found.terms, wanted.terms)
    whole = sae(name, k=3, k_init=400, k_anneal=0.5).objective(replace(b, progress=0.0))
    torch.testing.assert_close(whole.terms, sae(name, k=D_SAE).objective(b).terms)  # never more than there are
