"""Gated's mathematics: which term may move what, and that magnitudes do not shrink."""

import pytest
import torch

from sae_lab.saes import Batch, build
from sae_lab.sparse import Adam

D_IN, D_SAE = 8, 24


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gated(**config):
    """A Gated SAE whose every parameter is somewhere else than at the start."""
    sae = build("gated", d_in=D_IN, d_sae=D_SAE, choose_in="float32", **config).double()
    with torch.no_grad():
        sae.r_mag.copy_(normal(D_SAE, seed=1) / 3)
        sae.b_mag.copy_(normal(D_SAE, seed=2) / 3)
        sae.b_dec.copy_(normal(D_IN, seed=3) / 3)
        if sae.b_enc is not None:
            sae.b_enc.copy_(normal(D_SAE, seed=4) / 3)
    return sae


def objective(sae, x):
    return sae.objective(Batch(x, x, torch.zeros(len(sae.W_dec), dtype=torch.bool), 1.0))


def moved(sae, term):
    """The parameters that one term gives a gradient."""
    objective(sae, normal(300, D_IN))[2][term].backward()
    return {name for name, p in sae.named_parameters() if p.grad is not None and p.grad.any()}


def test_reconstruction_moves_all_but_the_gates_bias():
    assert moved(gated(), "mse") == {"W_enc", "W_dec", "b_dec", "r_mag", "b_mag"}


def test_the_penalty_moves_the_gates_alone_and_by_how_often_they_are_open():
    sae, x = gated(l1_weight=0.5), normal(300, D_IN)
    assert moved(sae, "l1") == {"W_enc", "b_enc", "b_dec"}  # b_dec: the gates read x - b_dec
    often = ((x - sae.b_dec) @ sae.W_enc.T + sae.b_enc > 0).double().mean(0)
    torch.testing.assert_close(sae.b_enc.grad, 0.5 * often)


def test_the_auxiliary_term_leaves_decoder_and_magnitudes_alone():
    sae = gated()
    assert moved(sae, "aux") == {"W_enc", "b_enc", "b_dec"}
    torch.testing.assert_close(sae.b_dec.grad, -sae.b_enc.grad @ sae.W_enc)  # by way of x - b_dec, not of the decoder


def test_the_auxiliary_term_is_the_error_of_what_the_gates_reconstruct():
    sae, x = gated(aux_weight=0.3), normal(300, D_IN)
    gate = ((x - sae.b_dec) @ sae.W_enc.T + sae.b_enc).relu()
    error = (gate @ sae.W_dec + sae.b_dec - x).square().sum(1).mean()
    torch.testing.assert_close(objective(sae, x).terms["aux"], 0.3 * error)


def test_an_open_gate_without_magnitude_does_not_fire():
    sae, x = gated(), normal(300, D_IN)
    with torch.no_grad():
        sae.b_mag.fill_(-100.0)
    out = objective(sae, x)
    assert out.z.l0 == 0 and out.terms["l1"] > 0


@pytest.mark.parametrize("encoder_bias", [True, False])
def test_it_is_a_jumprelu_at_inference(encoder_bias):
    """Also where the threshold would be negative, and with a b_dec that JumpReLU does not subtract."""
    sae, x = gated(encoder_bias=encoder_bias), normal(500, D_IN)
    state = sae.as_jumprelu()
    assert (state["log_threshold"] == -torch.inf).any() and state["log_threshold"].isfinite().any()
    twin = build("jumprelu", d_in=D_IN, d_sae=D_SAE, choose_in="float32").double()
    twin.load_state_dict(state)
    torch.testing.assert_close(twin.encode(x).dense(), sae.encode(x).dense())
    torch.testing.assert_close(twin(x), sae(x))


def test_magnitudes_do_not_shrink_where_those_of_an_l1_penalty_do():
    """x_hat's size as a share of what it should be, E|x_hat|^2 / E<x, x_hat>, on four orthogonal features."""
    bias = {}
    for name in ("gated", "relu"):
        sae = build(name, d_in=4, d_sae=4, l1_weight=0.5, choose_in="float32")
        with torch.no_grad():
            sae.W_enc.copy_(torch.eye(4)), sae.W_dec.copy_(torch.eye(4))
        adam, rng = Adam(sae.named_parameters(), lr=1e-2, unit=["W_dec"]), torch.Generator().manual_seed(0)
        for _ in range(250):
            x = (torch.rand(128, 4, generator=rng) < 0.25) * (1 + torch.rand(128, 4, generator=rng))
            sum(objective(sae, x).terms.values()).backward()
            adam.step()
            adam.zero_grad()
        x_hat = sae(x).detach()
        bias[name] = (x_hat.square().sum() / (x * x_hat).sum()).item()
    assert abs(bias["gated"] - 1) < 0.03
    assert bias["relu"] < 0.95
