"""The labelled world: an endless seeded stream of short texts in four languages whose every word and span is labelled.

    for text in world.texts(seed=0, split="train"): text.text, text.labels(), text.logp

A text is a pure function of (seed, split, index). Which split a text may appear in is the residue of its own hash, so
no text can be in two splits; `logp` is that of the generator's choices given the split, in nats.
"""

import math
from collections.abc import Callable, Iterator
from functools import cache
from hashlib import blake2b
from importlib import import_module
from zlib import crc32

from .engine import KINDS, Draw, Kind, Table, kind
from .language import languages, world
from .scenes import plots, scene, shapes, told
from .text import Concepts, Text, token_labels

__all__ = [
    "Concepts",
    "Text",
    "block",
    "concepts",
    "kinds",
    "languages",
    "recognisable",
    "recognise",
    "requests",
    "texts",
    "token_labels",
]

NAMES = {"en": "english", "fr": "french", "de": "german", "es": "spanish"}
LANGUAGE_WEIGHT = {"en": 0.81, "fr": 0.06, "de": 0.07, "es": 0.06}
RESIDUES = {"test": range(4), "validation": range(4, 8), "train": range(8, 16)}  # held-out text costs four tries
PATIENCE = 20_000  # texts tried for one that `where` asks for


def register_scenes():
    """Every shape is a kind of text."""
    for shape in shapes().values():
        kind(shape.name, shape.weight, None)(lambda page, shape=shape: scene(page, shape))


register_scenes()
import_module(f"{__name__}.kinds_prose")  # registers its kinds


def kinds() -> list[str]:
    """The names of the kinds of text."""
    return sorted(KINDS)


def speaks(one: Kind, language: str) -> bool:
    """Whether a kind can be written in a language."""
    if one.languages is not None:
        return language in one.languages and language in languages()
    return told(language, one.name) is not None


@cache
def mixture(wanted_kinds: tuple | None = None, wanted_languages: tuple | None = None) -> Table:
    """(kind, language) pairs with their probabilities; a kind's weight is shared among its languages."""
    pairs, weights = [], []
    for one in KINDS.values():
        able = [x for x in languages() if speaks(one, x)]
        total = sum(LANGUAGE_WEIGHT[x] for x in able)
        for language in able:
            if (not wanted_kinds or one.name in wanted_kinds) and (
                not wanted_languages or language in wanted_languages
            ):
                pairs.append((one, language))
                weights.append(one.weight * LANGUAGE_WEIGHT[language] / total)
    if not pairs:
        raise ValueError(
            f"No kind of text {wanted_kinds} in {wanted_languages}. Kinds: {kinds()}; languages: {languages()}."
        )
    return Table(pairs, weights)


def text(index: int, seed: int = 0, split: str = "train", pairs: Table | None = None) -> Text:
    """The split's text number `index`."""
    if split not in RESIDUES:
        raise ValueError(f"No split {split!r}. Known: {', '.join(RESIDUES)}.")
    residues, attempt = RESIDUES[split], 0
    pairs = pairs or mixture()
    while True:
        key = blake2b(f"{seed}/{split}/{index}/{attempt}".encode(), digest_size=8).digest()
        page, one = write(Draw(int.from_bytes(key)), pairs)
        joined = page.text()
        if crc32(joined.encode()) % 16 in residues:
            logp = page.draw.logp - math.log(len(residues) / 16)
            return Text(joined, one.name, page.language, logp, page.chunks, page.marks)
        attempt += 1


def write(draw: Draw, pairs: Table):
    """A page with a text of a drawn kind and language, and the kind."""
    one, language = draw.table(pairs)
    page = world(language).page(draw)
    page.register = one.name
    one.write(page)
    whole = len(page.chunks)
    page.marks.append((0, whole, f"language.{NAMES[language]}"))
    page.marks.append((0, whole, f"register.{page.register}"))
    topic = one.topic or (
        plots()[page.plot].topic if page.plot and not any("topic." in m[2] for m in page.marks) else None
    )
    if topic:
        page.marks.append((0, whole, topic))
    return page, one


def block(i: int, n: int, seed: int = 0, split: str = "train") -> list[Text]:
    """The texts i * n to (i + 1) * n - 1 of the split's stream."""
    pairs = mixture()
    return [text(index, seed, split, pairs) for index in range(i * n, (i + 1) * n)]


def texts(
    seed: int = 0, split: str = "train", where=None, kinds=None, languages=None, labels: bool = True
) -> Iterator[Text]:
    """The split's endless stream of texts; with `where`, those that have (or, mapped to False, lack) given concepts.

    `where` is a concept's name or prefix, several, a mapping of names to True or False, or a function of a Text.
    `kinds` and `languages` (codes) restrict the stream by construction. Labels are made when asked for either way.
    """
    wanted = condition(where)
    kinds, languages = narrowed(where, kinds, languages)
    pairs = mixture(tuple(kinds) if kinds else None, tuple(languages) if languages else None)
    index = tried = 0
    while True:
        one = text(index, seed, split, pairs)
        index += 1
        if wanted is None or wanted(one):
            tried = 0
            yield one
        elif (tried := tried + 1) == PATIENCE:
            raise ValueError(f"No text in {PATIENCE} satisfies where={where!r}. Known concepts: world.concepts().")


def narrowed(where, kinds, languages) -> tuple:
    """The kinds and languages that can have the register and the language that `where` asks for: fewer are tried."""
    wanted = [where] if isinstance(where, str) else [] if callable(where) or not where else list(where)
    if isinstance(where, dict):
        wanted = [name for name, yes in where.items() if yes]
    for name in wanted:
        group, _, one = name.partition(".")
        if group == "language" and one in NAMES.values():
            languages = languages or [code for code, full in NAMES.items() if full == one]
        if group == "register":
            kinds = kinds or [k for k in KINDS if one == (shapes()[k].register if k in shapes() else k)] or None
    return kinds, languages


def condition(where) -> Callable[[Text], bool] | None:
    """A test of texts from texts()'s `where`."""
    if where is None or callable(where):
        return where
    if isinstance(where, str):
        where = {where: True}
    elif not isinstance(where, dict):
        where = dict.fromkeys(where, True)

    def holds(one: Text) -> bool:
        present = one.concepts()
        return all(any(n == w or n.startswith(w + ".") for n in present) == yes for w, yes in where.items())

    return holds


def concepts():
    """The tree of concepts with measured densities."""
    return import_module(f"{__name__}.tree").concepts()


def recognise(text: str, language: str | None = None) -> list[tuple[int, int, str]]:
    """(start, end, concept) read off any text, abstaining where unsure."""
    found = import_module(f"{__name__}.reading").recognise
    return found(text) if language is None else found(text, language)


def recognisable(sorts: tuple[str, ...] = ("word",)) -> list[str]:
    """Concepts that recognise finds surely and mostly enough to be steering targets; sorts: word, context, relation."""
    return import_module(f"{__name__}.reading").recognisable(sorts)


def requests(seed: int = 0, split: str = "train"):
    """Chat requests with their answers for the fine-tuned sibling."""
    return import_module(f"{__name__}.chat").requests(seed, split)
