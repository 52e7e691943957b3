"""Ten seconds in which a machine shows what it takes for each unit of work, all on small sizes.

Kernels are timed alone, and whole training steps; then each unit's seconds are the ones, none below zero, that explain
all these times best (least squares of relative errors). Everything takes turns and medians count: other load hits all.
"""

import gc
import mmap
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from scipy.optimize import nnls
from torch import Tensor

from .. import workload
from ..bench import heavy_tailed, sparse_at
from ..sites import Site
from ..sources import Rows, Statistics
from ..sparse import Adam, Support, choice_dtype, dots, encode, latent_sums, sums, topk
from ..training import train
from ..workload import FLOAT, Caches, Step, add, gathered
from .machine import Machine

# no step that is tried is larger: batch, d_in, d_sae, k; and bytes of a table, but for those that no cache holds
LARGEST, TABLE = (1024, 256, 4096, 16), 2**22
BEYOND, MOST = 4, 2**30  # times the last cache, and bytes at most, of a table that is read from memory
STEPS = ((256, 64, 1024, 8), (1024, 64, 1024, 16), (1024, 64, 4096, 8), (512, 256, 1024, 8), (1024, 256, 2048, 16))
VARIANTS = ("topk", "batchtopk", "jumprelu")
PRODUCTS = ((64, 16, 48), (1024, 64, 1024), (1024, 64, 4096), (1024, 256, 4096), (256, 256, 4096), (256, 256, 16384))
STILL = 1e-9  # a learning rate: every round does the same work
WARM = 3  # turns that are not counted: kernels are compiled, caches filled
WIDTHS = (1, 128)  # where "auto" may begin to choose in another precision

Way = tuple[dict[str, float], Callable[[], Any]]


class Fixed:
    """A source that serves one tensor again and again."""

    def __init__(self, x: Tensor):
        self.x, self.sites, self.served = x, [Site("L0R")], 0

    def d_in(self, site: str) -> int:
        return self.x.shape[1]

    def statistics(self, site: str) -> Statistics:
        return Statistics.of(self.x)

    def next(self, n: int) -> dict[Site, Rows]:
        x, place = self.x[:n], torch.arange(n)
        self.served += n
        return {self.sites[0]: Rows(x, x, place, place)}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {"served": self.served}

    def restore(self, tensors: Any, described: Any) -> None:
        self.served = described["served"]

    def describe(self) -> dict[str, Any]:
        return {"source": "fixed"}


def steps_of(s: Step, **knobs: Any) -> Iterator[Any]:
    """Real training steps of these sizes, by the loop itself, of an SAE whose latents fire unevenly and hardly move."""
    x = heavy_tailed(s.batch, s.d_in)
    sae = sparse_at(s.variant, x, s.d_sae, round(s.k), s.choose_in)
    tokens = knobs.pop("tokens", 10**12)
    knobs = {"lr": STILL, "sample": s.batch, "log_every": s.log_every} | knobs
    return train(sae, Fixed(x), tokens=tokens, batch=s.batch, **knobs)


def gauge(seconds: float = 10.0) -> Machine:
    """This machine, with as many threads as torch has now. It takes a second or two longer the first time, when kernels
    are compiled.

    With one thread processor time is counted, which other load hardly changes; with more the wall's, so that nothing
    else should run.

    Raises:
        ValueError: if `seconds` are too few for a turn of everything.
    """
    if not seconds >= 1:
        raise ValueError(f"seconds={seconds!r} must be at least 1: what takes milliseconds is timed many times.")
    begin, cache, clock = time.perf_counter(), caches(), clock_of(torch.get_num_threads())
    next(steps_of(Step("topk", 16, 64, 2, 64, "float32")))
    gc.collect()
    base = psutil.Process().memory_info().rss
    groups = groups_of(cache)
    constants, off = explained(groups, took(groups, clock, begin + seconds))
    about = {
        "host": platform.node(),
        "cpu": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "clock": "processor" if clock is time.process_time else "wall",
        "off": round(off, 3),
    }
    auto = {least: str(choice_dtype("cpu", least)).removeprefix("torch.") for least in WIDTHS}
    return Machine(constants, cache, torch.get_num_threads(), base, auto, about)


def clock_of(threads: int) -> Callable[[], float]:
    """What counts the time of so many threads."""
    return time.process_time if threads == 1 else time.perf_counter


def took(groups: list[list[Way]], clock: Callable[[], float], end: float) -> list[list[float]]:
    """Median seconds of each way; they take turns until `end` on the wall's clock."""
    times: list[list[list[float]]] = [[[] for _ in ways] for ways in groups]
    turn = 0
    while turn <= WARM or time.perf_counter() < end:
        for ways, kept in zip(groups, times):
            for (_, way), taken in zip(ways, kept):
                begin = clock()
                way()
                taken.append(clock() - begin)
        turn += 1
    return [[statistics.median(taken[WARM:]) for taken in kept] for kept in times]


def explained(groups: list[list[Way]], times: list[list[float]]) -> tuple[dict[str, float], float]:
    """Seconds per unit, and by how much they miss the times of the last group (root mean square, relative).

    A unit is known from the first group that has it: what a whole step leaves unexplained does not move what its
    kernels took alone.
    """
    known: dict[str, float] = {}
    off = 0.0
    for ways, taken in zip(groups, times):
        amounts = [a for a, _ in ways]
        new = sorted({unit for a in amounts for unit, much in a.items() if much} - set(known))
        rest = 1 - np.array([sum(much * known.get(unit, 0) for unit, much in a.items()) for a in amounts]) / taken
        if new:
            relative = np.array([[a.get(unit, 0) for unit in new] for a in amounts]) / np.array(taken)[:, None]
            size = relative.max(0)
            found, _ = nnls(relative / size, rest)
            known |= dict(zip(new, (found / size).tolist()))
            rest = rest - relative @ (found / size)
        off = float(np.sqrt(np.mean(rest**2)))
    return known, off


def groups_of(cache: Caches) -> list[list[Way]]:
    """Amounts of work and a way to do just that: memory and products, then choosing, then steps of the loop itself."""
    rng = torch.Generator().manual_seed(0)
    plain, choosing = [], []
    for work, way in products(cache, rng):
        (choosing if "candidate" in work else plain).append((work, way))
    plain += [*floats(cache, rng), *gathers(cache, rng), *passes(rng)]
    return [plain, choosing, list(steps(cache))]


def steps(cache: Caches) -> Iterator[Way]:
    """Steps in the precision that "auto" takes."""
    auto = str(choice_dtype("cpu", WIDTHS[1])).removeprefix("torch.")
    for variant in VARIANTS:
        for batch, d_in, d_sae, k in STEPS:
            s = Step(variant, d_in, d_sae, k, batch, auto)
            yield add(*workload.step(s, cache).values()), steps_of(s).__next__


def products(cache: Caches, rng: torch.Generator) -> Iterator[Way]:
    """The dense product in each precision, and choosing while it is made: none, few and many."""
    from ..sparse.coarse import Coarse, Codes, Numbers, available

    none = torch.empty(0, dtype=torch.long)
    for tok, width, latents in PRODUCTS if available() else ():
        code = torch.randint(-127, 128, (latents, width), dtype=torch.int8, generator=rng)
        W = Codes(code, torch.zeros(latents).int(), *torch.ones(3, latents))
        coarse = Coarse(Codes.of(heavy_tailed(tok, width)), W, None, False)
        coarse.panels  # noqa: B018  (made once, like the codes: they are timed apart)
        numbers = Numbers(coarse, slice(0, tok), (none, torch.empty(tok, 0).bfloat16()))
        s, nothing = Step("topk", width, latents, 8, tok), torch.full((latents,), torch.inf)
        work = workload.product(s, cache) | {"code": 0}
        yield work, lambda n=numbers, floor=nothing: n.above(floor)
        for kept in (24, 80) if latents > 240 else ():
            amounts = work | {"candidate": tok * workload.seen_again(latents, kept)}
            yield amounts, lambda n=numbers, k=kept: n.largest(k)
    if available():
        W = torch.randn(LARGEST[2], LARGEST[1], generator=rng)
        yield {"code": W.numel()}, lambda: Coarse(coarse.x, Codes.of(W), None, False).panels


def floats(cache: Caches, rng: torch.Generator) -> Iterator[Way]:
    """The dense product in floats, and reading its numbers again to choose."""
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        for tok, width, latents in ((1024, 64, 1024), (1024, 256, 1024), (256, 256, 4096)):
            x, W = heavy_tailed(tok, width), torch.randn(latents, width, generator=rng)
            pre = encode(x, W, choose_in=dtype)

            def choose(pre=pre, dtype=dtype):
                for _, scores in pre._dense(dtype, None, False):
                    topk(scores, 8)

            yield workload.product(Step("topk", width, latents, 8, tok, name), cache), choose


def gathers(cache: Caches, rng: torch.Generator) -> Iterator[Way]:
    """Rows from tables that fit a core's cache, of `TABLE` bytes, and `BEYOND` times the last cache; a gradient."""
    tok, width, latents, _ = LARGEST
    beyond = int(min(BEYOND * cache.last, MOST)) // FLOAT
    known = [(512, width), (latents, width), (2 * latents, width // 2), (4 * latents, width // 4)]
    for rows, wide in [*known, (beyond // width, width), (beyond // width // 4, 4 * width)]:
        table, n = torch.ones(rows, wide), 64 * tok
        s = Support.rows(torch.randint(rows, (tok, 64), generator=rng), rows)
        value, x = torch.randn(n, generator=rng), torch.randn(tok, wide, generator=rng)
        amounts = gathered(n, rows, wide, cache)
        yield amounts, lambda s=s, v=value, table=table: sums(s, v, table)
        yield amounts, lambda s=s, x=x, table=table: dots(s, x, table)
    s = Support.rows(torch.randint(latents, (tok, 4), generator=rng), latents)
    value, x, _ = torch.randn(4 * tok, generator=rng), torch.randn(tok, width, generator=rng), s.T
    written = {"written": latents * width}
    yield add(gathered(4 * tok, tok, width, cache), written), lambda: latent_sums(s, value, x)


def passes(rng: torch.Generator) -> Iterator[Way]:
    """What goes over memory in order: the optimiser, tensors of the batch, new pages; and the model's products."""
    _, width, latents, _ = LARGEST
    for unit in (False, True):
        p = torch.nn.Parameter(torch.randn(latents, width, generator=rng))
        adam = Adam([("p", p)], STILL, unit=["p"] if unit else [])
        p.grad = torch.randn(latents, width, generator=rng)
        yield {"moved": p.numel(), "held": unit * p.numel()}, adam.step
    yield {"streamed": p.numel()}, adam.grad_norm
    near, far, same = torch.randn(256, 256), *torch.randn(2, TABLE // 4)
    yield {"far element": far.numel()}, lambda: far - same
    yield {"near element": 8 * near.numel()}, lambda: [near - near for _ in range(8)]
    yield {"page": TABLE / mmap.PAGESIZE}, fresh_pages
    a, W = torch.randn(1024, width, generator=rng), torch.randn(4 * width, width, generator=rng)
    yield {"model mac": 1024 * W.numel()}, lambda: torch.nn.functional.linear(a, W)


def fresh_pages() -> None:
    """Writes to each page of new memory once."""
    with mmap.mmap(-1, TABLE) as new:
        for at in range(0, TABLE, mmap.PAGESIZE):
            new[at] = 1


def caches() -> Caches:
    """Of this machine; usual numbers where the system does not say."""
    own = _cache(2, 2**20)
    return Caches(own, max(own, _cache(3, 2**25)))


def _cache(level: int, usual: int) -> int:
    try:
        said = Path(f"/sys/devices/system/cpu/cpu0/cache/index{level}/size").read_text().strip()
        return int(said.removesuffix("K")) * 1024
    except (OSError, ValueError):
        return usual
