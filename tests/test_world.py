"""The labelled world's engine: pure texts, disjoint splits, labels on the words they name, honest log-probabilities."""

import math
import re
from collections import Counter

import numpy as np
import pytest

from sae_lab.tiny import world
from sae_lab.tiny.world.engine import Draw, Table
from sae_lab.tiny.world.labels import TABLE
from sae_lab.tiny.world.language import languages
from sae_lab.tiny.world.language import world as home
from sae_lab.tiny.world.templates import Compiler, TemplateError

ROLES = {"H": "person", "F": "person", "P": "pet", "O": "entity.object.keepsake"}


def rendered(line: str, key: int = 0, language: str = "en", narrator: str | None = None):
    """A page on which the template is written."""
    page = home(language).page(Draw(key), roles=ROLES)
    page.narrator = narrator
    page.write(Compiler(home(language), line, "test:1").template())
    return page


def words(text) -> list[tuple[str, frozenset]]:
    """The text's words with their labels."""
    starts, ends, rows = text.words
    return [(text.text[s:e], TABLE[r]) for s, e, r in zip(starts, ends, rows, strict=True)]


def test_a_text_is_a_pure_function_of_seed_split_and_index():
    first, again = world.block(5, 20, seed=3), world.block(5, 20, seed=3)
    assert [t.text for t in first] == [t.text for t in again]
    assert [t.logp for t in first] == [t.logp for t in again]
    assert [t.labels() for t in first] == [t.labels() for t in again]
    assert [t.text for t in first] != [t.text for t in world.block(5, 20, seed=4)]


def test_blocks_are_the_stream_cut_up():
    stream = world.texts(seed=7)
    assert [next(stream).text for _ in range(60)] == [t.text for i in range(3) for t in world.block(i, 20, seed=7)]


def test_no_text_is_in_two_splits_and_none_comes_twice():
    texts = {s: [t.text for t in world.block(0, 50, split=s)] for s in ("train", "validation", "test")}
    assert len({t for some in texts.values() for t in some}) == 150


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match=r"No split 'dev'\. Known: test, validation, train"):
        world.block(0, 1, split="dev")


def test_labels_lie_on_the_words_they_name():
    seen = 0
    for text in world.block(0, 200):
        known = {w.path: {f.lower() for f in w.forms} for w in home(text.language).words}
        for word, tags in words(text):
            assert not re.search(r"\s", word), word
            assert ("form.capital" in tags) == word[0].isupper()
            if text.language == "en":
                for tag in tags & known.keys():
                    assert word.lower() in {p for f in known[tag] for p in f.split()}, (word, tag)
                    seen += 1
    assert seen > 1000


def test_every_text_has_its_language_register_and_a_topic_over_words_it_contains():
    for text in world.block(1, 200):
        names = {name.split(".")[0] for _, _, name in text.spans}
        assert {"language", "register", "topic"} <= names or text.kind == "qa", text
        assert all(0 <= start < end <= len(text.text) for start, end, _ in text.spans)


def test_quotes_negations_and_second_mentions_are_labelled():
    page = rendered('[neg {H} did not come]. {O a cap} lay there. "Come," said {F}. {H} took {O the}.')
    assert page.marks == [(0, 2, "syntax.negated")]
    again = [c.text for c in page.chunks for w in c.words if "discourse.second_mention" in TABLE[w[2]]]
    assert again == [page.chunks[0].text, f"the {page.entities['O'].word.forms[0]}"]
    text = world.Text('He said: "Come." Then he went.', "story", "en", -1.0, [], [])
    assert text.spans == [(9, 16, "form.in_quotes")]


def test_a_quotation_by_another_speaker_is_a_change_of_speaker():
    page = rendered('[say=H "A."] [say=H "B."] [say=F "C."]')
    assert [(page.chunks[s].text, name) for s, _, name in page.marks] == [('"C."', "discourse.speaker_change")]


def test_log_probability_is_that_of_the_text_among_all_texts_of_a_template():
    line, count, odds = "(a|b|b) {~entity.time.day} (|x )", Counter(), {}
    for key in range(6_000):
        page = rendered(line, key)
        count[page.text()] += 1
        odds[page.text()] = page.draw.logp
    assert sum(math.exp(p) for p in odds.values()) == pytest.approx(1, abs=1e-6)
    for text, logp in odds.items():
        assert count[text] / 6_000 == pytest.approx(math.exp(logp), abs=0.025)


def test_taken_items_are_never_drawn_and_the_rest_share_their_probability():
    table, total = Table("abc", [4, 2, 2]), 0.0
    for key in range(200):
        draw = Draw(key)
        item = draw.table(table, ["a"])
        assert item in "bc"
        assert draw.logp == pytest.approx(math.log(0.5))
        total += draw.logp
    assert total < 0


def test_entities_stay_who_they_are():
    page = rendered("{H} {H} {H he} {P a adj} {P} {P the adj} {H trade the} {H trade the}")
    first, second, *_ = page.text().split()
    assert first == second
    assert page.text().split()[-1] == page.text().split()[-3]


def test_a_narrator_speaks_as_i():
    assert (
        rendered("{H he} took {H his} hat. {H} gave {F him} {H gen} hat.", narrator="H")
        .text()
        .startswith("I took my hat. I")
    )


def test_articles_and_sentence_starts_follow_the_grammar():
    for key in range(200):
        text = rendered("{~entity.object.tool a adj?}. {~attribute.colour} (|x ){~entity.animal a}.", key).text()
        assert text[0].isupper()
        for article, word in re.findall(r"\b([Aa]n?) (\w+)", text):
            assert (article.lower() == "an") == (word[0] in "aeiou" or word.startswith("honest")), text


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{h he} ran", "Unknown slot {h he}"),
        ("{O blue}", "Unknown flag 'blue'"),
        ("{~entity.nothing a}", "No class 'entity.nothing' in lexicon.en.txt"),
        ("{H ran", "No '}' closes the slot"),
        ("(a|b", "No ')' closes the choice"),
        ("[neg a", "No ']' closes the span"),
        ("a] b", "Unexpected ']'"),
        ("{H?a:b:c:d}", "two or three forms"),
    ],
)
def test_a_bad_template_names_file_line_and_fault(line, complaint):
    with pytest.raises(TemplateError, match=r"test:1: ") as caught:
        Compiler(home("en"), line, "test:1").template()
    assert complaint in str(caught.value)


def test_an_unbound_value_says_what_is_bound():
    with pytest.raises(TemplateError, match=r"test:1: no value 'n' is bound\. Bound: none"):
        rendered("{=n} eggs")


def test_where_asks_for_concepts_and_for_their_absence():
    stream = world.texts(where={"language.french": True, "syntax.negated": False}, languages=["fr", "en"])
    for _ in range(5):
        names = {name for _, _, name in next(stream).labels()}
        assert "language.french" in names
        assert "syntax.negated" not in names
    assert next(world.texts(where="entity.animal.pet", kinds=["story"])).kind == "story"


def test_word_concepts_go_on_the_last_token_and_spans_on_all():
    page = rendered('"{~entity.animal.pet.dog pl}"')
    text = world.Text(page.text(), "story", "en", 0.0, page.chunks, [])
    assert text.text == '"Dogs"'
    offsets = np.array([(0, 0), (0, 1), (1, 3), (3, 5), (5, 6), (0, 0)])  # <bos> " Do gs " <eos>
    names = world.Concepts()
    token, concept = world.token_labels(text, offsets, names)
    got = {(t, names.names[c]) for t, c in zip(token.tolist(), concept.tolist(), strict=True)}
    assert (3, "entity.animal.pet.dog") in got
    assert not any(t == 2 and name != "form.in_quotes" for t, name in got)
    assert {t for t, name in got if name == "form.in_quotes"} == {1, 2, 3, 4}
    assert not {0, 5} & set(token.tolist())


def test_every_language_tells_stories():
    for language in languages():
        story = next(world.texts(kinds=["story"], languages=[language]))
        assert len(story.text) > 100
        assert story.logp < -20
