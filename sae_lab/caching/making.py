"""Reading a text once and for all: each block of it becomes a shard of activations."""

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from math import ceil, inf
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..harvest import Activations, activations
from ..models import LM
from ..runs import RunInUse
from ..runs.lock import Lock
from .asking import asked
from .numbers import DTYPES, packed
from .serving import Cached
from .shards import Shards

ADDRESS = 3 * 8  # bytes: a row's token, document and place in it
DOCUMENTS = 16  # in a shard that is one request
BLOCKS = 4  # of a text that are tokenised to know how long the others are
SPARE = 1.02  # of the disk, for what is beside the numbers


class Progress(NamedTuple):
    """After each shard.

    Attributes:
        tokens: cached so far, of `wanted`.
        bytes: of all shards.
        fresh: whether the last one was read now, and not there before.
    """

    tokens: int
    wanted: int
    shards: int
    bytes: int
    fresh: bool


def cache(
    lm: LM, sites: str | Iterable[str], tokens: int, folder: str | Path, *, dtype: str = "float16", **options: Any
) -> Cached:
    """Activations of a model on a text, on a disk: read once, trained on as often as one likes, without the model.

    Interrupted, the same call goes on behind the last whole shard; asked for more tokens, it adds to what is there. Of
    a remote model each shard is one request; what its server has under a name and revision is taken to be the same.

    Args:
        tokens: at least, since shards are whole; fewer where the text ends before.
        folder: or any address that fsspec knows ("s3://...", with the library for it), where nothing keeps two
            processes from adding to it at once.
        dtype: of what is stored: "float16", "bfloat16", "float32", or "int8" with a scale per token; how much is lost
            is measured (`Cached.error`).
        options: those of `activations`: text, seed, split, context, documents (of a shard) ...; needs={"grad"} stores
            gradients, too.

    Raises:
        OSError: a disk without room for it, before anything is read.
        RunInUse: another process is adding to it.
        ValueError: something else is cached there; and as `activations`.
    """
    for _ in caching(lm, sites, tokens, folder, dtype=dtype, **options):
        pass
    return Cached(folder)


def caching(
    lm: LM, sites: str | Iterable[str], tokens: int, folder: str | Path, *, dtype: str = "float16", **options: Any
) -> Iterator[Progress]:
    """`cache`, shard by shard; to stop is to stop asking."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r} is not one of {', '.join(DTYPES)}.")
    if tokens < 1:
        raise ValueError(f"tokens={tokens} must be at least 1.")
    source = reading(lm, sites, **options)
    if "patched_kl" in source.needs:
        raise ValueError("patched_kl needs the model itself at every step: train with activations(), not from a cache.")
    head = source.describe() | {"stored": dtype, "weights": lm.fingerprint}
    del head["buffer"]
    head["widths"] = {name: source.d_in(name.removesuffix(".grad")) for name in source.names}
    shards = Shards(folder)
    with _alone(shards):
        there = shards.there() if shards.begun else {}
        _room(source, shards, tokens, sum(m["rows"] for m in there.values()), dtype)
        shards.begin(head)
        _same_text(source, shards, there)
        yield from _add(source, shards, tokens, dtype)


def reading(lm: LM, sites: str | Iterable[str], **options: Any) -> Activations:
    """What is cached: of a remote model in small shards, since what was read of one that is not whole is lost."""
    return activations(lm, sites, **({"documents": DOCUMENTS} if lm.remote else {}) | options)


@contextmanager
def _alone(shards: Shards) -> Iterator[None]:
    """Raises:
    RunInUse: while another process of this machine adds to the cache; an object store has no lock.
    """
    if not shards.local:
        yield
        return
    Path(shards.root).mkdir(parents=True, exist_ok=True)
    try:
        lock = Lock(Path(shards.root) / "lock")
    except RunInUse as error:
        raise RunInUse(f"Another process is adding to the cache at {shards.where!r}: wait for it. ({error})") from error
    try:
        yield
    finally:
        lock.release()


def _add(source: Activations, shards: Shards, tokens: int, dtype: str) -> Iterator[Progress]:
    there = shards.there()
    done, taken = sum(m["rows"] for m in there.values()), sum(m["bytes"] for m in there.values())
    if there:
        yield Progress(done, tokens, len(there), taken, False)
    for number in count():
        if number in there:
            continue
        enough = done >= tokens and number > max(there, default=-1)
        if enough or number * source.blocks.documents >= (source.blocks.once or inf):
            return
        with asked(source.lm, shards, number):
            rows, error = source.block(number), {}
            stored = {name: rows[name] for name in ("token", "doc", "position")}
            for name in source.names:
                parts, error[name] = packed(rows[name], dtype)
                stored |= {f"{name}{ending}": part for ending, part in parts.items()}
            manifest = shards.append(number, stored, {"error": error})
        done, taken = done + manifest["rows"], taken + manifest["bytes"]
        yield Progress(done, tokens, number + 1, taken, True)


def expected(source: Activations, tokens: int) -> tuple[int, int]:
    """(tokens, shards) that a cache of at least so many tokens will have, told from the text's first blocks."""
    blocks, end = source.blocks, source.blocks.once
    some = [blocks.block(i) for i in range(BLOCKS if end is None else min(BLOCKS, ceil(end / blocks.documents)))]
    each = max(1, sum(int(block.keep.sum()) for block in some)) / len(some)
    shards = ceil(tokens / each)
    if end is not None:
        shards = min(shards, ceil(end / blocks.documents))
    return round(shards * each), shards


def _same_text(source: Activations, shards: Shards, there: dict[int, dict[str, Any]]) -> None:
    """Raises:
    ValueError: if the first shard that is there is of another text: names and functions do not tell.
    """
    for number in sorted(there)[:1]:
        block, kept = source.blocks.block(number), shards.read(number, there[number]).get("token")
        if kept is None or not torch.equal(block.ids[block.keep], kept):
            raise ValueError(
                f"The cache at {shards.where!r} holds other tokens than this text begins with, though it is called the "
                "same: choose another folder."
            )


def _room(source: Activations, shards: Shards, tokens: int, held: int, dtype: str) -> None:
    """Raises:
    OSError: if the disk is too small for what is missing.
    """
    widths = [source.d_in(name.removesuffix(".grad")) for name in source.names]
    needs = lambda tokens: int(SPARE * size(widths, tokens - held, dtype))  # noqa: E731
    free = shutil.disk_usage(shards.root).free if shards.local else needs(tokens)
    if needs(tokens) > free and source.blocks.once is not None:
        tokens = min(tokens, expected(source, tokens)[0])  # the text may end before
    if (needed := needs(tokens)) > free:
        raise OSError(
            f"{tokens - held:,} tokens of {', '.join(source.names)} in {dtype} need {needed / 1e9:.3g} GB, and the "
            f"disk of {shards.where!r} has {free / 1e9:.3g} GB free. Take fewer tokens or sites, int8, or another disk."
        )


def size(widths: Iterable[int], tokens: int, dtype: str) -> int:
    """Bytes of a cache of `tokens` rows of these widths."""
    scale = 4 if dtype == "int8" else 0
    return max(tokens, 0) * (sum(width * DTYPES[dtype] + scale for width in widths) + ADDRESS)
