"""What every sparse autoencoder is, and what the trainer hands it."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ..knobs import check, knob
from ..shapes import Acts, Direction, LatentMask, Part, Rows, Scalar, TokenInts
from ..sparse import Latents, PreActs, choice_dtype, decode, encode
from .control import L0Controller
from .losses import power, ramp

REGISTRY: dict[str, type["SAE"]] = {}
_blank = ContextVar("blank", default=False)
START = 10  # times target_l0: L0 of the first step where a price is moved
PIECE = 2048  # latents that a first sample is shown to at a time


@dataclass(frozen=True)
class Batch:
    """One training batch. A variant reads only what it lists in `SAE.needs`.

    Attributes:
        x: activations at the site.
        target: what `x_hat` should match; `x` itself unless transcoding.
        dead: latents silent for longer than the run's `dead_after` tokens.
        progress: 0.0 at the first step, 1.0 at the last; for schedules.
        grad: gradient of the model's CE with respect to the target. Present if "grad" is needed.
        doc: which document each token is from.
        position: where in its document.
        patched_kl: (x_hat, later=False) -> `sources.Cost`: KL(model || model with x_hat spliced in), nats per token,
            and, if `later`, how far later residuals move, in the units of x. Present if "patched_kl" is needed.
        peers: the other SAEs trained on the same stream. Present if "peers" is needed.
    """

    x: Rows
    target: Rows
    dead: LatentMask
    progress: float = 0.0
    grad: Rows | None = None
    doc: TokenInts | None = None
    position: TokenInts | None = None
    patched_kl: Callable | None = None
    peers: tuple["SAE", ...] = ()


class Objective(NamedTuple):
    """What one training step produced.

    `terms` are already weighted: the loop minimises their plain sum and logs each under its own name.
    """

    x_hat: Rows
    z: Latents
    terms: dict[str, Scalar]


@dataclass(frozen=True)
class Recipe:
    """How the paper trains it; lengths are shares of the run.

    Attributes:
        lr: peak learning rate at 4,096 tokens a step, or a function of `d_sae` that gives it.
        warmup: share of the run over which lr rises from 0.
        decay: share of the run over which lr falls to 0 at the end.
        sparsity_warmup: share of the run over which the price of sparsity rises from 0.
        clip: largest norm of all gradients together.
        unit_norm: decoder rows are held at norm 1 and their gradient's part along the row removed.
        scaling: of the activations: "unit_ms" (mean squared norm 1), "sqrt_d" (mean norm sqrt(d_in)) or "none".
    """

    lr: float | Callable[[int], float]
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    warmup: float = 0.05
    decay: float = 0.2
    sparsity_warmup: float = 0.0
    clip: float = 1.0
    unit_norm: bool = True
    scaling: str = "unit_ms"

    def lr_for(self, d_sae: int) -> float:
        """The peak learning rate of a dictionary of this width."""
        return self.lr(d_sae) if callable(self.lr) else self.lr


class SAE(nn.Module, ABC):
    """A dictionary of `d_sae` directions and a rule for which of them fire.

    A variant is one final subclass in one file: its `Config`, its `encode`, its `objective`, its `recipe`. Besides
    these it may override `build`, `prepare`, `after_step` and `calibrate`, and nothing else.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    recipe: ClassVar[Recipe]
    needs: ClassVar[frozenset[str]] = frozenset()
    in_units: ClassVar[tuple[str, ...]] = ("b_enc", "b_dec")  # tensors measured in units of the activation
    in_log_units: ClassVar[tuple[str, ...]] = ()  # logarithms of such
    trainable: ClassVar[bool] = True
    # which latents fire at inference, in words that other tools' files know: "positive" pre-activations, the largest of
    # each token ("topk"; "priced topk": by value times decoder norm; "grouptop": one of each group), those over
    # `threshold`, or a "gate" with r_mag and b_mag. None: by a rule of its own, so that only we can write it.
    fires: ClassVar[str | None] = None
    in_slices: ClassVar[bool] = False  # whether its latents may be on several devices: `training.slices`
    alone: ClassVar[bool] = False  # whether a latent fires by its own numbers, whatever the others do

    @dataclass(frozen=True)
    class Config:
        d_in: int = field(metadata={"help": "width of the activation"})
        d_sae: int = field(metadata={"help": "number of latents"})
        seed: int = knob(0, 0, 2**31 - 1, "seed of the weight initialisation")
        target_l0: float | None = knob(
            None,
            1e-2,
            1e6,
            "mean L0 to end with: k where there is a k, else the penalty's price is moved until it is met",
        )
        start_l0: float | None = knob(
            None,
            1e-2,
            1e6,
            "mean L0 of the first step, by the biases, every latent firing as often; None: as the paper starts (mostly "
            "d_sae / 2), or 10 x target_l0 where a price is moved",
        )
        encoder_bias: bool = knob(True, help="whether latents have a bias of their own; without, b_enc does not exist")
        centred: bool = knob(True, help="whether b_dec is subtracted before the encoder; a transcoder's never is")
        per_token: str = knob(
            "none",
            choices=("none", "layer_norm", "norm"),
            help="how each token is scaled before the encoder, and x_hat back: by its mean and standard deviation, or "
            "its norm (to sqrt(d_in))",
        )
        transcode: bool = knob(False, help="whether it predicts another activation than it reads, as at a TC site")
        skip: bool = knob(False, help="whether a transcoder has a linear path beside its latents")
        choose_in: str = knob(
            "auto",
            choices=("auto", "float32", "bfloat16", "int8"),
            help="precision of the numbers to choose latents from (kept values are exact); auto: the quickest here",
        )

        def __post_init__(self):
            check(self)
            for row in ("d_in", "d_sae"):
                if getattr(self, row) < 1:
                    raise ValueError(f"{row}={getattr(self, row)} must be at least 1.")
            if self.transcode and self.per_token != "none":
                raise ValueError(
                    f"per_token={self.per_token!r} scales x_hat back by x: a transcoder's target is another one. "
                    'Leave it at "none".'
                )
            if self.skip and not self.transcode:
                raise ValueError("skip=True is for transcoders: the linear path would copy x. Set transcode=True too.")
            k, aim = getattr(self, "k", None), self.target_l0
            if k is not None and self.start_l0 is not None:
                raise ValueError(f"start_l0={self.start_l0} is for a penalty to begin at: with k={k} it means nothing.")
            for row, value in (("k", k), ("target_l0", aim), ("start_l0", self.start_l0)):
                if value is not None and value > self.d_sae:
                    said = f"{row}={value} must be at most d_sae={self.d_sae}: no token has more latents."
                    raise ValueError(f"{said} Lower {row}.")
            if None not in (k, aim) and k != aim:
                raise ValueError(f"k={k} and target_l0={aim} differ, and mean the same here: give one of them.")

    def __init_subclass__(cls, name: str | None = None, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if name is not None:
            register(name, cls)

    def __init__(self, cfg: Any):
        super().__init__()
        if cfg.transcode and not self.trainable:
            raise ValueError(f"{self.name} is a baseline for what reads and writes the same: leave out transcode=True.")
        self.cfg = cfg
        self.origin: dict[str, Any] = {}  # where it was trained: model, site, text ...; kept beside saved weights
        rng = torch.Generator().manual_seed(cfg.seed)
        if _blank.get():
            W = torch.empty(cfg.d_sae, cfg.d_in)
        else:
            W = torch.randn(cfg.d_sae, cfg.d_in, generator=rng)
            W /= W.norm(dim=1, keepdim=True)
        self.W_enc = nn.Parameter(W.clone())
        self.W_dec = nn.Parameter(W)
        self.b_enc = nn.Parameter(torch.zeros(cfg.d_sae)) if cfg.encoder_bias else None
        self.b_dec = nn.Parameter(torch.zeros(cfg.d_in))
        self.W_skip = nn.Parameter(torch.zeros(cfg.d_in, cfg.d_in)) if cfg.skip else None
        steered = cfg.target_l0 is not None and not hasattr(cfg, "k")
        self.control = L0Controller(cfg.target_l0) if steered else None
        self.build()
        if not self.trainable:
            self.requires_grad_(False)

    def build(self) -> None:
        """Add the parameters and buffers this variant has beyond the dictionary."""

    @property
    def choose_in(self) -> torch.dtype:
        """The precision that latents are chosen in; a run records it."""
        asked = self.cfg.choose_in
        return choice_dtype(self.W_enc.device.type, self.cfg.d_in) if asked == "auto" else getattr(torch, asked)

    @property
    def centre(self) -> Tensor | None:
        """What is subtracted before the encoder by those that do: b_dec; a transcoder's is not in x's place."""
        return self.b_dec if self.cfg.centred and not self.cfg.transcode else None

    def pre(self, x: Acts, again: LatentMask | None = None) -> PreActs:
        """(x - centre) @ W_enc.T + b_enc, to choose from; `again`: latents a second choice is made among."""
        x = self.normed(x.to(self.W_enc.dtype))
        return encode(x, self.W_enc, self.b_enc, centre=self.centre, choose_in=self.choose_in, again=again)

    def normed(self, x: Acts) -> Acts:
        """What the encoder is shown of x: x itself unless each token is scaled on its own."""
        if self.cfg.per_token == "none":
            return x
        mean, size = self.token_scale(x)
        return (x - mean) / (size + 1e-5 if self.cfg.per_token == "layer_norm" else size)

    def token_scale(self, x: Acts) -> tuple[Tensor | float, Tensor | float]:
        """By token, [..., 1]: mean and size. A latent of value z adds z * size * W_dec row to x_hat."""
        if self.cfg.per_token == "norm":
            return 0.0, x.norm(dim=-1, keepdim=True).clamp(min=1e-12) / math.sqrt(self.cfg.d_in)
        if self.cfg.per_token == "layer_norm":
            return x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
        return 0.0, 1.0

    @abstractmethod
    def encode(self, x: Acts) -> Latents:
        """Latents at inference: each token's depend on that token alone."""

    def only(self, latents: Sequence[int]) -> "SAE":
        """An SAE to encode with that has some of the latents alone, renumbered in the order given.

        Raises:
            ValueError: where latents compete, so that all are needed to know which fire.
        """
        if not self.alone:
            raise ValueError(f"Latents of {self.name} fire or not by what the others do: encode with all of them.")
        few = copy(self)
        few.cfg = replace(self.cfg, choose_in="float32")
        few._parameters, few._buffers = dict(self._parameters), dict(self._buffers)
        for name in self.per_latent:
            kept = few._parameters if name in few._parameters else few._buffers
            kept[name] = kept[name].detach()[list(latents)]
        return few

    @property
    def per_latent(self) -> list[str]:
        """Names of the parameters and buffers that have a row, or a number, for each latent."""
        known = {**self._parameters, **self._buffers}
        some = {n: t for n, t in known.items() if t is not None and n not in ("b_dec", "W_skip")}
        return [name for name, t in some.items() if t.shape[:1] == self.W_enc.shape[:1]]

    def decode(self, z: Latents) -> Acts:
        """What the latents give, and b_dec; where tokens are scaled one by one, without that scale."""
        return decode(z, self.W_dec) + self.b_dec

    def beside(self, x: Acts) -> Acts | Direction:
        """What x_hat has beside its latents: b_dec, and the linear path where there is one."""
        if self.cfg.per_token != "none":
            mean, size = self.token_scale(x.to(self.b_dec))
            return self.b_dec * size + mean
        return self.b_dec if self.W_skip is None else x.to(self.W_skip) @ self.W_skip.T + self.b_dec

    def reconstruct(self, z: Latents, x: Acts) -> Acts:
        """x_hat from the latents of x."""
        if self.cfg.per_token == "none":
            return decode(z, self.W_dec) + self.beside(x)
        return decode(z, self.W_dec) * self.token_scale(x.to(self.W_dec))[1] + self.beside(x)

    def forward(self, x: Acts) -> Acts:
        return self.reconstruct(self.encode(x), x)

    @abstractmethod
    def objective(self, batch: Batch) -> Objective:
        """The training forward pass and its loss terms."""

    def charge(self, penalty: Scalar, z: Latents, batch: Batch) -> Scalar:
        """The loss term of a penalty on latents: it warms up, and is moved until L0 is `target_l0` where there is one.

        To be asked once a step, with the latents that inference would give.
        """
        warm = ramp(batch.progress, self.recipe.sparsity_warmup)
        if self.control is None:
            return warm * penalty
        most = power(batch.target) / penalty.detach().clamp(min=1e-12)
        return warm * self.control(z.l0, most, batch.progress, warm == 1.0) * penalty

    @property
    def starting_l0(self) -> float | None:
        """L0 of the first step, if the biases are to set it: dense batches of a young SAE are slow, and steered far."""
        if self.b_enc is None or self.cfg.start_l0 is not None:
            return None if self.b_enc is None else self.cfg.start_l0
        steered = START * self.control.target if self.control is not None else self.cfg.d_sae
        return steered if steered < self.cfg.d_sae / 2 else None  # half of them fire anyway

    @torch.no_grad()
    def prepare(self, x: Rows, target: Rows) -> None:
        """Before the first step: set what the paper sets from a first sample of (scaled) activations."""
        if self.starting_l0 is None:
            return
        x = x if self.centre is None else x - self.centre
        over = len(x) - max(1, round(len(x) * self.starting_l0 / self.cfg.d_sae))
        for some in torch.arange(len(self.W_enc), device=x.device).split(PIECE):
            self.b_enc[some] = -(x @ self.W_enc[some].T).kthvalue(max(1, over), dim=0).values

    def after_step(self) -> Tensor | None:
        """Restore invariants once the optimiser has moved the weights; may return latents whose moments it forgets."""

    def calibrate(self, chunks: Iterable[Part]) -> None:
        """After the last step: set what inference needs from fresh training activations."""

    @torch.no_grad()
    def fold(self, scale: float, target_scale: float | None = None) -> None:
        """Turn an SAE of x * scale into the same SAE of x; a transcoder's target has a scale of its own.

        Latents are in units of the target, whose directions keep their norm. Where each token is scaled on its own, the
        scale of all makes no difference.
        """
        if self.cfg.per_token != "none":
            return
        target_scale = scale if target_scale is None else target_scale
        for name in self.in_units:
            if getattr(self, name) is not None:
                getattr(self, name).div_(target_scale)
        for name in self.in_log_units:
            getattr(self, name).sub_(math.log(target_scale))
        for weight in (self.W_enc, self.W_skip) if scale != target_scale else ():
            if weight is not None:
                weight.mul_(scale / target_scale)


@contextmanager
def blank() -> Iterator[None]:
    """Within, an SAE is made without drawing its directions: they will be read from a file."""
    before = _blank.set(True)
    try:
        yield
    finally:
        _blank.reset(before)


def register(name: str, cls: type[SAE]) -> None:
    """Make `cls` known as `name`. Re-running the notebook cell that defines it replaces it.

    Raises:
        ValueError: if another class already has this name.
    """
    old = REGISTRY.get(name)
    if old is not None and (old.__module__, old.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ValueError(f"SAE name {name!r} is taken by {old.__module__}.{old.__qualname__}. Choose another name.")
    cls.name = name
    REGISTRY[name] = cls
