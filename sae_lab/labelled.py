"""Labelled text with activations and latents: one row per labelled token, or one per document.

Labels come from the embedded world, from a file (.csv, .jsonl, .parquet: a text and its label a row, or its words and a
label for each), or from pairs in memory. Text is in two parts without a common document: to fit on and to score on.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from scipy import sparse
from torch import Tensor

from .labels import LabelledText, lineages, token_concepts
from .models import LM
from .reading import held_out, walk
from .saes import SAE
from .sites import Site
from .tiny import world
from .tokens import Blocks

HELD = 0.4  # share of documents of a labelled text that are scored on
SPLIT = {"fit": "validation", "score": "test"}  # of the world
MANY = 10**9  # tokens: all there are


@dataclass(frozen=True)
class Labels:
    """Which labels there are and in which text.

    Attributes:
        names: the labels asked for.
        stored: what texts carry; `above` says which names each implies: [stored, names].
        parts: "fit" and "score": the text, as `reading.held_out` takes it.
        pooled: one row per document, its tokens' mean, rather than one per labelled token.
    """

    names: tuple[str, ...]
    stored: tuple[str, ...]
    above: sparse.csr_array
    parts: dict[str, Any]
    pooled: bool
    about: dict[str, Any] = field(default_factory=dict)

    def blocks(self, lm: LM, part: str, seed: int, **options: Any) -> Blocks:
        """The text of a part."""
        split = SPLIT[part] if self.parts[part] == "world" else "all"
        return held_out(lm, self.parts[part], split, seed, **options)


@dataclass(frozen=True)
class Examples:
    """What probes see.

    Attributes:
        acts: raw activations.
        codes: per SAE its latents, [rows, d_sae].
        labels: [rows, names].
        doc: document of each row, 0 ... docs - 1.
    """

    acts: Float[np.ndarray, "rows d_in"]
    codes: dict[str, sparse.csr_array]
    labels: sparse.csr_array
    doc: Int[np.ndarray, " rows"]

    @property
    def docs(self) -> int:
        return int(self.doc.max()) + 1

    def truth(self, name: int) -> np.ndarray:
        """Whether each row has a label."""
        return self.labels[:, [name]].toarray()[:, 0]

    @property
    def counts(self) -> np.ndarray:
        """Rows with each label."""
        return np.asarray(self.labels.astype(np.int64).sum(0)).ravel()


def read_labels(
    labels: Any = "world",
    column: str | Sequence[str] = "label",
    names: Iterable[str] | None = None,
    pooled: bool | None = None,
) -> Labels:
    """Labelled text by name ("world"), file, or pairs (text, label), (text, [labels]), (text, [(start, end, label)]).

    Args:
        column: of a file: where the label is; of several, the labels are named "column.value".
        names: the labels to keep; default: all.
        pooled: one row per document; default: where labels are of whole texts.

    Raises:
        ValueError: unlabelled text, a missing column, an unknown label.
        FileNotFoundError: no such file.
    """
    if isinstance(labels, str) and labels == "world":
        stored = tuple(c.name for c in world.concepts())
        kept = _known(names, stored, "Concepts of the world")
        above = lineages(stored)[:, [stored.index(n) for n in kept]]
        return Labels(kept, stored, above, dict.fromkeys(SPLIT, "world"), bool(pooled), {"text": "world"})
    name = str(labels) if isinstance(labels, str | Path) else "the given texts"
    texts = _read(Path(labels), column) if isinstance(labels, str | Path) else [_labelled(t) for t in labels]
    stored = tuple(sorted({w[2] for t in texts for w in t.words}.union(*(t.whole for t in texts))))
    kept = _known(names, stored, f"Labels of {name}")
    above = sparse.csr_array(np.array([[a == b for b in kept] for a in stored]))
    parts = {"fit": [], "score": []}
    for t in texts:
        share = int.from_bytes(blake2b(t.text.encode(), digest_size=4).digest()) / 2**32
        parts["score" if share < HELD else "fit"].append(t)
    if not all(parts.values()):
        raise ValueError(f"{name}: {len(texts)} texts are too few to fit on some and to score on others.")
    pooled = not any(t.words for t in texts) if pooled is None else pooled
    return Labels(kept, stored, above, parts, pooled, {"text": name, "documents": len(texts)})


def _known(asked: Iterable[str] | None, stored: tuple[str, ...], whose: str) -> tuple[str, ...]:
    if isinstance(asked, str):
        asked = [asked]
    kept = stored if asked is None else tuple(asked)
    odd = [n for n in kept if n not in stored]
    if odd or not kept:
        raise ValueError(f"No label {odd[0] if odd else '(none)'!r}. {whose}: {', '.join(stored[:40])}.")
    return kept


def _labelled(item: Any) -> LabelledText:
    if isinstance(item, LabelledText):
        return item
    if isinstance(item, str) or not isinstance(item, Sequence) or len(item) != 2 or not isinstance(item[0], str):
        raise ValueError(f"{item!r:.60} has no label. Give pairs (text, label), a labelled file, or 'world'.")
    text, said = item
    if isinstance(said, str):
        return LabelledText(text, whole=(said,))
    if all(isinstance(s, str) for s in said):
        return LabelledText(text, whole=tuple(said))
    return LabelledText(text, words=tuple(tuple(s) for s in said))


def _read(path: Path, column: str | Sequence[str]) -> list[LabelledText]:
    """A file's texts: where the label's column holds a list, it is one label for each of the row's "tokens"."""
    if not path.exists():
        raise FileNotFoundError(f"No file {path}. Give 'world', a .csv, .jsonl or .parquet file, or pairs.")
    readers = {".csv": _csv, ".jsonl": _jsonl, ".parquet": lambda p: pd.read_parquet(p).to_dict("records")}
    if path.suffix not in readers:
        raise ValueError(f"{path} is unlabelled text: labels are read from {', '.join(readers)} files.")
    rows, wanted = readers[path.suffix](path), [column] if isinstance(column, str) else list(column)
    if not rows:
        raise ValueError(f"{path} holds no row.")
    for name in ("text", *wanted):
        if name not in rows[0]:
            way = "Name the label's with column=." if name != "text" else "The text's must be named text."
            raise ValueError(f"{path} has no column {name!r}. It has: {', '.join(map(str, rows[0]))}. {way}")
    return [_of_row(row, wanted, f"{path}, row {i}") for i, row in enumerate(rows, 1)]


def _csv(path: Path) -> list[dict[str, Any]]:
    return pd.read_csv(path, dtype=str, keep_default_na=False).to_dict("records")


def _jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _of_row(row: dict[str, Any], columns: list[str], where: str) -> LabelledText:
    prefix = len(columns) > 1
    text, words, whole = row.get("text"), [], []
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{where} has no text.")
    for column in columns:
        said = row.get(column)
        if said is None or (isinstance(said, str) and not said.strip()):
            raise ValueError(f"{where} has no {column}: every text needs its label.")
        if isinstance(said, str | int | float):
            whole.append(f"{column}.{said}" if prefix else str(said))
            continue
        at = 0
        for token, label in zip(row["tokens"], said, strict=True):
            start = text.find(token, at)
            if start < 0:
                raise ValueError(f"{where}: {token!r} does not follow in its text.")
            at = start + len(token)
            words.append((start, at, f"{column}.{label}" if prefix else label))
    return LabelledText(text, tuple(words), tuple(whole))


@torch.no_grad()
def codes(sae: SAE, x: Float[Tensor, "rows d_in"]) -> sparse.csr_array:
    """The latents of activations, [rows, d_sae], in units of their decoder rows as they are."""
    z = sae.encode(x)
    place = (z.support.latent.long().cpu().numpy(), z.support.start.cpu().numpy())
    found = sparse.csr_array((z.value.double().cpu().numpy(), *place), shape=(len(x), z.support.d_sae))
    found.eliminate_zeros()
    return found


def examples(lm: LM, site: Site, blocks: Blocks, labels: Labels, saes: dict[str, SAE], tokens: int = MANY) -> Examples:
    """Reads text until at least `tokens` tokens have passed or it ends. All rows are held in memory."""
    acts, found, truth, docs = [], {name: [] for name in saes}, [], []
    for page in walk(lm, blocks, [site], tokens, next(iter(saes.values()), None)):
        carried = token_concepts(page.block, page.keep, world.Concepts(labels.stored))
        rows = np.flatnonzero(np.diff(carried.indptr))
        if not len(rows):
            continue
        x = page.acts[site][torch.from_numpy(rows).to(page.acts[site].device)]
        acts.append(x.cpu().numpy())
        truth.append((carried[rows] @ labels.above).astype(bool))
        docs.append(page.doc[rows])
        for name, sae in saes.items():
            found[name].append(codes(sae, x))
    if not docs:
        raise ValueError("No token of this text has a label: is it the text that the labels are of?")
    z = {name: sparse.vstack(parts, "csr") for name, parts in found.items()}
    doc = np.unique(np.concatenate(docs), return_inverse=True)[1]
    made = Examples(np.concatenate(acts), z, sparse.csr_array(sparse.vstack(truth)), doc)
    return _pooled(made) if labels.pooled else made


def read_parts(
    lm: LM, site: Site, labels: Labels, saes: dict[str, SAE], tokens: int, seed: int, **options: Any
) -> list[Examples]:
    """The part to fit on and the part to score on."""
    return [examples(lm, site, labels.blocks(lm, p, seed, **options), labels, saes, tokens) for p in SPLIT]


def stacked(parts: list[Examples]) -> Examples:
    """Several texts' rows, one after the other."""
    first = np.cumsum([0] + [e.docs for e in parts])
    z = {name: sparse.vstack([e.codes[name] for e in parts], "csr") for name in parts[0].codes}
    doc = np.concatenate([e.doc + start for e, start in zip(parts, first)])
    labels = sparse.csr_array(sparse.vstack([e.labels for e in parts]))
    return Examples(np.concatenate([e.acts for e in parts]), z, labels, doc)


def _pooled(rows: Examples) -> Examples:
    """One row per document: means of activations and latents; a label that any of its tokens has."""
    n = np.bincount(rows.doc)
    mean = sparse.csr_array((1 / n[rows.doc], (rows.doc, np.arange(len(rows.doc)))), shape=(len(n), len(rows.doc)))
    z = {name: sparse.csr_array(mean @ of) for name, of in rows.codes.items()}
    labels = sparse.csr_array(mean @ rows.labels.astype(np.float64)).astype(bool)
    return Examples((mean @ rows.acts).astype(np.float32), z, labels, np.arange(len(n)))
