"""Kinds of text in prose that are not scenes: recipe, weather report, dictionary, couplet, questions, lesson.

Their sentences are templates of data/kinds.<language>.txt; here stands what they have in common: what fits together.
"""

import re
from functools import cache

from . import kinds_code, kinds_exact  # noqa: F401  (they register their kinds)
from .engine import Chunk, Page, Spec, Table, Word, kind
from .kinds_exact import number, sum_of
from .labels import chunk
from .language import DATA

VALUE = re.compile(r"\{=(\w+)\}")


def union(prefix: str, names: str) -> str:
    """A union of classes with one prefix."""
    return "+".join(f"{prefix}.{name}" for name in names.split())


def say(page: Page, stage: str, makers: dict | None = None):
    """Write a template of the stage after drawing the values it names; `makers`: value -> function(page) -> Chunk."""
    section = page.world.section(page.register, page.plot, stage)
    fresh = [t for t in section if t not in page.told]
    template = page.draw.pick(fresh or section)
    for name in dict.fromkeys(VALUE.findall(template.source)):
        if makers and name in makers:
            page.values[name] = makers[name](page)
    page.write(template)


def phrase(stage: str):
    """A maker of values: one template of the stage, as a chunk."""

    def make(page: Page) -> Chunk:
        chunks, page.chunks = page.chunks, []
        page.run(page.draw.pick(page.world.section(page.register, page.plot, stage)).ops)
        made, page.chunks = page.chunks, chunks
        return merged(made)

    return make


def merged(chunks) -> Chunk:
    """Chunks as one."""
    text, words = "", []
    for one in chunks:
        words += [(len(text) + start, len(text) + end, label) for start, end, label in one.words]
        text += one.text
    return Chunk(text, tuple(words))


def fixed(page: Page, word: Word, **flags) -> Chunk:
    """A noun phrase of a word."""
    return chunk(page.grammar.noun(word, Spec(**flags), None, None))


def people(page: Page, roles: str, **classes: str):
    """Give the page roles: persons, and things by class."""
    page.roles = {**dict.fromkeys(roles, "person"), **classes}


# --- recipes ---------------------------------------------------------------------------------------
SOUP = union("entity.food.vegetable", "potato carrot onion tomato leek mushroom turnip parsnip courgette")
RAW = union("entity.food.vegetable", "tomato cucumber carrot radish pepper")
FRIED = union("entity.food.vegetable", "mushroom tomato potato onion pepper leek")
BAKED = union("entity.food.fruit", "apple pear plum cherry apricot peach raspberry")
BOILED = union("entity.food.fruit", "strawberry plum apricot cherry raspberry peach fig")
PRESSED = union("entity.food.fruit", "orange lemon apple peach pear melon")
RECIPES = {  # plot: (roles, stages)
    "soup": ({"V": SOUP, "U": SOUP}, "start fry boil season serve"),
    "cake": ({"G": BAKED}, "start flour fruit bake serve"),
    "salad": ({"V": RAW, "U": RAW}, "start mix serve"),
    "stew": ({"V": SOUP, "U": SOUP, "W": SOUP}, "start fry boil middle season serve"),
    "pancakes": ({"G": BAKED}, "start rest bake serve"),
    "omelette": ({"V": FRIED}, "start fry middle serve"),
    "jam": ({"G": BOILED}, "start middle boil serve"),
    "tart": ({"G": BAKED}, "start flour fruit bake serve"),
    "drink": ({"G": PRESSED}, "start middle serve"),
}
DISHES = Table(list(RECIPES), [1 / (rank + 3) for rank in range(len(RECIPES))])


@kind("recipe", weight=3, topic="topic.kitchen")
def recipe(page: Page):
    """A dish whose vegetables or fruit suit it; its steps in one paragraph or numbered."""
    page.plot = page.draw.table(DISHES)
    classes, stages = RECIPES[page.plot]
    people(page, "HF", **classes)
    page.stage("title")
    numbered = page.draw.chance(0.3)
    page.put("\n")
    for step, stage in enumerate(stages.split(), 1):
        if numbered:
            page.put("\n" if step > 1 else "")
            with page.span("list.item"):
                page.put(f"{step}. ")
                page.stage(stage)
        else:
            page.put(" " if step > 1 else "")
            page.stage(stage)
    if page.draw.chance(0.7):
        page.put("\n" if numbered else " ")
        page.stage("tip")


# --- weather ---------------------------------------------------------------------------------------
SEASONS = ("winter", "winter", *["spring"] * 3, *["summer"] * 3, *["autumn"] * 3, "winter")
MONTHS = ("january", "february", "march", "april", "may", "june", "july", "august", "september", "october",
          "november", "december")  # fmt: skip
LOWS = {"winter": (-9, 3), "spring": (2, 9), "summer": (11, 19), "autumn": (3, 11)}  # degrees
RISE = {"winter": (2, 6), "spring": (4, 9), "summer": (5, 11), "autumn": (3, 8)}


def degrees(page: Page, low: int, high: int) -> int:
    """A temperature between low and high; none whose noun would be singular."""
    return page.draw.pick([t for t in range(low, high + 1) if abs(t) != 1])


@kind("weather_report", weight=3, languages=("en", "fr", "de", "es"), topic="topic.weather")
def weather_report(page: Page):
    """A day's weather; temperatures, sky and advice fit the season."""
    month = page.noun("entity.time.month")
    season = SEASONS[MONTHS.index(month.path.rpartition(".")[2])]
    page.plot = season
    people(page, "H", L="entity.place.outdoor")
    page.values["month"] = chunk([(month.forms[0], (month.path, "pos.noun"))])
    page.values["date"] = number(page.draw.integer(2, 28))
    low = degrees(page, *LOWS[season])
    high = degrees(page, low + RISE[season][0], low + RISE[season][1])
    makers = {
        "low": lambda p: number(low),
        "high": lambda p: number(high),
        "night": lambda p: number(degrees(p, low - 3, low + 2)),
        "high2": lambda p: number(degrees(p, high - 4, high + 4)),
        "sky": phrase("sky"),
        "sky2": phrase("sky"),
        "dusk": phrase("dusk"),
        "feel": phrase("feel"),
        "wet": phrase("wet"),
        "wet2": phrase("wet"),
    }
    for stage in ("open", "morning", "day", "night", "advice", "tomorrow"):
        if stage in ("night", "advice", "tomorrow") and not page.draw.chance(0.7):
            continue
        page.put("\n" if stage == "morning" else " " if stage != "open" else "")
        say(page, stage, makers)


# --- words -----------------------------------------------------------------------------------------
@cache
def glossary(world) -> dict[Word, tuple[str, tuple[str, ...]]]:
    """Definition and facts of words of the lexicon, from data/glossary_<language>.txt."""
    by_form = {}
    for word in world.words:
        if word.path.startswith("entity."):
            by_form.setdefault(word.forms[0], word)
    found = {}
    for line in (DATA / f"glossary_{world.language}.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, definition, facts = (part.strip() for part in line.split("|"))
            if name in by_form:
                found[by_form[name]] = (definition, tuple(f.strip() for f in facts.split(";")))
    return found


@cache
def glossary_table(world, prefix: str) -> Table:
    """The glossary's words at or under a class, each as likely."""
    return Table([w for w in glossary(world) if w.path.startswith(prefix)])


def example_stage(word: Word) -> str:
    """The stage of dictionary examples that suits a word."""
    _, kind_, group = (*word.path.split("."), "")[:3]
    if group == "trade":
        return "trade"
    return {"animal": "animal", "food": "food", "place": "place", "plant": "seen", "vehicle": "seen"}.get(
        kind_, "thing"
    )


@kind("dictionary", weight=5, topic="topic.words")
def dictionary(page: Page):
    """A few words with their meaning and an example each: a dictionary's entries or an ABC."""
    people(page, "HF", X="entity.object.furniture", L="entity.place.outdoor")
    page.values["page"] = number(page.draw.integer(4, 90))
    entries = page.draw.integer(2, 4)
    page.values["n"] = number(entries)
    abc = page.draw.chance(0.4)
    page.stage("title")
    for _ in range(entries):
        word = page.draw.table(glossary_table(page.world, "entity"), page.used)
        page.set("D", word)
        page.put("\n")
        with page.span("list.item"):
            entry(page, word, abc)


def entry(page: Page, word: Word, abc: bool):
    """One word: name, plural, definition, example."""
    name = word.forms[0]
    if abc:
        page.put(f"{name[0].upper()} is for ")
        page.chunks.append(fixed(page, word))
    else:
        page.chunks.append(fixed(page, word))
        page.put(", noun")
        if word.forms[1] != "-" and page.draw.chance(0.5):
            page.put(", plural ")
            page.chunks.append(fixed(page, word, plural=True))
    page.put(f": {glossary(page.world)[word][0]}. ")
    page.stage(example_stage(word))


# --- couplets --------------------------------------------------------------------------------------
RHYMES = """goat coat boat|cat hat|fox box|bear pear chair hare|dog frog|cake lake rake|bell shell|hill mill|clock sock
cap map|tart cart|nest chest|table stable|flower tower|carrot parrot|peach beach|fig pig|plum drum|boot flute
star jar car guitar|tree key|cook book|nurse purse|ball hall|oak cloak|spoon balloon|sailor tailor|shed bed
inn violin|tray bay|kite|bun|magpie pie|sparrow wheelbarrow"""


@cache
def rhymes(world) -> Table:
    """Pairs of lexicon words that rhyme: an animal or a thing that can be moved, and anything."""
    by_form = {w.forms[0]: w for w in reversed(world.words) if w.path.startswith("entity.")}
    pairs = []
    for group in RHYMES.replace("\n", "|").split("|"):
        words = [by_form[name] for name in group.split()]
        pairs += [(a, b) for a in words for b in words if a is not b and not a.path.startswith(FAR)]
    return Table(pairs)


FAR = ("entity.place", "entity.person", "entity.nature.tree", "entity.nature.star", "entity.plant")


@kind("couplet", weight=5, topic="topic.rhyme")
def couplet(page: Page):
    """Two or three couplets with true rhymes."""
    people(page, "HF")
    page.stage("title")
    for _ in range(page.draw.integer(2, 3)):
        first, second = page.draw.table(rhymes(page.world), taken_pairs(page))
        page.set("X", first)
        page.set("Y", second)
        page.put("\n")
        page.stage("animal" if first.path.startswith("entity.animal") else "thing")
        page.put(".")


def taken_pairs(page: Page) -> list:
    """Rhyme pairs with a word that the text has used."""
    return [pair for pair in rhymes(page.world).items if pair[0] in page.used or pair[1] in page.used]


# --- questions and answers -------------------------------------------------------------------------
EATEN = union("entity.food", "fruit vegetable sweet")
QA = {  # plot: (topic, roles)
    "farm": ("topic.farm", {"A": union("entity.animal.farm", "horse hen cow goat sheep donkey pig duck goose pony"),
                            "B": union("entity.place.building", "barn stable shed mill")}),
    "loss": ("topic.treasure", {"O": "entity.object.keepsake+entity.object.clothes", "X": "entity.object.furniture"}),
    "trip": ("topic.travel", {"G": EATEN, "Q": "entity.place.water"}),
    "party": ("topic.birthday", {"G": "entity.food.sweet+entity.food.fruit", "M": "entity.object.music",
                                 "Q": "entity.place.water"}),
}  # fmt: skip
HOURS = ("two", "three", "four", "five", "six", "seven", "eight")


@kind("qa", weight=4.5, topic=None)
def qa(page: Page):
    """A small fact and two to four questions that it answers."""
    page.plot = page.draw.pick(list(QA))
    topic, classes = QA[page.plot]
    people(page, "HF", **classes)
    makers = {
        "n": lambda p: chunk([((w := p.noun("entity.number")).forms[0], (w.path, "pos.numeral"))]),
        "town": lambda p: name_of(p, "place"),
        "from": lambda p: name_of(p, "place"),
        "day": lambda p: chunk([((w := p.noun("entity.time.day")).forms[0], (w.path, "pos.noun"))]),
        "vehicle": lambda p: fixed(p, p.noun(union("entity.vehicle", "bus train boat car bicycle"))),
        "event": lambda p: fixed(p, p.noun("entity.event"), det="a"),
        "hour": lambda p: p.world.literal(f"{p.draw.pick(HOURS)} o'clock"),
    }
    with page.span(topic):
        say(page, "fact", makers)
        for _ in range(page.draw.integer(2, 4)):
            page.put("\n")
            page.stage("ask")


def name_of(page: Page, key: str) -> Chunk:
    """A place's name."""
    name = page.draw.table(page.world.names[key], page.used)
    page.used.append(name)
    return chunk([(name, ("pos.name", "entity.place.name"))])


# --- lessons ---------------------------------------------------------------------------------------
LONG = 1500  # characters from which a lesson ends


@kind("lesson", weight=1, topic="topic.school")
def lesson(page: Page):
    """A school lesson of 400 tokens or more: words, facts, questions, sums and a break."""
    seats = union("entity.object.furniture", "table chair bench shelf cupboard chest")
    people(page, "HFKM", X=seats, L="entity.place.outdoor", D="entity", D2="entity")
    page.entity("H").word = next(w for w in page.world.words if w.path == "entity.person.trade.teacher")
    page.values["town"] = name_of(page, "place")
    day = page.noun(union("entity.time.day", "monday friday tuesday wednesday thursday"))
    page.values["day"] = chunk([(day.forms[0], (day.path, "pos.noun"))])
    page.stage("title")
    page.put("\n")
    page.stage("open")
    table = glossary_table(
        page.world, page.draw.pick(["entity.animal", "entity.food", "entity.person.trade", "entity"])
    )
    parts = 0
    while len(page.text()) < LONG or parts < 2:
        old = page.entities.get("D")
        word = page.draw.table(table, page.used)
        page.set("D", word)
        page.put("\n" if parts else " ")
        talk(page, word)
        if parts == 1:
            page.put("\n")
            say(page, "sums", {f"e{i}": sum_of for i in (1, 2, 3)})
        if parts == 2:
            page.put(" ")
            page.stage("break")
        if old:
            page.entities["D2"] = old
        parts += 1
    page.put("\n")
    page.stage("close")


def talk(page: Page, word: Word):
    """A word shown, explained and asked about."""
    definition, facts = glossary(page.world)[word]
    left = list(facts)
    first = left.pop(int(page.draw.pick(range(len(left)))))
    second = page.draw.pick(left)
    page.values["definition"] = page.world.literal(definition)
    page.values["f1"], page.values["f2"] = page.world.literal(first), page.world.literal(second)
    page.values["letters"] = number(len(word.forms[0]))
    person = word.path.startswith("entity.person")
    it, what = (page.draw.pick(("he", "she")), "Who") if person else ("it", "What")
    page.bind("it", it, "pos.pronoun")
    page.bind("It", it.capitalize(), "pos.pronoun")
    page.bind("What", what, "pos.pronoun")
    page.plot = example_stage(word)
    for stage in ("show", "facts", "aside", "recall"):
        if stage != "recall" or page.draw.chance(0.5):
            page.put("" if stage == "show" else " ")
            page.stage(stage)
