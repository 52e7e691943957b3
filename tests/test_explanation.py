"""Explanations: windows against the text, rules against what was planted, scores against closed forms, and a judge that
answers from the world's labels behind a server on this machine."""

import copy
import json
import math
import re
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from loopback import serving
from scipy import sparse
from scipy.stats import pearsonr
from sklearn.metrics import roc_auc_score
from small import identity, small_llama

import sae_lab as sl
from sae_lab.explanation import (
    SCORERS,
    Endpoint,
    Explained,
    Explanation,
    Explanations,
    Local,
    Rule,
    Unanswered,
    examples,
    speakers,
    verb,
)
from sae_lab.explanation.examples import Example, Sampler, read
from sae_lab.explanation.intervening import BEHIND, _fit, strength_of
from sae_lab.explanation.judges import Asking, Ruled, _numbers
from sae_lab.explanation.rules import label_rule, token_rule
from sae_lab.explanation.scorers import _told, area, correlation
from sae_lab.explanation.trials import Letters, Tools, Trial
from sae_lab.models import Edit
from sae_lab.reading import held_out, walk
from sae_lab.runs import lines

SITE = sl.Site("L1R")
ALL = 10**6  # of each kind of window
CONCEPT = "entity.food"


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return small_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def sae():
    """Some latents never fire, others ever more seldom."""
    made = identity(over=50.0, silent=[7, 9])
    with torch.no_grad():
        made.b_enc[32:] = -torch.linspace(60, 130, 32)
    return made


@pytest.fixture(scope="module")
def readings(lm, sae):
    return [read(sae, lm, SITE, held_out(lm, "world", s, 0, context=128), 9_000, 32) for s in ("validation", "test")]


@pytest.fixture(scope="module")
def held(readings):
    return readings[1]


def planted(reading, *columns):
    """The reading with latents that fire as told: [tokens] each."""
    return replace(reading, acts=sparse.csc_array(np.stack(columns, 1).astype(float)))


def trial_of(lm, learnt, held, explanation, judge, n=ALL, directions=None, embedder=None):
    directions = torch.eye(held.acts.shape[1], 32) if directions is None else directions
    tools = Tools(lm, SITE, directions, learnt, held, judge, embedder)
    return Trial(tools, explanation, Sampler(directions, held, n, 0)(explanation.latent), np.random.default_rng(0))


def on_labels(reading, name=CONCEPT):
    return reading.labels[:, [reading.names.index(name)]].toarray()[:, 0]


class Labels:
    """A judge that knows the text: it says what has a label, and finds any text that it is shown."""

    def __init__(self, reading):
        self.of = {name: on_labels(reading, name) for name in reading.names}
        self.place = {}
        for window, text in enumerate(reading.texts):
            self.place.setdefault(text, window)
        self.reading = reading

    def __call__(self, body):
        system, user = (m["content"] for m in body["messages"])
        said, text = re.fullmatch(r"What it fires on: (.*?)\n\nText: (.*)", user, re.DOTALL).groups()
        if "JSON" in system:
            words = json.loads(text)
            return json.dumps((10 * self.labelled(said, "".join(words)).astype(int)).tolist())
        window = self.labelled(said, text.replace("<<", "").replace(">>", ""))
        if "marked" not in system:
            return str(int(window.any()))
        return str(int(window[self.marks(text)].mean() > 0.5))

    def labelled(self, said, text):
        window = self.place[text]
        return self.of[said][slice(*self.reading.first[window : window + 2])]

    def marks(self, text):
        window, on, at, inside = self.place[text.replace("<<", "").replace(">>", "")], [], 0, False
        for word in self.reading.words[slice(*self.reading.first[window : window + 2])]:
            if text.startswith("<<", at):
                inside, at = True, at + 2
            on.append(inside)
            at += len(word)
            if text.startswith(">>", at):
                inside, at = False, at + 2
        return np.array(on)


# --- windows


def test_windows_are_the_kept_text_in_order_and_activations_are_the_saes(lm, sae):
    blocks = held_out(lm, "world", "test", 0, context=128)
    reading = read(sae, lm, SITE, blocks, 3000, 16)
    page = next(walk(lm, blocks, [SITE], 3000, sae))
    n = len(page.doc)
    assert np.abs(reading.acts[:n].toarray() - sae.encode(page.acts[SITE]).dense().detach().numpy()).max() < 1e-6
    assert np.diff(reading.first).max() == 16 and reading.first[-1] == len(reading.words) >= 3000
    whole = {page.block.text(d) for d in set(page.block.doc[page.keep].tolist())}
    assert all(any(text in doc for doc in whole) for text in reading.texts[:20])
    assert not set(reading.ids.tolist()) & set(lm.special_ids)
    same = reading.before[1:][reading.before[1:] < lm.vocab] == reading.ids[:-1][reading.before[1:] < lm.vocab]
    assert same.all()
    begins = np.flatnonzero(reading.before == lm.vocab)
    behind = page.block.ids.roll(1, 1) == lm.tokenizer.bos_token_id
    assert begins[begins < n].tolist() == behind[page.keep].nonzero()[:, 0].tolist() and len(begins[begins < n]) > 20
    assert set(begins.tolist()) <= set(reading.first.tolist()) and len(begins) < reading.windows / 2
    assert (reading.bags.toarray().sum(1) == np.diff(reading.first)).all()


def test_a_letter_of_several_tokens_is_in_the_text_once(lm, sae):
    told = [f"On day {i} the \U0001f98a and the \u9db4 sat by the river \U0001f9a2\U0001f9a2." for i in range(60)]
    reading, whole = read(sae, lm, SITE, held_out(lm, told, "all", 0, context=128), 900, 16), {}
    for doc, text in zip(reading.doc.tolist(), reading.texts):
        whole[doc] = whole.get(doc, "") + text
    assert len(whole) > 5 and set(whole.values()) <= set(told)


def test_labels_are_on_the_tokens_that_carry_them_and_imply_those_above(held):
    digit = on_labels(held, "form.digit")
    assert digit.sum() > 50 and all(held.words[i].strip()[-1:].isdigit() for i in np.flatnonzero(digit))
    under = [on_labels(held, name) for name in held.names if name.startswith(f"{CONCEPT}.")]
    assert on_labels(held).sum() > 50 and (on_labels(held) == np.any(under, 0)).all()


def test_a_sample_has_every_quantile_and_negatives_are_silent_where_a_neighbour_is_not(held):
    rng = np.random.default_rng(0)
    fires = (rng.random(len(held.ids)) < 0.02) * rng.random(len(held.ids))
    twin = np.where(rng.random(len(held.ids)) < 0.5, fires, 0) + (rng.random(len(held.ids)) < 0.002)
    reading = planted(held, fires, twin, np.zeros(len(fires)))
    sample = Sampler(torch.eye(3, 8), reading, 50, 0)(0)
    highest = reading.highest(0)
    peaks = np.array([e.values.max() for e in sample.active])
    assert len(peaks) == 50 and (np.diff(peaks) <= 0).all()
    ranks = np.searchsorted(np.sort(highest[(highest > 0) & reading.long]), peaks)
    parts = np.array_split(np.arange((highest > 0)[reading.long].sum()), 10)
    assert [np.isin(part, ranks).sum() for part in parts] == [5] * 10
    assert all(e.values.max() == 0 for e in (*sample.silent, *sample.hard))
    assert len(sample.hard) and all(reading.highest(1)[e.window] > 0 for e in sample.hard)
    assert sample.rate == pytest.approx((highest > 0)[reading.long].mean())
    assert min(len(e.words) for e in (*sample.active, *sample.silent)) >= examples.SHORTEST
    kinds = (sample.active, sample.silent, sample.hard)
    assert all(len({e.window for e in some}) == len(some) for some in kinds)  # none twice
    again, other = (Sampler(torch.eye(3, 8), reading, 50, seed)(0) for seed in (0, 1))
    drawn = [[e.window for e in s.silent] for s in (sample, again, other)]
    assert drawn[0] == drawn[1] != drawn[2]
    every = Sampler(torch.eye(3, 8), reading, ALL, 0)(0)
    assert len(every.active) + len(every.silent) == (np.diff(reading.first) >= 5).sum()


def test_neighbours_are_the_five_that_fire_with_it_most_and_the_five_of_the_nearest_directions(held):
    """Of latent 0: 1 to 5 fire with it, 6 too but everywhere else as well; 7 to 12 ever less point its way; 13 is none.
    Where each fires alone is every twentieth window."""
    part, rng = np.arange(held.windows) % 20, np.random.default_rng(0)
    fires = [part == 0, *((part == i) | (part == 0) & (rng.random(len(part)) < 1 - i / 10) for i in range(1, 6))]
    fires += [np.isin(part, [0, 6, *range(14, 20)]), *(part == i for i in range(7, 14))]
    begins, W = np.zeros(len(held.ids)), torch.eye(14, 16)
    begins[held.first[:-1]], W[7:13, 0] = 1, torch.linspace(0.9, 0.4, 6)
    sample = Sampler(W, planted(held, *(begins * on[held.window] for on in fires)), ALL, 0)(0)
    beside = np.isin(part, [*range(1, 6), *range(7, 12)]) & held.long
    assert sorted(e.window for e in sample.hard) == np.flatnonzero(beside).tolist()


def test_marks_go_around_stretches_of_what_fires_at_three_tenths_of_the_highest(held):
    values = np.zeros(len(held.ids))
    values[1:6] = 1.0, 0.5, 0.29, 0.0, 0.3
    example = examples.Example(planted(held, values), 0, 0)
    w = held.words
    assert example.marked().startswith(f"{w[0]}<<{w[1]}{w[2]}>>{w[3]}{w[4]}<<{w[5]}>>")
    assert example.marked(np.zeros(len(example.words), bool)) == example.text == held.texts[0]
    assert Example(example.reading, 1, 0).marked() == held.texts[1]
    assert example.reading.highest(0)[:2].tolist() == [1, 0]


# --- rules


def test_a_token_rule_names_the_tokens_that_were_planted_and_predicts_their_activation(readings):
    learnt = readings[0]
    ids, counts = np.unique(learnt.ids, return_counts=True)
    chosen = ids[np.argsort(-counts)[[5, 9, 14]]]
    fires = np.select([learnt.ids == i for i in chosen], [1.0, 2.0, 3.0], 0.0)
    found = token_rule(planted(learnt, fires), 0)
    assert found.rule == Rule("token", dict(zip(chosen.tolist(), (1.0, 2.0, 3.0))))
    assert np.abs(found.rule.on(learnt) - fires).max() < 1e-9
    assert all(repr(learnt.words[int((learnt.ids == i).argmax())]) in found.text for i in chosen)
    assert Explanation.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_what_follows_a_token_is_a_rule_too(readings):
    learnt = readings[0]
    often = np.bincount(learnt.ids).argmax()
    found = token_rule(planted(learnt, 4.0 * (learnt.before == often)), 0)
    assert found.rule == Rule("after", {int(often): 4.0}) and "what follows the token" in found.text
    assert (found.rule.on(learnt) == 4.0 * (learnt.before == often)).all()
    assert repr(learnt.words[int((learnt.ids == often).argmax())]) in found.text
    begins = 1.0 * (learnt.before == learnt.vocab)
    assert learnt.vocab not in token_rule(planted(learnt, begins), 0).rule.value  # nothing that anyone could read


def test_a_rule_leaves_out_what_it_would_name_wrongly_and_what_is_rare_and_predicts_means(readings):
    learnt = readings[0]
    ids, counts = np.unique(learnt.ids, return_counts=True)
    usual, one, rare = (int(ids[np.abs(counts - n).argmin()]) for n in (counts.max(), counts.max() / 5, 3))
    fires = 1.0 * (learnt.ids == rare)
    fires[np.flatnonzero(learnt.ids == usual)[::5]] = 1  # more firings than `one` has, of a fifth of its places
    places = np.flatnonzero(learnt.ids == one)
    fires[places[np.arange(len(places)) % 4 > 0]] = 4
    assert (
        (fires[learnt.ids == usual] > 0).sum() > (fires[places] > 0).sum() > 20 * (fires[learnt.ids == rare] > 0).sum()
    )
    found = token_rule(planted(learnt, fires), 0).rule
    assert found.of == "token" and found.value == {one: pytest.approx(fires[places].mean())}


def test_a_rule_has_few_tokens_and_none_that_fired_by_accident(readings):
    learnt, rng = readings[0], np.random.default_rng(0)
    noise = 1.0 * (rng.random(len(learnt.ids)) < 0.2)
    rule = token_rule(planted(learnt, noise), 0).rule
    keys = learnt.ids if rule.of == "token" else learnt.before
    assert 1 <= len(rule.value) <= 10 and all((noise[keys == i] > 0).sum() >= 3 for i in rule.value)
    assert token_rule(planted(learnt, np.zeros(len(noise))), 0).rule.value == {}
    ids, counts = np.unique(learnt.ids, return_counts=True)
    many, often = ids[(counts >= 3) & (counts <= 6)][:60], np.bincount(learnt.ids).argmax()
    fires = 1.0 * (np.isin(learnt.ids, many) | (learnt.before == often))
    assert token_rule(planted(learnt, fires), 0).rule == Rule("after", {int(often): 1.0})  # ten of the many name less


def test_a_label_rule_names_the_label_that_was_planted(readings):
    fires = 2.0 * on_labels(readings[0])
    found = label_rule(planted(readings[0], fires), 0)
    assert (found.text, found.by) == (CONCEPT, "label") and np.abs(found.rule.on(readings[0]) - fires).max() < 1e-9
    half = fires * (np.arange(len(fires)) % 2)
    value = label_rule(planted(readings[0], half), 0).rule.value
    assert value == {readings[0].names.index(CONCEPT): pytest.approx(half[fires > 0].mean())}
    with pytest.raises(ValueError, match="no labels to explain by"):
        label_rule(replace(readings[0], labels=None), 0)
    with pytest.raises(ValueError, match="unlabelled text"):
        found.rule.on(replace(readings[0], labels=None))


# --- scores


def test_areas_and_correlations_are_those_of_scipy_and_sklearn():
    rng = np.random.default_rng(0)
    high, low = rng.integers(0, 6, 40) + 1.0, rng.integers(0, 6, 70) * 1.0
    truth = np.repeat([1, 0], [40, 70])
    assert area(high, low) == pytest.approx(roc_auc_score(truth, np.concatenate([high, low])))
    assert area(np.append(high, np.nan), low) == area(high, low) and np.isnan(area(high[:0], low))
    a, b = rng.random(50), rng.random(50)
    assert correlation(a, b) == pytest.approx(pearsonr(a, b)[0])
    assert correlation(np.ones(50), b) == 0 and np.isnan(correlation(a, np.ones(50)))
    assert correlation(np.append(a, np.nan), np.append(b, 9)) == pytest.approx(correlation(a, b))


def test_what_a_judge_said_is_counted_by_kind_of_text_and_weighed_by_how_many_there_are():
    """One of four active texts is found and one has no answer; of silent texts half are called, of hard ones all."""
    found = _told("x", [np.array([0.9, 0.5, np.nan, 0.1]), np.array([0.8, 0.2]), np.array([1.0])], 0.1)
    assert found["x"] == pytest.approx((1 / 3 + 1 / 2) / 2) and found["x, hard"] == pytest.approx((1 / 3 + 0) / 2)
    assert found["x, recall"] == pytest.approx(1 / 3) and found["x, answered"] == pytest.approx(6 / 7)
    assert found["x, precision"] == pytest.approx(0.1 / 3 / (0.1 / 3 + 0.9 / 2))
    assert found["x, area"] == pytest.approx((2 + 1 + 0) / 6)


@pytest.fixture(scope="module")
def half_true(held):
    """Fires on all the concept's tokens in 3 of 5 windows that have it, and on one token in 1 of 20 of the others."""
    rng, there = np.random.default_rng(1), on_labels(held)
    has = np.bincount(held.window, there, minlength=held.windows) > 0
    fires = np.where(has, rng.random(held.windows) < 0.6, rng.random(held.windows) < 0.05)
    wrong = np.zeros(len(there))
    wrong[held.first[:-1][fires & ~has]] = 1
    reading = planted(held, np.where(fires[held.window] & has[held.window], there, 0) + wrong, np.zeros(len(there)))
    return reading, has[held.long], fires[held.long]


def test_a_judge_that_knows_the_labels_meets_every_closed_form(lm, readings, half_true):
    reading, has, fires = half_true
    explanation = Explanation(0, CONCEPT, "given")
    with serving(Labels(reading)) as server:
        trial = trial_of(lm, readings[0], reading, explanation, Asking(Endpoint(server.url, "oracle")))
        found = {k: v for name in ("detection", "fuzzing", "simulation") for k, v in SCORERS[name](trial).items()}
    assert all(a is None for _, a in server.asked)  # no key, no header
    recall, wrong = has[fires].mean(), has[~fires].mean()
    assert found["detection, recall"] == pytest.approx(recall)
    assert found["detection"] == pytest.approx((recall + 1 - wrong) / 2, abs=0.01)
    assert found["detection, area"] == pytest.approx((recall + 1 - wrong) / 2, abs=0.01)
    assert found["detection, precision"] == pytest.approx(fires[has].mean(), abs=0.01)
    assert found["detection, answered"] == 1
    true, often = on_labels(reading), round(np.mean([e.fires.sum() for e in trial.sample.active]))
    share = [true[e.span].mean() for e in trial.sample.silent]  # that a random mark is on the concept
    assert often == 1
    assert found["fuzzing, recall"] == pytest.approx(recall)
    assert found["fuzzing"] == pytest.approx((recall + 1 - np.mean(share)) / 2, abs=0.01)
    long = reading.long[reading.window]
    z = reading.acts[:, [0]].toarray()[:, 0]
    both, a, b, n = (z * true)[long].sum(), z[long].sum(), true[long].sum(), long.sum()
    phi = (n * both - a * b) / np.sqrt(a * b * (n - a) * (n - b))
    assert found["simulation"] == pytest.approx(phi, abs=0.01)
    on = np.concatenate([np.arange(e.span.start, e.span.stop) for e in trial.sample.active])
    assert found["simulation of active texts"] == pytest.approx(pearsonr(z[on], true[on])[0])


def test_an_oracle_scores_one_and_what_has_nothing_to_do_with_it_a_half(lm, readings, held):
    windows = np.arange(held.windows)
    oracle = planted(held, on_labels(held))
    with serving(Labels(oracle)) as server:
        trial = trial_of(lm, readings[0], oracle, Explanation(0, CONCEPT, "given"), Asking(Endpoint(server.url, "o")))
        assert SCORERS["detection"](trial)["detection"] == SCORERS["fuzzing"](trial)["fuzzing"] == 1
        assert SCORERS["simulation"](trial)["simulation"] == pytest.approx(1)
    long = windows[held.long]
    place = dict(zip(held.texts, windows))
    fires = np.zeros(len(held.ids))
    fires[held.first[long[np.arange(len(long)) // 2 % 2 == 0]]] = 1  # two windows on, two off ...
    rank = dict(zip(long.tolist(), range(len(long))))
    chance = planted(held, fires)

    def parity(body):  # ... and the judge says yes to every second one
        text = body["messages"][1]["content"].split("Text: ", 1)[1].replace("<<", "").replace(">>", "")
        return str(rank[place[text]] % 2)

    with serving(parity) as server:
        trial = trial_of(lm, readings[0], chance, Explanation(0, "nothing", "given"), Asking(Endpoint(server.url, "o")))
        assert SCORERS["detection"](trial)["detection"] == pytest.approx(0.5, abs=0.01)
        assert SCORERS["fuzzing"](trial)["fuzzing"] == pytest.approx(0.5, abs=0.01)


def test_a_rule_judges_as_the_labels_do(lm, readings, half_true):
    reading, has, fires = half_true
    explanation = Explanation(0, CONCEPT, "label", Rule("label", {reading.names.index(CONCEPT): 1.0}))
    trial = trial_of(lm, readings[0], reading, explanation, Ruled())
    found = SCORERS["detection"](trial)
    assert found["detection"] == pytest.approx((has[fires].mean() + 1 - has[~fires].mean()) / 2)
    with pytest.raises(ValueError, match="said in words"):
        SCORERS["detection"](replace(trial, explanation=Explanation(0, "food", "given")))


class Watching:
    """A judge that remembers what it was shown, and says yes to all."""

    name = "watching"

    def __init__(self):
        self.marks = []

    def detect(self, explanation, examples):
        return np.ones(len(examples))

    def fuzz(self, explanation, examples, marks):
        self.marks.append(list(marks))
        return np.ones(len(examples))

    def simulate(self, explanation, examples):
        return [np.ones(len(e.words)) for e in examples]


def test_as_many_tokens_are_marked_where_none_fires_each_time_others(lm, readings, held):
    place = np.arange(len(held.ids)) - held.first[held.window]
    reading, judge = planted(held, 1.0 * ((held.window % 3 == 0) & (place % 4 == 0))), Watching()
    trial = trial_of(lm, readings[0], reading, Explanation(0, "it", "given"), judge, 40)
    SCORERS["fuzzing"](trial)
    active, silent, _ = judge.marks
    assert all((on == e.fires).all() for on, e in zip(active, trial.sample.active))
    often = round(np.mean([on.sum() for on in active]))
    assert often > 3 and {min(often, len(on)) - on.sum() for on in silent} == {0}
    assert len({tuple(np.flatnonzero(on)) for on in silent}) > 30


def test_a_rule_takes_marks_by_the_share_that_it_names(held):
    example, on = Example(planted(held, np.zeros(len(held.ids))), 0, 0), np.zeros(held.first[1], bool)
    named, other = 0, int((held.ids[: len(on)] != held.ids[0]).argmax())
    rule = Explanation(0, "it", "rule", Rule("token", {int(held.ids[0]): 1.0}))
    on[[named, other]] = True
    assert Ruled().fuzz(rule, [example], [on]).tolist() == [0.5]


def test_hard_negatives_fool_an_explanation_that_is_too_wide(lm, readings, held):
    food, there = on_labels(held), held.names.index(CONCEPT)
    some = np.where(held.window % 2 == 0, food, 0)  # half of the concept; the other half is a neighbour's
    reading = planted(held, some, food)
    trial = trial_of(lm, readings[0], reading, Explanation(0, CONCEPT, "label", Rule("label", {there: 1.0})), Ruled())
    found = SCORERS["detection"](trial)
    assert found["detection, hard"] == pytest.approx(0.5) and found["detection"] > 0.7


def test_the_tokens_of_a_window_tell_a_latent_of_a_token_and_not_one_of_chance(lm, readings):
    ids, counts = np.unique(readings[0].ids, return_counts=True)
    (one, two), rng = ids[np.argsort(-counts)[[12, 20]]], np.random.default_rng(0)
    learnt, held = (
        planted(r, 1.0 * (r.ids == one) + 9.0 * (r.ids == two), 1.0 * (rng.random(len(r.ids)) < 0.05)) for r in readings
    )
    rule = token_rule(learnt, 0)
    trial = trial_of(lm, learnt, held, rule, Ruled(), 60)
    assert SCORERS["logistic"](trial)["logistic"] > 0.99
    assert SCORERS["detection"](trial)["detection"] == SCORERS["fuzzing"](trial)["fuzzing"] == 1
    assert SCORERS["simulation"](trial)["simulation"] == pytest.approx(1)
    other = trial_of(lm, learnt, held, Explanation(1, "chance", "given"), Ruled(), 60)
    assert abs(SCORERS["logistic"](other)["logistic"] - 0.5) < 0.12


def test_embedding_is_the_area_of_any_embedders_cosines(lm, readings, held):
    class Counts:
        def encode(self, texts):
            return torch.tensor([[1.0, t.count("food") + t.count("e") / 50, len(t) / 100] for t in texts])

    reading = planted(held, on_labels(held), 1.0 * (held.window % 5 == 0))
    trial = trial_of(lm, readings[0], reading, Explanation(0, "food", "given"), Ruled(), 40, embedder=Counts())
    s, by = trial.sample, Counts()
    found, said = SCORERS["embedding"](trial), torch.nn.functional.normalize(by.encode(["food"]))
    for name, others in (("embedding", s.silent), ("embedding, hard", s.hard)):
        rows = torch.nn.functional.normalize(by.encode([e.text for e in (*s.active, *others)]))
        truth = np.repeat([1, 0], [len(s.active), len(others)])
        assert found[name] == pytest.approx(roc_auc_score(truth, (rows @ said.T)[:, 0].numpy()), abs=1e-6)
    assert found["embedding"] != found["embedding, hard"]


def test_the_intruder_is_found_by_whoever_sees_it_and_by_chance_else(lm, readings, held):
    reading = planted(held, on_labels(held))
    judge = Labels(reading)

    def sees(body):
        texts = re.split(r"\n\d+\. ", "\n" + body["messages"][1]["content"])[1:]
        has = [judge.labelled(CONCEPT, t.replace("<<", "").replace(">>", "")).any() for t in texts]
        return str(has.index(False) + 1)

    explanation = Explanation(0, CONCEPT, "given")
    for answer, least, most in ((sees, 1, 1), (lambda body: "1", 0.0, 0.5)):
        with serving(answer) as server:
            trial = trial_of(lm, readings[0], reading, explanation, Asking(Endpoint(server.url, "m")), 40)
            found = SCORERS["intruder"](trial)
        assert least <= found["intruder"] <= most and found["intruder, answered"] == 1
        texts = [re.split(r"\n\d\. ", "\n" + b["messages"][1]["content"])[1:] for b, _ in server.asked]
        assert len(texts) == 20 and all(len(five) == 5 and "<<" in text for five in texts for text in five)
    with serving(lambda body: "who knows") as server:
        none = replace(trial, tools=replace(trial.tools, judge=Asking(Endpoint(server.url, "m"))))
        assert str(SCORERS["intruder"](none)) == "{'intruder': nan, 'intruder, answered': 0.0}"
    alone = replace(trial.tools, judge=Ruled(), own=Food(judge))
    assert SCORERS["intruder"](replace(trial, tools=alone))["intruder"] == 1


class Food:
    """An embedder that sees one thing: whether a text has the concept."""

    def __init__(self, labels):
        self.labels = labels

    def encode(self, texts):
        return np.array([[1.0, 9.0 * self.labels.labelled(CONCEPT, text).any()] for text in texts])


def test_surprisal_is_the_gain_in_cross_entropy_behind_the_explanation(lm, readings, held):
    reading = planted(held, on_labels(held), 1.0 * (held.window % 5 == 0))
    trial = trial_of(lm, readings[0], reading, Explanation(0, "food", "given"), Ruled(), 8)

    def loss(prefix, example):
        ids = torch.cat([lm.encode(prefix)[0], torch.tensor(reading.ids[example.span])[None].long()], 1)
        return -lm.logits(ids)[0].log_softmax(-1)[:-1].gather(1, ids[0, 1:, None])[-len(example.words) :].mean().item()

    pair = ("This text has food in it:\n", "This text has something in it:\n")
    s, found = trial.sample, SCORERS["surprisal"](trial)
    gains = [np.array([loss(pair[1], e) - loss(pair[0], e) for e in some]) for some in (s.active, s.silent, s.hard)]
    assert found["surprisal"] == pytest.approx(area(gains[0], gains[1]))
    assert found["surprisal, hard"] == pytest.approx(area(gains[0], gains[2]))


def test_steering_moves_predictions_by_half_a_nat_and_a_direction_that_writes_a_token_is_found_to(lm, readings, held):
    token = int(held.ids[40])
    row = lm.module.get_output_embeddings().weight[token].detach()
    prompts = held.texts[:4]
    strength = strength_of(lm, SITE, row, prompts)
    ids, mask = lm.encode(prompts)
    found = lm.splice(ids, SITE, lambda x: x + strength * row, mask=mask)
    assert found.kl[found.counts].mean().item() == pytest.approx(0.5, abs=0.05)
    reading = planted(held, np.zeros(len(held.ids)), 1.0 * (held.ids == token))
    rule = Explanation(1, "it", "rule", Rule("token", {token: 1.0}))
    trial = trial_of(lm, readings[0], reading, rule, Ruled(), directions=torch.stack([row.roll(1), row]))
    written = SCORERS["intervention"](trial)
    texts = lm.generate(
        ["".join(e.words[: len(e.words) // 2 + 1]) for e in trial.sample.silent[:8]],
        [None, Edit("L1R", row, written["intervention, strength"])],
        max_new_tokens=30,
    ).texts
    share = [np.mean(np.array(lm.tokenizer(t, add_special_tokens=False)["input_ids"]) == token) for t in texts]
    assert written["intervention"] == pytest.approx(np.mean(share[1::2]) - np.mean(share[::2]))
    words = replace(trial, explanation=Explanation(1, "the end", "given"))
    with pytest.raises(ValueError, match="rule of tokens, or judge=Local"):
        SCORERS["intervention"](words)
    by_words = replace(words, tools=replace(words.tools, judge=Asking(Local(lm))))
    told = SCORERS["intervention"](by_words)
    assert told["intervention"] + told["intervention, untouched"] == pytest.approx(_fit(by_words, texts[1::2]))


def test_an_explanation_fits_texts_by_the_tokens_that_it_names_or_by_how_likely_its_words_are_behind_them(lm, held):
    text, ids = held.texts[0], lm.tokenizer(held.texts[0], add_special_tokens=False)["input_ids"]
    reading = planted(held, np.zeros(len(held.ids)))
    for of, looked in (("token", ids), ("after", ids[:-1])):  # behind the last token nothing was written
        trial = trial_of(lm, reading, reading, Explanation(0, "it", "rule", Rule(of, {ids[-1]: 1.0})), Ruled(), 1)
        assert _fit(trial, [text, ""]) == pytest.approx(np.mean(np.array(looked) == ids[-1]) / 2)
    trial = trial_of(lm, reading, reading, Explanation(0, "the end of it", "given"), Asking(Local(lm)), 1)
    before, said = (
        lm.encode(BEHIND.format(text))[0][0],
        lm.tokenizer("the end of it", add_special_tokens=False)["input_ids"],
    )
    whole = torch.cat([before, torch.tensor(said)])
    logp = lm.logits(whole[None])[0].log_softmax(-1)[:-1].gather(1, whole[1:, None])[len(before) - 1 :]
    assert len(logp) >= 2 and _fit(trial, [text]) == pytest.approx(logp.mean().item(), rel=1e-4)


# --- language models


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(speakers, "RETRIES", (0.0, 0.0, 0.0))


def test_an_explainer_is_shown_marked_texts_and_texts_it_is_silent_on(lm, held):
    odd = held.window % 2
    reading = planted(held, np.where(odd, 3.0, 1.4) * on_labels(held), 1.0 * (held.window % 3 == 0))
    sample = Sampler(torch.eye(2, 8), reading, 50, 0)(0)
    with serving(lambda body: " names of\n food ") as server:
        said = Asking(Endpoint(server.url, "m"))(reading, 0, sample)
    (body, _), *more = server.asked
    assert said == Explanation(0, "names of food", f"m at {server.url.split(chr(47))[2]}") and not more
    shown, silent = body["messages"][1]["content"].split("Silent:")
    assert shown.count("<<") >= 15 and set(re.findall(r">>\((\d+)\)", shown)) == {"10", "5"}  # strong ones and weak
    assert all(f". {e.text}" in silent for e in sample.hard[:5]) and "<<" not in silent and body["temperature"] == 0


def test_an_answer_without_enough_numbers_leaves_the_rest_open():
    np.testing.assert_array_equal(_numbers("[1, 2.5]", 4), [1, 2.5, np.nan, np.nan])
    np.testing.assert_array_equal(_numbers("3 and 4 and 5", 2), [3, 4])


def test_where_one_question_goes_unanswered_the_rest_is_not_asked(held):
    class Tired:
        name, at_once, asked = "tired", 1, 0

        def say(self, system, user, tokens):
            return ""

        def weigh(self, system, user, answers):
            self.asked += 1
            if self.asked == 1:
                raise Unanswered("nobody there")
            time.sleep(0.02)
            return [0.0, 1.0]

    one, example = Tired(), Example(planted(held, np.zeros(len(held.ids))), 0, 0)
    with pytest.raises(Unanswered):
        Asking(one).detect(Explanation(0, "it", "given"), [example] * 50)
    assert one.asked < 25


def test_an_endpoint_is_asked_again_and_says_what_is_wrong(at_once, monkeypatch):
    answers = iter([503, 429, b"no json", "1"])
    with serving(lambda body: next(answers), logprobs=False) as server:
        monkeypatch.setenv("MY_KEY", "secret-123")
        one = Endpoint(server.url, "m", key="MY_KEY")
        assert one.weigh("s", "u", ("0", "1")) == [0.0, 1.0] and len(server.asked) == 4
        assert server.asked[0][1] == "Bearer secret-123" and "secret" not in repr(one) + one.name
    with serving(lambda body: 503) as server:
        with pytest.raises(Unanswered, match="503"):
            Endpoint(server.url, "m").say("s", "u", 5)
        assert len(server.asked) == 4
    with serving(lambda body: 401) as server:
        with pytest.raises(Unanswered, match=r"401.*OPENAI_API_KEY") as error:
            Endpoint(server.url, "m").say("s", "u", 5)
        assert len(server.asked) == 1 and "secret" not in str(error.value)
    with serving(lambda body: "perhaps") as server:
        assert np.isnan(Endpoint(server.url, "m").weigh("s", "u", ("0", "1"))).all()
    with pytest.raises(Unanswered, match="gave no answer"):
        Endpoint(server.url, "m").say("s", "u", 5)  # nobody is there any more
    for wrong, why in (("localhost:8000", "no address"), ("http://me:pw@host/v1", "password")):
        with pytest.raises(ValueError, match=why):
            Endpoint(wrong, "m")


def test_an_answer_weighs_what_all_its_spellings_do_among_the_answers_asked_for():
    top = [{"token": t, "logprob": math.log(p)} for t, p in (("1", 0.4), (" 1", 0.2), ("0", 0.2), ("yes", 0.2))]
    choice = {"message": {"content": "1"}, "logprobs": {"content": [{"top_logprobs": top}]}}
    with serving(lambda body: json.dumps({"choices": [choice]}).encode()) as server:
        assert Endpoint(server.url, "m").weigh("s", "u", ("0", "1")) == pytest.approx([0.25, 0.75])


def test_a_local_model_weighs_and_says(lm):
    one = Local(lm)
    p = one.weigh("Be brief.", "Is it?", ("0", "1"))
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is it?"}]
    prompt = lm.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = lm.encode(prompt)[0]
    two = [lm.tokenizer(a, add_special_tokens=False)["input_ids"][-1] for a in ("0", "1")]
    assert p == pytest.approx(lm.logits(ids)[0, -1, two].softmax(-1).tolist()) and sum(p) == pytest.approx(1)
    assert one.say("Be brief.", "Is it?", 4) == lm.generate(prompt, max_new_tokens=4).text


# --- the verb

ASKED = {"site": SITE, "text": "world", "tokens": 4000, "n": 10, "context": 128}


@pytest.fixture(scope="module")
def trained(lm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    source = sl.activations(lm, "L1R", context=64)
    made = sl.build("topk", d_in=32, d_sae=24, k=4)
    list(sl.train(made, source, tokens=2048, batch=512, run=folder))
    return folder


def test_latents_are_explained_and_scored_and_rare_ones_are_refused_by_name(lm, sae):
    found = sl.explain(sae, lm, **ASKED)
    assert len(found) + len(found.refused) == sae.cfg.d_sae and found.scorers == [
        "detection", "fuzzing", "simulation", "embedding", "logistic",
    ]  # fmt: skip
    fires = np.array([[((r.highest(i) > 0) & r.long).sum() for i in range(64)] for r in found.readings])
    often = fires >= 10
    assert list(found) == np.flatnonzero(often.all(0)).tolist() and (often.any(0) & ~often.all(0)).any()
    assert all(e.windows == tuple(fires[:, n]) for n, e in found.items())
    assert found.table.latent.tolist() == found.table.sort_values("detection", ascending=False).latent.tolist()
    latent = next(iter(found))
    assert found[latent].sample.active[0].reading is found.readings[1]
    assert json.loads(json.dumps(found.to_json()))["about"]["judge"] == "rule"
    assert f"latent {latent}" in repr(found[latent]) and len(found.figure.data) == 6
    e, told = found.mean("detection"), np.array([x.scores["detection"] for x in found.values()])
    assert np.isfinite(told).all() and e.value == pytest.approx(told.mean())
    assert (e.high - e.low) / 2 == pytest.approx(1.96 * told.std() / len(told) ** 0.5, rel=0.15)
    with pytest.raises(KeyError, match="No number 'recal'"):
        found.mean("recal")
    none = sl.explain(sae, lm, [7, 9], **ASKED)
    assert len(none) == 0 and "under 10" in none.refused[7] and none.table.empty
    with pytest.raises(KeyError, match="fires in"):
        none[7]
    assert "2 were not explained" in repr(none)


def test_a_number_that_is_missing_is_left_out_of_means_and_read_back_as_missing():
    made = [Explained(Explanation(i, "it", "me"), {"detection": x}, (10, 10)) for i, x in enumerate((0.5, np.nan, 1.0))]
    found = Explanations(dict(enumerate(made)), {}, {})
    assert found.mean("detection").value == 0.75
    assert np.isnan(Explained.from_json(json.loads(json.dumps(made[1].to_json()))).scores["detection"])


def test_latents_are_explained_on_the_validation_split_and_judged_on_the_test_split(lm, sae):
    shown = {}

    def explainer(reading, latent, sample):
        shown[latent] = reading, sample
        return token_rule(reading, latent)

    found = sl.explain(sae, lm, [0, 3], explainer=explainer, **ASKED | {"scorers": ["simulation"]})
    learnt, held = found.readings
    for reading, split in ((learnt, "validation"), (held, "test")):
        page = next(walk(lm, held_out(lm, "world", split, 0, context=128), [SITE], 1, sae))
        assert reading.ids[:100].tolist() == page.block.ids[page.keep][:100].tolist()
    for latent, (reading, sample) in shown.items():
        assert reading is learnt and {e.reading is learnt for e in (*sample.active, *sample.silent)} == {True}
        assert {e.reading is held for e in (*found[latent].sample.active, *found[latent].sample.silent)} == {True}


@pytest.fixture
def filed(lm, trained, held, monkeypatch):
    """The file that what `explain` finds would be kept in; None for none."""
    kept = []

    def all_of(work, latents):
        kept.append(work.kept and work.kept._path)
        return Explanations({}, {}, work.about)

    monkeypatch.setattr(verb, "read", lambda *a: held)
    monkeypatch.setattr(verb._Work, "all", all_of)

    def file(by=lm, **more):
        sl.explain(trained, by, **ASKED | more)
        return kept[-1]

    return file


TOLD = [f"The cat {i} sat on the mat and it was glad of it all day long." for i in range(100)]


def test_results_are_kept_apart_by_all_that_they_depend_on(filed, lm, monkeypatch):
    one, other = (Endpoint("http://127.0.0.1:9/v1", name) for name in ("one", "other"))
    named, words = copy.copy(lm), {"scorers": ["logistic"]}
    named.name = "another"
    asked = [{}, {"tokens": 5000}, {"n": 11}, {"width": 16}, {"seed": 1}, {"scorers": ["detection"]}, {"by": named}]
    asked += [{"explainer": "label"}, {"explainer": one}, {"judge": one}, {"judge": other}, {"site": "L1A"}]
    asked += [
        {"text": TOLD},
        {"text": TOLD[1:]},
        {"context": 64},
        {"where": "language.french"},
        {"where": "topic.pets"},
    ]
    asked += [{"text": "some/one"}, {"text": "some/other"}, {"text": "some/other", "column": "answer"}]  # not read yet
    asked += [words | {"explainer": {0: "a"}}, words | {"explainer": {0: "b"}}, words | {"explainer": {1: "a"}}]
    files = [filed(**more) for more in asked]
    assert None not in files and len(set(files)) == len(files) and filed() == files[0]
    monkeypatch.setattr(lines, "weights_of", lambda run: "other")
    assert filed() not in files


def test_what_no_name_says_all_of_is_not_kept(filed):
    told = ({"embedder": Letters(TOLD)}, {"judge": Watching()}, {"explainer": token_rule}, {"text": lambda: iter(TOLD)})
    assert [filed(**more) for more in (*told, {"where": lambda text: text.language == "fr"})] == [None] * 5


def test_what_was_finished_is_kept_and_not_asked_again(lm, trained, at_once):
    left = [30]

    def answer(body):
        left[0] -= 1
        return 500 if left[0] < 0 else "1" if "one digit" in body["messages"][0]["content"] else "a thing"

    asked = ASKED | {"scorers": ["detection"], "n": 5}
    with serving(answer) as server:
        one = Endpoint(server.url, "m", at_once=1)
        with pytest.raises(Unanswered) as error:
            sl.explain(trained, lm, explainer=one, **asked)
        done = list(error.value.finished)
        assert 1 <= len(done) < 20
        file = next((trained / "explanations").glob("*.jsonl"))
        file.write_bytes(file.read_bytes() + b'{"latent": 99, "expl')  # a kill in the middle of a line
        left[0], before = 10**6, len(server.asked)
        whole = sl.explain(trained, lm, explainer=one, **asked)
        assert set(done) < set(whole) and len(server.asked) - before <= 16 * (len(whole) - len(done))
        before = len(server.asked)
        again = sl.explain(sl.Run(trained), lm, explainer=one, **asked)
        assert len(server.asked) == before and again.to_json() == whole.to_json()
        for n in again:  # and shown as it was
            drawn = [[(x.reading is f.readings[1], x.window) for x in f[n].sample.active] for f in (again, whole)]
            assert drawn[0] == drawn[1]
        sl.explain(trained, lm, list(whole)[:1], explainer=one, **asked | {"seed": 1})
        assert len(server.asked) > before  # other settings, other results
    assert len(list((trained / "explanations").glob("*.jsonl"))) == 2


def test_what_a_function_says_is_not_kept(lm, trained):
    asked = ASKED | {"scorers": ["logistic"]}
    for said in ("one", "another"):
        found = sl.explain(
            trained, lm, explainer=lambda reading, latent, sample, s=said: Explanation(latent, s, "me"), **asked
        )
        assert len(found) and {e.explanation.text for e in found.values()} == {said}
    for said in ("one", "another"):
        found = sl.explain(trained, lm, explainer=dict.fromkeys(found, said), **asked)
        assert {e.explanation.text for e in found.values()} == {said}


def test_no_key_is_ever_written(lm, trained, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-456")
    with serving(lambda body: "1") as server:
        sl.explain(trained, lm, [0, 1, 2], explainer=Endpoint(server.url, "m"), **ASKED | {"scorers": ["detection"]})
        assert server.asked[0][1] == "Bearer secret-456"
    assert not any(b"secret-456" in path.read_bytes() for path in trained.rglob("*") if path.is_file())


def test_ones_own_words_are_scored(lm, sae):
    words = {0: "food", 3: "a day of the week"}
    found = sl.explain(sae, lm, explainer=words, **ASKED | {"scorers": ["embedding", "logistic"]})
    assert {n: e.explanation.text for n, e in found.items()} == words
    with pytest.raises(ValueError, match="said in words"):
        sl.explain(sae, lm, explainer=words, **ASKED)
    mine = sl.explain(
        sae, lm, [0], explainer=lambda reading, latent, sample: token_rule(reading, latent, sample), **ASKED
    )
    assert mine.about["explainer"] == "<lambda>"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"latents": [64]}, "No latent 64: this SAE has latents 0 to 63"),
        ({"scorers": ["detecting"]}, "No scorer named 'detecting'. Known: detection"),
        ({"explainer": "rules"}, "No explainer named 'rules'"),
        ({"judge": "fair"}, "cannot judge"),
        ({"site": "L1M", "text": ["a b"] * 3, "explainer": "label"}, None),
    ],
)
def test_what_is_asked_wrongly_is_told(wrong, said, lm, sae):
    if said:
        with pytest.raises(ValueError, match=re.escape(said)):
            sl.explain(sae, lm, **ASKED | wrong)
    else:
        text = [f"The cat {i} sat on the mat and it was glad of it all day long." for i in range(400)]
        with pytest.raises(ValueError, match="no labels"):
            sl.explain(sae, lm, **ASKED | wrong | {"text": text})
