"""Findings about latents, one a line, kept in a run as soon as each is there: explanations/<settings>.jsonl."""

import hashlib
import json
import os
from typing import Any

from .files import read_lines, room_for
from .latents import weights_of
from .run import Run


class Lines:
    """The findings made with the same settings and the same weights; others are in files of their own."""

    def __init__(self, run: Run, kind: str, about: dict[str, Any]):
        about = {"weights": weights_of(run), **about}
        name = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
        self._path, self._about = run.folder / kind / f"{name}.jsonl", about

    def read(self) -> list[dict[str, Any]]:
        """The findings so far, in the order in which they came; one that a kill cut short is not among them."""
        return [row for row in read_lines(self._path) if "latent" in row]

    def add(self, row: dict[str, Any]) -> None:
        """Adds a finding; it is on the disk when this returns.

        Raises:
            DiskFull: and what was there still is.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        head = [] if self._path.exists() else [{"about": self._about}]
        whole = self._path.read_bytes()[-1:] in (b"", b"\n") if not head else True
        data = b"" if whole else b"\n"  # a kill may have left half a line
        data += "".join(json.dumps(r) + "\n" for r in (*head, row)).encode()
        with room_for(self._path), open(self._path, "ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())


def findings(run: Run, kind: str, weights: str) -> list[dict[str, Any]]:
    """All that a run holds of a kind about these weights, whatever the settings; the newest file last."""
    files = sorted((run.folder / kind).glob("*.jsonl"), key=lambda path: path.stat().st_mtime)
    read = (read_lines(path) for path in files)
    kept = (rows for rows in read if rows and rows[0].get("about", {}).get("weights") == weights)
    return [row for rows in kept for row in rows if "latent" in row]
