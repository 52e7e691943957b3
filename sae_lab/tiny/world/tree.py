"""The tree of concepts: every dotted path that labels carry and its parents, with the share of tokens each covers.

python -m sae_lab.tiny.world.tree            measures the densities anew and writes data/densities.json
"""

import json
import re
from dataclasses import dataclass
from functools import cache
from itertools import islice

import numpy as np

from .language import DATA
from .text import Concepts, Text, token_labels

FILE = DATA / "densities.json"
CONTEXT = ("language", "register", "topic", "form.in_quotes", "syntax.negated", "list", "code.docstring", "code.call",
           "code.comment")  # fmt: skip
RELATION = ("discourse", "math.result", "code.result")
WIDE = 4096  # more concepts than there are
ROUGH = re.compile(r"\w+|[^\w\s]")  # tokens where there is no tokenizer yet


@dataclass(frozen=True)
class Concept:
    """A node of the tree: a word's own concept, a context's or a relation's; `density` is its share of all tokens."""

    name: str
    kind: str  # "word", "context" or "relation"
    density: float
    leaf: bool

    @property
    def parent(self) -> str | None:
        """The path one step up."""
        return self.name.rpartition(".")[0] or None

    @property
    def depth(self) -> int:
        """How many steps it lies below the root's children: `language` 0, `entity.animal.pet.dog` 3."""
        return self.name.count(".")


def under(name: str, prefixes) -> bool:
    """Whether a path is one of the prefixes or lies under one."""
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def sort(name: str) -> str:
    """Whether a concept is a word's own, a context's or a relation between words."""
    return "relation" if under(name, RELATION) else "context" if under(name, CONTEXT) else "word"


@cache
def concepts() -> tuple[Concept, ...]:
    """Every node of the tree, parents before children; densities as recorded in data/densities.json."""
    densities = json.loads(FILE.read_text(encoding="utf-8"))["densities"]
    inner = {name.rpartition(".")[0] for name in densities}
    return tuple(Concept(name, sort(name), share, name not in inner) for name, share in densities.items())


def lineage(name: str) -> list[str]:
    """The path's prefixes, itself last."""
    steps = name.split(".")
    return [".".join(steps[:n]) for n in range(1, len(steps) + 1)]


def measure(texts: int = 12_000, seed: int = 0, split: str = "train", tokenizer=None) -> dict:
    """Share of tokens that every concept, and every parent, covers in a sample.

    `tokenizer`: a `tokenizers.Tokenizer`; without one a token is a word or a mark.
    """
    from . import texts as stream

    names, lines, counts, total = Concepts(), {}, np.zeros(WIDE, dtype=np.int64), 0
    for text in islice(stream(seed, split), texts):
        offsets = offsets_of(text, tokenizer)
        total += len(offsets)
        counts += covered(text, offsets, names, lines)
    shares = {name: float(f"{counts[i] / total:.3g}") for name, i in sorted(names.ids.items())}
    return {"texts": texts, "tokens": total, "seed": seed, "split": split, "densities": shares}


def offsets_of(text: Text, tokenizer=None) -> list[tuple[int, int]]:
    """The tokens' bounds in characters."""
    if tokenizer is None:
        return [m.span() for m in ROUGH.finditer(text.text)]
    return tokenizer.encode(text.text, add_special_tokens=False).offsets


def covered(text: Text, offsets, names: Concepts, lines: dict[int, np.ndarray]) -> np.ndarray:
    """How many of a text's tokens carry each concept or one below it; `lines` keeps every concept's lineage."""
    tokens, ids = token_labels(text, offsets, names)
    for i in set(ids.tolist()) - lines.keys():
        lines[i] = np.array([names.id(name) for name in lineage(names.names[i])])
    above = [lines[i] for i in ids.tolist()]
    pairs = np.repeat(tokens, [len(a) for a in above]) * WIDE + np.concatenate(above)
    return np.bincount(np.unique(pairs) % WIDE, minlength=WIDE)


def record(tokenizer=None, **sample) -> dict:
    """Measure and write data/densities.json."""
    measured = measure(tokenizer=tokenizer, **sample)
    FILE.write_text(json.dumps(measured, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return measured


def own_tokenizer():
    """The embedded model's tokenizer, or None before it is made."""
    path = DATA.parent.parent / "model" / "tokenizer.json"
    if not path.exists():
        return None
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(path))


if __name__ == "__main__":
    done = record(own_tokenizer())
    print(f"{len(done['densities'])} concepts over {done['tokens']} tokens written to {FILE.name}")
