"""The verbs that put latents into words, and ask what scores of those are worth."""

from dataclasses import field

import tyro

from ..explanation import SCORERS, Endpoint, explain
from ..explanation.verb import QUICK
from ..knobs import knob
from ..library import load_sae
from ..runs import Run
from ..validity import validate
from . import say
from .commands import options, parsed
from .studies import loaded

LATENTS = (tuple[int, ...], knob((), help="which ones; none named: all that fire often enough"))


def run_explain(argv: list[str], as_json: bool) -> None:
    """`explain RUN`: what latents fire on, in words, and how good the words are; kept in the run."""
    more = {
        "run": (tyro.conf.Positional[str], field()),
        "latents": LATENTS,
        "explainer": (str, knob("rule", choices=("rule", "label", "endpoint"), help="who says what they fire on")),
        "judge": (str, knob("own", choices=("own", "rule", "endpoint"), help="who judges that; own: the explainer")),
        "endpoint": (str | None, knob(None, help="an OpenAI-compatible server: https://api.example.org/v1")),
        "asks": (str, knob("default", help="the model to ask there")),
        "key": (str, knob("OPENAI_API_KEY", help="the environment variable that holds its key")),
        "scorers": (tuple[str, ...], knob(QUICK, help=f"out of {', '.join(SCORERS)}")),
        "tokens": (int, knob(100_000, 1, 10**10, "tokens of each split: validation to explain, test to judge")),
        "model": (str | None, knob(None, help="the model that is studied; None: the one it was trained on")),
    }
    given = parsed(options("ExplainOptions", doc="Explain latents, and score that.", **more), argv, "explain")
    if "endpoint" in (given.explainer, given.judge) and not given.endpoint:
        raise ValueError("Nobody to ask: name a server with --endpoint https://api.example.org/v1 and --asks MODEL.")
    asked = Endpoint(given.endpoint, given.asks, given.key) if given.endpoint else None
    who = {"endpoint": asked, "own": None}
    _, lm = loaded(given.run, given.model)
    found = explain(
        Run(given.run),
        lm,
        given.latents or None,
        explainer=who.get(given.explainer, given.explainer),
        judge=who.get(given.judge, given.judge),
        scorers=given.scorers,
        tokens=given.tokens,
    )
    shown = found.table.to_string(index=False, max_colwidth=70, float_format="{:.2f}".format)
    say(found.to_json(), as_json, f"{found!r}\n{shown}")


def run_validity(argv: list[str], as_json: bool) -> None:
    """`validity RUN [--peers RUN ...]`: how scores without labels rank latents, against the concepts that they name."""
    more = {
        "run": (tyro.conf.Positional[str], field()),
        "peers": (tuple[str, ...], knob((), help="runs of other seeds, for consistency")),
        "latents": LATENTS,
        "tokens": (int, knob(100_000, 1, 10**10, "tokens of each split of the world")),
    }
    given = parsed(options("ValidityOptions", doc="What scores of latents are worth.", **more), argv, "validity")
    (sae, lm), peers = loaded(given.run, None), [load_sae(run) for run in given.peers]
    found = validate(sae, lm, peers, latents=given.latents or None, tokens=given.tokens)
    say(found.to_json(), as_json, f"{found!r}\n{found.table.to_string(index=False, float_format='{:.3f}'.format)}")
