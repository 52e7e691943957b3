"""What each verb does. Options come from the same knobs as forms and saved configs."""

import inspect
import shlex
from collections.abc import Callable, Collection, Sequence
from dataclasses import Field, field, fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import pandas as pd
import tyro

from .. import sweeps
from ..bench import BenchHarvest, BenchScaling, BenchStep, BenchTraining
from ..citing import cite
from ..knobs import Knob, hint, knob, knobs
from ..launcher import Job, Launched, launch, ps, run_job
from ..report import Section, write_page
from ..runs import Run, find_runs, fresh
from ..saes import REGISTRY, variant
from ..training import TrainConfig
from . import say
from .progress import note, watched
from .quickstart import Quickstart, quickstart

HIDDEN = {"d_in", "variant", "sae", "train"}  # known from elsewhere
SHARED = HIDDEN | {"own", "over", "job", "run"}  # in what several SAEs share

DETACH = {"detach": (bool, knob(False, help="start it as a process of its own and return"))}


def options(name: str, *configs: type, doc: str = "", hidden: Collection[str] = HIDDEN, **more: Any) -> type:
    """One options class with the knobs of several configs; a knob that two of them have is the first one's."""
    rows: dict[str, tuple] = {}
    for config in configs:
        hints = get_type_hints(config)
        for f in fields(config):
            if f.name not in hidden and f.name not in rows:
                rows[f.name] = (f.name, _helped(hints[f.name], f), field(default=f.default))
    rows |= {key: (key, kind, value) for key, (kind, value) in more.items()}
    return make_dataclass(name, rows.values(), frozen=True, kw_only=True, namespace={"__doc__": doc})


def parsed(kind: type, argv: list[str], verb: str) -> Any:
    """The options as given on the command line.

    Raises:
        SystemExit: for --help and for what is no option; the message names the nearest ones.
    """
    return tyro.cli(kind, args=argv, prog=f"sae-lab {verb}", description=inspect.getdoc(kind))


def _helped(kind: Any, f: Field) -> Any:
    row = Knob(f.name, object, None, **f.metadata)
    reach = ", ".join(row.choices) or row.reach
    return Annotated[kind, tyro.conf.arg(help=row.help + (f" [{reach}]" if reach else ""))]


def run_quickstart(argv: list[str], as_json: bool) -> None:
    doc = "Train an SAE on the embedded Llama, measure it, name its latents, steer with one, write report.html."
    given = parsed(options("QuickstartOptions", Quickstart, doc=doc), argv, "quickstart")
    found = quickstart(Quickstart(**vars(given)))
    say(found.to_json(), as_json, f"{found.evaluation.table.to_string(index=False)}\n\n{found.run.folder}/report.html")


def run_train(argv: list[str], as_json: bool) -> None:
    """`train VARIANT --site L3R --k 32 ...`, here or with --detach as a process of its own."""
    name = argv[0] if argv and not argv[0].startswith("-") else "batchtopk"
    rest = argv[1:] if argv and not argv[0].startswith("-") else argv
    chosen = variant(name)
    doc = f"Train {name} ({chosen.paper}): sae-lab train {name} --d-sae 2048. `sae-lab variants` lists the others."
    doc += " A run that was cut short goes on: give its --run again."
    given = vars(
        parsed(options("TrainOptions", Job, chosen.Config, TrainConfig, doc=doc, **DETACH), rest, f"train {name}")
    )
    if given.get("k") == getattr(chosen.Config, "k", None) and given["target_l0"] is not None:
        del given["k"]  # not asked for: its default
    detach, run = given.pop("detach"), Run(given.pop("run") or fresh(f"runs/{name}-{given['site']}"))
    job = Job.of(variant=name, run=str(run.folder), **given)
    if detach:
        launch(job)
        return say({"run": str(run.folder)}, as_json, f"{run.folder}: started; see it with `sae-lab ps`.")
    try:
        for _ in watched(run_job(job), run.name):
            pass
    except KeyboardInterrupt:
        note(
            f"Stopped with a checkpoint. Go on with: sae-lab train {shlex.join(argv)}"
            + ("" if any(a.startswith("--run") for a in argv) else f" --run {shlex.quote(str(run.folder))}")
        )
        raise
    return say({"run": str(run.folder), "status": run.status, "evaluation": run.eval}, as_json, _shown(run))


def run_sweep(argv: list[str], as_json: bool) -> None:
    """`sweep --variants topk batchtopk --k 16 32 --seeds 3 ...`, here or with --detach as a process of its own."""
    doc = "Train variants x k x d_sae x seeds on one stream of activations, measure all, compare them at equal L0. "
    doc += "The same line again goes on with a sweep that was cut short."
    more = {"folder": (str, knob("runs/sweep", help="the sweep's folder; in the end it has report.html")), **DETACH}
    more["vary"] = (tuple[str, ...], knob((), help="other knobs and their values: lr=1e-3,1e-4 context=64,128"))
    made = options("SweepOptions", sweeps.Plan, Job, TrainConfig, doc=doc, hidden=SHARED, **more)
    given = vars(parsed(made, argv, "sweep"))
    detach, folder = given.pop("detach"), given.pop("folder")
    given["over"] = _varied(given.pop("vary"), given["variants"])
    if detach:
        found = sweeps.sweep(folder=folder, detach=True, **given)
        return say(found.to_json(), as_json, f"{folder}: started; see it with `sae-lab ps {folder}`.")
    try:
        for _ in watched(sweeps.run_sweep(sweeps.Plan.of(**given).check(), folder), Path(folder).name):
            pass
    except KeyboardInterrupt:
        note(f"Stopped with a checkpoint. Go on with: sae-lab sweep {shlex.join(argv)}")
        raise
    found = sweeps.Sweep.load(folder)
    return say(found.to_json(), as_json, f"{found!r}\n\n{found.folder / 'report.html'}")


def _varied(given: Sequence[str], variants: Sequence[str]) -> dict[str, list[Any]]:
    """Knobs of some variants, or of their trainings, and the values that each takes.

    Raises:
        ValueError, KeyError: for what is no such thing.
    """
    configs = (*(variant(v).Config for v in variants), Job, TrainConfig)
    rows, found = {row.name: row for config in configs for row in knobs(config)}, {}
    for one in given:
        name, _, values = one.partition("=")
        name = name.replace("-", "_")
        if name not in rows or not values:
            raise ValueError(f"--vary {one!r} is no knob with its values, as lr=1e-3,1e-4.{hint(name, rows)}")
        if name in found:
            raise ValueError(f"--vary {name} is there twice: give all of its values at once, with commas between.")
        found[name] = rows[name].several(values)
    return found


def run_cite(argv: list[str], as_json: bool) -> None:
    made = options("CiteOptions", doc="BibTeX of what a run used.", run=(tyro.conf.Positional[str], field()))
    found = cite(parsed(made, argv, "cite").run)
    say(found.to_json(), as_json, repr(found))


def run_runs(argv: list[str], as_json: bool) -> None:
    runs = find_runs(_folder(argv, "runs"))
    rows = [{"run": str(r.folder), "variant": r.config.get("variant", "(sweep)"), **_numbers(r)} for r in runs]
    say(rows, as_json, _table(rows) or "No runs here. Start one: sae-lab quickstart, or sae-lab train batchtopk.")


def run_variants(argv: list[str], as_json: bool) -> None:
    parsed(options("VariantsOptions", doc="The variants and their papers."), argv, "variants")
    rows = [{"variant": name, "paper": REGISTRY[name].paper} for name in sorted(REGISTRY)]
    say(rows, as_json, "\n".join(f"{r['variant']:<18}{r['paper']}" for r in rows))


def run_ps(argv: list[str], as_json: bool) -> None:
    table = ps(_folder(argv, "ps"))
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    say(rows, as_json, table.to_string(index=False) if len(table) else "No runs here.")


def steered(verb: str) -> Callable[[list[str], bool], None]:
    """pause, resume, stop: one run, by its folder."""

    def command(argv: list[str], as_json: bool) -> None:
        made = options("RunOptions", doc=f"{verb} a detached run.", run=(tyro.conf.Positional[str], field()))
        folder = parsed(made, argv, verb).run
        if not Run(folder).exists:
            raise FileNotFoundError(f"No run in {folder!r}. `sae-lab runs` lists those there are.")
        getattr(Launched(folder), verb)()
        say({"run": folder, "status": Run(folder).status}, as_json, repr(Run(folder)))

    return command


def run_bench(argv: list[str], as_json: bool) -> None:
    """`bench step|scaling|harvest|training`: what takes how long here."""
    kinds = {"step": BenchStep, "scaling": BenchScaling, "harvest": BenchHarvest, "training": BenchTraining}
    what = argv[0] if argv and not argv[0].startswith("-") else "step"
    if what not in kinds:
        raise ValueError(f"No bench of {what!r}. Known: {', '.join(kinds)}.")
    rest = argv[1:] if argv and not argv[0].startswith("-") else argv
    picture = {"picture": (str, knob("", help="an HTML file for table and picture"))}
    made = options("BenchOptions", kinds[what], doc=inspect.getdoc(kinds[what]), hidden=(), **picture)
    given = vars(parsed(made, rest, f"bench {what}"))
    page = given.pop("picture")
    found = kinds[what](**given).run()
    if page:
        shown = Section(f"Over {found.bound}", "Medians of what took turns.", (found.figure, found.rows))
        write_page(Path(page), f"bench {what}", found.told, [shown])
    say(found.to_json(), as_json, repr(found))


def _folder(argv: list[str], verb: str) -> str:
    kind = options("FolderOptions", doc="Runs in a folder.", folder=(tyro.conf.Positional[str], field(default="runs")))
    return parsed(kind, argv, verb).folder


def _numbers(run: Run) -> dict[str, Any]:
    status, e = run.status, run.eval
    shown = {name: e[name]["value"] for name in ("fvu", "l0", "ce_recovered", "dead") if name in e}
    return {"state": status["state"], "step": status["step"], "steps": status["steps"]} | shown


def _table(rows: list[dict]) -> str:
    return pd.DataFrame(rows).to_string(index=False, na_rep="", float_format=lambda v: f"{v:.4g}") if rows else ""


def _shown(run: Run) -> str:
    e = run.eval
    if not e:
        return repr(run)
    rows = [
        f"{name:<20}{n['value']:>9.4g}  [{n['low']:.4g}, {n['high']:.4g}]" for name, n in e.items() if name != "about"
    ]
    return "\n".join([repr(run), *rows])


run_pause, run_resume, run_stop = map(steered, ("pause", "resume", "stop"))
