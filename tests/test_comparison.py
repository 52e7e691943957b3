"""Consistency of SAEs whose likeness is known: copies, parts in common, planted dictionaries, what chance gives."""

import json
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch
from small import identity, small_llama

import sae_lab as sl
from sae_lab import comparison
from sae_lab.cli import main
from sae_lab.comparison.result import over_pairs
from sae_lab.comparison.uniqueness import Law, unique
from sae_lab.intervals import Estimate
from sae_lab.matching import chance_floor, chance_nearest, chance_shared, mcc, mmcs
from sae_lab.reading import held_out, walk
from sae_lab.toys import Planted

TEXT = [f"Anna has {i} pears, and Bruno has {i * 3 % 17} plums. They are happy." for i in range(900)]


def rows(n, d_in=32, seed=0):
    W = torch.randn(n, d_in, generator=torch.Generator().manual_seed(seed))
    return W / W.norm(dim=1, keepdim=True)


def made(encoder, decoder=None, seed=0, **origin):
    """An SAE of these directions; the decoder is the encoder if not given."""
    sae = sl.build("topk", d_in=encoder.shape[1], d_sae=len(encoder), k=4, seed=seed)
    with torch.no_grad():
        sae.W_enc.copy_(encoder)
        sae.W_dec.copy_(encoder if decoder is None else decoder)
    sae.origin = origin
    return sae


A = rows(80)
POOL = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(5)))[0]  # 64 orthogonal directions


def of_pool(*members, seed=0):
    return made(POOL[list(members)], seed=seed)


def value(found, name):
    return found.table.set_index("number").value[name]


def test_a_permuted_copy_is_the_same_dictionary():
    order = torch.randperm(80, generator=torch.Generator().manual_seed(1))
    found = sl.compare([made(A), made(3 * A[order], A[order], seed=1)])
    assert value(found, "mcc") == pytest.approx(1, abs=1e-6)
    assert value(found, "shared") == 1 and value(found, "unique") == 0
    assert (found.latents["found in"] == 1).all() and found.latents.cosine.min() > 0.999
    assert found.pairs["slack"].max() < 1e-9


def test_encoders_permuted_and_decoders_not_share_nothing():
    found = sl.compare([made(A), made(A.roll(1, 0), A, seed=1)])
    assert value(found, "mcc") == pytest.approx(1, abs=1e-6)
    assert value(found, "shared") == 0 and value(found, "unique") == 1
    other = sl.compare([made(A), made(rows(80, seed=3), A.flip(0), seed=1)])
    assert value(other, "mcc") == pytest.approx(1, abs=1e-6) and value(other, "shared") == 0


def test_the_opposite_direction_counts_where_signs_do_not():
    flipped = A * torch.where(torch.arange(80) < 20, -1.0, 1.0)[:, None]
    found = sl.compare([made(A), made(flipped, seed=1)])
    assert value(found, "abs") == pytest.approx(1, abs=1e-6) and value(found, "mcc") < 0.9
    assert value(found, "shared") == pytest.approx(60 / 80)


@pytest.mark.parametrize(("d_in", "d_sae", "floor"), [(64, 256, 0.33), (128, 1024, 0.27)])
def test_of_random_dictionaries_every_number_is_what_chance_says(d_in, d_sae, floor):
    found = sl.compare([made(rows(d_sae, d_in, seed), seed=seed) for seed in (7, 8)]).table.set_index("number")
    assert found.chance["mcc"] == pytest.approx(floor, abs=0.02)
    for name in ("mcc", "abs", "shared"):
        assert found.value[name] == pytest.approx(found.chance[name], abs=0.01)


def test_chance_shares_latents_only_where_there_are_few_dimensions():
    assert chance_shared(4, 200, 200) > 0.9 > 0.3 > chance_shared(16, 200, 200) > 0 == chance_shared(64, 200, 200)
    drawn = sl.compare([made(rows(200, 8, seed), seed=seed) for seed in (7, 8)])
    assert value(drawn, "shared") == pytest.approx(chance_shared(8, 200, 200), abs=0.08)


@pytest.mark.parametrize("signed", [True, False])
def test_the_nearest_of_random_directions_is_as_near_as_chance_says(signed):
    assert chance_nearest(24, 700, signed) == pytest.approx(mmcs(rows(700, 24), rows(700, 24, 1), signed), abs=0.005)


SETS = [
    {0, 1, 2, 3, 4, 5, 6, 7},
    {0, 1, 2, 3, 4, 5, 8, 9},
    {0, 1, 2, 3, 8, 10, 11, 12},
    {0, 1, 4, 8, 13, 14, 15, 16},
]


def test_unique_latents_are_those_of_every_choice_of_other_seeds():
    """Counted over subsets by hand, from directions that are in one dictionary or are not."""
    found = sl.compare([of_pool(*members, seed=i) for i, members in enumerate(SETS)])
    for seeds in (2, 3, 4):
        shares = []
        for i, mine in enumerate(SETS):
            others = [s for j, s in enumerate(SETS) if j != i]
            shares += [len(mine - set().union(*some)) / 8 for some in combinations(others, seeds - 1)]
        assert found.unique.set_index("seeds").share[seeds] == pytest.approx(np.mean(shares))
    assert value(found, "unique") == pytest.approx(np.mean(shares))
    pairs = [len(a & b) / 8 for a, b in combinations(SETS, 2)]
    assert found.pairs["shared of a"].tolist() == found.pairs["shared of b"].tolist() == pytest.approx(pairs)
    assert value(found, "mcc") == pytest.approx(np.mean(pairs), abs=1e-5)  # what is not the same is orthogonal
    times = found.latents[found.latents.sae.str.startswith("0")]["found in"]
    assert times.tolist() == [sum(m in s for s in SETS[1:]) for m in sorted(SETS[0])]


def test_pairs_get_the_interval_of_the_seeds_and_not_of_the_pairs():
    """With an effect of each seed, 95% intervals hold the truth; those that take ten pairs to be independent do not."""
    rng, hits, naive = np.random.default_rng(0), 0, 0
    for _ in range(300):
        effect = rng.normal(size=5)
        score = {pair: effect[list(pair)].sum() / 4 + 0.02 * rng.normal() for pair in combinations(range(5), 2)}
        found = over_pairs(lambda of, s=score: np.mean([s[pair] for pair in combinations(of, 2)]), 5)
        hits += found.low <= 0 <= found.high
        plain = Estimate.mean(list(score.values()))
        naive += plain.low <= 0 <= plain.high
    assert hits / 300 > 0.92 > 0.85 > naive / 300


def test_the_jackknife_of_a_mean_is_students_interval():
    values = [0.3, 0.5, 0.1, 0.9]
    without = [np.mean(np.delete(values, i)) for i in range(4)]
    found, known = Estimate.jackknife(np.mean(values), without), Estimate.mean(values)
    assert (found.value, found.low, found.high) == pytest.approx((known.value, known.low, known.high))


def test_three_seeds_have_intervals_and_two_have_none():
    two = sl.compare([of_pool(*s, seed=i) for i, s in enumerate(SETS[:2])])
    three = sl.compare([of_pool(*s, seed=i) for i, s in enumerate(SETS[:3])]).table.set_index("number")
    assert two.table.low.isna().all() and "one pair: no intervals" in repr(two) and "nan" not in repr(two)
    assert three.low["shared"] < three.value["shared"] < three.high["shared"] <= 1
    assert three.low["shared"] >= 0
    assert np.isnan(three.low["unique"])  # every seed is used


@pytest.mark.parametrize("law", [Law(0.35, 0.6, 0.7), Law(0.0, 1.0, 0.3), Law(0.2, 1.5, 2.0)])
def test_the_law_that_was_planted_is_found(law):
    shares = {n: float(law(n)) for n in range(2, 11)}
    found = Law.fit(shares)
    assert (found.offset, found.scale, found.exponent) == pytest.approx((law.offset, law.scale, law.exponent), abs=1e-3)
    rng = np.random.default_rng(0)
    noisy = Law.fit({n: share + 0.0005 * rng.normal() for n, share in shares.items()})
    assert noisy.offset == pytest.approx(law.offset, abs=0.1)


def crowd(n, common):
    """SAEs of 60 one-hot directions each: a share that all have, others drawn, some more often than others."""
    rng, core = np.random.default_rng(1), round(60 * common)
    popular = 1 / np.arange(1, 601)
    drawn = [core + rng.choice(600, 60 - core, replace=False, p=popular / popular.sum()) for _ in range(n)]
    return [made(torch.eye(core + 600)[[*range(core), *own]], seed=i) for i, own in enumerate(drawn)]


def test_a_law_is_fitted_from_six_seeds_on_and_refused_under():
    five, seven = sl.compare(crowd(5, 0.4)), sl.compare(crowd(7, 0.4))
    with pytest.raises(ValueError, match=r"5 SAEs.*go through almost any 4 shares. Compare 6 or more"):
        _ = five.law
    assert "refused" in five.to_json()["law"]
    shares = dict(zip(seven.unique.seeds, seven.unique.share))
    assert len(shares) == 6 and seven.law == Law.fit(shares)
    np.testing.assert_allclose(seven.law(seven.unique.seeds), seven.unique.share, atol=0.02)
    assert seven.offset.low < seven.offset.value == seven.law.offset < seven.offset.high
    assert seven.to_json()["law"]["offset"] == seven.law.offset


def test_what_is_too_wide_to_match_is_compared_by_its_nearest_and_says_so(monkeypatch):
    a, b = made(A), made(rows(80, seed=3), seed=1)
    monkeypatch.setattr(comparison.comparing, "WIDEST", 79)
    found = sl.compare([a, b])
    assert "mcc" not in found.numbers and "MMCS" in repr(found) and "nearest" in repr(found)
    assert value(found, "mmcs") == pytest.approx(mmcs(a.W_dec, b.W_dec)) and value(found, "mmcs") > chance_floor(32, 80)
    assert value(found, "abs") == pytest.approx(mmcs(a.W_dec, b.W_dec, signed=False))
    assert found.table.set_index("number").chance["mmcs"] == chance_nearest(32, 80)
    copies = sl.compare([a, made(A.flip(0), seed=1)])
    assert value(copies, "shared") == 1 and value(copies, "mmcs") == pytest.approx(1, abs=1e-6)
    assert value(sl.compare([a, made(A.roll(1, 0), A, seed=1)]), "shared") == 0


def test_of_two_widths_the_wide_one_has_latents_without_a_match():
    found = sl.compare([of_pool(*range(12)), of_pool(*range(8, 40), seed=1)])
    assert value(found, "mcc") == pytest.approx(4 / 12, abs=1e-5)
    assert found.pairs["shared of a"][0] == pytest.approx(4 / 12) and found.pairs["shared of b"][0] == 4 / 32
    assert found.latents.cosine.isna().sum() == 20
    assert found.table.set_index("number").chance["mcc"] == chance_floor(64, 12, True, 32) > chance_floor(64, 12)


def test_against_the_true_dictionary_every_sae_has_its_score():
    truth = rows(40, seed=9)
    saes = [made(truth.flip(0)), made(rows(40, seed=10), seed=1), made(truth, seed=2)]
    found = sl.compare(saes, truth=truth)
    scores = [mcc(sae.W_dec, truth)[0] for sae in saes]
    assert found.truth == pytest.approx(scores) and scores[0] == pytest.approx(1, abs=1e-6)
    known = Estimate.mean(scores)
    row = found.table.set_index("number").loc["truth"]
    assert (row.value, row.low) == pytest.approx((known.value, known.low))
    assert row.chance == chance_floor(32, 40)


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return small_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def fired(lm):
    """Two SAEs that read one dimension a latent, either sign; ten latents of the second are silent."""
    first, second = identity(), identity()
    with torch.no_grad():
        second.W_enc[:], second.W_dec[:] = second.W_enc.flip(0), second.W_dec.flip(0)
        second.b_enc[:10] = -1e6
        second.W_dec[:10] = -second.W_dec[:10]
        first.b_enc[20:40] = -0.5
    for seed, sae in enumerate((first, second)):
        sae.origin = {"site": "L1R"}
        sae.cfg = type(sae.cfg)(**{**vars(sae.cfg), "seed": seed})
    options = {"text": TEXT, "context": 64}
    found = sl.compare([first, second], lm, tokens=700, **options)
    x = torch.cat(
        [page.acts["L1R"] for page in walk(lm, held_out(lm, TEXT, "test", 0, context=64), [sl.Site("L1R")], 700)]
    )
    density = [(x @ sae.W_enc.T + sae.b_enc > 0).double().mean(0).numpy() for sae in (first, second)]
    return found, (first, second), density, len(x)


def test_densities_are_measured_on_held_out_text(fired):
    found, _, density, tokens = fired
    for known, measured in zip(density, found.density):
        np.testing.assert_allclose(measured, known, atol=1e-12)
    assert f"{tokens:,} test tokens" in found.about["density"]
    assert (found.density[1][:10] == 0).all()


def test_alive_and_frequent_latents_have_a_score_of_their_own(fired):
    found, (a, b), density, _ = fired
    alive = [torch.from_numpy(d > 0) for d in density]
    assert value(found, "alive") == pytest.approx(mcc(a.W_dec[alive[0]], b.W_dec[alive[1]])[0])
    assert value(found, "alive") > value(found, "mcc") + 0.05
    pairs = mcc(a.W_dec, b.W_dec)[1]
    cosine, places = pairs.cosine.numpy(), (pairs.a.numpy(), pairs.b.numpy())
    by_hand = [(d[at] * cosine).sum() / d[at].sum() for d, at in zip(density, places)]
    assert value(found, "weighted") == pytest.approx(np.mean(by_hand))
    floors = found.table.set_index("number").chance
    assert floors["alive"] == chance_floor(32, 54, True, int(alive[0].sum())) and floors["weighted"] == floors["mcc"]


def test_scores_by_density_count_every_latent_once(fired):
    found, (a, b), density, _ = fired
    table = found.by_density
    assert table.latents.sum() == 128 and table.latents.iloc[0] == sum((d == 0).sum() for d in density)
    assert (table.above.iloc[0], table["up to"].iloc[0]) == (0, 0)
    pairs = mcc(a.W_dec, b.W_dec)[1]
    dense = table[table["up to"] == 1].iloc[0]
    of = [(density[0] > 0.1)[pairs.a], (density[1] > 0.1)[pairs.b]]
    assert dense.cosine == pytest.approx(np.concatenate([pairs.cosine.numpy()[mask] for mask in of]).mean())
    assert dense.chance == found.floors["mcc"]
    assert dense.latents == sum(int(mask.sum()) for mask in of)


def test_without_a_model_the_columns_of_density_say_so():
    found = sl.compare([made(A), made(rows(80, seed=1), seed=1)])
    meaning = found.table.set_index("number").meaning
    assert meaning["alive"] == meaning["weighted"] == found.about["density"] == "not measured: give lm="
    assert found.by_density.empty and found.latents.density.isna().all()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Three seeds on one planted stream, 120 steps."""
    folder, source = tmp_path_factory.mktemp("runs"), Planted(d_in=16, features=32, k=3)
    saes = [sl.build("topk", d_in=16, d_sae=32, k=3, seed=seed) for seed in range(3)]
    names = [folder / f"seed-{seed}" for seed in range(3)]
    for _ in sl.train(saes, source, tokens=120 * 256, batch=256, lr=2e-2, run=names, snapshots=3):
        pass
    return names, source.dictionary


def test_seeds_of_one_stream_grow_alike_over_training(trained):
    runs, truth = trained
    found = sl.compare(runs, truth=truth, trajectory=True)
    way = found.trajectory
    assert way.tokens.tolist() == [256 * step for step in (15, 30, 60, 120)]
    last = [sl.Run(run).snapshot(60).W_dec for run in runs]
    assert way.value.iloc[-2] == pytest.approx(np.mean([mcc(a, b)[0] for a, b in combinations(last, 2)]))
    assert way.value.iloc[-1] == pytest.approx(value(found, "mcc"))
    assert way.value.iloc[0] < value(found, "mcc") - 0.2 and (way.chance == found.floors["mcc"]).all()
    assert value(found, "mcc") > found.floors["mcc"] + 0.1 and value(found, "truth") > found.floors["truth"] + 0.1
    assert not found.about["remarks"] and sl.compare([sl.Run(run) for run in runs]).names == found.names


def test_a_trajectory_needs_runs_with_snapshots_in_common(trained, tmp_path):
    runs, _ = trained
    with pytest.raises(ValueError, match="give runs or their folders"):
        sl.compare([sl.load_sae(run) for run in runs], trajectory=True)
    saved = [sl.save_sae(sl.load_sae(run), tmp_path / run.name) for run in runs[:2]]
    assert value(sl.compare(saved), "mcc") == value(sl.compare(runs[:2]), "mcc")
    with pytest.raises(FileNotFoundError, match="No snapshot of these runs"):
        sl.compare(saved, trajectory=True)


def test_saes_that_do_not_compare_are_refused():
    a = made(A, site="L1R", model="tiny")
    for other, said in {
        made(A, seed=1, site="L2R", model="tiny"): "is of site L1R, but .* of site L2R",
        made(A, seed=1, site="L1R", model="big"): "is of model tiny, but .* of model big",
        made(rows(80, 16), seed=1, site="L1R"): "is of d_in 32, but .* of d_in 16",
        made(A * float("nan"), seed=1): "not finite",
    }.items():
        with pytest.raises(ValueError, match=said):
            sl.compare([a, other])
    with pytest.raises(ValueError, match="got 1 SAEs: give two or more"):
        sl.compare([a])
    with pytest.raises(ValueError, match=r"threshold=1\.2"):
        sl.compare([a, a], threshold=1.2)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        sl.compare([a, "nowhere"])


def test_what_began_alike_or_read_something_else_is_remarked_on():
    assert "seed 0 occurs more than once" in repr(sl.compare([made(A), made(rows(80, seed=1))]))
    apart = sl.compare([made(A, text="world", tokens=5), made(A, seed=1, text="world", tokens=6)])
    assert "differs in tokens" in repr(apart) and "text" not in repr(apart)


def test_the_figure_shows_what_is_known_beside_chance(fired, trained):
    plain, dense = sl.compare([made(A), made(rows(80, seed=1), seed=1)]).figure, fired[0].figure
    assert len([*plain.select_xaxes()]) == 2 and len([*dense.select_xaxes()]) == 3
    assert [shape.x0 for shape in plain.layout.shapes] == [chance_floor(32, 80)]
    assert [shape.y0 for shape in dense.layout.shapes][1] == fired[0].floors["mcc"]
    whole = sl.compare(trained[0], trajectory=True).figure
    assert [*whole.select_xaxes()][-1].type == "log"
    law = sl.compare(crowd(6, 0.4))
    assert law.figure.data[-1].y.tolist() == law.law(np.arange(2, 7)).tolist()


def test_the_command_line_compares_runs(trained, capsys):
    runs = [str(run) for run in trained[0]]
    assert main(["compare", *runs, "--trajectory", "--json"]) == 0
    said = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(name))
    assert said["numbers"]["mcc"]["value"] == value(sl.compare(runs), "mcc")
    assert said["names"] == runs and len(said["trajectory"]) == 4 and len(said["pairs"]) == 3
    assert main(["compare", *runs]) == 0
    assert "PW-MCC" in capsys.readouterr().out
    assert main(["compare", runs[0]]) == 2
    assert "got 1 SAEs" in capsys.readouterr().err
    assert main(["compare"]) == 2
    assert main(["compare", runs[0], "nowhere"]) == 2


def test_stories_compare_by_density_as_well(stories, stories_text):
    lm = sl.load_model(str(stories))
    source = sl.activations(lm, "L3R", text=str(stories_text), seed=0)
    saes = [sl.build("topk", d_in=lm.d_model, d_sae=256, k=8, seed=seed) for seed in range(2)]
    for _ in sl.train(saes, source, tokens=20_480, batch=1024, lr=3e-3):
        pass
    found = sl.compare(saes, lm, text=str(stories_text), tokens=4000)
    assert value(found, "mcc") > found.floors["mcc"] + 0.01
    assert value(found, "alive") > 0 and value(found, "weighted") > 0
    assert found.by_density.latents.sum() == 512


def test_many_seeds_are_shared_by_none_or_by_all_as_counted():
    assert unique([np.array([0, 0, 2]), np.array([1, 2, 2]), np.array([2, 2, 2])], 3) == pytest.approx(2 / 9)
    assert unique([np.array([0, 1]), np.array([1, 2]), np.array([2, 2])], 2) == pytest.approx((3 / 2 + 1 / 2) / 6)
    assert isinstance(sl.compare([made(A), made(A, seed=1)]).unique, pd.DataFrame)
