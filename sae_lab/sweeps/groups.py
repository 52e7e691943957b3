"""Which SAEs of a plan are held at a time: those of one pass that fit into memory together, by arithmetic."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import psutil
import torch

from ..arithmetic import WRITTEN, Figures, amount, model_bytes, ring_bytes, sae_bytes, sae_params, stored
from ..launcher import checked
from ..models import figures
from ..runs import Run
from ..sites import Site
from .plan import Asked, Plan

OWN = 10**9  # bytes of an interpreter with its libraries, or of a GPU's context
FREE = {"cpu": 0.8, "cuda": 0.9}  # share of a memory that is used
NO_L0 = 64  # latents per token of an SAE that is asked for no L0


def settled(plan: Plan, run: Run) -> list[list[Asked]]:
    """The groups of a sweep. What was free when it began decides for good: it goes on with the same groups.

    Another `memory` makes other groups, and those that are not trained to the end begin anew.

    Raises:
        ValueError: if an SAE alone does not fit into the `memory` that is given.
    """
    known = {asked.name: asked for asked in plan.saes}
    size = lambda: Sizes(plan, figures(plan.job.model), device(plan).startswith("cuda"))  # noqa: E731
    measure = lambda: [[a.name for a in group] for group in grouped(size(), room(plan))]  # noqa: E731
    found = run.study(f"groups/{plan.at_once or 'all'}-{plan.memory or 'free'}", measure)
    return [[known[name] for name in group] for group in found]


def grouped(size: "Sizes", most: float) -> list[list[Asked]]:
    """A plan's groups of which none takes more than `most` bytes.

    Raises:
        ValueError: if one SAE, or one with its peers, does, and the plan says how much it may.
    """
    plan = size.plan
    groups = plan.packed(lambda group: size(group) <= most)
    if plan.memory and (wide := next((group for group in groups if size(group) > most), None)):
        raise ValueError(
            f"{wide[0].name}{' with its peers' * (len(wide) > 1)} takes {amount(size(wide))}, the model with it, and "
            f"memory={plan.memory:g} is in GB: give more, or a smaller d_sae, batch or context."
        )
    return groups


class Sizes:
    """Bytes of groups in training: model, ring, and of each SAE weights, gradient, moments and what a step makes; on a
    CPU a checkpoint is put together in the same memory, one SAE after another."""

    def __init__(self, plan: Plan, of: Figures, gpu: bool):
        self.plan, self.of, self.gpu = plan, of, gpu
        self.number = 4 if plan.job.dtype == "float32" or not (gpu or plan.job.dtype) else 2  # bytes
        self.job, self.sae = cache(lambda asked: plan.job_of(asked, Path())), cache(self._sae)

    def __call__(self, group: Sequence[Asked]) -> int:
        widths, ring = self.widths(group), ring_bytes(self.widths(group), self.slots(group), self.number)
        at_once = 8192 if self.gpu else 2048
        held = OWN + model_bytes(self.of, at_once, widths, self.number) + ring + sum(map(self.sae, group))
        return held if self.gpu else held + max(WRITTEN * sae_params(*self.shape(asked)[:2]) for asked in group)

    def slots(self, group: Sequence[Asked]) -> int:
        """Tokens in a group's ring: a multiple of the batch."""
        job = self.job(group[0])
        return max(2, job.buffer // job.train.batch) * job.train.batch

    def widths(self, group: Sequence[Asked]) -> list[int]:
        """Of the sites that are read for a group."""
        return [self.of.d_in(site) for site in stored(dict.fromkeys(Site(self.plan.site(a)) for a in group))]

    def _sae(self, asked: Asked) -> int:
        return sae_bytes(*self.shape(asked), self.job(asked).train.batch)

    def shape(self, asked: Asked) -> tuple[int, int, int]:
        """d_in, d_sae, and the latents per token that an SAE is asked for."""
        settings = checked(self.job(asked), detached=False)
        l0 = settings.target_l0 or getattr(settings, "k", None) or NO_L0
        return self.of.d_in(self.plan.site(asked)), asked.d_sae, l0


def device(plan: Plan) -> str:
    """Where a plan's first group is trained."""
    return (plan.devices or (plan.job.device or ("cuda" if torch.cuda.is_available() else "cpu"),))[0]


def room(plan: Plan) -> float:
    """Bytes that a group may take: what the plan says, else most of what is there now, divided by who shares it."""
    if plan.memory:
        return plan.memory * 1e9
    where = plan.devices or (device(plan),)
    return min(_free(name) / where.count(name) for name in where)


def _free(name: str) -> float:
    if name == "cpu":
        return FREE["cpu"] * psutil.virtual_memory().available
    return FREE["cuda"] * torch.cuda.mem_get_info(name)[1]
