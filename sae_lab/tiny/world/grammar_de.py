"""German noun phrases: three genders, four cases, three adjective declensions, contractions, genitives.

Unusual here: an article is spelled by its STEM plus the ending of its class (`ein`, `mein`, `dies` ...), and the same
table of strong endings serves `dies-`, `einig-` and articleless adjectives. A lexicon line, `Hund/Hunde m +es`, has the
gender, then the ending of the n-declension (`Hase n`, `Bär en`) or an irregular genitive, a place's preposition
(`@auf`, default in) and `f=` the word for a woman.
"""

from typing import ClassVar

from .engine import Word

NOMINATIVE, ACCUSATIVE, DATIVE, GENITIVE = CASES = ("nom", "acc", "dat", "gen")
# gender or "pl" -> endings in the order of CASES
STRONG = {
    "m": ("er", "en", "em", "es"),
    "f": ("e", "e", "er", "er"),
    "n": ("es", "es", "em", "es"),
    "pl": ("e", "e", "en", "er"),
}
DEFINITE = {
    "m": ("der", "den", "dem", "des"),
    "f": ("die", "die", "der", "der"),
    "n": ("das", "das", "dem", "des"),
    "pl": ("die", "die", "den", "der"),
}
EIN = {
    "m": ("", "en", "em", "es"),
    "f": ("e", "e", "er", "er"),
    "n": ("", "", "em", "es"),
    "pl": ("e", "e", "en", "er"),
}
WEAK = {"m": ("e", "en", "en", "en"), "f": ("e", "e", "en", "en"), "n": ("e", "e", "en", "en"), "pl": ("en",) * 4}
MIXED = {"m": ("er", "en", "en", "en"), "f": ("e", "e", "en", "en"), "n": ("es", "es", "en", "en"), "pl": ("en",) * 4}
# an adjective without article: as STRONG, except that masculine and neuter genitives are weak
BARE = {**STRONG, "m": ("er", "en", "em", "en"), "n": ("es", "es", "em", "en")}
FUSED = {"in dem": "im", "in das": "ins", "an dem": "am", "an das": "ans", "zu dem": "zum", "zu der": "zur"}
FUSED |= {"von dem": "vom", "bei dem": "beim"}
TAKES_DATIVE = ("in", "an", "auf", "zu", "von", "bei", "mit", "aus", "nach", "vor", "hinter", "neben", "unter", "über")
DETERMINERS = {"the": "der", "this": "dies", "my": "mein", "your": "dein", "our": "unser", "their": "ihr", "no": "kein"}
ORDER = ("quality", "taste", "weather", "temper", "size", "age", "colour", "fur", "material")
UNCHANGED = {"rosa", "lila", "orange", "beige", "türkis", "prima"}


def inflect_adjective(stem: str, case: str, gender: str, kind: str) -> str:
    """An inflected adjective. `kind` is the declension: weak (after der, dies-), mixed (after ein, mein) or bare."""
    if stem in UNCHANGED:
        return stem
    table = {"weak": WEAK, "mixed": MIXED, "bare": BARE}[kind]
    return adjective_stem(stem) + table[gender][CASES.index(case)]


def adjective_stem(stem: str) -> str:
    """The stem that endings are put on: dunkel -> dunkl, teuer -> teur, sauer -> saur, hoch -> hoh, müde -> müd."""
    if stem == "hoch":
        return "hoh"
    if stem.endswith(("el", "auer", "euer")):
        return stem[:-2] + stem[-1]
    return stem[:-1] if stem.endswith("e") else stem


def genitive(noun: str, weak: str = "") -> str:
    """The genitive singular of a masculine or neuter noun; `weak` is its oblique ending, or an irregular `+s`/`+es`."""
    if weak.startswith("+"):
        return noun + weak[1:]
    if weak:
        return noun + weak
    if noun.endswith(("s", "ß", "x", "z", "st", "sch")):
        return noun + ("ses" if noun.endswith("nis") else "es")
    return noun + "s"


def inflect(singular: str, plural: str, gender: str, weak: str, case: str, number: str) -> str:
    """A noun in its case and number. `weak` is the n-declension's ending (Hase n, Bär en) or a genitive like `+es`."""
    if number == "pl":
        needs_n = case == DATIVE and not plural.endswith(("n", "s", "i"))
        return plural + "n" if needs_n else plural
    if gender == "f":
        return singular
    if case == GENITIVE:
        return genitive(singular, weak)
    if weak and not weak.startswith("+") and case != NOMINATIVE:
        return singular + weak
    return singular


def determiner(word: str, case: str, gender: str) -> str:
    """`word` is der, dies, einig, ein, kein or a possessive (mein, dein, sein, ihr, unser); gender may be pl."""
    at = CASES.index(case)
    if word == "der":
        return DEFINITE[gender][at]
    if word in ("dies", "einig"):
        return word + STRONG[gender][at]
    ending = EIN[gender][at]
    return word + ending


def declension(word: str) -> str:
    """Which adjective declension follows a determiner: weak, mixed, or bare where there is none."""
    if word in ("der", "dies"):
        return "weak"
    return "bare" if word in ("", "einig") else "mixed"


def fuse(preposition: str, article: str) -> str:
    """`in` + `dem` -> `im`; both words where German does not contract them."""
    if not article:
        return preposition
    return FUSED.get(f"{preposition} {article}", f"{preposition} {article}")


def possessed(name: str) -> str:
    """A name's genitive: Annas, Max'."""
    return name + ("'" if name.endswith(("s", "x", "z", "ß")) else "s")


class Grammar:
    """German. `{L wo}`, `{L wohin}` and `{L woher}` take the preposition that the lexicon gives the place (@auf)."""

    language = "de"
    dets = frozenset(("a", "the", "this", "my", "your", "his", "our", "their", "no", "some"))
    preps = frozenset((*TAKES_DATIVE, "wo", "wohin", "woher"))
    cases = frozenset(CASES)
    pronouns: ClassVar[dict] = {
        "er": {"m": "er", "f": "sie", "n": "es"},
        "ihn": {"m": "ihn", "f": "sie", "n": "es"},
        "ihm": {"m": "ihm", "f": "ihr", "n": "ihm"},
    }
    first: ClassVar[dict] = {"nom": "ich", "acc": "mich", "dat": "mir", "er": "ich", "ihn": "mich", "ihm": "mir"}

    def __init__(self):
        self.women: dict = {}

    def person(self, word, sex):
        """The word for a man or a woman: Bäcker, Bäckerin."""
        feminine = next((e[2:] for e in word.extra if e.startswith("f=")), None)
        if sex != "f" or not feminine:
            return word
        if word not in self.women:
            plural = feminine + ("nen" if feminine.endswith("in") else "n")
            self.women[word] = Word(word.path, (feminine, plural), ("f",))
        return self.women[word]

    def origin(self, place):
        """What stands before the place that somebody comes from."""
        return "aus "

    def sex(self, noun):
        """A named animal is as its noun is: a dog he, a cat she; a horse (das Pferd) may be either."""
        own = self.gender(noun, None)
        return own if own in ("m", "f") else None

    def gender(self, noun, sex):
        """m, f or n: the person's or animal's sex, else the noun's gender."""
        return sex or noun.extra[0]

    def noun(self, noun, spec, adjective, owner):
        """`ein kleiner Hund`, `des alten Bäckers`, `im hohen Turm`, `mit ihren roten Schuhen`."""
        mass = noun.forms[1:] == ("-",)
        plural = spec.plural and not mass
        gender = noun.extra[0]
        prep, case, det = self.governed(spec, noun)
        weak = next((e for e in noun.extra[1:] if e[0] in "+en" and "=" not in e), "")
        word = inflect(noun.forms[0], noun.forms[-1], gender, weak, case, "pl" if plural else "sg")
        number = ("pos.noun", "number.plural") if plural else ("pos.noun",)
        out = [(word, (noun.path, *number))]
        stem = self.stem(det, owner, plural, mass)
        key = "pl" if plural else gender
        kind = declension(stem)
        for one in reversed(adjective if isinstance(adjective, tuple) else (adjective,) if adjective else ()):
            out.insert(0, (inflect_adjective(one.forms[0], case, key, kind), (one.path, "pos.adjective")))
        article = determiner(stem, case, key) if stem else ""
        return [*self.opening(prep, article), *out]

    def governed(self, spec, noun):
        """Preposition, case and determiner flag of a slot; a preposition takes dative and `the` by default."""
        prep, case = spec.prep, spec.case
        if prep in ("wo", "wohin", "woher"):
            own = next((e[1:] for e in noun.extra if e.startswith("@")), "in")
            case = ACCUSATIVE if prep == "wohin" and own != "an" else DATIVE
            prep = {"wo": own, "wohin": "zu" if own == "an" else own, "woher": "aus" if own == "in" else "von"}[prep]
        det = "the" if prep and not spec.det else spec.det
        return prep, case or (DATIVE if prep else NOMINATIVE), det

    def stem(self, det, owner, plural, mass):
        """The German determiner of a flag, "" for none."""
        if det == "a":
            return "" if plural or mass else "ein"
        if det == "some":
            return "einig" if plural else ("" if mass else "ein")
        if det == "his":
            return "ihr" if owner == "f" else "sein"
        return DETERMINERS.get(det, "")

    def opening(self, prep, article):
        """Preposition and article as pieces; fused, they are one."""
        if not prep:
            return [(article, ("pos.determiner",))] if article else []
        words = fuse(prep, article).split()
        if len(words) == 1 and article:
            return [(words[0], ("pos.preposition", "pos.determiner"))]
        tags = (("pos.preposition",), ("pos.determiner",))
        return list(zip(words, tags, strict=False))

    def stack(self, one, other):
        """Two adjectives in the order of German: opinion, temper, size, age, colour, material."""
        return (
            one if one is other else tuple(sorted((one, other), key=lambda word: ORDER.index(word.path.split(".")[1])))
        )

    def adjective(self, word, gender, plural):
        """After `war` an adjective stays as it is."""
        return [(word.forms[0], (word.path, "pos.adjective"))]

    def name(self, name, spec, sex):
        """`Emil`, `Emils`, `zu Emil`."""
        out = [(possessed(name) if spec.case == GENITIVE else name, ("pos.name",))]
        return [(spec.prep, ("pos.preposition",)), *out] if spec.prep else out
