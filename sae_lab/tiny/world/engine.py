"""The template engine of the labelled world: what a template may say, and the Page on which texts are written.

TEMPLATES live in data/<language>.txt (and data/kinds.<language>.txt), one a line, `#` comments, under section headers

    == story,news lost_pet problem      registers (or *), plot (or *), stage; a header without plot: == recipe step
    {H} could not find {P} (at home|anywhere). [neg {H he} was not in {R the}].

A Page looks a stage up as (register, plot), (*, plot), (register, *), (*, *). Stages in order make a text:
data/shapes.txt has `shape | register | weight | stage stage? .3:stage stage*2 / //`: `?` half the time, `.3:` with
that probability, `*2` twice (two different templates), `/` a line break, `//` an empty line, `loop ... end` episodes
until the text is long; else a space joins stages. data/plots.txt has `plot | topic | role=class role=class`; its `*`
line gives roles of every plot. data/synonyms.<language>.txt puts choices in place of phrases,
data/openers.<language>.txt before sentences of some stages that begin with a person.

SLOTS  {ROLE flags}   a role is one entity per text, drawn from its class (or a union a+b) at first use
  noun       {O the} {O a adj} {O pl} {O his=H} {O the acc} {L dans}; dets a the this that my your his=ROLE our their
             no some; adj: with the entity's own adjective (drawn once, kept); pl; the grammar's cases and prepositions;
             {O bare}: no article. Without any flag a thing's noun stands bare as well.
  person     {H} name, {H gen} `Omar's`, {H he} {H him} pronouns (the forms of grammar.pronouns), {H he?} name or
             pronoun where it can only mean H, {H trade the} {H trade a adj} the trade, {P} name of a named animal,
             {P the} its noun, {H name}: the name even where H is the narrator ("I": {H}, {H acc}, {H gen},
             {H he} ... become I, me, my, I ... if the grammar has `first`)
  anonymous  {~entity.food.fruit pl adj}: drawn afresh, none the text already used (adj?: an adjective now and then, as
             every noun with `the` or `a` gets; `the baker` may get a name and a place: the baker Felix from Ashford);
             {~sentiment.positive.joy @H}: an adjective agreeing with H (attribute.* and sentiment.* are adjectives);
             {~a.b+c.d the} a union; {~entity.time.day} {~entity.number}: words as they are; {~place} {~m} {~f}: names
  value      {=price}: text that a kind bound with page.bind("price", "12", "math.number")
  switch     {H?content:contente} {O?er:sie:es}: by gender m:f:n (n falls back to m)
  choice     (small|little|): uniform, may hold slots and be nested; (?a|b): not drawn, a where the hero narrates;
             without | literal parentheses; \\( \\| \\{ \\[ are literal
  spans      [neg ...] syntax.negated; [say=H "Come!"] a quotation by H; [concept.path ...] any other concept
  cap        capitalises a slot; done by itself at a template's start and after . ! ? and an opening quote there
  word^pos.noun^topic.x   labels one literal word in place of data/words.<language>.txt (`form | tag tag`)

KINDS plug in with the decorator `kind`:

    @kind("recipe", weight=1.0, languages=("en", "fr"), topic="topic.kitchen")
    def recipe(page):
        n = page.draw.integer(2, 5)              # .pick(seq) .chance(p) .integer(low, high) .table(Table) add to logp
        page.bind("n", str(n), "math.number")    # {=n} in templates
        page.stage("recipe", "title")            # a template of section `== recipe title`; page.stage(stage) is enough
        page.put("\\n")                          # literal text; page.put("def", "code.keyword") labels its words
        with page.span("list.item"):             # structural span
            page.stage("recipe", "step")

page.noun("entity.food.fruit") draws a lexicon Word (.path, .forms); page.set("G", word) binds a role to it. The split
of a text is the residue of its own hash (see __init__), so a kind needs no bookkeeping of heads.
"""

import math
from bisect import bisect_right
from dataclasses import dataclass
from functools import cache
from random import Random

from .labels import Chunk, chunk

LOG = [0.0, *(math.log(n) for n in range(1, 5000))]


class Table:
    """Items with their probabilities; `zipf` gives the r-th a weight of 1 / (r + 4)."""

    def __init__(self, items, weights=None):
        self.items = list(items)
        if not self.items:
            raise ValueError("A table of choices needs at least one item.")
        weights = list(weights) if weights else [1.0] * len(self.items)
        total, run = sum(weights), 0.0
        self.share = dict(zip(self.items, (w / total for w in weights), strict=True))
        self.cumulative = [run := run + w / total for w in weights]
        self.logs = [math.log(w / total) for w in weights]
        self.last = len(self.items) - 1


def zipf(items) -> Table:
    """A table whose items are in order of rank."""
    items = list(items)
    return Table(items, [1 / (rank + 4) for rank in range(1, len(items) + 1)])


class Draw:
    """One text's stream of random choices and the log-probability (nats) of those made so far."""

    def __init__(self, key: int):
        self.random = Random(key).random
        self.logp = 0.0

    def pick(self, items):
        """One of the items, each as likely."""
        n = len(items)
        if n > 1:
            self.logp -= LOG[n]
            return items[int(self.random() * n)]
        return items[0]

    def table(self, table: Table, taken=()):
        """An item of the table, by its probabilities, none of those taken (unless all are)."""
        share = table.share
        lost = sum([share[t] for t in share.keys() & taken]) if taken else 0.0
        if lost > 0.999:
            taken, lost = (), 0.0
        while True:
            i = min(bisect_right(table.cumulative, self.random()), table.last)
            if table.items[i] not in taken:
                self.logp += table.logs[i] - (math.log(1 - lost) if lost else 0.0)
                return table.items[i]

    def integer(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        self.logp -= LOG[high - low + 1] if high - low < 4998 else math.log(high - low + 1)
        return low + int(self.random() * (high - low + 1))

    def chance(self, p: float) -> bool:
        """True with probability p."""
        yes = self.random() < p
        self.logp += math.log(p if yes else 1 - p) if 0 < p < 1 else 0.0
        return yes


@dataclass(frozen=True, eq=False)
class Word:
    """A line of a lexicon: its concept path, forms (`dog`, `dogs`) and extra fields (`m`)."""

    path: str
    forms: tuple[str, ...]
    extra: tuple[str, ...] = ()


@dataclass(frozen=True)
class Spec:
    """A slot's flags."""

    det: str | None = None
    owner: str | None = None  # role of his=ROLE
    plural: bool = False
    case: str | None = None
    prep: str | None = None
    adj: bool = False
    maybe: bool = False  # adj?: an adjective now and then
    cap: bool = False
    trade: bool = False
    name: bool = False
    pronoun: str | None = None
    either: str | None = None  # he?: the pronoun or the name
    agree: str | None = None  # role of @ROLE

    @property
    def noun(self) -> bool:
        """Whether the flags ask for a noun rather than a name."""
        return bool(self.det or self.plural or self.adj or self.trade or self.prep) and not self.name


class Entity:
    """Someone or something of a text: what is drawn of it so far."""

    __slots__ = ("adjective", "drawn", "given", "kind", "mentioned", "role", "sex", "word")

    def __init__(self, role, kind, word=None):
        self.role, self.kind, self.word = role, kind, word  # kind: person, pet or thing
        self.sex = self.given = self.adjective = self.drawn = None
        self.mentioned = set()


class Page:
    """A text being written: its language's world, choices, entities, chunks and spans."""

    def __init__(self, world, draw: Draw, register: str = "", plot: str = "", roles=None):
        self.world, self.draw, self.register, self.plot = world, draw, register, plot
        self.language, self.grammar = world.language, world.grammar
        self.roles = roles or {}
        self.entities: dict[str, Entity] = {}
        self.values: dict[str, Chunk] = {}
        self.used: list = []
        self.told: set = set()  # templates this text has used
        self.chunks: list[Chunk] = []
        self.marks: list[tuple[int, int, str]] = []  # spans, in chunks
        self.narrator: str | None = None
        self.speaker: str | None = None

    def put(self, text: str, *tags: str):
        """Write literal text; the tags go on each of its words."""
        self.chunks.append(self.world.literal(text, tags))

    def bind(self, name: str, text: str, *tags: str):
        """Give {=name} its text."""
        self.values[name] = literal_value(text, tags)

    def set(self, role: str, word: Word):
        """Bind a role to a lexicon word already drawn."""
        self.entities[role] = Entity(role, "pet" if self.roles.get(role) == "pet" else "thing", word)
        self.used.append(word)

    def noun(self, path: str) -> Word:
        """A word of a class, none this text has used."""
        word = self.draw.table(self.world.nouns(path), self.used)
        self.used.append(word)
        return word

    def span(self, concept: str) -> "Span":
        """Context manager: what is written within carries the concept."""
        return Span(self, concept)

    def text(self) -> str:
        """What is written so far."""
        return "".join([c.text for c in self.chunks])

    def stage(self, *where: str):
        """Write a template of the section, not yet told in this text: stage(stage) or stage(register, stage)."""
        register = where[0] if len(where) == 2 else self.register
        section = self.world.section(register, self.plot, where[-1])
        fresh = [t for t in section if t not in self.told] if self.told else section
        self.write(self.draw.pick(fresh or section))

    def write(self, template):
        """Write a compiled template."""
        self.told.add(template)
        self.run(template.ops)

    def run(self, ops):
        """Write a template's parts."""
        chunks = self.chunks
        for op in ops:
            if type(op) is Chunk:
                chunks.append(op)
            else:
                op(self)

    def entity(self, role: str) -> Entity:
        """The entity of a role, drawn at its first use."""
        found = self.entities.get(role)
        if found is None:
            what = self.roles.get(role)
            if what is None:
                raise KeyError(f"No role {role!r} in plot {self.plot!r}. Known: {', '.join(sorted(self.roles))}.")
            if what == "person":
                found = Entity(role, "person")
            elif what == "pet":
                found = Entity(role, "pet", self.noun("entity.animal.pet"))
            else:
                found = Entity(role, "thing", self.noun(what))
            self.entities[role] = found
        return found

    def sex(self, entity: Entity) -> str | None:
        """m or f for persons and named animals, drawn at first use; None for things."""
        if entity.sex is None and entity.kind != "thing":
            fixed = self.grammar.sex(entity.word) if entity.kind == "pet" else None
            entity.sex = fixed or self.draw.pick("mf")
        return entity.sex

    def gender(self, role: str) -> str:
        """The gender that pronouns for the role follow."""
        entity = self.entity(role)
        sex = self.sex(entity)
        return sex if entity.kind == "person" else self.grammar.gender(entity.word, sex)

    def given(self, entity: Entity) -> str:
        """The entity's name."""
        if entity.given is None:
            sex = self.sex(entity)
            key = f"pet {sex}" if entity.kind == "pet" else sex
            entity.given = self.draw.table(self.world.names[key], self.used)
            self.used.append(entity.given)
        return entity.given

    def trade(self, entity: Entity) -> Word:
        """The person's trade."""
        if entity.word is None:
            entity.word = self.noun("entity.person.trade")
        return entity.word

    def adjective(self, entity: Entity) -> Word:
        """The entity's own adjective."""
        if entity.adjective is None:
            word = self.trade(entity) if entity.kind == "person" else entity.word
            entity.adjective = self.draw.table(self.world.adjectives(word))
        return entity.adjective


class Span:
    """Marks what a Page writes within it with a concept."""

    def __init__(self, page: Page, concept: str):
        self.page, self.concept = page, concept

    def __enter__(self):
        self.start = len(self.page.chunks)

    def __exit__(self, *_):
        self.page.marks.append((self.start, len(self.page.chunks), self.concept))


@cache
def literal_value(text: str, tags: tuple) -> Chunk:
    """A chunk whose words all carry the tags."""
    return chunk([(text, tags)])


@dataclass(frozen=True)
class Kind:
    """A kind of text: its function writes one on a Page."""

    name: str
    write: object
    weight: float
    languages: tuple[str, ...] | None  # None: every language that has its sections
    topic: str | None


KINDS: dict[str, Kind] = {}


def kind(name: str, weight: int | float = 1.0, languages: tuple[str, ...] | None = ("en",), topic: str | None = None):
    """Register a function(page) as a kind of text; its texts carry register.<name> and the topic."""

    def register(write):
        if name in KINDS:
            raise ValueError(f"The kind {name!r} is registered twice.")
        KINDS[name] = Kind(name, write, float(weight), languages, topic)
        return write

    return register
