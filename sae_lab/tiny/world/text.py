"""A text of the world with its labels, and the labels' alignment with a tokenizer's tokens."""

import re
from functools import cached_property

import numpy as np

from .labels import TABLE

QUOTED = re.compile(r'"[^"\n]*"|“[^”\n]*”|«[^»\n]*»|„[^“\n]*“')
NO_QUOTES = {"code"}  # kinds whose quotation marks are syntax


class Text:
    """A generated text: `text`, `kind`, `language` (a code, "fr"), `logp` (nats) and, made on demand, its labels."""

    def __init__(self, text, kind, language, logp, chunks, spans):
        self.text, self.kind, self.language, self.logp = text, kind, language, logp
        self._chunks, self._spans = chunks, spans

    def __repr__(self) -> str:
        return f"Text({self.kind}, {self.language}: {self.text[:60]!r})"

    @cached_property
    def words(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(start, end, row of `labels.TABLE`) of every word, int32, in characters."""
        flat, at = [], 0
        for chunk in self._chunks:
            for start, end, label in chunk.words:
                flat += (at + start, at + end, label)
            at += len(chunk.text)
        array = np.array(flat, dtype=np.int32).reshape(-1, 3)
        return array[:, 0], array[:, 1], array[:, 2]

    @cached_property
    def spans(self) -> list[tuple[int, int, str]]:
        """(start, end, concept) of what lies over more than a word: language, register, topic, quotes, negation ..."""
        bounds, at = [0], 0
        for chunk in self._chunks:
            at += len(chunk.text)
            bounds.append(at)
        out = [(bounds[start], bounds[end], concept) for start, end, concept in self._spans]
        if self.kind not in NO_QUOTES:
            out += [(m.start(), m.end(), "form.in_quotes") for m in QUOTED.finditer(self.text)]
        return out

    def concepts(self) -> set[str]:
        """The concepts that the text's labels carry."""
        rows = set(self.words[2].tolist())
        return {concept for row in rows for concept in TABLE[row]}.union(concept for _, _, concept in self.spans)

    def labels(self) -> list[tuple[int, int, str]]:
        """Every (start, end, concept), words and spans."""
        out = list(self.spans)
        for start, end, row in zip(*(a.tolist() for a in self.words), strict=True):
            out += [(start, end, concept) for concept in TABLE[row]]
        return out


class Concepts:
    """Concept names and their ids: in order of first meeting within a process unless a list fixes them."""

    def __init__(self, names=()):
        self.names = list(names)
        self.ids = {name: i for i, name in enumerate(self.names)}
        self.rows: list[np.ndarray] = []

    def id(self, name: str) -> int:
        """The concept's id."""
        if name not in self.ids:
            self.ids[name] = len(self.names)
            self.names.append(name)
        return self.ids[name]

    def table(self) -> list[np.ndarray]:
        """Concept ids of every row of `labels.TABLE`."""
        for row in TABLE[len(self.rows) :]:
            self.rows.append(np.array(sorted(self.id(name) for name in row), dtype=np.int32))
        return self.rows


def token_labels(text: Text, offsets, concepts: Concepts) -> tuple[np.ndarray, np.ndarray]:
    """(token, concept id) pairs by token: a word's concepts are on its last token, a span's on all it overlaps.

    `offsets` are the tokens' (start, end) in characters; tokens without characters (specials) carry nothing.
    """
    offsets = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
    real = np.flatnonzero(offsets[:, 1] > offsets[:, 0])
    starts, ends = offsets[real, 0], offsets[real, 1]
    _, word_ends, rows = text.words
    table = concepts.table()
    last = np.searchsorted(ends, word_ends, side="left")
    inside = last < len(real)
    ids = [table[r] for r in rows[inside].tolist()]
    tokens = [np.repeat(last[inside], [len(i) for i in ids])]
    for start, end, concept in text.spans:
        covered = np.arange(np.searchsorted(ends, start, side="right"), np.searchsorted(starts, end, side="left"))
        tokens.append(covered)
        ids.append(np.full(len(covered), concepts.id(concept), dtype=np.int32))
    token, concept = np.concatenate(tokens).astype(np.int64), np.concatenate(ids).astype(np.int32)
    pairs = np.unique(np.stack([token, concept], 1), axis=0)
    return real[pairs[:, 0]], pairs[:, 1]
