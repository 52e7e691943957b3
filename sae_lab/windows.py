"""Contexts: where in held-out text a latent fires most strongly, one place per document."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from .models import LM
from .reading import Page, held_out, home, own_text, walk
from .saes import SAE
from .sites import Site


@dataclass(frozen=True)
class Context:
    """A window of text around one firing.

    Attributes:
        tokens: the text of each token; joined they are the text as it was.
        values: the latent's activation on each of them.
        peak: which of them the window was made for.
    """

    latent: int
    tokens: tuple[str, ...]
    values: tuple[float, ...]
    peak: int

    @property
    def text(self) -> str:
        return "".join(self.tokens)

    def __repr__(self) -> str:
        marked = [f"<<{t}>>" if v > 0 else t for t, v in zip(self.tokens, self.values)]
        return f"{self.values[self.peak]:.2f} {''.join(marked)!r}"


@dataclass(frozen=True)
class Contexts:
    """Windows by latent, strongest first, with how often each latent fired."""

    by_latent: dict[int, list[Context]]
    density: dict[int, float]
    about: dict[str, Any]

    def __getitem__(self, latent: int) -> list[Context]:
        return self.by_latent[latent]

    def __iter__(self) -> Iterator[int]:
        return iter(self.by_latent)

    @property
    def table(self) -> pd.DataFrame:
        rows = [
            {"latent": latent, "density": self.density[latent], "activation": c.values[c.peak], "text": c.text}
            for latent, found in self.by_latent.items()
            for c in found
        ]
        return pd.DataFrame(rows, columns=["latent", "density", "activation", "text"])

    def __repr__(self) -> str:
        return "\n".join(f"latent {latent}: {found[:3]}" for latent, found in self.by_latent.items())


def contexts(
    sae: SAE,
    lm: LM,
    latents: Iterable[int],
    *,
    site: str | Site | None = None,
    text: Any = None,
    split: str = "test",
    tokens: int = 100_000,
    n: int = 10,
    width: int = 16,
    seed: int = 0,
    **options: Any,
) -> Contexts:
    """The n strongest firings of each latent, one per document, with `width` tokens on either side.

    Raises:
        ValueError: a latent the SAE does not have.
    """
    latents = list(latents)
    odd = [i for i in latents if not 0 <= i < sae.cfg.d_sae]
    if odd:
        raise ValueError(f"No latent {odd[0]}: this SAE has latents 0 to {sae.cfg.d_sae - 1}.")
    site, (text, options) = home(sae, site), own_text(sae, text, options)
    wanted = torch.zeros(sae.cfg.d_sae, dtype=torch.bool)
    wanted[latents] = True
    best: dict[int, dict[int, Context]] = {i: {} for i in latents}  # latent -> document -> its strongest
    fired, seen = dict.fromkeys(latents, 0), 0
    for page in walk(lm, held_out(lm, text, split, seed, **options), [site], tokens, sae):
        seen += len(page.doc)
        for latent, strongest, times in _firings(sae, page, site, wanted, n):
            fired[latent] += times
            for doc, c in strongest:
                if doc not in best[latent] or c.values[c.peak] > best[latent][doc].values[best[latent][doc].peak]:
                    best[latent][doc] = _cut(c, width)
            ranked = sorted(best[latent].items(), key=lambda item: -item[1].values[item[1].peak])
            best[latent] = dict(ranked[:n])
    about = {"site": str(site), "split": split, "tokens": seen}
    found = {latent: list(of.values()) for latent, of in best.items()}
    return Contexts(found, {i: fired[i] / max(seen, 1) for i in latents}, about)


@torch.no_grad()
def _firings(sae: SAE, page: Page, site: Site, wanted: torch.Tensor, n: int):
    """For each wanted latent that fires on a page: (document, context) of its n strongest, and how often it fired."""
    z = sae.encode(page.acts[site]).detach()
    on = (z.value > 0).cpu() & wanted[z.support.latent.long().cpu()]
    latent = z.support.latent.cpu()[on].long().numpy()
    token, value = z.support.token.cpu()[on].numpy(), z.value.detach().cpu()[on].double().numpy()
    for i in np.unique(latent):
        mine = latent == i
        yield int(i), list(_strongest(page, int(i), token[mine], value[mine], n)), int(mine.sum())


def _strongest(page: Page, latent: int, token: np.ndarray, value: np.ndarray, n: int) -> Iterator[tuple[int, Context]]:
    doc, stretch, taken = page.doc[token], page.stretch[token], set()
    for at in np.argsort(-value, kind="stable"):
        if doc[at] in taken:
            continue
        taken.add(doc[at])
        places, mine = np.flatnonzero(page.stretch == stretch[at]), stretch == stretch[at]
        values, peak = np.zeros(len(places)), int(np.searchsorted(places, token[at]))
        values[np.searchsorted(places, token[mine])] = value[mine]
        yield int(doc[at]), Context(latent, _words(page, places), tuple(values.tolist()), peak)
        if len(taken) == n:
            return


def _words(page: Page, places: np.ndarray) -> tuple[str, ...]:
    """The text of each kept token of a stretch, with whatever stands between it and the next."""
    block, keep = page.block, page.keep
    text = block.text(int(block.doc[keep][places[0]]))
    start = block.start[keep][places].tolist()
    end = [*start[1:], int(block.end[keep][places[-1]])]
    return tuple(text[a:b] for a, b in zip(start, end))


def _cut(c: Context, width: int) -> Context:
    low, high = max(0, c.peak - width), c.peak + width + 1
    return Context(c.latent, c.tokens[low:high], c.values[low:high], c.peak - low)
