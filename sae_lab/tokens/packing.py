"""Documents become rows of a context: whole ones one after another, each behind its own BOS.

A document that is too long is split at the end of a sentence; every part begins with a BOS of its own.
"""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

SENTENCE = re.compile(r"[.!?…]+[\"'”»)\]]*\s+|\n+")


@dataclass(frozen=True)
class Piece:
    """A document or a part of one: its tokens without specials, and where it begins in the document's text."""

    document: int
    ids: np.ndarray
    start: int
    text: str


@dataclass(frozen=True)
class Marks:
    """Which special tokens stand around a piece; None where there is none."""

    bos: int | None
    eos: int | None

    @property
    def count(self) -> int:
        """How many tokens they take."""
        return (self.bos is not None) + (self.eos is not None)


def encode(tokenizer: Any, texts: list[str], **options: Any) -> Any:
    """Tokens of texts without special tokens, as the tokenizer returns them."""
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False, **options)


def pieces(tokenizer: Any, texts: list[str], room: int) -> list[Piece]:
    """The documents in order, each in parts of at most `room` tokens; documents without a token are left out."""
    found = []
    for document, (text, ids) in enumerate(zip(texts, encode(tokenizer, texts)["input_ids"])):
        if len(ids) <= room:
            found.append(Piece(document, np.asarray(ids, dtype=np.int64), 0, text))
        else:
            found += split(tokenizer, document, text, room)
    return [piece for piece in found if len(piece.ids)]


def split(tokenizer: Any, document: int, text: str, room: int) -> list[Piece]:
    """A long document in parts that end with a sentence where they can, with a word where they must."""
    offsets = np.asarray(encode(tokenizer, [text], return_offsets_mapping=True)["offset_mapping"][0])
    ends = np.array([m.end() for m in SENTENCE.finditer(text)])
    words = np.array([m.end() for m in re.finditer(r"\s+", text)])
    found, start, room_here = [], 0, room
    while start < len(text):
        first = int(np.searchsorted(offsets[:, 0], start))
        last = first + room_here
        stop = len(text) if last >= len(offsets) else _cut(ends, words, start, int(offsets[last - 1, 1]))
        ids = encode(tokenizer, [text[start:stop]])["input_ids"][0]
        if len(ids) > room:  # cut on its own, the part has become a few tokens longer
            room_here -= max(1, len(ids) - room)
            continue
        found.append(Piece(document, np.asarray(ids, dtype=np.int64), start, text[start:stop]))
        start, room_here = stop, room
    return found


def _cut(ends: np.ndarray, words: np.ndarray, start: int, limit: int) -> int:
    """The last sentence's end in the second half of (start, limit], or else a word's end, or else the limit."""
    for places in (ends, words):
        at = int(np.searchsorted(places, limit, side="right")) - 1
        if at >= 0 and places[at] > (start + limit) // 2:
            return int(places[at])
    return max(limit, start + 1)


def sections(text: str, limit: int) -> list[str]:
    """A very long text as several, each of at most `limit` characters, cut between sentences where it can be."""
    if len(text) <= limit:
        return [text]
    ends = np.array([m.end() for m in SENTENCE.finditer(text)])
    words = np.array([m.end() for m in re.finditer(r"\s+", text)])
    found, start = [], 0
    while start < len(text):
        stop = len(text) if start + limit >= len(text) else _cut(ends, words, start, start + limit)
        found.append(text[start:stop])
        start = stop
    return found


def pack(lengths: list[int], context: int) -> list[list[int]]:
    """Which pieces share a row: the longest first, each into the first row with room; within a row as they came."""
    rows: list[list[int]] = []
    room = np.full(len(lengths), context)
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = int(np.argmax(room >= lengths[i]))
        if row == len(rows):
            rows.append([])
        rows[row].append(i)
        room[row] -= lengths[i]
    return sorted(sorted(row) for row in rows)


def lay_out(found: list[Piece], rows: list[list[int]], marks: Marks, fill: int) -> dict[str, np.ndarray]:
    """The block's arrays [rows, seq]: ids, mask, text (no BOS, no EOS), piece (-1 on padding), position in it."""
    lengths = [sum(len(found[i].ids) + marks.count for i in row) for row in rows]
    shape = len(rows), max(lengths)
    ids, piece, position = np.full(shape, fill), np.full(shape, -1), np.zeros(shape, dtype=np.int64)
    text = np.zeros(shape, dtype=bool)
    for r, row in enumerate(rows):
        at = 0
        for i in row:
            n, first = len(found[i].ids), int(marks.bos is not None)
            end = at + n + marks.count
            if marks.bos is not None:
                ids[r, at] = marks.bos
            ids[r, at + first : at + first + n] = found[i].ids
            text[r, at + first : at + first + n] = True
            if marks.eos is not None:
                ids[r, end - 1] = marks.eos
            piece[r, at:end], position[r, at:end] = i, np.arange(end - at)
            at = end
    return {"ids": ids, "mask": piece >= 0, "text": text, "piece": piece, "position": position}
