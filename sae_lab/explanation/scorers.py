"""How good explanations are, each score on text that the explainer did not see.

A scorer takes a `Trial` and returns numbers by name; the one under its own name is the score. Those of arXiv:2410.13928
are after its text and code, but each text is a question of its own.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float

from ..models import LM
from ..models.lm import ce
from .examples import Example
from .intervening import intervention
from .judges import Asking
from .trials import Embedder, Numbers, Trial

ODD = 5  # texts of which one is the intruder
ROUNDS = 20  # of that game


def detection(trial: Trial) -> Numbers:
    """Balanced accuracy of telling texts in which the latent fires from others, and precision at its natural rate."""
    judge, s = trial.tools.judge, trial.sample
    return _told("detection", [judge.detect(trial.explanation, some) for some in (s.active, s.silent, s.hard)], s.rate)


def fuzzing(trial: Trial) -> Numbers:
    """The same of marked tokens: those that fire, against as many tokens of a text in which none does."""
    judge, s = trial.tools.judge, trial.sample
    often = max(1, round(float(np.mean([e.fires.sum() for e in s.active]))))
    marks = [[e.fires for e in s.active]]
    marks += [[_some(len(e.words), often, trial.rng) for e in some] for some in (s.silent, s.hard)]
    kinds = (s.active, s.silent, s.hard)
    return _told("fuzzing", [judge.fuzz(trial.explanation, some, m) for some, m in zip(kinds, marks)], s.rate)


def simulation(trial: Trial) -> Numbers:
    """Pearson correlation of simulated and true activations over the tokens of active and of silent texts."""
    s = trial.sample
    examples = [*s.active, *s.silent]
    predicted = np.concatenate(trial.tools.judge.simulate(trial.explanation, examples))
    true, many = np.concatenate([e.values for e in examples]), sum(len(e.words) for e in s.active)
    return {
        "simulation": correlation(predicted, true),
        "simulation of active texts": correlation(predicted[:many], true[:many]),
    }


def surprisal(trial: Trial) -> Numbers:
    """How well texts in which the latent fires are told from others by how much the explanation makes the studied model
    expect them: the area under the ROC curve."""
    lm, s = trial.tools.lm, trial.sample
    told, nothing = (f"This text has {what} in it:\n" for what in (trial.explanation.text, "something"))
    gains = [
        np.array([_loss(lm, nothing, e) - _loss(lm, told, e) for e in some]) for some in (s.active, s.silent, s.hard)
    ]
    return {"surprisal": area(gains[0], gains[1]), "surprisal, hard": area(gains[0], gains[2])}


def embedding(trial: Trial) -> Numbers:
    """The same by the cosine of a text with the explanation."""
    s, said = trial.sample, [trial.explanation.text]
    near = [_cosines(trial.tools.embedder, said, [e.text for e in some])[0] for some in (s.active, s.silent, s.hard)]
    return {"embedding": area(near[0], near[1]), "embedding, hard": area(near[0], near[2])}


def intruder(trial: Trial) -> Numbers:
    """Share of rounds in which the one text of five is found that the latent does not fire in; chance is 0.2.

    It needs no explanation. A language model is asked; without one it is the text least like the others.
    """
    s, judge, right = trial.sample, trial.tools.judge, []
    if len(s.active) < ODD - 1 or not s.silent:
        return {"intruder": float("nan")}
    often = max(1, round(float(np.mean([e.fires.sum() for e in s.active]))))
    for _ in range(ROUNDS):
        some = [s.active[i] for i in trial.rng.choice(len(s.active), ODD - 1, replace=False)]
        odd, place = s.silent[trial.rng.integers(len(s.silent))], int(trial.rng.integers(ODD))
        if isinstance(judge, Asking):
            texts = [e.marked() for e in some]
            texts.insert(place, odd.marked(_some(len(odd.words), often, trial.rng)))
            found = judge.odd(texts)
        else:
            texts = [e.text for e in some]
            texts.insert(place, odd.text)
            found = -_cosines(trial.tools.embedder, texts, texts).sum(1)
        right.append(np.nan if np.isnan(found).any() else float(found.argmax() == place))
    return {"intruder": _mean(np.array(right)), "intruder, answered": float(np.isfinite(right).mean())}


def logistic(trial: Trial) -> Numbers:
    """How well the tokens in a window alone tell whether the latent fires there: a logistic regression, learnt on the
    explainer's split, no explanation and no language model. Area under the ROC curve over all held-out windows."""
    from sklearn.linear_model import LogisticRegression

    learnt, held, latent = trial.tools.learnt, trial.tools.held, trial.explanation.latent
    y = learnt.highest(latent) > 0
    if y.all() or not y.any():
        return {"logistic": float("nan")}
    some = _balanced(y, trial.rng)
    model = LogisticRegression(solver="liblinear", class_weight="balanced").fit(learnt.bags[some], y[some])
    told, truth = model.decision_function(held.bags), held.highest(latent) > 0
    return {"logistic": area(told[truth], told[~truth])}


SCORERS: dict[str, Callable[[Trial], Numbers]] = {
    s.__name__: s for s in (detection, fuzzing, simulation, surprisal, embedding, intruder, logistic, intervention)
}
CHANCE = {"detection": 0.5, "fuzzing": 0.5, "simulation": 0.0, "surprisal": 0.5, "embedding": 0.5}
CHANCE |= {"intruder": 1 / ODD, "logistic": 0.5, "intervention": 0.0}


def _told(name: str, likely: Sequence[Float[np.ndarray, " _"]], rate: float) -> Numbers:
    """Scores from how likely the judge found active, silent and hard texts to be active."""
    active, silent = likely[:2]
    recall, wrong, fooled = (_mean(np.where(np.isnan(p), np.nan, p > 0.5)) for p in likely)
    called = rate * recall + (1 - rate) * wrong
    return {
        name: (recall + 1 - wrong) / 2,
        f"{name}, hard": (recall + 1 - fooled) / 2,
        f"{name}, recall": recall,
        f"{name}, precision": rate * recall / called if called else float("nan"),
        f"{name}, area": area(active, silent),
        f"{name}, answered": float(np.isfinite(np.concatenate(likely)).mean()),
    }


def area(high: Float[np.ndarray, " high"], low: Float[np.ndarray, " low"]) -> float:
    """Area under the ROC curve: the share of pairs in which the first is higher, ties counting half."""
    from scipy.stats import rankdata

    high, low = high[np.isfinite(high)], low[np.isfinite(low)]
    if not len(high) or not len(low):
        return float("nan")
    ranks = rankdata(np.concatenate([high, low]))[: len(high)]
    return float((ranks.mean() - (len(high) + 1) / 2) / len(low))


def correlation(predicted: Float[np.ndarray, " n"], true: Float[np.ndarray, " n"]) -> float:
    """Pearson's, over what was predicted at all; 0 for a prediction that never varies."""
    known = np.isfinite(predicted)
    if known.sum() < 2 or np.ptp(true[known]) == 0:
        return float("nan")
    return float(np.corrcoef(predicted[known], true[known])[0, 1]) if np.ptp(predicted[known]) else 0.0


def _mean(values: Float[np.ndarray, " n"]) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def _some(n: int, often: int, rng: np.random.Generator) -> Bool[np.ndarray, " tok"]:
    """So many of n tokens, at random."""
    on = np.zeros(n, bool)
    on[rng.choice(n, min(n, often), replace=False)] = True
    return on


def _balanced(y: Bool[np.ndarray, " windows"], rng: np.random.Generator, most: int = 1000) -> np.ndarray:
    """Rows of both kinds, at most so many of each."""
    kinds = [rng.permutation(np.flatnonzero(y == side))[:most] for side in (True, False)]
    return np.sort(np.concatenate(kinds))


def _cosines(embedder: Embedder, a: list[str], b: list[str]) -> Float[np.ndarray, "a b"]:
    from sklearn.metrics.pairwise import cosine_similarity

    if not a or not b:
        return np.zeros((len(a), len(b)))
    rows = [embedder.encode(texts) for texts in (a, b)]
    return cosine_similarity(*(r.cpu().numpy() if isinstance(r, torch.Tensor) else r for r in rows))


@torch.no_grad()
def _loss(lm: LM, prefix: str, example: Example) -> float:
    """Mean surprise, in nats per token, of a window behind a prefix."""
    ids, _ = lm.encode(prefix)
    own = torch.from_numpy(example.reading.ids[example.span]).long()[None]
    whole = torch.cat([ids, own], 1)[:, : lm.context]
    return float(ce(lm.logits(whole).cpu(), whole)[0, ids.shape[1] - 1 : -1].mean())
