"""What a comparison found: numbers over pairs of SAEs with a jackknife over SAEs, by latent and by density."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, permutations
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from .. import plots
from ..intervals import Estimate, plain_json
from .uniqueness import SEEDS, Law, unique

BINS = (0.0, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of density; a silent latent is in none
UNKNOWN = "not measured: give lm="
MEANS = {
    "mcc": "PW-MCC: mean cosine of decoder rows, matched one to one; mean over pairs of SAEs",
    "mmcs": "MMCS, being too wide to match: mean cosine with the nearest row, which several may have",
    "abs": "the same, opposite directions being alike",
    "alive": "the same, of latents that fired alone",
    "weighted": "the same, latents counting by how often they fire",
    "shared": "share of latents with one partner by encoder and by decoder, at the threshold or more",
    "unique": "share of latents shared with none of the others",
    "truth": "GT-MCC: matched with the true dictionary; mean over SAEs (t interval)",
}


@dataclass(frozen=True)
class Sight:
    """One SAE's latents in another: the cosine of each one's match (NaN where there is none), whether it is shared."""

    cosine: Float[np.ndarray, " d_sae"]
    shared: Bool[np.ndarray, " d_sae"]


@dataclass(frozen=True, eq=False)
class Comparison:
    """What `compare` found.

    Attributes:
        sights: by (which SAE, in which other), all ordered pairs.
        scores: numbers by (a, b), a < b: "abs", "alive" (where it is known), and "slack", see `matching.Pairs`.
        density: how often the latents of each SAE fire; empty where nobody measured it.
        floors: what random dictionaries of these sizes reach, by number.
        truth: GT-MCC of each SAE, if there is a truth.
        trajectory: PW-MCC of the snapshots that the runs have in common, over tokens; empty unless asked for.
    """

    names: tuple[str, ...]
    sights: dict[tuple[int, int], Sight]
    scores: dict[tuple[int, int], dict[str, float]]
    density: tuple[Float[np.ndarray, " _"], ...]
    floors: dict[str, float]
    truth: tuple[float, ...]
    trajectory: pd.DataFrame
    about: dict[str, Any]

    @cached_property
    def numbers(self) -> dict[str, Estimate]:
        """Each number that is known, with its interval."""
        kinds = {name: self._score(name) for name in ("abs", *(["alive"] if self.density else []))}
        kinds |= {"weighted": self._weighted} if self.density else {}
        found = {self.about["measure"]: over_pairs(self._mcc, len(self.names))}
        found |= {name: over_pairs(of, len(self.names)) for name, of in kinds.items()}
        found["shared"] = _share(over_pairs(self._shared, len(self.names)))
        row = self.unique.iloc[-1]
        found["unique"] = Estimate(row.share, row.low, row.high)
        return found | ({"truth": Estimate.mean(self.truth)} if self.truth else {})

    @property
    def table(self) -> pd.DataFrame:
        """One row per number: value, interval, what chance gives."""
        rows = [(n, e.value, e.low, e.high, self.floors.get(n), MEANS[n]) for n, e in self.numbers.items()]
        rows += [(n, *[np.nan] * 4, UNKNOWN) for n in ("alive", "weighted") if not self.density]
        return pd.DataFrame(rows, columns=["number", "value", "low", "high", "chance", "meaning"])

    @property
    def pairs(self) -> pd.DataFrame:
        """One row per pair of SAEs."""
        rows = []
        for (i, j), scores in self.scores.items():
            there, back = self.sights[i, j], self.sights[j, i]
            row = {"a": self.names[i], "b": self.names[j], self.about["measure"]: self._mcc((i, j))}
            rows.append(row | scores | {"shared of a": there.shared.mean(), "shared of b": back.shared.mean()})
        return pd.DataFrame(rows)

    @cached_property
    def latents(self) -> pd.DataFrame:
        """One row per latent: in how many of the others it is, the mean cosine of its matches, how often it fires."""
        parts = []
        for i, name in enumerate(self.names):
            with np.errstate(invalid="ignore"):
                cosines = np.stack([s.cosine for (a, _), s in self.sights.items() if a == i])
                matched = np.isfinite(cosines).sum(0)
                mean = np.where(matched, np.nansum(cosines, axis=0) / matched, np.nan)
            row = {"sae": name, "latent": np.arange(len(mean)), "found in": self._found(self._all)[i], "cosine": mean}
            parts.append(pd.DataFrame(row | {"density": self.density[i] if self.density else np.nan}))
        return pd.concat(parts, ignore_index=True)

    @cached_property
    def by_density(self) -> pd.DataFrame:
        """Cosine of the matches and share of shared latents, by how often a latent fires; empty where nobody knows."""
        rows = []
        for low, high in zip((-1.0, *BINS), BINS) if self.density else ():
            inside = [(d > low) & (d <= high) for d in self.density]
            n = sum(int(mask.sum()) for mask in inside)
            if n:
                cosine, shared = (
                    over_pairs(self._inside(inside, kind), len(self.names)) for kind in ("cosine", "shared")
                )
                spread = {"cosine": cosine.value, "low": cosine.low, "high": cosine.high, "chance": self._floor}
                rows.append({"above": max(low, 0.0), "up to": high, "latents": n, **spread, "shared": shared.value})
        return pd.DataFrame(rows)

    @cached_property
    def unique(self) -> pd.DataFrame:
        """The share of latents found in none of the others, by how many SAEs there are; no interval for all of them."""
        rows = []
        for seeds in range(2, len(self.names) + 1):
            share = _share(over_pairs(lambda of, n=seeds: unique(self._found(of), n), len(self.names), seeds))
            rows.append({"seeds": seeds, "share": share.value, "low": share.low, "high": share.high})
        return pd.DataFrame(rows)

    @property
    def law(self) -> Law:
        """The power law with an offset through `unique`.

        Raises:
            ValueError: for fewer than six SAEs.
        """
        if len(self.names) < SEEDS:
            raise ValueError(
                f"No law is fitted to {len(self.names)} SAEs: its three constants would go through almost any "
                f"{len(self.names) - 1} shares. Compare {SEEDS} or more; `unique` has the shares."
            )
        return self._law(self._all)

    @property
    def offset(self) -> Estimate:
        """The share that the law leaves unique however many seeds there are.

        Raises:
            ValueError: as `law`.
        """
        value = self.law.offset
        return Estimate.jackknife(value, [self._law(rest).offset for rest in leaving_one_out(len(self.names))])

    @property
    def figure(self):
        """Cosines of all matches beside chance; by density; unique latents over seeds; over training (plotly)."""
        cosine = np.concatenate([s.cosine for s in self.sights.values()])
        law = self.law if len(self.names) >= SEEDS else None
        return plots.consistency(cosine, self._floor, self.by_density, self.unique, law, self.trajectory)

    def to_json(self) -> dict[str, Any]:
        law = {"refused": f"{len(self.names)} SAEs are fewer than {SEEDS}"}
        if len(self.names) >= SEEDS:
            law = {**vars(self.law), "offset interval": self.offset.to_json()}
        tables = ("pairs", "by_density", "unique", "trajectory")
        return plain_json(
            {"names": self.names, "about": self.about, "chance": self.floors}
            | {"numbers": {name: e.to_json() for name, e in self.numbers.items()}, "law": law}
            | {name: getattr(self, name).to_dict("records") for name in tables}
        )

    def __repr__(self) -> str:
        n, first = self.numbers, self.about["measure"]
        said = f"Comparison of {len(self.names)} SAEs at {self.about['site']}: {first} {_told(n[first], '.3f')} "
        said += f"(chance {self._floor:.3f}), shared {_told(n['shared'], '.1%')}, unique {n['unique'].value:.1%}"
        return "; ".join([said + ("; one pair: no intervals" if len(self.names) == 2 else ""), *self.about["remarks"]])

    @property
    def _all(self) -> tuple[int, ...]:
        return tuple(range(len(self.names)))

    @property
    def _floor(self) -> float:
        return self.floors[self.about["measure"]]

    def _law(self, of: Sequence[int]) -> Law:
        found = self._found(of)
        return Law.fit({seeds: unique(found, seeds) for seeds in range(2, len(of) + 1)})

    def _found(self, of: Sequence[int]) -> list[np.ndarray]:
        """For each of some SAEs, in how many of the others each of its latents is."""
        return [sum(self.sights[i, j].shared.astype(int) for j in of if j != i) for i in of]

    def _mcc(self, of: Sequence[int]) -> float:
        return float(np.mean([np.nanmean(self.sights[pair].cosine) for pair in permutations(of, 2)]))

    def _shared(self, of: Sequence[int]) -> float:
        return float(np.mean([self.sights[pair].shared.mean() for pair in permutations(of, 2)]))

    def _score(self, name: str) -> Callable[[Sequence[int]], float]:
        return lambda of: float(np.mean([self.scores[pair][name] for pair in combinations(of, 2)]))

    def _weighted(self, of: Sequence[int]) -> float:
        return float(np.mean([_weighted(self.sights[i, j].cosine, self.density[i]) for i, j in permutations(of, 2)]))

    def _inside(self, inside: list[np.ndarray], kind: str) -> Callable[[Sequence[int]], float]:
        """The mean of what `kind` is over the latents marked."""

        def mean(of: Sequence[int]) -> float:
            values = np.concatenate([getattr(self.sights[i, j], kind)[inside[i]] for i, j in permutations(of, 2)])
            return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")

        return mean


def over_pairs(statistic: Callable[[Sequence[int]], float], n: int, least: int = 2) -> Estimate:
    """A statistic of n SAEs with its interval over them (jackknife), within -1 and 1; none of `least` SAEs or fewer."""
    without = [statistic(rest) for rest in leaving_one_out(n)] if n > least else []
    found = Estimate.jackknife(statistic(range(n)), without)
    return Estimate(found.value, *np.clip([found.low, found.high], -1.0, 1.0).tolist())


def leaving_one_out(n: int) -> list[tuple[int, ...]]:
    return [tuple(j for j in range(n) if j != i) for i in range(n)]


def _weighted(cosine: np.ndarray, density: np.ndarray) -> float:
    matched = np.isfinite(cosine)
    total = density[matched].sum()
    return float((density * cosine)[matched].sum() / total) if total else float("nan")


def _share(e: Estimate) -> Estimate:
    return Estimate(e.value, *np.maximum([e.low, e.high], 0.0).tolist())


def _told(e: Estimate, form: str) -> str:
    return format(e, form) if np.isfinite(e.low) else format(e.value, form)
