"""The verbs that study what was trained. Each prints its result's table, or with --json all of it."""

from dataclasses import field

import tyro

from ..absorption import absorbed, first_letters
from ..diagnosis import doctor
from ..evaluation import evaluate
from ..knobs import knob
from ..library import load_sae
from ..models import LM, load_model
from ..probing import probe
from ..runs import Run
from ..saes import SAE
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
    found = evaluate(*_loaded(given.run, given.model), tokens=given.tokens, split=given.split)
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


def run_absorption(argv: list[str], as_json: bool) -> None:
    """`absorption RUN`: on the world's tree, or with --letters on first letters."""
    more = {
        "run": (tyro.conf.Positional[str], field()),
        "model": (str | None, knob(None, help="the model; None: the one it was trained on")),
        "letters": (
            str | None,
            knob(None, choices=(None, "prompt", "context"), help="first letters instead, read in prompts or in text"),
        ),
        "tokens": (int, knob(100_000, 1, 10**10, "tokens of each split")),
    }
    doc = "How often a latent falls silent where a more special one fires in its stead."
    given = parsed(options("AbsorptionOptions", doc=doc, **more), argv, "absorption")
    sae, lm = _loaded(given.run, given.model)
    if given.letters:
        found = first_letters(sae, lm, given.letters, tokens=given.tokens)
    else:
        found = absorbed(sae, lm, tokens=given.tokens)
    say(found.to_json(), as_json, f"{found!r}\n{found.table.to_string(index=False)}")


def run_probe(argv: list[str], as_json: bool) -> None:
    """`probe RUN`: sparse probes for the world's concepts, or with --labels for those of a file."""
    more = {
        "run": (tyro.conf.Positional[str], field()),
        "model": (str | None, knob(None, help="the model; None: the one it was trained on")),
        "labels": (str, knob("world", help="world, or a .csv, .jsonl or .parquet file with a column text")),
        "column": (str, knob("label", help="of the file: the labels, of texts or one for each of the row's tokens")),
        "untrained": (str | None, knob(None, help="a run of the same shape on untrained:MODEL, to compare with")),
        "tokens": (int, knob(50_000, 1, 10**10, "tokens of the world, in each of two splits")),
    }
    given = parsed(options("ProbeOptions", doc="How well 1, 2 or 5 latents tell labels.", **more), argv, "probe")
    control = _loaded(given.untrained, None) if given.untrained else None
    sae, lm = _loaded(given.run, given.model)
    found = probe(sae, lm, given.labels, column=given.column, tokens=given.tokens, untrained=control)
    say(found.to_json(), as_json, f"{found!r}\n{found.table.to_string(index=False)}")


def _loaded(run: str, model: str | None) -> tuple[SAE, LM]:
    """A run's SAE and the model it was trained on, or another."""
    sae = load_sae(run)
    lm = load_model(model or sae.origin.get("model", "tiny"), dtype=sae.origin.get("dtype"))
    return sae.to(lm.device), lm
