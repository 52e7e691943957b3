"""What a plan would take, before anything is trained: groups, forward passes, GPU-hours and bytes, by arithmetic.

Nothing of it is measured but the memory that is free here; what is assumed of a GPU is said beside it.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

import pandas as pd
import torch

from ..arithmetic import (
    HELD,
    KEPT,
    Figures,
    amount,
    cache_bytes,
    depth,
    disk_bytes,
    forward_flop,
    ring_bytes,
    saved_bytes,
    step_flop,
    stored,
    swept_bytes,
)
from ..knobs import Checked, knob
from ..models import figures
from ..sites import Site
from .groups import Sizes, device, grouped, room
from .plan import Asked, Plan, passes

LONG_RING = 2**30  # bytes: a larger one is not saved with checkpoints
SPLICED = 5  # forward passes of a spliced token: clean, of the SAE, of zeros, of the mean; and what reads its text


@dataclass(frozen=True)
class Assumed(Checked):
    """What a GPU does, which no arithmetic says."""

    gpu_flops: float = knob(989e12, 1e9, 1e18, "FLOP/s of one GPU in 16-bit products (an H100 SXM's data sheet)")
    model_share: float = knob(0.4, 0.001, 1.0, "share of it that forward passes of the model reach")
    sae_share: float = knob(0.4, 0.001, 1.0, "share of it that the products of SAEs reach")
    gpu_bandwidth: float = knob(3.35e12, 1e6, 1e15, "bytes/s of one GPU's memory (same data sheet)")
    bandwidth_share: float = knob(0.7, 0.001, 1.0, "share of it that gradients and optimiser reach")
    gpu_memory: float = knob(80.0, 0.1, 1e4, "GB of one GPU; nine tenths are used. Where there is a GPU, it is asked")


@dataclass(frozen=True)
class Group:
    """SAEs that are held at a time.

    Attributes:
        tokens: of the pass.
        depth: layers of the model that are computed.
        forward, step: FLOP of the whole pass in the model, and in the SAEs.
        swept: bytes of memory that gradients and optimisers move in all.
        memory, disk: bytes at most.
        shapes: of each SAE d_in, d_sae, L0.
    """

    saes: list[Asked]
    shapes: list[tuple[int, int, int]]
    sites: list[str]
    tokens: int
    depth: int
    forward: float
    step: float
    swept: float
    memory: int
    disk: int


@dataclass(frozen=True)
class Outlook:
    """What a plan takes.

    Attributes:
        groups: in the order in which they are trained.
        cache: bytes of a cache with the activations of all sites, were one written.
        limit: bytes that a group may take; `why`: who said so.
    """

    plan: Plan
    shape: Figures
    assumed: Assumed
    groups: list[Group]
    cache: int
    limit: float
    why: str

    @property
    def tokens(self) -> int:
        """That the model reads, all passes together."""
        return sum(group.tokens for group in self.groups)

    @property
    def saved(self) -> int:
        """Bytes of the trained SAEs alone."""
        return sum(saved_bytes(self.shape.d_in(self.plan.site(asked)), asked.d_sae) for asked in self.plan.saes)

    @property
    def evaluated(self) -> int:
        """Tokens that the model reads to measure all SAEs."""
        job = self.plan.job
        return len(self.plan.saes) * (job.evaluation + SPLICED * min(32_768, job.evaluation))

    def hours(self, group: Group) -> tuple[float, float, float]:
        """GPU-hours of the model's passes, of the SAEs' products, of gradients and optimisers."""
        a = self.assumed
        seconds = (
            group.forward / (a.gpu_flops * a.model_share),
            group.step / (a.gpu_flops * a.sae_share),
            group.swept / (a.gpu_bandwidth * a.bandwidth_share),
        )
        return tuple(s / 3600 for s in seconds)

    @property
    def evaluation_hours(self) -> float:
        flop = self.evaluated * forward_flop(self.shape, self.shape.layers, self._context)
        return flop / (self.assumed.gpu_flops * self.assumed.model_share) / 3600

    @cached_property
    def gpu_hours(self) -> float:
        """Of everything."""
        return sum(sum(self.hours(group)) for group in self.groups) + self.evaluation_hours

    @property
    def table(self) -> pd.DataFrame:
        """One row per group."""
        names = ("model_hours", "sae_hours", "optimiser_hours")
        return pd.DataFrame(
            {"group": i, "saes": len(g.saes), "sites": len(g.sites), "first": g.sites[0], "last": g.sites[-1]}
            | {"tokens": g.tokens, "layers": g.depth, **dict(zip(names, self.hours(g)))}
            | {"memory": g.memory, "disk": g.disk}
            for i, g in enumerate(self.groups)
        )

    @property
    def assumptions(self) -> list[str]:
        """Everything that the numbers hang on and that was not measured."""
        s = self.shape
        knobs = [
            f"{f.name} = {getattr(self.assumed, f.name):g}: {f.metadata['help']}"
            for f in fields(Assumed)
            if f.name != "gpu_memory" or "assumed" in self.why
        ]
        a_token = forward_flop(s, s.layers, self._context)
        forward = (
            f"a token costs {2 * s.layer_params / 1e9:.3g} GFLOP a layer and attention over half of {self._context:,}, "
            f"in all {s.layers} layers {a_token / 1e9:.3g}; a pass stops after the layer of its last site, without head"
        )
        widths = sorted({shape for group in self.groups for shape in group.shapes})
        steps = [
            f"{d_sae:,} latents at d_in {d_in:,}, L0 {k}: {step_flop(d_in, d_sae, k) / 1e9:.3g} GFLOP a token, and "
            f"{amount(swept_bytes(d_in, d_sae))} moved a step by gradients and optimiser"
            for d_in, d_sae, k in widths
        ]
        rest = [
            "a step's only dense product is the encoder's forward; K is what an SAE ends at, without annealing",
            f"an SAE takes {HELD} bytes a parameter: weight, gradient and two moments in float32; a ring has "
            f"{self.plan.job.buffer:,} tokens of each site",
            "reading text, shuffling, checkpoints and starting take no time",
            f"a group may take {amount(self.limit)}: {self.why}",
        ]
        return [*knobs, forward, *steps, *rest]

    def to_json(self) -> dict[str, Any]:
        totals = {"saes": len(self.plan.saes), "passes": len(self.groups), "tokens": self.tokens}
        totals |= {"evaluated_tokens": self.evaluated, "gpu_hours": self.gpu_hours, "cache_bytes": self.cache}
        totals |= {"evaluation_hours": self.evaluation_hours, "disk_bytes": sum(g.disk for g in self.groups)}
        totals |= {"saved_bytes": self.saved}
        totals |= {"memory_bytes": max(g.memory for g in self.groups), "limit_bytes": self.limit}
        groups = self.table.to_dict("records")
        said = {"assumed": asdict(self.assumed), "assumptions": self.assumptions, "shape": asdict(self.shape)}
        return totals | {"groups": groups} | said

    def __repr__(self) -> str:
        by = [sum(hours) for hours in zip(*map(self.hours, self.groups))]
        n, many, plan = len(self.plan.saes), len(self.plan.devices), self.plan
        most, disk = max(g.memory for g in self.groups), sum(g.disk for g in self.groups)
        lines = [
            f"{n:,} SAEs at {len(plan.sites):,} sites of {plan.job.model}: {passes(len(self.groups))} over the text, "
            f"{self.tokens:,} tokens through the model; {self.evaluated:,} more to measure them",
            f"{_told(self.gpu_hours)} GPU-hours: model {_told(by[0])}, SAEs {_told(by[1])}, gradients and optimisers "
            f"{_told(by[2])}, evaluation {_told(self.evaluation_hours)}"
            + (f"; over {many} devices" if many > 1 else ""),
            f"memory {amount(most)} at most; disk {amount(disk)}, of it the SAEs {amount(self.saved)}; a cache of all "
            f"sites would take {amount(self.cache)}",
            "",
            self._shown.to_string(index=False),
            "",
            "assumed:",
            *(f"- {said}" for said in self.assumptions),
        ]
        return "\n".join(lines)

    @property
    def _shown(self) -> pd.DataFrame:
        """The table for people: groups that are alike in one row."""
        table = self.table
        table["hours"] = table[["model_hours", "sae_hours", "optimiser_hours"]].sum(axis=1)
        alike = table.groupby(["saes", "sites", "tokens"], sort=False)
        rows = alike.agg(
            groups=("group", "count"), layers=("layers", "max"), hours=("hours", "sum"), memory=("memory", "max")
        )
        rows = rows.reset_index()[["groups", "saes", "sites", "tokens", "layers", "hours", "memory"]]
        shown = {"memory": rows["memory"].map(amount), "hours": rows["hours"].map(_told)}
        return rows.assign(**shown, tokens=rows["tokens"].map("{:,}".format))

    @property
    def _context(self) -> int:
        return self.plan.job.context or 512


def outlook(plan: Plan, shape: Figures | None = None, assumed: Assumed | None = None) -> Outlook:
    """What a plan would take; nothing is loaded but the model's config, and not even that where its `shape` is given.

    Raises:
        FileNotFoundError, ValueError: as `sweep`, for a plan or a model that cannot be.
    """
    elsewhere = shape is not None and not (plan.devices or plan.job.device or torch.cuda.is_available())
    gpu, assumed, shape = (
        elsewhere or device(plan).startswith("cuda"),
        assumed or Assumed(),
        shape or figures(plan.job.model),
    )
    plan.check()
    for site in plan.sites:
        shape.d_in(site)
    limit, why = _limit(plan, assumed, gpu)
    size = Sizes(plan, shape, gpu)
    groups = [_group(size, group) for group in grouped(size, limit)]
    widths = [shape.d_in(site) for site in stored(plan.sites)]
    cache = cache_bytes(max(group.tokens for group in groups), widths)
    return Outlook(plan, shape, assumed, groups, cache, limit, why)


def _limit(plan: Plan, assumed: Assumed, gpu: bool) -> tuple[float, str]:
    if plan.memory:
        return room(plan), "memory= says so"
    if gpu and not torch.cuda.is_available():
        return 0.9 * assumed.gpu_memory * 1e9, "assumed: nine tenths of gpu_memory"
    return room(plan), "measured: most of what is free here"


def _group(size: Sizes, group: Sequence[Asked]) -> Group:
    plan, of = size.plan, size.of
    train, shapes = size.job(group[0]).train, [size.shape(asked) for asked in group]
    sites = list(dict.fromkeys(str(Site(plan.site(asked))) for asked in group))
    tokens, layers = train.steps * train.batch, depth(stored(sites))
    ring = ring_bytes(size.widths(group), size.slots(group), size.number)
    kept = KEPT * ring if ring < LONG_RING else 0
    return Group(
        list(group),
        shapes,
        sites,
        tokens,
        layers,
        tokens * forward_flop(of, layers, plan.job.context or 512),
        tokens * sum(step_flop(*shape) for shape in shapes),
        float(train.steps * sum(swept_bytes(*shape[:2]) for shape in shapes)),
        size(group),
        sum(disk_bytes(saved_bytes(d_in, d_sae), d_sae, train.snapshots) for d_in, d_sae, _ in shapes) + kept,
    )


def _told(hours: float) -> str:
    return f"{hours:,.1f}" if hours >= 1 else f"{hours:.2g}"
