"""The sparse core against dense autograd in float64, exact choices against torch's, memory, bits, NaN."""

import sys
from itertools import pairwise

import pytest
import torch

from sae_lab.sparse import (
    Chunks,
    Latents,
    Rule,
    Support,
    above,
    backend,
    backend_of,
    batch_topk,
    choice_dtype,
    choose,
    column_topk,
    corner,
    decode,
    dots,
    encode,
    latent_sums,
    latents,
    native,
    preacts,
    probe,
    reference,
    scratch,
    sums,
    topk,
)
from sae_lab.sparse.coarse import Coarse, Codes, available
from sae_lab.sparse.scratch import largest

TOK, D_IN, D_SAE = 70, 12, 90
QUOTA = torch.arange(D_SAE) % 9
FLOOR = torch.linspace(-0.3, 0.5, D_SAE, dtype=torch.float64)
DEAD = torch.arange(D_SAE) % 5 == 0


@pytest.fixture(params=["numba", "torch"], autouse=True)
def each_backend(request):
    with backend(request.param):
        yield request.param


def params(dtype=torch.float64, tok=TOK, d_in=D_IN, d_sae=D_SAE, seed=0):
    """x, W_enc, b_enc, centre, W_dec, b_dec: all leaves."""
    rng = torch.Generator().manual_seed(seed)
    shapes = (tok, d_in), (d_sae, d_in), (d_sae,), (d_in,), (d_sae, d_in), (d_in,)
    new = (torch.randn(*s, generator=rng, dtype=torch.float64) / 3 for s in shapes)
    return [t.to(dtype).requires_grad_() for t in new]


def chosen(s, tok=TOK):
    """The support as a mask."""
    return (
        torch.zeros(tok, s.d_sae, dtype=torch.bool)
        .view(-1)
        .index_fill(0, s.token * s.d_sae + s.latent, True)
        .view(tok, -1)
    )


def largest_of(score, k):
    """Mask of the k largest positive along the last axis."""
    order = score.argsort(dim=-1, descending=True, stable=True)
    return torch.zeros_like(score, dtype=torch.bool).scatter(-1, order[..., :k], True) & (score > 0)


TWINS = {  # how each choice is made from dense numbers
    "topk": (lambda pre: pre.choose(topk, 5), lambda p: largest_of(p, 5)),
    "topk among": (
        lambda pre: pre.choose(topk, 5, among=DEAD),
        lambda p: largest_of(p.masked_fill(~DEAD, -1), 5),
    ),
    "topk signed": (lambda pre: pre.choose(topk, 5, signed=True), lambda p: largest_of(p.abs(), 5)),
    "topk scored": (
        lambda pre: pre.choose(topk, 5, score=lambda c, t: c * FLOOR.exp().to(c.dtype)),
        lambda p: largest_of(p * FLOOR.exp().to(p.dtype), 5),
    ),
    "topk scored at nonzeros": (
        lambda pre: pre.choose(
            topk,
            5,
            score=lambda c, t: c * FLOOR.exp().to(c.dtype),
            score_at=lambda s, v: v * FLOOR.exp().to(v.dtype)[s.latent],
        ),
        lambda p: largest_of(p * FLOOR.exp().to(p.dtype), 5),
    ),
    "topk priced": (
        lambda pre: pre.choose(topk, 5, price=FLOOR.exp().to(pre.centred.dtype)),
        lambda p: largest_of(p * FLOOR.exp().to(p.dtype), 5),
    ),
    "topk priced, some for nothing, signed": (
        lambda pre: pre.choose(topk, 5, price=FLOOR.relu().to(pre.centred.dtype), signed=True),
        lambda p: largest_of((p * FLOOR.relu().to(p.dtype)).abs(), 5),
    ),
    "topk priced among": (
        lambda pre: pre.choose(topk, 5, among=DEAD, price=FLOOR.exp().to(pre.centred.dtype)),
        lambda p: largest_of((p * FLOOR.exp().to(p.dtype)).masked_fill(~DEAD, -1), 5),
    ),
    "batch_topk priced": (
        lambda pre: pre.choose(batch_topk, 5 * TOK, price=FLOOR.exp().to(pre.centred.dtype)),
        lambda p: largest_of((p * FLOOR.exp().to(p.dtype)).ravel(), 5 * TOK).view_as(p),
    ),
    "over priced": (
        lambda pre: pre.choose(above, 0.1, price=FLOOR.exp().to(pre.centred.dtype)),
        lambda p: p * FLOOR.exp().to(p.dtype) > 0.1,
    ),
    "topk scored among": (
        lambda pre: pre.choose(topk, 5, among=DEAD, score=lambda c, t: c * FLOOR.exp().to(c.dtype)),
        lambda p: largest_of((p * FLOOR.exp().to(p.dtype)).masked_fill(~DEAD, -1), 5),
    ),
    "batch_topk": (
        lambda pre: pre.choose(batch_topk, 5 * TOK),
        lambda p: largest_of(p.ravel(), 5 * TOK).view_as(p),
    ),
    "column_topk": (
        lambda pre: pre.choose(column_topk, QUOTA),
        lambda p: torch.stack([largest_of(p[:, i], int(q)) for i, q in enumerate(QUOTA)], 1),
    ),
    "column_topk among": (
        lambda pre: pre.choose(column_topk, QUOTA, among=DEAD),
        lambda p: torch.stack([largest_of(p[:, i], int(q) * bool(DEAD[i])) for i, q in enumerate(QUOTA)], 1),
    ),
    "over": (lambda pre: pre.over(FLOOR), lambda p: p > FLOOR),
    "over one number": (lambda pre: pre.over(0.1), lambda p: p > 0.1),
    "over, some forbidden": (
        lambda pre: pre.over(torch.where(DEAD, torch.inf, 0.0)),
        lambda p: (p > 0) & ~DEAD,
    ),
    "above among": (lambda pre: pre.choose(above, FLOOR, among=DEAD), lambda p: (p > FLOOR) & DEAD),
}


def loss_of(x_hat, z, x):
    """Depends on every entry in its own way."""
    weight = torch.linspace(0.5, 1.5, x_hat.numel(), dtype=x.dtype).view_as(x_hat)
    return ((x_hat - x).square() * weight).sum() + z


@pytest.mark.parametrize("chunk", [1, 2**23], ids=["small chunks", "one chunk"])
@pytest.mark.parametrize("share", [(0.0, 0.0), (2.0, 2.0)], ids=["dense products", "sparse products"])
@pytest.mark.parametrize("name", TWINS)
def test_values_and_every_gradient_equal_dense_autograd(name, share, chunk, monkeypatch):
    monkeypatch.setattr(latents, "DENSE_ABOVE", share)
    monkeypatch.setattr(preacts, "CHUNK_BYTES", chunk)
    choose, mask = TWINS[name]
    norm = lambda W: W.norm(dim=1)  # noqa: E731

    x, W_enc, b_enc, centre, W_dec, b_dec = mine = params()
    pre = encode(x, W_enc, b_enc, centre=centre)
    z = pre.keep(choose(pre))
    x_hat = decode(z, W_dec) + b_dec
    loss_of(x_hat, (z.value * z.at(norm(W_dec))).sum(), x).backward()

    x, W_enc, b_enc, centre, W_dec, b_dec = theirs = params()
    p = (x - centre) @ W_enc.T + b_enc
    f = p * mask(p)
    y = f @ W_dec + b_dec
    loss_of(y, (f * norm(W_dec)).sum(), x).backward()

    assert torch.equal(chosen(z.support), mask(p))
    torch.testing.assert_close(z.dense(), f, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(x_hat, y, rtol=1e-10, atol=1e-12)
    for a, b in zip(mine, theirs):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-10, atol=1e-12)


def test_the_values_own_gradient_is_the_dense_one():
    _, _, _, _, W_dec, _ = params()
    support = Support.where(torch.rand(TOK, D_SAE, generator=torch.Generator().manual_seed(3)) < 0.1)
    value = torch.randn(len(support.latent), dtype=torch.float64, requires_grad=True)
    (decode(Latents(value, support), W_dec).sin()).sum().backward()
    mine, value.grad = value.grad, None
    dense = torch.zeros(TOK * D_SAE, dtype=torch.float64).index_put((support.token * D_SAE + support.latent,), value)
    ((dense.view(TOK, D_SAE) @ W_dec).sin()).sum().backward()
    torch.testing.assert_close(mine, value.grad, rtol=1e-10, atol=1e-12)


def test_without_bias_or_centre_and_with_frozen_weights_only_the_rest_gets_gradients():
    x, W_enc, _, _, W_dec, _ = params()
    W_enc.requires_grad_(False)
    pre = encode(x, W_enc)
    decode(pre.keep(pre.choose(topk, 4)), W_dec.detach()).square().sum().backward()
    assert x.grad is not None and W_enc.grad is None and W_dec.grad is None


NEEDS_BYTES = pytest.mark.skipif(not available(), reason="no instruction for 8-bit products on this CPU")
COARSE = pytest.mark.parametrize("coarse", [torch.bfloat16, torch.int8])


@COARSE
@pytest.mark.parametrize("name", [n for n in TWINS if n != "topk scored among"])
def test_a_coarse_choice_is_the_exact_one(name, coarse, monkeypatch):
    monkeypatch.setattr(preacts, "CHUNK_BYTES", 4096)
    x, W_enc, b_enc, centre, *_ = params(torch.float32)
    choose, _ = TWINS[name]
    fine, rough = (encode(x, W_enc, b_enc, centre=centre, choose_in=d) for d in (None, coarse))
    a, b = fine.keep(choose(fine)), rough.keep(choose(rough))
    assert torch.equal(a.support.start, b.support.start) and torch.equal(a.support.latent, b.support.latent)
    torch.testing.assert_close(a.value, b.value, rtol=1e-5, atol=1e-6)


def heavy(tok=200, d_in=96, d_sae=500):
    """Activations of very different size, some with a huge coordinate, weights of different length, and a bias."""
    rng = torch.Generator().manual_seed(3)
    x = torch.randn(tok, d_in, generator=rng) * (torch.rand(tok, 1, generator=rng) * 6).exp()
    x[::3, 5] *= 20
    W = torch.randn(d_sae, d_in, generator=rng) * (torch.rand(d_sae, 1, generator=rng) * 4 - 2).exp()
    return x, W, torch.randn(d_sae, generator=rng)


def made(coarse):
    return backend_of(coarse.x.scale).coarse_dense(coarse, slice(0, len(coarse.x.code)))


@NEEDS_BYTES
@pytest.mark.parametrize("name", ["numba", "torch"])
def test_eight_bits_miss_by_no_more_than_their_bound(name):
    x, W, b = heavy()
    exact = x.double() @ W.double().T + b
    with backend(name):
        codes = Codes.of(x), Codes.of(W)
        near, over = (made(Coarse(*codes, b, raised)).double() for raised in (False, True))
    for rows, c in zip((x, W), codes):
        rest = rows - c.code * c.scale[:, None]
        torch.testing.assert_close(rest.norm(dim=1), c.lost, rtol=1e-3, atol=0)
        torch.testing.assert_close(rows.norm(dim=1), c.norm)
        assert c.code.int().abs().amax(1).eq(127).all()
    size = x.norm(dim=1)[:, None] * W.norm(dim=1) + b.abs()
    assert ((near - exact).abs() / size).max() < 0.02
    assert (over >= exact).all()
    assert ((over - exact) / size).max() < 0.15


@NEEDS_BYTES
def test_eight_bits_are_the_same_on_both_backends():
    x, W, b = heavy()
    given = []
    for name in ("numba", "torch"):
        with backend(name):
            codes = Codes.of(x)
            given.append((codes.code.int(), made(Coarse(codes, Codes.of(W), b, True)).float()))
    (a, many), (c, same) = given
    assert ((a - c).abs() <= 1).all() and (a != c).float().mean() < 1e-4  # a half may round either way
    torch.testing.assert_close(many, same, rtol=2**-7, atol=1e-3)


@NEEDS_BYTES
@pytest.mark.parametrize("k", [1, 40, 130, 331])
def test_what_is_chosen_in_registers_is_what_dense_numbers_give(k):
    """Whole numbers up to 127 are their own codes: products are exact, and many are equal."""
    rng = torch.Generator().manual_seed(k)
    x, W = (torch.randint(-1, 2, (n, 30), generator=rng).float() for n in (137, 331))
    x[:, 0], W[:, 0] = 127, 127
    x[5], x[6] = torch.nan, 0
    kept, index = torch.zeros(137, 3).bfloat16(), torch.tensor([0, 48, 330])
    dense, floor = x @ W.T - 127**2, torch.randint(-3, 8, (331,), generator=rng).float()
    whole = slice(0, 137)
    with backend("numba"):
        by = Coarse(Codes.of(x), Codes.of(W), torch.full((331,), -(127.0**2)), False)
        found = native.coarse_largest(by, whole, k, index, kept), native.coarse_above(by, whole, floor, index, kept)
    for mine, right in zip(found, (reference.largest(dense, k), reference.above(dense, floor))):
        for a, b in zip(mine, right):
            torch.testing.assert_close(a, b, equal_nan=True, check_dtype=False, rtol=0, atol=0)
    torch.testing.assert_close(kept, dense[:, index].bfloat16(), equal_nan=True)


@NEEDS_BYTES
def test_a_huge_coordinate_makes_the_choice_bf16():
    x, W, b = heavy()
    huge = x.clone()
    huge[:, 7] = 100 * huge.norm(dim=1)
    assert encode(huge, W, b, choose_in=torch.int8).coarse == torch.bfloat16
    assert encode(x, W, b, choose_in=torch.int8).coarse == torch.int8
    for rows in (huge, x):
        fine, rough = (encode(rows, W, b, choose_in=d) for d in (None, torch.int8))
        assert torch.equal(chosen(rough.choose(topk, 10), len(x)), chosen(fine.choose(topk, 10), len(x)))
        assert torch.equal(chosen(rough.over(3.0), len(x)), chosen(fine.over(3.0), len(x)))


def test_without_hardware_for_eight_bits_the_choice_is_that_of_x(monkeypatch):
    x, W, b = heavy()
    monkeypatch.setattr(preacts, "available", lambda: False)
    assert encode(x, W, b, choose_in=torch.int8).choose_in == torch.float32
    assert encode(x.double(), W.double(), b.double(), choose_in=torch.int8).choose_in == torch.float64


def test_over_in_eight_bits_needs_its_margin(monkeypatch):
    """Without it a rounded number just under the floor would lose an entry that is over it."""
    x, W_enc, b_enc, *_ = params(torch.float32, tok=3000)
    p = x @ W_enc.T + b_enc
    assert len(encode(x, W_enc, b_enc, choose_in=torch.int8).over(0.25).latent) == int((p > 0.25).sum())
    monkeypatch.setattr(preacts, "Coarse", lambda x, W, b, raised: Coarse(x, W, b, False))
    assert len(encode(x, W_enc, b_enc, choose_in=torch.int8).over(0.25).latent) < int((p > 0.25).sum())


def test_a_bf16_choice_is_generous_before_it_is_cut(monkeypatch):
    """Without the margin a rounded number just under the floor would lose an entry that is over it."""
    x, W_enc, b_enc, *_ = params(torch.float32, tok=3000)
    p = x @ W_enc.T + b_enc
    pre = encode(x, W_enc, b_enc, choose_in=torch.bfloat16)
    assert len(pre.over(0.25).latent) == int((p > 0.25).sum())
    monkeypatch.setattr(preacts.PreActs, "_margin", lambda self, floor, index: torch.zeros(()))
    rounded = encode(x, W_enc, b_enc, choose_in=torch.bfloat16).over(0.25)
    assert len(rounded.latent) < int((p > 0.25).sum())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(("tok", "n", "k"), [(50, 130, 7), (64, 1024, 32), (33, 100, 90), (5, 64, 64), (3, 7, 9)])
def test_choices_equal_torch(dtype, tok, n, k):
    score = torch.randn(tok, n, generator=torch.Generator().manual_seed(1)).to(dtype)
    positive = score.relu()

    def same(s, want):
        got = positive * chosen(s, tok)
        assert torch.equal(got.float().sort().values, (positive * want).float().sort().values)

    same(topk(score, k), largest_of(positive, k))
    same(batch_topk(score, k * tok), largest_of(positive.ravel(), k * tok).view_as(score))
    quota = torch.arange(n) % (tok + 3)
    s = column_topk(score, quota)
    assert torch.equal(
        (positive * chosen(s, tok)).sort(0, descending=True).values.float(),
        (positive.sort(0, descending=True).values * (torch.arange(tok)[:, None] < quota)).float(),
    )
    floor = torch.linspace(-1, 1, n, dtype=torch.float64).to(torch.promote_types(dtype, torch.float32))
    assert torch.equal(chosen(above(score, floor), tok), score.to(floor.dtype) > floor)


def test_ties_go_to_the_earlier_token_then_the_lower_latent():
    score = torch.ones(4, 200)
    assert topk(score, 3).latent.tolist() == [0, 1, 2] * 4
    s = batch_topk(score, 203)
    assert s.latent.tolist() == [*range(200), 0, 1, 2] and s.start.tolist() == [0, 200, 203, 203, 203]
    assert column_topk(score, torch.ones(200, dtype=torch.long)).start.tolist() == [0, 200, 200, 200, 200]


def test_ties_are_the_same_when_the_scores_come_in_chunks(monkeypatch):
    x = torch.randint(0, 3, (150, 6), generator=torch.Generator().manual_seed(2)).float()
    W = torch.randint(-1, 3, (80, 6), generator=torch.Generator().manual_seed(3)).float()
    whole = encode(x, W)
    rules = [(topk, 7), (batch_topk, 900), (column_topk, torch.arange(80) % 20), (above, 3.0)]
    before = [whole.choose(*rule) for rule in rules]
    monkeypatch.setattr(preacts, "CHUNK_BYTES", 1)
    monkeypatch.setattr(preacts, "FEWEST", 7)
    for rule, a in zip(rules, before):
        b = encode(x, W).choose(*rule)
        assert torch.equal(a.latent, b.latent) and torch.equal(a.start, b.start)


def test_a_rule_of_ones_own_sees_chunks_and_needs_one_method(monkeypatch):
    monkeypatch.setattr(preacts, "CHUNK_BYTES", 1)
    seen = []

    class First(Rule):
        def choose(self, chunks, amount):
            for tokens, score in chunks:
                seen.append((tokens, tuple(score.shape)))
            return Support.rows(torch.arange(amount).expand(chunks.tok, -1), chunks.d_sae)

    x, W_enc, *_ = params()
    assert encode(x, W_enc).choose(First(), 2).latent.tolist() == [0, 1] * TOK
    assert seen == [(slice(0, 64), (64, D_SAE)), (slice(64, 70), (6, D_SAE))]


@pytest.mark.parametrize(("loudness", "seen"), [(1.0, 1), (3.0, 2), (0.2, 2)])
def test_a_guessed_floor_changes_no_choice(loudness, seen):
    """Also where the first tokens, which it is guessed from, are louder or quieter than the others."""
    score = torch.randn(700, 300, generator=torch.Generator().manual_seed(4)).relu()
    score[: choose.SAMPLE] *= loudness
    times = []

    def pieces():
        times.append(1)
        return ((slice(t, t + 140), score[t : t + 140]) for t in range(0, 700, 140))

    s = batch_topk(Chunks(700, 300, pieces), 2100)
    assert len(s.latent) == 2100 and len(times) == seen
    assert torch.equal(chosen(s, 700), score > score.ravel().sort().values[-2101])


def test_a_score_is_told_which_tokens_it_sees(monkeypatch):
    monkeypatch.setattr(preacts, "CHUNK_BYTES", 1)
    x, W_enc, *_ = params(torch.float32)
    bonus = torch.rand(TOK, D_SAE, generator=torch.Generator().manual_seed(5))
    for choose_in in (None, torch.bfloat16, torch.int8):
        s = encode(x, W_enc, choose_in=choose_in).choose(topk, 6, score=lambda c, t: c.relu() * bonus[t].to(c.dtype))
        assert torch.equal(chosen(s), largest_of((x @ W_enc.T).relu() * bonus, 6))


@pytest.mark.parametrize(
    "rule", [(topk, 8), (batch_topk, 8 * 4096), (column_topk, torch.full((600,), 50)), (above, 4.0)]
)
def test_the_whole_of_the_scores_never_exists(rule, monkeypatch):
    monkeypatch.setattr(preacts, "CHUNK_BYTES", 2**18)
    tok, d_sae = 4096, 600
    rng = torch.Generator().manual_seed(0)
    x, W = torch.randn(tok, 8, generator=rng), torch.randn(d_sae, 8, generator=rng) / 2
    sizes = []
    real = torch.Tensor.new_empty

    def counted(fn):
        def wrapped(*args, **kwargs):
            out = fn(*args, **kwargs)
            sizes.append(out.numel())
            return out

        return wrapped

    monkeypatch.setattr(torch.Tensor, "new_empty", counted(real))
    monkeypatch.setattr(torch, "empty", counted(torch.empty))
    largest(reset=True)
    pre = encode(x, W)
    pre.keep(pre.choose(*rule))
    assert largest() <= 2**18
    assert max(sizes) < tok * d_sae / 8


@pytest.mark.parametrize("kept", [2**27, 0], ids=["kept", "too large to keep"])
@pytest.mark.parametrize("choose_in", [torch.float32, torch.bfloat16, torch.int8])
def test_a_second_choice_among_latents_named_beforehand_takes_the_numbers_of_the_first(choose_in, kept, monkeypatch):
    monkeypatch.setattr(preacts, "REMEMBERED", kept)
    monkeypatch.setattr(preacts, "CHUNK_BYTES", 1)
    x, W_enc, b_enc, *_ = params(torch.float32)
    products = []
    for where, name in ((native, "product"), (reference, "product"), (preacts.PreActs, "_product")):
        real = getattr(where, name)
        monkeypatch.setattr(where, name, lambda *a, real=real, **b: products.append(a) or real(*a, **b))
    with torch.no_grad():
        pre = encode(x, W_enc, b_enc, choose_in=choose_in, again=DEAD)
        first, whole = pre.choose(topk, 4), len(products)
        second = pre.choose(topk, 2, among=DEAD)
        assert len(products) == whole + (0 if kept else whole)
        other = encode(x, W_enc, b_enc)
        assert torch.equal(chosen(second), chosen(other.choose(topk, 2, among=DEAD)))
        assert torch.equal(chosen(first), chosen(other.choose(topk, 4)))
        torch.testing.assert_close(pre.values(second), other.values(second))


CORNER = sys.modules["sae_lab.sparse.corner"]  # the package's attribute of that name is the function


def corners(x, W_enc, b_enc, centre, W_dec, k, **kwargs):
    pre = encode(x, W_enc, b_enc, centre=centre, again=DEAD, **kwargs)
    return pre, corner(pre, W_dec, DEAD, k)


@pytest.mark.parametrize("k", [9, 14, 200])
def test_a_corner_is_what_its_nonzeros_give(k):
    given = []
    for dense in (True, False):
        leaves = params()[:5]
        pre, out = corners(*leaves, k)
        assert out is not None
        if not dense:
            out = decode(pre.keep(pre.choose(topk, k, among=DEAD)).relu(), leaves[4])
        weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        (out * weight).sum().backward()
        given.append([out, *(leaf.grad.to_dense() for leaf in leaves)])
    for a, b in zip(*given):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("quick", [True, False])
def test_few_nonzeros_are_no_corner(monkeypatch, quick):
    monkeypatch.setattr(CORNER, "half_is_quick", lambda device, d_in: quick)
    leaves = params()[:5]
    assert corners(*leaves, 4)[1] is None and corners(*leaves, 5)[1] is not None
    assert (corners(*params(torch.float32)[:5], 2, choose_in=torch.bfloat16)[1] is not None) == quick
    assert corner(encode(*leaves[:2]), leaves[4], torch.zeros(D_SAE, dtype=torch.bool), 3) is None


@COARSE
@pytest.mark.parametrize("quick", [True, False])
def test_a_corner_is_as_exact_as_bf16(monkeypatch, coarse, quick):
    """Whatever its products are made in: what it keeps was chosen by coarse numbers."""
    monkeypatch.setattr(CORNER, "half_is_quick", lambda device, d_in: quick)
    leaves = params(torch.float32)[:5]
    pre, near = corners(*leaves, 9, choose_in=coarse)
    with torch.no_grad():
        pre.choose(topk, 4)
        assert pre.dense_among(DEAD, DEAD.nonzero()[:, 0]) is pre.seen[coarse]  # no second product
    (_, fine), (_, again) = corners(*leaves, 9), (pre, corner(pre, leaves[4], DEAD, 9))
    off = (near - fine).norm() / fine.norm()
    assert 1e-5 < off < 0.02 and (again - fine).norm() / fine.norm() < 0.02


def test_a_corner_gradient_joins_the_others_of_its_weight():
    """It is sparse; autograd adds it to the dense one, whichever comes first."""
    leaves = params()[:5]
    pre, out = corners(*leaves, 9)
    whole = decode(pre.keep(pre.choose(topk, 4)), leaves[4])
    (out + whole).square().sum().backward()
    assert not any(leaf.grad.is_sparse for leaf in leaves)


def test_the_largest_are_kept_where_they_are():
    score = torch.tensor(
        [[3, -1, 3, 2, 3, 0.5], [-1, -2, -3, 0, -4, -5], [1, 2, 0, 0, 0, 0], [torch.nan, 1, 2, 3, 4, 5]]
    )
    kept = backend_of(score).keep_largest(score, 2)
    assert kept[:3].tolist() == [[3, 0, 3, 0, 0, 0], [0] * 6, [1, 2, 0, 0, 0, 0]]
    assert kept[3].isnan()[0] and kept[3, 1:].tolist() == [0, 0, 0, 0, 5]


def test_an_empty_batch_of_latents_works():
    x, W_enc, b_enc, _, W_dec, b_dec = params()
    pre = encode(x, W_enc, b_enc)
    z = pre.keep(pre.over(1e9))
    (decode(z, W_dec) + b_dec).sum().backward()
    assert z.l0 == 0 and not z.fired.any() and not W_dec.grad.any() and not x.grad.any()
    assert len(pre.choose(topk, 3, among=torch.zeros(D_SAE, dtype=torch.bool)).latent) == 0


@pytest.mark.parametrize("nan", [torch.nan, -torch.nan], ids=["positive", "negative"])
@pytest.mark.parametrize("where", ["x", "W_enc", "b_enc"])
@pytest.mark.parametrize("name", [n for n in TWINS if "among" not in n and "forbidden" not in n])
@pytest.mark.parametrize("choose_in", [torch.float32, torch.bfloat16, torch.int8])
def test_nan_reaches_the_loss(choose_in, name, where, nan):
    x, W_enc, b_enc, *_ = params(torch.float32)
    {"x": x, "W_enc": W_enc, "b_enc": b_enc}[where].data.view(-1)[17] = nan
    pre = encode(x, W_enc, b_enc, choose_in=choose_in)
    assert decode(pre.keep(TWINS[name][0](pre)).relu(), W_enc).sum().isnan()


def test_leading_axes_come_back():
    x, W_enc, *_ = params()
    pre = encode(x.view(5, 14, D_IN), W_enc)
    z = pre.keep(pre.choose(topk, 3))
    assert z.dense().shape == (5, 14, D_SAE) and decode(z, W_enc).shape == (5, 14, D_IN)
    flat = encode(x, W_enc)
    torch.testing.assert_close(decode(z, W_enc).view(TOK, D_IN), decode(flat.keep(flat.choose(topk, 3)), W_enc))


def test_split_gives_every_prefix_of_the_dictionary():
    x, W_enc, _, _, W_dec, _ = params()
    bounds = [7, 30, D_SAE]
    pre = encode(x, W_enc)
    z = pre.keep(pre.choose(topk, 6))
    shells = decode(z.split(bounds), W_dec)
    edges = [0, *bounds]
    for level, (a, b) in enumerate(pairwise(edges)):
        torch.testing.assert_close(shells[:, level], z.dense()[:, a:b] @ W_dec[a:b])


def test_the_two_products_are_what_they_say():
    s = Support.where(torch.rand(9, 11, generator=torch.Generator().manual_seed(1)) < 0.4)
    rows, W = torch.randn(9, 6, dtype=torch.float64), torch.randn(11, 6, dtype=torch.float64)
    v = torch.randn(len(s.latent), dtype=torch.float64)
    for share in (0.0, 2.0):
        latents.DENSE_ABOVE, before = (share, share), latents.DENSE_ABOVE
        fresh = Support(s.latent, s.start, s.d_sae)
        dense = Latents(v, fresh).dense()
        torch.testing.assert_close(dots(fresh, rows, W), (rows @ W.T)[s.token, s.latent.long()])
        torch.testing.assert_close(sums(fresh, v, W), dense @ W)
        torch.testing.assert_close(latent_sums(fresh, v, rows), dense.T @ rows)
        latents.DENSE_ABOVE = before


def test_too_many_nonzeros_are_refused(monkeypatch):
    class Long:
        def __len__(self):
            return 2**31

    with pytest.raises(ValueError, match="Use fewer tokens"):
        Support.__init__.__wrapped__(Support.__new__(Support), Long(), None, 3) if hasattr(
            Support.__init__, "__wrapped__"
        ) else Support(Long(), None, 3)


def test_scratch_is_used_again_only_when_the_last_view_is_gone():
    a = scratch((300, 1024), torch.float32)
    assert a.data_ptr() % 64 == 0
    view, where = a[5:].view(-1), a.data_ptr()
    del a
    assert scratch((300, 1024), torch.float32).data_ptr() != where and view.numel()
    del view
    assert scratch((300, 1024), torch.float32).data_ptr() == where


def test_an_unknown_backend_is_named():
    with pytest.raises(KeyError, match="Known: numba, torch"), backend("cuda"):
        pass


def test_eight_bits_are_chosen_by_what_the_cpu_has_and_never_by_a_measurement(monkeypatch):
    monkeypatch.setattr(probe, "available", lambda: True)
    with monkeypatch.context() as patch:
        patch.setattr(probe, "encode", None)
        assert choice_dtype("cpu", 4096) == torch.int8
    assert choice_dtype("cpu", 8) != torch.int8
    monkeypatch.setattr(probe, "available", lambda: False)
    assert choice_dtype("cpu", 4095) != torch.int8
    monkeypatch.setattr(probe, "encode", None)
    assert choice_dtype("cpu", 4095) in (torch.float32, torch.bfloat16)  # tried once per process and width
