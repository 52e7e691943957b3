"""What a word's form says by itself in a language: every inflected form of the lexicon, made by the grammar.

A form with several readings says only what they share: `May` (month or verb) nothing, `old` that it is an adjective.
"""

import re
from functools import cache

from .engine import Spec, Word
from .labels import WORD, full
from .language import World, adjective_classes, inside, world
from .templates import TAGGED
from .tree import lineage


class Forms:
    """A language's forms: `lower` as inside a sentence, `upper` those that always have a capital, `first` both."""

    def __init__(self, language: str):
        home = world(language)
        readings: dict[str, set] = {}
        for piece, tags in {(piece, tuple(tags)) for pieces in phrases(home) for piece, tags in pieces}:
            meant = frozenset(map(full, tags))
            for found in WORD.finditer(piece):
                readings.setdefault(found.group(), set()).add(meant)
        for form, tags in literals(home):
            readings.setdefault(form, set()).add(frozenset(map(full, tags)))
        upper = {f: r for f, r in readings.items() if f[0].isupper()}
        lower = {f: r for f, r in readings.items() if not f[0].isupper()}
        both = {f: set(r) for f, r in upper.items()}
        for form, r in lower.items():
            both.setdefault(form[0].upper() + form[1:], set()).update(r)
        self.upper, self.lower, self.first = ({f: common(r) for f, r in part.items()} for part in (upper, lower, both))
        self.attributes = {f: attributes(r) for f, r in {**both, **lower}.items() if len(r) > 1 and attributes(r)}
        self.names = frozenset(f for f, r in upper.items() if all("syntax.pos.name" in one for one in r))
        self.vocabulary = frozenset(f.lower() for f in readings if f not in self.names)

    def suiting(self, form: str, noun: str) -> str | None:
        """The one attribute that a form with several can mean beside a noun with this path: old dog, old boat."""
        paths = self.attributes.get(form, ())
        classes = suitable(noun) if paths else ()
        fit = [path for path in paths if any(inside(path, one) for one in classes)]
        return fit[0] if len(fit) == 1 else None

    def predicate(self, form: str) -> str | None:
        """The one feeling or weather that a form with several meanings says after a verb: was cold, is cheerful."""
        fit = [p for p in self.attributes.get(form, ()) if p.startswith(("sentiment.", "attribute.weather."))]
        return fit[0] if len(fit) == 1 else None

    def read(self, form: str, opens: bool) -> tuple[str, ...]:
        """The concepts of a form; `opens`: at the start of a sentence, where a capital says nothing."""
        if not form[0].isupper():
            return self.lower.get(form, ())
        if not opens and form in self.upper:
            return self.upper[form]
        return self.first.get(form, ())


@cache
def forms(language: str) -> Forms:
    """The language's forms."""
    return Forms(language)


def attributes(readings) -> tuple[str, ...]:
    """The attributes and feelings among the readings of a form."""
    return tuple(sorted({c for r in readings for c in r if c.startswith(("attribute.", "sentiment."))}))


@cache
def suitable(noun: str) -> tuple[str, ...]:
    """The classes of adjectives that data/adjectives.txt gives a noun's path."""
    classes = adjective_classes()
    return next((classes[step] for step in reversed(lineage(noun)) if step in classes), ())


def common(readings) -> tuple[str, ...]:
    """The most special concepts that all readings of a form share."""
    shared = set.intersection(*({step for c in r for step in lineage(c)} for r in readings))
    return tuple(sorted(c for c in shared if not any(o.startswith(c + ".") for o in shared)))


def phrases(home: World):
    """Noun phrases of every word of the lexicon in every case and number, with every determiner; names and pronouns."""
    grammar = home.grammar
    cases = [None, *sorted(grammar.cases)]
    things = [w for w in home.words if w.path.startswith("entity.") and len(w.forms) > 1]
    for word in things:
        for one in persons(grammar, word):
            for case in cases:
                for plural in (False, True):
                    yield nouns_only(grammar.noun(one, Spec(det="the", case=case, plural=plural), None, None))
    for word in home.words:
        if word.path.startswith(("attribute.", "sentiment.")):
            yield from adjective_phrases(grammar, word, cases, probes(grammar, things))
        elif word not in things:
            yield [(word.forms[0], (word.path,))]
    for one in probes(grammar, things):
        yield from opening_phrases(grammar, one, cases)
    for key, table in home.names.items():
        place = ("entity.place.name",) if key == "place" else ()
        for name in table.items:
            for case in cases:
                yield [(p, (*t, *place)) for p, t in grammar.name(name, Spec(case=case), key[-1])][-1:]
    for form in grammar.pronouns.values():
        yield [(p, ("pos.pronoun",)) for p in form.values()]
    yield [(p, ("pos.pronoun",)) for p in dict(grammar.first).values()]


def persons(grammar, word: Word) -> list[Word]:
    """The word, for a man and for a woman."""
    if word.path.startswith("entity.person") and hasattr(grammar, "person"):
        return [grammar.person(word, "m"), grammar.person(word, "f")]
    return [word]


def probes(grammar, things) -> list[Word]:
    """A noun of every gender, with a vowel and with a consonant in front."""
    found = {}
    for word in things:
        if not word.path.startswith("entity.person") and word.forms[1] != "-":
            found.setdefault((grammar.gender(word, None), word.forms[0][0].lower() in "aeiouh"), word)
    return list(found.values())


def nouns_only(pieces) -> list:
    """The pieces without articles and prepositions."""
    return [piece for piece in pieces if "pos.noun" in piece[1]]


def adjective_phrases(grammar, word: Word, cases, nouns):
    """An adjective before nouns of every gender, and by itself."""
    for noun in nouns:
        for plural in (False, True):
            yield grammar.adjective(word, grammar.gender(noun, None), plural)
            for case in cases:
                for det in ("the", "a", None):
                    pieces = grammar.noun(noun, Spec(det=det, case=case, plural=plural), word, None)
                    yield [piece for piece in pieces if "pos.adjective" in piece[1]]


def opening_phrases(grammar, noun: Word, cases):
    """Articles, possessives and prepositions, fused or not."""
    for det in (None, *sorted(grammar.dets)):
        for prep in (None, *sorted(grammar.preps)):
            for case in cases:
                for plural in (False, True):
                    for owner in "mf":
                        pieces = grammar.noun(noun, Spec(det=det, prep=prep, case=case, plural=plural), None, owner)
                        yield [piece for piece in pieces if "pos.noun" not in piece[1]]


def literals(home: World):
    """(form, tags) of the templates' literal words, as they stand there."""
    for text, tags in home.literals:
        for found in () if tags else WORD.finditer(text):
            form = found.group()
            yield opened(text, found.start(), form), home.tags.get(form.lower(), ())
    for templates in home.sections.values():
        for template in templates:
            for found in TAGGED.finditer(template.source):
                if re.fullmatch(WORD, found.group(1)):
                    yield found.group(1), tuple(found.group(2).split("^"))


def opened(text: str, start: int, form: str) -> str:
    """A literal word, without the capital that the start of a sentence gave it."""
    before = text[:start].rstrip(' "“„«¿¡(')
    return form[0].lower() + form[1:] if not before or before[-1] in ".!?:\n" else form
