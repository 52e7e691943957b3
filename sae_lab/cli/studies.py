"""The verbs that study what was trained. Each prints its result's table, or with --json all of it."""

from dataclasses import field

import tyro

from ..diagnosis import doctor
from ..evaluation import evaluate
from ..geometry import map_latents
from ..knobs import knob
from ..library import load_sae
from ..models import load_model
from ..runs import Run
from ..splitting import split
from . import say
from .commands import options, parsed


def run_evaluate(argv: list[str], as_json: bool) -> None:
    """`evaluate RUN`: the numbers of a trained SAE on held-out text."""
    more = {
        "run": (tyro.conf.Positional[str], field()),
        "model": (str | None, knob(None, help="the model; None: the one it was trained on")),
        "tokens": (int, knob(200_000, 1, 10**10, "held-out tokens")),
        "split": (str, knob("test", choices=("train", "validation", "test"), help="of the text")),
    }
    given = parsed(options("EvaluateOptions", doc="Measure a trained SAE on held-out text.", **more), argv, "evaluate")
    sae = load_sae(given.run)
    lm = load_model(given.model or sae.origin.get("model", "tiny"), dtype=sae.origin.get("dtype"))
    found = evaluate(sae.to(lm.device), lm, tokens=given.tokens, split=given.split)
    say(found.to_json(), as_json, f"{found!r}\n{found.table.to_string(index=False)}")


def run_doctor(argv: list[str], as_json: bool) -> None:
    """`doctor RUN`: by the run's record alone, or with --model also by what its SAE does on held-out text."""
    more = {
        "run": (tyro.conf.Positional[str], field()),
        "model": (str | None, knob(None, help="the model it was trained on, to measure the SAE with; None: do not")),
        "tokens": (int, knob(20_000, 1, 10**10, "held-out tokens to measure on")),
    }
    given = parsed(options("DoctorOptions", doc="What went wrong in a run, and what to do.", **more), argv, "doctor")
    dtype = Run(given.run).config.get("source", {}).get("dtype")
    found = doctor(given.run, load_model(given.model, dtype=dtype) if given.model else None, tokens=given.tokens)
    say(found.to_json(), as_json, repr(found))


def run_split(argv: list[str], as_json: bool) -> None:
    """`split RUN RUN [--null RUN RUN]`: widths of one site, or one run with levels."""
    more = {
        "runs": (tyro.conf.Positional[tuple[str, ...]], field()),
        "null": (tuple[str, ...], knob((), help="two runs of one width, two for every width but the first")),
        "model": (str | None, knob(None, help="the model; None: the one they were trained on")),
        "tokens": (int, knob(100_000, 1, 10**10, "held-out tokens to choose parents on, and as many to count on")),
    }
    given = parsed(options("SplitOptions", doc="What latents became in a wider SAE.", **more), argv, "split")
    saes, null = ([load_sae(run) for run in runs] for runs in (given.runs, given.null))
    lm = load_model(given.model) if given.model else None
    found = split(saes, lm, null=null, tokens=given.tokens)
    say(found.to_json(), as_json, f"{found!r}\n{found.table.to_string(index=False, float_format='{:.3f}'.format)}")


def run_geometry(argv: list[str], as_json: bool) -> None:
    """`geometry RUN ...`: dimensions, nearest cosines, and how far a map of the directions can be trusted."""
    more = {"runs": (tyro.conf.Positional[tuple[str, ...]], field())}
    given = parsed(options("GeometryOptions", doc="Map the directions of several SAEs.", **more), argv, "geometry")
    found = map_latents([load_sae(run) for run in given.runs]).wait()
    said = ", ".join(f"{name} {value:.3f}" for name, value in found.trustworthiness.items())
    say(found.to_json(), as_json, f"{found!r}\n{found.table.T.to_string(header=False)}\ntrustworthiness: {said}")
