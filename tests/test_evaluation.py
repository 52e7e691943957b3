"""Evaluation of SAEs whose numbers are known: one changes nothing, one returns nothing, one returns the mean."""

import numpy as np
import pytest
import torch
from small import identity, small_llama

from sae_lab import evaluate
from sae_lab.reading import walk
from sae_lab.sites import Site
from sae_lab.tokens import token_blocks

SITE, TEXT = "L1R", [f"A text about number {i} and what came after {i * 7 % 31}." for i in range(400)]
SMALL = {"text": TEXT, "split": "test", "tokens": 1500, "spliced": 600, "context": 64}


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return small_llama(tmp_path_factory.mktemp("llama"))


def constant(value, d_in=32):
    sae = identity(d_in)
    with torch.no_grad():
        sae.W_dec.zero_()
        sae.b_dec.copy_(value)
    return sae


def activations(lm):
    blocks = token_blocks(lm.tokenizer, text=TEXT, split="test", context=64)
    return torch.cat([page.acts[SITE] for page in walk(lm, blocks, [Site(SITE)], 1500)])


def test_an_sae_that_changes_nothing_costs_nothing(lm):
    e = evaluate(identity(), lm, site=SITE, **SMALL)
    assert e.fvu.value == pytest.approx(0, abs=1e-9)
    assert e.ce_recovered.value == pytest.approx(1, abs=1e-5)
    assert e.kl.value == pytest.approx(0, abs=1e-5)
    assert e.cosine.value == pytest.approx(1, abs=1e-5)
    assert e.l0.value == pytest.approx(32, abs=1e-6)
    assert e.dead.value == 0


def test_zeros_recover_nothing(lm):
    e = evaluate(constant(torch.zeros(32)), lm, site=SITE, **SMALL)
    assert e.ce_recovered.value == pytest.approx(0, abs=1e-5)
    assert e.ce_spliced.value == pytest.approx(e.ce_zero.value)
    assert e.fvu.value > 1


def test_the_mean_explains_no_variance(lm):
    e = evaluate(constant(activations(lm).mean(0)), lm, site=SITE, **SMALL)
    assert e.fvu.value == pytest.approx(1, abs=1e-4)
    assert e.ce_recovered_mean.value == pytest.approx(0, abs=1e-3)


def test_fvu_is_one_division_over_the_whole_set(lm):
    torch.manual_seed(1)
    sae, x = identity(), activations(lm).double()
    with torch.no_grad():
        sae.W_dec += 0.2 * torch.randn_like(sae.W_dec)
        error = (sae(x.float()).double() - x).square().sum()
    plain = error / (x - x.mean(0)).square().sum()
    assert evaluate(sae, lm, site=SITE, **SMALL).fvu.value == pytest.approx(plain.item(), rel=1e-5)


def test_dead_latents_and_density_are_counted_on_this_text(lm):
    sae = identity()
    with torch.no_grad():
        sae.b_enc[:8] = -1e9
    e = evaluate(sae, lm, site=SITE, **SMALL)
    assert e.dead.value == 8 / 64
    assert (e.density[:8] == 0).all()
    assert e.density[8:].sum() == pytest.approx(e.l0.value)


def test_every_interval_holds_its_value_and_the_table_says_what_it_means(lm):
    e = evaluate(identity(), lm, site=SITE, **SMALL)
    assert all(n.low <= n.value <= n.high for n in e.numbers.values())
    assert e.table.meaning.str.len().min() > 5
    assert set(e.to_json()) == {*e.numbers, "about"}
    assert np.isfinite(e.table.value).all()


def test_rows_are_as_long_as_the_model_takes(lm):
    """The default row of 512 tokens is more than this model reads at once (128)."""
    one = {key: value for key, value in SMALL.items() if key != "context"} | {"text": [" ".join(TEXT)], "split": "all"}
    assert evaluate(identity(), lm, site=SITE, **one).about["tokens"] > 1000


def test_an_sae_without_a_home_is_asked_for_one(lm):
    with pytest.raises(ValueError, match="site='L3R'"):
        evaluate(identity(), lm, **SMALL)


def test_an_sae_of_another_width_is_refused(lm):
    with pytest.raises(ValueError, match="d_in=16"):
        evaluate(identity(16), lm, site=SITE, **SMALL)


def test_a_short_text_is_read_once(lm):
    """Reading it again would count its documents twice and make intervals too narrow."""
    few = {**SMALL, "text": TEXT[:60], "tokens": 10**6, "spliced": 10**6, "split": "all"}
    e = evaluate(identity(), lm, site=SITE, **few)
    assert e.about["documents"] == 60
    assert e.about["tokens"] == sum(len(lm.tokenizer(t, add_special_tokens=False).input_ids) for t in TEXT[:60])
