"""The verbs that study what was trained. Each prints its result's table, or with --json all of it."""

from dataclasses import field

import tyro

from ..attribution import attribute
from ..diagnosis import doctor
from ..evaluation import evaluate
from ..knobs import knob
from ..library import load_sae
from ..models import LM, load_model
from ..runs import Run
from ..saes import SAE
from ..windows import contexts
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
    lm = _model(sae, given.model)
    found = evaluate(sae.to(lm.device), lm, tokens=given.tokens, split=given.split)
    say(found.to_json(), as_json, f"{found!r}\n{found.table.to_string(index=False)}")


def run_contexts(argv: list[str], as_json: bool) -> None:
    """`contexts RUN`: gathered once and kept in the run; then cards of --latents, or a line for each latent."""
    more = {
        "run": (tyro.conf.Positional[str], field()),
        "latents": (tuple[int, ...], field(default=())),
        "model": (str | None, knob(None, help="the model; None: the one it was trained on")),
        "tokens": (int | None, knob(None, 1, 10**10, "held-out tokens; None: what the run holds, else 1,000,000")),
        "split": (str, knob("test", choices=("train", "validation", "test"), help="of the text")),
    }
    given = parsed(options("ContextsOptions", doc="What each latent fires on.", **more), argv, "contexts")
    run, made = Run(given.run), given.tokens or given.model
    try:
        found = None if made else contexts(run, split=given.split)
    except (FileNotFoundError, ValueError):  # none there, of other weights, or damaged
        found = None
    found = found or contexts(run, _model(run.sae, given.model), tokens=given.tokens, split=given.split)
    cards = [found[latent] for latent in given.latents]
    shown = "\n\n".join(map(repr, cards)) or found.summary.to_string(index=False)
    say([card.to_json() for card in cards] if cards else found.to_json(), as_json, shown)


def run_attribute(argv: list[str], as_json: bool) -> None:
    """`attribute RUN PROMPT --of A B`: effects on a difference of two logits, on one, or on the loss."""
    more = {
        "run": (tyro.conf.Positional[str], field()),
        "prompt": (tyro.conf.Positional[str], field()),
        "of": (tuple[str, ...], field(default=("ce",))),
        "top": (int, knob(20, 1, 10**6, "latents that are ablated one by one")),
        "model": (str | None, knob(None, help="the model; None: the one it was trained on")),
    }
    given = parsed(options("AttributeOptions", doc="What each latent does on a prompt.", **more), argv, "attribute")
    sae = load_sae(given.run)
    lm = _model(sae, given.model)
    found = attribute(sae.to(lm.device), lm, given.prompt, "ce" if given.of == ("ce",) else given.of, top=given.top)
    said = f"{found.about['of']} {found.clean:.4g}; gradients add up to {found.completeness:.1%} of it all"
    say(found.to_json(), as_json, f"{said}\n{found.table.to_string(index=False, na_rep='')}")


def _model(sae: SAE, name: str | None) -> LM:
    """The model asked for, else the one it was trained on."""
    return load_model(name or sae.origin.get("model", "tiny"), dtype=sae.origin.get("dtype"))


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
