"""What a training will take, worked out from what a machine takes for small things."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from .. import arithmetic, plots, workload
from ..workload import Mesh, Step
from .machine import Machine


@dataclass(frozen=True)
class Prediction:
    """A training as the cost model sees it. Nothing of it was run.

    Attributes:
        step: the sizes of one optimiser step.
        tokens: of the whole training.
        parts: seconds of one step by part; on a mesh, those of one device.
        memory: bytes at the height of a step by kind, the process included; without the model and the stream's buffer.
        disk: bytes of the run folder at most.
        mesh: devices that share the SAE.
        machine: whose constants were taken.
    """

    step: Step
    tokens: int
    parts: Mapping[str, float]
    memory: Mapping[str, int]
    disk: int
    mesh: Mesh
    machine: Machine

    @property
    def steps(self) -> int:
        return -(-self.tokens // self.step.batch)

    @property
    def step_seconds(self) -> float:
        return sum(self.parts.values())

    @property
    def seconds(self) -> float:
        """Of all steps, without what comes before the first and after the last."""
        return self.steps * self.step_seconds

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.step.batch / self.step_seconds

    @property
    def table(self) -> pd.DataFrame:
        """Part, milliseconds a step, share."""
        rows = [{"part": p, "ms": 1e3 * s, "share": s / self.step_seconds} for p, s in self.parts.items()]
        return pd.DataFrame(rows)

    @property
    def figure(self):
        """Milliseconds of each part (plotly)."""
        return plots.ratios(list(self.parts), [1e3 * s for s in self.parts.values()], "ms of a step")

    def to_json(self) -> dict[str, Any]:
        sizes = {f: getattr(self.step, f) for f in self.step.__dataclass_fields__}
        told = {"tokens": self.tokens, "seconds": self.seconds, "rate": self.rate, "parts": dict(self.parts)}
        told |= {"memory": dict(self.memory), "disk": self.disk}
        return {"step": sizes, **told, "mesh": [self.mesh.latents, self.mesh.data], "machine": self.machine.to_json()}

    def __repr__(self) -> str:
        s, total = self.step, sum(self.memory.values())
        return (
            f"{s.variant}, {s.batch:,} tokens x {s.d_in:,} x {s.d_sae:,}, k {s.k:g}, {s.choose_in}: "
            f"{1e3 * self.step_seconds:,.3g} ms a step, {self.rate:,.0f} tokens a second; {self.tokens:,} tokens in "
            f"{self.seconds / 3600:,.3g} h; {total / 1e9:,.2f} GB of memory, {self.disk / 1e9:,.2f} GB of disk"
        )


def predict(
    variant: str = "batchtopk",
    *,
    d_in: int,
    d_sae: int,
    k: float = 32,
    batch: int = 4096,
    tokens: int = 1_000_000,
    choose_in: str = "auto",
    log_every: int = 10,
    snapshots: int = 8,
    machine: Machine | None = None,
    model: Mapping[str, Any] | None = None,
    layers: int | None = None,
    context: int = 512,
    mesh: Mesh | None = None,
    bandwidth: float = 10e9,
    latency: float = 20e-6,
) -> Prediction:
    """What a training of these sizes takes on a machine, worked out; nothing is trained.

    Args:
        k: latents that fire per token: k, or L0 where a variant has no k.
        machine: whose constants to take; None: this one is gauged, for ten seconds.
        model: what a Llama's config.json holds, if it reads text up to the end of `layers` (None: all), in float32.
        mesh: devices like this one that share the SAE, over links of `bandwidth` bytes and `latency` seconds.

    Raises:
        KeyError: a variant whose steps are not modelled.
        ValueError: sizes that make no sense, or at which other products are made.
    """
    if not (isinstance(tokens, int) and tokens >= 1):
        raise ValueError(f"tokens={tokens!r} must be a whole number of at least 1.")
    if not (bandwidth > 0 and latency >= 0):
        raise ValueError(f"bandwidth={bandwidth!r} must be over 0, and latency={latency!r} at least 0.")
    machine, mesh = machine or _here(), mesh or Mesh()
    choose_in = machine.auto(d_in) if choose_in == "auto" else choose_in
    whole = Step(variant, d_in, d_sae, k, batch, choose_in, log_every)
    share = mesh.share(whole)
    parts = machine.times(workload.step(share, machine.cache))
    if exchanged := mesh.seconds(whole, bandwidth, latency):
        parts["exchange"] = exchanged
    if model is not None:
        of = arithmetic.Figures.of(model)
        flop = arithmetic.forward_flop(of, layers or of.layers, context)
        parts["model"] = machine.time({"model mac": share.batch * flop / 2})
    memory, saved = {"process": machine.base} | workload.memory(share), workload.memory(whole)["weights"]
    disk = arithmetic.disk_bytes(saved, d_sae, snapshots)
    return Prediction(whole, tokens, parts, memory, disk, mesh, machine)


def _here() -> Machine:
    from .gauging import gauge

    return gauge()
