"""Kinds of text whose numbers must be right: drill, word problem, price list, timetable, code."""

from functools import cache

from .engine import Page, Table, kind
from .labels import Chunk, form, label_id

PEOPLE = {"H": "person", "F": "person"}


@cache
def number(n: int, tag: str = "math.number") -> Chunk:
    """A number's chunk."""
    text = str(n)
    return Chunk(text, ((len(text) - len(str(abs(n))), len(text), label_id({tag, "form.digit"})),))


@cache
def expression(a: int, sign: str, b: int, result: int) -> Chunk:
    """`a + b = result` with its labels."""
    text, words = "", []
    parts = ((str(a), "math.operand"), (sign, "math.operator"), (str(b), "math.operand"), ("=", "math.equals"),
             (str(result), "math.result"))  # fmt: skip
    for part, tag in parts:
        tags = {tag, *(form(part) if part.isalnum() else ())}
        if tag == "math.operator":
            tags.add({"+": "math.plus", "-": "math.minus", "x": "math.times", "/": "math.over"}[sign])
        words.append((len(text), len(text) + len(part), label_id(tags)))
        text += part + " "
    return Chunk(text[:-1], tuple(words))


def plus(page: Page) -> tuple:
    """A sum up to 40."""
    total = page.draw.integer(4, 40)
    a = page.draw.integer(2, total - 2)
    return a, "+", total - a, total


def minus(page: Page) -> tuple:
    """A difference below 40."""
    a = page.draw.integer(4, 40)
    b = page.draw.integer(2, a - 2)
    return a, "-", b, a - b


def times(page: Page) -> tuple:
    """A product of the times tables."""
    a, b = page.draw.integer(2, 10), page.draw.integer(2, 10)
    return a, "x", b, a * b


def over(page: Page) -> tuple:
    """A division of the times tables."""
    a, b = page.draw.integer(2, 10), page.draw.integer(2, 10)
    return a * b, "/", b, a


def sum_of(page: Page, makers=(plus, minus, times)) -> Chunk:
    """A drawn sum, difference or product."""
    return expression(*page.draw.pick(makers)(page))


DRILLS = Table(
    [(plus,), (minus,), (plus, minus), (times,), (times, over), (plus, minus, times, over)], [3, 3, 3, 2, 1, 2]
)


@kind("drill", weight=2.5, languages=("en", "fr", "de", "es"), topic="topic.numbers")
def drill(page: Page):
    """Sums of one or several sorts with their results."""
    page.roles = PEOPLE
    page.stage("title")
    makers, gap = page.draw.table(DRILLS), page.draw.pick(("\n", ", ", "; "))
    page.put(":\n")
    for i in range(page.draw.integer(4, 9)):
        page.put(gap if i else "")
        with page.span("list.item"):
            page.chunks.append(sum_of(page, makers))
    page.put("\n" if gap == "\n" else ".\n")
    page.stage("end")


COUNTED = ("entity.food.fruit+entity.food.vegetable+entity.food.sweet+entity.object.toy.marble+entity.nature.shell"
           "+entity.object.kitchen.spoon+entity.food.pantry.egg")  # fmt: skip
HOLDERS = "entity.object.tool.basket+entity.object.furniture.box+entity.object.kitchen.jar+entity.object.tool.bucket"
PROBLEMS = Table(["plus", "minus", "times", "compare", "share"], [3, 3, 2, 2, 1])
MAKERS = {"plus": plus, "minus": minus, "times": times, "compare": minus, "share": over}


@kind("word_problem", weight=6, languages=("en",), topic="topic.numbers")
def word_problem(page: Page):
    """A story problem or two, each with the sum that answers it."""
    for i in range(page.draw.integer(1, 2)):
        page.put("\n" if i else "")
        page.entities, page.roles = {}, {**PEOPLE, "G": COUNTED, "K": HOLDERS, "X": "entity.object.furniture.table"
            "+entity.object.furniture.shelf+entity.object.kitchen.tray", "L": "entity.place.outdoor"}  # fmt: skip
        page.plot = page.draw.table(PROBLEMS)
        a, sign, b, r = MAKERS[page.plot](page)
        page.values |= {"a": number(a), "b": number(b), "r": number(r, "math.result")}
        page.stage(page.plot)
        page.put(" ")
        page.chunks.append(expression(a, sign, b, r))
        page.put(". ")
        page.stage("say")
        page.put(".")


STALLS = {  # goods: (class, trades that sell them, lowest and highest price in euros)
    "fruit": ("entity.food.fruit+entity.food.vegetable", "grocer farmer gardener", 1, 4),
    "sweets": ("entity.food.sweet", "baker cook innkeeper", 2, 6),
    "clothes": ("entity.object.clothes", "tailor weaver", 4, 10),
    "kitchen": ("entity.object.kitchen", "potter blacksmith", 3, 9),
    "toys": ("entity.object.toy", "carpenter weaver", 2, 9),
    "tools": ("entity.object.tool", "blacksmith carpenter", 5, 10),
}


@kind("price_list", weight=2, languages=("en", "fr", "de", "es"), topic="topic.market")
def price_list(page: Page):
    """Prices, and a customer who pays the right sum."""
    goods, trades, low, high = STALLS[page.draw.pick(list(STALLS))]
    page.roles = {**PEOPLE, "G": goods}
    page.entity("H").word = page.draw.table(
        page.world.nouns("+".join(f"entity.person.trade.{t}" for t in trades.split()))
    )
    page.stage("title")
    style, prices = page.draw.integer(0, 2), []
    for _ in range(page.draw.integer(3, 5)):
        word, price = page.noun(goods), page.draw.integer(low, high)
        prices.append((word, price))
        page.put("\n")
        page.set("G", word)
        page.values["price"] = number(price)
        with page.span("list.item"):
            page.stage(f"row{style}" if price > 1 else f"one{style}")
    page.put("\n")
    first = page.draw.pick(prices)
    second = page.draw.pick([p for p in prices if p is not first])
    bought = []
    for role, key, (word, price) in (("A", "n", first), ("B", "m", second)):
        page.set(role, word)
        count = page.draw.integer(2, min(9, max(2, 20 // price)))
        bought.append(count * price)
        page.values[key] = number(count)
        page.values["sum1" if role == "A" else "sum2"] = expression(count, "x", price, count * price)
    page.values["sum3"] = expression(bought[0], "+", bought[1], sum(bought))
    page.stage("buy")
    if page.draw.chance(0.6):
        page.put(" ")
        page.stage("end")


def clock(minutes: int) -> str:
    """`8:05`"""
    return f"{minutes // 60}:{minutes % 60:02d}"


@kind("timetable", weight=1.5, languages=("en", "fr", "de", "es"), topic="topic.travel")
def timetable(page: Page):
    """Stops with times on five-minute marks, and what follows from them."""
    page.roles = PEOPLE
    names = []
    for _ in range(page.draw.integer(3, 5)):
        names.append(page.draw.table(page.world.names["place"], page.used))
        page.used.append(names[-1])
    start = now = 5 * page.draw.integer(6 * 12, 20 * 12)
    rows = []
    for i, name in enumerate(names):
        now += 5 * page.draw.integer(1, 4) if i else 0
        rows.append((now, name))
    for key, name in (("first", names[0]), ("mid", names[1]), ("last", names[-1])):
        page.bind(key, name, "pos.name", "entity.place.name")
    page.values |= {"minutes": number(now - start), "start": time_chunk(start), "end": time_chunk(now)}
    page.stage("title")
    for minutes, name in rows:
        page.put("\n")
        with page.span("list.item"):
            page.chunks.append(time_chunk(minutes))
            page.put(" ")
            page.put(name, "pos.name", "entity.place.name")
    page.put("\n")
    page.values["price"] = number(page.draw.integer(2, 9))
    page.stage("note")
    if page.draw.chance(0.6):
        page.put(" ")
        page.stage("tail")


@cache
def time_chunk(minutes: int) -> Chunk:
    """A time of day, labelled."""
    text = clock(minutes)
    return Chunk(text, ((0, len(text), label_id({"math.time", "form.digit"})),))
