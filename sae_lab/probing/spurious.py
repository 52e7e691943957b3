"""SCR, spurious correlation removal: a probe learns a label where another always comes with it; the latents that tell
the other are ablated; the probe should do better where the two come apart (SAEBench; debated: see `ablation`)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy import sparse

from ..intervals import draws, interval
from ..labelled import MANY, SPLIT, Examples, Labels, examples, read_labels, read_parts, stacked
from ..models import LM
from ..probes import fit, mean_differences
from ..reading import own_directions
from ..saes import SAE
from ..sites import Site
from .ablation import DRAWS, Perturbation, ablated, along, strongest
from .few import POSITIVES

ROLES = ("target", "spurious")


def scr(
    sae: SAE,
    lm: LM,
    labels: Any = "world",
    *,
    target: tuple[str, str] = ("register.story", "register.letter"),
    spurious: tuple[str, str] = ("language.french", "language.german"),
    column: str | Sequence[str] = "label",
    site: str | Site | None = None,
    n: Sequence[int] = (2, 5, 10, 20, 50),
    tokens: int = 20_000,
    seed: int = 0,
    **options: Any,
) -> Perturbation:
    """How much of a probe's loss to a spurious label comes back when n latents of that label are ablated.

    One row per document. Both pairs are tried in both roles; the score is that of the role in which the probe did worse
    before, as published.

    Args:
        tokens: of the world, per combination of labels and part.

    Raises:
        ValueError: as `probe`; a combination of the labels with too few rows.
    """
    site = own_directions(sae, site)
    made = read_labels(labels, column, (*target, *spurious), True)
    learnt, held = _read(sae, lm, site, made, tokens, seed, **options)
    cell, cell_held = (_cells(rows, made.names) for rows in (learnt, held))
    found = [_one_way(sae, learnt, held, cell, cell_held, role, n, seed) for role in (0, 1)]
    worse = int(found[1][0][0] < found[0][0][0])
    with np.errstate(invalid="ignore", divide="ignore"):  # nothing was lost: there is nothing to get back
        scores = [{many: (a - start) / (clean - start) for many, a in after.items()} for start, after, clean in found]
    parts = [
        (ROLES[role], many, before[0], after[many][0], clean[0], scores[role][many][0])
        for role, (before, after, clean) in enumerate(found)
        for many in n
    ]
    table = pd.DataFrame(parts, columns=["probed", "latents", "before", "after", "clean", "score"])
    about = {"site": str(site), "row": "document", "rows": len(held.doc), "seed": seed, "probed": ROLES[worse]}
    about |= made.about | {"target": list(target), "spurious": list(spurious), "status": "debated"}
    return Perturbation("SCR", {many: interval(scores[worse][many]) for many in n}, table, about)


def _read(sae: SAE, lm: LM, site: Site, made: Labels, tokens: int, seed: int, **options: Any) -> list[Examples]:
    """Both parts; of the world, as many tokens of each combination of labels."""
    if made.about["text"] != "world":
        return read_parts(lm, site, made, {"": sae}, MANY, seed, **options)
    pairs = [[a, b] for a in made.names[:2] for b in made.names[2:]]
    blocks = [[made.blocks(lm, part, seed, where=pair, **options) for pair in pairs] for part in SPLIT]
    return [stacked([examples(lm, site, b, made, {"": sae}, tokens) for b in part]) for part in blocks]


def _cells(rows: Examples, names: tuple[str, ...]) -> Int[np.ndarray, " rows"]:
    """Which combination a row has: 2 * (second target) + (second spurious); -1 where it has none or several.

    Raises:
        ValueError: if one of them is rare.
    """
    y = rows.labels.toarray()
    one = (y[:, :2].sum(1) == 1) & (y[:, 2:].sum(1) == 1)
    cell = np.where(one, 2 * y[:, 1] + y[:, 3], -1)
    count = np.bincount(cell[one], minlength=4)
    if count.min() < POSITIVES:
        which = f"{names[count.argmin() // 2]} with {names[2 + count.argmin() % 2]}"
        raise ValueError(f"{count.min()} documents have {which}; each combination needs {POSITIVES}. Give more text.")
    return cell


def _one_way(
    sae: SAE,
    learnt: Examples,
    held: Examples,
    cell: Int[np.ndarray, " rows"],
    cell_held: Int[np.ndarray, " held"],
    role: int,
    n: Sequence[int],
    seed: int,
) -> tuple[np.ndarray, dict[int, np.ndarray], np.ndarray]:
    """Accuracies for one pair, over draws: of the biased probe before and after ablations, of one without bias."""
    rng, few = np.random.default_rng(seed), np.bincount(cell[cell >= 0]).min()
    even = np.concatenate([rng.permutation(np.flatnonzero(cell == i))[:few] for i in range(4)])
    biased = np.flatnonzero((cell == 0) | (cell == 3))
    truth, other = (cell < 2, cell % 2 == 0)[:: 1 if role == 0 else -1]
    truth_held = (cell_held < 2, cell_held % 2 == 0)[role]
    tempted, fair, elsewhere = (
        fit(learnt.acts[rows], y[rows], seed=seed) for rows, y in ((biased, truth), (even, truth), (even, other))
    )
    difference = mean_differences(learnt.codes[""][even], sparse.csr_array(other[even][:, None]))[0]
    effects = np.abs(difference * along(sae, [elsewhere])[:, 0])
    weights, none = draws(held.docs, DRAWS), np.array([], int)

    def accuracy(probe, latents) -> Float[np.ndarray, " draws"]:
        """Mean over the four combinations."""
        right = (ablated(held, sae, [probe], latents)[:, 0] > 0) == truth_held
        inside = np.stack([np.bincount(held.doc, cell_held == i, held.docs) for i in range(4)], 1)
        hits = np.stack([np.bincount(held.doc, right & (cell_held == i), held.docs) for i in range(4)], 1)
        with np.errstate(invalid="ignore"):
            return np.nanmean((weights @ hits) / (weights @ inside), axis=1)

    after = {many: accuracy(tempted, strongest(effects, many)) for many in n}
    return accuracy(tempted, none), after, accuracy(fair, none)
