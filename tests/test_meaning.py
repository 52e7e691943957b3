"""Agreement of matched latents, on pairs whose meaning and firing are planted."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse, stats
from small import identity, small_llama

import sae_lab as sl
from sae_lab import meaning
from sae_lab.explanation.examples import read
from sae_lab.intervals import rank_correlation
from sae_lab.meaning import MEASURES, Agreement, _named, _others, coincidence
from sae_lab.reading import held_out
from sae_lab.recovery import Firings
from sae_lab.tiny import world

TOKENS, CONCEPTS = 4000, len(world.concepts())
SMALL = {"site": "L1R", "tokens": 3000, "seed": 3}
LITTLE = 0.15  # F1 from which a latent of random weights is taken to name a concept


def firings(columns: list[np.ndarray]) -> Firings:
    dense = np.stack(columns, axis=1).astype(float)
    token, unit = np.nonzero(dense)
    return Firings(unit, token, dense[token, unit], dense.shape[1], TOKENS)


def text(seed: int, *meant: tuple[int | None, ...]) -> tuple[list[Firings], sparse.csr_array]:
    """A text on which each latent of each SAE fires on one of five concepts of 3% each, or (None) on other tokens."""
    rng = np.random.default_rng(seed)
    carried = rng.permutation(TOKENS).reshape(-1, 100)[:, :60]  # rows of tokens that are apart
    labels = np.zeros((TOKENS, CONCEPTS), bool)
    for concept in range(5):
        labels[carried[2 * concept : 2 * concept + 2].ravel(), concept] = True
    noise = [rng.random(TOKENS) < 0.03 for _ in range(40)]
    found = [firings([labels[:, c] if c is not None else noise.pop() for c in of]) for of in meant]
    return found, sparse.csr_array(labels)


def test_pairs_that_name_one_concept_agree_and_others_do_not():
    a, b = (0, 1, 2, None, None), (0, 1, 3, None, 4)
    found = _named([text(0, a, b), text(1, a, b)], np.array([1, 2, 0, 4, 3]))
    np.testing.assert_array_equal(found["concept"], [1, 1, 0, np.nan, 0])
    np.testing.assert_array_equal(found["concept_ceiling"], [1, 1, 1, np.nan, 1])
    np.testing.assert_array_equal(found["concept_chance"], [0, 0, 0, np.nan, 0])
    names = [c.name for c in world.concepts()]
    assert found["a names"].tolist() == [names[0], names[1], names[2], "", ""]
    assert found["b names"].tolist() == [names[0], names[1], names[3], "", names[4]]


def test_what_two_latents_share_by_accident_of_one_text_is_no_agreement():
    """Both fire on concept 0 in the first text, on concept 1 in the second: on either text alone they would agree."""
    found = _named([text(0, (0,), (0,)), text(1, (1,), (1,))], np.array([0]))
    assert found["concept"][0] == 0 and found["concept_ceiling"][0] == 0


def test_a_text_too_short_to_name_anything_says_so():
    (found, labels), other = text(0, (0,), (0,)), np.array([0])
    with pytest.raises(ValueError, match="No concept has 50 tokens on each"):
        _named([(found, labels), (found, sparse.csr_array(labels.shape, dtype=bool))], other)


def test_a_concept_of_most_tokens_or_of_one_text_alone_names_nothing():
    """Concept 5 is on all tokens, and a latent that always fires would name it."""
    everywhere = firings([np.ones(TOKENS)])
    texts = [([everywhere, everywhere], text(seed, (0,), (0,))[1].tolil()) for seed in (0, 1)]
    for _, labels in texts:
        labels[:, 5] = True
    texts[0][1][:, 1] = False
    found = _named([(fired, labels.tocsr()) for fired, labels in texts], np.array([0]))
    assert found["a names"].tolist() == [""] and np.isnan(found["concept"]).all()
    on_one = firings([text(1, (0,), (0,))[1][:, [1]].toarray()[:, 0]])
    texts = [([on_one, on_one], labels.tocsr()) for _, labels in reversed(texts)]
    assert _named(texts, np.array([0]))["a names"].tolist() == [""]


def test_bins_and_ranks_are_over_pairs():
    cosine = np.array([0.1, 0.2, 0.3, 0.45, 0.5, 0.65, 0.7, 0.85, 0.9, 1.0])
    jaccard, nothing = np.array([0.0, 0.2, 0.1, 0.3, 0.5, 0.4, 0.6, 0.8, 0.7, 0.9]), np.full(10, np.nan)
    pairs = pd.DataFrame({"cosine": cosine, "jaccard": jaccard, "concept": nothing, "correlation": nothing})
    found = Agreement(pairs, {})
    assert found.table.bin.tolist() == ["below 0.3", "0.3 to 0.5", "0.5 to 0.7", "0.7 to 0.9", "0.9 and up"]
    assert found.table.pairs.tolist() == [2] * 5
    assert found.table.value.tolist() == pytest.approx([0.1, 0.2, 0.45, 0.7, 0.8])
    assert (found.table.low[0], found.table.high[0]) == pytest.approx(
        (0.0, 0.2)
    )  # resampled: both twice, or one of each
    assert np.isnan(found.spearman("concept").value)
    assert found.spearman("jaccard").value == pytest.approx(stats.spearmanr(cosine, jaccard).statistic)


def test_agreement_is_a_share_of_both_directions():
    """a names concept 0 on both texts, b only on the second: seen from a they agree, seen from b they do not."""
    found = _named([text(0, (0,), (1,)), text(1, (0,), (0,))], np.array([0]))
    assert found["concept"][0] == 0.5


def test_coincidence_is_what_numpy_counts():
    rng = np.random.default_rng(0)
    A, B = (np.where(rng.random((500, 6)) < 0.2, rng.random((500, 6)), 0.0) for _ in range(2))
    B[:, :3] = np.where(rng.random((500, 3)) < 0.7, A[:, :3], B[:, :3])
    jaccard, correlation = coincidence(sparse.csc_array(A), sparse.csc_array(B))
    for i in range(6):
        assert jaccard[i] == pytest.approx(
            ((A[:, i] > 0) & (B[:, i] > 0)).sum() / ((A[:, i] > 0) | (B[:, i] > 0)).sum()
        )
        assert correlation[i] == pytest.approx(np.corrcoef(A[:, i], B[:, i])[0, 1])


def test_rank_correlation_is_spearmans_and_its_interval_is_over_pairs():
    rng = np.random.default_rng(0)
    x = rng.normal(size=300)
    y = (x + rng.normal(size=300) > 0).astype(float)  # with ties
    e = rank_correlation(x, y)
    assert e.value == pytest.approx(stats.spearmanr(x, y).statistic)
    assert e.low < e.value < e.high and 0.02 < (e.high - e.low) / 4 < 0.08  # a standard error of about 1 / sqrt(300)
    assert np.isnan(rank_correlation(x, np.ones(300)).value)


def test_chance_is_with_another_pair_always():
    for n in (3, 4, 50):
        other = _others(n, np.random.default_rng(n))
        assert sorted(other) == list(range(n)) and (other != np.arange(n)).all()


def test_firings_of_two_texts_are_those_of_one_text_after_the_other():
    parts = [Firings(np.array([0, 1]), np.array([0, 2]), np.array([1.0, 2.0]), 2, n) for n in (3, 4)]
    joined = Firings.joined(parts)
    assert joined.tokens == 7 and joined.token.tolist() == [0, 2, 3, 5] and joined.unit.tolist() == [0, 1, 0, 1]


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return small_llama(tmp_path_factory.mktemp("llama"))


def permuted(sae: sl.saes.SAE, order: torch.Tensor, encoder: torch.Tensor | None = None) -> sl.saes.SAE:
    other = identity()
    with torch.no_grad():
        other.W_dec.copy_(sae.W_dec[order])
        other.W_enc.copy_(sae.W_enc[order if encoder is None else encoder])
    return other


@pytest.fixture(scope="module")
def same(lm):
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(meaning, "NAMES", LITTLE)
        return order, sl.agree(identity(), permuted(identity(), order), lm, **SMALL)


def test_a_permuted_copy_agrees_wholly(same):
    order, found = same
    assert (order.numpy()[found.pairs.b] == found.pairs.a).all()
    for name, value in (("cosine", 1), ("jaccard", 1), ("correlation", 1)):
        np.testing.assert_allclose(found.pairs[name], value, atol=1e-5)
    assert found.pairs.concept.equals(found.pairs.concept_ceiling)
    assert found.pairs.concept.notna().any()
    assert found.pairs.jaccard_chance.mean() < 0.6
    assert found.about["matched"] == found.about["judged"] == 64
    assert found.about["mcc"] == pytest.approx(1)


def test_what_latents_name_is_the_concept_of_the_highest_f1_on_the_validation_split(same, lm):
    """Of the labels of each token and those above, on the text of this seed; firing is compared on the test split."""
    texts = [
        read(identity(), lm, sl.Site("L1R"), held_out(lm, "world", s, 3), 3000, 32) for s in ("validation", "test")
    ]
    labels = [reading.labels.toarray() for reading in texts]
    _, read_here = meaning._fired((identity(),) * 2, lm, sl.Site("L1R"), "validation", 3000, 3, {})
    assert (read_here.toarray() == labels[0]).all()
    usual = np.all([(y.sum(0) >= 50) & (y.mean(0) <= 0.2) for y in labels], 0)
    z, y = texts[0].acts.toarray(), labels[0][:, usual]
    named = 0
    for row in same[1].pairs.itertuples(index=False):
        order = np.argsort(-z[:, row.a], kind="stable")[: (z[:, row.a] > 0).sum()]
        f1 = 2 * y[order].cumsum(0) / (np.arange(1, len(order) + 1)[:, None] + y.sum(0))
        best = f1.max(0).argmax()
        name = np.array(texts[0].names)[usual][best] if f1.max() >= LITTLE else ""
        assert row[3] == name
        named += name != ""
    assert named
    fired = np.array([(texts[1].acts[:, [i]].toarray() > 0).ravel() for i in same[1].pairs.a])
    both = fired.astype(int) @ fired.T
    either = np.diag(both)[:, None] + np.diag(both) - both
    possible = (both / either)[~np.eye(64, dtype=bool)]
    assert all(np.isclose(possible, chance).any() for chance in same[1].pairs.jaccard_chance)


def test_table_figure_and_json_say_the_same(same):
    table = same[1].table.query("against == 'its match' and number == 'jaccard'")
    assert table.bin.tolist() == ["0.9 and up"] and table.pairs.tolist() == [64]
    assert table.value.iloc[0] == pytest.approx(1, abs=1e-6)
    assert {trace.legendgroup for trace in same[1].figure.data} >= {"its match", "another's match"}
    assert set(same[1].to_json()["spearman"]) == set(MEASURES) and "64 of 64" in repr(same[1])


def test_firing_is_measured_and_not_read_off_decoders(lm):
    """The decoders are those of a permuted copy; half of the encoders are another latent's: its opposite."""
    order, opposite = torch.arange(64), torch.arange(64)
    opposite[:16], opposite[32:48] = torch.arange(32, 48), torch.arange(16)
    pairs = sl.agree(identity(), permuted(identity(), order, opposite), lm, **SMALL).pairs
    np.testing.assert_allclose(pairs.cosine, 1, atol=1e-5)
    crossed = pairs.a.isin([*range(16), *range(32, 48)])
    assert pairs.jaccard[crossed].max() == 0 and pairs.jaccard[~crossed].min() > 0.999
    assert pairs.correlation[crossed].max() < 0 < 0.999 < pairs.correlation[~crossed].min()


def test_saes_of_different_places_are_refused(lm):
    a, b = identity(), identity()
    a.origin, b.origin = {"site": "L0R"}, {"site": "L1R"}
    with pytest.raises(ValueError, match=r"SAEs of L0R of .* and L1R of .*: give two of one place"):
        sl.agree(a, b, lm)
    a.origin, b.origin = {"site": "L0R", "model": "one"}, {"site": "L0R", "model": "two"}
    with pytest.raises(ValueError, match="SAEs of L0R of one and L0R of two"):
        sl.agree(a, b, lm)


def test_latents_that_hardly_fire_are_not_judged(lm):
    silent = identity()
    with torch.no_grad():
        silent.b_enc.fill_(-1e9)
    some = sl.agree(identity(silent=[3, 5]), identity(), lm, **SMALL)
    assert (some.about["matched"], some.about["judged"], len(some.pairs)) == (64, 62, 62) and "62 of 64" in repr(some)
    with pytest.raises(ValueError, match=r"0 pairs fire 20 times .* give more tokens="):
        sl.agree(identity(), silent, lm, **SMALL)
