"""A cache filled on behalf of a run, which says how far it is and can be told to stop."""

import time
from contextlib import suppress
from typing import Any

from ..models import LM
from ..runs import Run, RunInUse
from .making import caching
from .making import reading as source
from .serving import Cached


def fill(lm: LM, sites: Any, tokens: int, folder: str, run: Run | None, **reading: Any) -> None:
    """`cache`, for a run whose process was started for it: it waits while another process adds to the same cache.

    Raises:
        SystemExit: the run is told to stop; what was read is in the cache.
    """
    how: dict[str, str] = {}
    launched = run is not None and bool(run.job)
    with suppress(FileNotFoundError):
        kept = Cached(folder)
        if set(map(str, sites)) <= set(kept.sites):
            sites, how = kept.sites, {"dtype": kept.head["stored"]}
            asked = source(lm, sites, **reading).describe() | {"weights": lm.fingerprint}
            alike = all(kept.head.get(key) == value for key, value in asked.items() if key != "buffer")
            if alike and kept.tokens >= tokens:
                return  # others may be adding to it
    cached = 0
    while True:
        try:
            for step in caching(lm, sites, tokens, folder, **reading | how):
                cached = step.tokens
                if launched:
                    _heed(run, cached)
            return
        except RunInUse:
            if not launched:
                raise
            _heed(run, cached)  # somebody else is at it, and what is there then is not read again
            time.sleep(0.5)


def _heed(run: Run, cached: int) -> None:
    """Raises:
    SystemExit: as `fill`.
    """
    run.mark("starting", cached=cached)
    while run.wanted == "pause":
        run.mark("paused", cached=cached)
        time.sleep(0.1)
    if run.wanted == "stop":
        run.mark("stopped", cached=cached)
        raise SystemExit(0)
