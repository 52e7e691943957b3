"""Any variant as a transcoder: it reads what the MLP reads and predicts what it gives, linear path or not."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from streams import Rows, Stream
from test_every_sae import D_IN, TRAINED, batch_for, rows, small
from torch.nn.functional import normalize

import sae_lab as sl
from sae_lab.launcher import Job, run_job
from sae_lab.saes import build
from sae_lab.saes.losses import geometric_median
from sae_lab.training import train

D = 16


class Mapped(Stream):
    """Activations at L1TC, and at L1M the same, a hundredth as large, elsewhere, and turned if asked for."""

    def __init__(self, turned=False):
        super().__init__(d_in=D, sites=["L1TC"])
        turn = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(8)))[0]
        self.rotation = turn if turned else torch.eye(D)
        self.offset = torch.linspace(0.02, 0.04, D)

    def mapped(self, x):
        return 0.01 * x @ self.rotation + self.offset

    def statistics(self, site):
        x = self.ring if site == "L1TC" else self.mapped(self.ring)
        return SimpleNamespace(mean_norm=x.norm(dim=1).mean().item(), mean_square=x.square().sum(1).mean().item())

    def next(self, n):
        return {site: Rows(r.x, self.mapped(r.x), r.doc, r.position) for site, r in super().next(n).items()}


def learned(name, turned=False, lr=3e-3, **config):
    """A transcoder of `Mapped`, and rows that it has not seen, with their targets."""
    sae, source = build(name, d_in=D, d_sae=64, transcode=True, **config), Mapped(turned)
    for _ in train(sae, source, tokens=100_000, batch=256, lr=lr):
        pass
    fresh = source.next(256)["L1TC"]
    return sae, fresh.x, fresh.target


@torch.no_grad()
def fvu(sae, x, y):
    return float((sae(x) - y).square().sum() / (y - y.mean(0)).square().sum())


def test_a_transcoder_learns_a_map_between_activations_of_other_size_and_place():
    sae, x, y = learned("topk", k=3)
    assert fvu(sae, x, y) < 0.35
    assert (sae.W_dec.norm(dim=1) - 1).abs().max() < 1e-5


def test_a_linear_path_takes_what_is_linear():
    """Two latents per token cannot carry three directions; the path beside them can."""
    plain, x, y = learned("batchtopk", turned=True, lr=1e-2, k=1)
    skip, x, y = learned("batchtopk", turned=True, lr=1e-2, k=1, skip=True)
    assert fvu(skip, x, y) < 0.02 < 0.2 < fvu(plain, x, y)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("name", TRAINED)
def test_folding_two_scales_gives_the_same_map_of_raw_activations(name, skip):
    """SAE(x) after fold(s, t) == SAE(x * s) / t before, and its latents are in units of the target."""
    sae, x, s, t = small(name, transcode=True, skip=skip), rows(), 0.37, 5.0
    with torch.no_grad():
        if skip:
            sae.W_skip.copy_(torch.randn(D_IN, D_IN, generator=torch.Generator().manual_seed(4)) / 5)
        sae.calibrate([rows(seed=5) * s])
        z, x_hat = sae.encode(x * s), sae(x * s)
        sae.fold(s, t)
    torch.testing.assert_close(sae(x), x_hat / t, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sae.encode(x).dense(), z.dense() / t, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TRAINED)
def test_a_transcoders_bias_is_no_centre_of_what_it_reads(name):
    """Its latents do not depend on b_dec, which lies among the targets; its x_hat moves with it."""
    sae, x = small(name, transcode=True), rows()
    before, x_hat = sae.encode(x).dense(), sae(x)
    with torch.no_grad():
        sae.b_dec += 1
    assert torch.equal(sae.encode(x).dense(), before)
    torch.testing.assert_close(sae(x), x_hat + 1)


@pytest.mark.parametrize("name", TRAINED)
def test_the_linear_path_is_learned_in_every_variant(name):
    """Its gradient is that of the MSE alone: 2/n (x_hat - y)^T x where that is the loss."""
    sae, x = small(name, transcode=True, skip=True), rows()
    y = x @ torch.randn(D_IN, D_IN, generator=torch.Generator().manual_seed(4))
    out = sae.objective(replace(batch_for(sae, x), target=y, dead=torch.zeros(sae.cfg.d_sae, dtype=torch.bool)))
    sum(out.terms.values()).backward()
    assert sae.W_skip.grad.abs().min() > 0
    if name == "topk":
        torch.testing.assert_close(sae.W_skip.grad, 2 / len(x) * (out.x_hat - y).T @ x, rtol=1e-4, atol=1e-5)


def test_the_first_bias_is_the_middle_of_the_targets():
    x, y = rows(), rows(seed=1) + 7
    sae = small("topk", transcode=True)
    sae.prepare(x, y)
    torch.testing.assert_close(sae.b_dec, geometric_median(y))


def test_an_sae_is_not_trained_at_a_transcoders_site_nor_the_other_way_round():
    with pytest.raises(ValueError, match="topk at L1TC has to be built with transcode=True"):
        list(train(build("topk", d_in=D, d_sae=32, k=3), Mapped(), tokens=256))
    with pytest.raises(ValueError, match="topk at L1R has to be built with transcode=False"):
        list(train(build("topk", d_in=D, d_sae=32, k=3, transcode=True), Stream(d_in=D), tokens=256))


def test_a_linear_path_is_for_transcoders_and_baselines_are_none():
    with pytest.raises(ValueError, match="Set transcode=True"):
        build("topk", d_in=8, d_sae=16, k=2, skip=True)
    with pytest.raises(ValueError, match="random is a baseline"):
        build("random", d_in=8, d_sae=16, k=2, transcode=True)


def test_a_resumed_transcoder_ends_with_the_same_bits(tmp_path):
    ends = []
    for stops in ((), (70,)):
        sae, folder = build("topk", d_in=D, d_sae=32, k=3, transcode=True, skip=True), tmp_path / str(len(stops))
        for stop in (*stops, None):
            for step in train(sae, Mapped(), tokens=128 * 100, batch=128, run=folder, checkpoint_steps=20):
                if step.index == stop:
                    break
        ends.append(sl.load_sae(folder))
    for one, two in zip(ends[0].state_dict().values(), ends[1].state_dict().values()):
        assert torch.equal(one, two)
    assert ends[0].W_skip.abs().max() > 0


def test_the_doctor_reads_a_transcoders_thresholds_in_the_units_of_its_target(tmp_path):
    stuck = {"l0_weight": 0.02, "init_threshold": 0.05, "bandwidth": 1e-6}
    sae = build("jumprelu", d_in=D, d_sae=64, transcode=True, **stuck)
    for _ in train(sae, Mapped(), tokens=76_800, batch=256, lr=5e-3, log_every=4, run=tmp_path / "run"):
        pass
    assert "stuck thresholds" in {finding.name for finding in sl.doctor(tmp_path / "run").findings}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A skip transcoder of the embedded Llama's second MLP, trained as the command line does."""
    run = tmp_path_factory.mktemp("runs") / "tc"
    job = Job.of(variant="topk", site="L1TC", d_sae=512, k=16, skip=True, tokens=150_000, batch=1024, lr=2e-3)
    for _ in run_job(Job.from_json(job.to_json() | {"run": str(run), "evaluation": 0})):
        pass
    return sl.load_sae(run)


def test_a_transcoder_stands_in_for_the_mlp_of_a_real_model(trained):
    """A third of what leaving the MLP out costs comes back after 150 steps; it is the MLP's output that is replaced."""
    lm = sl.load_model("tiny")
    e = sl.evaluate(trained, lm, tokens=8_000, spliced=4_000)
    assert trained.cfg.transcode and trained.origin["site"] == "L1TC"
    assert e.fvu.value < 0.65 and e.ce_recovered.value > 0.33
    ids, mask = lm.encode("The old baker found a red boat by the river.")
    reads, gives = lm.read(ids, ["L1TC", "L1M"], mask=mask).values()
    assert (trained(reads[:, 1:]) - gives[:, 1:]).norm() < 0.8 * gives[:, 1:].norm()


def test_the_gradient_that_a_transcoders_rows_carry_is_that_of_what_it_gives():
    lm = sl.load_model("tiny")
    found = sl.activations(lm, ["L1TC", "L1M"], needs={"grad"}, buffer=512).next(64)
    assert torch.equal(found["L1TC"].grad, found["L1M"].grad)
    assert found["L1TC"].grad.abs().max() > 0
    assert normalize(found["L1TC"].grad, dim=1).shape == (64, lm.d_model)
