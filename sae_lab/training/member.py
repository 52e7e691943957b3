"""One SAE in training: its scale, schedule, optimiser and silent latents; all that a checkpoint must hold of it."""

import copy
import math
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..saes import SAE, Batch, Objective
from ..shapes import LatentMask
from ..sources import Cost, Source
from ..sparse import Adam, Mesh, alone, tokens
from .config import TrainConfig
from .slices import gather, part_of, scatter


class Diverged(FloatingPointError):
    """Losses or gradients of `saes` are no longer finite; `said` of the first."""

    def __init__(self, saes: Iterable[SAE], said: str):
        super().__init__(said)
        self.saes = tuple(saes)


class Member:
    """An SAE on its way: it eats `x * scale` and gives `target * target_scale` until `release` folds both into its
    weights. They are one number unless it transcodes."""

    def __init__(self, sae: SAE, site: str, config: TrainConfig, devices: Mesh | None = None):
        self.mesh, self.sliced = devices, sae.per_latent if devices else ()
        if devices:
            scatter(sae, devices)
        self.sae, self.site, self.config, self.recipe, self.asked = sae, site, config, sae.recipe, sae.cfg
        self.scale = self.target_scale = 1.0
        self.trained_before = bool(sae.origin)
        self.peak = config.lr or self.recipe.lr_for(sae.cfg.d_sae)
        self.peers: tuple[SAE, ...] = ()
        self.silent = torch.zeros(len(sae.W_dec), dtype=torch.int64, device=sae.W_dec.device)
        self.folded = False
        self.adam = None
        if sae.trainable:
            unit = {"W_dec"} if self.recipe.unit_norm else ()
            named = [(name, p) for name, p in sae.named_parameters() if p.requires_grad]
            self.adam = Adam(named, self.peak, self.recipe.betas, self.recipe.eps, unit)
            self.adam.zero_grad()  # whatever somebody left there

    def begin(self, scale: float, target_scale: float) -> None:
        """From here on the SAE eats scaled activations; one that was trained before ate raw ones until now."""
        self.scale, self.target_scale = scale, target_scale
        if self.trained_before:
            self.sae.fold(1 / scale, 1 / target_scale)

    def measured_scale(self, source: Source, site: str) -> float:
        """What multiplies a site's activations, measured once in a run: to unit mean square ("unit_ms"), to a mean norm
        of sqrt(d_in) ("sqrt_d"), or 1 ("none")."""
        scaling, s = self.config.scaling or self.recipe.scaling, source.statistics(site)
        if scaling == "none":
            return 1.0
        size, aim = (
            (s.mean_norm, math.sqrt(self.sae.cfg.d_in)) if scaling == "sqrt_d" else (math.sqrt(s.mean_square), 1.0)
        )
        if not (math.isfinite(size) and size > 0):
            raise ValueError(
                f"The activations have size {size!r} on average: they cannot be scaled. Look at the source."
            )
        return aim / size

    def choose_in(self, dtype: str) -> None:
        """Holds the precision to choose in for the whole run, also where "auto" would now measure another."""
        self.sae.cfg = replace(self.asked, choose_in=dtype)

    @property
    def dead(self) -> LatentMask:
        """Latents silent for longer than the run allows."""
        return self.silent >= self.config.silence

    def batch(self, rows: Any, progress: float) -> Batch:
        """The rows as this SAE sees them: scaled, on its device, with what it needs; on a mesh our part of them."""
        if self.mesh:
            rows = part_of(rows, self.mesh)
        x = self.scaled(rows.x)
        target = x if rows.target is rows.x else self.scaled_target(rows.target)
        return Batch(
            x=x,
            target=target,
            dead=self.dead,
            progress=progress,
            grad=None if rows.grad is None else rows.grad.to(x) / self.target_scale,
            doc=rows.doc,
            position=rows.position,
            patched_kl=rows.patched_kl and partial(self._cost, rows.patched_kl),
            peers=self.peers,
        )

    def scaled(self, x: Tensor) -> Tensor:
        return self.sae.normed(x.to(self.sae.W_dec) * self.scale)

    def scaled_target(self, target: Tensor) -> Tensor:
        return self.sae.normed(target.to(self.sae.W_dec) * self.target_scale)

    def _cost(self, of: Any, x_hat: Tensor, later: bool = False) -> Cost:
        """What a reconstruction costs that is in this SAE's units, and later residuals in these units, too."""
        cost = of(x_hat / self.target_scale, later)
        return cost._replace(later=cost.later * self.target_scale**2)

    def clipping(self, index: int) -> float:
        """What the gradient is multiplied by.

        Raises:
            Diverged: if it is not finite; the weights are still those of before the step.
        """
        norm = self.adam.grad_norm(self.sliced) if self.adam else 0.0
        if not math.isfinite(norm):
            self.adam.zero_grad()
            raise Diverged(
                [self.sae],
                f"The gradient of {self.sae.name} at {self.site} is {norm} at step {index + 1}. Lower lr, or look for "
                "infinities in the activations; the last checkpoint is intact.",
            )
        clip = self.recipe.clip if self.config.clip is None else self.config.clip
        return min(1.0, clip / max(norm, 1e-12)) if clip else 1.0

    def update(self, out: Objective, index: int, clipping: float) -> None:
        """One optimiser step, once the gradients are there; then who fired, and what the variant makes of it."""
        if self.adam is None:
            return
        self.adam.lr = self.lr(index)
        self.adam.step(clipping)
        self.adam.zero_grad()
        self.silent += tokens(len(out.x_hat))
        self.silent.masked_fill_(out.z.fired, 0)
        rows = self.sae.after_step()
        if rows is not None:
            for name, weight in self.adam.params.items():
                if name != "b_dec" and weight.shape[:1] == self.silent.shape:
                    self.adam.reset_rows(name, rows)

    def lr(self, index: int) -> float:
        """The learning rate of a step: a linear rise, a plateau, a linear fall to nothing."""
        steps = self.config.steps
        warmup = self.recipe.warmup if self.config.warmup is None else self.config.warmup
        decay = self.recipe.decay if self.config.decay is None else self.config.decay
        rise = min(1.0, (index + 1) / max(1, math.ceil(warmup * steps)))
        return self.peak * (rise * min(1.0, (steps - index) / max(1, math.ceil(decay * steps))))

    def tensors(self) -> dict[str, Tensor]:
        """Everything of this SAE that the next step depends on."""
        out = {f"sae.{name}": t for name, t in self.sae.state_dict().items()} | {"silent": self.silent}
        if self.adam:
            out |= {f"adam.{name}": t for name, t in self.adam.state_dict().items()}
        return out

    def synchronise(self) -> None:
        """Adds up the gradients of all parts of the batch."""
        for p in self.adam.params.values() if self.mesh and self.adam else ():
            if p.grad is not None:
                p.grad = self.mesh.reduced(p.grad.to_dense() if p.grad.is_sparse else p.grad, "data")

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Puts back what `tensors` gave, of a whole SAE; on a mesh our slice of it."""
        if self.mesh:
            tensors = {n: self.mesh_slice(t) if self.is_sliced(n) else t for n, t in tensors.items()}
        self.sae.load_state_dict({k[4:]: v for k, v in tensors.items() if k.startswith("sae.")})
        self.silent.copy_(tensors["silent"])
        if self.adam:
            self.adam.load_state_dict({k[5:]: v for k, v in tensors.items() if k.startswith("adam.")})

    def is_sliced(self, name: str) -> bool:
        """Whether a tensor of `tensors` has a row for each latent."""
        return name == "silent" or name.rpartition(".")[2] in self.sliced

    def mesh_slice(self, t: Tensor) -> Tensor:
        return t.chunk(self.mesh.latents)[self.mesh.slice]

    def release(self) -> None:
        """Folds the scale into the weights: from now on the SAE eats raw activations."""
        if not self.folded:
            self.sae.fold(self.scale, self.target_scale)
            self.folded = True
        self.sae.cfg = self.asked

    def join(self) -> None:
        """The SAE has all its latents again."""
        if self.mesh:
            gather(self.sae, self.mesh)

    def copy(self, x: Tensor) -> SAE:
        """The SAE as it is now, thresholds set on `x` (in raw units), eating raw activations."""
        sae = copy.deepcopy(self.sae)
        if self.mesh:
            gather(sae, self.mesh)
        with alone():
            sae.calibrate([self.scaled(x)])
        sae.fold(self.scale, self.target_scale)
        return sae
