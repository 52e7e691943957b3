"""The rules of the labelled world: what its texts, labels and tree of concepts promise."""

import ast
import math
import re
from functools import cache
from pathlib import Path
from zlib import crc32

import pytest

from sae_lab.tiny import world
from sae_lab.tiny.world.kinds_prose import RHYMES
from sae_lab.tiny.world.survey import shared, survey
from sae_lab.tiny.world.tree import concepts, lineage, own_tokenizer

SUM = re.compile(r"(\d+) ([-+x/]) (\d+) = (\d+)")
WORKED = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "x": lambda a, b: a * b, "/": lambda a, b: a / b}
EXACT = ("drill", "word_problem", "price_list", "timetable", "code", "lesson")


@cache
def sample() -> list:
    """Texts of the mixture, about a million characters."""
    return world.block(0, 1700, seed=3)


@cache
def some(kind: str) -> list:
    """A hundred texts of a kind."""
    stream = world.texts(seed=5, kinds=(kind,))
    return [next(stream) for _ in range(100)]


def test_the_tree_is_as_large_and_as_deep_as_promised():
    leaves = [c for c in concepts() if c.leaf]
    groups = ("entity", "topic", "register", "sentiment", "syntax", "discourse")
    assert len(leaves) >= 120
    assert sum(c.name.split(".")[0] in groups for c in leaves) >= 80
    assert sum(c.depth >= 3 for c in leaves) >= 25
    assert {c.kind for c in leaves} == {"word", "context", "relation"}


def test_every_concept_has_its_parents_in_the_tree():
    names = {c.name for c in concepts()}
    assert {name.rpartition(".")[0] for name in names} - {""} <= names
    assert lineage("entity.animal.pet") == ["entity", "entity.animal", "entity.animal.pet"]


def test_densities_span_three_decades_and_parents_are_no_rarer_than_children():
    share = {c.name: c.density for c in concepts()}
    assert min(share.values()) <= 1e-4
    assert sum(1e-4 <= c.density <= 1e-1 for c in concepts() if c.leaf) >= 120
    assert all(share[c.parent] >= c.density for c in concepts() if c.parent)


def test_every_label_of_a_fresh_sample_is_a_leaf_or_node_of_the_tree():
    names = {c.name for c in concepts()}
    unknown = {name for text in sample()[:600] for _, _, name in text.labels()} - names
    assert not unknown


def test_labels_lie_inside_their_text():
    for text in sample()[:400]:
        for start, end, name in text.labels():
            assert 0 <= start < end <= len(text.text), (name, text)


def test_the_generators_entropy_is_between_0_7_and_1_6_nats_per_token():
    assert 0.7 <= survey(sample(), own_tokenizer()).nats_per_token <= 1.6


def test_log_probabilities_are_finite_and_negative():
    assert all(math.isfinite(t.logp) and t.logp < 0 for t in sample())


def test_at_most_a_fifth_of_the_sentences_stood_before():
    assert survey(sample()).repeated_sentences <= 0.2


def test_no_text_is_repeated():
    assert survey(sample()).repeated_texts == 0


def test_a_tenth_of_the_texts_is_long():
    assert survey(sample(), own_tokenizer()).long_texts >= 0.1


def test_every_kind_and_language_appears_and_scenes_are_the_majority():
    found = survey(sample())
    assert set(found.kinds) == set(world.kinds())
    assert set(found.languages) == set(world.languages())
    scenes = ("story", "tale", "dialogue", "letter", "diary", "chronicle", "news")
    assert sum(found.kinds[name] for name in scenes) > 0.5
    assert len(found.kinds) >= 12


def test_no_test_text_can_be_in_train():
    train, test = world.block(0, 800, 9, "train"), world.block(0, 60, 9, "test")
    assert shared(train, test) == 0
    residues = [{crc32(t.text.encode()) % 16 for t in texts} for texts in (train, test)]
    assert not residues[0] & residues[1]


@pytest.mark.parametrize("kind", EXACT)
def test_every_sum_is_right(kind):
    sums = [m for t in some(kind) for m in SUM.findall(t.text)]
    assert kind in ("timetable", "code") or len(sums) >= 100
    for a, sign, b, result in sums:
        assert WORKED[sign](int(a), int(b)) == int(result), (a, sign, b, result)


def test_the_trip_takes_as_long_as_the_timetable_says():
    for text in some("timetable"):
        times = [60 * int(h) + int(m) for h, m in re.findall(r"^(\d+):(\d\d) ", text.text, re.M)]
        minutes = re.search(r"(\d+) [Mm]in", text.text)
        assert int(minutes.group(1)) == times[-1] - times[0], text.text


def test_what_is_bought_costs_what_the_list_says():
    for text in some("price_list"):
        head, _, tail = text.text.rpartition("\n")
        listed = {int(p) for p in re.findall(r"(\d+) [Ee]uro", head)}
        bought = {int(p) for p in re.findall(r"x (\d+) =", tail)}
        assert len(bought) >= 1
        assert bought <= listed, text.text


def test_the_results_of_code_are_right():
    calls = 0
    for text in some("code"):
        functions = {f.name: f for f in ast.parse(text.text).body if isinstance(f, ast.FunctionDef)}
        for line in re.findall(r"^(\w+\(.*\))  # (.*)$", text.text, re.M):
            call = ast.parse(line[0], mode="eval").body
            given = [ast.literal_eval(a) for a in call.args]
            assert run(functions[call.func.id], given) == ast.literal_eval(line[1]), text.text
            calls += 1
    assert calls >= 200


def run(function: ast.FunctionDef, given: list):
    """What a function of the world returns: an interpreter of the few statements that occur."""
    names = dict(zip((a.arg for a in function.args.args), given, strict=True))
    return steps(function.body, names)


def steps(body, names):
    """Run statements; the value of the first `return` met."""
    for line in body:
        if isinstance(line, ast.Return):
            return value(line.value, names)
        if isinstance(line, ast.If):
            found = steps(line.body, names) if value(line.test, names) else None
            if found is not None:
                return found
        elif isinstance(line, ast.For):
            for item in value(line.iter, names):
                names[line.target.id] = item
                steps(line.body, names)
        elif isinstance(line, ast.Assign):
            names[line.targets[0].id] = value(line.value, names)
        elif isinstance(line, ast.AugAssign):
            names[line.target.id] += value(line.value, names)
        else:
            assert isinstance(line.value.value, str), ast.dump(line)
    return None


def value(node, names):
    """The value of an expression."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return names[node.id]
    if isinstance(node, ast.Compare):
        assert isinstance(node.ops[0], ast.Gt)
        return value(node.left, names) > value(node.comparators[0], names)
    if isinstance(node, ast.Call):
        return {"max": max, "min": min, "len": len, "sum": sum}[node.func.id](value(node.args[0], names))
    a, b = value(node.left, names), value(node.right, names)
    return {
        ast.Add: lambda: a + b,
        ast.Sub: lambda: a - b,
        ast.Mult: lambda: a * b,
        ast.FloorDiv: lambda: a // b,
    }[type(node.op)]()


def test_numbers_of_a_sum_carry_their_parts():
    text = next(t for t in some("drill") if " + " in t.text)
    labels = {}
    for start, end, name in text.labels():
        labels.setdefault((start, end), set()).add(name)
    found = SUM.search(text.text)
    assert "math.operand" in labels[found.span(1)]
    assert "math.operator" in labels[found.span(2)]
    assert "math.result" in labels[found.span(4)]


def test_a_couplet_rhymes_by_its_table():
    for text in some("couplet"):
        lines = text.text.split("\n")[1:]
        ends = [re.sub(r"\W", "", line.split()[-1]) for line in lines]
        groups = [set(g.split()) for g in RHYMES.replace("\n", "|").split("|")]
        for a, b in zip(ends[::2], ends[1::2], strict=True):
            assert any({a, b} <= g for g in groups), text.text


def test_where_gives_texts_with_and_without_a_concept():
    with_dog = world.texts(seed=1, where=["entity.animal.pet.dog", "register.letter"])
    without = world.texts(seed=1, where={"entity.animal": False, "language.english": True})
    assert all("entity.animal.pet.dog" in {n for _, _, n in next(with_dog).labels()} for _ in range(5))
    for _ in range(5):
        names = {n for _, _, n in next(without).labels()}
        assert "language.english" in names
        assert not any(n.startswith("entity.animal") for n in names)


def test_no_module_of_the_world_is_named_like_a_public_function():
    files = {p.stem for p in Path(world.__file__).parent.glob("*.py")}
    public = {n for n in world.__all__ if callable(getattr(world, n)) and n.islower()}
    assert not files & public
