"""Choices from coarse numbers where rounding hides most: offsets, loud coordinates, wide dictionaries, extreme rows."""

import gc

import pytest
import torch

from sae_lab.saes import Batch, build
from sae_lab.saes.losses import dead_error, mse
from sae_lab.sparse import (
    Adam,
    above,
    backend,
    backend_of,
    batch_topk,
    column_topk,
    corner,
    decode,
    encode,
    scratch,
    topk,
)
from sae_lab.sparse.choose import Above
from sae_lab.sparse.coarse import Coarse, Codes, available

COARSE = pytest.mark.parametrize("coarse", [torch.bfloat16, torch.int8])
BYTES = torch.int8
NEEDS_BYTES = pytest.mark.skipif(not available(), reason="no instruction for 8-bit products on this CPU")


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def unit(W):
    return W / W.norm(dim=1, keepdim=True)


def shared_offset():
    m = unit(randn(1, 256))
    return randn(64, 256) + 100 * m, unit(unit(randn(1024, 256)) + 3 * m), None, 64


def huge_bias():
    return randn(64, 256), unit(randn(1024, 256)), torch.full((1024,), 50.0), 64


def loud_latents():
    x, W = randn(64, 256), unit(randn(1024, 256))
    x[:, 7] *= 0.01
    W[:, 7] = 25.0
    return x, W, None, 64


def few_loud_tokens():
    x = randn(256, 1024)
    x[::64, 5] = 100.0
    return x, unit(randn(1024, 1024)), None, 128


def wide():
    return randn(4, 64), unit(randn(32_768, 64)), None, 512


@COARSE
@pytest.mark.parametrize("make", [shared_offset, huge_bias, loud_latents, few_loud_tokens, wide])
def test_a_choice_that_rounding_would_change_is_made_again(make, coarse):
    x, W, b, k = make()
    for rule, amount in ((topk, k), (batch_topk, k * len(x))):
        fine, rough = (encode(x, W, b, choose_in=c).choose(rule, amount) for c in (None, coarse))
        assert torch.equal(fine.start, rough.start)
        assert torch.equal(fine.latent, rough.latent)


def test_latents_that_choose_their_tokens_are_looked_at_again_too():
    x, W, b, _ = shared_offset()
    quota = torch.full((len(W),), 6)
    fine, rough = (encode(x, W, b, choose_in=c).choose(column_topk, quota) for c in (None, torch.bfloat16))
    assert torch.equal(fine.latent, rough.latent)


@COARSE
def test_a_usual_choice_is_made_once(coarse, monkeypatch):
    x, W = randn(256, 128), unit(randn(2048, 128))
    pre, seen = encode(x, W, choose_in=coarse), []
    dense, unmade = type(pre)._dense, type(pre)._unmade
    monkeypatch.setattr(type(pre), "_dense", lambda self, *a: (seen.append(a[0]), dense(self, *a))[1])
    monkeypatch.setattr(type(pre), "_unmade", lambda self, *a: (seen.append(BYTES), unmade(self, *a))[1])
    for rule, amount in ((topk, 16), (batch_topk, 16 * 256), (column_topk, torch.full((2048,), 40))):
        pre.choose(rule, amount)
    assert set(seen) == {coarse}


@COARSE
def test_a_floor_is_exact_where_rounding_cancels(coarse):
    """Halves of a product that both round by 2^-8, in opposite senses: the bf16 number is 0.5 too low."""
    step, rest = 2.0**-8, 2.0**-20
    x, W = torch.full((1, 64), 1 + step - rest), torch.full((1, 64), 1 + step - rest)
    x[:, 32:], W[:, 32:] = 1 + step + rest, -(1 + step + rest)
    exact = float(x.double() @ W.double().T)
    for below in (0.02, 0.2, 0.24):
        assert len(encode(x, W, choose_in=coarse).over(exact - below).latent) == 1


@NEEDS_BYTES
@pytest.mark.parametrize("d_in", [1, 2, 8, 64])
def test_a_raised_number_is_never_under_the_exact_one(d_in):
    """Latents that point exactly at tokens, with codes that are exact: what is left is rounding to bf16."""
    x = torch.randint(-127, 128, (200, d_in), generator=torch.Generator().manual_seed(d_in)).float()
    x[:, 0] = 127
    x *= torch.rand(200, 1, generator=torch.Generator().manual_seed(0)) + 0.5
    for W in (x, unit(randn(300, d_in))):
        raised = backend_of(x).coarse_dense(Coarse(Codes.of(x), Codes.of(W), None, True), slice(0, 200))
        assert (raised.double() >= x.double() @ W.double().T).all()


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.int8])
def test_no_latents_are_chosen_from_none(dtype):
    x, W, none = randn(200, 32), randn(100, 32), torch.zeros(100, dtype=torch.bool)
    for rule, amount in ((topk, 3), (batch_topk, 9), (column_topk, torch.ones(100).long()), (above, 0.0)):
        assert len(encode(x, W, choose_in=dtype).choose(rule, amount, among=none).latent) == 0


@COARSE
def test_a_floor_of_ones_own_kind_is_exact(coarse):
    class Higher(Above):
        pass

    x, W = randn(256, 4), randn(1024, 4)
    x[:, 0] *= 8
    W[:, 1] *= 8
    for rule in (Above(), Higher()):
        fine, rough = (encode(x, W, choose_in=c).choose(rule, 0.0) for c in (None, coarse))
        assert torch.equal(fine.latent, rough.latent)


@pytest.mark.parametrize("scale", [1e30, 1e-24, 1e-35])
def test_huge_and_tiny_rows_lose_nothing_in_bytes(scale):
    x, W = randn(64, 32), randn(300, 32)
    x[::4] *= scale
    fine, rough = (encode(x, W, choose_in=c).over(0.0) for c in (None, BYTES))
    assert torch.equal(fine.latent, rough.latent)
    if scale > 1e-30:  # smaller rows are zeros to `topk`
        fine, rough = (encode(x, W, choose_in=c).choose(topk, 8) for c in (None, BYTES))
        assert torch.equal(fine.latent, rough.latent)


def test_both_backends_make_the_same_codes():
    x = randn(40, 30)
    x[3], x[5], x[7, 2], x[9, 4] = 0.0, 1e-32, torch.inf, 1e25
    ours = Codes.of(x)
    with backend("torch"):
        theirs = Codes.of(x)
    assert torch.equal(ours.code, theirs.code)
    for a, b in (
        (ours.scale, theirs.scale),
        (ours.norm, theirs.norm),
        (ours.lost / ours.norm, theirs.lost / theirs.norm),
    ):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6, equal_nan=True)
    assert ours.lost[5] == pytest.approx(1e-32 * 30**0.5)


def test_a_nan_of_all_ones_stays_one():
    x, W, b = randn(8, 32), randn(300, 32), torch.zeros(300)
    b[7] = torch.tensor(-1, dtype=torch.int32).view(torch.float32)
    for rule, amount in ((topk, 4), (above, 0.0)):
        assert (encode(x, W, b, choose_in=BYTES).choose(rule, amount).latent == 7).sum() == 8


@pytest.mark.parametrize("dead", [300, 40, 20])
def test_auxk_reaches_a_decoder_that_was_computed(dead):
    """P / |P|, as many write it: few dead latents are a dense corner, whose gradient must pass through the norm."""
    x, W = randn(128, 32), randn(512, 32).requires_grad_()
    grads = []
    for wide in (torch.float32, torch.float64):
        rows, E = x.to(wide), W.detach().to(wide).requires_grad_()
        P = randn(512, 32, seed=1).to(wide).requires_grad_()
        pre = encode(rows, E)
        y = decode(pre.keep(pre.choose(topk, 8)).relu(), unit(P))
        (mse(y, rows) + dead_error(pre, unit(P), rows - y, torch.arange(512) < dead, 16)).backward()
        grads.append((E.grad, P.grad))
    for single, double in zip(*grads):
        torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=1e-4)


def test_adam_takes_a_step_from_auxk_alone():
    sae = build("topk", d_in=32, d_sae=256, k=4, k_aux=16)
    x = randn(64, 32)
    adam = Adam(sae.named_parameters(), lr=1e-2)
    before = sae.W_enc.detach().clone()
    sae.objective(Batch(x, x, torch.arange(256) < 20)).terms["auxk"].backward()
    assert adam.grad_norm() > 0
    adam.step()
    moved = (sae.W_enc != before).any(1)
    assert moved[:20].any() and not moved[20:].any()


@pytest.mark.parametrize("name", ["topk", "jumprelu"])
def test_autocast_changes_nothing(name):
    sae, x = build(name, d_in=32, d_sae=256), randn(64, 32)
    batch = Batch(x, x, torch.zeros(256, dtype=torch.bool))
    grads = []
    for enabled in (False, True):
        sae.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = sum(sae.objective(batch).terms.values())
            loss.backward()
        grads.append((loss.detach(), sae.W_enc.grad, sae.W_dec.grad))
    for plain, cast in zip(*grads):
        torch.testing.assert_close(plain, cast, rtol=2e-2, atol=1e-3)


def test_half_precision_is_refused_on_the_cpu_and_runs_on_plain_torch():
    sae, x = build("batchtopk", d_in=32, d_sae=64, k=4).bfloat16(), randn(20, 32).bfloat16()
    with pytest.raises(TypeError, match=r"float32 or float64"):
        sae.encode(x)
    with backend("torch"):
        sae.objective(Batch(x, x, torch.zeros(64, dtype=torch.bool))).terms["mse"].backward()
    assert sae.W_dec.grad.dtype == torch.bfloat16


def test_scratch_keeps_a_few_pieces_of_a_size():
    from sae_lab.sparse.scratch import SPARE, _free

    size = (1031, 1024)
    held = [scratch(size, torch.float32) for _ in range(SPARE + 9)]
    del held
    gc.collect()
    assert len(_free[1031 * 1024 * 4]) == SPARE


def test_a_corner_gradient_is_added_in_place():
    """Autograd copies a gradient that is a view of another tensor: megabytes per weight."""
    x, W_enc, W_dec = (randn(n, 600).requires_grad_() for n in (300, 512, 512))
    dead = torch.arange(512) < 40
    pre = encode(x, W_enc, again=dead)
    out = decode(pre.keep(pre.choose(topk, 4)), W_dec) + corner(pre, W_dec, dead, 30)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as seen:
        out.sum().backward()
    whole = [list(W_enc.shape)] * 2
    assert not [e for e in seen.events() if e.name == "aten::copy_" and e.input_shapes[:2] == whole]


def test_how_far_scores_reach_is_the_same_on_both_backends():
    start = torch.tensor([0, 40, 41, 300])
    exact, keep = randn(300), torch.rand(300, generator=torch.Generator().manual_seed(0)) < 0.5
    score = exact + randn(300, seed=1) / 10
    ours, theirs = [], []
    for name, given in (("numba", ours), ("torch", theirs)):
        with backend(name):
            given.extend(backend_of(exact).reaches(start, exact, score, keep))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)
    assert ours[1][2] == exact[41:][keep[41:]].min() and ours[2][2] == score[41:].min()


@NEEDS_BYTES
@pytest.mark.parametrize("kind", ["plain", "priced", "scored", "among"])
def test_few_tokens_that_rounding_confuses_choose_again_alone(kind, monkeypatch):
    x, W = randn(512, 64), unit(randn(2000, 64))
    crowd = unit(W[:1] + randn(400, 64) * 1e-3)
    W[100:500] = crowd
    x[::20] = 5 * W[0]  # 400 latents are all but alike to these tokens
    bonus, price, among = torch.rand(512, 1) + 0.5, torch.ones(2000), torch.arange(2000) < 1800
    price[100:500] += torch.linspace(0, 1e-4, 400)
    how = {
        "plain": {},
        "priced": {"price": price},
        "scored": {"score": lambda c, t: c * bonus[t].to(c.dtype), "score_at": lambda s, v: v * bonus[s.token, 0]},
        "among": {"among": among},
    }[kind]
    seen, exactly = [], encode(x, W)._exactly.__func__
    monkeypatch.setattr(type(encode(x, W)), "_exactly", lambda self, *a: (seen.append(self.tok), exactly(self, *a))[1])
    rough = encode(x, W, choose_in=BYTES)
    assert rough.coarse == BYTES
    chosen = rough.choose(topk, 16, **how)
    assert len(seen) == 1 and 26 <= seen[0] <= 51
    fine = encode(x, W).choose(topk, 16, **how)
    assert torch.equal(chosen.start, fine.start) and torch.equal(chosen.latent, fine.latent)
    torch.testing.assert_close(rough.values(chosen), encode(x, W).values(fine))
