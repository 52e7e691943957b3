"""One SAE on held-out text: reconstruction, sparsity, and the cost of splicing it in.

Each number has a 95% bootstrap interval over documents.
"""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from .. import plots
from ..intervals import DocSums, Estimate
from ..models import LM
from ..reading import Numbers, held_out, own_text, pages, walk
from ..saes import SAE
from ..shapes import Direction
from ..sites import Site
from ..tokens import Blocks
from .numbers import COST, COST_MEAN, MEANS, RECONSTRUCTION, Rebuilding, costs, fitting, substitutes

DENSE = 0.1  # a latent that fires on more than this share of tokens counts as dense


@dataclass(frozen=True)
class Evaluation:
    """The numbers of one SAE at one site.

    Attributes:
        fvu ... dense: the numbers, each with its interval (of `dead` it only reaches up); `MEANS` says what they are.
        density: share of tokens on which each latent fires.
        about: what was measured on: site, split, tokens, documents.
    """

    fvu: Estimate
    l0: Estimate
    cosine: Estimate
    bias: Estimate
    ev_llama_scope: Estimate
    ce_clean: Estimate
    ce_spliced: Estimate
    ce_zero: Estimate
    ce_mean: Estimate
    ce_increase: Estimate
    ce_recovered: Estimate
    ce_recovered_mean: Estimate
    kl: Estimate
    kl_score: Estimate
    dead: Estimate
    dense: Estimate
    density: Float[np.ndarray, " d_sae"]
    about: dict[str, Any]

    @property
    def numbers(self) -> dict[str, Estimate]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.type is Estimate}

    @property
    def table(self) -> pd.DataFrame:
        """One row per number, with its interval and what it means."""
        rows = [(n, e.value, e.low, e.high, MEANS[n]) for n, e in self.numbers.items()]
        return pd.DataFrame(rows, columns=["number", "value", "low", "high", "meaning"])

    @property
    def figure(self):
        """Histogram of latent densities (plotly)."""
        return plots.densities(self.density)

    def to_json(self) -> dict[str, Any]:
        return {n: e.to_json() for n, e in self.numbers.items()} | {"about": self.about}

    def __repr__(self) -> str:
        a = self.about
        return (
            f"Evaluation at {a['site']} on {a['tokens']:,} {a['split']} tokens: fvu {self.fvu}, l0 {self.l0:.1f}, "
            f"ce recovered {self.ce_recovered}, dead {self.dead.value:.1%}"
        )


def evaluate(
    sae: SAE,
    lm: LM,
    *,
    site: str | Site | None = None,
    text: Any = None,
    split: str = "test",
    tokens: int = 200_000,
    spliced: int = 32_768,
    seed: int = 0,
    **options: Any,
) -> Evaluation:
    """Measures an SAE of raw activations on text it was not trained on.

    Args:
        site: where it reads; default: where it was trained.
        text: as in `sl.activations`; default: the text it was trained on (its test split), else "world".
        tokens: how many tokens reconstruction, sparsity and deadness are measured on at least, if the text has so many.
        spliced: how many of them are also run through the model with the SAE in place (four times the work).
        options: passed on to `reading.held_out`: context, documents, column ...

    Raises:
        ValueError: if the SAE does not know its site and none is given, or does not fit it.
    """
    site, (text, options) = fitting(sae, lm, site), own_text(sae, text, options)
    blocks = held_out(lm, text, split, seed, **options)
    sums, fired, counts = _reconstruct(sae, lm, site, blocks, tokens)
    n = sums.sums["n"].sum()
    mean = torch.as_tensor(sums.sums["y"].sum(0) / n, dtype=lm.dtype, device=lm.device)
    cost = _splice(sae, lm, site, blocks, spliced, mean)
    density = counts / n
    dense = float((density > DENSE).mean())  # of all latents there are, not of a sample
    about = {"site": str(site), "split": split, "tokens": int(n), "documents": sums.docs, "model": lm.name}
    about |= {"spliced_tokens": int(cost.sums["n"].sum()), "seed": seed}
    return Evaluation(
        **{name: sums.estimate(f) for name, f in RECONSTRUCTION.items()},
        **{name: cost.estimate(f) for name, f in (COST | COST_MEAN).items()},
        dead=_dead(fired, sums.docs, sae.cfg.d_sae),
        dense=Estimate(dense, dense, dense),
        density=density,
        about=about,
    )


@torch.no_grad()
def _reconstruct(sae: SAE, lm: LM, site: Site, blocks: Blocks, tokens: int):
    sums, rebuild, counts, fired = DocSums(), Rebuilding(sae), np.zeros(sae.cfg.d_sae), []
    for page in walk(lm, blocks, [site, site.target], tokens, sae):
        z, columns = rebuild(page.acts[site], page.acts[site.target])
        on = z.value != 0
        latent, token = z.support.latent[on].long().cpu().numpy(), z.support.token[on].cpu().numpy()
        counts += np.bincount(latent, minlength=len(counts))
        docs, here = np.unique(page.doc, return_inverse=True)
        awake = np.zeros((len(docs), len(counts)), bool)
        awake[here[token], latent] = True
        row, woken = awake.nonzero()
        fired.append(np.stack([docs[row], woken]))
        sums.add(page.doc, **columns)
    return sums, np.concatenate(fired, axis=1), counts


def _splice(sae: SAE, lm: LM, site: Site, blocks: Blocks, tokens: int, mean: Direction) -> DocSums:
    """Cross-entropy with the SAE, zeros or the mean in place of every token that is not special."""
    sums, numbers = DocSums(), Numbers()
    for block, keep in pages(blocks, tokens, lm.at_once):
        counts, columns = costs(lm, block.ids, block.mask, keep, substitutes({site: sae}, keep, {site: mean}))
        sums.add(numbers(block.doc[counts]), **columns)
    return sums


def _dead(fired: np.ndarray, docs: int, d_sae: int, n: int = 200) -> Estimate:
    """Share of latents that no document drawn wakes; `fired` holds documents and the latents that fired in them."""
    doc, latent = fired

    def asleep(drawn: np.ndarray) -> float:
        awake = np.zeros(d_sae, bool)
        awake[latent[drawn[doc]]] = True
        return 1 - awake.mean()

    rng, shares, value = np.random.default_rng(0), [], asleep(np.ones(docs, bool))
    for _ in range(n):
        drawn = np.zeros(docs, bool)
        drawn[rng.integers(docs, size=docs)] = True
        shares.append(asleep(drawn))
    return Estimate(value, value, float(max(value, np.quantile(shares, 0.975))))
