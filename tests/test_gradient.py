"""Gradient SAE: the choice is by activation and by what the loss would say, everything else is TopK."""

import math
from dataclasses import replace

import little
import pytest
import torch
from streams import Stream
from test_every_sae import gradient_twin

from sae_lab.harvest import activations
from sae_lab.launcher import Job, run_job
from sae_lab.models import load_model
from sae_lab.saes import Batch, build
from sae_lab.training import train

TOK, D_IN, D_SAE, K = 40, 8, 24, 4


def sae(**config):
    model = build("gradient", **({"d_in": D_IN, "d_sae": D_SAE, "k": K, "k_aux": 5} | config)).double()
    with torch.no_grad():
        model.b_enc.copy_(torch.linspace(-0.1, 0.2, D_SAE))
        model.b_dec.copy_(torch.linspace(-0.2, 0.2, D_IN))
        rng = torch.Generator().manual_seed(5)  # the decoder is no copy of the encoder
        model.W_dec += 0.3 * torch.randn(D_SAE, D_IN, generator=rng)
        model.W_dec /= model.W_dec.norm(dim=1, keepdim=True)
    return model


def batch(seed=0, size=1e-4):
    rng = torch.Generator().manual_seed(seed)
    x, noise, grad = (torch.randn(TOK, D_IN, generator=rng, dtype=torch.float64) for _ in range(3))
    return Batch(x, x + 0.1 * noise, torch.arange(D_SAE) < 8, 0.5, grad=size * grad)


def chosen(model, b):
    return model.objective(b).z.support.latent.view(TOK, -1)


@pytest.mark.parametrize("beta", [0.0, 1.0, 1e6])
def test_every_gradient_equals_dense_autograd(beta):
    results = []
    for way in (lambda p, b: (p.objective(b).x_hat, p.objective(b).terms), gradient_twin):
        model, b = sae(beta=beta), batch()
        b.x.requires_grad_()
        x_hat, terms = way(model, b)
        sum(terms.values()).backward()
        results.append([x_hat, terms["mse"], terms["auxk"], b.x.grad, *(p.grad for p in model.parameters())])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def test_the_score_is_the_papers_where_nothing_is_normalised():
    """z + beta * z * |<d, g>|, one latent and one token after the other; what is kept is z."""
    model, b = sae(normalize=False, beta=3.0), batch(size=1.0)
    z = ((b.x - model.b_dec) @ model.W_enc.T + model.b_enc).relu().detach()
    found, W = model.objective(b).z.dense().detach(), model.W_dec.detach()
    for t in range(TOK):
        score = [float(z[t, i] + 3.0 * z[t, i] * abs((W[i] * b.grad[t]).sum())) for i in range(D_SAE)]
        best = sorted(range(D_SAE), key=lambda i: -score[i])[:K]
        assert set(found[t].nonzero()[:, 0].tolist()) == {i for i in best if score[i] > 0}
        torch.testing.assert_close(found[t, best], z[t, best])


def test_the_size_of_the_gradient_does_not_matter_if_it_is_measured():
    for size in (1e-8, 1.0, 1e5):
        assert torch.equal(chosen(sae(), batch(size=1e-4)), chosen(sae(), batch(size=size)))
    raw = [chosen(sae(normalize=False), batch(size=size)) for size in (1e-8, 1e5)]
    assert not torch.equal(*raw)


def test_beta_is_in_units_of_what_a_random_direction_sees():
    rng = torch.Generator().manual_seed(0)
    d = torch.randn(20_000, D_IN, generator=rng, dtype=torch.float64)
    g = batch().grad
    mean = (g @ (d / d.norm(dim=1, keepdim=True)).T).abs().mean()
    torch.testing.assert_close(1 / sae()._measure(g), mean, rtol=0.04, atol=0)  # exact as d_in grows; 8 is 3% off


def test_a_faint_latent_that_carries_the_gradient_wins_when_beta_is_large():
    model = build("gradient", d_in=2, d_sae=2, k=1, encoder_bias=False).double()
    with torch.no_grad():
        model.W_enc.copy_(torch.eye(2))
        model.W_dec.copy_(torch.eye(2))
    x, g = torch.tensor([[3.0, 0.5]]).double(), torch.tensor([[0.0, -1e-3]]).double()  # against d: its size counts
    for beta, winner in ((0.1, 0), (100.0, 1)):
        model.cfg = replace(model.cfg, beta=beta)
        z = model.objective(Batch(x, x, torch.zeros(2, dtype=torch.bool), grad=g)).z.dense()
        assert z.nonzero().tolist() == [[0, winner]]
        assert z[0, winner] == x[0, winner]


def test_a_large_beta_chooses_whom_the_loss_would_miss_most():
    """By finite differences of a readout's cross-entropy: a little of each latent is taken away from x."""
    rng = torch.Generator().manual_seed(2)
    readout = torch.randn(11, D_IN, generator=rng, dtype=torch.float64)
    label = torch.randint(11, (TOK,), generator=rng)

    def loss(x):
        return torch.nn.functional.cross_entropy(x @ readout.T, label, reduction="none")

    model, x = sae(beta=1e6), batch().x.requires_grad_()
    (g,) = torch.autograd.grad(loss(x).sum(), x)
    x = x.detach()
    z = ((x - model.b_dec) @ model.W_enc.T + model.b_enc).relu().detach()
    step = 1e-6
    change = torch.stack([loss(x - step * z[:, i, None] * model.W_dec[i]) - loss(x) for i in range(D_SAE)], 1) / step
    best = change.detach().abs().topk(K).indices.sort(1).values
    assert torch.equal(chosen(model, replace(batch(), x=x, grad=g)), best.int())


def test_a_gradient_of_nothing_leaves_topk():
    b = batch()
    a = sae(beta=50.0).objective(replace(b, grad=torch.zeros_like(b.grad))).z
    torch.testing.assert_close(a.dense(), sae().encode(b.x).dense())


def test_inference_does_not_know_the_loss():
    model, b = sae(beta=50.0), batch()
    before = model.encode(b.x).dense()
    trained_on = model.objective(b).z.dense()
    assert torch.equal(before, model.encode(b.x).dense())
    assert not torch.equal(before != 0, trained_on != 0)


@pytest.mark.parametrize("normalize", [True, False])
def test_encoding_with_the_gradient_chooses_as_training_did_and_each_token_alone(normalize):
    model, b = sae(beta=2.0, normalize=normalize), batch(size=1.0)
    z = model.objective(b).z.dense()
    assert not torch.equal(z != 0, model.encode(b.x).dense() != 0)
    torch.testing.assert_close(model.encode_with_grad(b.x, b.grad).dense(), z)
    torch.testing.assert_close(model.encode_with_grad(b.x[7:9], b.grad[7:9]).dense(), z[7:9])
    deep = model.encode_with_grad(b.x.view(5, 8, D_IN), b.grad.view(5, 8, D_IN))
    assert deep.lead == (5, 8) and torch.equal(deep.dense().view(TOK, -1), model.encode_with_grad(b.x, b.grad).dense())


def test_the_size_is_followed_batch_by_batch_and_saved():
    model = sae(momentum=0.75)
    model.objective(batch(0))
    first = model.per_grad.item()
    model.objective(batch(1, size=1e-2))
    second = 1 / (batch(1, size=1e-2).grad.norm(dim=1).mean().item() * math.sqrt(2 / (math.pi * D_IN)))
    assert model.per_grad.item() == pytest.approx(0.75 * first + 0.25 * second)
    twin = type(model)(model.cfg).double()
    twin.load_state_dict(model.state_dict())
    assert twin.per_grad == model.per_grad


@pytest.mark.parametrize("normalize", [True, False])
def test_a_folded_sae_chooses_the_same_from_raw_activations_and_gradients(normalize):
    """With x = scale * raw, the gradient at raw is scale times that at x."""
    model, b, scale = sae(normalize=normalize), batch(size=1.0), 0.01
    model.objective(b)
    z = model.encode_with_grad(b.x, b.grad).dense()
    model.fold(scale)
    raw = model.encode_with_grad(b.x / scale, b.grad * scale).dense()
    torch.testing.assert_close(raw, z / scale)


def test_a_coarse_choice_by_a_large_score_is_the_exact_one():
    rng = torch.Generator().manual_seed(4)
    x, g = (torch.randn(96, 64, generator=rng) for _ in range(2))
    model = build("gradient", d_in=64, d_sae=512, k=8, beta=20.0, choose_in="float32")
    coarse = build("gradient", d_in=64, d_sae=512, k=8, beta=20.0, choose_in="bfloat16")
    b = Batch(x, x, torch.zeros(512, dtype=torch.bool), grad=g)
    assert torch.equal(model.objective(b).z.support.latent, coarse.objective(b).z.support.latent)


def test_it_trains_on_a_llamas_gradients_and_on_nothing_less(tmp_path):
    lm = load_model(little.save(tmp_path / "llama"))
    texts = [" ".join(f"cat {i} sat on mat {j}." for j in range(1 + i % 4)) for i in range(200)]
    options = {"buffer": 256, "documents": 16, "split": "all"}
    model = build("gradient", d_in=lm.d_model, d_sae=64, k=4, choose_in="float32")
    source = activations(lm, "L1R", texts, needs=model.needs, **options)
    first, *_, last = train(model, source, 64 * 40, batch=64, lr=1e-2, log_every=1, calibration_tokens=64)
    assert last.fvu < 0.8 * first.fvu and model.per_grad > 0
    with pytest.raises(ValueError, match="needs grad"):
        train(model, activations(lm, "L1R", texts, **options))
    with pytest.raises(ValueError, match="needs grad"):
        train(build("gradient", d_in=16, d_sae=32, k=3), Stream())


def test_a_job_gives_it_the_gradients_it_needs(tmp_path):
    model, text = little.save(tmp_path / "llama"), tmp_path / "cats.txt"
    text.write_text("\n<|endoftext|>\n".join(f"cat {i} sat on mat {i % 7}." for i in range(300)))
    knobs = {"site": "L1R", "tokens": 128, "batch": 64, "evaluation": 0, "calibration_tokens": 64, "d_sae": 64, "k": 4}
    *_, last = run_job(Job.of(variant="gradient", model=str(model), text=str(text), run=str(tmp_path / "run"), **knobs))
    assert last.index == 2 and last.saes[0].variant == "gradient"
