"""Explanations that a machine can check: a few tokens, what follows a few tokens, or a label of the text."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from .examples import Reading, Sample

MOST = 10  # tokens that a rule names
OFTEN = 3  # firings that each of them must name: fewer are an accident of the text
TAIL = 0.05  # of the firings that the tokens name, what the rarest of them may be left out for
SAID = {"token": "the", "after": "what follows the"}


@dataclass(frozen=True)
class Rule:
    """What activation is predicted of a token.

    Attributes:
        of: "token", "after" or "label": what is looked at: its id, the id of the token before it, its labels.
        value: the activation predicted for each id, or number of a label, that counts; 0 for any other.
    """

    of: str
    value: dict[int, float]

    def on(self, reading: Reading) -> Float[np.ndarray, " tok"]:
        """The activation predicted on each token.

        Raises:
            ValueError: a rule of labels on a text without them.
        """
        if self.of == "label":
            (label, value), *_ = self.value.items()
            if reading.labels is None:
                raise ValueError("A label explains nothing in unlabelled text: take text='world', or explainer='rule'.")
            return reading.labels[:, [label]].toarray()[:, 0] * value
        table = np.zeros(reading.vocab + 1)
        table[list(self.value)] = list(self.value.values())
        return table[reading.ids if self.of == "token" else reading.before]


@dataclass(frozen=True)
class Explanation:
    """What a latent is said to fire on.

    Attributes:
        by: the explainer.
        rule: the same, if a machine can check it.
    """

    latent: int
    text: str
    by: str
    rule: Rule | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> "Explanation":
        rule = saved["rule"]
        value = {int(key): value for key, value in rule["value"].items()} if rule else {}
        return cls(**saved | {"rule": Rule(rule["of"], value) if rule else None})

    def __repr__(self) -> str:
        return f"latent {self.latent}: {self.text}"


def token_rule(reading: Reading, latent: int, sample: Sample | None = None) -> Explanation:
    """The tokens, or those before it, that name a latent's firings best: at most 10, by F1, no language model asked."""
    found = {"token": _best(reading, latent, reading.ids), "after": _best(reading, latent, reading.before)}
    of = max(found, key=lambda name: found[name][0])
    value = found[of][1]
    words = ", ".join(repr(_word(reading, key, of)) for key in value)
    return Explanation(latent, f"{SAID[of]} token{'s' * (len(value) > 1)} {words}", "rule", Rule(of, value))


def label_rule(reading: Reading, latent: int, sample: Sample | None = None) -> Explanation:
    """The label of the text that names a latent's firings best, by F1.

    Raises:
        ValueError: unlabelled text.
    """
    if reading.labels is None:
        raise ValueError("This text has no labels to explain by: take text='world', or explainer='rule'.")
    token, value = reading.column(latent)
    fired, often = reading.by_label[token], np.diff(reading.labels.indptr)
    hits = np.bincount(fired.indices, minlength=len(often))
    best = int((2 * hits / np.maximum(often + len(token), 1)).argmax())
    predicted = float(fired[:, [best]].toarray()[:, 0] @ value / max(often[best], 1))
    return Explanation(latent, reading.names[best], "label", Rule("label", {best: predicted}))


def _best(reading: Reading, latent: int, keys: Int[np.ndarray, " tok"]) -> tuple[float, dict[int, float]]:
    """(F1, mean activation on each) of the keys that name a latent's firings best: of those that do together, the ones
    that name most of them."""
    token, value = reading.column(latent)
    often, hit = (np.bincount(k, minlength=reading.vocab + 1) for k in (keys, keys[token]))
    total = np.bincount(keys[token], value, minlength=reading.vocab + 1)
    some = np.flatnonzero(hit[: reading.vocab] >= OFTEN)
    if not len(some):
        return 0.0, {}
    some = some[np.argsort(-hit[some] / often[some], kind="stable")]
    reached = 2 * hit[some].cumsum() / (often[some].cumsum() + len(token))
    some = some[: int(reached.argmax()) + 1]
    some = some[np.argsort(-hit[some], kind="stable")]
    before = hit[some].cumsum() - hit[some]
    some = some[before < (1 - TAIL) * hit[some].sum()][:MOST]
    f1 = 2 * hit[some].sum() / (often[some].sum() + len(token))
    return float(f1), dict(zip(some.tolist(), (total[some] / often[some]).tolist()))


def _word(reading: Reading, key: int, of: str) -> str:
    """The text of a token, as it stands in the reading."""
    if of == "token":
        return reading.words[int((reading.ids == key).argmax())]
    return reading.words[int((reading.before == key).argmax()) - 1]
