"""One pass over held-out text: what all latents fire on, in memory that grows with latents and not with firings."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

from ..models import LM
from ..reading import Page
from ..saes import SAE
from ..shapes import Rows
from ..sites import Site
from ..sparse import Latents
from .best import Best
from .neighbours import Together, alike

BINS, PER_OCTAVE, ABOVE = 48, 4, 8  # of the histograms: twelve octaves, two of them above the first page's highest
NEAR = 10  # neighbours and tokens kept of each kind
AT_ONCE = 2**25  # logits that exist at a time

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Firings:
    """What fired on a page, latent by latent and in reading order; `row` counts the latents asked about."""

    row: Int[np.ndarray, " nnz"]
    token: Int[np.ndarray, " nnz"]
    value: Float[np.ndarray, " nnz"]

    @classmethod
    def of(cls, z: Latents, row_of: Int[np.ndarray, " d_sae"]) -> "Firings":
        by = z.support.T
        value, token = z.value[by.order].float().cpu().numpy(), by.latent.long().cpu().numpy()
        row = np.repeat(row_of, by.start.diff().cpu().numpy())
        on = (value > 0) & (row >= 0)
        return cls(row[on], token[on], value[on])

    def around(self, some: Int[np.ndarray, " some"], page: Page, width: int) -> Float[np.ndarray, "some window"]:
        """The values of a firing's own latent on the tokens around it, 0 beyond its stretch of text."""
        row, token, tokens, stretch = self.row[some], self.token[some], len(page.doc), page.stretch
        first = np.maximum(np.searchsorted(stretch, stretch[token]), token - width)
        last = np.minimum(np.searchsorted(stretch, stretch[token], "right"), token + width + 1)
        where = self.row * tokens + self.token
        low, high = np.searchsorted(where, row * tokens + first), np.searchsorted(where, row * tokens + last)
        count = high - low
        source = np.repeat(low - np.cumsum(count) + count, count) + np.arange(count.sum())
        values, window = np.zeros((len(some), 2 * width + 1), np.float32), np.repeat(np.arange(len(some)), count)
        values[window, self.token[source] - token[window] + width] = self.value[source]
        return values


class Gathering:
    """Everything about the latents asked about, page by page; `arrays` is what there is to keep."""

    def __init__(self, sae: SAE, latents: Int[np.ndarray, " rows"], n: int, sampled: int, width: int, seed: int):
        self.sae, self.latents, self.width = sae, latents, width
        self._row = np.full(sae.cfg.d_sae, -1)
        self._row[latents] = np.arange(len(latents))
        self._top, self._sampled = Best(len(latents), n, width), Best(len(latents), sampled, width)
        self._fired, self._bins = np.zeros(len(latents), np.int64), np.zeros((len(latents), BINS), np.int64)
        self._scale, self._rng = 0.0, np.random.default_rng(seed)
        self.together, self._text = Together(sae.cfg.d_sae), Text()
        self.tokens = self.documents = 0

    @torch.no_grad()
    def add(self, page: Page, x: Rows) -> None:
        z = self.sae.encode(x).detach()
        found = Firings.of(z, self._row)
        on = z.value > 0
        token, latent = z.support.token[on].cpu().numpy(), z.support.latent[on].cpu().numpy()
        self.together.add(latent, np.bincount(token, minlength=len(page.doc)))
        self._count(found)
        draw = self._rng.random(len(found.row), dtype=np.float32)
        for best, key in ((self._top, found.value), (self._sampled, draw)):
            won, slot = best.offer(found.row, page.doc[found.token], key)
            best.place[found.row[won], slot] = self.tokens + found.token[won]
            for part in np.array_split(np.arange(len(won)), len(won) // 2**16 + 1):
                best.value[found.row[won[part]], slot[part]] = found.around(won[part], page, self.width)
        self._text.add(page)
        self.tokens += len(page.doc)
        self.documents = max(self.documents, int(page.doc.max(initial=-1)) + 1)

    def _count(self, found: Firings) -> None:
        self._fired += np.bincount(found.row, minlength=len(self._fired))
        if not self._scale and len(found.value):
            self._scale = float(found.value.max())
        if self._scale:
            above = PER_OCTAVE * np.log2(found.value / self._scale)
            place = np.clip(np.floor(above).astype(np.int64) + BINS - ABOVE, 0, BINS - 1)
            np.add.at(self._bins, (found.row, place), 1)

    def arrays(self, lm: LM, site: Site) -> tuple[Arrays, Arrays]:
        """(what there is per latent, what all share: the text, the words of the vocabulary, the histograms' edges)."""
        found = {"latent": self.latents, "fired": self._fired, "histogram": self._bins.astype(np.int32)}
        for name, best in (("top", self._top), ("sampled", self._sampled)):
            best.order()
            found |= {f"{name}_place": np.where(best.key > -np.inf, best.place, -1), f"{name}_value": best.value}
        near = self.together.nearest(self.latents, NEAR)
        found |= dict(zip(("cofiring", "cofiring_jaccard", "cofiring_tokens"), near))
        found |= dict(zip(("decoder", "decoder_cosine"), alike(self.sae.W_dec, self.latents, NEAR)))
        found |= effects(self.sae, lm, site, self.latents)
        used = np.unique(np.concatenate([found["promoted"].ravel(), found["suppressed"].ravel()]))
        edges = (self._scale or 1.0) * 2.0 ** ((np.arange(BINS + 1) - BINS + ABOVE) / PER_OCTAVE)
        common = {"edge": edges, "word": used} | packed("word", lm.words(used.tolist()))
        return found, common | self._text.arrays()


@torch.no_grad()
def effects(sae: SAE, lm: LM, site: Site, latents: Int[np.ndarray, " rows"]) -> Arrays:
    """Each latent's most promoted and most suppressed tokens, with their logits (`LM.logit_lens`); no special ones."""
    special, found = torch.tensor(lm.special_ids, device=lm.device, dtype=torch.long), []
    for part in np.array_split(latents, len(latents) * lm.vocab // AT_ONCE + 1):
        logits = lm.logit_lens(sae.W_dec[torch.from_numpy(part)], site.target)
        for sign in (1, -1):
            ranked = sign * logits
            ranked[:, special] = -torch.inf
            value, token = ranked.topk(NEAR)
            found.append((token.int().cpu().numpy(), (sign * value).cpu().numpy()))
    up, down = ([np.concatenate(column) for column in zip(*found[i::2])] for i in (0, 1))
    return {"promoted": up[0], "promoted_logit": up[1], "suppressed": down[0], "suppressed_logit": down[1]}


class Text:
    """The text that was read, once, with where each kept token begins in it: a window is then a token's number."""

    def __init__(self) -> None:
        self._utf8: list[bytes] = []
        self._start: list[np.ndarray] = []
        self._first: list[np.ndarray] = []
        self._ids: list[np.ndarray] = []
        self._bytes = self._tokens = 0

    def add(self, page: Page) -> None:
        block, keep = page.block, page.keep
        start, end, doc = (a[keep].numpy() for a in (block.start, block.end, block.doc))
        first = np.flatnonzero(np.diff(page.stretch, prepend=-1))
        for a, b in zip(first.tolist(), [*first[1:].tolist(), len(start)]):
            text = block.text(int(doc[a]))[start[a] : end[b - 1]]
            point = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
            size = 1 + (point >= 0x80) + (point >= 0x800) + (point >= 0x10000)
            self._start.append(self._bytes + np.concatenate([[0], np.cumsum(size)])[start[a:b] - start[a]])
            self._utf8.append(text.encode("utf-8", "surrogatepass"))
            self._bytes += len(self._utf8[-1])
        self._first.append(self._tokens + first)
        self._ids.append(block.ids[keep].int().numpy())
        self._tokens += len(start)

    def arrays(self) -> Arrays:
        nothing = np.zeros(0, np.int64)
        return {
            "text": np.frombuffer(b"".join(self._utf8), np.uint8),
            "start": np.concatenate([*self._start, [self._bytes]]).astype(np.int64),
            "stretch": np.concatenate([*self._first, [self._tokens]]).astype(np.int64),
            "ids": np.concatenate([*self._ids, nothing]).astype(np.int32),
        }


def packed(name: str, words: Iterable[str]) -> Arrays:
    """Strings as one row of bytes and where each begins."""
    raw = [word.encode("utf-8", "surrogatepass") for word in words]
    start = np.concatenate([[0], np.cumsum([len(word) for word in raw])]).astype(np.int64)
    return {f"{name}_text": np.frombuffer(b"".join(raw), np.uint8), f"{name}_start": start}
