"""The verb for many SAEs at once: what a suite file says, planned, run and shown; or a sweep with its studies."""

import shlex
from collections.abc import Callable
from dataclasses import field, replace
from pathlib import Path

import tyro

from .. import suites, sweeps
from ..knobs import knob
from ..launcher import Job
from ..runs import Run
from ..training import TrainConfig
from . import say
from .commands import SHARED, options, parsed
from .progress import note, watched

FILE = (tyro.conf.Positional[str], field())


def run_suite(argv: list[str], as_json: bool) -> None:
    """`suite plan|run|show FILE`, or `suite --variants topk relu --d-sae 256 1024 --seeds 3 ...`."""
    verbs: dict[str, Callable] = {"plan": run_plan, "run": run_file, "show": run_show}
    if not argv or argv[0].startswith("-"):
        return run_studied(argv, as_json)
    if argv[0] not in verbs:
        raise ValueError(f"No suite {argv[0]!r}: write suite plan FILE, suite run FILE or suite show FILE.")
    return verbs[argv[0]](argv[1:], as_json)


def run_plan(argv: list[str], as_json: bool) -> None:
    """`suite plan FILE`: what it takes, and what that assumes of a GPU."""
    doc = "What a suite file takes: groups, forward passes, GPU-hours, bytes, and the assumptions. Nothing is trained."
    more = {"file": FILE, "memory": (float | None, knob(None, help="GB that a group may take; None: as the file says"))}
    given = vars(parsed(options("PlanOptions", sweeps.Assumed, doc=doc, **more), argv, "suite plan"))
    said, memory = sweeps.suite_file(given.pop("file")), given.pop("memory")
    plan = said.plan if memory is None else replace(said.plan, memory=memory)
    found = sweeps.outlook(plan, said.shape, sweeps.Assumed(**given))
    say(found.to_json(), as_json, repr(found))


def run_file(argv: list[str], as_json: bool) -> None:
    """`suite run FILE`: trains and measures what it says; again: goes on."""
    doc = "Train and measure what a suite file says. The same line again goes on with what was cut short."
    more = {
        "file": FILE,
        "folder": (str | None, knob(None, help="where it is kept; None: as the file says")),
        "devices": (tuple[str, ...], knob((), help="a process each; none named: as the file says")),
        "memory": (float | None, knob(None, help="GB that a group may take; None: as the file says")),
        "detach": (bool, knob(False, help="start it as a process of its own and return")),
    }
    given = parsed(options("RunOptions", doc=doc, **more), argv, "suite run")
    said = sweeps.suite_file(given.file)
    folder, where = given.folder or said.folder, {"devices": given.devices, "memory": given.memory}
    plan = replace(said.plan, **{name: value for name, value in where.items() if value})
    if given.detach:
        found = sweeps.sweep(plan, folder=folder, detach=True)
        return say(found.to_json(), as_json, f"{folder}: started; see it with `sae-lab suite show {folder}`.")
    trained(plan, folder, said.studied, f"sae-lab suite run {shlex.join(argv)}")
    return _show(folder, as_json)


def run_show(argv: list[str], as_json: bool) -> None:
    """`suite show FILE` or `suite show FOLDER`: what there is of it by now."""
    doc = "What there is of a suite by now: a row per SAE."
    made = options("ShowOptions", doc=doc, where=(tyro.conf.Positional[str], field()))
    where = parsed(made, argv, "suite show").where
    _show(where if Path(where).is_dir() else sweeps.suite_file(where).folder, as_json)


def run_studied(argv: list[str], as_json: bool) -> None:
    """A sweep and its studies, by flags."""
    doc = "Train a sweep, or take the finished one of the folder, and study it: consistency of seeds, splitting of "
    doc += "widths, absorption, concepts. The same line again goes on where it was cut short. "
    doc += "sae-lab suite plan|run|show FILE does what a suite file says."
    more = {"folder": (str, knob("runs/suite", help="the sweep's folder; in the end it has suite.json"))}
    more["studied"] = (int, knob(suites.STUDIED, 1000, 10**9, "tokens each study reads of each split it needs"))
    made = options("SuiteOptions", sweeps.Plan, Job, TrainConfig, doc=doc, hidden=SHARED, **more)
    given = vars(parsed(made, argv, "suite"))
    folder, tokens = given.pop("folder"), given.pop("studied")
    trained(suites.asked(folder, **given).check(), folder, tokens, f"sae-lab suite {shlex.join(argv)}")
    found = suites.Suite.load(folder, tokens)
    return say(found.to_json(), as_json, f"{found!r}\n\n{Path(folder) / 'suite.json'}")


def trained(plan: sweeps.Plan, folder: str, studied: int | None, again: str) -> None:
    """Trains a plan, and studies it where that is asked; `again` is the line that goes on with it."""
    try:
        for _ in watched(sweeps.run_sweep(plan, folder), Path(folder).name):
            pass
        for done, total, name in suites.run_studies(plan, folder, studied) if studied else ():
            note(f"{Path(folder).name}: {done}/{total} studies, {name}")
    except KeyboardInterrupt:
        note(f"Stopped. Go on with: {again}")
        raise


def _show(folder: str, as_json: bool) -> None:
    found = sweeps.Sweep.load(folder)
    shown = found.table.drop(columns=["run", "off", "tokens"]).to_string(index=False, float_format="{:.4g}".format)
    studied = Run(folder).folder / "suite.json"
    more = f"\n\n{suites.Suite.read(studied)!r}" if studied.exists() else ""
    say(found.to_json(), as_json, f"{shown}\n\n{found!r}{more}\n\n{found.folder / 'report.html'}")
