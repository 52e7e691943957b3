"""Files that survive a kill: written aside, synced, renamed; and what is said when one is cut short or has no room."""

import errno
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FULL = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}


class DiskFull(OSError):
    """A file could not be written for want of room; what was saved before is untouched."""


class Damaged(ValueError):
    """A file is there and cannot be what was written: cut short or altered."""


@contextmanager
def room_for(path: Path) -> Iterator[None]:
    """Turns "no space left" and "file too large" into `DiskFull`, with the way out."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        free = shutil.disk_usage(_existing(path)).free / 1e6
        raise DiskFull(
            error.errno,
            f"no room for {path} ({os.strerror(error.errno)}; {free:,.0f} MB free on that disk). Everything saved "
            "before is intact: make room, or raise the file-size limit, and start the same run again to resume it",
        ) from error


def write(path: Path, data: bytes) -> str:
    """The sha256 of `data`, once it is on the disk under a new name `path`."""
    with room_for(path), open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(data).hexdigest()


def replace(path: Path, data: bytes, durable: bool = True) -> None:
    """Gives `path` new content in one moment: a reader sees the old or the new file, never half of one.

    `durable` waits until a power cut could not undo it; a heartbeat need not.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        if durable:
            write(aside, data)
        else:
            with room_for(path):
                aside.write_bytes(data)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    if durable:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes the names in `folder` as durable as the files."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A new folder to fill; it becomes `folder` once all is written, and what was there stays until then."""
    new, old = (folder.absolute().with_name(f".{word}-{folder.name}-{time.time_ns()}") for word in ("tmp", "old"))
    with room_for(folder):
        new.mkdir(parents=True)
    try:
        yield new
        sync_folder(new)
        if folder.exists():
            os.rename(folder, old)
        os.rename(new, folder)
        sync_folder(folder.parent)
    finally:
        if old.exists() and not folder.exists():  # broken off between the two names
            os.rename(old, folder)
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def read_whole(path: Path, sha256: str) -> bytes:
    """Raises:
    Damaged: if the file is not the one that was written.
    """
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise Damaged(f"{path} is not the file that was written: its sha256 differs.")
    return data


def write_json(path: Path, value: Any, durable: bool = True) -> None:
    replace(path, (json.dumps(value, indent=1) + "\n").encode(), durable)


def read_json(path: Path) -> Any:
    """Raises:
    Damaged: if the file is no JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path} is not readable as JSON ({error}): it was cut short or altered.") from error


def read_lines(path: Path) -> list[dict]:
    """The rows of a .jsonl file; a line that a kill cut short is left out."""
    return rows_of(path.read_bytes() if path.exists() else b"")


def rows_of(data: bytes) -> list[dict]:
    rows = []
    for line in data.splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return [row for row in rows if isinstance(row, dict)]


class Tail:
    """The rows of a .jsonl file that another process adds to, as they come.

    Attributes:
        restarted: whether the last reading began anew, since the file had been rewritten.
    """

    def __init__(self, path: Path):
        self._path, self._place, self._file, self.restarted = path, 0, None, False

    def new(self) -> list[dict]:
        """What was added since the last time; a line that is not whole yet waits."""
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return []
        self.restarted = found.st_ino != self._file or found.st_size < self._place
        if self.restarted:
            self._place, self._file = 0, found.st_ino
        if found.st_size == self._place:
            return []
        with open(self._path, "rb") as file:
            file.seek(self._place)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._place += len(whole)
        return rows_of(whole)


def _existing(path: Path) -> Path:
    return next(p for p in (path, *path.absolute().parents) if p.exists())
