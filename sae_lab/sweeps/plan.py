"""What a sweep asks for: its SAEs, and which of them share a pass over the stream."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import product
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

from ..knobs import Checked, knob, knobs, plain
from ..launcher import Job, checked
from ..saes import variant
from ..sites import Site
from ..training import TrainConfig
from ..training.loop import SAMPLE

ALONE = ("variant", "model", "device", "dtype", "seed", "run", "evaluation", "d_in", "sae", "train")  # no `over` of it
OWN = ("d_sae", "site", "text_seed", "cache")  # nor one SAE's alone
LONGEST = 200  # characters of a folder's name
DEVICE = re.compile(r"cpu|cuda(:\d+)?")
LATER = ("over", "memory", "devices")  # said of a saved plan only where something is asked for by it


class Asked(NamedTuple):
    """One SAE of a sweep. `k` is None where no L0 is asked for; `more` has its values of the knobs in `over`."""

    variant: str
    k: int | None
    d_sae: int
    seed: int
    more: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """Its run folder's."""
        return f"{self.kind}-s{self.seed}"

    @property
    def kind(self) -> str:
        """What all its seeds are."""
        asked = ([] if self.k is None else [f"k{self.k}"]) + [f"d{self.d_sae}"]
        more = [f"{name}{re.sub(r'[^A-Za-z0-9.+_-]', '_', str(value))}" for name, value in self.more]
        return "-".join([self.variant, *asked, *more])


@dataclass(frozen=True)
class Plan(Checked):
    """Variants x k x d_sae x `over` x seeds, and in `job` what they share: model, site, text, tokens and the rest.

    `own` holds knobs of some alone, by what they are of: a part of sites ("TC"), a site ("L3R"), a width ("4096") or a
    variant ("topk"); where two of these say the same knob, the later of this list counts.

    Each d_sae has seeds of its own: with the same ones a narrow dictionary would begin as the first rows of a wide one,
    and after training they would share more latents than two widths do.

    Every SAE sees the same rows in the same order, whoever shares its pass, and ends at the bits it would have alone:
    the stream is begun anew for each group, and the rows that some variants look at before their first step are read
    for all. It carries what any variant needs, for all: "patched_kl" makes it whole contexts, not shuffled. What an SAE
    draws while it trains (`feature_choice` does) comes from one generator per group: its bits hang on who is with it.
    SAEs share a pass that are trained alike, at whatever sites; values of what is read, or of the training, have one
    each.
    """

    variants: tuple[str, ...] = knob(("topk", "batchtopk", "jumprelu"), help="which SAEs")
    k: tuple[int | None, ...] = knob((16, 32, 64), help="L0 that each is asked for: latents per token; None: none is")
    d_sae: tuple[int, ...] = knob((2048,), help="numbers of latents")
    seeds: int = knob(3, 1, 1000, "SAEs of each kind, which differ in the seed of their weights")
    same_data: bool = knob(
        True, help="seeds read the same text in the same order; off: each its own, in a pass of its own"
    )
    at_once: int | None = knob(
        None, 1, 10**6, "SAEs held and trained at a time; None: all. Each further group reads the whole text again"
    )
    memory: float | None = knob(
        None, 1e-3, 1e6, "GB that those held at a time may take, with model and activations; None: most of what is free"
    )
    devices: tuple[str, ...] = knob((), help="a process each, for a group at a time: cuda:0 cuda:1, or cpu cpu")
    tolerance: float = knob(0.05, 0.0, 1.0, "how far, as a share of k, measured L0 may be from it to be compared")
    own: dict = field(default_factory=dict, metadata={"help": "knobs of single variants, widths or sites, by name"})
    over: dict = field(default_factory=dict, metadata={"help": "any other knobs that vary, each with its values"})
    job: Job = field(default_factory=Job, metadata={"help": "what all share"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if odd := next((name for name, row in self.over.items() if not isinstance(row, tuple | list)), None):
            raise ValueError(f"over={{{odd!r}: {self.over[odd]!r}}} must hold a list of values for {odd}.")
        rows = {"variants": self.variants, "k": self.k, "d_sae": self.d_sae, **self.over}
        for name, row in rows.items():
            if not row or len(set(map(repr, row))) < len(row):
                raise ValueError(f"{name}={row} must name at least one, and each once.")
        if odd := next((given for given in self.devices if not DEVICE.fullmatch(str(given))), None):
            raise ValueError(f"devices names {odd!r}: write cpu, cuda, or cuda:0 and so on, one for each process.")
        odd = next((name for name in self.over if name in (*ALONE, "k", "target_l0", "d_sae")), None)
        if odd in ALONE:
            raise ValueError(f"{odd} cannot vary within a sweep; seeds=... varies seeds. Make a sweep for each.")
        if odd:
            raise ValueError(f"{odd} varies by a list of its own: {'k' if odd == 'target_l0' else odd}=[...].")
        if self.job.model == "planted" or not self.job.evaluation:
            raise ValueError(
                "A sweep compares SAEs on held-out text: it wants a model, and evaluation=... tokens. For planted "
                "activations train a list: train([sae, ...], toys.Planted())."
            )

    @classmethod
    def of(cls, variants: str | Iterable[str] | Mapping[str, dict] = (), **knobs: Any) -> "Plan":
        """A plan from knobs of its own, of Job, of TrainConfig and of every variant, told apart by their names.

        `variants` may be a mapping from names to knobs that are that variant's alone. A list for a knob that holds one
        value is what it varies over, as if in `over`: of(["topk"], lr=[1e-3, 1e-4]).
        """
        own = {name: dict(more) for name, more in variants.items() if more} if isinstance(variants, Mapping) else {}
        mine = {name: knobs.pop(name) for name in [f.name for f in fields(cls)] if name in knobs}
        own |= mine.pop("own", {})
        mine |= {"variants": variants} if variants else {}
        several = {name: _tuple(mine[name]) for name in ("variants", "k", "d_sae", "devices") if name in mine}
        names = several.get("variants", cls.variants)
        over = dict(mine.pop("over", {})) | {name: row for name, row in knobs.items() if _varies(name, row, names)}
        mine["over"] = {name: _tuple(row) if isinstance(row, Iterable) else row for name, row in over.items()}
        shared = {name: value for name, value in knobs.items() if name not in over}
        return cls(**mine | several, own=own, job=Job.of(**{"sample": SAMPLE} | shared))

    def to_json(self) -> dict[str, Any]:
        saved = asdict(self) | {"job": self.job.to_json()}
        return {name: value for name, value in saved.items() if value or name not in LATER}

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> "Plan":
        several = {name: tuple(saved[name]) for name in ("variants", "k", "d_sae")}
        over = {name: tuple(row) for name, row in saved.get("over", {}).items()}
        where = {"devices": tuple(saved.get("devices", ()))}
        return cls(**saved | several | where | {"over": over, "job": Job.from_json(saved["job"])})

    @property
    def saes(self) -> list[Asked]:
        """Every SAE that is asked for."""
        more = [tuple(zip(self.over, values)) for values in product(*self.over.values())]
        every = product(self.variants, self.k, enumerate(self.d_sae), more, range(self.seeds))
        return [Asked(v, k, d_sae, self.job.seed + of * self.seeds + i, m) for v, k, (of, d_sae), m, i in every]

    @property
    def needs(self) -> frozenset[str]:
        """What the stream carries for any of the variants."""
        return frozenset().union(*(variant(name).needs for name in self.variants))

    @property
    def groups(self) -> list[list[Asked]]:
        """Those that are trained together, in one pass over the stream each, where memory is no matter.

        An SAE that needs peers is given the other seeds of its kind, and nobody else.
        """
        return self.packed(lambda group: True)

    def packed(self, fits: Callable[[list[Asked]], bool]) -> list[list[Asked]]:
        """The groups, cut where the next SAE would not fit in; those of one site stay together, sites in their order.

        One that does not fit even alone is a group by itself, and so are all peers.
        """
        apart: dict[Any, list[Asked]] = {}
        for asked in self.saes:
            alike = asked._replace(seed=0) if self.peers(asked) else self._pass(asked)
            apart.setdefault(alike, []).append(asked)
        groups: list[list[Asked]] = []
        for one in apart.values():
            if self.peers(one[0]):
                groups.append(one)
                continue
            group: list[Asked] = []
            for asked in sorted(one, key=lambda asked: Site(self.site(asked)).order):
                if group and (len(group) == self.at_once or not fits([*group, asked])):
                    groups.append(group)
                    group = []
                group = [*group, asked]
            groups.append(group)
        return groups

    @property
    def sites(self) -> list[Site]:
        """Those of all SAEs, in the order in which a model computes them."""
        return sorted({Site(site) for site in self.over.get("site", (self.job.site,))}, key=lambda site: site.order)

    def site(self, asked: Asked) -> str:
        return dict(asked.more).get("site", self.job.site)

    @property
    def passes(self) -> str:
        """How often the text is read, in words."""
        return passes(len(self.groups))

    def job_of(self, asked: Asked, folder: Path) -> Job:
        """The training of one SAE, as it would be by itself."""
        aim = {} if asked.k is None else asking(asked.variant, asked.k)
        site, own = Site(self.site(asked)), {}
        for of in (site.part, site, str(asked.d_sae), asked.variant):
            own |= self.own.get(of, {})
        made = replace(self.job, variant=asked.variant, seed=asked.seed, text_seed=self._text_seed(asked))
        made = made.but(**own | {"d_sae": asked.d_sae} | aim | dict(asked.more))
        return replace(made, run=str(folder / asked.name))

    def peers(self, asked: Asked) -> bool:
        """Whether an SAE is given those that are trained with it."""
        return "peers" in variant(asked.variant).needs

    def check(self, detached: bool = False) -> "Plan":
        """This plan.

        Raises:
            ValueError, KeyError, TypeError: for what a variant cannot be asked; before anything is trained.
        """
        if self.job.gpus * self.job.nodes > 1:
            raise ValueError(
                f"gpus={self.job.gpus}, nodes={self.job.nodes} share one SAE, and a sweep has many: give devices=[...]."
            )
        for asked in self.saes:
            checked(self.job_of(asked, Path()), detached)
        names = [asked.name for asked in self.saes]
        if len(set(names)) < len(names):
            raise ValueError(f"Values in {self.over} are alike in a folder's name: call them by others.")
        if len(longest := max(names, key=len)) > LONGEST:
            raise ValueError(f"A folder's name would be too long: {longest[:60]}... Call what varies by shorter names.")
        known = [*self.variants, *map(str, self.d_sae), *self.sites, *(dict.fromkeys(site.part for site in self.sites))]
        for of, given in self.own.items():
            if of not in known:
                raise ValueError(
                    f"Knobs for {of!r}, which is none of the variants, widths or sites: {', '.join(known)}."
                )
            if odd := next((name for name in given if name in (*ALONE, *OWN)), None):
                raise ValueError(f"{odd} cannot be that of {of!r} alone: say it for all, or make a sweep of its own.")
        return self

    def _pass(self, asked: Asked) -> str:
        """All of its job that is not the SAE's own: SAEs that share a pass share it."""
        return repr(replace(self.job_of(asked, Path()), variant="", site="", seed=0, run=None, sae={}))

    def _text_seed(self, asked: Asked) -> int:
        apart = 0 if self.same_data or self.peers(asked) else (asked.seed - self.job.seed) % self.seeds
        return self.job.text_seed + apart


def asking(name: str, l0: int) -> dict[str, int]:
    """The knob by which a variant is asked for `l0` latents per token.

    Raises:
        ValueError: if it has none.
    """
    has = variant(name).Config.__dataclass_fields__
    for aim in ("k", "target_l0"):
        if aim in has:
            return {aim: l0}
    raise ValueError(f"{name!r} has no knob for L0, neither k nor target_l0: it cannot be compared at equal L0.")


def passes(count: int) -> str:
    return f"{count:,} pass{'es' * (count > 1)}"


def _varies(name: str, given: Any, variants: Iterable[str]) -> bool:
    """Whether several values are given for a knob that holds one."""
    configs = (Job, TrainConfig, *(variant(v).Config for v in variants))
    kinds = [row.kind for config in configs for row in knobs(config) if row.name == name]
    return isinstance(given, list | tuple) and not any(kind in (list, tuple) for kind in kinds)


def _tuple(given: Any) -> tuple:
    return tuple(map(plain, [given] if given is None or isinstance(given, str | Integral) else given))
