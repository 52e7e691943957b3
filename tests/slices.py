"""A training on a mesh: python tests/slices.py WORLD LATENTS OUT VARIANT[:BUG][@STEP] ...

What WORLD processes make of a variant goes to OUT/VARIANT.safetensors. They are forked once everything is imported.
"""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file

from sae_lab import training
from sae_lab.harvest import activations
from sae_lab.harvest.live import Activations
from sae_lab.models import load_model
from sae_lab.saes import build
from sae_lab.sparse import Mesh, together
from sae_lab.sparse import mesh as current
from sae_lab.training import member as members

sys.path.insert(0, str(Path(__file__).parent))
from streams import Stream

torch.set_num_threads(1)
STORIES = [" ".join(f"cat {i} sat on mat {j}." for j in range(1 + i % 4)) for i in range(400)]
SIZES = {"d_in": 16, "d_sae": 64}
HOW = {
    "topk": {"k": 4, "k_aux": 8},
    "batchtopk": {"k": 4, "k_aux": 8},
    "jumprelu": {"target_l0": 4, "bandwidth": 0.05, "init_threshold": 0.05},
    "relu": {"l1_weight": 0.1, "target_l0": 5},
    "matryoshka": {"k": 4, "k_aux": 8, "levels": 4},
    "gated": {"l1_weight": 0.01},
    "p_anneal": {"l1_weight": 0.01},
    "llama_scope": {"k": 4},
    "gradient": {"k": 4, "k_aux": 8},
}
BRIEF = {"tokens": 12 * 64}  # enough to see a mistake
KNOBS = {"tokens": 50 * 64, "batch": 64, "lr": 1e-2, "dead_after": 192, "calibration_tokens": 256, "log_every": 10}


class Doubles(Stream):
    """Activations in float64, with gradients."""

    needs = frozenset({"grad"})

    def next(self, n):
        rows = super().next(n)
        made = {}
        for site, r in rows.items():
            x = r.x.double()
            made[site] = r._replace(x=x, target=x, grad=torch.sin(x))
        return made


class Read:
    """Activations of a model on a text, in float64.

    Attributes:
        passes: of the model so far.
    """

    def __init__(self, folder):
        lm, self.passes = load_model(folder), 0
        self._stream, self._rows = activations(lm, "L1R", text=STORIES, split="all", documents=4, buffer=512), lm.rows
        lm.rows, self.rows = self._counted, None

    def _counted(self, *asked):
        self.passes += 1
        return self._rows(*asked)

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def next(self, n):
        made = {}
        for site, r in self._stream.next(n).items():
            x = r.x.double()
            made[site] = r._replace(x=x, target=x)
        return made


def trained(variant, mesh=None, until=None, source=None, **more):
    """An SAE and its steps, to the end or until one of them."""
    sae, steps = build(variant, **SIZES, **HOW[variant], seed=1).double(), []
    for step in training.train(sae, source or Doubles(), mesh=mesh, **KNOBS | more):
        steps.append(step)
        if step.index == until:
            break
    return sae, steps


def broken_sum(self, t, axis, *how):
    """The centre's gradient comes from this slice's latents alone."""
    inside = sys._getframe(1).f_code.co_filename.endswith("preacts.py")
    return t if axis == "latents" and inside else WHOLE(self, t, axis, *how)


def best_of_own_batch(mesh, n, offer):
    s, score = offer(n // mesh.size("all"))
    return s, torch.ones_like(score, dtype=torch.bool)


def blank(self, number, row=0):
    if number == 3:
        raise ValueError("Block 3 is blank")
    return READ(self, number, row)


WHOLE, READ = Mesh.reduced, Activations._read_alone
BUGS = {  # mistakes that somebody could make; "text" is none, but a model that reads
    "": [],
    "text": [],
    "unread": [(Activations, "_read_alone", blank)],
    "b_dec": [(Mesh, "reduced", broken_sum)],
    "gradients": [(members.Member, "synchronise", lambda self: None)],
    "threshold": [(together, "_best_of_batch", best_of_own_batch)],
    "cut": [(together, "_best_of_tokens", lambda mesh, s, score, k: torch.ones_like(score, dtype=torch.bool))],
    "dead": [(members, "tokens", lambda tok: tok)],
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("numbers", nargs=2, type=int)
    parser.add_argument("out", type=Path)
    parser.add_argument("variants", nargs="+")
    given = parser.parse_args()
    world, latents = given.numbers
    place, others = given.out / f"place-{os.getpid()}", []
    for rank in (*range(1, world), 0):
        if rank and (child := os.fork()):
            others.append(child)
        else:
            break
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=world)
    mesh = Mesh(latents)
    for name in given.variants:
        name, _, until = name.partition("@")
        variant, _, bug = name.partition(":")
        cut = {"run": given.out / f"run-{variant}", "until": int(until), "snapshots": 1} if until else {}
        with pytest.MonkeyPatch.context() as patch:
            for where, what, by in BUGS[bug]:
                patch.setattr(where, what, by)
            source = Read(given.out / "llama") if bug in ("text", "unread") else None
            cut |= BRIEF if bug and source is None else {}
            sae, steps = trained(variant, mesh, source=source, **cut)
        assert current() is None and len(sae.W_dec) == SIZES["d_sae"]
        if rank == world - 1:
            last = steps[-1].saes[0]
            numbers = {"fvu": last.fvu, "l0": last.l0, "dead": last.dead} | last.vitals | last.terms
            if source:
                numbers = {"passes": source.passes}
            told = {f"told.{name}": torch.tensor(float(value)) for name, value in numbers.items()}
            save_file(sae.state_dict() | told, given.out / f"{name}.safetensors")
    dist.destroy_process_group()
    if rank == 0:
        ended = [os.waitpid(child, 0)[1] for child in others]
        sys.exit(int(any(ended)))


if __name__ == "__main__":
    main()
