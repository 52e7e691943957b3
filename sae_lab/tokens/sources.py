"""Where documents come from: the embedded world, files, data sets on the hub, or strings in memory.

A source answers `documents(i, n)`: the documents i * n to (i + 1) * n - 1 of an endless stream that is a function of
(seed, split) alone. A finite text is read in a new seeded order every epoch. Its documents fall into splits by a hash
of their text: 90% train, 5% validation, 5% test.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from .packing import sections

SPLITS = {"train": (0.10, 1.0), "validation": (0.05, 0.10), "test": (0.0, 0.05), "all": (0.0, 1.0)}
SUFFIXES = (".txt", ".jsonl", ".parquet")
FEW = 1000  # documents: below, long ones are cut before they are shared out, so that every split gets some
MARK = "<|endoftext|>"  # separates documents in a .txt file
TOO_MANY = 20_000_000  # strings held in memory


class World:
    """Texts of the embedded labelled world."""

    def __init__(self, seed: int, split: str):
        self.seed, self.split = seed, split

    def documents(self, i: int, n: int) -> list:
        """Labelled texts (`world.Text`)."""
        from sae_lab.tiny import world

        return world.block(i, n, self.seed, self.split)

    def describe(self) -> dict:
        """What identifies the text."""
        return {"text": "world"}


class Documents:
    """Documents in memory, in a new seeded order every epoch."""

    def __init__(self, name: str, documents: list, seed: int, split: str, long: int):
        odd = next((d for d in documents if not isinstance(plain(d), str)), None)
        if odd is not None:
            raise ValueError(f"{name} hold {odd!r:.80}, which is no text. Give strings.")
        kept = [whole(d) for d in documents if plain(d).strip()]
        if len(kept) < FEW:
            kept = [part for d in kept for part in (sections(d, long) if isinstance(d, str) else [d])]
        if not kept:
            raise ValueError(
                f"{name} holds no text. Give a file or a list with at least one document that is not empty."
            )
        low, high = SPLITS[split]
        hashes = [blake2b(plain(d).encode(), digest_size=8).digest() for d in kept]
        chosen = [d for d, h in zip(kept, hashes) if low <= _share(h) < high]
        self._kept = [part for d in chosen for part in (sections(d, long) if isinstance(d, str) else [d])]
        if not self._kept:
            raise ValueError(
                f"None of the {len(kept)} documents of {name} falls into split {split!r}. Give more text, or "
                "split='all'."
            )
        self.name, self.seed, self.split = name, seed, split
        self.digest = blake2b(b"".join(hashes), digest_size=8).hexdigest()
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0))

    def __len__(self) -> int:
        return len(self._kept)

    def documents(self, i: int, n: int) -> list:
        """Random access by arithmetic: document j of the stream is document j % N of epoch j // N."""
        return [self._kept[self._place(j)] for j in range(i * n, (i + 1) * n)]

    def _place(self, j: int) -> int:
        epoch, at = divmod(j, len(self._kept))
        if self._order[0] != epoch:
            key = [self.seed, epoch, list(SPLITS).index(self.split)]
            self._order = epoch, np.random.default_rng(key).permutation(len(self._kept))
        return int(self._order[1][at])

    def describe(self) -> dict:
        """What identifies the text: its name and a hash of all of it."""
        return {"text": self.name, "digest": self.digest}


class Stream:
    """Documents from an iterator that can be started again; asking for an earlier block starts it again."""

    def __init__(self, name: str, start: Callable[[], Iterable[Any]], split: str | None, long: int):
        self.name, self._start, self._split, self._long = name, start, split, long
        self._at, self._running = 0, self._endless()

    def _endless(self) -> Iterator[Any]:
        low, high = SPLITS[self._split or "all"]
        while True:
            found = False
            for document in self._start():
                if not isinstance(plain(document), str):
                    continue  # a null, as data sets have them
                document = whole(document)
                if self._split and not low <= _share(blake2b(plain(document).encode(), digest_size=8).digest()) < high:
                    continue
                parts = sections(document, self._long) if isinstance(document, str) else [document]
                for part in parts:
                    if plain(part).strip():
                        found = True
                        yield part
            if not found:
                raise ValueError(f"{self.name} gives no document for split {self._split!r}. Give more text.")

    def documents(self, i: int, n: int) -> list:
        """The next documents, or any others at the cost of reading up to them."""
        if i * n < self._at:
            self._at, self._running = 0, self._endless()
        try:
            documents = list(islice(self._running, i * n - self._at, (i + 1) * n - self._at))
        except BaseException:  # a broken connection, Ctrl-C: begin again next time
            self._at, self._running = 0, self._endless()
            raise
        self._at = (i + 1) * n
        return documents

    def describe(self) -> dict:
        """What identifies the text."""
        return {"text": self.name}


def source(
    text: Any, column: str | None, seed: int, split: str, long: int, where: Any = None
) -> World | Documents | Stream:
    """The source that `text` names: see `token_blocks`. Texts over `long` characters are taken as several.

    Raises:
        ValueError: an unknown split, an empty text, a file without the column, an unknown suffix.
        FileNotFoundError: neither a file nor a data set that can be reached.
    """
    if split not in SPLITS or (split == "all" and isinstance(text, str) and text == "world"):
        raise ValueError(f"No split {split!r}. Known: train, validation, test; and 'all' for a text of your own.")
    if isinstance(text, str) and text == "world":
        if where is None:
            return World(seed, split)
        from sae_lab.tiny import world

        return Stream("world", lambda: world.texts(seed=seed, split=split, where=where), None, long)
    if where is not None:
        raise ValueError("where= asks for concepts of the embedded world: use it with text='world'.")
    if isinstance(text, str) and (len(text) > 1000 or "\n" in text):
        raise ValueError(f"text={text[:40]!r}... is a text, not the name of one. Give it in a list: text=[...].")
    if isinstance(text, str | Path):
        path = Path(text)
        if path.suffix in SUFFIXES or path.exists():
            return Documents(str(path), read(path, column), seed, split, long)
        return Stream(str(text), lambda: _hub(str(text), column, seed), split, long)
    if callable(text):
        return Stream("a function", text, split, long)
    if not isinstance(text, Iterable):
        raise ValueError(f"text={text!r} is no text. Give 'world', a file, a data set's name or strings.")
    running = iter(text)
    documents = list(islice(running, 1))
    if documents and not isinstance(plain(documents[0]), str):
        raise ValueError(f"The given texts hold {documents[0]!r:.80}, which is no text. Give strings.")
    documents += islice(running, TOO_MANY)
    if len(documents) > TOO_MANY:
        raise ValueError(f"More than {TOO_MANY:,} strings: give a function that returns a fresh iterator instead.")
    return Documents("the given texts", documents, seed, split, long)


def whole(document: Any) -> Any:
    """A string without halves of characters, which no tokenizer takes; others as they are."""
    if not isinstance(document, str) or document.isascii():
        return document
    return document.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def plain(document: Any) -> Any:
    """The text of a document: a string, or an object that holds one, such as `world.Text`."""
    return getattr(document, "text", document)


def read(path: Path, column: str | None = None) -> list[str]:
    """The documents of a .txt, .jsonl or .parquet file, or of all such files in a folder, in the order of their names.

    A .txt file is one document, or several between lines of `<|endoftext|>`.
    """
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES)
        if not files:
            raise FileNotFoundError(f"{path} holds no {', '.join(SUFFIXES)} file.")
        return [document for file in files for document in read(file, column)]
    if not path.exists():
        raise FileNotFoundError(f"No file {path}. Give 'world', an existing file ({', '.join(SUFFIXES)}) or strings.")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty. Give a file with at least one document.")
    if path.suffix == ".txt":
        return path.read_text(encoding="utf-8").split(MARK)
    if path.suffix == ".jsonl":
        return _jsonl(path, column)
    if path.suffix == ".parquet":
        return _parquet(path, column)
    raise ValueError(f"{path} is not a text file this package reads: {', '.join(SUFFIXES)}.")


def _jsonl(path: Path, column: str | None) -> list[str]:
    found, key = [], None
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number} is not JSON ({error.msg}): one JSON value a line.") from error
            if isinstance(row, dict):
                key = key or _column(path, {k: isinstance(v, str) for k, v in row.items()}, column)
                row = row.get(key)
            if not isinstance(row, str):
                raise ValueError(
                    f"{path}, line {number} has no text{f' under {key!r}' if key else ''}: one text a line."
                )
            found.append(row)
    return found


def _parquet(path: Path, column: str | None) -> list[str]:
    from pyarrow import ArrowInvalid, parquet, types

    try:
        schema = parquet.read_schema(path)
        name = _column(path, {f.name: types.is_string(f.type) or types.is_large_string(f.type) for f in schema}, column)
        return [d for d in parquet.read_table(path, columns=[name])[name].to_pylist() if d]
    except ArrowInvalid as error:
        raise ValueError(f"{path} is not a whole parquet file ({error}): copy or fetch it anew.") from error


def _column(path: Any, strings: dict[str, bool], asked: str | None) -> str:
    """The column that holds the text: the one asked for, "text", or the only one of strings."""
    texts = [name for name, is_text in strings.items() if is_text]
    if asked is not None:
        found = [asked] if asked in texts else []
    else:
        found = ["text"] if "text" in texts else texts
    if len(found) != 1:
        raise ValueError(f"Which column of {path} is the text? Name one with column=: {', '.join(texts) or 'none is'}.")
    return found[0]


def _hub(name: str, column: str | None, seed: int) -> Iterator[str]:
    import datasets

    try:
        rows = datasets.load_dataset(*name.split(":", 1), split="train", streaming=True)
    except Exception as error:  # the hub's client raises many kinds
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise FileNotFoundError(
            f"No text {name!r}: no such file, and the hub's data set of that name cannot be read ({first}). Give "
            "'world', an existing .txt, .jsonl or .parquet file, or a data set's name while connected."
        ) from error
    key = None
    for row in rows.shuffle(seed=seed, buffer_size=10_000):
        key = key or _column(name, {k: isinstance(v, str) for k, v in row.items()}, column)
        yield row[key]


def _share(digest: bytes) -> float:
    """A hash as a number in [0, 1)."""
    return int.from_bytes(digest) / 2 ** (8 * len(digest))
