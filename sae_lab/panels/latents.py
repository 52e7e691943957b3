"""What a panel of latents shows, without widgets: all that a run keeps about them, searched by number, word or text."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from ..geometry import NAMED, heard
from ..library import load_sae
from ..matching import shared
from ..models import LM
from ..reading import model_of
from ..runs import Run, findings, read_json, weights_of
from ..sites import Site
from ..windows import Card, Contexts, contexts
from .work import Work

DENSE = 0.1  # share of tokens, from which on a latent counts as dense
READ = 200_000  # tokens, where a run has no contexts yet
NAMED_ON = 50_000  # tokens, of another split


class Latents(Work):
    """The latents of one run. What needs the model reads it when it is first needed.

    Attributes:
        peers: runs of the same shape from other seeds; a latent's badge says in how many of them it is found.
    """

    def __init__(self, run: Run | str | Path, lm: LM | None = None, peers: Sequence[Run | str | Path] = ()):
        super().__init__()
        self.run = run if isinstance(run, Run) else Run(run)
        self.peers, self._lm = tuple(peers), lm

    @cached_property
    def sae(self) -> Any:
        return load_sae(self.run)

    @cached_property
    def lm(self) -> LM:
        """The model that the run's SAE is of."""
        return self._lm or model_of(self.sae)

    @property
    def ready(self) -> bool:
        """Whether the run has contexts to show, of the weights it has now."""
        try:
            return bool(self.cards.about)
        except (FileNotFoundError, ValueError):  # none, or of other weights
            return False

    @property
    def named(self) -> bool:
        """Whether its latents have been asked for the concepts of the world, or cannot be."""
        return not self._labelled or self._named.exists()

    def begin_gathering(self, tokens: int = READ) -> None:
        """As `gather`, in a thread.

        Raises:
            RuntimeError: while it is at it.
        """
        self.begin(f"reading {tokens:,} tokens", lambda: self.gather(tokens))

    def gather(self, tokens: int = READ) -> None:
        """Reads text and keeps in the run what every latent fires on, and names; minutes for a large SAE.

        What is there of these weights stays as it is.
        """
        if not self.ready:
            contexts(self.run, self.lm, tokens=tokens)
        if not self.named:
            self.run.study(self._named.stem, lambda: self._name(min(tokens, NAMED_ON)))
        for name in ("cards", "table"):
            self.__dict__.pop(name, None)

    @cached_property
    def cards(self) -> Contexts:
        """Raises:
        FileNotFoundError: if nobody gathered them yet.
        """
        return contexts(self.run)

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per latent: kind, density, strongest activation, what it promotes, what it is said to fire on."""
        found = self.cards.summary.set_index("latent")[["density", "activation", "promotes"]]
        kinds = np.select([found["density"] == 0, found["density"] >= DENSE], ["dead", "dense"], "")
        found.insert(0, "kind", kinds)
        found.loc[found["density"] == 0, ["activation", "promotes"]] = [np.nan, ""]
        said = {row["latent"]: row["explanation"]["text"] for row in self._explained}
        score = {row["latent"]: row["scores"].get("detection") for row in self._explained}
        found["explanation"] = [said.get(latent, "") for latent in found.index]
        found["detection"] = pd.Series([score.get(latent) for latent in found.index], found.index, dtype=float)
        if self._labelled and self.named:
            kept = pd.DataFrame(read_json(self._named), columns=["concept", "f1"])
            found["concept"] = kept["concept"].where(kept["f1"] >= NAMED, "")
            found["F1"] = kept["f1"].where(kept["f1"] >= NAMED)
        if self.peers:
            found["found in"] = self._found_in
        return found

    def search(self, words: str = "", alive: bool = False) -> pd.DataFrame:
        """The latent of this number, or those whose concept, explanation, comment or promoted tokens have the words."""
        rows = self.table[self.table["kind"] != "dead"] if alive else self.table
        if words.strip().isdigit():
            return rows[rows.index == int(words)]
        comments = self.run.comments
        for word in words.lower().split():
            commented = pd.Series([comments.get(n, "") for n in rows.index], rows.index, dtype=str)
            told = [rows[c] for c in ("explanation", "concept", "promotes", "kind") if c in rows]
            rows = rows[commented.str.cat(told, " ").str.lower().str.contains(word, regex=False)]
        return rows

    def card(self, latent: int) -> Card:
        """Raises:
        KeyError: a latent that is not there.
        """
        return self.cards[latent]

    @torch.no_grad()
    def on(self, text: str) -> tuple[list[str], torch.Tensor]:
        """(tokens of a text of one's own, activations [tok, d_sae] on them).

        Raises:
            ValueError: for a text without tokens, or longer than the model's context.
        """
        lm, site = self.lm, Site(self.sae.origin["site"])
        ids, mask = lm.encode(text)
        if ids.shape[1] > lm.context:
            raise ValueError(f"{ids.shape[1]:,} tokens are more than the context of {lm.context:,}: give less text.")
        kept = ~lm.special(ids)[0]
        if not kept.any():
            raise ValueError("There is nothing to read: type a text.")
        z = self.sae.encode(lm.read(ids, site, mask=mask)[site][0].to(self.sae.W_dec))
        return lm.words(ids[0][kept].tolist()), z.dense()[kept]

    def strongest(self, text: str, n: int = 20) -> pd.DataFrame:
        """The latents that fire most strongly on a text, relative to the strongest they were seen: one row each."""
        words, z = self.on(text)
        value, token = z.max(0)
        known = self.table["activation"].to_numpy(np.float64)
        share = value.cpu().numpy() / np.where(known > 0, known, np.inf)
        order = [i for i in np.argsort(-share)[:n] if value[i] > 0]
        rows = {
            "on": [words[token[i]] for i in order],
            "activation here": value[order].tolist(),
            "share of its most": share[order],
        }
        return pd.DataFrame(rows, index=order).join(self.table[["explanation", "promotes", "density"]])

    @property
    def _labelled(self) -> bool:
        """Whether the text it learned from says which concepts are in it."""
        return self.sae.origin.get("text") == "world"

    @property
    def _named(self) -> Path:
        """Where the concepts of the weights there are now are kept."""
        return self.run.folder / "studies" / f"concepts-{weights_of(self.run)[:12]}.json"

    def _name(self, tokens: int) -> list[list[Any]]:
        found = heard([self.sae.to(self.lm.device)], self.lm, Site(self.sae.origin["site"]), tokens=tokens)
        return found[["concept", "f1"]].values.tolist()

    @cached_property
    def _explained(self) -> list[dict[str, Any]]:
        """What was said of latents with the weights there are now, the newest last."""
        return findings(self.run, "explanations", weights_of(self.run))

    @property
    def _found_in(self) -> list[str]:
        """In how many of the peers each latent is found; kept in the run."""
        names = [str(Run(getattr(p, "folder", p)).folder) for p in self.peers]
        seen = [
            self.run.study(f"shared-{Run(n).name}-{weights_of(Run(n))[:12]}", lambda n=n: self._in(n)) for n in names
        ]
        counts = np.array(seen).sum(0) if seen else []
        return [f"{count} of {len(names)}" for count in counts]

    def _in(self, peer: str) -> list[bool]:
        return shared(self.sae, load_sae(peer)).tolist()
