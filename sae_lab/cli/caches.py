"""The verb for activations that are read once and kept."""

from dataclasses import asdict, field

import tyro
from rich.progress import Progress

from ..caching import DTYPES, Cached, cache_cost, caching
from ..knobs import knob
from ..launcher import REMOTE, Job
from ..models import Server, load_model
from . import say
from .commands import options, parsed
from .progress import CONSOLE, note


def run_cache(argv: list[str], as_json: bool) -> None:
    """`cache FOLDER --sites L2R --tokens 1000000`: activations on a disk, for `train --cache FOLDER`."""
    more = {
        "folder": (tyro.conf.Positional[str], field()),
        "plan": (bool, knob(False, help="say what it would take, and read nothing")),
        "verify": (bool, knob(False, help="read all of a cache that is there, and compare every checksum")),
        "model": (str, knob("tiny", help="whose activations: tiny, a folder or a hub name")),
        "remote": (str | None, knob(None, help=REMOTE)),
        "deadline": (float, knob(Job.deadline, 1.0, 1e6, "seconds that a server has for one request")),
        "sites": (tuple[str, ...], knob(("L2R",), help="where in it")),
        "tokens": (int, knob(1_000_000, 1, 10**12, "at least so many; special ones are left out")),
        "stored": (str, knob("float16", choices=tuple(DTYPES), help="in which precision; int8 has a scale per token")),
        "text": (str, knob("world", help="what it reads: world, a file, or a dataset's name")),
        "column": (str | None, knob(None, help="the field of the text that is read")),
        "context": (int | None, knob(None, 8, 2**20, "tokens the model reads at once; None: what suits it")),
        "seed": (int, knob(0, 0, 2**31 - 1, "seed of the stream of text")),
        "device": (str | None, knob(None, help="where to compute; None: a GPU if there is one")),
        "dtype": (str | None, knob(None, help="precision of the model; None: as it is stored, float32 on a CPU")),
    }
    doc = "Read a text once and keep its activations. The same line again goes on with what was cut short."
    given = parsed(options("CacheOptions", doc=doc, **more), argv, "cache")
    if given.verify:
        found = Cached(given.folder)
        return say(_told(found), as_json, f"{found!r}\nall {found.verify()} shards are what was written")
    remote = Server(given.remote, given.deadline) if given.remote else False
    lm = load_model(given.model, device=None if remote else given.device, dtype=given.dtype, remote=remote)
    reading = {"text": given.text, "column": given.column, "seed": given.seed, "context": given.context}
    cost = cache_cost(lm, given.sites, given.tokens, dtype=given.stored, **reading)
    if given.plan:
        return say(asdict(cost) | {"seconds": cost.seconds}, as_json, str(cost))
    if lm.remote:
        note(str(cost))
    with Progress(console=CONSOLE, transient=True, disable=not CONSOLE.is_terminal) as bar:
        task = bar.add_task("cache", total=given.tokens)
        for step in caching(lm, given.sites, given.tokens, given.folder, dtype=given.stored, **reading):
            bar.update(task, completed=step.tokens, description=f"cache, {step.bytes / 1e6:,.0f} MB")
    found = Cached(given.folder)
    lost = ", ".join(f"{name} {error:.2g}" for name, error in found.error.items())
    return say(_told(found), as_json, f"{found!r}\nlost by the precision, relative to their spread: {lost}")


def _told(found: Cached) -> dict:
    counts = {"tokens": found.tokens, "shards": len(found.manifests), "bytes": found.bytes, "error": found.error}
    return {"cache": found.shards.where, **found.head} | counts
