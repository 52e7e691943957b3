"""`verify` knows an SAE that was read right, and names what was read wrong."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import sae_lab as sl
from sae_lab.pretrained import Form
from sae_lab.pretrained.mistakes import MISTAKES

sys.path.insert(0, str(Path(__file__).parent))
from bench_verify import RIGHT, plant, uneven


@pytest.fixture(scope="module")
def lm():
    return sl.load_model("tiny")


@pytest.fixture(scope="module")
def trained(lm):
    sae = sl.build("batchtopk", d_in=lm.d_model, d_sae=384, k=16, seed=0)
    for _ in sl.train(sae, sl.activations(lm, "L2R", context=128), tokens=150_000, batch=512, lr=2e-3):
        pass
    return sae


@pytest.fixture(scope="module")
def readings(lm, trained):
    """What is said of an SAE read right, and by each mistake."""
    form, said = uneven(Form.of(trained)), {}
    x = lm.read(*lm.encode("The old baker found a red boat by the river.")[:1], ["L2R"])["L2R"][0, 1:]
    scale = math.sqrt(lm.d_model) / x.norm(dim=1).mean().item()
    for name, wrong in plant(form, scale).items():
        sae = wrong.sae()
        sae.origin = trained.origin | {"stated": {"l0": 16.0}, "conventions": ["one"]}
        said[name] = sl.verify(sae, lm, tokens=2048)
    return said


def test_what_is_read_right_is_as_published(readings):
    right = readings[RIGHT]
    assert right.healthy and right.verdict.startswith("As published")
    assert "L0 1" in repr(right) and "(stated 16)" in repr(right) and "Applied: one." in repr(right)
    assert right.table.reading.is_unique and right.table.cost.is_monotonic_increasing
    assert json.loads(json.dumps(right.to_json()))["healthy"] and len(right.figure.data[0].x) == len(right.table)


@pytest.mark.parametrize("name", [mistake.name for mistake in MISTAKES if mistake.name != "another layer"])
def test_every_mistake_is_seen_and_its_name_is_among_those_said(readings, name):
    found = readings[name]
    assert not found.healthy and found.verdict.startswith("Suspect") and name in found.verdict


def test_most_mistakes_are_told_from_all_others(readings):
    sole = [name for name in readings if readings[name].verdict == f"Suspect: {name}."]
    assert len(sole) >= 5


def test_what_was_read_wrong_is_repaired(readings, trained, lm):
    x = lm.read(*lm.encode("The old baker found a red boat by the river.")[:1], ["L2R"])["L2R"][0, 1:]
    z = trained(x)
    for name in ("decoder norms in the choice", "b_dec before the encoder"):
        torch.testing.assert_close(readings[name].repaired(x), z, atol=1e-3, rtol=1e-3)


def test_another_layer_is_seen(lm, trained):
    moved = Form.of(trained).sae()
    moved.origin = trained.origin | {"site": "L1R"}
    found = sl.verify(moved, lm, tokens=1024, l0=16)
    assert found.verdict == "Suspect: another layer." and found.table.reading[0] == "another layer (L2R)"
    with pytest.raises(ValueError, match="nothing is to be repaired"):
        _ = found.repaired


def test_weights_of_nothing_fit_no_reading(lm, trained):
    form = Form.of(trained)
    shuffled = replace(form, W_dec=form.W_dec[torch.randperm(form.d_sae, generator=torch.Generator().manual_seed(0))])
    sae = shuffled.sae()
    sae.origin = trained.origin
    found = sl.verify(sae, lm, tokens=1024)
    assert not found.healthy and found.verdict.startswith("No reading explains the activations")
    assert any("nothing in common" in remark for remark in found.remarks)


def test_a_rule_of_ones_own_is_not_verified(lm):
    sae = sl.build("temporal_mask", d_in=lm.d_model, d_sae=64, inference="important")
    with pytest.raises(ValueError, match="a rule of its own"):
        sl.verify(sae, lm, site="L2R")
