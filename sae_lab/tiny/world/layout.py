"""What the layout of any text shows: its register, quotations, numbers and sums, lists, code, negations.

Every function gives (start, end, concept) spans and says nothing where the cues are weak.
"""

import re

from .text import QUOTED

NAME = r"[A-ZÀ-Ý][\w'-]+"
TIME = re.compile(r"\b\d{1,2}:\d\d\b")
STOP = re.compile(rf"^\d{{1,2}}:\d\d {NAME}", re.M)
SUM = re.compile(r"(?<![\d+\-x/=.:])(?<![\d+x/=] )(-?\d{1,9}) ([+\-x/]) (\d{1,9}) = (-?\d{1,9})(?![\d:])(?!\.\d)")
SIGN = {"+": "math.plus", "-": "math.minus", "x": "math.times", "/": "math.over"}
DAYS = "monday|tuesday|wednesday|thursday|friday|saturday|sunday|"
DAYS += "montag|dienstag|mittwoch|donnerstag|freitag|samstag|sonntag|"
DAYS += "lundi|mardi|mercredi|jeudi|vendredi|samedi|dimanche|lunes|martes|miércoles|jueves|viernes|sábado|domingo"
MONTHS = "january|february|march|april|may|june|july|august|september|october|november|december|"
MONTHS += "januar|februar|märz|mai|juni|juli|oktober|dezember|"
MONTHS += "janvier|février|mars|avril|juin|juillet|août|septembre|octobre|novembre|décembre|"
MONTHS += "enero|febrero|marzo|abril|mayo|junio|julio|agosto|septiembre|octubre|noviembre|diciembre"
GREETING = re.compile(
    r"(my |mon |ma |meine? |mi )?(dear|dearest|cher|chère|querid[oa]|lieber?|liebster?|hallo|guten? \w+,)\b"
    r"[^.!?\n]{2,50}[,:]\n",
    re.I,
)
DATED = re.compile(rf"^([^\n,]+, )?({DAYS})\b[^!?\n]{{0,12}} [^!?\n]*({MONTHS})\b[^.!?\n]*\n", re.I)
CODE = re.compile(r"^def \w+\([\w, ]*\):", re.M)
SPEECH = re.compile(rf"^{NAME} ?: ", re.M)
QUOTE_LINE = re.compile(r"^[\"“«„]", re.M)
PRICED = re.compile(r"^(- )?([^\d\n]+ ?: \d+ euros?\b.*|\d+ euros? \D+)$", re.M | re.I)
ENTRY = re.compile(r"^([A-Z] is for \w[\w ]*|\w[\w ]*, noun(, plural [\w ]+)?): .*$", re.M)
STEP = re.compile(r"^\d\. [A-Z].*$", re.M)
CUES = (  # register, pattern, how often it must occur
    ("timetable", STOP, 3),
    ("price_list", PRICED, 2),
    ("qa", re.compile(r"^(Question|Q): .*\n(Answer|A): ", re.M), 1),
    ("dictionary", ENTRY, 2),
    ("weather_report", re.compile(r"\d+ (degrees|Grad|degrés|grados)\b"), 2),
    ("recipe", re.compile(r"\b\d+ (g|kg|ml|litres?|minutes|spoons?|eggs|cups?|jugs)\b|^\d\. [A-Z]", re.M), 3),
)
ASKED = re.compile(r"\bHow (many|much|far|long)\b[^?\n]*\?")
RHYME = re.compile(r"\w*?([aeiouy]\w*)[.!?]?$")
NEGATED = {  # the sure ones: a word of negation with the word it bears upon
    "en": re.compile(r"\b(?:(?:did|do|does|could|can) not|cannot|neither of) (?!come\b|return|find)\w+", re.I),
    "fr": re.compile(r"\b(?:ne |n['’])\w+", re.I),
    "de": re.compile(r"\b(?:nicht(?! weit)|nichts|niemand|keine?[nm]?) \w+", re.I),
    "es": re.compile(r"\b(?:no(?! muy)|nadie) \w+", re.I),
}
KEYWORDS = frozenset(("def", "return", "for", "in", "if", "else", "while", "and", "or", "not", "elif"))
TOKEN = re.compile(r"\"\"\"|\"[^\"\n]*\"|[A-Za-z_]\w*|\d+|[+\-*/%<>=]=?|//|#.*|\S")


def register(text: str) -> str | None:
    """The register that a text's layout gives away, None where it could be several."""
    if CODE.search(text):
        return "code"
    sums, quoted = len(SUM.findall(text)), bool(QUOTED.search(text))
    head, _, body = text.partition("\n")
    if sums >= 3 and not quoted and not PRICED.search(text) and not ASKED.search(text):
        return "drill"
    if sums and not quoted and len(ASKED.findall(text)) == text.count("\n") + 1:
        return "word_problem"
    for name, pattern, times in CUES:
        if len(pattern.findall(text)) >= times:
            return name
    if GREETING.match(text):
        return "letter"
    if DATED.match(text):
        return "diary"
    if len(SPEECH.findall(text)) >= 2 and SPEECH.match(text):
        return "dialogue"
    lines = text.count("\n") + 1
    if quoted and lines >= 3 and len(text) > 800 and re.search(r"\b([Ll]esson|[Ss]chool|class)\b", head):
        return "lesson"
    if rhymes(body.split("\n")):
        return "couplet"
    if lines >= 3 and len(QUOTE_LINE.findall(text)) >= lines / 2:
        return "dialogue"
    if lines == 1 and len(text) > 150:
        return "story"
    if lines == 2 and head and head[-1] not in ".,:!?" and len(text) > 250:
        return "news"
    return None


def rhymes(lines: list[str]) -> bool:
    """Whether short lines rhyme in pairs, most of them by the letter."""
    if len(lines) < 4 or len(lines) % 2 or max(map(len, lines)) > 75:
        return False
    ends = [RHYME.search(line.split(" ")[-1]) for line in lines]
    pairs = [(a.group(1)[-1], b.group(1)[-1]) for a, b in zip(ends[::2], ends[1::2], strict=True) if a and b]
    return sum(a == b for a, b in pairs) > len(lines) / 4


def sums(text: str) -> list[tuple[int, int, str]]:
    """Operands and signs of sums; the result only if it is right; times of day."""
    out = [(m.start(), m.end(), "math.time") for m in TIME.finditer(text)]
    for found in SUM.finditer(text):
        a, sign, b, result = found.groups()
        left, right = int(a), int(b)
        right_result = {"+": left + right, "-": left - right, "x": left * right}.get(sign)
        if sign == "/":
            right_result = left // right if right and left % right == 0 else None
        at = {n: found.span(n) for n in (1, 2, 3, 4)}
        out += [(*at[1], "math.operand"), (*at[3], "math.operand"), (*at[2], "math.operator"), (*at[2], SIGN[sign])]
        equals = text.index("=", at[3][1])
        out.append((equals, equals + 1, "math.equals"))
        if right_result == int(result):
            out.append((*at[4], "math.result"))
    return out


TOPICS = {"code": "programming", "couplet": "rhyme", "dictionary": "words", "drill": "numbers", "lesson": "school"}
TOPICS |= {"price_list": "market", "recipe": "kitchen", "timetable": "travel", "weather_report": "weather"}
TOPICS |= {"word_problem": "numbers"}  # topics that lie in the register
ITEMS = {
    "timetable": re.compile(rf"^\d{{1,2}}:\d\d {NAME}.*$", re.M),
    "price_list": PRICED,
    "drill": SUM,
    "dictionary": ENTRY,
    "recipe": STEP,
}
DATE = re.compile(rf"\b(\d{{1,2}})(?=(?:\.|th|st|nd|rd)? (?:de )?(?:{MONTHS})\b)", re.I)


def items(text: str, kind: str | None) -> list[tuple[int, int, str]]:
    """Quotations, a diary's dates, and the items of a list: stops, prices, sums, a dictionary's entries, steps."""
    out = [(*m.span(), "form.in_quotes") for m in QUOTED.finditer(text)]
    if kind == "diary":
        out += [(*m.span(1), "entity.time.date") for m in DATE.finditer(text)]
    return out + [(*m.span(), "list.item") for m in ITEMS[kind].finditer(text)] if kind in ITEMS else out


def negations(start: int, sentence: str, language: str) -> list[tuple[int, int, str]]:
    """A word of negation with the word it bears upon."""
    return [(start + m.start(), start + m.end(), "syntax.negated") for m in NEGATED[language].finditer(sentence)]


def code(text: str) -> list[tuple[int, int, str]]:
    """Labels of the functions, calls and comments of Python text."""
    out = [(m.start(), m.end(), "code.docstring") for m in re.finditer(r'""".*?"""', text, re.S)]
    hidden = [(a, b) for a, b, _ in out]
    arguments: set = set()
    for line in re.finditer(r"[^\n]+", text):
        if any(a <= line.start() + len(line.group()) - len(line.group().lstrip()) < b for a, b in hidden):
            continue
        header = re.match(r"def \w+\(([\w, ]*)\):", line.group())
        if header:
            arguments = set(re.findall(r"\w+", header.group(1)))
        elif not line.group().startswith((" ", "\t")) and not re.match(r"\w+\(.*\)(  # .*)?$", line.group()):
            continue
        out += code_line(line.start(), line.group(), arguments)
    return out


def code_line(start: int, line: str, arguments: set) -> list[tuple[int, int, str]]:
    """The tokens of one line of code."""
    out = []
    called = re.match(r"(\w+\(.*\))(?:  (# .*))?$", line)
    if called:
        out.append((start, start + called.end(1), "code.call"))
    for found in TOKEN.finditer(line):
        word, at = found.group(), (start + found.start(), start + found.end())
        if word.startswith("#"):
            out.append((*at, "code.comment"))
            out += [(at[0] + m.start(), at[0] + m.end(), "code.result") for m in re.finditer(r"\d+", word)]
        elif word in KEYWORDS:
            out.append((*at, "code.keyword"))
        elif word in arguments:
            out.append((*at, "code.argument"))
        elif word.isdigit():
            out.append((*at, "code.number"))
        elif re.match(r"\w+\(", line[found.start() :]) and word[0].isalpha():
            out.append((*at, "code.function"))
        elif word in ("+", "-", "*", "//", ">", "<", "==", "=", "+=", "%"):
            out.append((*at, "code.operator"))
    return out
