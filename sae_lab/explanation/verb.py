"""The verb: explains latents on one split of the text and scores what was said on another."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..models import LM
from ..reading import fitting, held_out, own_text
from ..runs import Lines, Run
from ..saes import SAE
from .examples import Reading, Sample, Sampler, read
from .judges import Asking, Judge, Ruled
from .results import Explained, Explanations
from .rules import Explanation, label_rule, token_rule
from .scorers import SCORERS
from .speakers import Speaker, Unanswered
from .trials import Embedder, Tools, Trial

LEAST = 10  # windows of each split that a latent fires in, below which it is not explained
QUICK = ("detection", "fuzzing", "simulation", "embedding", "logistic")  # those that need no language model
SPLITS = ("validation", "test")  # explained on, judged on

Explainer = Callable[[Reading, int, Sample], Explanation]
RULES: dict[str, Explainer] = {"rule": token_rule, "label": label_rule}


def explain(
    sae: SAE | Run | str | Path,
    lm: LM,
    latents: Iterable[int] | None = None,
    *,
    explainer: str | Speaker | Explainer | Mapping[int, str] = "rule",
    judge: str | Speaker | Judge | None = None,
    scorers: Iterable[str] = QUICK,
    embedder: Embedder | None = None,
    site: Any = None,
    text: Any = None,
    tokens: int = 100_000,
    n: int = 50,
    width: int = 32,
    seed: int = 0,
    **options: Any,
) -> Explanations:
    """Says in words what latents fire on, and scores that on text that the explainer did not see.

    Of a run each latent's result is kept in its folder at once: the same call goes on where it was broken off, if it
    names no function or object of your own.

    Args:
        latents: which ones; default: all that fire often enough.
        explainer: "rule" (tokens), "label" (of the world), an `Endpoint`, a `Local` model, your own words by latent, or
            a function of a `Reading`, a latent and its `Sample`.
        judge: "rule", an `Endpoint`, a `Local` model, or a `Judge`; default: the explainer's own.
        scorers: names out of `SCORERS`.
        embedder: anything with `.encode(texts)`; default: letter groups.
        text: as in `sl.activations`; default: what the SAE was trained on. Explained on its validation split.
        tokens: how many are read of each split.
        n: windows, of `width` tokens, in which it fires, in which it does not, and in which only a neighbour does.

    Raises:
        ValueError: a latent, scorer or explainer that is not there; a judge that cannot read the explanations.
        Unanswered: an endpoint that does not answer; its `finished` holds what was.
    """
    run = None if isinstance(sae, SAE) else sae if isinstance(sae, Run) else Run(sae)
    sae = sae if run is None else run.sae.to(lm.device)
    scorers, (say, by), judge = _scorers(scorers), _explainer(explainer), _judge(judge, explainer)
    _readable(explainer, judge, scorers)
    wanted = _latents(explainer if latents is None and by == "given" else latents, sae.cfg.d_sae)
    site, (text, options) = fitting(sae, lm, site), own_text(sae, text, options)
    blocks = [held_out(lm, text, split, seed, **options) for split in SPLITS]
    about = {"explainer": by, "judge": judge.name, "scorers": scorers, "site": str(site), "model": lm.name}
    about |= {"tokens": tokens, "n": n, "width": width, "seed": seed, "where": repr(options.get("where"))}
    about |= blocks[1].describe() | {"column": options.get("column")}
    readings = [read(sae, lm, site, b, tokens, width) for b in blocks]
    tools = Tools(lm, site, sae.W_dec.detach(), *readings, judge, embedder)
    return _Work(tools, say, scorers, about, _kept(run, about, explainer, judge, embedder), n, seed).all(wanted)


class _Work:
    """Latent after latent."""

    def __init__(self, tools: Tools, say: Explainer, scorers: list[str], about, kept, n: int, seed: int):
        self.tools, self.say, self.scorers, self.about, self.kept, self.seed = tools, say, scorers, about, kept, seed
        self._draw = [Sampler(tools.directions, reading, n, seed) for reading in (tools.learnt, tools.held)]

    def all(self, latents: np.ndarray) -> Explanations:
        known = {row["latent"]: row for row in (self.kept.read() if self.kept else ())}
        found, refused = {}, {}
        for latent in latents.tolist():
            windows = tuple(int((r.highest(latent) > 0)[r.long].sum()) for r in (self.tools.learnt, self.tools.held))
            if min(windows) < LEAST:
                refused[latent] = f"it fires in {windows[0]} and {windows[1]} windows of the two texts, under {LEAST}"
                continue
            if latent in known:
                found[latent] = Explained.from_json(known[latent], self._draw[1](latent))
                continue
            try:
                found[latent] = self._one(latent, windows)
            except Unanswered as error:
                error.finished = Explanations(found, refused, self.about, (self.tools.learnt, self.tools.held))
                raise
            if self.kept:
                self.kept.add(found[latent].to_json())
        return Explanations(found, refused, self.about, (self.tools.learnt, self.tools.held))

    def _one(self, latent: int, windows: tuple[int, int]) -> Explained:
        shown, sample = (draw(latent) for draw in self._draw)
        explanation = self.say(self.tools.learnt, latent, shown)
        scores: dict[str, float] = {}
        for name in self.scorers:
            scores |= SCORERS[name](Trial(self.tools, explanation, sample, np.random.default_rng([self.seed, latent])))
        return Explained(explanation, scores, windows, sample)


def _scorers(names: Iterable[str]) -> list[str]:
    names = [names] if isinstance(names, str) else list(names)
    odd = next((name for name in names if name not in SCORERS), None)
    if odd is not None:
        raise ValueError(f"No scorer named {odd!r}. Known: {', '.join(SCORERS)}.")
    return names


def _explainer(given: Any) -> tuple[Explainer, str]:
    """(explainer, its name)."""
    if isinstance(given, Mapping):
        return (lambda reading, latent, sample: Explanation(latent, str(given[latent]), "given")), "given"
    if isinstance(given, str):
        if given not in RULES:
            raise ValueError(f"No explainer named {given!r}. Known: {', '.join(RULES)}, or give an Endpoint or Local.")
        return RULES[given], given
    if isinstance(given, Speaker):
        return Asking(given), given.name
    if not callable(given):
        raise ValueError(f"{given!r} explains nothing: give {', '.join(map(repr, RULES))}, an Endpoint or a function.")
    return given, getattr(given, "name", getattr(given, "__name__", type(given).__name__))


def _judge(given: Any, explainer: Any) -> Judge:
    given = (explainer if isinstance(explainer, Speaker) else "rule") if given is None else given
    if isinstance(given, Speaker):
        return Asking(given)
    if given == "rule":
        return Ruled()
    if not isinstance(given, Judge):
        raise ValueError(f"{given!r} cannot judge: give 'rule', an Endpoint, a Local model or a Judge.")
    return given


def _readable(explainer: Any, judge: Judge, scorers: list[str]) -> None:
    """Raises:
    ValueError: if words are to be judged by a rule.
    """
    odd = [name for name in scorers if name in ("detection", "fuzzing", "simulation")]
    if isinstance(explainer, Mapping | Speaker) and isinstance(judge, Ruled) and odd:
        raise ValueError(
            f"Only a language model can judge what is said in words by {', '.join(odd)}: give judge=Endpoint(...) or "
            "Local(...), or scorers=['embedding', 'logistic']."
        )


def _latents(given: Iterable[int] | None, d_sae: int) -> np.ndarray:
    found = np.arange(d_sae) if given is None else np.unique(np.array(list(given), np.int64))
    odd = found[(found < 0) | (found >= d_sae)]
    if len(odd):
        raise ValueError(f"No latent {odd[0]}: this SAE has latents 0 to {d_sae - 1}.")
    return found


def _kept(
    run: Run | None, about: dict[str, Any], explainer: Any, judge: Judge, embedder: Embedder | None
) -> Lines | None:
    """Where results are kept, if names say all there is to know of who made them."""
    named = isinstance(explainer, str | Speaker | Mapping) and isinstance(judge, Asking | Ruled) and embedder is None
    if run is None or not named or about["text"] == "a function" or " at 0x" in about["where"]:  # whose, nobody knows
        return None
    words = {str(n): said for n, said in explainer.items()} if isinstance(explainer, Mapping) else {}
    return Lines(run, "explanations", about | words)
