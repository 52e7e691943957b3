"""One knob for how many latents fire: k where the paper has k, and where it has a penalty a controller gets there."""

import json
import math
from dataclasses import asdict, replace

import pytest
import torch

import sae_lab.saes.base as base
import sae_lab.saes.control as control
from sae_lab.runs import Run
from sae_lab.saes import REGISTRY, Batch, build, configured
from sae_lab.toys import Planted
from sae_lab.training import train

AIM = 4.0
WEIGHTS = {  # a knob, and three values of it that are each a factor of twenty apart
    "relu": ("l1_weight", (0.05, 1.0, 20.0)),
    "gated": ("l1_weight", (0.003, 0.06, 1.2)),
    "p_anneal": ("l1_weight", (0.05, 1.0, 20.0)),
    "temporal_mask": ("l1_weight", (0.05, 1.0, 20.0)),
    "jumprelu": ("l0_weight", (5e-5, 1e-3, 2e-2)),
    "end_to_end": ("l1_weight", (0.3, 6.0, 120.0)),
}
OWN = {"jumprelu": {"bandwidth": 0.05, "init_threshold": 0.05}, "end_to_end": {"kind": "local"}}  # no model is at hand
WITH_K = sorted(name for name, cls in REGISTRY.items() if hasattr(cls.Config, "k"))
PENALISED = sorted(set(REGISTRY) - set(WITH_K))
KNOBS = {"batch": 128, "lr": 5e-3, "log_every": 1}


class Offering(Planted):
    """Planted activations that say they have what `end_to_end` needs, which its "local" never asks for."""

    needs = ("patched_kl",)


def planted(stream=0):
    return Offering(d_in=16, features=48, k=3, stream=stream)


def small(name, **config):
    return build(name, d_in=16, d_sae=48, choose_in="float32", **{"target_l0": AIM} | OWN.get(name, {}) | config)


def trained(sae, steps=250, **knobs):
    """The steps of a training that go to its end."""
    return list(train(sae, planted(), 128 * steps, **KNOBS | knobs))


def held_out(sae):
    return float(sae.encode(planted(stream=1).next(16_384)["L0R"].x).l0)


@pytest.mark.parametrize("start", range(3), ids=["cheap", "fair", "dear"])
@pytest.mark.parametrize("name", PENALISED)
def test_the_target_is_met_on_rows_never_seen_whatever_the_price_at_the_start(name, start):
    knob, values = WEIGHTS[name]
    sae = small(name, **{knob: values[start]})
    trained(sae)
    leeway = 0.1 if name == "end_to_end" else 0.05  # its rate falls from the first step on: the last ones move little
    assert abs(held_out(sae) / AIM - 1) < leeway


@pytest.mark.parametrize("name", PENALISED)
def test_every_penalty_is_the_controllers_to_move(name):
    """A variant that has no k, and forgets to ask `charge` for its term, would ignore its target in silence."""
    knob, (cheap, *_) = WEIGHTS[name]
    sae, x = small(name, **{knob: cheap}), planted().next(64)["L0R"].x
    for progress in (0.5, 0.51):
        sae.objective(Batch(x, x, torch.zeros(48, dtype=torch.bool), progress))
    assert sae.control.progress == 0.51 and sae.control.multiplier > 1


def test_a_controller_of_the_wrong_sign_runs_away(monkeypatch):
    """So that meeting the target, above, is the controller's doing."""
    monkeypatch.setattr(control, "PROPORTIONAL", -control.PROPORTIONAL)
    monkeypatch.setattr(control, "INTEGRAL", -control.INTEGRAL)
    sae = small("relu")
    trained(sae, 100)
    assert not 0.5 < held_out(sae) / AIM < 2


def steer(l0, steps=200, warm=True, most=math.inf):
    """The controller after a run in which L0 was always that."""
    steering = control.L0Controller(AIM)
    for step in range(steps):
        steering(torch.tensor(l0), torch.tensor(most), step / (steps - 1), warm)
    return steering.multiplier.item()


def test_an_l0_that_stays_too_large_raises_the_price_by_the_integral_of_its_logarithm():
    assert steer(1.1 * AIM) == pytest.approx(1.1**control.INTEGRAL, rel=1e-4)
    assert steer(AIM / 1.1) == pytest.approx(1.1**-control.INTEGRAL, rel=1e-4)
    assert steer(1.1 * AIM, steps=2000) == pytest.approx(steer(1.1 * AIM), rel=1e-4)


def test_a_jump_of_l0_is_answered_at_once_by_a_power_of_it():
    steering = control.L0Controller(AIM)
    for l0 in (AIM, 1.2 * AIM):
        steering(torch.tensor(l0), torch.tensor(math.inf), 0.5, True)
    assert steering.multiplier.item() == pytest.approx(1.2**control.PROPORTIONAL, rel=1e-4)


def test_the_integral_does_not_wind_up():
    """Not while the price warms up, nor beyond what an SAE without latents would cost; and it may always fall."""
    assert steer(9 * AIM, warm=False) == 1.0 > steer(AIM / 2, warm=False)
    assert steer(9 * AIM, most=7.0) == 7.0
    assert 0 < steer(0.0) < 1e-8


def test_a_target_is_steered_to_again_in_a_second_training():
    sae = small("relu")
    trained(sae, 150)
    sae.origin = {"trained": "before"}
    trained(sae, 150)
    assert abs(held_out(sae) / AIM - 1) < 0.05


@pytest.mark.parametrize("name", ["jumprelu", "relu"])
def test_a_run_that_was_cut_short_goes_on_with_the_same_price(name, tmp_path):
    whole, cut = small(name), small(name)
    straight = trained(whole, 40, run=tmp_path / "whole")
    steps = train(cut, planted(), 128 * 40, run=tmp_path / "cut", **KNOBS)
    while next(steps).index < 23:
        pass
    steps.close()
    later = small(name)
    *_, last = trained(later, 40, run=tmp_path / "cut")
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), later.state_dict().values(), strict=True))
    assert last.saes == straight[-1].saes


def test_the_log_says_what_the_controller_did(tmp_path):
    steps = trained(small("relu"), 40, run=tmp_path)
    rows = [row for row in Run(tmp_path).rows if "fvu" in row]
    moved = [row["state"]["control.multiplier"] for row in rows]
    assert moved == [step.saes[0].state["control.multiplier"] for step in steps] and len(set(moved)) > 30
    for row in rows:
        assert row["state"]["control.error"] == pytest.approx(math.log(row["l0"] / AIM), rel=1e-4, abs=1e-6)


def test_the_log_of_any_variant_holds_the_numbers_it_keeps():
    *_, last = train(build("batchtopk", d_in=16, d_sae=32, k=3), planted(), 1280, **KNOBS)
    assert last.saes[0].state["threshold"] > 0


def test_without_a_target_there_is_no_controller():
    for name in PENALISED:
        sae = small(name, target_l0=None)
        assert sae.control is None and not [key for key in sae.state_dict() if "control" in key]


# where L0 is k


@pytest.mark.parametrize("name", WITH_K)
def test_where_a_token_keeps_k_latents_the_target_is_k(name):
    width = {} if name == "pca" else {"d_sae": 32}
    sae = build(name, d_in=16, target_l0=5, **width)
    assert sae.cfg.k == 5 and sae.control is None
    saved = json.loads(json.dumps(asdict(sae.cfg)))
    assert build(name, **saved).cfg == sae.cfg == replace(sae.cfg, choose_in="auto")
    assert build(name, d_in=16, target_l0=5.0, k=5, **width).cfg == sae.cfg


@pytest.mark.parametrize(
    ("variant", "config", "says"),
    [
        ("topk", {"k": 32, "target_l0": 16}, "k=32 and target_l0=16 differ"),
        ("batchtopk", {"k": 5, "target_l0": 6.0}, "k=5 and target_l0=6.0 differ"),
        ("topk", {"target_l0": 4.5}, "target_l0=4.5 must be a whole number: in topk it is k"),
        ("topk", {"target_l0": 65}, "k=65 must be at most d_sae=64"),
        ("relu", {"target_l0": 65}, "target_l0=65 must be at most d_sae=64"),
        ("relu", {"target_l0": 0.0}, "target_l0=0.0 must lie in"),
        ("jumprelu", {"target_weight": 1.0}, "target_weight=1.0 weighs a distance from target_l0"),
    ],
)
def test_a_target_that_cannot_be_says_why(variant, config, says):
    with pytest.raises(ValueError, match=says):
        configured(variant, d_in=16, d_sae=64, **config)


@pytest.mark.parametrize("name", PENALISED)
def test_a_steered_sae_starts_sparse_and_every_latent_fires_as_often(name, monkeypatch):
    x = torch.cat([rows.x for rows in (planted().next(4096)["L0R"] for _ in range(2))])
    sae = small(name, start_l0=6.0)
    monkeypatch.setattr(base, "PIECE", 20)  # latents at a time: the third piece is a smaller one
    sae.prepare(x, -x)  # the other is what a transcoder is to predict
    z = sae.encode(x)
    density = torch.bincount(z.support.latent[z.value > 0].long(), minlength=48) / len(x)
    bound = 0.25 if name == "jumprelu" else 1e-3  # its thresholds stand a little above the biases
    assert (density - 6 / 48).abs().max() < bound * 6 / 48 + 1e-3


def test_a_start_that_cannot_be_says_why():
    with pytest.raises(ValueError, match="start_l0=9 is for a penalty"):
        build("topk", d_in=16, d_sae=48, k=4, start_l0=9)
    with pytest.raises(ValueError, match="start_l0=49 must be at most d_sae=48"):
        small("relu", start_l0=49)


def test_where_nothing_is_steered_an_sae_starts_as_the_paper_does():
    x = planted().next(512)["L0R"].x
    for sae in (small("relu", target_l0=None), small("relu", encoder_bias=False), small("relu", target_l0=3.0)):
        sae.prepare(x, x)  # ten times 3 is more than half of the latents, which is where it starts anyway
        assert sae.starting_l0 is None and (sae.b_enc is None or not sae.b_enc.any())
    wide = build("relu", d_in=16, d_sae=960, target_l0=4, choose_in="float32")
    assert wide.starting_l0 == 40
    list(train(wide, planted(), 128, **KNOBS))
    assert wide.b_enc.mean() < 0  # the loop shows it the sample
