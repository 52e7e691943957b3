"""Feature Choice: quotas, their rounding, the two phases, and a threshold for each latent."""

from dataclasses import replace

import pytest
import torch
from test_mutual_choice import D_IN, D_SAE, TOK, K, batch, dense, dense_law

from sae_lab.saes import Batch, build
from sae_lab.saes.feature_choice import FeatureChoice
from sae_lab.saes.select import apportion, draw_lots
from sae_lab.sparse import Adam
from sae_lab.toys import Planted

LATE = 0.9  # of the run: the second phase


def sae(bias=0.0, **config):
    model = build("feature_choice", **({"d_in": D_IN, "d_sae": D_SAE, "k": K, "k_aux": 5} | config)).double()
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        model.b_dec.copy_(torch.linspace(-0.2, 0.2, D_IN))
        model.b_enc.copy_(torch.randn(D_SAE, generator=rng) / 5 + bias)
        model.density.copy_(2 * K / D_SAE * torch.rand(D_SAE, generator=rng))
    return model


def columns(z):
    return (z.dense() > 0).sum(0)


def pre_of(model, x):
    return (x - model.b_dec) @ model.W_enc.T + model.b_enc


@pytest.mark.parametrize("config", [{}, {"zipf": 0.0}, {"k": 20, "zipf": 2.0}, {"mutual_share": 0.0, "shift": 0.0}])
def test_terms_and_every_gradient_equal_dense_autograd_in_the_second_phase(config):
    mine, theirs, b = sae(**config), sae(**config), batch(progress=LATE)
    terms = mine.objective(b).terms
    quota = mine.quotas(TOK)
    law = TOK * dense_law(mine.density, mine.cfg.k, mine.cfg.zipf, mine.cfg.shift)
    assert (quota - law).abs().max() < 1 + 0.02 * law.max() and quota.sum() == mine.cfg.k * TOK
    place = pre_of(theirs, b.x).argsort(0, descending=True).argsort(0)
    mse, aux = dense(theirs, b, place < quota)
    torch.testing.assert_close(terms["mse"], mse)
    torch.testing.assert_close(terms["aux_zipf"], aux)
    (terms["mse"] + 3 * terms["aux_zipf"]).backward()
    (mse + 3 * aux).backward()
    for (name, p), q in zip(mine.named_parameters(), theirs.parameters()):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-12, msg=name)


def test_each_latent_fires_on_as_many_tokens_as_its_quota_where_enough_are_positive():
    model = sae(bias=20.0)
    z = model.objective(batch(progress=LATE)).z
    assert torch.equal(columns(z), model.quotas(TOK)) and z.l0 == K
    assert z.support.start.diff().float().var() > 0  # tokens get as many as chose them


def test_a_zero_is_never_chosen():
    z = sae(bias=-1.0).objective(batch(progress=LATE)).z
    assert (z.value > 0).all() and z.l0 < K


def test_zipf_zero_gives_uniform_quotas():
    quota = sae(zipf=0.0).quotas(TOK)
    assert quota.sum() == K * TOK and quota.max() - quota.min() <= 1


def test_a_denser_latent_never_gets_less():
    model = sae()
    quota = model.quotas(TOK)[model.density.argsort(descending=True)]
    assert (quota.diff() <= 0).all() and quota[0] > 5 * quota[-1] >= 5


def test_every_latent_gets_a_token_however_steep_the_law():
    quota = sae(zipf=3.0).quotas(TOK)
    assert quota.min() == 1 and quota.sum() == K * TOK


@pytest.mark.parametrize("progress", [0.0, LATE])
def test_both_phases_measure_the_densities_that_rank_the_latents(progress):
    model, seen = sae(), []
    for seed in range(2):
        seen.append(columns(model.objective(batch(seed, progress)).z) / TOK)
        model.after_step()
    torch.testing.assert_close(model.density, torch.stack(seen).double().mean(0), rtol=1e-6, atol=1e-8)


def test_quotas_that_mutual_choice_would_use_reproduce_its_matches(monkeypatch):
    model, b = sae(), batch()
    mutual = model.objective(b).z
    monkeypatch.setattr(FeatureChoice, "quotas", lambda self, tok: columns(mutual))
    own = model.objective(replace(b, progress=LATE)).z
    assert torch.equal(own.support.latent, mutual.support.latent)
    torch.testing.assert_close(own.dense(), mutual.dense())


@pytest.mark.parametrize(("share", "changes"), [(0.0, 0.0), (0.8, 0.8), (1.0, 2.0)])
def test_the_first_phase_is_mutual_choice_and_lasts_its_share_of_the_run(share, changes):
    model, mutual = sae(mutual_share=share), sae(mutual_share=1.0).objective(batch()).z
    for progress in (0.0, 0.5, 0.79, 0.8, 0.99):
        z = model.objective(batch(progress=progress)).z
        assert torch.equal(z.support.latent, mutual.support.latent) == (progress < changes)


def test_largest_remainders_round_to_the_total():
    share = torch.tensor([3.3, 2.6, 1.6, 0.5])
    assert apportion(share, 8).tolist() == [3, 3, 2, 0]
    assert apportion(share, 8, least=1).tolist() == [3, 2, 2, 1]  # above one 2.3, 1.6, 0.6: of 4 that is 2.0, 1.4, 0.5
    rng = torch.Generator().manual_seed(0)
    for total in (40, 41, 64, 1000, 12_345):
        share = torch.rand(40, generator=rng).double() ** 4
        share = total * share / share.sum()
        for least in (0, 1):
            whole = apportion(share, total, least)
            assert whole.sum() == total and whole.min() >= least
        assert (apportion(share, total) - share).abs().max() < 1


def test_too_few_matches_for_all_are_drawn_by_lot():
    torch.manual_seed(0)
    model = build("feature_choice", d_in=D_IN, d_sae=D_SAE, k=2)
    draws = torch.stack([model.quotas(8) for _ in range(600)])  # 16 matches, 40 latents
    assert (draws.sum(1) == 16).all()
    torch.testing.assert_close(draws.float().mean(0), 8 * model.law(), rtol=0, atol=0.08)
    assert torch.equal(draw_lots(torch.tensor([1.0, 2.0, 0.0])), torch.tensor([1, 2, 0]))


def test_calibrated_thresholds_give_each_latent_the_density_of_its_law():
    """Set on several batches together, each token then judged alone."""
    model, parts = sae(bias=20.0), [batch(seed).x for seed in range(4)]
    model.calibrate(parts)
    z = model.encode(torch.cat(parts))
    assert (columns(z) - 4 * TOK * dense_law(model.density, K)).abs().max() < 1
    assert z.l0 == K and len(set(model.threshold.tolist())) == D_SAE


def test_calibration_gives_others_what_a_latent_cannot_use():
    model, parts = sae(), [batch(seed).x for seed in range(4)]
    with torch.no_grad():
        model.b_enc[:20] = -2.0
    model.calibrate(parts)
    x = torch.cat(parts)
    z, asked = model.encode(x), 4 * TOK * dense_law(model.density, K)
    positive, got = (pre_of(model, x) > 0).sum(0), columns(z)
    spent = got == positive
    assert (asked[spent] > got[spent] + 1).any() and z.l0 == K
    price = got[~spent].sum() / asked[~spent].sum()
    assert 1.5 < price < 4 and (got - price * asked)[~spent].abs().max() < 1
    assert (got <= price * asked + 1).all()
    with pytest.raises(ValueError, match="no activations"):
        model.calibrate([])


def test_a_stand_in_threshold_follows_each_latents_least_kept_value():
    model = sae(momentum=0.5, k=1)
    a, b = (model.objective(batch(seed)).z.dense() for seed in range(2))
    a, b = (z.masked_fill(z == 0, torch.inf).amin(0) for z in (a, b))
    expected = torch.where(b.isinf(), a, torch.where(a.isinf(), b, (a + b) / 2)).detach()
    assert a.isinf().any() and b.isinf().any()
    torch.testing.assert_close(model.threshold, expected.masked_fill(expected.isinf(), 0))


def test_quotas_keep_weak_latents_alive_that_mutual_choice_leaves_dead():
    alive = {}
    for share in (1.0, 0.0):
        source = Planted(d_in=16, features=24, k=3)
        model = build("feature_choice", d_in=16, d_sae=60, k=3, mutual_share=share, aux_weight=0.0)
        with torch.no_grad():
            model.W_enc[:20] /= 50
        adam = Adam(model.named_parameters(), lr=1e-3, unit=["W_dec"])
        fired = torch.zeros(60, dtype=torch.bool)
        for _ in range(10):
            x = source.next(256)["L0R"].x
            out = model.objective(Batch(x, x, torch.zeros(60, dtype=torch.bool), 0.5))
            sum(out.terms.values()).backward()
            adam.step()
            adam.zero_grad()
            model.after_step()
            fired |= out.z.fired
        alive[share] = int(fired.sum())
    assert alive[0.0] == 60 and alive[1.0] <= 45
