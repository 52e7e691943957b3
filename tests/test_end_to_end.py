"""End-to-end SAEs: what a splice costs the model, its slopes, the stream of whole contexts, and the three losses."""

import json
import weakref
from dataclasses import replace

import little
import pytest
import torch
from streams import Stream
from test_every_sae import end_to_end_twin

from sae_lab.harvest import activations
from sae_lab.launcher import Job, run_job
from sae_lab.models import costs, load_model, splice_cost
from sae_lab.models.costs import later_residuals
from sae_lab.runs import Run
from sae_lab.saes import Batch, build
from sae_lab.sources import Cost
from sae_lab.training import train
from sae_lab.training.config import TrainConfig
from sae_lab.training.member import Member

STORIES = [" ".join(f"cat {i} sat on mat {j}." for j in range(1 + i % 4)) for i in range(400)]
NEEDS = {"patched_kl"}


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return load_model(little.save(tmp_path_factory.mktemp("llama")))


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny")


def stream(lm, sites="L0R", **options):
    given = {"buffer": 256, "documents": 16, "split": "all", "context": 48, "needs": NEEDS}
    return activations(lm, sites, STORIES, **given | options)


def sae(kind="e2e", d_in=16, d_sae=48, **config):
    return build("end_to_end", d_in=d_in, d_sae=d_sae, kind=kind, choose_in="float32", **config)


def noisy(x, seed=0, size=0.2):
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    return x + size * x.norm(dim=1).mean() / x.shape[1] ** 0.5 * noise


def text(lm, rows=5, width=20, seed=0):
    """(ids, mask, which tokens are spliced): right-padded rows with a special token inside."""
    rng = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, lm.vocab, (rows, width), generator=rng)
    ids[:, 0] = ids[1, 7] = lm.tokenizer.bos_token_id
    mask = torch.arange(width)[None] < torch.randint(width // 2, width + 1, (rows, 1), generator=rng)
    return ids, mask, mask & ~lm.special(ids)


# what a splice costs


@pytest.mark.parametrize("site", ["L0R", "L0A", "L0TC", "L0N"])
@pytest.mark.parametrize("chunk", [2048, 40, 1])
def test_cost_and_slopes_are_those_of_autograd_through_one_splice_of_the_whole_text(lm, site, chunk, monkeypatch):
    monkeypatch.setattr(costs, "GRADED", chunk)
    ids, mask, where = text(lm)
    target = "L0M" if site == "L0TC" else site
    x_hat = noisy(lm.read(ids, target, mask)[target][where]).requires_grad_()
    cost = splice_cost(lm, ids, site, mask, where, x_hat, later=True)
    mine = [torch.autograd.grad(number, x_hat, retain_graph=True)[0] for number in cost]
    behind = ["L1R"] if site == "L0R" else ["L0R", "L1R"]  # the last layer's is read by no layer
    new = torch.zeros(*ids.shape, x_hat.shape[1]).masked_scatter(where[..., None], x_hat)
    out = lm.splice(ids, site, lambda _: new, mask, grad=True, moved=behind)
    theirs = out.kl[out.counts].mean(), torch.stack([out.moved[s][where].mean() for s in behind]).mean()
    torch.testing.assert_close(tuple(cost), theirs, rtol=1e-5, atol=1e-7)
    for slope, number in zip(mine, theirs):
        (expected,) = torch.autograd.grad(number, x_hat, retain_graph=True)
        assert expected.norm() > 0
        torch.testing.assert_close(slope, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    (both,) = torch.autograd.grad(3 * cost.kl - 0.1 * cost.later, x_hat)
    torch.testing.assert_close(both, 3 * mine[0] - 0.1 * mine[1])


def test_both_slopes_are_those_of_finite_differences_on_the_embedded_llama(tiny):
    """In float32, whose rounding moves either cost by 1e-6 of itself; the steps below move it by 4e-5 or more."""
    ids, mask = tiny.encode(["The cat sat on the mat and the dog", "Add two cups of flour"])
    where = mask & ~tiny.special(ids)
    x = tiny.read(ids, "L1R", mask)["L1R"][where]
    x_hat = noisy(x).requires_grad_()
    cost = splice_cost(tiny, ids, "L1R", mask, where, x_hat, later=True)
    step = 5e-3 * x.norm(dim=1).mean()
    for number in (0, 1):
        (slope,) = torch.autograd.grad(cost[number], x_hat, retain_graph=True)
        for direction in (
            slope,
            noisy(torch.ones_like(slope), seed=3, size=1.0),
            torch.eye(*slope.shape)[4].expand_as(x),
        ):
            d = step * direction / direction.norm()
            with torch.no_grad():
                up, down = (splice_cost(tiny, ids, "L1R", mask, where, x_hat + s * d, later=True) for s in (1, -1))
            found, expected = float(up[number] - down[number]) / 2, float((slope * d).sum())
            assert found == pytest.approx(expected, rel=5e-3, abs=2e-6 * cost[number].item())


def test_the_model_loses_nothing_by_its_own_activations(tiny):
    source = activations(tiny, "L1R", context=64, buffer=512, needs=NEEDS)
    rows = source.next(128)["L1R"]
    x = rows.x.clone().requires_grad_()
    cost = rows.patched_kl(x, later=True)
    assert cost.kl.abs() < 1e-7 and cost.later == 0
    lost, there = (
        torch.autograd.grad(rows.patched_kl(h := y.requires_grad_()).kl, h)[0].norm() for y in (x, noisy(rows.x))
    )
    assert lost < 1e-4 * there


def test_no_slope_is_computed_where_nobody_asks_for_one(lm):
    ids, mask, where = text(lm)
    x = noisy(lm.read(ids, "L0R", mask)["L0R"][where])
    plain, graded = (splice_cost(lm, ids, "L0R", mask, where, h, later=True) for h in (x, x.clone().requires_grad_()))
    assert not plain.kl.requires_grad and graded.kl.requires_grad
    assert torch.equal(plain.kl, graded.kl) and torch.equal(plain.later, graded.later)
    assert splice_cost(lm, ids, "L0R", mask, where, x).later == 0


def test_a_model_in_bfloat16_has_the_cost_and_slope_of_its_own_rounding(lm):
    ids, mask, where = text(lm)
    x_hat = noisy(lm.read(ids, "L0R", mask)["L0R"][where]).requires_grad_()
    coarse = load_model(lm.name, dtype="bfloat16")
    fine, rough = (splice_cost(m, ids, "L0R", mask, where, x_hat, later=True) for m in (lm, coarse))
    assert rough.kl.dtype == torch.float32
    for a, b in zip(fine, rough):
        assert a.item() == pytest.approx(b.item(), rel=0.05)
        slopes = [torch.autograd.grad(number, x_hat, retain_graph=True)[0].ravel() for number in (a, b)]
        assert torch.cosine_similarity(*slopes, dim=0) > 0.99


class Held:
    """A tensor that some graph keeps for its backward pass."""

    def __init__(self, tensor):
        self.tensor = tensor


def test_of_the_models_graph_never_more_than_a_few_rows_exist_and_nothing_is_left(lm, monkeypatch):
    monkeypatch.setattr(costs, "GRADED", 96)
    rows, model, most, alive = stream(lm).next(400)["L0R"], sae(), [0], weakref.WeakSet()

    def pack(tensor):
        held = Held(tensor)
        alive.add(held)
        logits = [h.tensor.numel() // lm.vocab for h in alive if h.tensor.shape[-1:] == (lm.vocab,)]
        most[0] = max(most[0], *logits, 0)
        return held

    batch = Batch(rows.x, rows.target, torch.zeros(48, dtype=torch.bool), patched_kl=rows.patched_kl)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.tensor):
        out = model.objective(batch)
    assert 48 <= most[0] <= 96, "the hooks do see the model's graph"
    assert not [h for h in alive if h.tensor.shape[-1:] == (lm.vocab,)]
    sum(out.terms.values()).backward()
    assert model.W_dec.grad.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in lm.module.parameters())


def test_later_residuals_are_those_that_a_layer_reads(tiny):
    assert later_residuals(tiny, "L0R") == ["L1R", "L2R"]
    assert later_residuals(tiny, "L1M") == later_residuals(tiny, "L1TC") == ["L1R", "L2R"]
    with pytest.raises(ValueError, match=r"Behind L2R no layer of tiny reads a residual.*it has 4 layers"):
        later_residuals(tiny, "L2R")


# the stream of whole contexts


def test_a_batch_is_whole_contexts_with_what_the_model_computes_there(lm):
    source, twin = stream(lm, ["L1R", "L0TC"]), stream(lm)
    for _ in range(5):
        batch, whole = source.next(100), twin.contexts(100)
        assert list(batch) == ["L1R", "L0TC"] and whole.keep.sum() == 100
        for site, x, target in (("L1R", "L1R", "L1R"), ("L0TC", "L0TC", "L0M")):
            found = lm.read(whole.ids, [x, target], whole.mask)
            torch.testing.assert_close(batch[site].x, found[x][whole.keep], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(batch[site].target, found[target][whole.keep], rtol=1e-4, atol=1e-5)
            assert torch.equal(batch[site].doc, whole.doc[whole.keep])
            assert torch.equal(batch[site].position, whole.position[whole.keep])
    assert source.served == 500 and stream(lm, needs={"grad", *NEEDS}).next(64)["L0R"].grad.shape == (64, 16)


def test_only_the_tokens_of_the_batch_are_replaced_and_counted(lm):
    """Special tokens keep their own values, and so do those of the last row for which the batch has no room."""
    source, twin = stream(lm, "L1R"), stream(lm)
    rows, whole = source.next(100)["L1R"], twin.contexts(100)
    out = lm.splice(whole.ids, "L1R", torch.zeros_like, whole.mask, where=whole.keep)
    assert (whole.keep[-1].sum() < whole.mask[-1].sum() - 2) and not (whole.keep & lm.special(whole.ids)).any()
    torch.testing.assert_close(rows.patched_kl(torch.zeros_like(rows.x)).kl, out.kl[out.counts].mean())


@pytest.mark.parametrize("batches", [0, 1, 4])
def test_a_stream_of_contexts_resumes_bit_for_bit(lm, batches):
    source = stream(lm, needs={"grad", *NEEDS})
    for _ in range(batches):
        source.next(70)
    tensors, told = source.state()
    assert not [name for name in tensors if name.startswith("ring")], "there is none to keep"
    resumed = stream(lm, needs={"grad", *NEEDS})
    resumed.restore({k: t.clone() for k, t in tensors.items()}, json.loads(json.dumps(told)))
    assert resumed.served == 70 * batches
    assert resumed.statistics("L0R").mean_square == source.statistics("L0R").mean_square
    for _ in range(6):
        a, b = source.next(70)["L0R"], resumed.next(70)["L0R"]
        assert all(torch.equal(getattr(a, f), getattr(b, f)) for f in ("x", "target", "doc", "position", "grad"))
        assert torch.equal(a.patched_kl(noisy(a.x)).kl, b.patched_kl(noisy(a.x)).kl)


def test_the_scale_is_that_of_the_shuffled_stream(lm):
    shuffled, whole = stream(lm, needs=()).statistics("L0R"), stream(lm).statistics("L0R")
    assert (shuffled.mean_norm, shuffled.tokens) == (whole.mean_norm, whole.tokens)


# the three losses


@pytest.mark.parametrize("kind", ["local", "e2e", "e2e_ds"])
def test_every_gradient_equals_dense_autograd(kind):
    rng = torch.Generator().manual_seed(0)
    x, target, readout = (torch.randn(n, 8, generator=rng, dtype=torch.float64) for n in (40, 40, 11))

    def cost(x_hat, later=False):
        logp, logq = ((a @ readout.T).log_softmax(-1) for a in (x, x_hat))
        return Cost((logp.exp() * (logp - logq)).sum(1).mean(), (x_hat - x).square().sum(1).mean())

    results = []
    for way in (lambda p, b: (p.objective(b).x_hat, p.objective(b).terms), end_to_end_twin):
        model = sae(kind, 8, 24, l1_weight=0.3).double()
        with torch.no_grad():
            model.b_enc += torch.linspace(-0.1, 0.2, 24)
        x_hat, terms = way(model, Batch(x, target, torch.zeros(24, dtype=torch.bool), patched_kl=cost))
        sum(terms.values()).backward()
        results.append([x_hat, *(terms[name] for name in sorted(terms)), *(p.grad for p in model.parameters())])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def test_the_weights_are_the_papers_of_each_kind():
    x, none = torch.randn(30, 8), torch.zeros(24, dtype=torch.bool)
    batch = Batch(x, x, none, patched_kl=lambda x_hat, later=False: Cost(torch.tensor(1.0), torch.tensor(float(later))))
    for kind, l1_weight, others in (
        ("local", 6.0, {"mse"}),
        ("e2e", 1.5, {"kl": 1.0}),
        ("e2e_ds", 1.5, {"kl": 0.5, "later": 2.5 / 8}),
    ):
        out = sae(kind, 8, 24).objective(batch)
        priced = l1_weight * out.z.value.sum() / 30 / 8
        torch.testing.assert_close(out.terms.pop("l1"), priced)
        assert set(out.terms) == set(others)
        if kind == "local":
            torch.testing.assert_close(out.terms["mse"], (out.x_hat - x).square().mean())
        else:
            assert {name: round(term.item(), 6) for name, term in out.terms.items()} == others


def test_holding_rows_at_unit_norm_follows_the_gradient_of_rows_normalised_in_the_forward_pass():
    model = sae("local", 8, 24).double()
    x = torch.randn(40, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sum(model.objective(Batch(x, x, torch.zeros(24, dtype=torch.bool))).terms.values()).backward()
    W = model.W_dec.detach().clone().requires_grad_()
    z = (x @ model.W_enc.T + model.b_enc).relu().detach()
    (z @ (W / W.norm(dim=1, keepdim=True)) + model.b_dec.detach() - x).square().mean().backward()
    along = (model.W_dec.grad * W).sum(1, keepdim=True) * W  # what Adam takes out of it
    assert model.recipe.unit_norm and along.abs().max() > 1e-3
    torch.testing.assert_close(W.grad, model.W_dec.grad - along)


def test_the_decoder_starts_as_a_tight_frame_or_as_orthogonal_rows():
    wide, narrow = sae(d_in=16, d_sae=400).W_dec, sae(d_in=16, d_sae=10).W_dec
    torch.testing.assert_close(narrow @ narrow.T, torch.eye(10), atol=1e-5, rtol=0)
    off = wide.T @ wide * 16 / 400 - torch.eye(16)
    by_chance = build("topk", d_in=16, d_sae=400).W_dec
    assert off.abs().max() < 0.5 * (by_chance.T @ by_chance * 16 / 400 - torch.eye(16)).abs().max()


# training


def test_a_short_training_brings_the_kl_down_on_the_embedded_llama(tiny):
    source = activations(tiny, "L1R", context=64, buffer=256, needs=NEEDS)
    model = sae("e2e", 192, 256, l1_weight=0.05)
    first, *_, last = train(model, source, 256 * 20, batch=256, lr=3e-3, log_every=1)
    assert last.terms["kl"] < 0.5 * first.terms["kl"]
    assert all(p.grad is None for p in tiny.module.parameters())


def test_scaled_or_not_the_model_sees_raw_activations(lm):
    """At any scale a reconstruction of what the SAE was shown is spliced in as it was."""
    rows = stream(lm).next(64)["L0R"]
    expected = rows.patched_kl(noisy(rows.x), later=True)
    member = Member(sae(), "L0R", TrainConfig())
    member.begin(0.03, 0.03)
    x_hat = (0.03 * noisy(rows.x)).requires_grad_()
    found = member.batch(rows, 0.0).patched_kl(x_hat, later=True)
    torch.testing.assert_close(tuple(found), (expected.kl, 0.03**2 * expected.later), rtol=1e-4, atol=1e-6)
    (slope,) = torch.autograd.grad(found.kl, x_hat)
    raw = noisy(rows.x).requires_grad_()
    torch.testing.assert_close(slope, torch.autograd.grad(rows.patched_kl(raw).kl, raw)[0] / 0.03, rtol=1e-3, atol=1e-5)


def test_it_shares_a_stream_with_other_variants_without_disturbing_them(lm):
    def others():
        return [build(name, d_in=16, d_sae=48, k=4, choose_in="float32") for name in ("topk", "batchtopk")]

    how = {"tokens": 64 * 6, "batch": 64, "log_every": 1, "calibration_tokens": 128}
    alone, shared, mine = others(), others(), [sae("e2e_ds"), sae("e2e")]
    list(train(alone, stream(lm), **how))
    *_, last = train([*mine, *shared], stream(lm), **how)
    assert [r.variant for r in last.saes] == ["end_to_end", "end_to_end", "topk", "batchtopk"]
    assert set(last.saes[0].terms) == {"l1", "kl", "later"}
    for a, b in zip(alone, shared):
        assert all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values()))
    assert all(not torch.equal(m.W_enc, sae().W_enc) for m in mine)


def test_a_training_that_was_left_goes_on_to_the_same_bits(lm, tmp_path):
    how = {"tokens": 64 * 9, "batch": 64, "checkpoint_steps": 4, "log_every": 1, "snapshots": 0}
    whole, parts = sae("e2e_ds"), [sae("e2e_ds") for _ in range(2)]
    list(train(whole, stream(lm), run=tmp_path / "whole", **how))
    steps = train(parts[0], stream(lm), run=tmp_path / "parts", **how)
    for _ in range(5):
        next(steps)
    steps.close()
    first, *_ = train(parts[1], stream(lm), run=tmp_path / "parts", **how)
    assert "resumed at step 5" in first.note and first.index == 6
    assert all(torch.equal(p, q) for p, q in zip(whole.state_dict().values(), parts[1].state_dict().values()))
    logs = [[row["terms"] for row in Run(tmp_path / name).rows if "terms" in row] for name in ("whole", "parts")]
    assert logs[0] == logs[1] and len(logs[0]) == 9


def test_a_job_gives_it_the_contexts_it_needs_and_measures_it(lm, tmp_path):
    file = tmp_path / "cats.txt"
    file.write_text("\n<|endoftext|>\n".join(STORIES))
    knobs = {"site": "L0R", "tokens": 128, "batch": 64, "context": 48, "evaluation": 200, "d_sae": 64, "kind": "e2e_ds"}
    run = Run(tmp_path / "run")
    *_, last = run_job(Job.of(variant="end_to_end", model=lm.name, text=str(file), run=str(run.folder), **knobs))
    assert last.index == 2 and set(last.terms) == {"l1", "kl", "later"}
    assert run.config["source"]["needs"] == ["patched_kl"] and run.eval["kl"]["value"] > 0


def test_mistakes_are_told_with_the_way_out(lm):
    with pytest.raises(ValueError, match=r"needs patched_kl: activations\(..., needs=\['patched_kl'\]\)"):
        train(sae(), Stream())
    with pytest.raises(ValueError, match=r"A batch of 40 tokens holds no whole context of 48.*a smaller context"):
        stream(lm).next(40)
    with pytest.raises(ValueError, match=r"Behind L1R no layer of .* reads a residual"):
        next(train(sae("e2e_ds"), stream(lm, "L1R"), 640, batch=64))
    with pytest.raises(ValueError, match="'ds' is not one of 'local', 'e2e', 'e2e_ds'"):
        replace(sae().cfg, kind="ds")
