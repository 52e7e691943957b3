"""JumpReLU's mathematics: what its thresholds learn is the slope of the expected loss, and L0 moves nothing else."""

import math

import pytest
import torch

from sae_lab.saes import Batch, build
from sae_lab.sparse import Adam
from sae_lab.toys import Planted

TOK = 200_000


def normal(tok, d_in, seed=0, dtype=torch.float64):
    return torch.randn(tok, d_in, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def jumprelu(d_in=8, d_sae=24, theta=0.3, bandwidth=0.1, **config):
    config = {"init_threshold": theta, "bandwidth": bandwidth, "choose_in": "float32"} | config
    return build("jumprelu", d_in=d_in, d_sae=d_sae, **config).double()


def terms(sae, x, progress=1.0):
    return sae.objective(Batch(x, x, torch.zeros(sae.cfg.d_sae, dtype=torch.bool), progress)).terms


def slopes(sae, x, term):
    """The gradient that one term gives the log-thresholds."""
    return torch.autograd.grad(terms(sae, x)[term], sae.log_threshold)[0]


@pytest.mark.parametrize(("theta", "bandwidth"), [(0.2, 0.01), (0.7, 0.02), (1.3, 0.02)])
def test_thresholds_learn_the_slope_that_a_normal_density_gives(theta, bandwidth):
    """v ~ N(0, 1), evenly spread: E L0 = P(v > theta), and the squared error lacks v^2 where v > theta."""
    sae = jumprelu(1, 1, theta, bandwidth, l0_weight=2.0)
    with torch.no_grad():
        sae.W_enc.fill_(1.0), sae.W_dec.fill_(1.0)
    quantiles = (torch.arange(TOK, dtype=torch.float64) + 0.5) / TOK
    x, density = torch.special.ndtri(quantiles)[:, None], math.exp(-(theta**2) / 2) / math.sqrt(2 * math.pi)
    assert math.isclose(slopes(sae, x, "l0"), -2.0 * density * theta, rel_tol=0.03)
    assert math.isclose(slopes(sae, x, "mse"), theta**2 * density * theta, rel_tol=0.03)


def test_thresholds_learn_the_slope_of_the_measured_loss_where_latents_overlap():
    sae, x = jumprelu(3, 4, 0.5, 0.05, l0_weight=0.4), normal(2 * TOK, 3)
    learned, step = slopes(sae, x, "l0") + slopes(sae, x, "mse"), 0.05
    measured = torch.zeros(4, dtype=torch.float64)
    for latent in range(4):
        for sign in (1, -1):
            with torch.no_grad():
                sae.log_threshold[latent] += sign * step
                measured[latent] += sign * sum(terms(sae, x).values()) / (2 * step)
                sae.log_threshold[latent] -= sign * step
    assert (learned - measured).norm() < 0.03 * measured.norm()


def test_the_penalty_moves_thresholds_alone():
    sae = jumprelu()
    terms(sae, normal(500, 8))["l0"].backward()
    moved = {name for name, p in sae.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"log_threshold"}


def test_the_penalty_counts_pre_activations_on_either_side_of_a_threshold():
    """By hand: one latent, theta = 0.5, a window from 0.4 to 0.6; what fires not, but nearly, counts too."""
    sae = jumprelu(1, 1, theta=0.5, bandwidth=0.2, l0_weight=3.0)
    with torch.no_grad():
        sae.W_enc.fill_(1.0)
    x = torch.tensor([[0.1], [0.41], [0.45], [0.55], [0.7], [-0.5]], dtype=torch.float64)
    assert math.isclose(terms(sae, x)["l0"].item(), 3.0 * 2 / 6)
    assert math.isclose(slopes(sae, x, "l0"), -3.0 * 0.5 * 3 / 0.2 / 6, rel_tol=1e-6)


def test_a_latent_with_an_empty_window_has_no_slope_and_the_others_rise_with_the_price():
    sae, x = jumprelu(), normal(500, 8)
    with torch.no_grad():
        sae.log_threshold[5] = math.log(50.0)
    l0, mse = slopes(sae, x, "l0"), slopes(sae, x, "mse")
    assert l0[5] == mse[5] == 0
    assert l0[torch.arange(24) != 5].max() < 0


def test_the_price_rises_over_its_warm_up():
    sae, x = jumprelu(l0_weight=1.0), normal(500, 8)
    share = sae.recipe.sparsity_warmup
    start, half, full, end = (terms(sae, x, p)["l0"].item() for p in (0.0, share / 2, share, 1.0))
    assert start == 0 and math.isclose(half, end / 2) and full == end > 0


@pytest.mark.parametrize("aim", [2.0, 12.0])
def test_a_target_prices_latents_by_how_far_l0_is_from_it(aim):
    """The slope of w (L0 / aim - 1)^2 is that of L0 at the price 2 w (L0 / aim - 1) / aim: negative under the aim."""
    x = normal(2000, 8)
    priced, aimed = jumprelu(l0_weight=1.0), jumprelu(target_l0=aim, target_weight=0.7)
    l0 = terms(priced, x)["l0"].item()
    price = 2 * 0.7 * (l0 / aim - 1) / aim
    assert (price < 0) == (aim == 12.0)
    torch.testing.assert_close(slopes(aimed, x, "l0"), price * slopes(priced, x, "l0"))
    assert math.isclose(terms(aimed, x)["l0"].item(), 0.7 * (l0 / aim - 1) ** 2)


def test_a_target_is_reached():
    source, held_out = Planted(d_in=8, features=24, k=2), Planted(d_in=8, features=24, k=2, stream=1)
    scale, steps = 1 / math.sqrt(source.statistics("L0R").mean_square), 250
    sae = jumprelu(8, 24, 0.1, 0.1, target_l0=2.5, target_weight=5.0).float()
    assert sae.control is None  # never asked, it would log numbers that are none
    adam = Adam(sae.named_parameters(), betas=sae.recipe.betas, unit=["W_dec"])
    for step in range(steps):
        adam.lr = 1e-2 * min(1.0, 2 - 2 * step / steps)
        sum(terms(sae, source.next(256)["L0R"].x * scale, step / steps).values()).backward()
        adam.step()
        adam.zero_grad()
        sae.after_step()
    assert abs(sae.encode(held_out.next(8192)["L0R"].x * scale).l0 / 2.5 - 1) < 0.05


def test_the_window_is_as_fine_where_latents_are_chosen_in_bf16():
    """A kernel of 1e-3 next to numbers of size 1; one hit at its very edge may differ. In bf16 it would hold 6 times as
    many.
    """
    x = normal(3000, 64, dtype=torch.float32)
    fine, coarse = (jumprelu(64, 128, 1.0, 1e-3, l0_weight=3.0, choose_in=d).float() for d in ("float32", "bfloat16"))
    hits, again = -slopes(fine, x, "l0"), -slopes(coarse, x, "l0")  # a hit counts 3 * theta / bandwidth / tokens = 1
    assert (hits - again).abs().sum() < 2.5
    assert 40 < hits.sum() < 140
    exact = x.double() @ fine.W_enc.double().T
    assert abs(hits.sum() - ((exact - 1).abs() < 5e-4).sum()) < 2.5


def test_thresholds_stay_outside_the_kernel_of_zero():
    sae = jumprelu(theta=0.05, bandwidth=0.1)
    with torch.no_grad():
        sae.log_threshold[:5] = -9.0
    sae.after_step()
    assert math.isclose(sae.log_threshold.exp().min().item(), 0.05)
    with pytest.raises(ValueError, match=r"init_threshold=0\.04 must be at least bandwidth / 2 = 0\.05"):
        jumprelu(theta=0.04, bandwidth=0.1)


def test_training_and_inference_fire_alike_each_latent_over_its_own_threshold():
    sae, x = jumprelu(), normal(300, 8)
    with torch.no_grad():
        sae.log_threshold.copy_(torch.linspace(-2, 0.5, 24))
    v = x @ sae.W_enc.T
    fires = v * (v > sae.log_threshold.exp())
    torch.testing.assert_close(sae.encode(x).dense(), fires)
    torch.testing.assert_close(sae.objective(Batch(x, x, torch.zeros(24, dtype=torch.bool))).z.dense(), fires)


def test_decoder_norms_may_be_moved_into_encoder_and_threshold():
    sae, x = jumprelu(), normal(300, 8)
    z, x_hat, norm = sae.encode(x).dense(), sae(x), torch.linspace(0.3, 3.0, 24, dtype=torch.float64)
    with torch.no_grad():
        sae.W_dec /= norm[:, None]
        sae.W_enc *= norm[:, None]
        sae.b_enc *= norm
        sae.log_threshold += norm.log()
    torch.testing.assert_close(sae(x), x_hat)
    torch.testing.assert_close(sae.encode(x).dense(), z * norm)


def test_the_decoder_bias_is_subtracted_only_where_asked():
    plain, centred, x = jumprelu(), jumprelu(centred=True), normal(300, 8)
    with torch.no_grad():
        plain.b_dec.fill_(0.2), centred.b_dec.fill_(0.2)
    assert torch.equal(centred.encode(x).dense(), plain.encode(x - 0.2).dense())
    assert not torch.equal(centred.encode(x).dense(), plain.encode(x).dense())


@pytest.mark.parametrize("sign", [1, -1])
def test_in_long_runs_thresholds_still_follow_what_l0_does(sign):
    for error, waits, expected in (
        (0.01, False, 0.04 * 0.01),
        (0.2, False, 2e-3),
        (0.9, False, 40 * 0.9 / 10_000),
        (0.01, True, 0),
    ):
        sae = jumprelu(target_l0=2.0)
        sae.control.error.fill_(sign * error)
        sae.control.lasting.fill_(0 if waits else sign * 40 * error / 10_000)
        before = sae.log_threshold.clone()
        sae.after_step()
        torch.testing.assert_close(sae.log_threshold - before, torch.full_like(before, sign * expected))
