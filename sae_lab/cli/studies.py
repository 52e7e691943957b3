"""The verbs that study what was trained. Each prints its result's table, or with --json all of it."""

from dataclasses import field

import tyro

from ..absorption import absorbed, first_letters
from ..attribution import attribute
from ..comparison import compare
from ..diagnosis import doctor
from ..evaluation import by_position, evaluate, evaluate_together, transfer
from ..geometry import map_latents
from ..knobs import knob
from ..library import load_sae
from ..meaning import agree
from ..models import LM, load_model
from ..probing import probe
from ..reading import model_of
from ..runs import Run
from ..saes import SAE
from ..splitting import split
from ..steering import MODES, Push, steer
from ..windows import contexts
from . import say
from .commands import options, parsed


def run_evaluate(argv: list[str], as_json: bool) -> None:
    """`evaluate RUN [RUN ...]`: the numbers of a trained SAE on held-out text, or of several in one splice."""
    more = {
        "run": (tyro.conf.Positional[tuple[str, ...]], field()),
        "model": (str | None, knob(None, help="the model; None: the one it was trained on")),
        "tokens": (int | None, knob(None, 1, 10**10, "held-out tokens; None: what suits the measurement")),
        "split": (str, knob("test", choices=("train", "validation", "test"), help="of the text")),
        "by": (str, knob("all", choices=("all", "position"), help="one number for all, or by position in a document")),
        "length": (int, knob(400, 8, 2**20, "by position: tokens a document has at least, and is cut to")),
        "chat": (bool, knob(False, help="on dialogues: its own model, then --model without and with its chat format")),
    }
    doc = "Measure a trained SAE on held-out text; several SAEs are spliced in at once."
    given = parsed(options("EvaluateOptions", doc=doc, **more), argv, "evaluate")
    if not given.run or sum([len(given.run) > 1, given.chat, given.by != "all"]) > 1:
        raise ValueError("Give one RUN, alone or with --by position or --chat; or several, to splice in at once.")
    saes = [load_sae(run) for run in given.run]
    own = saes[0].origin.get("model", "tiny")
    if given.chat and not given.model:
        raise ValueError(f"--chat needs the chat model that was made of {own}: --model tiny-chat, for example.")
    lm, how = model_of(saes[0], given.model), {"split": given.split}
    how |= {} if given.tokens is None else {"tokens": given.tokens}
    sae, *others = (sae.to(lm.device) for sae in saes)
    if others:
        found = evaluate_together([sae, *others], lm, **how)
    elif given.chat:
        found = transfer(sae, model_of(sae), lm, **how)
    elif given.by == "position":
        found = by_position(sae, lm, length=given.length, **how)
    else:
        found = evaluate(sae, lm, **how)
    say(found.to_json(), as_json, f"{found!r}\n{found.table.to_string(index=False)}")


def run_agree(argv: list[str], as_json: bool) -> None:
    """`agree RUN RUN`: whether matched latents of two seeds mean the same."""
    more = {
        "run": (tyro.conf.Positional[tuple[str, str]], field()),
        "tokens": (int, knob(100_000, 1, 10**10, "tokens of the labelled world, of each of two splits")),
    }
    doc = "Match the latents of two SAEs; what the pairs agree on, by cosine."
    given = parsed(options("AgreeOptions", doc=doc, **more), argv, "agree")
    a, b = map(load_sae, given.run)
    lm = model_of(a)
    found = agree(a.to(lm.device), b.to(lm.device), lm, tokens=given.tokens)
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
    first = load_sae(given.runs[0]) if given.runs else None
    known = first and (given.model or first.origin.get("model"))
    lm = model_of(first, given.model) if known and given.tokens else None
    runs, asked = list(given.runs), {"threshold": given.threshold, "trajectory": given.trajectory}
    found = compare(runs, lm, tokens=max(1, given.tokens), **asked)
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
    found = found or contexts(run, model_of(run.sae, given.model), tokens=given.tokens, split=given.split)
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
    lm = model_of(sae, given.model)
    found = attribute(sae.to(lm.device), lm, given.prompt, "ce" if given.of == ("ce",) else given.of, top=given.top)
    said = f"{found.about['of']} {found.clean:.4g}; gradients add up to {found.completeness:.1%} of it all"
    say(found.to_json(), as_json, f"{said}\n{found.table.to_string(index=False, na_rep='')}")


def run_steer(argv: list[str], as_json: bool) -> None:
    """`steer RUN PROMPT --latent 12 --mode add --strength 4`: texts untouched and with latents pushed."""
    more = {
        "run": (tyro.conf.Positional[str], field()),
        "prompt": (tyro.conf.Positional[str], field()),
        "latent": (tuple[int, ...], field()),
        "mode": (tuple[str, ...], knob(("add",), help=f"one for all, or one each: {', '.join(MODES)}")),
        "strength": (tuple[float, ...], knob((1.0,), help="one for all, or one each; in units of its maximum")),
        "unit": (float | None, knob(None, help="what strength 1 is; None: the latent's maximum on validation text")),
        "positions": (str, knob("all", help="all, generated, last (of the prompt), or 3:7 of the prompt")),
        "scale": (tuple[float, ...], knob((1.0,), help="multiples of the strengths, a text each")),
        "max_new_tokens": (int, knob(40, 1, 10**6, "tokens to write")),
        "temperature": (float, knob(0.0, 0.0, 100.0, "of sampling; 0: the likeliest token")),
        "seed": (int, knob(0, help="of sampling")),
        "model": (str | None, knob(None, help="the model; None: the one it was trained on")),
    }
    given = parsed(options("SteerOptions", doc="Push latents while the model writes.", **more), argv, "steer")
    each = [of * len(given.latent) if len(of) == 1 else of for of in (given.mode, given.strength)]
    if not given.latent or any(len(of) != len(given.latent) for of in each):
        raise ValueError("Give --latent, one or several, and one --mode and --strength for all or one for each.")
    pushes = [Push(i, mode, s, given.unit, given.positions) for i, mode, s in zip(given.latent, *each)]
    sae, lm = loaded(given.run, given.model)
    how = {"max_new_tokens": given.max_new_tokens, "temperature": given.temperature, "seed": given.seed}
    found = steer(sae, lm, pushes, given.prompt, scale=(None, *given.scale), **how)
    say(found.to_json(), as_json, f"{found!r}\n{found.changes.to_string(index=False, float_format='{:.4g}'.format)}")


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
    sae, lm = loaded(given.run, given.model)
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
    control = loaded(given.untrained, None) if given.untrained else None
    sae, lm = loaded(given.run, given.model)
    found = probe(sae, lm, given.labels, column=given.column, tokens=given.tokens, untrained=control)
    say(found.to_json(), as_json, f"{found!r}\n{found.table.to_string(index=False)}")


def loaded(run: str, model: str | None) -> tuple[SAE, LM]:
    """A run's SAE and the model it was trained on, or another."""
    sae = load_sae(run)
    lm = model_of(sae, model)
    return sae.to(lm.device), lm
