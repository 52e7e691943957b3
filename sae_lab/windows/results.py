"""What is known about latents: a card for each, cut from arrays in memory or in a file, whichever they are."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from .. import plots

Arrays = Mapping[str, np.ndarray]
COFIRING = ("cofiring", "cofiring_jaccard", "cofiring_tokens")


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

    @property
    def activation(self) -> float:
        return self.values[self.peak]

    def __repr__(self) -> str:
        marked = [f"<<{t}>>" if v > 0 else t for t, v in zip(self.tokens, self.values)]
        return f"{self.activation:.2f} {''.join(marked)!r}"


@dataclass(frozen=True, eq=False)
class Card:
    """One latent; a sequence of its strongest contexts.

    Attributes:
        density: share of tokens on which it fires.
        top: its strongest firings, one per document, strongest first.
        sampled: firings drawn at random from all it had, one per document, strongest first.
        promoted: tokens whose logits its direction raises most by itself, and by how much (`LM.logit_lens`).
        suppressed: those that it lowers most.
        cofiring: latents that fire with it: (latent, Jaccard index, tokens on which both do).
        decoder: latents whose directions are like its own: (latent, cosine).
        edges: of the histogram's bins; what is beyond counts in the first and in the last.
        histogram: tokens with an activation in each bin.
    """

    latent: int
    density: float
    top: tuple[Context, ...]
    sampled: tuple[Context, ...]
    promoted: tuple[tuple[str, float], ...]
    suppressed: tuple[tuple[str, float], ...]
    cofiring: tuple[tuple[int, float, int], ...]
    decoder: tuple[tuple[int, float], ...]
    edges: Float[np.ndarray, " edges"]
    histogram: Int[np.ndarray, " bins"]

    def __iter__(self) -> Iterator[Context]:
        return iter(self.top)

    def __len__(self) -> int:
        return len(self.top)

    def __getitem__(self, i: int) -> Context:
        return self.top[i]

    def quantiles(self, n: int = 5) -> list[tuple[Context, ...]]:
        """The sample in n parts of equal size by activation, the weakest first: each is drawn from one quantile."""
        weakest_first = self.sampled[::-1]
        return [tuple(weakest_first[i] for i in part) for part in np.array_split(np.arange(len(weakest_first)), n)]

    @property
    def table(self) -> pd.DataFrame:
        """One row per context, the strongest before the sample."""
        rows = [(of, c.activation, c.text) for of in ("top", "sampled") for c in getattr(self, of)]
        return pd.DataFrame(rows, columns=["of", "activation", "text"])

    @property
    def figure(self):
        """Histogram of its activations (plotly)."""
        return plots.activations(self.edges, self.histogram, f"latent {self.latent}")

    def to_json(self) -> dict[str, Any]:
        return {
            "latent": self.latent,
            "density": self.density,
            "top": [asdict(c) for c in self.top],
            "sampled": [asdict(c) for c in self.sampled],
            **{name: getattr(self, name) for name in ("promoted", "suppressed", "cofiring", "decoder")},
            "edges": self.edges.tolist(),
            "histogram": self.histogram.tolist(),
        }

    def __repr__(self) -> str:
        said = [f"latent {self.latent}: fires on {self.density:.3%} of tokens"]
        for name in ("promoted", "suppressed"):
            said.append(f"  {name:<11}{' '.join(repr(token) for token, _ in getattr(self, name)[:5])}")
        for name in ("cofiring", "decoder"):
            said.append(f"  {name:<11}{', '.join(f'{near[0]} ({near[1]:.2f})' for near in getattr(self, name)[:5])}")
        return "\n".join([*said, *(f"  {c!r}" for c in self.top[:3])])


@dataclass(frozen=True, eq=False)
class Contexts:
    """The cards of some or all latents of an SAE: `found[12]`.

    Attributes:
        by_latent: arrays with a row for each latent; a file's are read a row at a time.
        common: what the cards share: the text, the words of the vocabulary, the edges of the histograms.
        about: what was read, and how much of it.
    """

    by_latent: Arrays
    common: Arrays
    about: dict[str, Any]

    def __iter__(self) -> Iterator[int]:
        return iter(self.by_latent["latent"].tolist())

    def __len__(self) -> int:
        return len(self.by_latent["latent"])

    def __getitem__(self, latent: int) -> Card:
        """Raises:
        KeyError: a latent that is not among them.
        """
        latents = self.by_latent["latent"]
        row = int(np.searchsorted(latents, latent))
        if row == len(latents) or latents[row] != latent:
            raise KeyError(f"No latent {latent} here: there are {len(self)}, from {latents[0]} to {latents[-1]}.")
        return Card(
            latent=int(latent),
            density=int(self.by_latent["fired"][row]) / max(1, self.about["tokens"]),
            top=self._contexts(row, "top"),
            sampled=self._contexts(row, "sampled"),
            **{name: self._effect(row, name) for name in ("promoted", "suppressed")},
            cofiring=tuple(near for near in self._rows(row, *COFIRING) if near[1] > 0),
            decoder=self._rows(row, "decoder", "decoder_cosine"),
            edges=np.array(self.common["edge"]),
            histogram=np.array(self.by_latent["histogram"][row]),
        )

    @property
    def density(self) -> pd.Series:
        """Share of tokens on which each latent fires, by latent."""
        return pd.Series(self.by_latent["fired"] / max(1, self.about["tokens"]), self.by_latent["latent"])

    @property
    def table(self) -> pd.DataFrame:
        """One row per strongest context of each latent."""
        rows = [
            (latent, density, c.activation, c.text)
            for row, (latent, density) in enumerate(self.density.items())
            for c in self._contexts(row, "top")
        ]
        return pd.DataFrame(rows, columns=["latent", "density", "activation", "text"])

    @property
    def summary(self) -> pd.DataFrame:
        """One row per latent: how often and how strongly it fires, what it promotes most, who fires with it most."""
        arrays = self.by_latent
        together = np.where(arrays["cofiring_jaccard"][:, 0] > 0, arrays["cofiring"][:, 0], -1)
        peak = arrays["top_value"].shape[2] // 2
        return pd.DataFrame(
            {
                "latent": arrays["latent"],
                "density": self.density.to_numpy(),
                "activation": arrays["top_value"][:, 0, peak],
                "promotes": [self._word(token) for token in arrays["promoted"][:, 0].tolist()],
                "fires_with": together,
                "jaccard": arrays["cofiring_jaccard"][:, 0],
            }
        )

    @property
    def figure(self):
        """Histogram of latent densities (plotly)."""
        return plots.densities(self.density.to_numpy())

    def to_json(self) -> dict[str, Any]:
        return {"about": self.about, "latents": self.summary.to_dict("records")}

    def __repr__(self) -> str:
        a = self.about
        head = f"Contexts of {len(self):,} latents at {a['site']} on {a['tokens']:,} {a['split']} tokens"
        return "\n".join([head, *(repr(self[latent]) for latent in list(self)[:3])])

    def _contexts(self, row: int, of: str) -> tuple[Context, ...]:
        latent, places = int(self.by_latent["latent"][row]), np.array(self.by_latent[f"{of}_place"][row])
        values = np.array(self.by_latent[f"{of}_value"][row], np.float64)
        return tuple(self._context(latent, int(p), v) for p, v in zip(places, values) if p >= 0)

    def _context(self, latent: int, place: int, values: Float[np.ndarray, " window"]) -> Context:
        stretch, width = self.common["stretch"], len(values) // 2
        at = int(np.searchsorted(stretch, place, "right"))
        first, last = max(int(stretch[at - 1]), place - width), min(int(stretch[at]), place + width + 1)
        tokens = _cut(self.common["text"], self.common["start"][first : last + 1].tolist())
        shown = values[first - place + width : last - place + width]
        return Context(latent, tokens, tuple(shown.tolist()), place - first)

    def _word(self, token: int) -> str:
        at = int(np.searchsorted(self.common["word"], token))
        return _cut(self.common["word_text"], self.common["word_start"][at : at + 2].tolist())[0]

    def _rows(self, row: int, *names: str) -> tuple[tuple, ...]:
        return tuple(zip(*(self.by_latent[name][row].tolist() for name in names)))

    def _effect(self, row: int, name: str) -> tuple[tuple[str, float], ...]:
        return tuple((self._word(token), logit) for token, logit in self._rows(row, name, f"{name}_logit"))


def _cut(text: np.ndarray, start: list[int]) -> tuple[str, ...]:
    raw = text[start[0] : start[-1]].tobytes()
    return tuple(raw[a - start[0] : b - start[0]].decode("utf-8", "surrogatepass") for a, b in pairwise(start))
