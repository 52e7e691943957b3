"""Concepts read off any text, above all what a model wrote: word by word, sentence by sentence, by lexicon and layout.

It abstains where it is unsure: on sentences whose language is not plain, on forms with several readings, on registers
without cues. data/recognise.json records each concept's precision and recall against the generator's labels on held-out
texts (measure.py); what is read right less than 95 times in 100 is not given.
"""

import json
import re
from functools import cache

from . import layout
from .forms import forms
from .labels import WORD
from .labels import form as spelled
from .language import DATA, languages
from .tree import sort

NAMES = {"en": "english", "fr": "french", "de": "german", "es": "spanish"}
SENTENCE = re.compile(r"[^\n.!?…]*[.!?…]+[\"”»“]?|[^\n.!?…]+")
PRECISION, RECALL = 0.95, 0.5
SHORT = 12  # sentences of a text that speak together for its topic; in a longer text only neighbours do
AHEAD = 1.0  # how far a topic must be ahead of the next, in nats


@cache
def measured() -> dict:
    """data/recognise.json: `concepts` {name: [precision, recall, words]}, `topics`, `abstain`; empty if absent."""
    path = DATA / "recognise.json"
    empty = {"concepts": {}, "topics": {}, "abstain": {}}
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else empty


@cache
def offered() -> frozenset[str] | None:
    """The concepts read with a precision of at least 0.95; None before anything is measured."""
    table = measured()["concepts"]
    return frozenset(name for name, (precision, _, _) in table.items() if precision >= PRECISION) if table else None


def recognisable(sorts: tuple[str, ...] = ("word",)) -> list[str]:
    """Concepts that may be steering targets: precision at least 0.95, recall at least 0.5.

    `sorts`: which of word, context and relation.
    """
    table, good = measured()["concepts"], offered() or ()
    return [n for n, (_, recall, _) in table.items() if n in good and recall >= RECALL and sort(n) in sorts]


def recognise(text: str, language: str | None = None) -> list[tuple[int, int, str]]:
    """(start, end, concept) of what can be read off a text; the most special concept of each line of the tree.

    `language`: a code such as "fr" if it is known; otherwise it is found for each sentence.
    """
    good = offered()
    found = everything(text, language)
    return found if good is None else [f for f in (best(f, good) for f in found) if f]


def best(found: tuple[int, int, str], good: frozenset[str]) -> tuple[int, int, str] | None:
    """The finding, with the most special concept of its lineage that is offered; None if none is."""
    start, end, concept = found
    while concept and concept not in good:
        concept = concept.rpartition(".")[0]
    return (start, end, concept) if concept else None


def everything(text: str, language: str | None = None) -> list[tuple[int, int, str]]:
    """All findings, offered or not: what measure.py measures."""
    if language is not None and language not in languages():
        raise ValueError(f"recognise knows no language {language!r}. Known: {', '.join(languages())}.")
    kind = layout.register(text)
    out = layout.code(text) if kind == "code" else layout.sums(text) + layout.items(text, kind)
    pieces = sentences(text, language)
    seen: set = set()
    for start, sentence, spoken, words in pieces:
        if spoken:
            out.append((start, start + len(sentence), f"language.{NAMES[spoken]}"))
            out += layout.negations(start, sentence, spoken) if kind != "code" else []
        out += read_words(start, sentence, spoken if kind != "code" else None, words, seen)
    if kind in ("story", "news") and not any(concept == "syntax.tense.past" for _, _, concept in out):
        kind = None  # prose that tells nothing
    out += [(0, len(text), f"register.{kind}")] if kind else []
    return out + topics(text, pieces, kind)


def sentences(text: str, language: str | None) -> list[tuple]:
    """(start, sentence, language or None, its words as (start, end)) of every sentence or line."""
    out, votes = [], []
    for found in SENTENCE.finditer(text):
        words = [m.span() for m in WORD.finditer(found.group())]
        if words:
            out.append([found.start(), found.group(), language, words])
            votes.append(vote([found.group()[a:b] for a, b in words]) if language is None else {})
    if language is None:
        total = {code: sum(v.get(code, 0) for v in votes) for code in languages()}
        whole = verdict(total)
        for piece, points in zip(out, votes, strict=True):
            piece[2] = verdict(points) or (whole if max(points.values(), default=0) == points.get(whole, 0) else None)
    return [tuple(piece) for piece in out]


def vote(words: list[str]) -> dict[str, float]:
    """Points for each language: a word's point is shared by the languages that know it; names do not vote."""
    points = dict.fromkeys(languages(), 0.0)
    for word in words:
        for code, share in vocabularies().get(word.lower(), ()):
            points[code] += share
    return points


@cache
def vocabularies() -> dict[str, tuple]:
    """word -> ((language, share), ...), without the words that every language has."""
    known: dict[str, list] = {}
    for code in languages():
        for word in forms(code).vocabulary:
            known.setdefault(word, []).append(code)
    everywhere = len(languages())
    return {w: tuple((c, 1 / len(codes)) for c in codes) for w, codes in known.items() if len(codes) < everywhere}


def verdict(points: dict[str, float]) -> str | None:
    """The language with clearly the most points: two or more, and twice those of the next."""
    first, second = sorted(points, key=points.get, reverse=True)[:2]
    return first if points[first] >= 2 and points[first] >= 2 * points[second] else None


def read_words(start: int, sentence: str, language: str | None, words, seen: set) -> list[tuple[int, int, str]]:
    """The concepts of a sentence's words: spelling, meaning, and whether the same was named before."""
    out, found = [], [(start + a, start + b, sentence[a:b]) for a, b in words]
    for a, b, word in found:
        out += [(a, b, concept) for concept in spelled(word)]
    if language is None:
        return out
    table, doubtful = forms(language), measured()["abstain"].get(language, {})
    meant = [table.read(word, opens(sentence, words, n)) for n, (_, _, word) in enumerate(found)]
    for n, (a, b, word) in enumerate(found):
        special = attribute(table, found, meant, n)
        for concept in (*special, *(c for c in meant[n] if not any(f"{s}.".startswith(f"{c}.") for s in special))):
            if concept not in doubtful.get(word.lower(), ()):
                out.append((a, b, concept))
        if "syntax.pos.name" in meant[n] and "entity.place.name" not in meant[n]:
            out += [(a, b, "discourse.second_mention")] if word in seen else []
            seen.add(word)
    return out


def opens(sentence: str, words, n: int) -> bool:
    """Whether a word stands where any word takes a capital: first, or after a quotation mark, colon or number."""
    before = sentence[words[n - 1][1] : words[n][0]] if n else ""
    return n == 0 or before.strip(" ()-") != "" or sentence[words[n - 1][0]].isdigit()


def attribute(table, found: list, meant: list, n: int) -> list[str]:
    """What a form with several meanings says of the noun beside it (after one more adjective), or after a verb."""
    word = found[n][2]
    if word not in table.attributes:
        return []
    for m in (n + 1, n + 2, n - 1):
        noun = [c for c in meant[m] if c.startswith("entity.")] if 0 <= m < len(meant) else []
        if noun:
            path = table.suiting(word, noun[0])
            return [path, "syntax.pos.adjective"] if path else []
    path = table.predicate(word) if n and "syntax.pos.verb" in meant[n - 1] else None
    return [path, "syntax.pos.adjective"] if path else []


def topics(text: str, pieces: list[tuple], kind: str | None) -> list[tuple[int, int, str]]:
    """The topic of the text if its register has one, else of each sentence, by the words of the sentences around it."""
    if kind in layout.TOPICS:
        return [(0, len(text), f"topic.{layout.TOPICS[kind]}")]
    bags = [evidence(sentence, language, words) for _, sentence, language, words in pieces]
    out = []
    for n, (start, sentence, language, _) in enumerate(pieces):
        table = measured()["topics"].get(language or "")
        if table:
            points = dict(table[""])
            for word in around(bags, n):
                for topic, weight in table.get(word, {}).items():
                    points[topic] += weight
            best, second = sorted(points, key=points.get, reverse=True)[:2]
            if points[best] >= 0 and points[best] - points[second] >= AHEAD:
                out.append((start, start + len(sentence), f"topic.{best}"))
    return out


@cache
def speaking(language: str, topic: str, least: float) -> frozenset[str]:
    """The words that speak for the topic by at least so many nats, and for no other topic more."""
    table = measured()["topics"].get(language, {})
    return frozenset(w for w, points in table.items() if w and points.get(topic, 0.0) >= max(least, *points.values()))


def evidence(sentence: str, language: str | None, words) -> set[str]:
    """The words of a sentence that may speak for a topic: no names, no numbers."""
    if not language:
        return set()
    names = forms(language).names
    return {word.lower() for a, b in words if (word := sentence[a:b]) not in names and not word[0].isdigit()}


def around(bags: list[set], n: int) -> set[str]:
    """The words of a sentence and its neighbours; of the whole text if it is short."""
    return set().union(*(bags if len(bags) <= SHORT else bags[max(0, n - 1) : n + 2]))
