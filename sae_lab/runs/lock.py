"""One trainer per folder: who holds it, whether that process still lives."""

import fcntl
import json
import os
import platform
from pathlib import Path
from typing import Any

import psutil


class RunInUse(RuntimeError):
    """Another process, or another training in this one, writes to this folder."""


def whose(pid: int | None = None) -> dict[str, Any]:
    """This process or that with `pid`, so that no later one with the same pid is mistaken for it."""
    process = psutil.Process(pid)
    return {"pid": process.pid, "create_time": process.create_time(), "host": platform.node()}


def lives(who: dict[str, Any]) -> bool:
    """Whether the process that wrote `who` on this machine is still running."""
    if not who.get("pid") or who.get("host") != platform.node():
        return False
    try:
        process = psutil.Process(who["pid"])
        return abs(process.create_time() - who["create_time"]) < 1.5 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


class Lock:
    """Held from `__init__` until `release` or the end of the process, however it ends.

    The kernel drops the lock with the process, so a stale one cannot be; the file's text says who holds it.

    Raises:
        RunInUse: if someone else holds it.
    """

    def __init__(self, path: Path):
        self._file = open(path, "a+")  # noqa: SIM115 (held open on purpose)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.seek(0)
            who = self._file.read()
            self._file.close()
            raise RunInUse(_held(path, who)) from error
        self._file.truncate(0)
        self._file.write(json.dumps(whose()))
        self._file.flush()

    def release(self) -> None:
        if not self._file.closed:
            self._file.truncate(0)
            self._file.close()


def _held(path: Path, text: str) -> str:
    try:
        who = json.loads(text)
    except ValueError:
        who = {}
    if who.get("pid") == os.getpid():
        by = "by this very process: an unfinished train(...) still holds it; call its .close()"
    else:
        by = f"by process {who.get('pid', '?')} on {who.get('host', '?')}; stop that one first (control 'stop')"
    return f"Run folder {str(path.parent)!r} is in use {by}, or choose another folder."
