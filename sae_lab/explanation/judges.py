"""Who judges an explanation: the rule itself, where a machine can check it, or a language model that is asked."""

import json
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float

from .examples import Example, Reading, Sample
from .rules import Explanation
from .speakers import Speaker

Marks = Sequence[Bool[np.ndarray, " _"]]
Likely = Float[np.ndarray, " examples"]


@runtime_checkable
class Judge(Protocol):
    """Whoever tells from an explanation where its latent fires.

    Attributes:
        name: what scores are filed under.
    """

    name: str

    def detect(self, explanation: Explanation, examples: Sequence[Example]) -> Likely:
        """How likely the latent fires anywhere in each text; NaN where the judge did not say."""
        ...

    def fuzz(self, explanation: Explanation, examples: Sequence[Example], marks: Marks) -> Likely:
        """How likely it fires on just the tokens that are marked in each."""
        ...

    def simulate(self, explanation: Explanation, examples: Sequence[Example]) -> list[Float[np.ndarray, " _"]]:
        """What it does on each token, in any unit."""
        ...


class Ruled:
    """Takes an explanation's rule by its word: no language model, and nothing that could be misread."""

    name = "rule"

    def detect(self, explanation: Explanation, examples: Sequence[Example]) -> Likely:
        peak = [float(v.max()) for v in self.simulate(explanation, examples)]
        top = max(explanation.rule.value.values(), default=1.0)
        return np.array([0.5 + 0.5 * p / top if p > 0 else 0.0 for p in peak])

    def fuzz(self, explanation: Explanation, examples: Sequence[Example], marks: Marks) -> Likely:
        """The share of marked tokens that the rule names."""
        return np.array([float((v[on] > 0).mean()) for v, on in zip(self.simulate(explanation, examples), marks)])

    def simulate(self, explanation: Explanation, examples: Sequence[Example]) -> list[Float[np.ndarray, " _"]]:
        """Raises:
        ValueError: an explanation in words alone.
        """
        if explanation.rule is None:
            raise ValueError(
                f"{explanation!r} is said in words: only a language model can judge it. Give judge=Endpoint(...) or "
                "judge=Local(...)."
            )
        readings = {id(e.reading): e.reading for e in examples}
        predicted = {key: explanation.rule.on(reading) for key, reading in readings.items()}
        return [predicted[id(e.reading)][e.span] for e in examples]


READER = (
    "You study one latent of a sparse autoencoder that reads a language model. It fires on some tokens of a text and "
    "is silent on all others."
)
DETECT = (
    "{reader} You are told what it fires on, and shown a text. Answer 1 if the latent fires anywhere in the text, "
    "else 0. Answer with that one digit."
)
FUZZ = (
    "{reader} You are told what it fires on, and shown a text with some tokens marked <<like this>>. Answer 1 if these "
    "are the tokens that it fires on, else 0. Answer with that one digit."
)
SIMULATE = (
    "{reader} You are told what it fires on, and shown the tokens of a text as a JSON list. Answer with a JSON list of "
    "as many whole numbers from 0 (silent) to 10 (its strongest), one for each token, and nothing else."
)
EXPLAIN = (
    "{reader} You are shown texts on which it fires, the strongest first: the tokens that it fires on are marked "
    "<<like this>> and followed by how strongly, from 1 to 10. Say in one short phrase what it fires on, the narrowest "
    "that fits them all and not the texts it is silent on. Answer with the phrase alone."
)
ODD = (
    "{reader} You are shown {n} numbered texts. It fires in all of them but one, on tokens that are marked <<like "
    "this>>; the marks in that one are made up. Answer with the number of that text."
)
TELL = "What it fires on: {said}\n\nText: {text}"
SHOWN, CONTRAST, WORDS = 15, 5, 60  # active and silent windows that an explainer is shown; tokens that it may answer


class Asking:
    """A language model as judge and as explainer: a question for each text, so that none gives away another."""

    def __init__(self, speaker: Speaker):
        self.speaker, self.name = speaker, speaker.name

    def detect(self, explanation: Explanation, examples: Sequence[Example]) -> Likely:
        return self._likely(DETECT, explanation, [e.text for e in examples])

    def fuzz(self, explanation: Explanation, examples: Sequence[Example], marks: Marks) -> Likely:
        return self._likely(FUZZ, explanation, [e.marked(on) for e, on in zip(examples, marks)])

    def simulate(self, explanation: Explanation, examples: Sequence[Example]) -> list[Float[np.ndarray, " _"]]:
        system = SIMULATE.format(reader=READER)

        def ask(example: Example) -> Float[np.ndarray, " _"]:
            user = TELL.format(said=explanation.text, text=json.dumps(example.words, ensure_ascii=False))
            return _numbers(self.speaker.say(system, user, 4 * len(example.words) + 8), len(example.words))

        return self._each(ask, examples)

    def odd(self, texts: Sequence[str]) -> Likely:
        """How likely each of several texts is the one in which the latent does not fire."""
        answers = [str(i) for i in range(1, len(texts) + 1)]
        user = "\n".join(f"{i}. {text}" for i, text in zip(answers, texts))
        return np.array(self.speaker.weigh(ODD.format(reader=READER, n=len(texts)), user, answers))

    def __call__(self, reading: Reading, latent: int, sample: Sample) -> Explanation:
        """Explains a latent."""
        drawn = np.linspace(0, len(sample.active) - 1, min(SHOWN, len(sample.active))).round().astype(int)
        active = [sample.active[i] for i in drawn]
        highest = max((float(e.values.max()) for e in active), default=1.0)
        shown = [f"{i}. {_graded(e, highest)}" for i, e in enumerate(active, 1)]
        silent = [f"{i}. {e.text}" for i, e in enumerate((sample.hard or sample.silent)[:CONTRAST], 1)]
        user = "Fires:\n{}\n\nSilent:\n{}".format("\n".join(shown), "\n".join(silent))
        said = self.speaker.say(EXPLAIN.format(reader=READER), user, WORDS)
        return Explanation(latent, " ".join(said.split()), self.name)

    def _likely(self, system: str, explanation: Explanation, texts: Sequence[str]) -> Likely:
        system = system.format(reader=READER)

        def ask(text: str) -> float:
            return self.speaker.weigh(system, TELL.format(said=explanation.text, text=text), ("0", "1"))[1]

        return np.array(self._each(ask, texts), float)

    def _each(self, ask: Callable, items: Sequence) -> list:
        with ThreadPoolExecutor(self.speaker.at_once) as pool:
            return list(pool.map(ask, items))  # where one goes unanswered, the rest is not asked any more


def _graded(example: Example, highest: float) -> str:
    """Marked text, with each marked token's activation from 1 to 10."""
    grade = np.ceil(10 * example.values / highest).clip(1, 10).astype(int)
    on = example.fires
    return "".join(f"<<{word}>>({g})" if here else word for word, here, g in zip(example.words, on, grade))


def _numbers(said: str, n: int) -> Float[np.ndarray, " _"]:
    """The numbers of an answer, NaN for those it does not have."""
    found = [float(x) for x in re.findall(r"\d+(?:\.\d+)?", said)][:n]
    return np.array(found + [np.nan] * (n - len(found)))
