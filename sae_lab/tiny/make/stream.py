"""World text as packed rows, made ahead by a second process so that the trainer never waits.

A block's rows are a pure function of (seed, split, block): its texts are tokenised, cut nowhere, packed best-fit into
rows of `CONTEXT` places (<bos> text <eos> one after another) and the rows shuffled. The state is a block and a row.
"""

import multiprocessing
import os
import queue
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

CONTEXT = 512
TEXTS = 512  # texts per block
PAD, BOS, EOS = 0, 1, 2

MARK = 1 << 15  # added to the id of a token in a marked place

Documents = Callable[[int, int, int, str], list[tuple]]  # (text, its log-probability, and, if any, its marked places)


def world_documents(index: int, n: int, seed: int, split: str) -> list[tuple[str, float]]:
    """`n` texts of block `index` with the log-probability of the choices that made each."""
    from sae_lab.tiny import world

    return [(text.text, float(text.logp)) for text in world.block(index, n, seed, split)]


def training_documents(index: int, n: int, seed: int, split: str) -> list[tuple[str, float]]:
    """The same with a quarter of the texts drawn from the rarer languages alone: they are learned more slowly for being
    rare, and a model's wrong guess of the language costs it a tenth of a nat per text."""
    from sae_lab.tiny import world

    rare = world.mixture(None, tuple(x for x in world.languages() if x != "en"))
    indices = range(index * n, (index + 1) * n)
    drawn = [world.text(i, seed, split, rare if i % 4 == 0 else None) for i in indices]
    return [(text.text, float(text.logp)) for text in drawn]


def split_long(ids: list[int], stops: set[int]) -> list[list[int]]:
    """A document as pieces that fit a row with <bos> and <eos>, cut after a sentence's end where there is one."""
    room, pieces = CONTEXT - 2, []
    while len(ids) > room:
        cut = next((i + 1 for i in range(room - 1, room // 2, -1) if ids[i] in stops), room)
        pieces.append(ids[:cut])
        ids = ids[cut:]
    return [*pieces, ids]


def marked(ids: list[int], offsets: list[tuple[int, int]], places: list[tuple[int, int]] = ()) -> list[int]:
    """The ids, with `MARK` added to those of tokens that overlap a place (start, end) of the text."""
    if not places:
        return ids
    starts, ends = np.array(offsets).reshape(-1, 2).T
    out = np.array(ids, np.uint16)
    for start, end in places:
        out[(starts < end) & (ends > start)] |= MARK
    return out.tolist()


def pack(documents: list[list[int]], rng: np.random.Generator) -> np.ndarray:
    """Rows of whole documents, <bos> and <eos> around each, then padding: the fullest row with room takes the next."""
    rows: list[list[int]] = []
    free: dict[int, list[int]] = {}  # room left -> rows
    for ids in sorted(documents, key=len, reverse=True):
        need = len(ids) + 2
        room = next((r for r in range(need, CONTEXT) if free.get(r)), None)
        if room is None:
            rows.append([])
            place, room = len(rows) - 1, CONTEXT
        else:
            place = free[room].pop()
        rows[place] += [BOS, *ids, EOS]
        free.setdefault(room - need, []).append(place)
    packed = np.full((len(rows), CONTEXT), PAD, np.uint16)
    for place, ids in zip(rng.permutation(len(rows)), rows, strict=True):
        packed[place, : len(ids)] = ids
    return packed


class Packer:
    """Blocks of packed rows from documents and a tokenizer file."""

    def __init__(self, tokenizer: str | Path, seed: int, split: str, documents: Documents = world_documents):
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_file(str(tokenizer))
        self.stops = {i for w, i in self.tokenizer.get_vocab().items() if w[-1] in ".!?" or w[-1] == "Ċ"}
        self.seed, self.split, self.documents = seed, split, documents

    def block(self, index: int, texts: int = TEXTS) -> tuple[np.ndarray, float]:
        """(rows, summed log-probability) of one block; a pure function of its number."""
        documents = self.documents(index, texts, self.seed, self.split)
        encoded = self.tokenizer.encode_batch([text for text, *_ in documents], add_special_tokens=False)
        ids = [marked(e.ids, e.offsets, *places) for e, (_, _, *places) in zip(encoded, documents, strict=True)]
        pieces = [piece for one in ids for piece in split_long(one, self.stops)]
        rng = np.random.default_rng((self.seed, index, len(self.split)))
        return pack([pieces[i] for i in rng.permutation(len(pieces))], rng), sum(logp for _, logp, *_ in documents)


def targets(ids: np.ndarray) -> np.ndarray:
    """The next id at each place; -100 where nothing is to be predicted: padding, and the <bos> after an <eos>."""
    following = np.full(ids.shape, -100, np.int64)
    following[:, :-1] = ids[:, 1:]
    following[(following == PAD) | (following == BOS)] = -100
    return following


def _produce(blocks, start: int, stride: int, tokenizer: str, seed: int, split: str, documents: Documents) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    parent, index = os.getppid(), start
    packer = Packer(tokenizer, seed, split, documents)
    while True:
        made = packer.block(index)[0]
        while True:
            try:
                blocks.put(made, timeout=5)
                break
            except queue.Full:
                if os.getppid() != parent:  # the trainer was killed, and nobody will empty the pipe
                    blocks.cancel_join_thread()
                    return
        index += stride


class Stream:
    """Batches of rows from a block and a row on, produced in the background; `place` says where the next one starts.

    Several producers take turns with the blocks, so that their number changes nothing in the rows.
    """

    def __init__(
        self,
        tokenizer: str | Path,
        seed: int,
        place=(0, 0),
        split: str = "train",
        documents: Documents = world_documents,
        producers: int = 1,
    ):
        self.place, self.first = tuple(place), place[0]
        context = multiprocessing.get_context("spawn")
        self.queues = [context.Queue(maxsize=max(2, 16 // producers)) for _ in range(producers)]
        self.processes = []
        for i, blocks in enumerate(self.queues):
            arguments = (blocks, self.first + i, producers, str(tokenizer), seed, split, documents)
            self.processes.append(context.Process(target=_produce, args=arguments, daemon=True))
            self.processes[-1].start()
        self.current: np.ndarray | None = None

    def _block(self, index: int) -> np.ndarray:
        turn = (index - self.first) % len(self.queues)
        while True:
            try:
                return self.queues[turn].get(timeout=5)
            except queue.Empty:
                if not self.processes[turn].is_alive():
                    raise RuntimeError("A process that makes the text has ended; its error is printed above.") from None

    def next(self, rows: int) -> np.ndarray:
        """The next `rows` packed rows."""
        parts: list[np.ndarray] = []
        while rows:
            index, row = self.place
            if self.current is None:
                self.current = self._block(index)
            part = self.current[row : row + rows]
            parts.append(part)
            rows -= len(part)
            self.place = (index, row + len(part))
            if self.place[1] == len(self.current):
                self.place, self.current = (index + 1, 0), None
        return np.concatenate(parts)

    def close(self) -> None:
        """Ends the producing processes."""
        for process, blocks in zip(self.processes, self.queues, strict=True):
            process.terminate()
            process.join()
            blocks.close()
            blocks.cancel_join_thread()


def held_out(
    tokenizer: str | Path, split: str, tokens: int, seed: int = 0, documents: Documents = world_documents
) -> Iterator:
    """(rows, summed log-probability) of whole blocks of a held-out split, until `tokens` targets have been given."""
    packer, index, given = Packer(tokenizer, seed, split, documents), 0, 0
    while given < tokens:
        rows, logp = packer.block(index, 128)
        given += int((targets(rows) >= 0).sum())
        index += 1
        yield rows, logp
