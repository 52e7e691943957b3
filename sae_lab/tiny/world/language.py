"""One language's world: lexicon, names, word labels and template sections, read from data/ once."""

import importlib
import re
from functools import cache
from pathlib import Path

from .engine import Draw, Page, Table, Word
from .labels import WORD, Chunk, form, full, label_id
from .templates import Compiler, TemplateError

DATA = Path(__file__).parent / "data"
FIRST_PERSON = {"letter", "diary"}  # registers whose H says "I"


@cache
def languages() -> tuple[str, ...]:
    """The languages that have a data/<language>.txt; English first."""
    found = sorted(p.stem for p in DATA.glob("??.txt"))
    return tuple(sorted(found, key=lambda name: name != "en"))


@cache
def world(language: str) -> "World":
    """The language's world."""
    if language not in languages():
        raise KeyError(f"No language {language!r} in the world. Known: {', '.join(languages())}.")
    return World(language)


def lines(name: str):
    """(line number, line) of a data file, without comments and empty lines; nothing if the file is absent."""
    path = DATA / name
    if not path.exists():
        return
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip() and not line.startswith("#"):
            yield number, line.strip()


@cache
def adjective_classes() -> dict[str, tuple[str, ...]]:
    """data/adjectives.txt: which classes of adjectives suit a class of nouns."""
    return {k.strip(): tuple(v.split()) for k, v in (line.split("|") for _, line in lines("adjectives.txt"))}


class World:
    """What a language's texts are made of."""

    def __init__(self, language: str):
        self.language = language
        self.grammar = importlib.import_module(f".grammar_{language}", __package__).Grammar()
        self.words: list[Word] = []
        for number, line in lines(f"lexicon.{language}.txt"):
            path, bar, rest = (part.strip() for part in line.partition("|"))
            if not bar or not rest:
                raise TemplateError(
                    f"lexicon.{language}.txt:{number}: a line reads `concept.path | forms`, not {line!r}."
                )
            self.words.append(self.read_word(path, rest))
        self.under: dict[str, list[Word]] = {}  # a concept -> the words at or under it, in the lexicon's order
        for word in self.words:
            steps = word.path.split(".")
            for n in range(1, len(steps) + 1):
                self.under.setdefault(".".join(steps[:n]), []).append(word)
        self.tags = self.read_tags()
        self.names = {}
        for _, line in lines(f"names.{language}.txt"):
            key, _, names = (part.strip() for part in line.partition("|"))
            self.names[key] = zipf_names(names.split())
        self.ways, self.phrases = read_synonyms(language)
        self.openers = {
            stage: opener
            for _, line in lines(f"openers.{language}.txt")
            for stages, opener in [line.split(" | ", 1)]
            for stage in stages.split()
        }
        self.tables: dict = {}
        self.literals: dict = {}
        self.memos: dict = {}
        self.found: dict = {}
        self.sections: dict = {}
        for file in sorted({f"{language}.txt", *(p.name for p in DATA.glob(f"*.{language}.txt"))}):
            if not file.startswith(("lexicon.", "names.", "words.", "synonyms.", "openers.")):
                self.read_sections(file)

    def read_word(self, path: str, rest: str) -> Word:
        """A lexicon line's word: forms up to the first space (their own spaces are written _), then extra fields."""
        forms, *extra = rest.split()
        return Word(path, tuple(f.replace("_", " ") for f in forms.split("/")), tuple(extra))

    def read_tags(self) -> dict[str, tuple[str, ...]]:
        """Labels of literal words: the lexicon's forms, overridden by words.<language>.txt."""
        tags = {}
        for word in reversed(self.words):
            kind = "pos.adjective" if word.path.startswith(("attribute.", "sentiment.")) else "pos.noun"
            kind = "pos.numeral" if word.path.startswith("entity.number") else kind
            for n, one in enumerate(word.forms):
                plural = ("number.plural",) if kind == "pos.noun" and n == 1 else ()
                tags[one.lower()] = (word.path, kind, *plural)
        for _, line in lines(f"words.{self.language}.txt"):
            one, _, names = line.partition("|")
            tags[one.strip().lower()] = tuple(names.split())
        return tags

    def read_sections(self, file: str):
        """Compile a template file."""
        keys = None
        for number, line in lines(file):
            place = f"{file}:{number}"
            if line.startswith("=="):
                head = line[2:].split()
                if len(head) not in (2, 3):
                    raise TemplateError(f"{place}: a header reads `== registers plots stage` or `== register stage`.")
                plots = head[1].split(",") if len(head) == 3 else ["*"]
                keys = [(r, p, head[-1]) for r in head[0].split(",") for p in plots]
                continue
            if keys is None:
                raise TemplateError(f"{place}: a template stands before the first `== register stage` header.")
            varied = line if file.startswith("kinds.") else self.vary(line)  # a kind's words are exact
            if keys[0][2] in self.openers:
                varied = opened(varied, self.openers[keys[0][2]])
            template = Compiler(self, varied, place).template()
            for key in keys:
                self.sections.setdefault(key, []).append(template)

    def vary(self, line: str) -> str:
        """The template with a choice in place of every phrase of synonyms.<language>.txt; slots stay as they are."""
        if not self.phrases:
            return line
        parts = re.split(r"(\{[^}]*\}|\[[\w.=]+ )", line)
        parts[::2] = [self.phrases.sub(lambda m: self.ways[m.group()], part) for part in parts[::2]]
        return "".join(parts)

    def section(self, register: str, plot: str, stage: str):
        """The templates of a stage: the register's own for the plot, else of any register, else of any plot."""
        key = (register, plot, stage)
        found = self.found.get(key)
        if found is None:
            found = next((self.sections[t] for t in self.tries(register, plot, stage) if t in self.sections), None)
            if found is None:
                raise KeyError(f"No section `== {register} {plot or '*'} {stage}` in the {self.language} templates.")
            self.found[key] = found
        return found

    def has_section(self, register: str, plot: str, stage: str) -> bool:
        """Whether a stage has templates."""
        return any(t in self.sections for t in self.tries(register, plot, stage))

    def tries(self, register: str, plot: str, stage: str) -> list[tuple]:
        """Where a stage is looked up; `*` registers tell of a third person, who narrates in grammars with `first`."""
        own = [(register, plot, stage), (register, "*", stage)]
        if register in FIRST_PERSON and not self.grammar.first:
            return own
        return [own[0], ("*", plot, stage), own[1], ("*", "*", stage)]

    def has(self, path: str) -> bool:
        """Whether the lexicon knows the class (or every class of a union a+b)."""
        return all(one in self.under for one in path.split("+"))

    def nouns(self, path: str) -> Table:
        """The words of a class or a union a+b, likelier the earlier they stand in their class."""
        if path not in self.tables:
            words, weights = [], []
            for one in path.split("+"):
                ranks: dict[str, int] = {}
                for word in self.under.get(one, ()):
                    parent = word.path.rpartition(".")[0]
                    ranks[parent] = ranks.get(parent, 0) + 1
                    words.append(word)
                    weights.append(1 / (ranks[parent] + 30))
            if not words:
                raise KeyError(f"No class {path!r} in lexicon.{self.language}.txt.")
            self.tables[path] = Table(words, weights)
        return self.tables[path]

    def adjectives(self, word: Word) -> Table:
        """The adjectives that suit a noun, by data/adjectives.txt; the longest prefix of its path that is listed."""
        classes, path = adjective_classes(), word.path
        while path not in classes and path:
            path = path.rpartition(".")[0]
        if not path:
            raise KeyError(f"adjectives.txt lists no adjectives for {word.path!r} nor for any class above it.")
        return self.nouns("+".join(classes[path]))

    def beside(self, word: Word, adjective: Word) -> Table:
        """The adjectives that can stand beside another before a noun: of another class (big, but not big and large)."""
        key = (word, adjective)
        if key not in self.tables:
            table = self.adjectives(word)
            left = [w for w in table.items if sort(w) != sort(adjective) and w.forms != adjective.forms]
            self.tables[key] = Table(left, [table.share[w] for w in left]) if left else Table([adjective])
        return self.tables[key]

    def literal(self, text: str, tags=()) -> Chunk:
        """Literal text whose words carry the given tags, else those that the word lists give them."""
        found = self.literals.get((text, tags))
        if found is None:
            words = []
            for match in WORD.finditer(text):
                own = tags or self.tags.get(match.group().lower(), ())
                label = label_id({full(t) for t in own}.union(form(match.group())))
                words.append((match.start(), match.end(), label))
            found = self.literals[text, tags] = Chunk(text, tuple(words))
        return found

    def memo(self, what: str, spec) -> dict:
        """The phrases built so far for slots of a sort with the same flags."""
        return self.memos.setdefault((what, spec), {})

    def page(self, draw: Draw, register: str = "", plot: str = "", roles=None) -> Page:
        """An empty page."""
        return Page(self, draw, register, plot, roles)


def opened(template: str, opener: str) -> str:
    """The template with an opener's choice before it, if it begins with a person: {H}, {F} or (?I|{H} ...)."""
    if template.startswith(("{H} ", "{F} ")):
        return opener + template
    narrated = re.match(r"\(\?(\w)([^()]*\|\{H\}[^()]*\))", template)
    if not narrated:
        return template
    first, rest = narrated.groups()
    return f"({opener.replace('(||', '(', 1)}(?{first.lower()}{rest}|(?{first}{rest}){template[narrated.end() :]}"


def read_synonyms(language: str):
    """{phrase: "(way|way)"} and a pattern of all phrases, longest first; None for none."""
    ways = {}
    for _, line in lines(f"synonyms.{language}.txt"):
        phrase, _, several = line.partition(" | ")
        several = several.split(" / ")
        ways[phrase] = f"({'|'.join(several)})" if len(several) > 1 else several[0]
    if not ways:
        return {}, None
    longest = sorted(ways, key=len, reverse=True)
    return ways, re.compile(r"(?<![\w^])(?:" + "|".join(map(re.escape, longest)) + r")(?![\w^])")


def sort(adjective: Word) -> str:
    """The class of an adjective, of which a noun phrase has one; a large place is a size among the qualities."""
    return "size" if adjective.path.endswith(".large") else adjective.path.split(".")[1]


def inside(path: str, prefix: str) -> bool:
    """Whether a concept lies at or under another."""
    return path == prefix or path.startswith(prefix + ".")


def zipf_names(names) -> Table:
    """Names by rank; flatter than nouns, so that names carry their share of the surprise."""
    return Table(names, [1 / (rank + 60) for rank in range(1, len(names) + 1)])
