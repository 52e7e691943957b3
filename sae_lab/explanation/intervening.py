"""Intervention: whether an explanation fits what the model writes when its latent is turned up."""

import numpy as np
import torch

from ..models import LM, Edit
from ..models.lm import ce
from ..shapes import Direction
from ..sites import Site
from .examples import Example
from .judges import Asking
from .rules import Explanation
from .speakers import Local
from .trials import Numbers, Trial

NEW = 30  # tokens that the model writes
TEXTS = 8  # that it continues
FIXED_KL = 0.5  # nats per token: how far steering moves its predictions
DOUBLINGS, HALVINGS = 12, 6  # of the strength, in search of that
BEHIND = "Text: {}\nWhat is special about the text: "


def intervention(trial: Trial) -> Numbers:
    """How much better the explanation fits what the model writes when it is steered along the latent's direction than
    what it writes untouched, at a strength that moves its predictions by 0.5 nats per token.

    With a rule of tokens: the share of new tokens that it names. With a local language model as judge: its log
    probability of the explanation behind the text, in nats per token. An interpretation: all that we know of the score
    of arXiv:2410.13928 is its idea.

    Raises:
        ValueError: an explanation that is neither a rule of tokens nor judged by a local model.
    """
    lm, site = trial.tools.lm, trial.tools.site
    vector = trial.tools.directions[trial.explanation.latent]
    prompts = [_half(e) for e in trial.sample.silent[:TEXTS]]
    if not prompts:
        return {"intervention": float("nan")}
    strength = strength_of(lm, site, vector, prompts)
    texts = lm.generate(prompts, [None, Edit(site.target, vector, strength)], max_new_tokens=NEW).texts
    before, after = (_fit(trial, some) for some in (texts[::2], texts[1::2]))
    return {"intervention": after - before, "intervention, untouched": before, "intervention, strength": strength}


@torch.no_grad()
def strength_of(lm: LM, site: Site, vector: Direction, prompts: list[str], aim: float = FIXED_KL) -> float:
    """How much of a vector moves the predictions on some texts by `aim` nats per token: KL(untouched || steered)."""
    ids, mask = lm.encode(prompts)
    clean = lm.clean(ids, mask)

    def moved(strength: float) -> float:
        found = lm.splice(ids, site.target, lambda x: x + strength * vector.to(x), mask=mask, clean=clean)
        return float(found.kl[found.counts].mean())

    low, high = 0.0, 1.0
    for _ in range(DOUBLINGS):
        if moved(high) >= aim:
            break
        low, high = high, 2 * high
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if moved(middle) >= aim else (middle, high)
    return high


def _half(example: Example) -> str:
    return "".join(example.words[: len(example.words) // 2 + 1])


def _fit(trial: Trial, texts: list[str]) -> float:
    """How well the explanation fits texts."""
    explanation, judge = trial.explanation, trial.tools.judge
    if explanation.rule is not None and explanation.rule.of != "label":
        return float(np.mean([_named(trial.tools.lm, explanation, text) for text in texts]))
    if not isinstance(judge, Asking) or not isinstance(judge.speaker, Local):
        raise ValueError(
            "Intervention weighs an explanation's words: it takes a rule of tokens, or judge=Local(load_model(...))."
        )
    local = judge.speaker.lm
    said = local.tokenizer(explanation.text, add_special_tokens=False)["input_ids"]
    return float(np.mean([_log_probability(local, BEHIND.format(text), said) for text in texts]))


def _named(lm: LM, explanation: Explanation, text: str) -> float:
    """Share of a text's tokens that the rule names."""
    ids = lm.tokenizer(text, add_special_tokens=False)["input_ids"]
    looked = ids if explanation.rule.of == "token" else ids[:-1]
    return float(np.isin(looked, list(explanation.rule.value)).mean()) if looked else 0.0


@torch.no_grad()
def _log_probability(lm: LM, prompt: str, said: list[int]) -> float:
    """Nats per token of `said` behind a prompt."""
    whole = torch.cat([lm.encode(prompt)[0], torch.tensor([said])], 1)[:, -lm.context :]
    return -float(ce(lm.logits(whole).cpu(), whole)[0, -len(said) - 1 : -1].mean())
