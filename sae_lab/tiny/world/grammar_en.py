"""English: noun phrases, pronouns and adjectives. Its Grammar class is the interface every language implements.

A language is a module grammar_<language>.py with a class `Grammar` that has, as here,
- `dets`, `preps`, `cases`: the flag words a noun slot may carry (preps: also fused ones, `à de`, `in an zu von`);
- `pronouns`: {form: {"m": .., "f": .., "n": ..}}; the forms are the flag words of a pronoun slot;
- `first`: {"nom", "acc", "gen" or a pronoun form: word} for a narrator written as "I" by third-person templates. Leave
  it empty where verbs agree with the person: such a language writes its own first-person sentences;
- `gender(noun, sex)`: "m", "f" or "n" that pronouns and `{X?a:b}` follow (sex: of a person or named animal, else None);
- `sex(noun)`: the sex a named animal must have because its noun has it, None: free to draw;
- optionally `person(word, sex)`, the word of a trade for a man or a woman, `stack(one, other)`, two adjectives put
  in order, and `origin(place)`, what stands before the place that somebody comes from (`from `, `d'`);
- `noun(noun, spec, adjective, owner)`, `adjective(word, gender, plural)`, `name(name, spec, sex)`: lists
  of (text, tags) pieces; a piece that ends in an apostrophe is glued to the next. `spec` is engine.Spec; `owner` the
  gender of the owner under `his=H`; `adjective` an engine.Word, what `stack` made of two, or None.
"""

from typing import ClassVar

VOWELS = "aeiou"
ORDER = ("opinion", "size", "temper", "quality", "age", "taste", "colour", "fur", "material")
OPINIONS = {"beautiful", "fine", "pretty", "handsome", "strange", "odd", "elegant", "delicious"}


class Grammar:
    """English."""

    language = "en"
    dets = frozenset(("a", "the", "this", "that", "my", "your", "his", "our", "their", "no", "some"))
    preps = frozenset(("in", "near", "to", "from"))  # `in` is on for hills and islands
    cases = frozenset(("acc", "gen"))
    pronouns: ClassVar = {
        "he": {"m": "he", "f": "she", "n": "it"},
        "him": {"m": "him", "f": "her", "n": "it"},
        "his": {"m": "his", "f": "her", "n": "its"},
        "himself": {"m": "himself", "f": "herself", "n": "itself"},
    }
    first: ClassVar = {"nom": "I", "acc": "me", "gen": "my", "he": "I", "him": "me", "his": "my", "himself": "myself"}

    def sex(self, noun):
        """English nouns leave an animal's sex open, but for a few."""
        return {"hen": "f", "cow": "f", "rooster": "m"}.get(noun.forms[0])

    def gender(self, noun, sex):
        """Whoever has a sex is he or she; all else is it."""
        return sex or "n"

    def noun(self, noun, spec, adjective, owner):
        """`a small dog`, `her old coats`, `the bakers`."""
        mass = noun.forms[1:] == ("-",)
        plural = spec.plural and not mass
        word = noun.forms[1] if plural else noun.forms[0]
        number = ("pos.noun", "number.plural") if plural else ("pos.noun",)
        out = [(word, (noun.path, *number))]
        for one in reversed(adjective if isinstance(adjective, tuple) else (adjective,) if adjective else ()):
            out.insert(0, (one.forms[0], (one.path, "pos.adjective")))
        det = self.determiner(spec.det, out[0][0], plural, mass, owner)
        out = [(det, ("pos.determiner",)), *out] if det else out
        if spec.prep:
            prep = "on" if spec.prep == "in" and word in ("hill", "island", "square") else spec.prep
            out.insert(0, (prep, ("pos.preposition",)))
        return out

    def origin(self, place):
        """What stands before the place that somebody comes from."""
        return "from "

    def stack(self, one, other):
        """Two adjectives in the order of English: opinion, size, temper, age, colour, material."""
        return one if one is other else tuple(sorted((one, other), key=lambda word: rank(word.path)))

    def determiner(self, det, following, plural, mass, owner):
        """The determiner's form before the word that follows; None for none."""
        if det == "a":
            return "some" if plural or mass else ("an" if vowel(following.lower()) else "a")
        if det == "his":
            return self.pronouns["his"][owner or "n"]
        if det == "this":
            return "these" if plural else "this"
        return det

    def adjective(self, word, gender, plural):
        """English adjectives never change."""
        return [(word.forms[0], (word.path, "pos.adjective"))]

    def name(self, name, spec, sex):
        """`Omar`, or `Omar's` with the flag gen."""
        return [(f"{name}'s" if spec.case == "gen" else name, ("pos.name",))]


def vowel(word: str) -> bool:
    """Whether the word begins with the sound of a vowel."""
    return word.startswith(("honest", "hour")) or (
        word[0] in VOWELS and not word.startswith(("use", "uni", "eu", "one"))
    )


def rank(path: str) -> int:
    """An adjective's place in the order of adjectives."""
    word = path.rpartition(".")[2]
    return ORDER.index("opinion" if word in OPINIONS else "size" if word == "large" else path.split(".")[1])
