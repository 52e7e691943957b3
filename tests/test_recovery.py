"""Concept recovery on firings whose best answer is known."""

import numpy as np
import pytest
from scipy import sparse
from small import identity, small_llama

from sae_lab import recover
from sae_lab.concepts import lineages
from sae_lab.recovery import Choice, Firings, choose, score


def planted(seed=0, tokens=4000):
    """Unit 2 fires above 0.5 exactly on concept 0; unit 5 is concept 1 with noise below 0.3; the rest is noise."""
    rng = np.random.default_rng(seed)
    labels = rng.random((tokens, 2)) < [0.02, 0.1]
    acts = np.where(rng.random((tokens, 8)) < 0.1, rng.random((tokens, 8)), 0.0)
    acts[:, 2] = np.where(labels[:, 0], 0.6 + 0.1 * rng.random(tokens), 0.5 * acts[:, 2])
    acts[:, 5] = np.where(labels[:, 1], 0.3 + rng.random(tokens), 0.3 * acts[:, 5])
    token, unit = np.nonzero(acts)
    return Firings(unit, token, acts[token, unit], 8, tokens), sparse.csr_array(labels)


def test_the_planted_unit_and_a_threshold_between_are_found():
    choice = choose(*planted())
    assert choice.unit.tolist() == [2, 5]
    assert 0.5 < choice.threshold[0] < 0.62
    assert choice.f1.min() > 0.95


def test_the_choice_is_scored_on_other_text():
    firings, labels = planted(seed=1)
    doc = np.arange(4000) // 100
    table = score(firings, labels, choose(*planted(seed=0)), doc, ("a", "b")).table
    assert table.f1.min() > 0.9
    assert table.positives.tolist() == labels.sum(0).tolist()


def test_precision_and_recall_count_what_they_say():
    firings = Firings(np.array([0, 0, 0, 0]), np.array([0, 1, 2, 3]), np.array([1.0, 0.9, 0.2, 0.8]), 1, 6)
    labels = sparse.csr_array(np.array([[1], [0], [1], [1], [1], [0]], dtype=bool))
    choice = Choice(np.array([0]), np.array([0.5]), np.array([0.0]))
    row = score(firings, labels, choice, np.zeros(6, int), ("a",)).table.iloc[0]
    assert (row.precision, row.recall) == (pytest.approx(2 / 3), pytest.approx(2 / 4))
    assert row.f1 == pytest.approx(2 * (2 / 3) * 0.5 / (2 / 3 + 0.5))


def test_a_threshold_that_is_a_firing_counts_it():
    firings = Firings(np.array([0, 0]), np.array([0, 1]), np.array([0.5, 0.4]), 1, 2)
    labels = sparse.csr_array(np.array([[1], [0]], dtype=bool))
    choice = Choice(np.array([0]), np.array([0.5]), np.array([0.0]))
    assert score(firings, labels, choice, np.zeros(2, int), ("a",)).table.recall[0] == 1


def test_a_silent_unit_scores_zero():
    nothing = Firings(np.array([], int), np.array([], int), np.array([], float), 3, 10)
    labels = sparse.csr_array(np.ones((10, 1), dtype=bool))
    choice = choose(nothing, labels)
    assert score(nothing, labels, choice, np.zeros(10, int), ("a",)).table.f1[0] == 0


def test_the_choice_equals_a_plain_search_over_every_unit_and_threshold():
    firings, labels = planted(seed=3, tokens=500)
    dense, truth = np.zeros((500, 8)), labels.toarray()
    dense[firings.token, firings.unit] = firings.value
    best = np.zeros(2)
    for unit in range(8):
        for threshold in np.unique(dense[:, unit])[1:]:
            on = dense[:, unit] >= threshold
            best = np.maximum(best, 2 * (on[:, None] & truth).sum(0) / (on.sum() + truth.sum(0)))
    np.testing.assert_allclose(choose(firings, labels).f1, best, rtol=1e-12)


def test_dense_units_keep_their_highest_share_only():
    acts = np.random.default_rng(0).normal(size=(1000, 3))
    firings = Firings.of_dense(acts, share=0.1)
    assert np.bincount(firings.unit).tolist() == [100, 100, 100]


def test_a_word_carries_the_concepts_above_its_own():
    names = ("entity", "entity.animal", "entity.animal.dog", "form", "form.digit")
    above = lineages(names).toarray()
    assert above[2].tolist() == [True, True, True, False, False]
    assert above[0].tolist() == [True, False, False, False, False]
    assert above[4].tolist() == [False, False, False, True, True]


def test_labels_of_real_text_reach_up_the_tree(tmp_path):
    """Recovered on a small model: an inner concept has at least the positives of any concept below it."""
    lm = small_llama(tmp_path)
    found = recover(identity(), lm, site="L1R", tokens=4000)
    positives = found.table.set_index("concept").positives
    kinds = found.table.set_index("concept").kind
    assert kinds["entity.animal"] == "inner"
    assert positives["entity"] >= positives["entity.animal"] >= positives["entity.animal.pet"] > 0
    assert positives["entity"] >= sum(positives[c] for c in ("entity.animal.pet.dog", "entity.animal.pet.cat"))
    assert set(found.means.concepts) <= {"word", "context", "relation", "inner"}
    assert found.mean("random").low <= found.mean("random").value
    assert found.about["k of random"] == pytest.approx(32, abs=1)  # identity(): every dimension fires once, by its sign
