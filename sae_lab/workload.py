"""What a training step and a mesh of devices have to do, in numbers; no tensor, no torch.

A step is counted as the kit does it: one dense product, the encoder's forward (2 d_in d_sae FLOP a token, not the five
of dense training), candidates chosen while it is made, and sparse products over the nonzeros. `step` gives amounts of
work by part and unit; a machine gives seconds per unit (`planning`). What a unit is: `UNITS`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import NamedTuple

UNITS = {
    "mac int8": "multiply-add of the dense product, in 8 bits",
    "mac bfloat16": "the same in bf16, its number written",
    "mac float32": "the same in float32, its number written",
    "score": "number of the product in 8 bits that is finished and compared",
    "scan": "number of the product in floats that is read again to be compared",
    "near panel": "byte of encoder codes that a block of tokens reads again, where all of them fit a core's own cache",
    "far panel": "the same where they do not",
    "code": "number of weights or activations that is rounded to 8 bits",
    "candidate": "number that was over a token's floor when it was seen, or was looked at again to raise the floor",
    "hit": "number over a floor that stays",
    "nonzero": "latent kept, or to be told whether: sorted, compared, compacted",
    "near": "number of a gathered row that is in a core's own cache, multiplied and added",
    "far": "number of a gathered row that is not, but in the last cache",
    "far row": "such a row",
    "distant": "number of a gathered row that is in no cache",
    "distant row": "such a row",
    "written": "number of a gradient, written",
    "streamed": "number of a weight or gradient, read once in order",
    "moved": "parameter moved by Adam",
    "held": "parameter of a row that is held at unit norm as well",
    "near element": "number of the batch in one pass over it, where it fits a core's own cache",
    "far element": "the same where it does not",
    "page": "4,096 bytes that the system hands over anew",
    "latent": "latent in what is done once for each",
    "step": "step",
    "kernel": "start of the product's kernel",
    "model mac": "multiply-add of the model's forward pass",
}
PARTS = 64  # shares of a batch, and tokens of a share that meet a panel of codes together: as in `sparse.tiles`
TOKENS = 64
FLOAT = 4  # bytes
SPREAD = 0.2  # of tokens' norms, relative; 0.17 in the middle of the embedded Llama
NORMS = ((1 - SPREAD * 3**0.5, 1 / 6), (1.0, 2 / 3), (1 + SPREAD * 3**0.5, 1 / 6))  # three that stand for all; shares
LOST = 1 / (127 * math.sqrt(12))  # of a row's largest number: what rounding to 8 bits takes of each, root mean square
HALF = 2.0**-7.9  # a rounding to bf16, as `sparse.coarse` bounds it
READ = 2  # passes over the batch that give no new tensor
FRESH = 2**25  # bytes of a tensor from which on its memory is handed over anew each time (`sparse.scratch`)
CHUNK = 2**24  # bytes of scores that exist at a time (`sparse.preacts`)
BINS, RADIX = 2048, 3  # counts of a histogram, and how often it is made, for the exact threshold of a batch
USUAL = 256  # hits per token for which there is room; for more, the product is made again (`sparse.native`)
CROWDED = 0.2  # share of a dictionary that fires from which on sparse products become dense ones


@dataclass(frozen=True)
class Kind:
    """How a variant's step differs from others'.

    Attributes:
        rule: chooses the largest of each "token", of the "batch", or all over a "floor".
        centred: whether b_dec is subtracted before the encoder: its gradient reads W_enc once.
        unit: whether decoder rows are held at unit norm.
        priced: how often a product, or its gradient, of decoder norms passes over W_dec.
        levels: reconstructions, one within the other.
        passes: over the batch's activations, forward and back, that give a new tensor; others are counted as `READ`.
        totals: sums of the nonzeros by latent.
        row: bytes of parameters that a latent has beside its directions.
    """

    rule: str
    centred: bool = True
    unit: bool = True
    priced: int = 0
    levels: int = 1
    passes: int = 5
    totals: int = 1
    row: int = 4


KINDS = {
    "topk": Kind("token", passes=7),
    "batchtopk": Kind("batch", passes=6, totals=2, row=0),
    "matryoshka": Kind("batch", levels=5, passes=6, totals=2, row=0),
    "jumprelu": Kind("floor", centred=False, passes=4, totals=2, row=12),
    "relu": Kind("floor", centred=False, unit=False, priced=4, passes=4, totals=2),
    "p_anneal": Kind("floor", passes=5),
}


@dataclass(frozen=True)
class Step:
    """The sizes of one optimiser step.

    Attributes:
        k: latents kept per token, on average: L0.
        batch: tokens.
        choose_in: precision of the dense product: "int8", "bfloat16" or "float32".
        log_every: steps between measurements, which cost some passes more.
    """

    variant: str
    d_in: int
    d_sae: int
    k: float
    batch: int
    choose_in: str = "int8"
    log_every: int = 10

    def __post_init__(self):
        if self.variant not in KINDS:
            raise KeyError(
                f"The cost of {self.variant!r} has no model. It has one for: {', '.join(KINDS)}. "
                "sae_lab.estimate measures any training's first steps instead."
            )
        for name in ("d_in", "d_sae", "batch", "log_every"):
            if not (isinstance(value := getattr(self, name), int) and value >= 1):
                raise ValueError(f"{name}={value!r} must be a whole number of at least 1.")
        if not 0 < self.k <= CROWDED * self.d_sae:
            raise ValueError(
                f"k={self.k!r} must be over 0 and at most {CROWDED:g} x d_sae = {CROWDED * self.d_sae:g}: where more "
                "fires, other products are made, which are not modelled. sae_lab.estimate measures such a training."
            )
        if self.choose_in not in ("int8", "bfloat16", "float32"):
            raise ValueError(f"choose_in={self.choose_in!r} must be int8, bfloat16 or float32.")

    @property
    def kind(self) -> Kind:
        return KINDS[self.variant]

    @property
    def weights(self) -> int:
        """Numbers of one weight matrix."""
        return self.d_in * self.d_sae

    @property
    def flop(self) -> int:
        """Of the dense product and of the sparse ones: candidates' values, decoder, its gradients, the encoder's."""
        sparse = self.candidates + 4 * self.k
        return round(2 * self.batch * (self.weights + self.d_in * sparse))

    @property
    def candidates(self) -> float:
        """Latents per token whose exact value is asked for."""
        k, F = self.k, self.d_sae
        if self.choose_in == "float32":
            return 0.0
        if self.kind.rule == "token":
            return min(F, k + max(16, k // 8))
        if self.kind.rule == "batch":
            return min(F, 1.2 * k)
        floor = bisected(lambda floor: over(floor, 0.0) - k / F)
        return F * over(floor, self.blur)

    @property
    def hits(self) -> float:
        """Numbers per token over the floor they are first compared with, which a batch guesses to be half as many
        again."""
        return (self.candidates or self.k) * (1.5 if self.kind.rule == "batch" else 1)

    @property
    def blur(self) -> float:
        """By how much rounding may hide a pre-activation, in standard deviations of a token's pre-activations: it is
        bounded by norms, sqrt(d_in) of these. For latents that do not know the data; others' have a longer tail, so
        that fewer lie between.
        """
        if self.choose_in != "int8":
            return 2.0**-7 * 1.01 * math.sqrt(self.d_in)
        largest = NormalDist().inv_cdf((2 * self.d_in - 0.375) / (2 * self.d_in + 0.25))  # of d_in numbers (Blom 1958)
        return (2 * LOST * largest + HALF) * math.sqrt(self.d_in)


class Caches(NamedTuple):
    """Bytes that a core has to itself (L2), and of the last cache before memory (L3)."""

    own: float
    last: float


def over(floor: float, blur: float) -> float:
    """The share of normal pre-activations that are over a floor, or may be; both are in units of the mean token's."""
    return sum(share * (1 - NormalDist().cdf(floor / norm - blur)) for norm, share in NORMS)


def bisected(falls: Callable[[float], float], low: float = 0.0, high: float = 50.0) -> float:
    """Where a function falls to zero."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if falls(middle) > 0 else (low, middle)
    return low


Amounts = dict[str, dict[str, float]]  # part -> unit -> how much


def step(s: Step, cache: Caches) -> Amounts:
    """The work of one step by part."""
    return {
        "encoder product": product(s, cache),
        "choice": choice(s, cache),
        "sparse products": sparse(s, cache),
        "optimiser": optimiser(s),
        "rest": rest(s, cache),
    }


def product(s: Step, cache: Caches) -> dict[str, float]:
    """The one dense product; where more is over a floor than there is room for, it is made again."""
    times = 1 + (s.kind.rule != "token" and s.hits > USUAL)
    out = {f"mac {s.choose_in}": times * s.batch * s.weights}
    if s.choose_in != "int8":
        return out | {"scan": s.batch * s.d_sae, "streamed": s.weights * (s.choose_in == "bfloat16")}
    shares = min(PARTS, -(-s.batch // 8))
    blocks = times * shares * -(-s.batch // (shares * TOKENS))
    far = min(1.0, max(0.0, 2 * s.weights / cache.own - 1))
    panels = {"near panel": blocks * s.weights * (1 - far), "far panel": blocks * s.weights * far}
    return out | panels | {"code": s.weights + s.batch * s.d_in, "score": times * s.batch * s.d_sae, "kernel": times}


def choice(s: Step, cache: Caches) -> dict[str, float]:
    """Those over a floor, and exact values of those that may be."""
    out = {"nonzero": s.batch * s.candidates}
    if s.kind.rule == "token" and s.choose_in == "int8":
        out["candidate"] = s.batch * seen_again(s.d_sae, s.candidates)
    else:
        out["hit"] = s.batch * s.hits + min(TOKENS, s.batch) * s.d_sae / 2 * (s.kind.rule == "batch")
    return add(out, gathered(s.batch * s.candidates, s.d_sae, s.d_in, cache))


def seen_again(d_sae: int, most: float) -> float:
    """Candidates per token for the `most` largest: as many as there is room for; each time it is full the best stay and
    set the floor, and it is full again once so many times more latents were seen as the room is larger than the choice.
    """
    room = max(128, 3 * most)
    return room * (1 + max(0.0, math.log(d_sae / (2 * room)) / math.log(room / most)))


def sparse(s: Step, cache: Caches) -> dict[str, float]:
    """The decoder forward, the gradient of its latents, and the gradients of both weights."""
    n = s.batch * s.k
    by_token, by_latent = gathered(2 * n, s.d_sae, s.d_in, cache), gathered(2 * n, s.batch, s.d_in, cache)
    return add(by_token, by_latent, {"nonzero": n * (1 + s.kind.totals / 2), "written": 2 * s.weights})


def optimiser(s: Step) -> dict[str, float]:
    """The gradient's norm, Adam, decoder rows at unit norm: whatever the tokens."""
    read = 2 + s.kind.centred + s.kind.priced
    return {"moved": 2 * s.weights, "held": s.weights * s.kind.unit, "streamed": read * s.weights}


def rest(s: Step, cache: Caches) -> dict[str, float]:
    """Passes over the batch, and what is done once for each latent, and once."""
    numbers = s.batch * s.d_in
    fresh = s.kind.passes + 4 * (s.kind.levels - 1) + 2 / s.log_every
    where = "far element" if 3 * FLOAT * numbers > cache.own else "near element"
    pages = fresh * FLOAT * numbers / 4096 * (FLOAT * numbers >= FRESH)
    return {where: (fresh + READ) * numbers, "page": pages, "latent": s.d_sae, "step": 1}


def gathered(rows: float, of: int, width: int, cache: Caches) -> dict[str, float]:
    """Rows taken here and there from a table of `of`: those in a core's cache, those in the last one and those in none.

    Half of the last cache is the table's: the rest holds what else goes by.
    """
    table = FLOAT * of * width
    distant = rows * max(0.0, 1 - max(cache.own, cache.last / 2) / table)
    far = rows * max(0.0, 1 - cache.own / table) - distant
    near = rows - far - distant
    numbers = {"near": near * width, "far": far * width, "distant": distant * width}
    return numbers | {"far row": far, "distant row": distant}


def add(*amounts: dict[str, float]) -> dict[str, float]:
    """Amounts of the same units together."""
    return {unit: sum(a.get(unit, 0) for a in amounts) for unit in dict.fromkeys(u for a in amounts for u in a)}


def memory(s: Step) -> dict[str, int]:
    """Bytes of what lives at the height of a step, by kind; without the process itself, the model and the stream."""
    own = s.kind.row * s.d_sae + FLOAT * s.d_in
    pieces = CHUNK if s.choose_in != "int8" else 2 * s.weights  # codes, and codes in the order they are read in
    batch = FLOAT * s.batch * s.d_in * (4 + s.kind.levels)
    nonzeros = round(s.batch * (16 * max(s.candidates, s.hits) + 48 * s.k))
    return {
        "weights": 2 * FLOAT * s.weights + own,
        "moments": 2 * (2 * FLOAT * s.weights + own),
        "gradients": 2 * FLOAT * s.weights + own,
        "product": pieces,
        "batch": batch + nonzeros,
    }


@dataclass(frozen=True)
class Collective:
    """What ranks exchange in a step.

    Attributes:
        over: "latents" or "data": which ranks take part.
        kind: "all-reduce" or "all-gather".
        bytes: of one rank's tensor.
        times: how often a step does it.
    """

    name: str
    over: str
    kind: str
    bytes: int
    times: int = 1


@dataclass(frozen=True)
class Mesh:
    """One SAE on `latents` x `data` devices: each holds d_sae / latents latents and sees batch / data tokens."""

    latents: int = 1
    data: int = 1

    def share(self, s: Step) -> Step:
        """One device's part of a step; assumes that latents fire as often everywhere.

        Raises:
            ValueError: if latents or tokens cannot be divided evenly.
        """
        for name, of, by in (("d_sae", s.d_sae, self.latents), ("batch", s.batch, self.data)):
            if by < 1 or of % by:
                raise ValueError(f"{name}={of} cannot be divided evenly over {by} devices. Take a divisor.")
        return replace(s, d_sae=s.d_sae // self.latents, batch=s.batch // self.data, k=s.k / self.latents)

    def collectives(self, s: Step) -> list[Collective]:
        """What the ranks exchange in a step; gradients of whole weights, not only of the rows that fired."""
        mine, found = self.share(s), []
        rows = FLOAT * mine.batch * s.d_in
        if self.latents > 1:
            if s.kind.rule == "token":
                found += [Collective("candidates' values", "latents", "all-gather", round(FLOAT * mine.batch * s.k))]
            found += [Collective("partial x_hat", "latents", "all-reduce", rows * s.kind.levels)]
            if s.kind.centred:
                found += [Collective("gradient of b_dec by the encoder", "latents", "all-reduce", FLOAT * s.d_in)]
        if s.kind.rule == "batch" and self.latents * self.data > 1:
            over = "data" if self.latents == 1 else "latents"
            found += [Collective("histogram of scores", over, "all-reduce", 8 * BINS, times=RADIX)]
        if self.data > 1:
            size = 2 * FLOAT * mine.weights + s.kind.row * mine.d_sae + FLOAT * s.d_in
            found += [Collective("gradients", "data", "all-reduce", size)]
        return found

    def seconds(self, s: Step, bandwidth: float, latency: float = 0.0) -> float:
        """Of one step's exchange over links of `bandwidth` bytes a second each way, each message `latency` late.

        Assumes rings (an all-reduce passes 2 (n - 1) / n of a tensor through each rank, an all-gather n - 1 of them),
        one link per rank, and that nothing is computed meanwhile: overlap only makes it quicker.
        """
        total = 0.0
        for c in self.collectives(s):
            n = self.latents if c.over == "latents" else self.data
            passed = 2 * (n - 1) / n if c.kind == "all-reduce" else n - 1
            hops = (2 if c.kind == "all-reduce" else 1) * (n - 1)
            total += c.times * (passed * c.bytes / bandwidth + hops * latency)
        return total
