"""Shards of rows in a folder, or at any address that fsspec knows: a shard is there once its manifest is.

A shard is one safetensors file; its manifest is JSON with the file's size and crc32, written last. What a kill leaves
behind has no manifest and is written over. Nothing executes when it is read.
"""

import json
import re
import zlib
from functools import cached_property
from math import inf
from pathlib import Path
from typing import Any

import fsspec
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..runs import Damaged
from ..runs.files import replace

FORMAT = "sae_lab-cache/1"
HEAD = "cache.json"


class Shards:
    """Numbered shards at an address, which may be a local path.

    Attributes:
        local: whether that is a folder of this machine.
    """

    def __init__(self, where: str | Path):
        self._fs, self.root = fsspec.core.url_to_fs(str(where))
        protocol = self._fs.protocol
        self.local = "file" in ((protocol,) if isinstance(protocol, str) else protocol)
        self.where = self.root if self.local else str(where)  # wherever one stands
        self._checked: set[int] = set()

    @cached_property
    def head(self) -> dict[str, Any]:
        """What all shards share.

        Raises:
            FileNotFoundError: if there is no cache here.
            Damaged: if what is here is none of ours.
        """
        if not self._fs.exists(self._path(HEAD)):
            raise FileNotFoundError(
                f"No cache of activations at {self.where!r}: there is no {HEAD}. Make one: sl.cache(lm, sites, tokens, "
                f"{self.where!r})."
            )
        said = _json(self._fs.cat_file(self._path(HEAD)), self._path(HEAD))
        if said.get("format") != FORMAT:
            raise Damaged(f"{self._path(HEAD)} does not say format {FORMAT!r}: it is no cache of this package's.")
        if not _is_head(said):
            raise Damaged(f"{self._path(HEAD)} does not say what was cached. It was altered: cache again elsewhere.")
        return said

    def begin(self, head: dict[str, Any]) -> None:
        """Writes what all shards share, or compares with what is there.

        Raises:
            ValueError: if something else was cached here; the message names the first difference.
        """
        head = json.loads(json.dumps({"format": FORMAT} | head))
        if not self._fs.exists(self._path(HEAD)):
            self._fs.makedirs(self.root, exist_ok=True)
            self._put(HEAD, json.dumps(head, indent=1).encode())
        for key, value in head.items():
            if self.head.get(key) != value:
                raise ValueError(
                    f"The cache at {self.where!r} was made with {key}={self.head.get(key)!r}, not {value!r}. A cache "
                    "never changes: choose another folder."
                )

    @property
    def begun(self) -> bool:
        """Whether something is cached here already."""
        return self._fs.exists(self._path(HEAD))

    def manifests(self) -> list[dict[str, Any]]:
        """Those of all shards, by number.

        Raises:
            FileNotFoundError: if there is no cache here.
            Damaged: as `there`, and if one is missing before others.
        """
        there = self.there()
        if lost := next((number for number in range(len(there)) if number not in there), None):
            raise Damaged(
                f"The cache at {self.where!r} lacks shard {lost}, though there are later ones. Cache again, with the "
                "same call: what is missing is read, and no more."
            )
        return [there[number] for number in range(len(there))]

    def there(self) -> dict[int, dict[str, Any]]:
        """The manifests of whole shards by number, whichever there are.

        Raises:
            FileNotFoundError: if there is no cache here.
            Damaged: if one is unreadable, or its file is not of the size that it says.
        """
        _ = self.head
        self._fs.invalidate_cache()
        sizes = {Path(f["name"]).name: f["size"] for f in self._fs.ls(self.root, detail=True)}
        found = {}
        for name in sorted(name for name in sizes if re.fullmatch(r"\d{6,}\.json", name)):
            file = f"{name[:-5]}.safetensors"
            said = _json(self._fs.cat_file(self._path(name)), self._path(name))
            if not _is_manifest(said):
                raise Damaged(f"{self._path(name)} is no manifest of a shard. Delete it, and cache again.")
            if sizes.get(file) != said["bytes"]:
                raise Damaged(
                    f"{self._path(file)} has {sizes.get(file, 0):,} of the {said['bytes']:,} bytes that its manifest "
                    "says. Delete both, and cache again."
                )
            found[int(name[:-5])] = said
        return found

    def forget(self) -> None:
        """Checksums are looked at anew."""
        self._checked.clear()

    def append(self, number: int, tensors: dict[str, Tensor], more: dict[str, Any]) -> dict[str, Any]:
        """The manifest of a new shard, once all of it is on the disk.

        Raises:
            DiskFull: and the shards before are whole.
        """
        data = save({name: t.contiguous() for name, t in tensors.items()})
        self._put(f"{_name(number)}.safetensors", data)
        manifest = {"rows": len(next(iter(tensors.values()))), "bytes": len(data), "crc32": zlib.crc32(data), **more}
        self._put(f"{_name(number)}.json", json.dumps(manifest).encode())
        return manifest

    def read(self, number: int, manifest: dict[str, Any]) -> dict[str, Tensor]:
        """A shard's tensors; its checksum is looked at the first time.

        Raises:
            Damaged: if a bit of it is not what was written.
        """
        file = self._path(f"{_name(number)}.safetensors")
        data = self._fs.cat_file(file)
        if number not in self._checked and zlib.crc32(data) != manifest["crc32"]:
            raise Damaged(
                f"{file} is not what was written: its crc32 differs. Delete it and its manifest, cache again."
            )
        self._checked.add(number)
        try:
            return load(data)
        except SafetensorError as error:
            raise Damaged(f"{file} is no whole safetensors file: {error}. Delete it and its manifest.") from error

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def _put(self, name: str, data: bytes) -> None:
        """A file under its name in one moment; an object store shows it only when it is whole."""
        if self.local:
            replace(Path(self._path(name)), data)
        else:
            self._fs.pipe_file(self._path(name), data)


def _is_manifest(said: dict[str, Any]) -> bool:
    counts, error = [said.get("rows"), said.get("bytes")], said.get("error")
    if not all(type(n) is int and n > 0 for n in counts) or type(said.get("crc32")) is not int:
        return False
    return isinstance(error, dict) and all(isinstance(e, float | int) and 0 <= e < inf for e in error.values())


def _is_head(said: dict[str, Any]) -> bool:
    """Whether it says what a cache must know of itself, in the types that it has them in."""
    kinds = {"sites": list, "needs": list, "widths": dict, "stored": str, "seed": int, "documents": int}
    if not all(isinstance(said.get(key), kind) for key, kind in kinds.items()):
        return False
    names = [*said["sites"], *said["needs"], *said["widths"]]
    widths = said["widths"].values()
    return all(isinstance(n, str) for n in names) and all(type(w) is int and w > 0 for w in widths)


def _name(number: int) -> str:
    return f"{number:06d}"


def _json(data: bytes, file: str) -> dict[str, Any]:
    try:
        said = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{file} is not readable as JSON ({error}): it was cut short or altered.") from error
    return said if isinstance(said, dict) else {}
