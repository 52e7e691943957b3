"""German of the labelled world: noun phrases against a hand-written table, templates, labels of literal words."""

import re

import pytest

from sae_lab.tiny.world.engine import Draw, Spec, Word
from sae_lab.tiny.world.grammar_de import CASES, Grammar, adjective_stem, inflect_adjective
from sae_lab.tiny.world.labels import WORD
from sae_lab.tiny.world.language import world
from sae_lab.tiny.world.scenes import plots

DOG = Word("entity.animal.pet.dog", ("Hund", "Hunde"), ("m", "+es"))
CAT = Word("entity.animal.pet.cat", ("Katze", "Katzen"), ("f",))
HORSE = Word("entity.animal.farm.horse", ("Pferd", "Pferde"), ("n", "+es"))
HARE = Word("entity.animal.wild.hare", ("Hase", "Hasen"), ("m", "n"))
APPLE = Word("entity.food.fruit.apple", ("Apfel", "Äpfel"), ("m",))
MILK = Word("entity.food.drink.milk", ("Milch", "-"), ("f",))
OLD = Word("attribute.age.old", ("alt",))
# noun, determiner flag, plural -> nominative, accusative, dative, genitive
TABLE = [
    (DOG, "the", False, "der alte Hund", "den alten Hund", "dem alten Hund", "des alten Hundes"),
    (DOG, "a", False, "ein alter Hund", "einen alten Hund", "einem alten Hund", "eines alten Hundes"),
    (DOG, "my", False, "mein alter Hund", "meinen alten Hund", "meinem alten Hund", "meines alten Hundes"),
    (DOG, "no", False, "kein alter Hund", "keinen alten Hund", "keinem alten Hund", "keines alten Hundes"),
    (DOG, "this", False, "dieser alte Hund", "diesen alten Hund", "diesem alten Hund", "dieses alten Hundes"),
    (DOG, None, False, "alter Hund", "alten Hund", "altem Hund", "alten Hundes"),
    (CAT, "the", False, "die alte Katze", "die alte Katze", "der alten Katze", "der alten Katze"),
    (CAT, "a", False, "eine alte Katze", "eine alte Katze", "einer alten Katze", "einer alten Katze"),
    (CAT, "our", False, "unsere alte Katze", "unsere alte Katze", "unserer alten Katze", "unserer alten Katze"),
    (CAT, None, False, "alte Katze", "alte Katze", "alter Katze", "alter Katze"),
    (HORSE, "the", False, "das alte Pferd", "das alte Pferd", "dem alten Pferd", "des alten Pferdes"),
    (HORSE, "a", False, "ein altes Pferd", "ein altes Pferd", "einem alten Pferd", "eines alten Pferdes"),
    (HORSE, None, False, "altes Pferd", "altes Pferd", "altem Pferd", "alten Pferdes"),
    (HARE, "the", False, "der alte Hase", "den alten Hasen", "dem alten Hasen", "des alten Hasen"),
    (HARE, "a", False, "ein alter Hase", "einen alten Hasen", "einem alten Hasen", "eines alten Hasen"),
    (DOG, "the", True, "die alten Hunde", "die alten Hunde", "den alten Hunden", "der alten Hunde"),
    (DOG, "a", True, "alte Hunde", "alte Hunde", "alten Hunden", "alter Hunde"),
    (CAT, "my", True, "meine alten Katzen", "meine alten Katzen", "meinen alten Katzen", "meiner alten Katzen"),
    (APPLE, "some", True, "einige alte Äpfel", "einige alte Äpfel", "einigen alten Äpfeln", "einiger alter Äpfel"),
    (APPLE, "no", True, "keine alten Äpfel", "keine alten Äpfel", "keinen alten Äpfeln", "keiner alten Äpfel"),
    (MILK, "a", False, "alte Milch", "alte Milch", "alter Milch", "alter Milch"),
]


def written(noun, adjective=None, owner=None, **spec):
    """The phrase as text."""
    return " ".join(piece for piece, _ in Grammar().noun(noun, Spec(**spec), adjective, owner))


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row[3])
def test_noun_phrases_agree_in_case_gender_number_and_determiner(row):
    noun, det, plural, *expected = row
    assert [written(noun, OLD, det=det, plural=plural, case=case) for case in CASES] == expected


@pytest.mark.parametrize(
    ("path", "prep", "case", "expected"),
    [
        ("entity.place.outdoor.garden", "in", None, "im Garten"),
        ("entity.place.outdoor.garden", "in", "acc", "in den Garten"),
        ("entity.place.building.museum", "in", "acc", "ins Museum"),
        ("entity.place.water.river", "wo", None, "am Fluss"),
        ("entity.place.water.river", "wohin", None, "zum Fluss"),
        ("entity.place.outdoor.meadow", "wo", None, "auf der Wiese"),
        ("entity.place.outdoor.meadow", "wohin", None, "auf die Wiese"),
        ("entity.place.outdoor.meadow", "woher", None, "von der Wiese"),
        ("entity.place.indoor.cellar", "woher", None, "aus dem Keller"),
        ("entity.place.building.school", "zu", None, "zur Schule"),
        ("entity.person.family.uncle", "von", None, "vom Onkel"),
        ("entity.person.family.uncle", "bei", None, "beim Onkel"),
        ("entity.animal.wild.bear", "von", None, "vom Bären"),
    ],
)
def test_prepositions_contract_and_govern_their_case(path, prep, case, expected):
    word = next(w for w in world("de").words if w.path == path)
    assert written(word, prep=prep, case=case) == expected


def test_adjective_stems_lose_their_e_and_colours_from_nouns_never_change():
    assert [adjective_stem(a) for a in ("dunkel", "sauer", "teuer", "müde", "hoch", "schwer")] == [
        "dunkl", "saur", "teur", "müd", "hoh", "schwer",
    ]  # fmt: skip
    assert inflect_adjective("rosa", "dat", "m", "mixed") == "rosa"


def test_a_woman_has_the_feminine_word_of_her_trade_and_possessives_follow_the_owner():
    grammar = Grammar()
    cook = next(w for w in world("de").words if w.path == "entity.person.trade.cook")
    assert written(grammar.person(cook, "f"), OLD, det="a") == "eine alte Köchin"
    assert written(grammar.person(cook, "f"), plural=True, case="dat", det="the") == "den Köchinnen"
    assert written(grammar.person(cook, "m"), det="the", case="gen") == "des Kochs"
    assert (written(DOG, owner="f", det="his"), written(DOG, owner="m", det="his")) == ("ihr Hund", "sein Hund")


def test_two_adjectives_stand_in_german_order_with_the_same_ending():
    blue, small = Word("attribute.colour.blue", ("blau",)), Word("attribute.size.small", ("klein",))
    assert written(DOG, Grammar().stack(blue, small), det="a", case="dat") == "einem kleinen blauen Hund"


def test_every_noun_of_the_lexicon_has_a_gender_and_every_preposition_is_known():
    for word in world("de").words:
        if len(word.forms) == 2:
            assert word.extra and word.extra[0] in "mfn", word.path
            assert all(e in ("n", "en") or e[0] in "+@" or e.startswith("f=") for e in word.extra[1:]), word.path


def test_german_names_take_a_plain_genitive():
    assert all(name[-1] not in "sxzß" for table in world("de").names.values() for name in table.items)
    assert min(len(world("de").names[sex].items) for sex in "mf") >= 40


SCENES = [key for key in world("de").sections if key[0] in ("*", "story", "dialogue", "letter", "diary", "news")]


@pytest.mark.parametrize("key", SCENES, ids="-".join)
def test_every_template_renders(key):
    register, plot, _ = key
    for narrator in (None, "H") if register == "*" else ("H",) if register in ("letter", "diary") else (None,):
        for n, template in enumerate(world("de").sections[key]):
            page = world("de").page(Draw(n), register, plot, plots()["cake" if plot == "*" else plot].roles)
            page.narrator = narrator
            page.bind("date", "3")
            page.write(template)
            assert re.fullmatch(r"[^{}|\[\]^~\\]{8,}", page.text()), page.text()
            assert not re.search(r"  | [.,!?]|\b(von dem|in dem|zu der) ", page.text()), page.text()


def test_every_literal_word_of_the_german_templates_has_a_label():
    home = world("de")
    names = {name.lower() for table in home.names.values() for name in table.items}
    literal = {m.group().lower() for text, tags in home.literals if not tags for m in WORD.finditer(text)}
    unknown = {w for w in literal - set(home.tags) - names if not w[0].isdigit()}
    assert not unknown, sorted(unknown)
