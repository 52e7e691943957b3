"""Compiles a template's line (syntax: engine.py) into parts that write themselves on a Page, each phrase built once."""

import re

from .engine import Page, Spec, Table
from .labels import Chunk, chunk

SENTENCE_END = re.compile(r"(?:^|[.!?…]|[.…][\"”»“]|\.\s»)[\s\"“„«¿¡—]*$")
TAGGED = re.compile(r"([^\s^\"“„«¿¡(]+)\^(\w+(?:\.\w+)+(?:\^\w+(?:\.\w+)+)*)")
PLAIN = re.compile(r"[^\\{}()\[\]|]+")


MAYBE = 0.6  # how often `adj?` gives an adjective, and a noun drawn afresh with an article
STACKED = 0.3  # how often a second adjective stands before the first, in languages whose grammar can stack them
NAMED = 0.6  # how often somebody known by the trade is given a name
ORIGIN = 0.5  # how often somebody with a name is said to come from somewhere
DESCRIBED = tuple(
    f"entity.{c}" for c in ("person.trade", "animal", "place", "object", "food.sweet", "food.fruit", "plant")
)


class TemplateError(ValueError):
    """A template that cannot be compiled: names its file and line."""


class Template:
    """A compiled line of a section."""

    __slots__ = ("ops", "source")

    def __init__(self, source: str, ops: tuple):
        self.source, self.ops = source, ops

    def __repr__(self) -> str:
        return f"Template({self.source!r})"


class Compiler:
    """One template's parse: recursive descent over the line."""

    def __init__(self, world, source: str, place: str):
        self.world, self.source, self.place, self.at, self.start = world, source, place, 0, True

    def fail(self, why: str):
        """Raise with the file and line."""
        raise TemplateError(f"{self.place}: {why} in the template {self.source!r}.")

    def template(self) -> Template:
        """The whole line."""
        ops = self.sequence("")
        if self.at < len(self.source):
            self.fail(f"Unexpected {self.source[self.at]!r} at column {self.at + 1} (escape a literal one with \\)")
        return Template(self.source, ops)

    def sequence(self, ends: str) -> tuple:
        """Parts up to one of the end characters, which is not consumed."""
        ops: list = []
        text = ""
        while self.at < len(self.source):
            c = self.source[self.at]
            if c in ends or c in "|)]}":
                break
            if c == "\\":
                text += {"n": "\n"}.get(self.source[self.at + 1 : self.at + 2], self.source[self.at + 1 : self.at + 2])
                self.at += 2
                continue
            if c not in "{([":
                found = PLAIN.match(self.source, self.at)
                text += found.group()
                self.at = found.end()
                continue
            ops += self.literal(text)
            text = ""
            self.at += 1
            ops.append({"{": self.slot, "(": self.choice, "[": self.span}[c]())
        ops += self.literal(text)
        return tuple(ops)

    def literal(self, text: str) -> list:
        """A chunk of literal words; `word^tag` sets a word's labels here."""
        if not text:
            return []
        out, last = [], 0
        for found in TAGGED.finditer(text):
            if found.start() > last:
                out.append(self.world.literal(text[last : found.start()]))
            out.append(chunk([(found.group(1), tuple(found.group(2).split("^")))]))
            last = found.end()
        if last < len(text):
            out.append(self.world.literal(text[last:]))
        if re.sub(r"[\s\"“„«¿¡—]", "", text):
            self.start = bool(SENTENCE_END.search(text)) and not re.search(r"[!?]\s?[\"”»“]\s*$", text)
        return out

    def close(self, c: str, what: str):
        """Consume a closing character."""
        if self.source[self.at : self.at + 1] != c:
            self.fail(f"No {c!r} closes the {what}")
        self.at += 1

    def choice(self):
        """(a|b|c), or (?a|b): not drawn, a where the hero narrates and b elsewhere"""
        asks = self.source.startswith("?", self.at)
        self.at += asks
        start, branches = self.start, []
        while True:
            self.start = start
            branches.append(self.sequence("|)"))
            if self.source[self.at : self.at + 1] != "|":
                break
            self.at += 1
        self.close(")", "choice")
        if len(branches) == 1:  # parentheses without | are literal
            ops = (self.world.literal("("), *branches[0], self.world.literal(")"))
            return lambda page: page.run(ops)
        branches = tuple(branches)
        if asks:
            return lambda page: page.run(branches[not page.narrator])
        if start and () in branches:
            self.start = "maybe"
        count = {b: branches.count(b) for b in branches}
        if len(count) < len(branches):  # a branch that stands twice is as likely as two
            table = Table(count, count.values())
            return lambda page: page.run(page.draw.table(table))

        def op(page: Page):
            page.run(page.draw.pick(branches))

        return op

    def span(self):
        """[name ...]"""
        found = re.compile(r"(say=\w+|[\w.]+) ").match(self.source, self.at)
        if not found:
            self.fail("A span reads [neg ...], [say=H ...] or [concept.path ...]")
        self.at = found.end()
        name = found.group(1)
        ops = self.sequence("]")
        self.close("]", "span")
        speaker = name[4:] if name.startswith("say=") else None
        concept = "syntax.negated" if name == "neg" else name

        def op(page: Page):
            start = len(page.chunks)
            page.run(ops)
            label = concept
            if speaker:
                changed, page.speaker = page.speaker not in (None, speaker), speaker
                label = "discourse.speaker_change" if changed else None
            if label:
                page.marks.append((start, len(page.chunks), label))

        return op

    def slot(self):
        """{...}"""
        end = self.source.find("}", self.at)
        if end < 0:
            self.fail("No '}' closes the slot")
        body, self.at = self.source[self.at : end], end + 1
        cap, self.start = self.start, False
        if body.startswith("="):
            return self.value(body[1:], cap)
        if re.match(r"[A-Z]\d?\?", body):
            return self.switch(*body.split("?", 1))
        target, *flags = body.split()
        if cap == "maybe":  # after a choice at the start that may have been empty
            lower, upper = (
                self.target(target, self.spec(flags, False), body),
                self.target(target, self.spec(flags, True), body),
            )
            return lambda page: (lower, upper)[begins(page)](page)
        return self.target(target, self.spec(flags, cap), body)

    def target(self, target: str, spec: Spec, body: str):
        """The part for a slot's target and flags."""
        if target.startswith("~"):
            return self.anonymous(target[1:], spec)
        if not re.fullmatch(r"[A-Z]\d?", target):
            self.fail(
                f"Unknown slot {{{body}}}: a role is a capital letter, {{~class}} a fresh noun, {{=name}} a value"
            )
        return self.role(target, spec)

    def spec(self, flags, cap: bool) -> Spec:
        """The flags, read by the language's grammar."""
        grammar, known = self.world.grammar, {"cap": cap}
        for flag in flags:
            if flag in grammar.dets:
                known["det"] = flag
            elif flag.startswith("his=") and "his" in grammar.dets:
                known["det"], known["owner"] = "his", flag[4:]
            elif flag in grammar.preps:
                known["prep"] = flag
            elif flag in grammar.cases:
                known["case"] = flag
            elif flag in ("adj", "cap", "trade", "name"):
                known[flag] = True
            elif flag == "adj?":
                known["maybe"] = True
            elif flag.endswith("?") and flag[:-1] in grammar.pronouns:
                known["either"] = flag[:-1]
            elif flag == "bare":
                known["trade"] = True
            elif flag == "pl":
                known["plural"] = True
            elif flag.startswith("@"):
                known["agree"] = flag[1:]
            elif flag not in grammar.pronouns:
                self.fail(f"Unknown flag {flag!r}")
            if flag in grammar.pronouns and (flag not in grammar.dets):
                known["pronoun"] = flag
            elif flag == "his":
                known["pronoun"] = flag
                known.pop("det", None)
        return Spec(**known)

    def value(self, name: str, cap: bool):
        """{=name}"""
        place = self.place

        def op(page: Page):
            if name not in page.values:
                raise TemplateError(
                    f"{place}: no value {name!r} is bound. Bound: {', '.join(sorted(page.values)) or 'none'}."
                )
            page.chunks.append(page.values[name])

        return op

    def switch(self, role: str, body: str):
        """{H?content:contente}"""
        forms = body.split(":")
        if len(forms) not in (2, 3):
            self.fail(f"A switch {{{role}?m:f}} or {{{role}?m:f:n}} has two or three forms")
        parts = [self.world.literal(f) if f else Chunk("", ()) for f in forms]
        by = {"m": parts[0], "f": parts[1], "n": parts[-1] if len(parts) == 3 else parts[0]}

        def op(page: Page):
            page.chunks.append(by[page.gender(role)])

        return op

    def anonymous(self, path: str, spec: Spec):
        """{~class flags}"""
        world, grammar, memo = self.world, self.world.grammar, self.world.memo("noun", spec)
        if path in world.names or path in ("m", "f", "place"):
            return self.named(path, spec)
        table = (
            world.nouns(path) if world.has(path) else self.fail(f"No class {path!r} in lexicon.{world.language}.txt")
        )
        adjectival = path.startswith(("attribute.", "sentiment."))
        plain = path.startswith("entity.number") or (path.startswith("entity.time.") and not spec.noun)
        entity = path.startswith("entity.")
        trade = path.startswith("entity.person.trade") and not spec.plural
        named = trade and spec.det == "the" and spec.case != "gen"
        maybe = spec.maybe or (spec.det in ("the", "a") and not spec.adj and path.startswith(DESCRIBED))
        stack, gendered = getattr(grammar, "stack", None), hasattr(grammar, "person")

        def op(page: Page):
            word = page.draw.table(table, page.used if entity else ())
            sex = "m"
            if entity:
                page.used.append(word)
                if trade and gendered:
                    sex = page.draw.pick("mf")
            gender = page.gender(spec.agree) if spec.agree else "m"
            owner = page.gender(spec.owner) if spec.owner else None
            adjective = None
            second = None
            if spec.adj or (maybe and page.draw.chance(MAYBE)):
                adjective = page.draw.table(world.adjectives(word))
                if stack and page.draw.chance(STACKED):
                    second = page.draw.table(world.beside(word, adjective))
            key = (word, adjective, second, sex, gender, owner, spec.owner is not None and spec.owner == page.narrator)
            found = memo.get(key)
            if found is None:
                if adjectival:
                    pieces = grammar.adjective(word, gender, spec.plural)
                elif plain:
                    part = "pos.numeral" if path.startswith("entity.number") else "pos.noun"
                    pieces = [(word.forms[0], (word.path, part))]
                else:
                    one = grammar.person(word, sex) if trade and gendered else word
                    both = stack(adjective, second) if second else adjective
                    pieces = grammar.noun(one, mine(spec, page), both, owner)
                found = memo[key] = phrase(pieces, spec)
            page.chunks.append(found)
            if named and page.draw.chance(NAMED):
                bystander(page, sex if gendered else page.draw.pick("mf"))

        return op

    def named(self, key: str, spec: Spec):
        """{~place} {~m} {~f}: a name drawn afresh."""
        world, grammar, memo = self.world, self.world.grammar, self.world.memo(key, spec)
        tags = ("pos.name", "entity.place.name") if key == "place" else ("pos.name",)

        def op(page: Page):
            name = page.draw.table(world.names[key], page.used)
            page.used.append(name)
            if name not in memo:
                memo[name] = phrase([(p, (*t, *tags)) for p, t in grammar.name(name, spec, key[0])], spec)
            page.chunks.append(memo[name])

        return op

    def role(self, role: str, spec: Spec):
        """{ROLE flags}: pronoun, narrator, name or noun phrase, by what the role is and which flags it carries."""
        grammar, memo = self.world.grammar, self.world.memo("role", spec)

        def op(page: Page):
            entity = page.entity(role)
            narrates = page.narrator == role and not spec.name and not spec.trade and grammar.first
            if narrates:
                pieces, key = None, grammar.first[spec.pronoun or spec.case or "nom"]
            elif spec.pronoun or (spec.either and alone(page, role) and page.draw.pick((True, False))):
                pieces, key = None, grammar.pronouns[spec.pronoun or spec.either][page.gender(role)]
            elif spec.noun or entity.kind == "thing":
                page.chunks.append(noun_chunk(page, entity, spec, memo, grammar))
                return
            else:
                name, sex = page.given(entity), entity.sex
                key = (name, sex, "name" in entity.mentioned)
                entity.mentioned.add("name")
                pieces = None if key in memo else again(grammar.name(name, spec, sex), key[-1])
            if key not in memo:
                memo[key] = phrase(pieces or [(key, ("pos.pronoun",))], spec)
            page.chunks.append(memo[key])

        return op


def begins(page: Page) -> bool:
    """Whether a sentence begins here: nothing, or a stop, before."""
    for one in reversed(page.chunks):
        text = one.text.rstrip(" ")
        if text:
            return not (text[-1].isalnum() or text[-1] == ",")
    return True


def alone(page: Page, role: str) -> bool:
    """Whether a pronoun can only mean this person: named before, and no other role is a person of the same sex."""
    one = page.entities[role]
    others = (e for r, e in page.entities.items() if r != role and e.kind != "thing")
    return "name" in one.mentioned and all(e.sex not in (None, one.sex) for e in others)


def bystander(page: Page, sex: str):
    """The name of somebody who comes up once: `the baker` Felix."""
    name = page.draw.table(page.world.names[sex], page.used)
    page.used.append(name)
    page.put(" ")
    page.put(name, "pos.name")
    origin = getattr(page.grammar, "origin", None)
    if origin and page.draw.chance(ORIGIN):
        place = page.draw.table(page.world.names["place"], page.used)
        page.used.append(place)
        page.put(f" {origin(place)}")
        page.put(place, "pos.name", "entity.place.name")


def noun_chunk(page: Page, entity, spec: Spec, memo: dict, grammar) -> Chunk:
    """The noun phrase of an entity (of a person: of the trade)."""
    word = page.trade(entity) if entity.kind == "person" else entity.word
    adjective = page.adjective(entity) if spec.adj else None
    sex = page.sex(entity) if entity.kind == "person" else None
    owner = page.gender(spec.owner) if spec.owner else None
    mine_too = spec.owner is not None and spec.owner == page.narrator
    key = (word, adjective, sex, owner, mine_too, "noun" in entity.mentioned)
    entity.mentioned.add("noun")
    found = memo.get(key)
    if found is None:
        form = page.grammar.person(word, sex) if sex and hasattr(page.grammar, "person") else word
        found = memo[key] = phrase(again(grammar.noun(form, mine(spec, page), adjective, owner), key[-1]), spec)
    return found


def mine(spec: Spec, page: Page) -> Spec:
    """The spec, with `my` for `his=H` where H is the narrator."""
    if spec.owner and spec.owner == page.narrator and page.grammar.first:
        return Spec(**{**spec.__dict__, "det": "my", "owner": None})
    return spec


def again(pieces, second: bool) -> list:
    """The pieces, nouns and names marked as mentioned before."""
    if not second:
        return pieces
    return [(p, (*t, "discourse.second_mention") if {"pos.noun", "pos.name"} & set(t) else t) for p, t in pieces]


def phrase(pieces, spec: Spec) -> Chunk:
    """The chunk of a phrase, capitalised if the slot asks for it."""
    if spec.cap:
        first, tags = pieces[0]
        pieces = [(first[:1].upper() + first[1:], tags), *pieces[1:]]
    return chunk(pieces)
