"""The scenes: a plot with its people and things, rendered in a register (data/shapes.txt, data/plots.txt)."""

import re
from dataclasses import dataclass
from functools import cache

from .engine import Page, Table
from .language import FIRST_PERSON, lines, world

STAGE = re.compile(r"(?:(\.\d+):)?([a-z_]+)(\?)?(?:\*(\d))?$")
LONG = {"en": 1500, "fr": 900, "de": 950, "es": 900}  # characters from which no further episode begins


@dataclass(frozen=True)
class Shape:
    """How a register's stages follow each other."""

    name: str
    register: str
    weight: float
    steps: tuple  # ("stage", name, probability) | ("break", text) | ("loop", steps)


@dataclass(frozen=True, eq=False)
class Plot:
    """What happens: a topic and the classes of its roles."""

    name: str
    topic: str
    roles: dict


@cache
def plots() -> dict[str, Plot]:
    """The plots of data/plots.txt."""
    found, common = {}, {}
    for number, line in lines("plots.txt"):
        parts = [p.strip() for p in line.split("|")]
        if len(parts) != 3:
            raise ValueError(f"plots.txt:{number}: a line reads `plot | topic | role=class ...`, not {line!r}.")
        roles = dict(pair.split("=", 1) for pair in parts[2].split())
        if parts[0] == "*":
            common = roles
        else:
            found[parts[0]] = Plot(parts[0], parts[1], {**common, **roles})
    return found


@cache
def shapes() -> dict[str, Shape]:
    """The shapes of data/shapes.txt."""
    found = {}
    for number, line in lines("shapes.txt"):
        parts = [p.strip() for p in line.split("|")]
        if len(parts) != 4:
            raise ValueError(f"shapes.txt:{number}: a line reads `shape | register | weight | stages`, not {line!r}.")
        found[parts[0]] = Shape(parts[0], parts[1], float(parts[2]), steps(parts[3].split(), f"shapes.txt:{number}"))
    return found


def steps(tokens: list[str], place: str) -> tuple:
    """Parse a shape's stages; `loop ... end` repeats with a new plot until the text is long."""
    out, stack = [], []
    for token in tokens:
        if token == "loop":
            stack.append(out)
            out = []
        elif token == "end":
            out = [*stack.pop(), ("loop", tuple(out))]
        elif set(token) == {"/"}:
            out.append(("break", "\n" * len(token)))
        else:
            match = STAGE.match(token)
            if not match:
                raise ValueError(f"{place}: {token!r} is no stage (name, name?, .3:name, name*2, / or //).")
            chance = float(match.group(1) or (0.5 if match.group(3) else 1))
            out += [("stage", match.group(2), chance)] * int(match.group(4) or 1)
    return tuple(out)


def flat(parts) -> list[str]:
    """The stages a shape cannot do without."""
    return [
        s for p in parts for s in (flat(p[1]) if p[0] == "loop" else [p[1]] if p[0] == "stage" and p[2] == 1 else [])
    ]


@cache
def told(language: str, shape: str) -> Table | None:
    """The plots that the language can tell in a shape; None if there are none."""
    home, form = world(language), shapes()[shape]
    able = [p for p in plots().values() if all(home.has_section(form.register, p.name, s) for s in flat(form.steps))]
    return Table(able) if able else None


def scene(page: Page, shape: Shape):
    """Write a scene: its plot is drawn, then its stages."""
    page.register = shape.register
    page.narrator = "H" if shape.register in FIRST_PERSON else None
    if shape.register == "diary":
        page.bind("date", str(page.draw.integer(1, 28)), "entity.time.date")
    begin(page, page.draw.table(told(page.language, shape.name)))
    walk(page, shape, shape.steps, Seam())


class Seam:
    """What joins the next stage to the text: a space, or what a shape's / asks for."""

    def __init__(self):
        self.text = ""

    def stage(self, page: Page, name: str):
        """Write a stage after its joint."""
        if self.text:
            page.chunks.append(page.world.literal(self.text))
        self.text = " "
        page.stage(name)


def walk(page: Page, shape: Shape, parts, seam: Seam):
    """Write a shape's steps."""
    for part in parts:
        if part[0] == "break":
            seam.text = part[1] if page.chunks else ""
        elif part[0] == "loop":
            episodes(page, shape, part[1], seam)
        elif part[2] == 1 or (page.world.has_section(page.register, page.plot, part[1]) and page.draw.chance(part[2])):
            seam.stage(page, part[1])


def episodes(page: Page, shape: Shape, parts, seam: Seam):
    """Episodes with the same people until the text is long; no plot twice."""
    over, table = [], told(page.language, shape.name)
    while True:
        start = len(page.chunks)
        walk(page, shape, parts, seam)
        page.marks.append((start, len(page.chunks), plots()[page.plot].topic))
        over.append(plots()[page.plot])
        if len(page.text()) >= LONG[page.language] or len(over) == len(table.items):
            return
        begin(page, page.draw.table(table, over))
        if page.world.has_section(page.register, page.plot, "link"):
            seam.stage(page, "link")


def begin(page: Page, plot: Plot):
    """Take up a plot: its roles replace those of the plot before, but the hero, the friend and the pet stay."""
    page.plot, page.roles = plot.name, plot.roles
    page.entities = {role: e for role, e in page.entities.items() if role in ("H", "F", "V") or e.kind == "pet"}
