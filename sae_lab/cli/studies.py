"""The verbs that study what was trained. Each prints its result's table, or with --json all of it."""

from dataclasses import field

import tyro

from ..comparison import compare
from ..diagnosis import doctor
from ..evaluation import evaluate
from ..knobs import knob
from ..library import load_sae
from ..models import load_model
from ..runs import Run
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


def run_compare(argv: list[str], as_json: bool) -> None:
    """`compare RUN RUN ...`: consistency over seeds, beside chance."""
    more = {
        "runs": (tyro.conf.Positional[tuple[str, ...]], field()),
        "model": (str | None, knob(None, help="the model; None: the one they were trained on")),
        "tokens": (int, knob(200_000, 0, 10**10, "test tokens to measure densities on; 0: do not")),
        "threshold": (float, knob(0.7, 0.0, 1.0, "cosine from which on a latent is shared")),
        "trajectory": (bool, knob(False, help="whether to compare the runs' snapshots, too")),
    }
    given = parsed(options("CompareOptions", doc="What SAEs of one site have in common.", **more), argv, "compare")
    origin = load_sae(given.runs[0]).origin if given.runs else {}
    name = given.model or origin.get("model")
    lm = load_model(name, dtype=origin.get("dtype")) if name and given.tokens else None
    runs, asked = list(given.runs), {"threshold": given.threshold, "trajectory": given.trajectory}
    found = compare(runs, lm, tokens=max(1, given.tokens), **asked)
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
