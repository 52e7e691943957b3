"""Sparse objectives against dense autograd in the shape that the benchmark times: terms, slopes, whole steps."""

import copy
import json
import math
from dataclasses import replace

import bench_twins
import pytest
import torch
from bench_twins import sparse_step
from twins import TWINS, dense_step

from sae_lab.knobs import knobs
from sae_lab.saes import REGISTRY, Batch, build
from sae_lab.sources import Cost

TOK, D_IN, D_SAE, DEAD = 160, 24, 96, 12
SMALL = {"k": 5, "k_aux": 4, "l1_weight": 0.5, "l0_weight": 0.1, "bandwidth": 0.2, "init_threshold": 0.15, "c": 0.5}
TRAINED = sorted(name for name in REGISTRY if REGISTRY[name].trainable)


def small(name, choose_in="float32"):
    """An SAE whose parameters are all uneven, and whose running statistics are, too."""
    known = {row.name for row in knobs(REGISTRY[name].Config)}
    sae = build(name, d_in=D_IN, d_sae=D_SAE, choose_in=choose_in, **{k: v for k, v in SMALL.items() if k in known})
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in sae.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=rng))
        if sae.recipe.unit_norm:
            sae.W_dec /= sae.W_dec.norm(dim=1, keepdim=True)
        for buffer, value in {
            "density": torch.rand(D_SAE, generator=rng),
            "masked": torch.arange(D_SAE) % 3 == 0,
        }.items():
            if hasattr(sae, buffer):
                getattr(sae, buffer).copy_(value)
    return sae


def batch_for(sae, progress, dead=DEAD, seed=0):
    """Rows of uneven norms, and a target that is near them."""
    rng = torch.Generator().manual_seed(seed)
    x, noise, grad = (torch.randn(TOK, D_IN, generator=rng).to(sae.W_dec) for _ in range(3))
    x *= torch.linspace(0.2, 1.5, TOK).to(x)[:, None]
    target = x + 0.3 * noise

    def patched_kl(x_hat, later=False):
        return Cost((x_hat - target).square().sum(1).mean(), x_hat.sum())

    peer = small(sae.name).to(sae.W_dec)
    peer.cfg = replace(peer.cfg, seed=1)
    with torch.no_grad():
        peer.W_dec.copy_(torch.randn(D_SAE, D_IN, generator=rng))
    extra = {"grad": grad, "patched_kl": patched_kl, "peers": (peer,)}
    return Batch(x, target, torch.arange(D_SAE) < dead, progress, **{need: extra[need] for need in sae.needs})


def slopes(sae, terms, batch):
    """Of the sum of terms, with respect to every parameter: also those of peers."""
    sum(terms.values()).backward()
    found = {name: p.grad for name, p in sae.named_parameters()}
    return found | {f"peer {i}": peer.W_dec.grad for i, peer in enumerate(batch.peers)}


def test_every_trained_variant_has_a_twin():
    assert sorted(TWINS) == TRAINED


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize(
    ("choose_in", "dead", "progress"),
    [*(("float32", DEAD, at) for at in (0.03, 0.5, 1.0)), ("bfloat16", 0, 1.0), ("int8", 0, 1.0)],
)
def test_terms_and_slopes_are_those_of_dense_autograd(name, choose_in, dead, progress):
    found = []
    for objective in (lambda sae, batch: sae.objective(batch).terms, TWINS[name]):
        sae = small(name, choose_in)
        batch = batch_for(sae, progress, dead)
        terms = objective(sae, batch)
        found.append((terms, slopes(sae, terms, batch)))
    (ours, our_slopes), (theirs, their_slopes) = found
    assert ours.keys() == theirs.keys()
    assert {term: ours[term].item() for term in ours} == pytest.approx(
        {term: theirs[term].item() for term in theirs}, rel=1e-5
    )
    for parameter, slope in their_slopes.items():
        assert slope.abs().max() > 0, parameter
        off = (our_slopes[parameter].to_dense() - slope).abs().max() / slope.abs().max()
        assert off < 1e-4, parameter


@pytest.mark.parametrize("name", TRAINED)
def test_whole_steps_leave_the_same_weights_and_statistics(name, monkeypatch):
    """With clipping, Adam, unit norm and schedules, in float64; the same dice for who is masked."""
    monkeypatch.setattr(torch, "rand", lambda *shape, **rest: torch.linspace(0, 1, *shape))
    ours = small(name).double()
    theirs, start = copy.deepcopy(ours), copy.deepcopy(ours.state_dict())
    batches = [batch_for(ours, at, seed=i) for i, at in enumerate((0.03, 0.12, 0.4, 0.9, 1.0))]
    ways = sparse_step(ours, batches[0], 1e-3), dense_step(theirs, batches[0], 1e-3)
    for batch in batches:
        losses = [way(batch) for way in ways]
        assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    moved = []
    for entry, mine in ours.state_dict().items():
        if entry in ("members", "partner", "matched"):  # whom mutual_feature matched: the twin matches at each step
            continue
        other = theirs.state_dict()[entry]
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6, msg=lambda said, entry=entry: f"{entry}: {said}")
        moved += [entry] if not torch.equal(mine, start[entry]) else []
    assert {parameter for parameter, _ in ours.named_parameters()} <= set(moved)


def test_the_benchmark_has_a_row_for_every_variant_and_says_who_is_exempt(capsys):
    line = ["--shape", "64x16x64x3", "--rounds", "1", "--threads", "1"]
    bench_twins.main([*line, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert [row["variant"] for row in found["variants"]] == TRAINED
    for row in found["variants"]:
        ways = {way for way in row if way.endswith("_ms")}
        assert {"dense_ms", "float32_ms", "bfloat16_ms"} <= ways
        assert row["float32_x"] == pytest.approx(row["dense_ms"] / row["float32_ms"])
        assert row["off"] < 1e-4 and math.isfinite(row["l0"])
        assert bool(row["exempt"]) == (row["variant"] in ("end_to_end", "mutual_feature"))
    bench_twins.main([*line, "--variants", "topk", "relu"])
    table = capsys.readouterr().out
    assert "relu" in table and "topk" in table and "gated" not in table
