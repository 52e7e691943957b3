"""Chat requests for the instruction-tuned sibling: the same world, asked for or asked about.

Unusual here: the answer comes first. A text of the world is drawn and the request DESCRIBES it (its register, topic,
language, sometimes a feeling or a thing in it), so that every answer meets its request and no text is searched for.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b

from .engine import Draw, Spec, Table
from .labels import chunk
from .language import DATA, world
from .text import Text
from .tree import under

APART = 1 << 40  # added to the seed, so that requests are not about the texts of the stream itself
WRITTEN, READ = 900, 700  # characters of the longest text that is asked for, and asked about
TASKS = Table(["write", "read", "name"], [0.6, 0.25, 0.15])
SAID_BY_REGISTER = frozenset(  # registers whose topic goes without saying
    [
        "weather_report",
        "timetable",
        "price_list",
        "drill",
        "word_problem",
        "dictionary",
        "couplet",
        "code",
        "lesson",
        "recipe",
    ]
)
NAMES = {"en": "english", "fr": "french", "de": "german", "es": "spanish"}
THINGS = (
    "entity.animal",
    "entity.food",
    "entity.object",
    "entity.vehicle",
    "entity.place.water",
    "entity.place.building",
)


@dataclass(frozen=True)
class Request:
    """A dialogue that ends with the assistant's answer, and the concepts which that answer must carry.

    `task`: "write" a text, "read" a given text and answer from it, "name" a given text's language, register or topic.
    """

    turns: tuple[tuple[str, str], ...]  # ("user" or "assistant", what is said)
    wanted: tuple[str, ...]
    task: str
    text: Text | None = None  # the answer of a "write", with its labels

    @property
    def prompt(self) -> list[dict]:
        """The messages before the last answer, as chat templates take them."""
        return self.messages[:-1]

    @property
    def messages(self) -> list[dict]:
        """The whole dialogue, as chat templates take it."""
        return [{"role": role, "content": said} for role, said in self.turns]

    @property
    def answer(self) -> str:
        """The assistant's last turn."""
        return self.turns[-1][1]


@cache
def phrases(language: str) -> dict[str, tuple[str, ...]]:
    """Sentences and names of concepts of data/requests_<language>.txt."""
    found: dict[str, list[str]] = {}
    for line in (DATA / f"requests_{language}.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            key, _, said = line.partition(" | ")
            found.setdefault(key.removesuffix(" |").strip(), []).append(said.replace("\\n", "\n"))
    return {key: tuple(said) for key, said in found.items()}


def requests(seed: int = 0, split: str = "train") -> Iterator[Request]:
    """The split's endless stream of requests, a pure function of its arguments."""
    index = 0
    while True:
        yield request(index, seed, split)
        index += 1


def request(
    index: int,
    seed: int = 0,
    split: str = "train",
    task: str | None = None,
    kinds: tuple[str, ...] | None = None,
    languages: tuple[str, ...] | None = None,
) -> Request:
    """The split's request number `index`: of any task or of one, its text of any kind and language or of those given.

    A text to "read" is of its own kind, and English.
    """
    from . import mixture, text

    draw = Draw(int.from_bytes(blake2b(f"ask/{seed}/{split}/{index}".encode(), digest_size=8).digest()))
    drawn = draw.table(TASKS)
    task = task or drawn
    pairs = mixture(("qa",)) if task == "read" else mixture(kinds, languages)
    found, attempt = None, 0
    while found is None or not fits(found, task):
        found = text(index * 64 + attempt, seed + APART, split, pairs)
        attempt += 1
    return {"write": write, "read": read, "name": name}[task](draw, found)


def fits(text: Text, task: str) -> bool:
    """Whether a text is short enough for the task and of a register that can be named."""
    if len(text.text) > (WRITTEN if task == "write" else READ):
        return False
    return task == "read" or (bool(carried(text, "register") and carried(text, "topic")) and text.kind != "qa")


def carried(text: Text, group: str) -> str | None:
    """The concept of a group that spans the text and that requests can name."""
    names = [n for _, _, n in text.spans if n.startswith(group + ".") and n in phrases(text.language)]
    return names[0] if names else None


def asking(draw: Draw, text: Text) -> str:
    """The language a request is made in: the text's own or English."""
    return text.language if draw.chance(0.6) else "en"


def write(draw: Draw, text: Text) -> Request:
    """A request for the text, naming what it is like."""
    language = asking(draw, text)
    say = phrases(language)
    spans = {group: carried(text, group) for group in ("language", "register", "topic")}
    told = language == text.language and (language != "en" or draw.chance(0.7))
    wanted = [spans["language"], spans["register"]]
    implied = spans["register"].partition(".")[2] in SAID_BY_REGISTER
    sentence = draw.pick(say["bare" if implied else "write"])
    topic = say[spans["topic"]][0]
    if not implied:
        wanted.append(spans["topic"])
    where = "" if told else say["in"][0].format(language=say[spans["language"]][0])
    asked = sentence.format(
        **{"register": say[spans["register"]][0], "topic": topic, "Topic": topic[0].upper() + topic[1:], "in": where}
    )
    for kind, share in (("need", 0.3), ("thing", 0.3)):
        named = special(draw, text, language, kind) if draw.chance(share) else None
        if named:
            wanted.append(named[0])
            asked += " " + draw.pick(say[kind]).format(feeling=named[1], thing=named[1])
    return Request((("user", asked), ("assistant", text.text)), tuple(wanted), "write", text)


def special(draw: Draw, text: Text, language: str, kind: str) -> tuple[str, str] | None:
    """A feeling or a thing that the text holds: its concept and its name in the asking language."""
    labels = sorted({n for _, _, n in text.labels()})
    if kind == "need":
        feelings = sorted({n.rpartition(".")[0] for n in labels if n.startswith("sentiment.")} & set(phrases(language)))
        feelings = [f for f in feelings if f.count(".") == 2]
        picked = draw.pick(feelings) if feelings else None
        return (picked, phrases(language)[picked][0]) if picked else None
    words = things_of(language)
    things = [n for n in labels if n in words]
    picked = draw.pick(things) if things else None
    return (picked, noun(language, words[picked])) if picked else None


@cache
def things_of(language: str) -> dict:
    """The lexicon's words for things that can be asked for, by concept."""
    return {w.path: w for w in world(language).words if under(w.path, THINGS)}


def noun(language: str, word) -> str:
    """`a dog`, in the language."""
    return chunk(world(language).grammar.noun(word, Spec(det="a"), None, None)).text


def read(draw: Draw, text: Text) -> Request:
    """A small text and questions about it, one a turn."""
    fact, *rest = text.text.split("\nQuestion: ")
    asked = [one.split("\nAnswer: ") for one in rest[: draw.integer(1, 2)]]
    say = phrases(text.language)
    turns = [("user", draw.pick(say["read"]).format(text=fact, question=asked[0][0])), ("assistant", asked[0][1])]
    for question, answer in asked[1:]:
        turns += [("user", question), ("assistant", answer)]
    return Request(tuple(turns), (carried(text, "language"),), "read")


def name(draw: Draw, text: Text) -> Request:
    """A text whose language, register or topic is asked for."""
    language = asking(draw, text)
    say, group = phrases(language), draw.pick(("language", "register", "topic"))
    said = draw.pick(say[f"say {group}"]).format(**{group: say[carried(text, group)][0]})
    asked = draw.pick(say["read"]).format(text=text.text, question=draw.pick(say[f"ask {group}"]))
    return Request((("user", asked), ("assistant", said)), (f"language.{NAMES[language]}",), "name")
