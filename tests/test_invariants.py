"""What holds of every variant beyond its contract: decoder norms fold, AuxK reaches the dead alone, runs resume."""

import copy

import pytest
import torch
from bench_planted import SHAPE, Read
from test_every_sae import DEAD, NAMES, TRAINED, batch_for, on, rows, small

from sae_lab.runs import Run
from sae_lab.saes import REGISTRY, build
from sae_lab.training import train

AUX = [name for name in TRAINED if hasattr(small(name).cfg, "k_aux")]
STREAMED = [name for name in TRAINED if REGISTRY[name].needs <= {"grad", "peers"}]  # what planted data can give


def calibrated(name):
    sae = small(name)
    sae.calibrate([rows(seed=5)])
    return sae


@torch.no_grad()
def rescale(sae, norm):
    """Decoder rows are divided by `norm`, and all that a latent's activation is compared with is multiplied by it."""
    sae.W_dec /= norm[:, None]
    sae.W_enc *= norm[:, None]
    for name, tensor in (dict(sae.named_parameters()) | dict(sae.named_buffers())).items():
        if tensor.shape == norm.shape and name in sae.in_units:
            tensor *= norm
        elif name in sae.in_log_units:
            tensor += norm.log()


@pytest.mark.parametrize("name", NAMES)
def test_decoder_norms_move_into_the_encoder_unless_latents_compete(name):
    """Each latent over a threshold of its own: nothing changes. The k largest, or one threshold for all: others win."""
    sae, x = calibrated(name), rows()
    before, x_hat, norm = sae.encode(x).dense(), sae(x), torch.linspace(0.3, 3.0, sae.cfg.d_sae)
    competing = hasattr(sae.cfg, "k") and getattr(sae, "threshold", torch.tensor(0.0)).dim() == 0
    rescale(sae, norm)
    if competing:
        assert not torch.equal(on(sae.encode(x)), before != 0)
    else:
        torch.testing.assert_close(sae.encode(x).dense(), before * norm, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(sae(x), x_hat, rtol=1e-4, atol=1e-5)


def test_a_choice_by_decoder_norm_is_the_same_wherever_the_norms_are():
    """Llama Scope before its conversion."""
    sae, x = small("llama_scope"), rows()
    before, x_hat, norm = sae.encode(x).dense(), sae(x), torch.linspace(0.3, 3.0, sae.cfg.d_sae)
    rescale(sae, norm)
    torch.testing.assert_close(sae.encode(x).dense(), before * norm, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sae(x), x_hat, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in NAMES if not hasattr(small(name).cfg, "k")])
def test_what_is_priced_fires_alike_in_training_and_at_inference(name):
    sae = small(name)
    assert torch.equal(on(sae.objective(batch_for(sae)).z), on(sae.encode(rows())))


@pytest.mark.parametrize("name", AUX)
def test_auxk_moves_encoder_and_decoder_rows_of_the_dead_and_nothing_else(name):
    """But for b_dec where the encoder subtracts it: that moves with the dead pre-activations, and by no decoder."""
    sae = small(name, encoder_bias=True)
    if hasattr(sae, "density"):  # aux_zipf: who is dead is who fires less than the law says
        law = sae.law() if hasattr(sae, "law") else torch.tensor(0.0)
        sae.density.copy_(torch.where(torch.arange(sae.cfg.d_sae) < DEAD, 0.0, 2 * law.max() + 1.0))
    terms = sae.objective(batch_for(sae)).terms
    (terms["auxk"] if "auxk" in terms else terms["aux_zipf"]).backward()
    grads = {n: p.grad.to_dense() for n, p in sae.named_parameters() if p.grad is not None and p.grad.to_dense().any()}
    assert set(grads) == {"W_enc", "W_dec", "b_enc", "b_dec"}
    reached = {key: grads[key].reshape(sae.cfg.d_sae, -1).any(1) for key in ("W_enc", "W_dec", "b_enc")}
    assert reached["W_enc"].sum() > DEAD / 2 and not reached["W_enc"][DEAD:].any()
    assert torch.equal(reached["W_enc"], reached["W_dec"]) and torch.equal(reached["W_enc"], reached["b_enc"])
    through = -(grads["b_enc"] @ sae.W_enc.detach())
    torch.testing.assert_close(grads["b_dec"], through, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", STREAMED)
def test_a_run_left_in_the_middle_ends_at_the_same_bits(name, tmp_path):
    """Also where its state is more than weights: thresholds, densities, masks, exponents, moving averages."""
    knobs = {"tokens": 24 * 32, "batch": 32, "lr": 1e-2, "calibration_tokens": 128, "snapshots": 0, "seed": 3}

    def begun(run):
        config = {key: value for key, value in {"k": 3, "k_aux": 4}.items() if hasattr(small(name).cfg, key)}
        sae = build(name, d_in=SHAPE["d_in"], d_sae=24, choose_in="float32", **config)
        return sae, train(sae, Read(**SHAPE), run=run, **knobs)

    straight, steps = begun(None)
    *_, last = steps
    _, steps = begun(tmp_path)
    for step in steps:
        if step.index == 13:
            break
    steps.close()
    assert Run(tmp_path).checkpoints.steps[0] == 13
    resumed, steps = begun(tmp_path)
    *_, again = steps
    assert (again.terms, again.fvu, again.l0) == (last.terms, last.fvu, last.l0)
    for key, tensor in straight.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[key]), key


@pytest.mark.parametrize("name", NAMES)
def test_all_that_inference_needs_is_in_the_state_dict(name):
    """Every tensor that training has moved, not only what `encode` happens to show on this data."""
    sae = calibrated(name)
    if sae.trainable:
        sae.objective(batch_for(sae))
        sae.after_step()
    twin = type(sae)(sae.cfg)
    twin.load_state_dict(copy.deepcopy(sae.state_dict()))
    for key, buffer in sae.named_buffers():
        assert torch.equal(buffer, twin.get_buffer(key)), key
    assert torch.equal(twin(rows(1)), sae(rows(1)))
