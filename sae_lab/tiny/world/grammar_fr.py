"""French: elision, contraction, the partitive, two genders, adjectives before and after their noun.

Unusual here: a noun phrase is put together from the right, because an article's form depends on the word that comes to
follow it (`la tasse`, `l'assiette`, `l'énorme tasse`). The preps are `à` and `de`, which fuse with the article, `que`,
and `dans`, which a noun may replace by its own word (an extra field of its lexicon line): `sur la colline`.
"""

from dataclasses import replace
from types import MappingProxyType

from .engine import Word
from .labels import ACCENTS

SILENT_H = frozenset(
    ("huile", "hiver", "horloge", "horloger", "horlogere", "herbe", "heure", "heureux", "heureuse", "histoire", "homme")
)
PARTICLES = {"de": "d'", "que": "qu'"}  # form before a vowel
PLACES = ("sur", "bord")  # extra fields that replace `dans`; bord is `au bord de`
THE = {"m": "le", "f": "la", "pl": "les"}
FUSED = {"de": {"m": "du", "f": "de la", "pl": "des"}, "à": {"m": "au", "f": "à la", "pl": "aux"}}
# masculine, feminine, plural, feminine before a vowel
POSSESSIVE = {
    "my": ("mon", "ma", "mes", "mon"),
    "your": ("ton", "ta", "tes", "ton"),
    "his": ("son", "sa", "ses", "son"),
    "our": ("notre", "notre", "nos", "notre"),
    "their": ("leur", "leur", "leurs", "leur"),
}
LIAISON = {"beau": "bel", "vieux": "vieil", "nouveau": "nouvel"}  # masculine singular before a vowel


def elides(word: str) -> bool:
    """Whether `le` becomes `l'` before the word: vowels and silent h, not the y of yaourt."""
    plain = word.lower().translate(ACCENTS).replace("œ", "o")
    if plain[0] == "h":
        return plain.split()[0] in SILENT_H
    return plain[0] in "aeiou" or (plain[0] == "y" and plain[1:2] not in tuple("aeiou"))


def particle(prep: str, following: str) -> tuple:
    """`de`, `d'`, `que`, `qu'` or `à` as a piece, before the word that follows."""
    tag = "pos.conjunction" if prep == "que" else "pos.preposition"
    return (PARTICLES.get(prep, prep) if elides(following) else prep, (tag,))


class Grammar:
    """French."""

    language = "fr"
    dets = frozenset(["a", "the", "this", "my", "your", "his", "our", "their", "no", "some"])
    preps = frozenset(("à", "dans", *PARTICLES))
    cases: frozenset = frozenset()
    pronouns = MappingProxyType(
        {
            "he": {"m": "il", "f": "elle"},
            "him": {"m": "lui", "f": "elle"},
            "le": {"m": "le", "f": "la"},
        }
    )
    first = MappingProxyType({"nom": "je", "he": "je", "him": "moi"})

    def origin(self, place):
        """What stands before the place that somebody comes from."""
        return "d'" if elides(place) else "de "

    def sex(self, noun):
        """A named animal's sex follows its noun: une tortue is elle."""
        return self.gender(noun, None)

    def gender(self, noun, sex):
        """m or f: the noun's own, or the person's sex."""
        return next((e for e in noun.extra if e in ("m", "f")), sex or "m") if noun else sex or "m"

    def person(self, word, sex):
        """The word of a trade as the person's sex has it: boulanger, boulangère."""
        if "m" in word.extra or "f" in word.extra:
            return word
        form = word.forms[sex == "f"]
        return Word(word.path, (form, form if form[-1] in "sx" else form + "s"), (sex,))

    def noun(self, noun, spec, adjective, owner):
        """`une petite boîte`, `du pain`, `son assiette`, `des pommes`, `de beaux oiseaux`, `l'épicière`."""
        mass = noun.forms[1:] == ("-",)
        plural = spec.plural and not mass
        noun = self.person(noun, "m")
        gender = self.gender(noun, None)
        form = noun.forms[plural]
        tags = ("pos.noun", "number.plural") if plural else ("pos.noun",)
        out = [(form, (noun.path, *tags))]
        before = bool(adjective) and "<" in adjective.extra
        if adjective:
            words = self.adjective(adjective, gender, plural)
            if before and gender == "m" and not plural and elides(form):
                words = [(LIAISON.get(words[0][0], words[0][0]), words[0][1])]
            out = [*words, *out] if before else [*out, *words]
        place = next((e for e in noun.extra if e in PLACES), None) if spec.prep == "dans" else None
        if place:
            spec = replace(spec, prep="sur" if place == "sur" else "de")
            out = self.joined(spec, out, "pl" if plural else gender, mass, before)
            return [("au bord", ("pos.preposition",)), *out] if place == "bord" else out
        return self.joined(spec, out, "pl" if plural else gender, mass, before)

    def joined(self, spec, out, gender, mass, before):
        """The phrase with what opens it."""
        return [*self.opening(spec, out[0][0], gender, mass, before), *out]

    def opening(self, spec, following, gender, mass, before):
        """Preposition and determiner before the first word of the phrase; gender may be pl."""
        det, prep = spec.det, spec.prep
        vowel = gender != "pl" and elides(following)
        both = ("pos.preposition", "pos.determiner")
        if det == "some" and not mass:
            det = "some" if gender == "pl" else "a"
        if (det == "a" and (mass or gender == "pl")) or (det == "some" and mass):
            if prep == "de":
                return [particle("de", following)]
            if mass:
                pieces = [("de", both), ("l'", ("pos.determiner",))] if vowel else [(FUSED["de"][gender], both)]
            else:
                pieces = [particle("de", following)] if before else [("des", ("pos.determiner",))]
        elif det == "the":
            if prep in FUSED and not vowel:
                return [(FUSED[prep][gender], both)]
            pieces = [("l'" if vowel else THE[gender], ("pos.determiner",))]
        elif det:
            pieces = [(self.determiner(det, gender, vowel), ("pos.determiner",))]
        else:
            pieces = []
        if not prep:
            return pieces
        return [particle(prep, pieces[0][0] if pieces else following), *pieces]

    def determiner(self, det, gender, vowel):
        """`un`, `cet`, `mon`, `aucune`, `quelques` ... before a vowel or not."""
        at = ("m", "f", "pl").index(gender)
        if det == "a":
            return ("un", "une", "des")[at]
        if det == "no":
            return ("aucun", "aucune", "aucuns")[at]
        if det == "this":
            return "cet" if vowel and gender == "m" else ("ce", "cette", "ces")[at]
        if det == "some":
            return "quelques"
        return POSSESSIVE[det][3 if vowel and gender == "f" else at]

    def adjective(self, word, gender, plural):
        """An adjective of four forms in the form that agrees."""
        form = word.forms[2 * plural + (gender == "f")] if len(word.forms) == 4 else word.forms[0]
        return [(form, (word.path, "pos.adjective", *(("number.plural",) if plural else ())))]

    def name(self, name, spec, sex):
        """`Paul`, `à Paul`, `d'Alice`, `qu'Alice`."""
        out = [(name, ("pos.name",))]
        return [particle(spec.prep, name), *out] if spec.prep else out
