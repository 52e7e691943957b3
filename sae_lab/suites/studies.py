"""Which studies a suite makes, of which SAEs, and the little that it keeps of each."""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, pairwise, product
from typing import Any, NamedTuple

import numpy as np

from ..absorption import absorbed
from ..comparison import compare
from ..concepts import recover
from ..models import LM
from ..saes import SAE
from ..splitting import split
from ..sweeps import Asked
from ..validity import validate

JUDGED = 256  # latents of each kind that explanations are judged of

Measure = Callable[[list[SAE], LM, int], dict[str, Any]]  # of SAEs, their model, tokens to read


class Study(NamedTuple):
    """One measurement, of `saes` in the order in which `measure` takes them; `name` is a path without its ending."""

    name: str
    saes: list[Asked]
    measure: Measure


def consistency(saes: list[SAE], lm: LM, tokens: int) -> dict[str, Any]:
    """How much the seeds of one kind have in common."""
    found = compare(saes, lm, tokens=tokens)
    measure = found.about["measure"]
    theirs = {"mcc": measure, "mcc_alive": "alive", "mcc_weighted": "weighted", "shared": "shared"}
    numbers = {name: found.numbers[n].to_json() | {"chance": found.floors[n]} for name, n in theirs.items()}
    return numbers | {"measure": measure, "threshold": found.about["threshold"], "remarks": found.about["remarks"]}


def absorption(saes: list[SAE], lm: LM, tokens: int) -> dict[str, Any]:
    found = absorbed(saes[0], lm, tokens=tokens)
    counts = {"parents": found.pairs["parent"].nunique(), "children": len(found.pairs)}
    return {"absorption": found.mean.to_json(), **counts, "left out": found.refused}


def concepts(saes: list[SAE], lm: LM, tokens: int) -> dict[str, Any]:
    found = recover(saes[0], lm, tokens=tokens)
    return {units: found.mean(units).to_json() for units in found.recoveries}


def splitting(saes: list[SAE], lm: LM, tokens: int) -> dict[str, Any]:
    """What a narrow SAE's latents became in a wide one, beside what they became in another seed of the wide one."""
    narrow, wide, *other = saes
    found = split([narrow, wide], lm, null=[wide, *other] if other else [], tokens=tokens, redrawn=1)
    shares = {
        of: {row.kind: {"share": row.share, "null": row.null} for row in rows.itertuples()}
        for of, rows in found.table.groupby("of", sort=False)
    }
    return {"cosine": found.rule.cosine, **shares}


def validity(saes: list[SAE], lm: LM, tokens: int) -> dict[str, Any]:
    """What scores without labels are worth, on some latents of the first seed beside the others."""
    sae, *peers = saes
    some = np.random.default_rng(0).permutation(sae.cfg.d_sae)[:JUDGED]
    found = validate(sae, lm, peers, latents=some.tolist(), tokens=tokens)
    return {"spearman": found.to_json()["spearman"], "latents": found.about["judged"]}


# of all seeds of a variant, k and d_sae
PER_KIND: dict[str, Measure] = {"consistency": consistency, "validity": validity}
PER_SAE: dict[str, Measure] = {"absorption": absorption, "concepts": concepts}


def studies(trained: Sequence[Asked]) -> Iterator[Study]:
    """What is asked of the SAEs of a sweep, the quickest answers first.

    Each wide SAE has a narrow one of its own, and as its null the next seed of its width.
    """
    kinds = {kind: list(saes) for kind, saes in groupby(trained, lambda asked: asked[:3])}
    for (study, measure), saes in product(PER_KIND.items(), kinds.values()):
        yield Study(f"{study}/{named(saes[0])}", saes, measure)
    for (study, measure), asked in product(PER_SAE.items(), trained):
        yield Study(f"{study}/{asked.name}", [asked], measure)
    for one, next_one in pairwise(sorted(kinds)):
        if one[:2] == next_one[:2]:
            wide = kinds[next_one]
            for i, (a, b) in enumerate(zip(kinds[one], wide)):
                other = wide[(i + 1) % len(wide)]
                null = [other] if other != b else []
                yield Study(f"splitting/{a.name}-in-{b.name}", [a, b, *null], splitting)


def named(asked: Asked) -> str:
    """The name of what all seeds of a variant, k and d_sae are."""
    return f"{asked.variant}-k{asked.k}-d{asked.d_sae}"
