"""What a server was asked for a shard, kept until the shard is whole: killed, one fetches it and pays for it once."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..models import LM
from ..runs import Damaged, read_json, write_json
from .shards import Shards

FILE = "asked.json"
ID = re.compile(r"[A-Za-z0-9-]{1,100}")


class Asked:
    """Ids of jobs, in the order in which a shard asks for them."""

    def __init__(self, file: Path, about: dict[str, Any]):
        self._file, self._about, self._at = file, about, -1
        self._jobs: list[str] = []
        try:
            said = read_json(file) if file.exists() else {}
        except Damaged:
            said = {}  # the worst that comes of it is to ask again
        if isinstance(said, dict) and {key: said.get(key) for key in about} == about:
            self._jobs = [job for job in said.get("jobs", []) if isinstance(job, str) and ID.fullmatch(job)]

    def next(self) -> str:
        """The id of the job that was asked for here before; empty if none was."""
        self._at += 1
        return self._jobs[self._at] if self._at < len(self._jobs) else ""

    def note(self, job: str) -> None:
        """The last `next` is this job now."""
        self._jobs[self._at :] = [job]
        write_json(self._file, self._about | {"jobs": self._jobs})


@contextmanager
def asked(lm: LM, shards: Shards, number: int) -> Iterator[None]:
    """Within, a shard is read and written."""
    if not (lm.remote and shards.local):
        yield
        return
    file = Path(shards.root) / FILE
    lm.server.memory = Asked(file, {"shard": number, "host": lm.server.host})
    try:
        yield
        file.unlink(missing_ok=True)
    finally:
        lm.server.memory = None
