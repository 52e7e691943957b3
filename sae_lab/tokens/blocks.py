"""Blocks of tokens: `block(i)` is a function of (seed, split, i) and of nothing that happened before."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sae_lab.shapes import Ids, Mask

from .packing import Marks, Piece, encode, lay_out, pack, pieces
from .sources import Documents, Stream, World, plain, source

LONG = 8  # characters per token of context; a longer document counts as several


@dataclass(frozen=True, eq=False)
class TokenBlock:
    """Rows of packed documents, padded on the right.

    `mask` marks real tokens, `keep` those that count: real and not special. `doc` numbers documents along the whole
    stream (-1 on padding); `texts[doc - first]` is the document. `position` counts from the BOS a token stands behind.
    """

    ids: Ids
    mask: Mask
    keep: Mask
    doc: Ids
    position: Ids
    texts: list[Any]
    first: int
    _piece: np.ndarray = field(repr=False)
    _pieces: list[Piece] = field(repr=False)
    _tokenizer: Any = field(repr=False)

    @property
    def start(self) -> Ids:
        """Where each token begins in its document's text, in characters; -1 at BOS, EOS and padding."""
        return self._spans[0]

    @property
    def end(self) -> Ids:
        """Where each token ends in its document's text, in characters; -1 at BOS, EOS and padding."""
        return self._spans[1]

    @cached_property
    def _spans(self) -> tuple[Ids, Ids]:
        """Tokenises once more, with offsets: most uses need none."""
        spans, text = np.full((*self.ids.shape, 2), -1), self._piece >= 0
        here = [self._pieces[i] for i in np.unique(self._piece[text])]
        offsets = encode(self._tokenizer, [p.text for p in here], return_offsets_mapping=True)["offset_mapping"]
        flat = [np.asarray(o).reshape(-1, 2) + p.start for o, p in zip(offsets, here)]
        order = np.argsort(self._piece[text], kind="stable")
        filled = np.empty((len(order), 2), dtype=spans.dtype)
        filled[order] = np.concatenate(flat)
        spans[text] = filled
        return torch.from_numpy(spans[..., 0].copy()), torch.from_numpy(spans[..., 1].copy())

    def rows(self, cut: slice) -> "TokenBlock":
        """Some of the rows."""
        names = ("ids", "mask", "keep", "doc", "position", "_piece")
        return replace(self, **{name: getattr(self, name)[cut] for name in names})

    def text(self, doc: int) -> str:
        """The text of a document of this block."""
        return plain(self.texts[doc - self.first])


class Blocks:
    """An endless stream of token blocks with random access; made by `token_blocks`."""

    def __init__(self, tokenizer: Any, texts: World | Documents | Stream, context: int, documents: int, eos: bool):
        self.tokenizer, self.context, self.documents, self._texts = tokenizer, context, documents, texts
        self._marks = Marks(tokenizer.bos_token_id, tokenizer.eos_token_id if eos else None)
        self._room = context - self._marks.count
        marks = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._special = sorted(marks | set(tokenizer.all_special_ids))
        if self._room < 6:  # the tokens of one character, and a little more
            raise ValueError(f"context={context} leaves no room for text beside BOS and EOS. Take at least 8.")

    def block(self, i: int) -> TokenBlock:
        """Block number i: `documents` documents, packed into as many rows as they need."""
        texts = self._texts.documents(i, self.documents)
        found = pieces(self.tokenizer, [plain(t) for t in texts], self._room)
        if not found:
            raise ValueError(f"Block {i} holds no token: its {len(texts)} documents are blank. Give other text.")
        rows = pack([len(p.ids) + self._marks.count for p in found], self.context)
        fill = next(t for t in (self._marks.eos, self._marks.bos, self.tokenizer.eos_token_id, 0) if t is not None)
        arrays = lay_out(found, rows, self._marks, fill)
        piece, text = arrays.pop("piece"), arrays.pop("text")
        arrays["keep"] = text & ~np.isin(arrays["ids"], self._special)  # a text may spell some out
        first = i * self.documents
        of_piece = np.array([p.document for p in found] + [-1 - first]) + first  # the last one is found at index -1
        tensors = {name: torch.from_numpy(a) for name, a in (arrays | {"doc": of_piece[piece]}).items()}
        return TokenBlock(
            **tensors,
            texts=texts,
            first=first,
            _piece=np.where(text, piece, -1),
            _pieces=found,
            _tokenizer=self.tokenizer,
        )

    @property
    def once(self) -> int | None:
        """How many documents there are before the stream begins again; None where it never does or nobody can know."""
        return len(self._texts) if isinstance(self._texts, Documents) else None

    def describe(self) -> dict:
        """JSON that identifies the stream."""
        eos = self._marks.eos is not None
        return self._texts.describe() | {"context": self.context, "documents": self.documents, "eos": eos}


def token_blocks(
    tokenizer: Any,
    text: Any = "world",
    context: int = 512,
    seed: int = 0,
    split: str = "train",
    documents: int = 64,
    column: str | None = None,
    eos: bool | None = None,
    where: Any = None,
) -> Blocks:
    """Text as blocks of packed token rows.

    `text` is "world" (the embedded labelled world), a .txt, .jsonl or .parquet file or a folder of them, the name of a
    data set on the Hugging Face hub (streamed; "name:config" where it has several), strings, or a function that returns
    a fresh iterator of strings.

    Args:
        context: tokens in a row at most.
        documents: documents in a block.
        column: the field of the text in .jsonl, .parquet and data sets; found by itself where only one holds strings.
        eos: whether an EOS ends each document; by default as the model was trained.
        where: concepts that the world's texts must or must not have: see `world.texts`.

    Raises:
        ValueError: an unknown split, an empty text, a text without a known column, a context that holds nothing.
        FileNotFoundError: neither a file nor a data set that can be reached.
    """
    eos = _trained_with_eos(tokenizer) if eos is None else eos
    return Blocks(tokenizer, source(text, column, seed, split, LONG * context, where), context, documents, eos)


def _trained_with_eos(tokenizer: Any) -> bool:
    """The tokenizer's own setting, or that it has no BOS to part texts; the embedded Llamas were trained with one."""
    from sae_lab import tiny

    embedded = Path(tokenizer.name_or_path).resolve() in [Path(f).resolve() for f in tiny.FOLDERS.values()]
    wanted = embedded or tokenizer.bos_token_id is None or bool(tokenizer.init_kwargs.get("add_eos_token"))
    return tokenizer.eos_token_id is not None and wanted
