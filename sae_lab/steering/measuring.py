"""What can be counted in written texts: how the clean model reads them, how far the edits move it there, repetition,
and which latents fire on them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy.sparse import coo_array, csr_array

from ..intervals import draws, interval
from ..models import LM, Edit
from ..models.lm import ce
from ..saes import SAE
from ..shapes import Ids, Mask
from ..sites import Site

SUMS = ("tokens", "kl", "ce", "grams", "repeated")
GRAM = 4  # tokens
MOVED = 5  # other latents that are shown for each row

Key = tuple[str, float]  # what is done, and how strongly


@dataclass(frozen=True)
class Text:
    """One written text, as tokens.

    Attributes:
        row: which intervention and strength; `prompt`: which prompt.
        head: the prompt; `behind`: what the model saw in its place, which is more where it was asked for something.
        edits: in place while it was written.
    """

    row: int
    prompt: int
    head: list[int]
    behind: list[int]
    new: list[int]
    edits: tuple[Edit, ...]


class Counts:
    """Sums over the new tokens of texts by intervention and prompt, and of each latent's activation there."""

    def __init__(self, rows: int, prompts: int, d_sae: int):
        self.sums = {name: np.zeros((rows, prompts)) for name in SUMS}
        self._shape, self._fired = (prompts, d_sae), [[] for _ in range(rows)]

    def fired(self, row: int) -> csr_array:
        """Summed activations [prompts, d_sae] on what one intervention wrote."""
        parts = self._fired[row] or [np.zeros((3, 0))]
        prompt, latent, value = np.concatenate(parts, 1)
        return coo_array((value, (prompt.astype(int), latent.astype(int))), shape=self._shape).tocsr()

    def add(self, lm: LM, sae: SAE, site: Site, texts: Sequence[Text]) -> None:
        """Reads texts: once clean, once with their edits."""
        texts = [t for t in texts if t.new]
        for t in texts:
            self._count(t, "tokens", len(t.new))
            grams = Counter(zip(*(t.new[i:] for i in range(GRAM))))
            self._count(t, "grams", grams.total())
            self._count(t, "repeated", grams.total() - len(grams))
        width = max((len(t.behind) + len(t.new) for t in texts), default=1)
        at_once = max(1, lm.at_once // width)
        for first in range(0, len(texts), at_once):
            self._read(lm, sae, site, texts[first : first + at_once])

    @torch.no_grad()
    def _read(self, lm: LM, sae: SAE, site: Site, texts: Sequence[Text]) -> None:
        ids, mask = padded([t.head + t.new for t in texts])
        seen, seen_mask = padded([t.behind + t.new for t in texts])
        clean = lm.logits(ids, mask)
        steered = lm.edited(seen, [t.edits for t in texts], seen_mask, [len(t.behind) for t in texts])
        nats = ce(clean, ids.to(clean.device))
        for i, t in enumerate(texts):
            new, ends = len(t.new), (len(t.head) + len(t.new) - 1, len(t.behind) + len(t.new) - 1)
            p, q = (logits[i, end - new : end].float().log_softmax(-1) for logits, end in zip((clean, steered), ends))
            self._count(t, "kl", (p.exp() * (p - q)).sum().item())
            self._count(t, "ce", nats[i, ends[0] - new : ends[0]].sum().item())
        x = lm.read(ids, site, mask)[site].to(sae.W_dec)
        z = sae.encode(torch.cat([x[i, len(t.head) : len(t.head) + len(t.new)] for i, t in enumerate(texts)]))
        of = np.repeat(np.arange(len(texts)), [len(t.new) for t in texts])[z.support.token.cpu().numpy()]
        latent, value = z.support.latent.cpu().numpy(), z.value.float().cpu().numpy()
        for i, t in enumerate(texts):
            mine = of == i
            prompt = np.full(int(mine.sum()), t.prompt)
            self._fired[t.row].append(np.stack([prompt, latent[mine], value[mine]]).astype(np.float64))

    def side(self, keys: Sequence[Key], spread: np.ndarray, pushed: Sequence[int]) -> pd.DataFrame:
        """Which other latents moved most from row 0, in units of their spread: found on every second prompt, measured
        on the others."""
        tokens, rows = self.sums["tokens"], []
        fit, judge = (np.arange(first, tokens.shape[1], 2) for first in (0, 1))
        weights, once = draws(len(judge), 1000), np.ones((1, len(fit)))

        def means(row: int, some: np.ndarray, latents: np.ndarray, weight: np.ndarray) -> np.ndarray:
            total = weight @ tokens[row, some][:, None]
            fired = weight @ self.fired(row)[some][:, latents].toarray()
            return np.divide(fired, total, out=np.full(fired.shape, np.nan), where=total > 0) / spread[latents]

        others = np.setdiff1d(np.flatnonzero(spread > 0), pushed)
        for row, (name, strength) in enumerate(keys[1:], 1):
            moved = means(row, fit, others, once)[0] - means(0, fit, others, once)[0]
            most = others[np.argsort(-np.abs(moved))[:MOVED]]
            seen = means(row, judge, most, weights) - means(0, judge, most, weights)
            found = [(int(i), interval(drawn)) for i, drawn in zip(most, seen.T) if np.isfinite(drawn[0])]
            rows += [(name, strength, i, e.value, e.low, e.high) for i, e in found]
        return pd.DataFrame(rows, columns=["intervention", "strength", "latent", "moved", "moved_low", "moved_high"])

    def _count(self, text: Text, name: str, amount: float) -> None:
        self.sums[name][text.row, text.prompt] += amount


def padded(rows: Sequence[list[int]]) -> tuple[Ids, Mask]:
    """Rows of token ids, padded on the right, and which of them are real."""
    width = max(map(len, rows))
    ids = torch.tensor([row + [row[-1]] * (width - len(row)) for row in rows])
    return ids, torch.arange(width)[None] < torch.tensor([len(row) for row in rows])[:, None]
