"""Validity: how well scores of latents that need no labels predict what labels say of them.

A latent's truth is the F1 with which a threshold on it names its best concept of the labelled world: concept and
threshold are chosen on the validation split, the F1 is of the test split. Beside it stand the scores that people go by
where no labels are: of explanations, of consistency over seeds, of density. Only where such a score ranks latents as
their truth does is it worth having.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from . import plots
from .absorption import absorbed
from .explanation import Explanations, Reading, explain
from .intervals import Estimate, plain_json, rank_correlation
from .matching import mcc, shared
from .models import LM
from .recovery import Firings, best_f1, f1
from .saes import SAE

POSITIVES = 50  # tokens of each split that a concept is on at least
FEW = 10  # latents, under which a correlation says nothing
TRUTH = "concept F1"


@dataclass(frozen=True)
class Validity:
    """What each score says of the latents' truth.

    Attributes:
        latents: one row per latent: its concept, "concept F1" and a column per score.
        about: what was measured on; how many latents fired too seldom to be judged.
    """

    latents: pd.DataFrame
    about: dict[str, Any]

    @property
    def scores(self) -> list[str]:
        return [name for name in self.latents if name not in ("latent", "concept", TRUTH)]

    def spearman(self, score: str, given: str | None = None) -> Estimate:
        """Rank correlation of a score with concept F1, and its interval by bootstrap over latents; NaN of under 10.

        `given` another score, such as "density", it is the partial one: what the score tells that the other does not.

        Raises:
            KeyError: a score that is not there.
        """
        if score not in self.scores:
            raise KeyError(f"No score {score!r}. There are: {', '.join(self.scores)}.")
        rows = self.latents[[score, TRUTH, *([given] if given else [])]].dropna().to_numpy().T
        return rank_correlation(*(rows if rows.shape[1] >= FEW else rows[:, :0]))

    @property
    def table(self) -> pd.DataFrame:
        """One row per score: its rank correlation with concept F1, the same beyond density, over how many latents; the
        best first. Who fires often names frequent concepts, of which even chance names more."""
        rows = []
        for s in self.scores:
            beyond = self.spearman(s, "density") if s != "density" else Estimate(*[float("nan")] * 3)
            beyond = {f"beyond_{key}": value for key, value in beyond.to_json().items()}
            rows.append(
                {"score": s, **self.spearman(s).to_json(), **beyond, "latents": int(self.latents[s].notna().sum())}
            )
        return pd.DataFrame(rows).sort_values("value", ascending=False, ignore_index=True)

    @property
    def figure(self):
        """The rank correlations with their intervals, and those beyond density (plotly)."""
        beyond = self.table.assign(**{n: self.table[f"beyond_{n}"] for n in ("value", "low", "high")})
        kinds = {"alone": self.table, "beyond density": beyond}
        return plots.ranked(kinds, "score", "rank correlation with concept F1 (Spearman)")

    def to_json(self) -> dict[str, Any]:
        return plain_json({"spearman": self.table.to_dict("records"), "about": self.about})

    def __repr__(self) -> str:
        head = f"Validity of scores on {len(self.latents):,} latents at {self.about['site']}, Spearman with concept F1:"
        return "\n".join([head, *(f"  {s:<22}{self.spearman(s)}" for s in self.table["score"])])


def validate(
    sae: SAE,
    lm: LM,
    peers: Sequence[SAE] = (),
    *,
    latents: Iterable[int] | None = None,
    explainer: Any = "rule",
    scorers: Iterable[str] = ("detection", "fuzzing", "simulation", "embedding", "intruder", "logistic"),
    tokens: int = 100_000,
    seed: int = 0,
    **options: Any,
) -> Validity:
    """Scores latents without labels, and correlates every score with the F1 of the concept that each names.

    Args:
        peers: the same SAE from other seeds, for consistency: the mean cosine of a latent's matches, and the share of
            seeds that have it, too.
        latents: default: all that fire often enough to be explained.
        explainer, scorers, options: of `explain`; the text is the labelled world.

    Raises:
        ValueError: as `explain`; fewer than three latents; peers of another shape.
    """
    said = explain(
        sae, lm, latents, explainer=explainer, scorers=scorers, text="world", tokens=tokens, seed=seed, **options
    )
    if len(said) < 3:
        raise ValueError(f"{len(said)} latents fire often enough to be judged: give more tokens= or more latents.")
    rows = np.array(list(said))
    learnt, held = said.readings
    columns = {"latent": rows} | _truth(learnt, held, rows)
    columns |= said.numbers.set_index("latent").loc[rows, said.scorers].to_dict("list")
    columns |= _consistency(sae, peers, rows)
    columns["density"] = np.diff(held.acts.indptr)[rows] / len(held.ids)
    columns |= _absorption(sae, lm, said, tokens, seed, rows)
    about = said.about | {"judged": len(rows), "refused": len(said.refused), "peers": len(peers)}
    return Validity(pd.DataFrame(columns), about)


def _truth(learnt: Reading, held: Reading, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Each latent's best concept on one text, and how well it names it on the other."""
    often = [np.diff(reading.labels.indptr) for reading in (learnt, held)]
    usual = np.flatnonzero(np.min(often, 0) >= POSITIVES)
    found, cut = best_f1(_firings(learnt, rows), learnt.labels[:, usual].tocsr())
    best = found.argmax(1)
    reached = []
    for latent, concept, least in zip(rows.tolist(), usual[best], cut[np.arange(len(rows)), best]):
        token, value = held.column(latent)
        on = token[value >= least]
        reached.append(f1(held.by_label[on][:, [concept]].sum(), len(on), often[1][concept]))
    return {"concept": np.array(held.names)[usual[best]], TRUTH: np.array(reached)}


def _firings(reading: Reading, rows: np.ndarray) -> Firings:
    z = reading.acts[:, rows].tocoo()
    return Firings(z.col.astype(np.int32), z.row.astype(np.int32), z.data, len(rows), z.shape[0])


def _consistency(sae: SAE, peers: Sequence[SAE], rows: np.ndarray) -> dict[str, np.ndarray]:
    """The mean cosine of each latent's matches in the peers (PW-MCC is its mean), and the share that has it, too."""
    odd = next((p for p in peers if p.W_dec.shape != sae.W_dec.shape), None)
    if odd is not None:
        raise ValueError(
            f"A peer of {tuple(odd.W_dec.shape)} beside {tuple(sae.W_dec.shape)}: give seeds of one shape."
        )
    if not peers:
        return {}
    cosine = np.mean([_matched(sae, peer) for peer in peers], 0)
    has = np.mean([shared(sae, peer).cpu().numpy() for peer in peers], 0)
    return {"match over seeds": cosine[rows], "shared by seeds": has[rows]}


def _matched(sae: SAE, peer: SAE) -> np.ndarray:
    pairs, found = mcc(sae.W_dec, peer.W_dec)[1], np.zeros(len(sae.W_dec))
    found[pairs.a.numpy()] = pairs.cosine.numpy()
    return found


def _absorption(
    sae: SAE, lm: LM, said: Explanations, tokens: int, seed: int, rows: np.ndarray
) -> dict[str, np.ndarray]:
    """For the latents that name a concept with children: how often a child's latent fires in their stead."""
    try:
        table = absorbed(sae, lm, site=said.about["site"], tokens=tokens, seed=seed).table
    except ValueError:  # no concept has a probe and children to speak of
        return {}
    rate = table.groupby("latent")["absorbed"].mean()
    return {"absorbed": rate.reindex(rows).to_numpy()}
