"""The contract every SAE signs. A new variant is tested by existing."""

import copy
import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from sae_lab.knobs import knob, knobs
from sae_lab.saes import REGISTRY, SAE, Batch, Objective, Recipe, build
from sae_lab.sources import Cost
from sae_lab.sparse import Adam, Latents, backend, latents, preacts
from sae_lab.toys import Planted

TOK, D_IN, D_SAE, K = 96, 8, 40, 4
SMALL = {"k": K, "k_aux": 6, "l1_weight": 0.5, "bandwidth": 0.2, "init_threshold": 0.15}
NAMES = sorted(REGISTRY)
TRAINED = [name for name in NAMES if REGISTRY[name].trainable]
DEAD = 8  # the first latents count as dead


def small(name, **config):
    """A small SAE whose every knob that matters is small too, with biases and the like that are not zero."""
    rows = {row.name: row for row in knobs(REGISTRY[name].Config)}
    config = {key: value for key, value in SMALL.items() if key in rows} | config
    if not rows["d_sae"].optional:
        config.setdefault("d_sae", D_SAE)
    sae = build(name, d_in=D_IN, choose_in=config.pop("choose_in", "float32"), **config)
    rng = torch.Generator().manual_seed(7)
    with torch.no_grad():
        sae.b_dec.add_(torch.randn(D_IN, generator=rng) / 9)
        if sae.b_enc is not None:
            sae.b_enc.add_(torch.randn(sae.cfg.d_sae, generator=rng) / 9)
        for name, p in sae.named_parameters():
            if p.dim() == 1 and name not in ("b_dec", "b_enc"):
                p.add_(torch.randn(len(p), generator=rng) / 9)
    return sae


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture
def sae(name):
    sae = small(name)
    sae.calibrate([rows(seed=5)])
    return sae


@pytest.fixture(params=TRAINED)
def trained(request):
    return small(request.param)


def rows(seed=0, tok=TOK):
    rng = torch.Generator().manual_seed(seed)
    truth = torch.randn(12, D_IN, generator=torch.Generator().manual_seed(1))
    return (torch.rand(tok, 12, generator=rng) < 0.2).float() @ truth + 0.1 * torch.randn(tok, D_IN, generator=rng)


def batch_for(sae, x=None, progress=0.5):
    x = rows() if x is None else x
    rng = torch.Generator().manual_seed(2)
    peer = type(sae)(replace(sae.cfg, seed=sae.cfg.seed + 1))
    extra = {
        "grad": torch.randn(x.shape, generator=rng).to(x),
        "patched_kl": lambda x_hat, later=False: Cost(square(x_hat - x) / 2, square(x_hat - x).sqrt()),
        "peers": (peer.to(sae.W_dec),),
    }
    dead = torch.arange(sae.cfg.d_sae) < DEAD
    return Batch(x, x, dead, progress, **{key: extra[key] for key in sae.needs})


def on(z):
    return z.dense() != 0


def test_says_which_paper_it_is(sae):
    assert "arXiv:" in sae.paper
    assert sae.name in REGISTRY and REGISTRY[sae.name] is type(sae)


def test_every_knob_has_a_sentence_and_a_default_except_the_widths(sae):
    for row in knobs(sae.Config):
        assert len(row.help.split()) > 2, row.name
        assert row.default is not None or row.optional or row.name in ("d_in", "d_sae"), row.name


def test_the_same_seed_builds_the_same_weights_and_another_does_not(name):
    a, b, c = small(name), small(name), small(name, seed=1)
    assert all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values()))
    if name != "pca":  # its directions come from data
        assert not torch.equal(a.W_dec, c.W_dec)


def test_weights_have_the_shapes_that_all_share(sae):
    d_sae = sae.cfg.d_sae
    assert sae.W_enc.shape == sae.W_dec.shape == (d_sae, D_IN)
    assert sae.b_dec.shape == (D_IN,) and (sae.b_enc is None or sae.b_enc.shape == (d_sae,))


def test_without_an_encoder_bias_the_parameter_does_not_exist(name):
    assert "b_enc" not in small(name, encoder_bias=False).state_dict()
    assert "b_enc" in small(name, encoder_bias=True).state_dict()


def test_encode_is_one_token_at_a_time(sae):
    """Inference must not depend on who else is in the batch."""
    x = rows()
    z = sae.encode(x).dense()
    torch.testing.assert_close(z[:5], sae.encode(x[:5]).dense(), rtol=1e-5, atol=1e-6)
    order = torch.randperm(TOK, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(z[order], sae.encode(x[order]).dense(), rtol=1e-5, atol=1e-6)


def test_3d_input_equals_flattened(sae):
    x = rows()
    flat, deep = sae.encode(x), sae.encode(x.view(3, TOK // 3, D_IN))
    assert deep.dense().shape == (3, TOK // 3, sae.cfg.d_sae)
    torch.testing.assert_close(deep.dense().view(TOK, -1), flat.dense())
    torch.testing.assert_close(sae(x.view(3, TOK // 3, D_IN)).view(TOK, D_IN), sae(x))


@pytest.mark.parametrize("choose_in", ["float32", "bfloat16", "int8"])
def test_one_token_and_no_token_work(sae, choose_in):
    sae.cfg = replace(sae.cfg, choose_in=choose_in)
    assert sae(rows()[0]).shape == (D_IN,)
    assert sae(rows()[:0]).shape == (0, D_IN)


def test_x_hat_is_the_decoded_z(sae):
    out = sae.objective(batch_for(sae))
    assert isinstance(out, Objective)
    torch.testing.assert_close(out.x_hat, sae.decode(out.z))
    torch.testing.assert_close(sae.decode(out.z), out.z.dense() @ sae.W_dec + sae.b_dec, rtol=1e-5, atol=1e-5)


def test_terms_are_finite_scalars_and_a_repeat_is_bit_identical(trained):
    def once():
        trained.zero_grad(set_to_none=True)
        out = trained.objective(batch_for(trained))
        sum(out.terms.values()).backward()
        return out, [p.grad for p in trained.parameters()]

    (a, grads), (b, again) = once(), once()
    assert all(math.isfinite(term.item()) and term.dim() == 0 for term in a.terms.values())
    assert all(torch.equal(a.terms[key], b.terms[key]) for key in a.terms)
    assert all(torch.equal(g, h) for g, h in zip(grads, again))


def test_l0_is_what_was_asked(sae):
    """`k` means latents per token in every variant that has one."""
    if not hasattr(sae.cfg, "k"):
        return
    l0 = on(sae.objective(batch_for(sae)).z).sum(-1).float().mean()
    assert 0.5 * sae.cfg.k < l0 <= sae.cfg.k
    assert 0.5 * sae.cfg.k < sae.encode(rows(seed=5)).l0 <= 1.05 * sae.cfg.k


def test_every_parameter_is_trained(trained):
    """A parameter that no loss term reaches is dead weight or a missing term."""
    sum(trained.objective(batch_for(trained)).terms.values()).backward()
    assert [n for n, p in trained.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_baseline_is_not_trained(sae):
    assert sae.trainable == any(p.requires_grad for p in sae.parameters())


def test_an_objective_never_needs_the_dense_latents(sae, monkeypatch):
    made, dense = [], Latents.dense
    monkeypatch.setattr(Latents, "dense", lambda z: made.append(z) or dense(z))
    sae.objective(batch_for(sae))
    sae.encode(rows()).relu()
    assert not made


def test_an_objective_sees_scores_a_chunk_at_a_time(sae, monkeypatch):
    """The same terms and gradients whether the scores come at once or seven tokens at a time."""
    results = []
    for fewest, size in ((10**6, 2**30), (7, 1)):
        monkeypatch.setattr(preacts, "FEWEST", fewest)
        monkeypatch.setattr(preacts, "CHUNK_BYTES", size)
        twin = copy.deepcopy(sae).double()
        out = twin.objective(batch_for(twin, rows().double()))
        if twin.trainable:
            sum(out.terms.values()).backward()
        results.append((out.x_hat, *out.terms.values(), *(p.grad for p in twin.parameters() if twin.trainable)))
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("share", [(0.0, 0.0), (2.0, 2.0)], ids=["dense products", "sparse products"])
def test_both_backends_agree_in_float64(sae, share, monkeypatch):
    monkeypatch.setattr(latents, "DENSE_ABOVE", share)
    results = []
    for which in ("numba", "torch"):
        with backend(which):
            twin = copy.deepcopy(sae).double()
            out = twin.objective(batch_for(twin, rows().double()))
            if twin.trainable:
                sum(out.terms.values()).backward()
            results.append((out.x_hat, *out.terms.values(), *(p.grad for p in twin.parameters() if twin.trainable)))
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("choose_in", ["bfloat16", "int8"])
def test_a_coarse_choice_changes_no_value(name, choose_in):
    a, b = small(name, choose_in="float32"), small(name, choose_in=choose_in)
    assert b.choose_in == getattr(torch, choose_in)
    for sae in (a, b):
        sae.calibrate([rows(seed=5)])
    torch.testing.assert_close(a.encode(rows()).dense(), b.encode(rows()).dense(), rtol=1e-4, atol=1e-5)
    fine, coarse = (sae.objective(batch_for(sae)).terms for sae in (a, b))
    for term in fine:  # many dead latents at once are multiplied in bf16
        torch.testing.assert_close(fine[term], coarse[term], rtol=2e-3 if term == "auxk" else 1e-4, atol=1e-6)


def test_folding_a_scale_gives_the_same_sae_of_raw_activations(sae):
    """SAE(x) after fold(s) == SAE(x * s) / s before: thresholds and biases are in units of x."""
    x, scale = rows(), 0.37
    if sae.name != "pca":
        sae.calibrate([rows(seed=5) * scale])
    z, x_hat = sae.encode(x * scale), sae(x * scale)
    with torch.no_grad():
        sae.fold(scale)
    torch.testing.assert_close(sae(x), x_hat / scale, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sae.encode(x).dense(), z.dense() / scale, rtol=1e-4, atol=1e-5)


def test_decoder_rows_keep_unit_norm_where_the_recipe_says_so(trained):
    adam = Adam(trained.named_parameters(), lr=1e-2, unit=["W_dec"] if trained.recipe.unit_norm else [])
    for seed in range(3):
        sum(trained.objective(batch_for(trained, rows(seed))).terms.values()).backward()
        adam.step()
        adam.zero_grad()
        trained.after_step()
    off = (trained.W_dec.norm(dim=1) - 1).abs().max()
    assert (off < 1e-6) == trained.recipe.unit_norm


def test_saving_keeps_the_function(sae):
    """All state lives in the state_dict: thresholds and counters included."""
    sae.prepare(rows(3), rows(3))
    sae.objective(batch_for(sae))
    twin = type(sae)(sae.cfg)
    twin.load_state_dict(sae.state_dict())
    assert torch.equal(twin.encode(rows(1)).dense(), sae.encode(rows(1)).dense())


def test_nan_in_the_weights_reaches_the_loss(trained):
    trained.W_enc.data[3, 3] = torch.nan
    assert any(term.isnan() for term in trained.objective(batch_for(trained)).terms.values())


def test_auxk_moves_only_dead_latents_and_no_decoder_bias(trained):
    out = trained.objective(batch_for(trained))
    if "auxk" not in out.terms:
        return
    out.terms["auxk"].backward()
    for weight in (trained.W_enc, trained.W_dec):
        moved = weight.grad.to_dense().abs().sum(1) > 0
        assert moved[:DEAD].any() and not moved[DEAD:].any()
    # the encoder reads x - b_dec, so b_dec moves with the dead pre-activations, and only with them
    through = -trained.W_enc.detach()[:DEAD].T @ _pre_grad(trained)[:DEAD]
    torch.testing.assert_close(trained.b_dec.grad, through, rtol=1e-3, atol=1e-6)


def _pre_grad(sae):
    """Gradient of AuxK with respect to an added encoder bias."""
    if sae.b_enc is not None:
        return sae.b_enc.grad
    with_bias = small(sae.name, encoder_bias=True)
    with_bias.load_state_dict({**sae.state_dict(), "b_enc": torch.zeros(sae.cfg.d_sae)})
    with_bias.objective(batch_for(with_bias)).terms["auxk"].backward()
    return with_bias.b_enc.grad


def test_nothing_dead_means_no_auxk(trained):
    batch = batch_for(trained)
    quiet = replace(batch, dead=torch.zeros_like(batch.dead))
    out = trained.objective(quiet)
    assert out.terms.get("auxk", torch.zeros(())) == 0 and torch.isfinite(sum(out.terms.values()))


def test_learns_a_planted_dictionary(trained):
    source = Planted(d_in=16, features=32, k=3)
    fit = {"k": 3, "l1_weight": 1.0}
    sae = build(trained.name, d_in=16, d_sae=32, **{key: fit[key] for key in fit if hasattr(trained.cfg, key)})
    scale = (4 if sae.recipe.scaling == "sqrt_d" else 1) / math.sqrt(source.statistics("L0R").mean_square)
    unit = ["W_dec"] if sae.recipe.unit_norm else []
    adam, fvu = Adam(sae.named_parameters(), lr=3e-3, betas=sae.recipe.betas, unit=unit), []
    silent = torch.zeros(32, dtype=torch.long)
    for step in range(600):
        x = source.next(512)["L0R"].x * scale
        out = sae.objective(replace(batch_for(sae, x, step / 600), dead=silent > 20_000))
        sum(out.terms.values()).backward()
        adam.step()
        adam.zero_grad()
        sae.after_step()
        silent = torch.where(out.z.fired, 0, silent + len(x))
        fvu.append(((out.x_hat - x).square().sum() / (x - x.mean(0)).square().sum()).item())
    assert sum(fvu[-20:]) / 20 < 0.4 * fvu[0]


def test_calibration_gives_the_wanted_l0_on_rows_never_seen(trained):
    """Within 5% of k, also where training itself asked for k per token only on average."""
    if not hasattr(trained.cfg, "k"):
        return
    source, held_out = Planted(d_in=16, features=64, k=4), Planted(d_in=16, features=64, k=4, stream=1)
    sae = build(trained.name, d_in=16, d_sae=64, k=6)
    adam = Adam(sae.named_parameters(), lr=3e-3, unit=["W_dec"])
    for _ in range(100):
        x = source.next(512)["L0R"].x
        batch = replace(batch_for(sae, x), dead=torch.zeros(64, dtype=torch.bool))
        sum(sae.objective(batch).terms.values()).backward()
        adam.step()
        adam.zero_grad()
    sae.calibrate(source.next(4096)["L0R"].x for _ in range(4))
    assert abs(sae.encode(held_out.next(16_384)["L0R"].x).l0 / 6 - 1) < 0.05


# the objectives again, as dense autograd in float64


def dense_topk(pre, k):
    top = pre.topk(min(k, pre.shape[1]))
    return torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())


def square(error):
    return error.square().sum(-1).mean()


def dense_aux(p, pre, missed, dead, k):
    index = dead.nonzero()[:, 0]
    return square(dense_topk(pre[:, index], min(k, len(index))) @ p.W_dec[index] - missed.detach())


def topk_twin(p, batch):
    pre = (batch.x - p.b_dec) @ p.W_enc.T + p.b_enc
    x_hat = dense_topk(pre, p.cfg.k) @ p.W_dec + p.b_dec
    missed = batch.target - x_hat
    aux = dense_aux(p, pre, missed, batch.dead, p.cfg.k_aux) / square((missed - missed.mean(0)).detach())
    return x_hat, {"mse": square(missed), "auxk": p.cfg.aux_weight * aux}


def batchtopk_twin(p, batch):
    pre = (batch.x - p.b_dec) @ p.W_enc.T
    cut = pre.ravel().topk(p.cfg.k * len(batch.x)).values[-1]
    x_hat = (pre * (pre >= cut)).relu() @ p.W_dec + p.b_dec
    missed = batch.target - x_hat
    aux = dense_aux(p, pre, missed, batch.dead, p.cfg.k_aux)
    return x_hat, {"mse": square(missed), "auxk": p.cfg.aux_weight * aux}


def matryoshka_twin(p, batch):
    pre = (batch.x - p.b_dec) @ p.W_enc.T
    z = (pre * (pre >= pre.ravel().topk(p.cfg.k * len(batch.x)).values[-1])).relu()
    levels = [z[:, :end] @ p.W_dec[:end] + p.b_dec for end in (0, 2, 5, 10, 20, 40)]  # d_sae is 40
    missed = batch.target - levels[-1]
    aux = dense_aux(p, pre, missed, batch.dead, p.cfg.k_aux)
    error = sum(square(batch.target - x_hat) for x_hat in levels) / 6
    return levels[-1], {"mse": error, "auxk": p.cfg.aux_weight * aux}


def choice_twin(p, batch):
    """Mutual Choice, and Feature Choice in its first phase."""
    pre = (batch.x - p.b_dec) @ p.W_enc.T + p.b_enc
    cut = pre.ravel().topk(p.cfg.k * len(batch.x)).values[-1]
    x_hat = (pre * (pre >= cut)).relu() @ p.W_dec + p.b_dec
    missed = batch.target - x_hat
    law = 1 / (torch.arange(1, p.cfg.d_sae + 1).double() + 2.7)  # all densities alike: a latent's rank is its number
    short = (1 - p.density / (law * p.cfg.k / law.sum())).relu()
    under = (short > 0).nonzero()[:, 0]
    z = dense_topk((pre * short)[:, under], min(p.cfg.k_aux, len(under)))
    aux = square(z @ p.W_dec[under] - missed.detach()) / square((missed - missed.mean(0)).detach())
    return x_hat, {"mse": square(missed), "aux_zipf": p.cfg.aux_weight * aux}


def relu_twin(p, batch):
    z = (batch.x @ p.W_enc.T + p.b_enc).relu()
    x_hat = z @ p.W_dec + p.b_dec
    weight = p.cfg.l1_weight * min(1.0, batch.progress / 0.05)
    return x_hat, {"mse": square(batch.target - x_hat), "l1": weight * (z * p.W_dec.norm(dim=1)).sum(-1).mean()}


class DenseStep(torch.autograd.Function):
    """H(v - theta) of all [tok, d_sae] numbers, with the paper's pseudo-derivative."""

    @staticmethod
    def forward(ctx, v, theta, bandwidth):
        ctx.save_for_backward(((v - theta).abs() < bandwidth / 2) / bandwidth)
        return (v > theta).to(v)

    @staticmethod
    def backward(ctx, grad):
        return None, -(ctx.saved_tensors[0] * grad).sum(0), None


class DenseJump(torch.autograd.Function):
    """v * H(v - theta) of all numbers, with the paper's pseudo-derivative."""

    @staticmethod
    def forward(ctx, v, theta, bandwidth):
        ctx.save_for_backward(v > theta, theta * ((v - theta).abs() < bandwidth / 2) / bandwidth)
        return v * (v > theta)

    @staticmethod
    def backward(ctx, grad):
        over, slope = ctx.saved_tensors
        return grad * over, -(slope * grad).sum(0), None


def jumprelu_twin(p, batch):
    v, theta = (batch.x @ p.W_enc.T + p.b_enc).relu(), p.log_threshold.exp()
    x_hat = DenseJump.apply(v, theta, p.cfg.bandwidth) @ p.W_dec + p.b_dec
    l0 = DenseStep.apply(v, theta, p.cfg.bandwidth).sum(-1).mean()
    return x_hat, {"mse": square(batch.target - x_hat), "l0": p.cfg.l0_weight * min(1.0, batch.progress / 0.1) * l0}


def gated_twin(p, batch):
    u = (batch.x - p.b_dec) @ p.W_enc.T
    gate = u + p.b_enc
    x_hat = ((gate > 0) * (p.r_mag.exp() * u + p.b_mag).relu()) @ p.W_dec + p.b_dec
    frozen = gate.relu() @ p.W_dec.detach() + p.b_dec.detach()
    price = p.cfg.l1_weight * min(1.0, batch.progress / 0.05)
    aux = p.cfg.aux_weight * square(batch.target - frozen)
    return x_hat, {"mse": square(batch.target - x_hat), "l1": price * gate.relu().sum(-1).mean(), "aux": aux}


def llama_scope_twin(p, batch):
    pre, norms = batch.x @ p.W_enc.T + p.b_enc, p.W_dec.detach().norm(dim=1)
    kept = torch.zeros_like(pre).scatter(
        1, (pre.relu() * norms).topk(p.cfg.k).indices, 1
    )  # d_in / 2 is k: no annealing
    x_hat = (pre.relu() * kept) @ p.W_dec + p.b_dec
    spread = (batch.target - batch.target.mean(0)).norm(dim=1, keepdim=True)
    return x_hat, {"error": ((batch.target - x_hat).square() / spread).mean()}


def p_anneal_twin(p, batch):
    """At half of the run p has fallen 5 times in 10, at once: the price is re-balanced on this very batch."""
    z = ((batch.x - p.b_dec) @ p.W_enc.T + p.b_enc).relu()
    fired, weight = z[z > 0], p.cfg.l1_weight * min(1.0, batch.progress / 0.05) / len(z)
    if batch.progress == 0.5:
        weight = weight * (fired.sum() / (fired**0.6).sum()).detach()
    x_hat = z @ p.W_dec + p.b_dec
    penalty = weight * (fired ** (0.6 if batch.progress == 0.5 else 1.0)).sum()
    return x_hat, {"mse": square(batch.target - x_hat), "lpp": penalty}


def gradient_twin(p, batch):
    pre = (batch.x - p.b_dec) @ p.W_enc.T + p.b_enc
    size = batch.grad.norm(dim=1).mean() * math.sqrt(2 / (math.pi * batch.x.shape[1]))
    score = pre * (1 + p.cfg.beta * (batch.grad @ p.W_dec.T).abs() / size)
    kept = torch.zeros_like(pre).scatter(1, score.topk(p.cfg.k).indices, 1.0)
    x_hat = (pre * kept).relu() @ p.W_dec + p.b_dec
    missed = batch.target - x_hat
    aux = dense_aux(p, pre, missed, batch.dead, p.cfg.k_aux) / square((missed - missed.mean(0)).detach())
    return x_hat, {"mse": square(missed), "auxk": p.cfg.aux_weight * aux}


def mutual_feature_twin(p, batch):
    """TopK, and half of what its directions lack to those of its one peer, matched as the best permutation does."""
    x_hat, terms = topk_twin(p, batch)
    (peer,) = batch.peers
    unit = p.W_dec / p.W_dec.norm(dim=1, keepdim=True)
    cosines = unit @ (peer.W_dec / peer.W_dec.norm(dim=1, keepdim=True)).T
    best = cosines[linear_sum_assignment(-cosines.detach().numpy())].mean()
    weight = p.cfg.weight * (1 - math.cos(math.pi * min(1.0, batch.progress / 0.05))) / 2
    return x_hat, terms | {"mutual": weight * (1 - best) / 2}


def temporal_mask_twin(p, batch):
    z = (batch.x @ p.W_enc.T + p.b_enc).relu() * ~(p.masked & (batch.progress >= p.cfg.mask_warmup))
    x_hat = z @ p.W_dec + p.b_dec
    weight = p.cfg.l1_weight * min(1.0, batch.progress / 0.05)
    return x_hat, {"mse": square(batch.target - x_hat), "l1": weight * (z * p.W_dec.norm(dim=1)).sum(-1).mean()}


def end_to_end_twin(p, batch):
    z = (batch.x @ p.W_enc.T + p.b_enc).relu()
    x_hat = z @ p.W_dec + p.b_dec
    local, cost, weight = square(batch.target - x_hat) / D_IN, batch.patched_kl(x_hat), p.cfg.kl_weight
    error = {
        "local": {"mse": local},
        "e2e": {"kl": cost.kl if weight is None else weight * cost.kl},
        "e2e_ds": {"kl": cost.kl / 2, "later": 2.5 * cost.later / D_IN},
    }
    return x_hat, error[p.cfg.kind] | {"l1": p.cfg.l1_weight * z.sum(-1).mean() / D_IN}


def baseline_twin(p, batch):
    x_hat = dense_topk((batch.x - p.b_dec) @ p.W_enc.T, p.cfg.k) @ p.W_dec + p.b_dec
    return x_hat, {"mse": square(batch.target - x_hat)}


def groupmax_twin(p, batch):
    pre = (batch.x - p.b_dec) @ p.W_enc.T + p.b_enc
    z = torch.cat([dense_topk(group, 1) for group in pre.split(-(-p.cfg.d_sae // p.cfg.k), 1)], 1)
    x_hat = z @ p.W_dec + p.b_dec
    return x_hat, {"mse": square(batch.target - x_hat)}


TWINS = {
    "topk": topk_twin,
    "groupmax": groupmax_twin,
    "batchtopk": batchtopk_twin,
    "matryoshka": matryoshka_twin,
    "llama_scope": llama_scope_twin,
    "p_anneal": p_anneal_twin,
    "mutual_choice": choice_twin,
    "feature_choice": choice_twin,
    "relu": relu_twin,
    "gated": gated_twin,
    "jumprelu": jumprelu_twin,
    "gradient": gradient_twin,
    "end_to_end": end_to_end_twin,
    "temporal_mask": temporal_mask_twin,
    "mutual_feature": mutual_feature_twin,
    "random": baseline_twin,
    "pca": baseline_twin,
}


@pytest.mark.parametrize("progress", [0.01, 0.5])
@pytest.mark.parametrize("share", [(0.0, 0.0), (2.0, 2.0)], ids=["dense products", "sparse products"])
def test_values_terms_and_every_gradient_equal_dense_autograd(sae, share, progress, monkeypatch):
    assert sae.name in TWINS, f"{sae.name} has no dense twin: write its objective again, densely, in TWINS"
    monkeypatch.setattr(latents, "DENSE_ABOVE", share)
    results = []
    for way in (lambda p, b: (p.objective(b).x_hat, p.objective(b).terms), TWINS[sae.name]):
        twin = copy.deepcopy(sae).double()
        x = rows().double().requires_grad_()
        target = x + torch.linspace(-1, 1, x.numel(), dtype=torch.double).view_as(x)  # as a transcoder's is another
        x_hat, terms = way(twin, replace(batch_for(twin, x, progress), target=target))
        sum(terms.values()).backward()
        grads = [x.grad, *(p.grad for p in twin.parameters() if twin.trainable)]
        results.append((x_hat, *(terms[key] for key in sorted(terms)), *grads))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


# building


def test_an_unknown_variant_lists_the_known_ones():
    with pytest.raises(KeyError, match=r"Did you mean 'topk'\? Known: batchtopk.*topk"):
        build("topkk", d_in=4, d_sae=8)


@pytest.mark.parametrize(
    ("config", "error", "says"),
    [
        ({"d_in": 4, "d_sae": 8, "k": 9}, ValueError, "k=9 must be at most d_sae=8"),
        ({"d_in": 4, "d_sae": 8, "kk": 2}, TypeError, "no knob 'kk'.*Its knobs: d_in"),
        ({"d_in": 4}, TypeError, "needs d_sae"),
        ({"d_in": 0, "d_sae": 8, "k": 2}, ValueError, "d_in=0 must be at least 1"),
        ({"d_in": 4, "d_sae": 8, "k": 2, "choose_in": "fp8"}, ValueError, "'fp8' is not one of"),
        ({"d_in": 4, "d_sae": 8, "k": 2, "aux_weight": math.nan}, ValueError, "aux_weight=nan must lie in"),
    ],
)
def test_a_bad_config_says_what_is_wrong(config, error, says):
    with pytest.raises(error, match=says):
        build("topk", **config)


def test_pca_has_twice_the_width_and_says_so():
    assert build("pca", d_in=6, k=2).cfg.d_sae == 12
    with pytest.raises(ValueError, match="Leave d_sae out"):
        build("pca", d_in=6, d_sae=13, k=2)


def notebook_cell():
    class Mine(SAE, name="mine"):
        paper = "arXiv:0000.00000"
        recipe = Recipe(lr=1e-3)

        def encode(self, x):
            return self.pre(x).keep(self.pre(x).over(0.0))

        def objective(self, batch):
            raise NotImplementedError

    return Mine


def test_a_class_from_a_notebook_cell_registers_and_may_be_run_again():
    try:
        first, second = notebook_cell(), notebook_cell()
        assert first is not second and REGISTRY["mine"] is second
        assert type(build("mine", d_in=2, d_sae=3)) is second
    finally:
        REGISTRY.pop("mine", None)


def test_a_name_that_is_taken_is_refused():
    with pytest.raises(ValueError, match=r"'topk' is taken by sae_lab\.saes\.topk\.TopK"):

        class Other(SAE, name="topk"):
            pass

    assert REGISTRY["topk"].__module__ == "sae_lab.saes.topk"


def test_a_knob_with_a_range_refuses_a_default_outside_it():
    with pytest.raises(ValueError, match="must lie in"):
        knob(5, 0, 4, "too large")


def test_numpys_numbers_are_taken_as_pythons():
    cfg = build("topk", d_in=8, d_sae=16, k=np.int64(3), aux_weight=np.float32(0.5)).cfg
    assert [type(value) for value in (cfg.k, cfg.aux_weight)] == [int, float]
    json.dumps(asdict(cfg))
