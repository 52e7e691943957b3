"""Words and their labels: one global table of label sets, and chunks of text whose words know their row in it."""

import re
from functools import cache

PREFIXES = {"pos": "syntax.pos", "tense": "syntax.tense", "number": "syntax.number", "person": "syntax.person"}
WORD = re.compile(r"o['’]clock|(?!(?<=['’])s\b)(?:\d+(?:[.,:]\d+)*|[^\W\d_]+(?:[-_][^\W\d_]+)*|_)")
ACCENTS = str.maketrans("àâäáéèêëíîïìóôöòúûüùñçœ", "aaaaeeeeiiiioooouuuunco")
TABLE: list[frozenset] = []  # label set of every id; grows as words are first met
_ids: dict[frozenset, int] = {}


def label_id(tags) -> int:
    """The row of a set of concepts in the global table of label sets."""
    tags = frozenset(tags)
    found = _ids.get(tags)
    if found is None:
        found = _ids[tags] = len(TABLE)
        TABLE.append(tags)
    return found


@cache
def full(tag: str) -> str:
    """A concept's full path: `pos.verb` is short for `syntax.pos.verb`."""
    head, _, rest = tag.partition(".")
    return f"{PREFIXES[head]}.{rest}" if head in PREFIXES else tag


@cache
def form(word: str) -> tuple[str, ...]:
    """The concepts that a word's spelling alone gives: capital, digit, first letter."""
    first = word[0]
    if first.isdigit():
        return ("form.digit",)
    letter = first.lower().translate(ACCENTS)
    tags = (f"form.first_letter.{letter}",) if "a" <= letter <= "z" else ()
    return (*tags, "form.capital") if first.isupper() else tags


class Chunk:
    """A piece of text with its words: (start, end, label id), in characters of the piece."""

    __slots__ = ("text", "words")

    def __init__(self, text: str, words: tuple):
        self.text, self.words = text, words

    def __repr__(self) -> str:
        return f"Chunk({self.text!r})"


def chunk(pieces) -> Chunk:
    """A chunk of (text, tags) pieces; a space between two unless the left one ends in an apostrophe."""
    text, words = "", []
    for piece, tags in pieces:
        if text and text[-1] not in "'’":
            text += " "
        for found in WORD.finditer(piece):
            label = label_id({full(t) for t in tags}.union(form(found.group())))
            words.append((len(text) + found.start(), len(text) + found.end(), label))
        text += piece
    return Chunk(text, tuple(words))


def capitalised(pieces) -> list:
    """The pieces with the first letter of the first one in upper case."""
    first, tags = pieces[0]
    return [(first[:1].upper() + first[1:], tags), *pieces[1:]]
