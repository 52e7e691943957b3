"""TPP: what ablating a label's latents does to probes for it and for others (SAEBench, arXiv:2503.09532).

Debated: an audit (arXiv:2605.18229) advises against TPP and SCR at default settings; it is here to be compared with
published numbers. Ablation takes a latent's own part out of the activation and keeps the SAE's error, so that a probe's
score falls by the latent's value times its decoder row's part along the probe. Accuracies are balanced.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from .. import plots
from ..intervals import Estimate, draws, interval
from ..labelled import MANY, Examples, read_labels, read_parts
from ..models import LM
from ..probes import Probe, accuracy_of, fit, mean_differences, tally
from ..reading import own_directions
from ..saes import SAE
from ..sites import Site
from .few import enough

TOPICS = tuple(f"topic.{name}" for name in ("farm", "kitchen", "market", "school", "travel"))
DRAWS = 300


@dataclass(frozen=True)
class Perturbation:
    """Scores by how many latents were ablated.

    Attributes:
        kind: "TPP": how much more a label's own probe loses than the others, 0 is none. "SCR": how much of what a
            spurious label cost a probe comes back, 1 is all.
        scores: one per number of latents.
        parts: what they are made of.
    """

    kind: str
    scores: dict[int, Estimate]
    parts: pd.DataFrame
    about: dict[str, Any]

    @property
    def table(self) -> pd.DataFrame:
        rows = [(n, e.value, e.low, e.high) for n, e in self.scores.items()]
        return pd.DataFrame(rows, columns=["latents", self.kind.lower(), "low", "high"])

    @property
    def figure(self):
        """The score against the number of latents ablated (plotly)."""
        return plots.reaching(self.table, "latents", self.kind.lower(), f"{self.kind} (debated)")

    def to_json(self) -> dict[str, Any]:
        scores = {str(n): e.to_json() for n, e in self.scores.items()}
        return {"kind": self.kind, "scores": scores, "parts": self.parts.to_dict("records"), "about": self.about}

    def __repr__(self) -> str:
        shown = ", ".join(f"{n} latents {e}" for n, e in self.scores.items())
        return f"{self.kind} at {self.about['site']} (debated): {shown}"


def tpp(
    sae: SAE,
    lm: LM,
    labels: Any = "world",
    *,
    column: str | Sequence[str] = "label",
    names: Iterable[str] | None = None,
    pooled: bool | None = True,
    site: str | Site | None = None,
    n: Sequence[int] = (2, 5, 10, 20, 50),
    tokens: int = 100_000,
    seed: int = 0,
    **options: Any,
) -> Perturbation:
    """Targeted probe perturbation: the n latents that favour a label are ablated; its own probe should suffer alone.

    A latent's effect is its mean difference (where positive) times its decoder row's part along the label's probe.
    Arguments are those of `probe`; of the world, by default, five topics.

    Raises:
        ValueError: as `probe`; fewer than two labels.
    """
    site = own_directions(sae, site)
    made = read_labels(labels, column, TOPICS if labels == "world" and names is None else names, pooled)
    tokens = tokens if made.about["text"] == "world" else MANY
    learnt, held = read_parts(lm, site, made, {"": sae}, tokens, seed, **options)
    kept, left_out = enough(made, [learnt, held])
    if len(kept) < 2:
        raise ValueError(f"TPP compares labels, and only {made.names[kept[0]]!r} has enough rows. Give more text.")
    probes = [fit(learnt.acts, learnt.truth(i), seed=seed) for i in kept]
    effects = mean_differences(learnt.codes[""], learnt.labels[:, kept]).clip(min=0) * along(sae, probes).T
    truth = [held.truth(i) for i in kept]
    weights = draws(held.docs, DRAWS)

    def accuracies(latents: np.ndarray) -> Float[np.ndarray, "draws labels"]:
        columns = ablated(held, sae, probes, latents).T
        counts = [tally(score > 0, y, held.doc, held.docs) for score, y in zip(columns, truth)]
        return accuracy_of(np.einsum("wd,ldc->wlc", weights, np.array(counts), optimize=True))

    clean, scores, parts = accuracies(np.array([], int)), {}, []
    for many in n:
        losses = np.stack([clean - accuracies(strongest(row, many)) for row in effects], 1)  # [draws, ablated, probed]
        own = np.einsum("wii->wi", losses)
        other = (losses.sum(2) - own) / (len(kept) - 1)
        scores[many] = interval(np.nanmean(own - other, axis=1))
        columns = (clean[0], own[0], other[0])
        parts += [(many, made.names[i], *(float(c[at]) for c in columns)) for at, i in enumerate(kept)]
    table = pd.DataFrame(parts, columns=["latents", "label", "accuracy", "own_loss", "other_loss"])
    about = {"site": str(site), "row": "document" if made.pooled else "token", "rows": len(held.doc), "seed": seed}
    return Perturbation("TPP", scores, table, about | made.about | {"left_out": left_out, "status": "debated"})


def along(sae: SAE, probes: list[Probe]) -> Float[np.ndarray, "d_sae probes"]:
    """What one unit of each latent adds to each probe's score."""
    return sae.W_dec.detach().double().cpu().numpy() @ np.stack([p.weight for p in probes], 1)


def strongest(effects: Float[np.ndarray, " d_sae"], n: int) -> Int[np.ndarray, " some"]:
    """At most n latents with the largest effects above 0."""
    order = np.argsort(-effects, kind="stable")[:n]
    return order[effects[order] > 0]


def ablated(
    rows: Examples, sae: SAE, probes: list[Probe], latents: Int[np.ndarray, " some"]
) -> Float[np.ndarray, "rows probes"]:
    """Probe scores without some latents; what the SAE leaves unexplained stays."""
    scores = np.stack([probe(rows.acts) for probe in probes], 1)
    return scores - rows.codes[""][:, latents] @ along(sae, probes)[latents]
