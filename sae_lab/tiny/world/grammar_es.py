"""Spanish: two genders, al and del, el agua, adjectives after their noun, y and o before the sounds i and o.

The preps are `al` (the preposition a) and `de`, which fuse with `el`, and the conjunctions `y` (e) and `o` (u).
"""

from types import MappingProxyType

from .engine import Word
from .labels import ACCENTS

THE = {"m": "el", "f": "la", "mp": "los", "fp": "las"}
FUSED = {("al", "el"): "al", ("de", "el"): "del"}
DETS = {  # m f mp fp
    "a": ("un", "una", "unos", "unas"),
    "some": ("un", "una", "algunos", "algunas"),
    "no": ("ningún", "ninguna", "ningunos", "ningunas"),
    "this": ("este", "esta", "estos", "estas"),
    "my": ("mi", "mi", "mis", "mis"),
    "your": ("tu", "tu", "tus", "tus"),
    "his": ("su", "su", "sus", "sus"),
    "our": ("nuestro", "nuestra", "nuestros", "nuestras"),
    "their": ("su", "su", "sus", "sus"),
}


def particle(prep: str, following: str) -> tuple:
    """A preposition, or a conjunction with its form before the word that follows."""
    plain = following.lower().translate(ACCENTS)
    if prep == "y":
        sounds_i = plain.startswith(("i", "hi")) and not plain.startswith(("hie", "hia", "ie"))
        return ("e" if sounds_i else "y", ("pos.conjunction",))
    if prep == "o":
        return ("u" if plain.startswith(("o", "ho")) else "o", ("pos.conjunction",))
    return ("a" if prep == "al" else prep, ("pos.preposition",))


class Grammar:
    """Spanish."""

    language = "es"
    dets = frozenset(("the", *DETS))
    preps = frozenset(["al", "de", "y", "o"])
    cases: frozenset = frozenset()
    pronouns = MappingProxyType(
        {
            "he": {"m": "él", "f": "ella"},
            "lo": {"m": "lo", "f": "la"},
        }
    )
    first = MappingProxyType({"nom": "yo", "he": "yo"})

    def origin(self, place):
        """What stands before the place that somebody comes from."""
        return "de "

    def sex(self, noun):
        """A named animal's sex follows its noun: la tortuga is ella."""
        return self.gender(noun, None)

    def gender(self, noun, sex):
        """m or f: the noun's own, or the person's sex."""
        return next((e for e in noun.extra if e in ("m", "f")), sex or "m") if noun else sex or "m"

    def person(self, word, sex):
        """The word of a trade as the person's sex has it: panadero, panadera."""
        if "m" in word.extra or "f" in word.extra:
            return word
        form = word.forms[sex == "f"]
        return Word(word.path, (form, form + ("s" if form[-1] in "aeiou" else "es")), (sex,))

    def noun(self, noun, spec, adjective, owner):
        """`una caja roja`, `el agua fría`, `al puerto`, `sus botas nuevas`, `la panadera`."""
        mass = noun.forms[1:] == ("-",)
        plural = spec.plural and not mass
        noun = self.person(noun, "m")
        gender = self.gender(noun, None)
        tags = ("pos.noun", "number.plural") if plural else ("pos.noun",)
        out = [(noun.forms[plural], (noun.path, *tags))]
        if adjective:
            out += self.adjective(adjective, gender, plural)
        det = self.determiner(spec.det, gender + "p" * plural, mass, "el" in noun.extra)
        if not spec.prep:
            return [(det, ("pos.determiner",)), *out] if det else out
        if (spec.prep, det) in FUSED:
            return [(FUSED[spec.prep, det], ("pos.preposition", "pos.determiner")), *out]
        out = [(det, ("pos.determiner",)), *out] if det else out
        return [particle(spec.prep, out[0][0]), *out]

    def determiner(self, det, gender, mass, stressed_a):
        """The determiner's form (gender m f mp fp), None for none: some water is plain `agua`."""
        if not det or (mass and det in ("a", "some")):
            return None
        if stressed_a and gender == "f" and det in ("the", "a", "no"):
            return {"the": "el", "a": "un", "no": "ningún"}[det]
        return THE[gender] if det == "the" else DETS[det][("m", "f", "mp", "fp").index(gender)]

    def adjective(self, word, gender, plural):
        """An adjective of four forms in the form that agrees."""
        form = word.forms[2 * plural + (gender == "f")] if len(word.forms) == 4 else word.forms[0]
        return [(form, (word.path, "pos.adjective", *(("number.plural",) if plural else ())))]

    def name(self, name, spec, sex):
        """`Pablo`, or `a Pablo`, `de Pablo`, `y Pablo` with a preposition."""
        out = [(name, ("pos.name",))]
        return [particle(spec.prep, name), *out] if spec.prep else out
