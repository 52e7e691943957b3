"""Whether an SAE of a base model holds on its fine-tuned sibling, and in the chat format that the sibling was tuned on.

The same dialogues are read three times: by the base model and by the sibling as plain text, the turns apart by a blank
line, and by the sibling in its chat format. Each stands alone in a row, cut where the context ends. The format's own
special tokens are left out of every number as all special tokens are, so that the same words are compared.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd

from .. import plots
from ..intervals import DocSums, Estimate
from ..models import LM
from ..saes import SAE
from ..sites import Site
from ..tiny import world
from .numbers import COST, MEANS, RECONSTRUCTION, Rebuilding, costs, fitting, substitutes

Dialogue = list[dict[str, str]]  # {"role": ..., "content": ...}, as chat templates take them
BASE, SIBLING, CHAT = "base", "sibling", "sibling, chat format"
LENGTH = {"length": lambda s: np.sqrt(s["square"] / s["n"])}  # of activations: fine-tuning may rescale them
KINDS = (LENGTH | RECONSTRUCTION, COST)


@dataclass(frozen=True)
class Transfer:
    """Numbers of one SAE on a base model, on its sibling, and on the sibling in chat format.

    Attributes:
        numbers: by reader, each number with its interval.
        changes: by reader, each number less that of the reader before it, on the same dialogues: what the fine-tuning,
            then what the format changed.
    """

    numbers: dict[str, dict[str, Estimate]]
    changes: dict[str, dict[str, Estimate]]
    about: dict[str, Any]

    @property
    def table(self) -> pd.DataFrame:
        """One row per number and reader; `change` is from the row before."""
        rows = []
        for name in self.numbers[BASE]:
            for on, of in self.numbers.items():
                row = {"number": name, "on": on} | of[name].to_json()
                change = self.changes[on][name].to_json() if on in self.changes else {}
                rows.append(row | {key.replace("value", "change"): v for key, v in _named(change).items()})
        return pd.DataFrame(rows)

    @property
    def figure(self):
        """A panel per number, a mark per reader (plotly); length is the root mean square over tokens."""
        shown = self.table.query("number in ('length', 'l0', 'fvu', 'ce_increase')")
        return plots.numbers(shown, "on", {"on": "read by", **MEANS})

    def to_json(self) -> dict[str, Any]:
        numbers, changes = (
            {on: {name: e.to_json() for name, e in of.items()} for on, of in found.items()}
            for found in (self.numbers, self.changes)
        )
        return {"numbers": numbers, "changes": changes, "about": self.about}

    def __repr__(self) -> str:
        shown = "; ".join(f"{on}: fvu {of['fvu']}, ce increase {of['ce_increase']}" for on, of in self.numbers.items())
        return f"Transfer at {self.about['site']} over {self.about['dialogues']} dialogues. {shown}"


def _named(change: dict[str, float]) -> dict[str, float]:
    return {key if key == "value" else f"change_{key}": value for key, value in change.items()}


def transfer(
    sae: SAE,
    base: LM,
    sibling: LM,
    *,
    dialogues: Iterable[Dialogue] | None = None,
    site: str | Site | None = None,
    split: str = "test",
    tokens: int = 50_000,
    seed: int = 0,
) -> Transfer:
    """Measures an SAE of `base` on `sibling`, a model fine-tuned from it, without and with its chat format.

    Args:
        dialogues: lists of messages; default: requests of the labelled world with their answers, of `split` and `seed`.
        tokens: of plain text that the dialogues have at least, if there are so many.

    Raises:
        ValueError: a sibling without a chat format or of another tokenizer, no dialogue, and as `evaluate`.
    """
    site = fitting(sae, base, site)
    fitting(sae, sibling, site)
    if sibling.tokenizer.chat_template is None:
        raise ValueError(f"{sibling.name} has no chat format. Give the fine-tuned model, whose tokenizer has one.")
    if not base.tokenizer.get_vocab().items() <= sibling.tokenizer.get_vocab().items():
        raise ValueError(f"{sibling.name} and {base.name} read different tokens: only siblings are compared.")
    if dialogues is None:
        dialogues = (request.messages for request in world.requests(seed, split))
    plain, chat = _texts(base, sibling, dialogues, tokens)
    readers = {BASE: (base, plain), SIBLING: (sibling, plain), CHAT: (sibling, chat)}
    sums = {on: _measured(sae, lm, site, texts) for on, (lm, texts) in readers.items()}
    numbers = {
        on: {n: of.estimate(f) for of, fs in zip(found, KINDS) for n, f in fs.items()} for on, found in sums.items()
    }
    changes = {
        after: {
            name: old.change(new, f) for old, new, fs in zip(sums[before], sums[after], KINDS) for name, f in fs.items()
        }
        for before, after in ((BASE, SIBLING), (SIBLING, CHAT))
    }
    about = {"site": str(site), "base": base.name, "sibling": sibling.name, "split": split, "dialogues": len(plain)}
    about |= {"tokens": {on: int(found[0].sums["n"].sum()) for on, found in sums.items()}, "seed": seed}
    return Transfer(numbers, changes, about)


def _texts(base: LM, sibling: LM, dialogues: Iterable[Dialogue], tokens: int) -> tuple[list[str], list[str]]:
    """The dialogues as plain text and in the chat format, as many as have `tokens` tokens."""
    plain, chat, seen = [], [], 0
    for messages in dialogues:
        plain.append("\n\n".join(message["content"] for message in messages))
        chat.append(sibling.tokenizer.apply_chat_template(messages, tokenize=False))
        seen += len(base.tokenizer(plain[-1], add_special_tokens=False, verbose=False)["input_ids"])
        if seen >= tokens:
            break
    if not seen:
        raise ValueError(
            "No dialogue holds a token. Give lists of messages: [[{'role': 'user', 'content': ...}, ...]]."
        )
    return plain, chat


def _measured(sae: SAE, lm: LM, site: Site, texts: list[str]) -> tuple[DocSums, DocSums]:
    """Sums of reconstruction and splice, a text each in the order given."""
    rebuilt, spliced, rebuild, device = DocSums(), DocSums(), Rebuilding(sae), sae.W_dec.device
    for first, some in _batches(texts, max(1, lm.at_once // 256)):
        ids, mask = (a[:, : lm.context] for a in lm.encode(some))
        keep = mask & ~lm.special(ids)
        doc = np.broadcast_to(np.arange(first, first + len(ids))[:, None], ids.shape)
        read = lm.read(ids, [site, site.target], mask=mask)
        x, y = (read[s][keep.to(read[s].device)].to(device).float() for s in (site, site.target))
        rebuilt.add(doc[keep.numpy()], **rebuild(x, y)[1])
        counts, columns = costs(lm, ids, mask, keep, substitutes({site: sae}, keep))
        spliced.add(doc[counts], **columns)
    return rebuilt, spliced


def _batches(texts: list[str], n: int) -> Iterator[tuple[int, list[str]]]:
    running = iter(enumerate(texts))
    while some := list(islice(running, n)):
        yield some[0][0], [text for _, text in some]
