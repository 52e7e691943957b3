"""The work of `compare`: reads the SAEs, matches every pair, measures densities and chance."""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..matching import (
    WIDEST,
    Dictionary,
    Pairs,
    agreed,
    chance_floor,
    chance_nearest,
    chance_shared,
    mcc,
    mmcs,
    nearest,
)
from ..models import LM
from ..reading import held_out, home, own_text, walk
from ..runs import Run, read_sae
from ..saes import SAE
from .result import UNKNOWN, Comparison, Sight, over_pairs

Known = SAE | Run | str | Path


def compare(
    saes: Sequence[Known],
    lm: LM | None = None,
    *,
    truth: Dictionary | None = None,
    threshold: float = 0.7,
    trajectory: bool = False,
    text: Any = None,
    tokens: int = 200_000,
    seed: int = 0,
    **options: Any,
) -> Comparison:
    """What SAEs of one site have in common: themselves, or runs, or folders of either.

    Args:
        lm: their model, to measure on test text how often latents fire; without it nothing is said by density.
        truth: the true directions of planted data, one a row.
        threshold: cosine from which on a latent is shared.
        trajectory: whether to compare the snapshots that the runs kept, too.
        text, tokens, seed, options: what densities are measured on, as for `evaluate`.

    Raises:
        ValueError: for fewer than two; of different models, sites or d_in; with numbers that are not finite.
        FileNotFoundError: where there is no SAE, or no snapshots in common.
    """
    if len(saes) < 2:
        raise ValueError(f"compare() got {len(saes)} SAEs: give two or more.")
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold={threshold} is no cosine to ask for: give one above 0, at most 1.")
    opened = [_opened(of) for of in saes]
    names = tuple(_name(i, of) for i, of in enumerate(saes))
    about = _about(names, opened) | {"threshold": threshold, "density": UNKNOWN}
    density: tuple[np.ndarray, ...] = ()
    if lm is not None:
        density, about["density"] = _densities(opened, lm, text, tokens, seed, **options)
    sights, scores = {}, {}
    for i, j in combinations(range(len(opened)), 2):
        alive = [torch.from_numpy(density[of] > 0) for of in (i, j)] if density else None
        sights[i, j], sights[j, i], scores[i, j] = _pair(opened[i], opened[j], threshold, alive)
    floors = _floors(opened, density, threshold, truth)
    return Comparison(
        names,
        dict(sorted(sights.items())),
        scores,
        density,
        floors,
        tuple(mcc(sae.W_dec, truth)[0] for sae in opened) if truth is not None else (),
        _trajectory(saes, opened).assign(chance=floors[about["measure"]]) if trajectory else pd.DataFrame(),
        about,
    )


def _opened(of: Known) -> SAE:
    if isinstance(of, SAE):
        return of
    run = of if isinstance(of, Run) else Run(of)
    return read_sae(run.folder) if (run.folder / "weights.safetensors").exists() else run.sae


def _name(i: int, of: Known) -> str:
    if isinstance(of, SAE):
        return f"{i}: {of.name}, seed {of.cfg.seed}"
    return str(of.folder if isinstance(of, Run) else of)


def _about(names: tuple[str, ...], saes: list[SAE]) -> dict[str, Any]:
    """What they are all of, and what to know of them.

    Raises:
        ValueError: if they are not of one model, site and d_in.
    """
    about: dict[str, Any] = {}
    for key in ("model", "site", "d_in"):
        values = [sae.cfg.d_in if key == "d_in" else sae.origin.get(key) for sae in saes]
        known = [(name, str(value)) for name, value in zip(names, values) if value is not None]
        for name, value in known[1:]:
            if value != known[0][1]:
                raise ValueError(
                    f"{known[0][0]!r} is of {key} {known[0][1]}, but {name!r} of {key} {value}: only SAEs of one model "
                    "and site have directions that compare. Leave one of them out."
                )
        about[key] = known[0][1] if known else "an unknown site" if key == "site" else None
    about |= {"d_in": saes[0].cfg.d_in, "d_sae": [sae.cfg.d_sae for sae in saes]}
    about["measure"] = "mcc" if _feasible(*saes) else "mmcs"
    seeds = [sae.cfg.seed for sae in saes]
    remarks = [
        f"seed {seed} occurs more than once: these SAEs began alike"
        for seed in sorted({*seeds})
        if seeds.count(seed) > 1
    ]
    apart = [key for key in ("text", "seed", "tokens") if len({str(sae.origin.get(key)) for sae in saes}) > 1]
    remarks += [f"not by their seed alone: what they were trained on differs in {', '.join(apart)}"] if apart else []
    if about["measure"] == "mmcs":
        remarks.append(
            f"over {WIDEST:,} latents are not matched one to one: each with its nearest (MMCS), of each side"
        )
    return about | {"remarks": remarks}


def _feasible(*saes: SAE) -> bool:
    """Whether all of them can be matched one to one."""
    return max(sae.cfg.d_sae for sae in saes) <= WIDEST


def _pair(a: SAE, b: SAE, threshold: float, alive: list[Tensor] | None) -> tuple[Sight, Sight, dict[str, float]]:
    exact = _feasible(a, b)
    sides = zip(_both_ways(a.W_enc, b.W_enc, exact), _both_ways(a.W_dec, b.W_dec, exact), (a, b))
    kept = [(encoder, decoder, sae.cfg.d_sae) for encoder, decoder, sae in sides]
    score = (lambda A, B, signed: mcc(A, B, signed)[0]) if exact else mmcs
    scores = {"abs": score(a.W_dec, b.W_dec, False)}
    if alive is not None:
        both = all(mask.any() for mask in alive)
        scores["alive"] = score(a.W_dec[alive[0]], b.W_dec[alive[1]], True) if both else float("nan")
    scores["slack"] = kept[0][1].slack
    return *(_sight(*side, threshold) for side in kept), scores


def _both_ways(A: Dictionary, B: Dictionary, exact: bool) -> tuple[Pairs, Pairs]:
    """The pairs seen from A and seen from B."""
    if not exact:
        return nearest(A, B), nearest(B, A)
    pairs = mcc(A, B)[1]
    return pairs, pairs.swapped


def _sight(encoder: Pairs, decoder: Pairs, d_sae: int, threshold: float) -> Sight:
    cosine, shared = np.full(d_sae, np.nan), np.zeros(d_sae, bool)
    cosine[decoder.a] = decoder.cosine
    shared[agreed(encoder, decoder, threshold).a] = True
    return Sight(cosine, shared)


@torch.no_grad()
def _densities(saes: list[SAE], lm: LM, text: Any, tokens: int, seed: int, **options: Any):
    """(how often each latent of each SAE fires, on what), all on the same test text."""
    site, (text, options) = home(saes[0], None), own_text(saes[0], text, options)
    counts, seen = [np.zeros(sae.cfg.d_sae) for sae in saes], 0
    for page in walk(lm, held_out(lm, text, "test", seed, **options), [site], tokens, saes[0]):
        for sae, count in zip(saes, counts):
            z = sae.encode(page.acts[site].to(sae.W_dec.device))
            count += np.bincount(z.support.latent[z.value != 0].cpu().numpy(), minlength=len(count))
        seen += len(page.doc)
    return tuple(count / seen for count in counts), f"measured on {seen:,} test tokens"


def _floors(saes: list[SAE], density: tuple, threshold: float, truth: Dictionary | None) -> dict[str, float]:
    """What random directions reach at the two smallest widths here."""
    (few, more), d_in = sorted(sae.cfg.d_sae for sae in saes)[:2], saes[0].cfg.d_in
    if _feasible(*saes):
        floor, opposite = chance_floor(d_in, few, True, more), chance_floor(d_in, few, False, more)
        found = {"mcc": floor}
    else:
        floor, opposite = chance_nearest(d_in, few), chance_nearest(d_in, few, False)
        found = {"mmcs": floor}
    found |= {"abs": opposite, "shared": chance_shared(d_in, few, more, threshold)}
    if density:
        awake = sorted(max(1, int((d > 0).sum())) for d in density)[:2]
        of_alive = chance_floor(d_in, awake[0], True, awake[1]) if "mcc" in found else chance_nearest(d_in, awake[0])
        found |= {"alive": of_alive, "weighted": floor}
    if truth is not None:
        found["truth"] = chance_floor(d_in, few, True, len(truth))
    return found


def _trajectory(runs: Sequence[Known], final: list[SAE]) -> pd.DataFrame:
    """PW-MCC of the snapshots at the steps that all runs have, and of what they ended with.

    Raises:
        ValueError: if not all are runs.
        FileNotFoundError: if they have no step in common.
    """
    if any(isinstance(run, SAE) for run in runs):
        raise ValueError("trajectory=True reads the snapshots of runs: give runs or their folders, not SAEs.")
    runs = [run if isinstance(run, Run) else Run(run) for run in runs]
    at = [{step * run.config["train"]["batch"]: step for step in run.snapshots} for run in runs]
    common = sorted(set.intersection(*map(set, at)))
    if not common:
        raise FileNotFoundError(
            "No snapshot of these runs is of the same number of tokens in all: leave out trajectory."
        )
    told = [(tokens, [run.snapshot(steps[tokens]) for run, steps in zip(runs, at)]) for tokens in common]
    return pd.DataFrame([_point(*of) for of in [*told, (runs[0].config["train"]["tokens"], final)]])


def _point(tokens: int, saes: list[SAE]) -> dict[str, float]:
    exact, score = _feasible(*saes), {}
    for i, j in combinations(range(len(saes)), 2):
        score[i, j] = mcc(saes[i].W_dec, saes[j].W_dec)[0] if exact else mmcs(saes[i].W_dec, saes[j].W_dec)
    found = over_pairs(lambda of: float(np.mean([score[pair] for pair in combinations(of, 2)])), len(saes))
    return {"tokens": tokens, "value": found.value, "low": found.low, "high": found.high}
