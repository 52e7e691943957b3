"""Chat requests: every answer meets its request, and the stream is a pure function of seed and split."""

import re
from functools import cache
from itertools import islice

from sae_lab.tiny import world
from sae_lab.tiny.world.chat import APART, phrases, request
from sae_lab.tiny.world.tree import own_tokenizer


@cache
def sample() -> list:
    """Some requests of every task."""
    return list(islice(world.requests(seed=2), 150))


def test_a_request_is_a_function_of_seed_split_and_index():
    assert request(7, 2).turns == sample()[7].turns
    assert request(7, 3).turns != sample()[7].turns
    assert request(7, 2, "validation").turns != sample()[7].turns


def test_every_task_and_language_is_asked():
    assert {r.task for r in sample()} == {"write", "read", "name"}
    languages = {name for r in sample() for name in r.wanted if name.startswith("language.")}
    assert languages == {"language.english", "language.french", "language.german", "language.spanish"}


def test_a_dialogue_alternates_and_ends_with_the_answer():
    for one in sample():
        assert [m["role"] for m in one.messages] == ["user", "assistant"] * (len(one.turns) // 2)
        assert one.prompt == one.messages[:-1]
        assert all(said.strip() for _, said in one.turns)
        assert one.task != "write" or not re.search(r"\{\w+\}", one.turns[0][1])


def test_a_written_text_carries_every_concept_that_was_asked_for():
    written = [r for r in sample() if r.task == "write"]
    assert sum(any(n.startswith(("sentiment.", "entity.")) for n in r.wanted) for r in written) >= 15
    for one in written:
        names = one.text.concepts()
        assert all(any(n == w or n.startswith(w + ".") for n in names) for w in one.wanted), one.turns
        assert one.text.text == one.answer


def test_what_is_answered_stands_in_the_text_that_was_read():
    known = 0
    for one in sample():
        if one.task == "read":
            words = [w.strip(".,;") for w in one.answer.split() if w[0].isupper()][1:]
            known += bool(words) and all(w in one.turns[0][1] for w in words)
    assert known >= 5


def test_every_concept_that_can_be_named_is_in_the_tree():
    names = {c.name for c in world.concepts()}
    for language in world.languages():
        named = {n for n in phrases(language) if n.partition(".")[0] in ("language", "register", "topic", "sentiment")}
        assert named <= names, (language, named - names)
        assert {n for n in phrases("en") if n.startswith(("language", "sentiment"))} <= named


def test_every_scene_can_be_named_in_every_language():
    scenes = {"story", "dialogue", "letter", "diary", "news"}
    for language in world.languages():
        assert {f"register.{s}" for s in scenes} <= set(phrases(language))


def test_requests_are_not_about_the_texts_of_the_stream():
    assert APART > 0
    stream = {t.text for t in world.block(0, 300, seed=2)}
    assert not {r.answer for r in sample()} & stream


def test_a_dialogue_fits_the_context():
    tokenizer = own_tokenizer()
    if tokenizer is None:
        assert max(sum(len(said) for _, said in r.turns) for r in sample()) < 1400
        return
    lengths = [sum(len(tokenizer.encode(said).ids) + 2 for _, said in r.turns) for r in sample()]
    assert max(lengths) < 510
