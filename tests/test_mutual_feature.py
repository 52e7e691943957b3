"""Mutual Feature Regularization: the penalty, who is matched with whom, the ramp, and starting anew."""

import itertools
import math

import pytest
import torch
from streams import Stream
from torch.nn.functional import cosine_similarity, normalize

import sae_lab.saes.mutual_feature as module
from sae_lab.runs import Checkpoints, Run
from sae_lab.saes import Batch, build
from sae_lab.toys import Planted
from sae_lab.training import TrainConfig, train
from sae_lab.training.member import Member

D_IN, D_SAE, K = 16, 24, 3
KNOBS = {"batch": 64, "lr": 1e-2, "log_every": 5, "snapshots": 0, "calibration_tokens": 64}


def sae(seed=0, **config):
    shape = {"d_in": D_IN, "d_sae": D_SAE, "k": K, "choose_in": "float32"}
    return build("mutual_feature", seed=seed, **(shape | config))


def team(*seeds, **config):
    return [sae(seed, **config) for seed in seeds]


def batch(peers=(), progress=1.0, d_sae=D_SAE):
    x = Stream().next(64)["L1R"].x
    return Batch(x, x, torch.zeros(d_sae, dtype=torch.bool), progress, peers=tuple(peers))


def others(members, one):
    return [sae for sae in members if sae is not one]


def same(a, b):
    mine, theirs = dict(a.named_parameters()), dict(b.named_parameters())
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def best_cosine(a, b):
    """The mean cosine under the best of all permutations."""
    cosines = normalize(a.W_dec) @ normalize(b.W_dec).T
    rows = torch.arange(len(a.W_dec))
    return max(cosines[rows, list(order)].mean() for order in itertools.permutations(range(len(b.W_dec)), len(rows)))


# the penalty


def test_identical_saes_pay_nothing_also_if_their_latents_are_permuted():
    a, b = team(0, 1)
    assert a.disagreement([b]) > 0.3
    with torch.no_grad():
        b.W_dec.copy_(3 * a.W_dec[torch.randperm(D_SAE, generator=torch.Generator().manual_seed(0))])
    a.steps += a.cfg.match_every
    assert a.disagreement([b]).abs() < 1e-6


def test_the_matching_is_the_best_of_all_permutations():
    for seed in range(5):
        a, b = team(2 * seed, 2 * seed + 1, d_sae=6)
        with torch.no_grad():
            b.W_dec *= torch.logspace(-1, 1, 6)[:, None]
        torch.testing.assert_close(a.disagreement([b]), 1 - best_cosine(a, b))


def test_a_narrow_member_is_matched_with_part_of_a_wide_one():
    for narrow, wide in ((sae(0, d_sae=4), sae(1, d_sae=7)), (sae(1, d_sae=4), sae(0, d_sae=7))):
        for one, other in ((narrow, wide), (wide, narrow)):
            torch.testing.assert_close(one.disagreement([other]), 1 - best_cosine(narrow, wide))
        with torch.no_grad():
            wide.W_dec.copy_(wide.W_dec.roll(2, 0))
        narrow.steps += narrow.cfg.match_every
        wide.steps += wide.cfg.match_every
        torch.testing.assert_close(narrow.disagreement([wide]), 1 - best_cosine(narrow, wide))


def test_all_members_together_pay_the_mean_over_pairs_once():
    members = team(5, 3, 8, 1, weight=0.7)
    terms = [one.objective(batch(others(members, one))).terms["mutual"] for one in members]
    pairs = [one.disagreement([other]) for one, other in itertools.combinations(team(5, 3, 8, 1), 2)]
    torch.testing.assert_close(sum(terms), 0.7 * torch.stack(pairs).mean())
    mean = [torch.stack([one.disagreement([other]) for other in others(members, one)]).mean() for one in members]
    torch.testing.assert_close(torch.stack(terms), 0.7 / 4 * torch.stack(mean))


def test_the_gradient_is_that_of_the_matched_cosines_and_reaches_both():
    a, b = (one.double() for one in team(0, 1))
    a.disagreement([b]).backward()
    mine, theirs = a._matching(b, 1, [0, 1])
    assert torch.equal(theirs.sort().values, torch.arange(D_SAE))
    for one, other, rows, to in ((a, b, mine, theirs), (b, a, theirs, mine)):
        w, v = one.W_dec.detach()[rows], normalize(other.W_dec.detach()[to])
        cosine = cosine_similarity(w, v)[:, None]
        norm = w.norm(dim=1, keepdim=True)
        torch.testing.assert_close(one.W_dec.grad[rows], -(v - cosine * w / norm) / norm / D_SAE)
        assert one.W_enc.grad is None


def test_a_step_against_the_gradient_draws_every_matched_pair_together():
    a, b = team(0, 1)
    a.objective(batch([b])).terms["mutual"].backward()
    mine, theirs = a._matching(b, 1, [0, 1])
    before = cosine_similarity(a.W_dec[mine], b.W_dec[theirs])
    with torch.no_grad():
        for one in (a, b):
            one.W_dec -= one.W_dec.grad
    assert (cosine_similarity(a.W_dec[mine], b.W_dec[theirs]) > before).all()


def test_the_weight_rises_as_a_cosine_over_its_share_of_the_run():
    members = team(0, 1, ramp_share=0.4, weight=2.0)
    full = members[0].disagreement(members[1:])
    paid = [members[0].objective(batch(members[1:], p)).terms["mutual"] / full for p in (0.0, 0.1, 0.2, 0.3, 0.4, 1.0)]
    expected = [(1 + math.cos(math.pi * (1 - t))) / 2 for t in (0, 0.25, 0.5, 0.75, 1, 1)]
    assert [share.item() for share in paid] == pytest.approx(expected, abs=1e-6)
    at_once = sae(0, ramp_share=0.0, weight=2.0)
    torch.testing.assert_close(at_once.objective(batch(members[1:], 0.0)).terms["mutual"], full)


def test_no_graph_is_kept_over_the_cosines_of_all_with_all():
    a, b = team(0, 1, d_sae=64)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        a.disagreement([b])
    assert 0 < max(kept) <= 64 * D_IN < 64 * 64


# members of one training


def test_matching_happens_once_per_pair_every_so_many_steps(monkeypatch):
    calls, solve = [], module.linear_sum_assignment
    monkeypatch.setattr(module, "linear_sum_assignment", lambda *a, **b: calls.append(1) or solve(*a, **b))
    list(train(team(4, 2, 9, match_every=5), Stream(), 64 * 11, **KNOBS))
    assert len(calls) == 3 * 3  # pairs, at steps 0, 5 and 10


def test_a_member_that_starts_anew_is_matched_at_once():
    for reborn in (0, 1):
        members = team(0, 1, match_every=1000, reinit_above=2.5)
        for one in members:
            one.objective(batch(others(members, one)))
        members[reborn].uneven.fill_(9.0)
        for one in members:
            one.after_step()
        torch.testing.assert_close(members[0].disagreement(members[1:]), team_disagreement(members))


def team_disagreement(members):
    """As two that never met would see it."""
    fresh = team(0, 1)
    for one, member in zip(fresh, members):
        with torch.no_grad():
            one.W_dec.copy_(member.W_dec)
    return fresh[0].disagreement(fresh[1:])


def test_weight_nought_gives_the_bits_of_independent_runs():
    together, alone = team(0, 1, weight=0.0), team(0, 1)
    *_, last = train(together, Stream(), 64 * 20, **KNOBS)
    assert "mutual" not in last.terms  # nor is anybody matched
    for one, other in zip(together, alone):
        list(train(other, Stream(), 64 * 20, **KNOBS))
        assert same(one, other)
    drawn = team(0, 1)
    list(train(drawn, Stream(), 64 * 20, **KNOBS))
    assert not any(same(one, other) for one, other in zip(drawn, alone))


def test_one_alone_is_topk_to_the_bit():
    alone, topk = sae(), build("topk", d_in=D_IN, d_sae=D_SAE, k=K, choose_in="float32")
    for one in (alone, topk):
        *_, last = train(one, Stream(), 64 * 20, **KNOBS | {"lr": None})
        assert set(last.terms) == {"mse", "auxk"}
    assert same(alone, topk) and alone.births == 0


def test_saes_of_other_methods_on_the_stream_are_left_alone():
    pair = [sae(), build("topk", d_in=D_IN, d_sae=D_SAE, k=K, choose_in="float32")]
    alone = build("topk", d_in=D_IN, d_sae=D_SAE, k=K, choose_in="float32")
    list(train(pair, Stream(), 64 * 10, **KNOBS))
    list(train(alone, Stream(), 64 * 10, **KNOBS))
    assert same(pair[1], alone)


def test_members_of_one_seed_are_refused():
    with pytest.raises(ValueError, match=r"seeds \[3, 3\].*Give each its own"):
        list(train(team(3, 3), Stream(), 640, **KNOBS))


def test_a_nan_is_reported_as_the_loss_it_makes():
    members = team(0, 1)
    members[0].W_dec.data[2, 2] = torch.nan
    with pytest.raises(FloatingPointError, match="Loss term"):
        list(train(members, Stream(), 640, **KNOBS))


def interrupted(folder, at):
    """Two members, left after so many steps and then taken up again."""
    config = {"match_every": 13, "weight": 0.01}
    steps = train(team(0, 1, **config), Stream(), 64 * 30, run=folder, **KNOBS)
    for step in steps:
        if step.index == at:
            break
    steps.close()
    members = team(0, 1, **config)
    list(train(members, Stream(), 64 * 30, run=folder, **KNOBS))
    return members


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    return interrupted(tmp_path_factory.mktemp("straight"), None)


def test_a_training_of_two_resumes_between_matchings_to_the_same_bits(straight, tmp_path):
    for one, other in zip(straight, interrupted(tmp_path, 20)):
        assert all(torch.equal(p, q) for p, q in zip(one.state_dict().values(), other.state_dict().values()))


@pytest.mark.parametrize("lost", ["partner", "matched", "steps"])
def test_other_bits_follow_if_a_checkpoint_lacks_the_matching(lost, straight, tmp_path, monkeypatch):
    """So the equality above is no accident."""
    load = Checkpoints.load

    def lossy(self, step):
        point = load(self, step)
        state = point.files["sae"][f"sae.{lost}"]
        point.files["sae"][f"sae.{lost}"] = state.flip(1) if lost == "partner" else state * 0 - 1
        return point

    monkeypatch.setattr(Checkpoints, "load", lossy)
    assert not all(same(one, other) for one, other in zip(straight, interrupted(tmp_path, 20)))


def test_a_saved_member_keeps_whom_it_was_matched_with(tmp_path):
    members = team(0, 1, 2)
    list(train(members, Stream(), 640, run=tmp_path, **KNOBS))
    found = [Run(folder).sae for folder in sorted(tmp_path.iterdir())]
    assert all(same(one, other) for one, other in zip(members, found))
    assert torch.equal(found[0].partner, members[0].partner) and found[0].partner.shape == (3, D_SAE)
    assert (found[0].partner[0] == -1).all() and (found[0].partner[1:] >= 0).all()


# starting anew


def uneven(**config):
    """A member of which a few latents fire at every token, and the rest never."""
    one = sae(**config)
    with torch.no_grad():
        one.b_enc[:K] = 1e3
        one.b_dec += 0.5
    return one


def test_unevenness_is_the_mean_cube_of_the_relative_distance_from_k_of_d_sae():
    one = sae()
    z = one.objective(batch()).z
    density = (z.dense() != 0).float().mean(0)
    torch.testing.assert_close(one.uneven, ((density - K / D_SAE).abs() / (K / D_SAE)).pow(3).mean())
    one = uneven()
    one.objective(batch())
    ratio = D_SAE / K
    torch.testing.assert_close(one.uneven.item(), (K * (ratio - 1) ** 3 + (D_SAE - K)) / D_SAE)


def test_an_uneven_member_starts_anew_and_its_moments_go():
    one = uneven(reinit_above=2.5)
    member = Member(one, "L1R", TrainConfig())
    rows, old = Stream().next(64)["L1R"], {name: p.detach().clone() for name, p in one.named_parameters()}
    out = one.objective(member.batch(rows, 0.0))
    sum(out.terms.values()).backward()
    member.update(out, 0, 1.0)
    assert one.births == 1 and one.steps == 0
    for name in ("W_enc", "W_dec", "b_enc"):
        assert not member.adam.m[name].any() and not member.adam.v[name].any()
    assert member.adam.m["b_dec"].any()
    assert not torch.isclose(one.W_dec, old["W_dec"]).all(1).any() and not one.b_enc.any()
    torch.testing.assert_close(one.b_dec, old["b_dec"], rtol=0, atol=2 * member.lr(0))
    torch.testing.assert_close(one.W_dec.norm(dim=1), torch.ones(D_SAE))


def test_every_birth_draws_other_weights_and_always_the_same():
    drawn = []
    for one in (sae(reinit_above=2.5), sae(reinit_above=2.5)):
        for _ in range(2):
            twin = sae(reinit_above=2.5)
            twin.load_state_dict(one.state_dict())  # as a resumed training does
            twin.uneven.fill_(9.0)
            assert torch.equal(twin.after_step(), torch.arange(D_SAE))
            drawn.append(twin.W_enc.detach().clone())
            one = twin
    assert torch.equal(drawn[0], drawn[2]) and torch.equal(drawn[1], drawn[3])
    assert not torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], sae().W_enc)
    assert not torch.equal(drawn[0], born(sae(1, reinit_above=2.5)).W_enc)


def born(one):
    one.uneven.fill_(9.0)
    one.after_step()
    return one


@pytest.mark.parametrize("bound", [None, 60.0])
def test_a_member_goes_on_below_the_bound_or_without_one(bound):
    one = uneven(reinit_above=bound)
    one.objective(batch())
    assert one.after_step() is None and one.births == 0 and one.steps == 1


# what it is for


def test_members_that_are_drawn_together_agree_more_than_those_that_are_not():
    found = {}
    for weight in (0.0, 1.0):
        members = team(0, 1, d_sae=32, weight=weight)
        list(train(members, Planted(d_in=16, features=32, k=3), 128 * 60, **KNOBS | {"batch": 128}))
        found[weight] = (1 - members[0].disagreement(members[1:])).item()
    assert found[0.0] < 0.8 and found[1.0] > 0.95
