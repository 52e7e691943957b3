"""The knobs of a training. What is None follows the variant's recipe, which follows its paper."""

from dataclasses import dataclass, fields
from typing import Any

from ..knobs import Checked, hint, knob


@dataclass(frozen=True)
class TrainConfig(Checked):
    tokens: int = knob(1_000_000, 1, 10**13, "activations to train on")
    batch: int = knob(4096, 1, 2**20, "activations per optimiser step")
    lr: float | None = knob(None, 1e-9, 1.0, "peak learning rate; None: the recipe's")
    warmup: float | None = knob(None, 0.0, 1.0, "share of the run over which the rate rises; None: the recipe's")
    decay: float | None = knob(None, 0.0, 1.0, "share of the run, at its end, over which it falls; None: the recipe's")
    clip: float | None = knob(None, 0.0, 1e9, "largest gradient norm of an SAE, 0 for none; None: the recipe's")
    scaling: str | None = knob(
        None, choices=("unit_ms", "sqrt_d", "none"), help="what the input is scaled to; None: the recipe's"
    )
    dead_after: int | None = knob(
        None, 1, 10**13, "tokens of silence before a latent is dead; None: a tenth of the run, at most 10 million"
    )
    sample: int | None = knob(
        None,
        1,
        10**8,
        "activations read before the first step, for what an SAE sets from some; None: 4,096 if one does",
    )
    calibration_tokens: int = knob(32_768, 1, 10**8, "fresh training tokens that set inference thresholds at the end")
    snapshots: int = knob(8, 0, 30, "weights-only copies kept on the way, each at half the steps of the next")
    checkpoint_steps: int = knob(0, 0, 10**9, "steps between checkpoints; 0: only by the clock")
    checkpoint_minutes: float = knob(10.0, 0.0, 1e6, "minutes between checkpoints; 0: only by steps")
    log_every: int = knob(10, 1, 10**6, "steps between measurements")
    seed: int = knob(0, 0, 2**31 - 1, "seed of whatever an objective draws")

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run; the last batch is a full one."""
        return -(-self.tokens // self.batch)

    @property
    def silence(self) -> int:
        """Tokens after which a silent latent counts as dead."""
        return self.dead_after or max(1, min(10_000_000, self.tokens // 10))


def configured(config: TrainConfig | None, **changes: Any) -> TrainConfig:
    """`config`, or the default one, with some knobs changed.

    Raises:
        TypeError: for a knob that there is not; the message names the nearest.
        ValueError: for a value out of range.
    """
    known = [f.name for f in fields(TrainConfig)]
    for name in changes:
        if name not in known:
            raise TypeError(f"train() has no knob {name!r}.{hint(name, known)} Known: {', '.join(known)}.")
    kept = {} if config is None else {name: getattr(config, name) for name in known}
    return TrainConfig(**(kept | changes))
