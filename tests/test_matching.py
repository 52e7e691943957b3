"""Matching: dictionaries whose likeness is known, and the floor that chance gives."""

from itertools import permutations
from types import SimpleNamespace

import pytest
import torch

from sae_lab import matching
from sae_lab.matching import chance_floor, mcc, mmcs, pw_mcc, shared


def directions(latents, d_in, seed=0):
    rows = torch.randn(latents, d_in, generator=torch.Generator().manual_seed(seed))
    return rows / rows.norm(dim=1, keepdim=True)


A, B = directions(48, 12), directions(48, 12, seed=1)
ORDER = torch.randperm(48, generator=torch.Generator().manual_seed(2))


def sae(encoder, decoder):
    return SimpleNamespace(W_enc=encoder, W_dec=decoder)


def test_the_same_rows_in_another_order_and_of_other_lengths_match_wholly():
    lengths = torch.linspace(0.1, 9, 48)[:, None]
    score, pairs = mcc(A, A[ORDER] * lengths)
    assert score == pytest.approx(1, abs=1e-6)
    assert torch.equal(ORDER[pairs.b], pairs.a)
    assert pw_mcc([A, A[ORDER], A * lengths]).mean == pytest.approx(1, abs=1e-6)
    assert mmcs(A, A[ORDER] * lengths) == pytest.approx(1, abs=1e-6)


def test_no_other_matching_of_a_few_rows_has_a_higher_mean():
    few, others = A[:6], B[:6]
    cosine = few @ others.T
    best = max(cosine[range(6), list(order)].mean().item() for order in permutations(range(6)))
    assert mcc(few, others)[0] == pytest.approx(best, abs=1e-6)
    assert mcc(few, others, signed=False)[0] == pytest.approx(
        max(cosine.abs()[range(6), list(order)].mean().item() for order in permutations(range(6))), abs=1e-6
    )


def test_an_opposite_direction_is_another_one_unless_signs_do_not_count():
    flipped = A.clone()
    flipped[:5] *= -1
    assert mcc(A, flipped)[0] < 0.99
    assert mcc(A, flipped, signed=False)[0] == pytest.approx(1, abs=1e-6)
    assert mmcs(A, flipped) < 0.99 < mmcs(A, flipped, signed=False)


def test_matching_is_symmetric_and_no_more_than_the_largest_cosines():
    assert mcc(A, B)[0] == pytest.approx(mcc(B, A)[0], abs=1e-6)
    assert mcc(A, B)[0] < mmcs(A, B) == pytest.approx(((A @ B.T).amax(1).mean() + (A @ B.T).amax(0).mean()).item() / 2)


def test_of_dictionaries_of_two_widths_the_narrow_one_is_matched():
    score, pairs = mcc(A[ORDER[:20]], A)
    assert score == pytest.approx(1, abs=1e-6) and torch.equal(pairs.b, ORDER[:20])
    score, pairs = mcc(A, A[ORDER[:20]])
    assert score == pytest.approx(1, abs=1e-6) and torch.equal(pairs.a, ORDER[:20].sort().values)


def test_a_row_of_zeros_is_like_nothing():
    dead = A.clone()
    dead[:12] = 0
    score, pairs = mcc(A, dead)
    assert score == pytest.approx(36 / 48, abs=1e-6)
    assert pairs.cosine[:12].abs().max() == 0 and pairs.cosine[12:].min() > 0.999


def test_runs_are_compared_in_pairs_beside_the_floor_of_chance():
    of = [A, B, A[ORDER]]
    scores = torch.tensor([mcc(A, B)[0], 1.0, mcc(B, A[ORDER])[0]])
    found = pw_mcc(of)
    assert found.pairs == 3 and found.floor == chance_floor(12, 48)
    assert found.mean == pytest.approx(scores.mean().item(), abs=1e-6)
    assert found.std == pytest.approx(scores.std(correction=0).item(), abs=1e-6)
    with pytest.raises(ValueError, match="got 1 dictionaries"):
        pw_mcc([A])


@pytest.mark.parametrize(
    ("d_in", "d_sae", "floor"), [(16, 32, 0.46), (64, 256, 0.33), (64, 512, 0.36), (128, 1024, 0.27), (512, 1024, 0.14)]
)
def test_chance_reaches_what_was_measured_elsewhere(d_in, d_sae, floor):
    assert chance_floor(d_in, d_sae) == pytest.approx(floor, abs=0.015)


def test_chance_beyond_what_is_drawn_is_what_drawing_gives(monkeypatch):
    drawn = chance_floor(24, 1024)
    chance_floor.cache_clear()
    monkeypatch.setattr(matching, "DRAWN", 256)
    assert chance_floor(24, 1024) == pytest.approx(drawn, abs=0.005)
    assert chance_floor(24, 1024) != drawn
    chance_floor.cache_clear()


def test_a_latent_is_shared_where_encoder_and_decoder_have_the_same_partner():
    assert shared(sae(A, A), sae(A[ORDER], A[ORDER])).all()
    assert shared(sae(A, A), sae(A[ORDER], A)).float().mean() < 0.1
    assert not shared(sae(A, A), sae(B, B)).all()


def test_both_cosines_must_reach_the_threshold():
    """Latent 0's decoder leans away by 60 degrees, latent 1's encoder does."""
    across = directions(48, 12, seed=3)
    across -= (across * A).sum(1, keepdim=True) * A
    leaning = 0.5 * A + 0.75**0.5 * across / across.norm(dim=1, keepdim=True)
    encoder, decoder = A.clone(), A.clone()
    decoder[0], encoder[1] = leaning[0], leaning[1]
    other = sae(encoder, decoder)
    assert (~shared(sae(A, A), other)).nonzero()[:, 0].tolist() == [0, 1]
    assert shared(sae(A, A), other, threshold=0.49).all()


def test_of_two_widths_every_latent_of_the_first_has_an_answer():
    narrow, wide = sae(A[:20], A[:20]), sae(A[ORDER], A[ORDER])
    assert shared(narrow, wide).tolist() == [True] * 20
    assert torch.equal(shared(wide, narrow), ORDER < 20)


def test_what_cannot_be_matched_says_so(monkeypatch):
    with pytest.raises(ValueError, match="Rows of 12 and of 7 numbers"):
        mcc(A, directions(48, 7))
    with pytest.raises(ValueError, match="0 x 48 latents: there is nothing to match"):
        mcc(A[:0], B)
    with pytest.raises(ValueError, match="not finite"):
        mmcs(A, torch.full_like(B, torch.nan))
    monkeypatch.setattr(matching, "WIDEST", 40)
    with pytest.raises(ValueError, match=r"48 x 48 latents: at most 40 .* Use mmcs"):
        mcc(A, B)
