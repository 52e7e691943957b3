"""Short Python functions with a docstring, calls, and the right results in comments."""

from functools import cache

from .engine import Page, Table, Word, kind
from .kinds_exact import number
from .labels import Chunk, form, label_id

KEYWORDS = {"def", "return", "if", "else", "for", "in", "and", "or", "not"}
BUILTINS = {"max", "min", "len", "sum", "sorted", "abs", "print", "upper", "lower", "append"}
THINGS = ("entity.food.fruit+entity.food.vegetable+entity.food.sweet+entity.object.tool+entity.object.kitchen"
          "+entity.object.clothes+entity.object.toy+entity.animal.farm")  # fmt: skip


@cache
def piece(text: str, *tags: str) -> Chunk:
    """One word of code with its labels."""
    return Chunk(text, ((0, len(text), label_id({*tags, *form(text)})),))


def code(page: Page, line: str, arguments=(), variables=(), tag: str | None = None):
    """Write a line of code; its words are labelled by what they are. Words are separated as in `def f ( a , b ) :`."""
    for word in line.split(" "):
        if word == "_":
            page.put(" ")
        elif word in KEYWORDS:
            page.chunks.append(piece(word, "code.keyword"))
        elif word in BUILTINS:
            page.chunks.append(piece(word, "code.builtin"))
        elif word in arguments:
            page.chunks.append(piece(word, "code.argument"))
        elif word in variables:
            page.chunks.append(piece(word, "code.variable"))
        elif word.lstrip("-").isdigit():
            page.chunks.append(number(int(word), tag or "code.number"))
        elif word[:1] == '"':
            page.chunks.append(Chunk(word, ((1, len(word) - 1, label_id({"code.string", *form(word[1:])})),)))
        elif word and (word[0].isalpha()):
            page.chunks.append(piece(word, "code.function"))
        elif word in OPERATORS:
            page.chunks.append(Chunk(word, ((0, len(word), label_id({"code.operator"})),)))
        else:
            page.put(word.replace("\\n", "\n"))


OPERATORS = {"+", "-", "*", "//", ">", "<", "==", "=", "+=", "%"}


class Function:
    """A function's parts: name, arguments, docstring, body lines, and `call`: page -> (argument texts, result text)."""

    def __init__(self, name, arguments, doc, body, call, variables=()):
        self.name, self.arguments, self.doc, self.body, self.call = name, arguments, doc, body, call
        self.variables = variables


def plural(word: Word) -> str:
    """`pears`; the singular of what has no plural."""
    return (word.forms[1] if word.forms[1] != "-" else word.forms[0]).replace(" ", "_")


def total(page: Page) -> Function:
    """Sum or difference of two numbers of things."""
    word, color = page.noun(THINGS), page.draw.table(page.world.nouns("attribute.colour"))
    other = page.draw.table(page.world.nouns("attribute.colour"), [color])
    things, a, b = plural(word), color.forms[0], other.forms[0]
    if page.draw.chance(0.5):
        verb = page.draw.pick(("count", "add", "sum", "collect"))

        def call(page):
            x, y = page.draw.integer(1, 20), page.draw.integer(1, 20)
            return (str(x), str(y)), str(x + y)

        return Function(f"{verb}_{things}", (a, b), f"Return the number of {a} and {b} {things}.",
                        f"_ _ _ _ return _ {a} _ + _ {b}", call)  # fmt: skip
    verb = page.draw.pick(("more", "extra", "missing"))

    def call_less(page):
        x = page.draw.integer(2, 30)
        y = page.draw.integer(1, x - 1)
        return (str(x), str(y)), str(x - y)

    return Function(f"{verb}_{things}", (a, b), f"Return how many more {a} than {b} {things} there are.",
                    f"_ _ _ _ return _ {a} _ - _ {b}", call_less)  # fmt: skip


def price(page: Page) -> Function:
    """A product: the price of several things, or all things in several boxes."""
    things = plural(page.noun(THINGS))
    verb, second, doc = page.draw.pick((
        ("price_of", "price", "Return the price of all {}."),
        ("cost_of", "price", "Return what the {} cost."),
        ("all", "boxes", "Return the number of {} in all boxes."),
        ("total", "days", "Return the number of {} after some days."),
    ))  # fmt: skip

    def call(page):
        x, y = page.draw.integer(2, 10), page.draw.integer(2, 10)
        return (str(x), str(y)), str(x * y)

    return Function(f"{verb}_{things}", (things, second), doc.format(things),
                    f"_ _ _ _ return _ {things} _ * _ {second}", call)  # fmt: skip


def share(page: Page) -> Function:
    """A quotient without remainder."""
    things = plural(page.noun(THINGS))
    group = page.draw.pick(("children", "friends", "guests", "boxes"))

    def call(page):
        x, y = page.draw.integer(2, 10), page.draw.integer(2, 10)
        return (str(x * y), str(y)), str(x)

    return Function(f"share_{things}", (things, group), f"Return the {things} for each of the {group}.",
                    f"_ _ _ _ return _ {things} _ // _ {group}", call)  # fmt: skip


def extreme(page: Page) -> Function:
    """The largest or smallest of a list, its length or its sum."""
    things = plural(page.noun(THINGS))
    builtin, verb, doc, of = page.draw.pick((
        ("max", "most", "Return the largest number of {}.", max),
        ("min", "fewest", "Return the smallest number of {}.", min),
        ("len", "days_with", "Return on how many days there were {}.", len),
        ("sum", "all", "Return all {} of the list.", sum),
    ))  # fmt: skip

    def call(page):
        values = [page.draw.integer(1, 12 if builtin == "sum" else 30) for _ in range(page.draw.integer(2, 4))]
        text = " , _ ".join(map(str, values))
        return (f"[ {text} ]",), str(of(values))

    return Function(
        f"{verb}_{things}", ("numbers",), doc.format(things), f"_ _ _ _ return _ {builtin} ( numbers )", call
    )


def choose(page: Page) -> Function:
    """One of two words, by a limit."""
    thing = page.noun(THINGS).forms[0].replace(" ", "_")
    unit, high, low = page.draw.pick(
        (("size", "big", "small"), ("weight", "heavy", "light"), ("age", "old", "new"), ("price", "dear", "cheap"))
    )
    limit = page.draw.integer(3, 30)

    def call(page):
        x = page.draw.integer(1, 40)
        return (str(x),), f'"{high if x > limit else low}"'

    test = f'_ _ _ _ if _ {unit} _ > _ {limit} : \\n _ _ _ _ _ _ _ _ return _ "{high}"'
    doc = f"Return {high} or {low}, by the {unit} of the {thing}."
    return Function(f"describe_{thing}", (unit,), doc, f'{test} \\n _ _ _ _ return _ "{low}"', call)


def loop(page: Page) -> Function:
    """A sum by a loop, or how many numbers exceed a limit."""
    things = plural(page.noun(THINGS))
    limit = page.draw.integer(2, 9)
    if page.draw.chance(0.5):
        step, doc, of = "total _ += _ number", f"Add up the {things} of all days.", sum
        inner = f"_ _ _ _ _ _ _ _ {step}"
        name = f"add_{things}"
    else:
        inner = f"_ _ _ _ _ _ _ _ if _ number _ > _ {limit} : \\n _ _ _ _ _ _ _ _ _ _ _ _ total _ += _ 1"
        doc = f"Count the days with more than {limit} {things}."
        name = f"days_over_{limit}"

        def of(values):
            return sum(v > limit for v in values)

    def call(page):
        values = [page.draw.integer(1, 12) for _ in range(page.draw.integer(2, 4))]
        return (f"[ {' , _ '.join(map(str, values))} ]",), str(of(values))

    body = f"_ _ _ _ total _ = _ 0 \\n _ _ _ _ for _ number _ in _ numbers : \\n {inner} \\n _ _ _ _ return _ total"
    return Function(name, ("numbers",), doc, body, call, ("total", "number"))


SORTS = Table([total, price, extreme, choose, share, loop], [3, 2, 2, 2, 1, 2])


@kind("code", weight=1.5, topic="topic.programming")
def code_text(page: Page):
    """One or two functions, each with calls and their results."""
    for i in range(page.draw.integer(1, 2)):
        page.put("\n\n" if i else "")
        write(page, page.draw.table(SORTS)(page))


def write(page: Page, made: Function):
    """A function's text: head, docstring, body, calls."""
    seen = made.arguments, made.variables
    code(page, f"def _ {made.name} ( {' , _ '.join(made.arguments)} ) : \\n _ _ _ _", *seen)
    with page.span("code.docstring"):
        page.put(f'"""{made.doc}"""')
    page.put("\n")
    code(page, made.body, *seen)
    page.put("\n")
    for _ in range(page.draw.integer(2, 4)):
        given, result = made.call(page)
        page.put("\n")
        with page.span("code.call"):
            code(page, f"{made.name} ( {' , _ '.join(given)} )", *seen)
        page.put("  ")
        with page.span("code.comment"):
            page.put("# ")
            code(page, result, tag="code.result")
