"""What training costs on this machine, beside what the machine can do at all.

Everything that is compared takes turns, and medians are shown: other load then hits all of it, and ratios hold where
milliseconds do not. The bound of a step is its encoder's product, x @ W_enc.T in float32; the bound of a harvest is the
model's own forward pass up to the site.
"""

import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from . import plots
from .harvest import activations
from .knobs import Checked, knob
from .models import load_model
from .peers import peers
from .saes import REGISTRY, SAE, Batch, build, variant
from .saes.losses import energy
from .sites import Site
from .sources import Cost
from .sparse import Adam

SETTLE = 2  # rounds that compile kernels and warm caches up, not counted
STILL = 1e-9  # a learning rate: the weights hardly move, so that every round does the same work

PRODUCT, FORWARD = "encoder product, float32", "plain forward, cut"
TURN = 32_768  # tokens
SHAPES = {"small": "4096x512x8192x32", "large": "4096x1024x16384x64", "wide": "4096x512x65536x32"}

Way = Callable[[], Any]


@dataclass(frozen=True)
class Bench:
    """Medians of what took turns.

    Attributes:
        rows: one per way: ms, ms of the quickest turn, tokens per second, and `over`: its time over the bound's.
        bound: the way that `over` refers to.
        about: shape, rounds, threads, machine.
    """

    rows: pd.DataFrame
    bound: str
    about: dict[str, Any]

    @property
    def figure(self):
        """Time of every way over the bound's (plotly)."""
        return plots.ratios(self.rows["way"].tolist(), self.rows["over"].tolist(), f"time over that of: {self.bound}")

    def to_json(self) -> dict[str, Any]:
        return {"about": self.about, "bound": self.bound, "ways": self.rows.to_dict("records")}

    @property
    def told(self) -> str:
        """What was measured where, in a line."""
        return ", ".join(f"{k} {v}" for k, v in self.about.items())

    def __repr__(self) -> str:
        return f"{self.told}\n{self.rows.round(2).to_string(index=False)}"


@dataclass(frozen=True)
class BenchStep(Checked):
    """Whole training steps (objective, backward, clipping, Adam, unit norm) of variants at equal L0."""

    variants: tuple[str, ...] = knob((), help="variants to time; none named: all that are trained")
    shapes: tuple[str, ...] = knob(
        ("small",),
        help="tokens x d_in x d_sae x k, such as 4096x512x8192x32, or small, large, wide; several make a grid",
    )
    dead: float = knob(0.0, 0.0, 1.0, "share of latents that count as dead, which AuxK then revives")
    rounds: int = knob(7, 1, 10_000, "turns of each way")
    peers: bool = knob(False, help="steps of sae-lens, dictionary-learning and eai-sparsify take turns as well")
    device: str = knob("cpu", help="where")
    choose_in: str = knob(
        "auto", choices=("auto", "float32", "bfloat16", "int8"), help="precision to choose latents in"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.peers and self.device != "cpu":
            raise ValueError(f"peers take their steps on the CPU: device={self.device!r} cannot be timed beside them.")
        for shape in self.shapes:
            sized(shape)

    def run(self) -> Bench:
        """Where a variant has no k, its biases are shifted until so many latents fire.

        Raises:
            KeyError: an unknown variant.
        """
        found = [self.at(shape) for shape in self.shapes]
        if len(found) == 1:
            return found[0]
        rows = [bench.rows.assign(way=shape + " " + bench.rows["way"]) for shape, bench in zip(self.shapes, found)]
        return replace(found[-1], rows=pd.concat(rows, ignore_index=True))

    def at(self, shape: str) -> Bench:
        """One shape of the grid."""
        tokens, d_in, d_sae, k = sized(shape)
        x = heavy_tailed(tokens, d_in).to(self.device)
        W = torch.randn(d_sae, d_in, device=self.device)
        product = torch.empty(tokens, d_sae, device=self.device)
        source, half, x_half, W_half = torch.zeros_like(product), product.bfloat16(), x.bfloat16(), W.bfloat16()
        ways: dict[str, Way] = {
            "copy of as many bytes": lambda: product.copy_(source),
            PRODUCT: lambda: torch.mm(x, W.T, out=product),
            "encoder product, bfloat16": lambda: torch.mm(x_half, W_half.T, out=half),
        }
        for name in self.variants or (name for name in sorted(REGISTRY) if REGISTRY[name].trainable):
            ways[name] = step_of(sparse_at(name, x, d_sae, k, self.choose_in), x, self.dead)
        with peers((tokens, d_in, d_sae, k) if self.peers else None) as others:
            return taking_turns(ways | others, PRODUCT, tokens, self.rounds, asdict(self))


@dataclass(frozen=True)
class BenchScaling(Checked):
    """One variant's step over two decades of tokens or of latents; a slope of 1 is time in proportion."""

    over: str = knob("d_sae", choices=("tokens", "d_sae"), help="what grows")
    variant: str = knob("batchtopk", help="the variant that learns")
    first: int = knob(1024, 2, 2**20, "the smallest; the largest is 100 times that, in five steps")
    other: int = knob(4096, 1, 2**22, "the one that stays: latents where tokens grow, tokens where latents grow")
    d_in: int = knob(512, 1, 2**16, "width of the activation")
    k: int = knob(32, 1, 512, "latents per token")
    rounds: int = knob(3, 1, 10_000, "turns of each size")

    def run(self) -> Bench:
        """Raises KeyError for an unknown variant."""
        sizes = [round(self.first * 10 ** (i / 2)) for i in range(5)]
        ways: dict[str, Way] = {}
        for size in sizes:
            tokens, d_sae = (size, self.other) if self.over == "tokens" else (self.other, size)
            x = heavy_tailed(tokens, self.d_in)
            ways[f"{size:,} {self.over}"] = step_of(sparse_at(self.variant, x, d_sae, self.k), x, 0.0)
        found = taking_turns(ways, next(iter(ways)), self.other, self.rounds, asdict(self))
        found.rows["tokens_per_s"] = [size if self.over == "tokens" else self.other for size in sizes]
        found.rows["tokens_per_s"] /= found.rows["ms"] / 1e3
        slope = float(np.polyfit(np.log(sizes), np.log(found.rows["ms"]), 1)[0])
        return replace(found, about=found.about | {"slope": round(slope, 3)})


@dataclass(frozen=True)
class BenchHarvest(Checked):
    """Reading one site, beside a plain forward pass of the model that is cut behind it."""

    model: str = knob("tiny", help="the model: tiny, a folder or a hub name")
    site: str = knob("L2R", help="what is read")
    rows: int = knob(32, 1, 2**20, "rows of text")
    width: int = knob(128, 1, 2**20, "tokens in a row")
    rounds: int = knob(25, 1, 10_000, "turns of each way")

    def run(self) -> Bench:
        """Raises ValueError for a site that the model lacks."""
        lm = load_model(self.model)
        lm.d_in(self.site)
        plain = cut(lm.module, Site(self.site).layer)
        ids = torch.randint(3, lm.vocab, (self.rows, self.width), device=lm.device)
        ways: dict[str, Way] = {
            FORWARD: torch.no_grad()(lambda: plain(ids, use_cache=False)[0]),
            f"read {self.site}": lambda: lm.read(ids, self.site),
        }
        return taking_turns(ways, FORWARD, self.rows * self.width, self.rounds, asdict(self))


@dataclass(frozen=True)
class BenchTraining(Checked):
    """Harvest alone, steps alone, and both together; a turn is 32,768 tokens: one forward pass fills many batches."""

    model: str = knob("tiny", help="the model: tiny, a folder or a hub name")
    site: str = knob("L2R", help="what is read")
    variant: str = knob("batchtopk", help="the variant that learns")
    d_sae: int = knob(2048, 1, 2**22, "latents")
    k: int = knob(32, 1, 512, "latents per token")
    batch: int = knob(4096, 1, 2**20, "tokens per step")
    rounds: int = knob(7, 1, 10_000, "turns of each way")

    def run(self) -> Bench:
        """Raises KeyError for an unknown variant, ValueError for a site that the model lacks."""
        lm, turn = load_model(self.model), range(max(1, TURN // self.batch))
        alone, both = (activations(lm, self.site) for _ in range(2))
        x = alone.next(self.batch)[Site(self.site)].x
        x = x / x.square().sum(1).mean().sqrt()
        step = step_of(sparse_at(self.variant, x, self.d_sae, self.k), x, 0.0)

        def together():
            for _ in turn:
                both.next(self.batch)
                step()

        ways: dict[str, Way] = {
            "harvest": lambda: [alone.next(self.batch) for _ in turn],
            "steps": lambda: [step() for _ in turn],
            "harvest and steps": together,
        }
        return taking_turns(ways, "harvest", len(turn) * self.batch, self.rounds, asdict(self))


def sized(shape: str) -> tuple[int, int, int, int]:
    """(tokens, d_in, d_sae, k) of a named or written shape.

    Raises:
        ValueError: it is neither.
    """
    numbers = SHAPES.get(shape, shape).split("x")
    if len(numbers) != 4 or not all(n.isdigit() and int(n) for n in numbers):
        known = ", ".join(SHAPES)
        raise ValueError(
            f"shape {shape!r} is not tokens x d_in x d_sae x k, such as 4096x512x8192x32, nor one of {known}."
        )
    return tuple(map(int, numbers))


def taking_turns(ways: dict[str, Way], bound: str, tokens: int, rounds: int, about: dict[str, Any]) -> Bench:
    """Each way once a round; medians over the rounds."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(SETTLE + rounds):
        for name, way in ways.items():
            begin = time.perf_counter()
            way()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - begin)
    median = {name: statistics.median(t[SETTLE:]) for name, t in times.items()}
    rows = [
        {
            "way": name,
            "ms": 1e3 * middle,
            "quickest": 1e3 * min(times[name][SETTLE:]),
            "over": middle / median[bound],
            "tokens_per_s": tokens / middle,
        }
        for name, middle in median.items()
    ]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if platform.system() == "Darwin" else 2**20)
    machine = {"threads": torch.get_num_threads(), "load": round(os.getloadavg()[0], 1)}
    machine |= {"peak_gb": round(peak, 2), "torch": torch.__version__, "machine": platform.machine()}
    return Bench(pd.DataFrame(rows), bound, about | machine)


def heavy_tailed(tokens: int, d_in: int, seed: int = 0) -> torch.Tensor:
    """Activations whose norms differ from token to token, of mean square norm near 1."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, d_in, generator=rng) * (torch.rand(tokens, 1, generator=rng) + 0.5)
    return x / d_in**0.5


def sparse_at(name: str, x: torch.Tensor, d_sae: int, k: int, choose_in: str = "auto") -> SAE:
    """An untrained SAE of uneven latents of which about k fire per token."""
    given = {"k": k} if "k" in variant(name).Config.__dataclass_fields__ else {}
    sae = build(name, d_in=x.shape[1], d_sae=d_sae, choose_in=choose_in, **given).to(x.device)
    if sae.b_enc is None:
        return sae
    with torch.no_grad():
        uneven = torch.randn(d_sae, generator=torch.Generator().manual_seed(1)).to(x.device) / (4 * x.shape[1] ** 0.5)
        sae.b_enc.copy_(uneven)
        low, high = -2.0, 2.0
        while not given and high - low > 1e-4:
            middle = (low + high) / 2
            sae.b_enc.copy_(uneven + middle)
            low, high = (low, middle) if sae.encode(x[:1024]).l0 > k else (middle, high)
    return sae


def step_of(sae: SAE, x: torch.Tensor, dead: float) -> Way:
    """One training step of an SAE on x, again and again."""
    named = [(name, p) for name, p in sae.named_parameters() if p.requires_grad]
    adam = Adam(named, STILL, sae.recipe.betas, sae.recipe.eps, {"W_dec"} if sae.recipe.unit_norm else ())
    silent = torch.arange(sae.cfg.d_sae, device=x.device) < dead * sae.cfg.d_sae
    given = {
        "grad": torch.randn_like(x) if "grad" in sae.needs else None,
        "doc": torch.arange(len(x)) // 64,
        "position": torch.arange(len(x)) % 64,
        "patched_kl": lambda x_hat, later=False: Cost(energy(x_hat - x), energy(x_hat - x)),  # no model's time in it
    }
    batch = Batch(x, x, silent, progress=1.0, **given)

    def step() -> None:
        out = sae.objective(batch)
        sum(out.terms.values()).backward()
        adam.step(min(1.0, sae.recipe.clip / max(adam.grad_norm(), 1e-12)) if sae.recipe.clip else 1.0)
        adam.zero_grad()
        sae.after_step()

    return step


def cut(module: torch.nn.Module, layer: int) -> torch.nn.Module:
    """A plain copy of a model that ends after a layer: no norm, no head, nothing of this package."""
    copy = type(module)(module.config)
    copy.load_state_dict(module.state_dict(), strict=False)
    copy = copy.to(module.device, module.dtype).eval().requires_grad_(False).model
    copy.layers, copy.norm = copy.layers[: layer + 1], torch.nn.Identity()
    return copy
