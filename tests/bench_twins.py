"""One training step of every variant, sparse against its dense autograd twin: python tests/bench_twins.py [--help]

Each way is a whole step: objective, backward, clipping, Adam, decoder rows projected and held at unit norm, running
statistics. A variant's ways take turns and medians are shown. What they compute is the same: `off` is by how much their
first losses differ, and test_twins.py compares terms, slopes and weights.
"""

import argparse
import copy
import json
from dataclasses import replace

import torch
from twins import TWINS, dense_step

from sae_lab.bench import STILL, heavy_tailed, sized, sparse_at, taking_turns
from sae_lab.saes import Batch
from sae_lab.sources import Cost
from sae_lab.sparse import Adam
from sae_lab.sparse.coarse import available

EXEMPT = {"end_to_end": "no model in its step", "mutual_feature": "no peer to match"}
DENSE, EIGHT = "dense", "int8"
CHOICES = ("float32", "bfloat16", EIGHT)


def batch_of(sae, x):
    """Nothing dead, at the end of the run: schedules are over, Feature Choice is in its second phase."""

    def patched_kl(x_hat, later=False):
        error = (x_hat - x).square().sum(1).mean()
        return Cost(error, error)

    grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    given = {"grad": grad, "patched_kl": patched_kl, "peers": ()}
    dead = torch.zeros(sae.cfg.d_sae, dtype=torch.bool)
    return Batch(x, x, dead, progress=1.0, **{need: given[need] for need in sae.needs})


def sparse_step(sae, batch, lr):
    """A whole training step as `train` takes it, whose loss it returns."""
    unit = {"W_dec"} if sae.recipe.unit_norm else ()
    adam = Adam(sae.named_parameters(), lr, sae.recipe.betas, sae.recipe.eps, unit)

    def step(batch=batch):
        loss = sum(sae.objective(batch).terms.values())
        loss.backward()
        adam.step(min(1.0, sae.recipe.clip / max(adam.grad_norm(), 1e-12)) if sae.recipe.clip else 1.0)
        adam.zero_grad()
        sae.after_step()
        return loss.item()

    return step


def timed(name, shape, rounds):
    """(one row of the table, what the machine was like)."""
    tokens, d_in, d_sae, k = sized(shape)
    x = heavy_tailed(tokens, d_in)
    sae = sparse_at(name, x, d_sae, k, "float32")
    batch = batch_of(sae, x)
    ways = {DENSE: dense_step(copy.deepcopy(sae), batch, STILL)}
    for choose_in in CHOICES if available() else CHOICES[:2]:
        ours = copy.deepcopy(sae)
        ours.cfg = replace(sae.cfg, choose_in=choose_in)
        ways[choose_in] = sparse_step(ours, batch, STILL)
    with torch.no_grad():
        l0 = copy.deepcopy(sae).objective(batch).z.l0.item()
    first = {way: step() for way, step in ways.items()}
    off = max(abs(loss / first[DENSE] - 1) for loss in first.values())
    bench = taking_turns(ways, DENSE, tokens, rounds, {"shape": shape, "rounds": rounds})
    row = {"variant": name, "l0": l0, "off": off, "exempt": EXEMPT.get(name, "")}
    row |= {f"{way}_ms": ms for way, ms in zip(bench.rows["way"], bench.rows["ms"])}
    return row | {f"{way}_x": row["dense_ms"] / row[f"{way}_ms"] for way in ways if way != DENSE}, bench.about


def main(line=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", default=sorted(TWINS), choices=sorted(TWINS), metavar="NAME")
    parser.add_argument("--shape", default="2048x512x8192x32", help="tokens x d_in x d_sae x L0")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(line)
    torch.set_num_threads(args.threads)
    rows, about = [], {}
    for name in args.variants:
        row, about = timed(name, args.shape, args.rounds)
        rows.append(row)
        if not args.json:
            print(told(row), flush=True)
    said = ", ".join(f"{name} {value}" for name, value in about.items())
    print(json.dumps({"about": about, "variants": rows}) if args.json else f"x: times as fast as dense. {said}")


def told(row):
    """One line: milliseconds of the twin, and how many times faster each precision of the choice is."""
    faster = "".join(f"{way} {row[way + '_x']:6.1f}x   " for way in CHOICES if way + "_x" in row)
    line = f"{row['variant']:16s}dense {row['dense_ms']:8.1f} ms   {faster}L0 {row['l0']:.1f}   off {row['off']:.0e}"
    return line + (f"   exempt: {row['exempt']}" if row["exempt"] else "")


if __name__ == "__main__":
    main()
