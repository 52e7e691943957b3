"""A suite at work: the sweep is trained or found finished, then studied; each study is written once it is done."""

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ..intervals import plain_json
from ..launcher import reader
from ..library import load_sae
from ..models import LM
from ..reading import reading_once
from ..runs import Run, write_json
from ..sweeps import Plan, run_sweep
from .results import Suite
from .studies import Study, studies

STUDIED = 50_000  # tokens


def suite(
    variants: str | list[str] | tuple[str, ...] | Mapping[str, dict] = (),
    *,
    folder: str | Path = "runs/suite",
    studied: int = STUDIED,
    **knobs: Any,
) -> Suite:
    """Trains a sweep of several widths and seeds and studies it; the same call again goes on, or reads what is there.

        suite(["topk", "relu"], site="L2R", k=16, d_sae=[256, 1024], seeds=3, tokens=1_000_000, folder="runs/suite")

    The knobs are those of `sweep`, whose folder it is, too: the SAEs of a finished sweep are studied as they are. Seeds
    are compared, widths split, and each SAE asked for absorption and concepts. A study that refuses is kept with its
    reason.

    Args:
        studied: tokens that each study reads of each split of the text it needs.

    Raises:
        ValueError, KeyError, TypeError, FileNotFoundError, RunInUse: as `sweep`.
        RuntimeError: if the sweep is told to stop.
    """
    plan = asked(folder, variants, **knobs).check()
    for _ in run_sweep(plan, folder):
        pass
    for _ in run_studies(plan, folder, studied):
        pass
    return Suite.load(folder, studied)


def asked(folder: str | Path, variants: Any = (), **knobs: Any) -> Plan:
    """The sweep that these knobs describe; `sample`, if nothing is said of it, is that of the sweep in the folder."""
    there = Run(folder)
    if knobs.get("sample") is None and there.kind == "sweep":
        knobs["sample"] = there.config["job"]["train"]["sample"]
    plan = Plan.of(variants, **knobs)
    if plan.over or None in plan.k:
        odd = ", ".join(plan.over) or "k=None"
        raise ValueError(f"A suite is variants x k x d_sae x seeds at equal L0; for {odd} there is sweep().")
    return plan


def run_studies(plan: Plan, folder: str | Path, tokens: int = STUDIED) -> Iterator[tuple[int, int, str]]:
    """(how many studies are done, of how many, the last one's name); in the end the folder has suite.json.

    Raises:
        RunInUse: if a sweep or a suite is at work there.
        RuntimeError: if the sweep has not finished.
    """
    run = Run(folder)
    run.acquire()
    try:
        if run.status["state"] != "done":
            raise RuntimeError(f"{run!r} has not finished: it is studied when it has. The same call goes on with it.")
        lm = cache(lambda: reader(plan.job))
        every = list(studies([a for a in plan.saes if Run(run.folder / a.name).trained]))
        with reading_once():
            for done, study in enumerate(every, 1):
                run.study(f"{tokens}/{study.name}", lambda study=study: _measured(study, run, lm(), tokens))
                yield done, len(every), study.name
        write_json(run.folder / "suite.json", Suite.load(run.folder, tokens).to_json())
    finally:
        run.release()


def _measured(study: Study, run: Run, lm: LM, tokens: int) -> dict[str, Any]:
    saes = [load_sae(run.folder / asked.name, device=lm.device) for asked in study.saes]
    try:
        found = study.measure(saes, lm, tokens)
    except ValueError as error:
        found = {"refused": str(error)}
    return plain_json({"saes": [asked.name for asked in study.saes], **found})
