"""Attribution against arithmetic: on a model that is linear behind the site both estimates are the same number."""

import copy
import json

import numpy as np
import pytest
import torch
from small import identity, small_llama
from torch import nn

import sae_lab as sl
from sae_lab.cli import main

PROMPT = "Anna has seven pears, and Bruno"


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return small_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def linear(tmp_path_factory):
    """Behind L1R only sums: layer 2 averages over the places before, norms divide by a constant, its MLP is silent."""
    made = small_llama(tmp_path_factory.mktemp("linear"))
    layer = made.module.model.layers[2]
    with torch.no_grad():
        layer.mlp.down_proj.weight.zero_()
        layer.self_attn.q_proj.weight.zero_()
        for norm in (layer.input_layernorm, made.module.model.norm):
            norm.variance_epsilon = 1e10
            norm.weight.fill_(1e5)
    return made


@pytest.fixture(scope="module")
def sae():
    """Sparse, with an error and a bias: no part of the sum is nothing."""
    made = identity()
    with torch.no_grad():
        made.b_enc.fill_(-0.4)
        made.b_dec.copy_(torch.linspace(-0.3, 0.2, 32))
        made.W_dec.mul_(torch.linspace(0.5, 1.5, 64)[:, None])
    made.origin = {"site": "L1R", "text": "world"}
    return made


def test_on_a_linear_model_gradients_and_ablations_agree_and_add_up(linear, sae):
    for of in ((" was", " is"), (" was",)):
        found = sl.attribute(sae, linear, PROMPT, of, top=30)
        assert list(found.table.node) == ["latent"] * 30 + ["rest", "error", "bias", "total"]
        gradient, ablation = found.table.gradient_x_activation, found.table.ablation
        assert gradient.tolist() == pytest.approx(ablation.tolist(), abs=2e-3 * ablation.abs().max())
        assert ablation[:-1].sum() == pytest.approx(ablation.iloc[-1], rel=2e-3)
        assert found.completeness == pytest.approx(1, rel=2e-3)
        assert ablation[:-1].abs().min() > 0
        assert found.table[:30].position.nunique() > 3  # the last place alone would be no test of attention


def test_on_a_model_that_is_not_linear_they_do_not_agree(lm, sae):
    found = sl.attribute(sae, lm, PROMPT, (" was", " is"))
    assert abs(found.completeness - 1) > 0.02
    total = found.table.iloc[-1]
    assert found.completeness * total.ablation == pytest.approx(total.gradient_x_activation)
    assert not torch.allclose(*(torch.tensor(found.table[c].tolist()) for c in ("gradient_x_activation", "ablation")))


def test_gradient_x_activation_of_all_parts_is_that_of_the_activation(lm, sae):
    """The sum over parts is <gradient, x> at every place that counts, whatever the SAE."""
    ids, _ = lm.encode(PROMPT)
    he, she = (lm.tokenizer(w, add_special_tokens=False).input_ids[0] for w in (" was", " is"))
    gradient, x = lm.gradients(ids, "L1R", of=(he, she)), lm.read(ids, "L1R")["L1R"]
    expected = (gradient * x)[0, 1:].sum().item()
    table = sl.attribute(sae, lm, PROMPT, (" was", " is")).table
    assert table.gradient_x_activation[:-1].sum() == pytest.approx(expected, rel=1e-4)
    assert table.gradient_x_activation.iloc[-1] == pytest.approx(expected, rel=1e-4)


def test_ablation_is_what_a_splice_without_the_latent_gives(lm, sae):
    """Each row, and the error node, by hand: one run with the activation less what the part writes."""
    table = sl.attribute(sae, lm, PROMPT, (" was",), top=5).table
    ids, _ = lm.encode(PROMPT)
    token = lm.tokenizer(" was", add_special_tokens=False).input_ids[0]
    clean = lm.logits(ids)[0, -1, token].item()
    for row in table[:5].itertuples():

        def without(x, row=row):
            x = x.clone()
            x[:, row.position] -= row.activation * sae.W_dec[row.latent].detach()
            return x

        assert row.ablation == pytest.approx(
            clean - lm.splice(ids, "L1R", without).logits[0, -1, token].item(), abs=2e-3
        )
    spliced = lm.splice(ids, "L1R", sae).logits[0, -1, token].item()
    assert table[table.node == "error"].ablation.item() == pytest.approx(clean - spliced, abs=2e-3)
    zeros = lm.splice(ids, "L1R", torch.zeros_like).logits[0, -1, token].item()
    assert table[table.node == "total"].ablation.item() == pytest.approx(clean - zeros, abs=2e-3)


def test_the_loss_is_that_of_the_prompt_and_a_batch_of_any_size_gives_the_same(lm, sae, monkeypatch):
    found = sl.attribute(sae, lm, PROMPT, top=7)
    ids, _ = lm.encode(PROMPT)
    logp = lm.logits(ids)[0, :-1].log_softmax(-1)
    assert found.clean == pytest.approx(-logp.gather(1, ids[0, 1:, None]).sum().item(), rel=1e-4)
    monkeypatch.setattr(type(lm), "at_once", 1)
    one_by_one = sl.attribute(sae, lm, PROMPT, top=7).table
    assert one_by_one.ablation.tolist() == pytest.approx(found.table.ablation.tolist(), abs=2e-3)


def test_rows_say_which_token_and_the_largest_come_first(lm, sae):
    found = sl.attribute(sae, lm, PROMPT, (" was", " is"), top=12)
    rows = found.table[:12]
    assert rows.gradient_x_activation.abs().is_monotonic_decreasing
    ids, _ = lm.encode(PROMPT)
    pair = tuple(lm.tokenizer(w, add_special_tokens=False).input_ids[0] for w in (" was", " is"))
    z = sae.encode(lm.read(ids, "L1R")["L1R"][0, 1:]).dense()
    every = (z * (lm.gradients(ids, "L1R", of=pair)[0, 1:] @ sae.W_dec.T)).detach().flatten().numpy()
    largest = every[np.argsort(-np.abs(every))[:12]]
    assert rows.gradient_x_activation.tolist() == pytest.approx(largest.tolist(), rel=1e-3) and largest.min() < 0
    words = [
        "",
        *(
            PROMPT[a:b]
            for a, b in lm.tokenizer(PROMPT, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        ),
    ]
    assert rows.token.tolist() == [words[p] for p in rows.position]
    assert rows.position.min() > 0  # nothing is read at BOS
    assert found.latents.latent.is_unique
    assert found.latents.gradient_x_activation.sum() == pytest.approx(rows.gradient_x_activation.sum())
    many = sl.attribute(sae, lm, PROMPT, (" was", " is"), top=60)
    assert len(many.latents) < 50 and many.latents.latent.is_unique  # the same latents at several places
    assert many.latents.ablation.sum() == pytest.approx(many.table.ablation[:60].sum())
    assert found.latents.gradient_x_activation.abs().is_monotonic_decreasing
    assert {len(trace.x) for trace in found.figure.data} == {15} and len(found.figure.data) == 2  # all but the total
    assert "logit of ' was' less ' is'" in repr(found)
    assert json.loads(json.dumps(found.to_json()))["table"][-1]["node"] == "total"


def test_a_transcoder_is_attributed_to_what_it_writes(lm):
    """The parts add up to the MLP's output, the linear path among the bias."""
    made = sl.build("topk", d_in=32, d_sae=64, k=4, transcode=True, skip=True)
    nn.init.normal_(made.W_skip, std=0.1)
    table = sl.attribute(made, lm, PROMPT, (" was",), site="L1TC").table
    ids, _ = lm.encode(PROMPT)
    token = lm.tokenizer(" was", add_special_tokens=False).input_ids[0]
    spliced = lm.splice(ids, "L1TC", made)
    expected = (lm.logits(ids) - spliced.logits)[0, -1, token].item()
    assert table[table.node == "error"].ablation.item() == pytest.approx(expected, abs=2e-3)
    assert table.gradient_x_activation[:-1].sum() == pytest.approx(table.gradient_x_activation.iloc[-1], rel=1e-3)


def test_a_fault_in_one_direction_shows(linear, sae, monkeypatch):
    """Were activations not multiplied in, or the error left out, the sum would not be the total."""
    broken = copy.deepcopy(sae)
    monkeypatch.setattr(type(broken), "reconstruct", lambda self, z, x: x)  # an error of nothing
    table = sl.attribute(broken, linear, PROMPT, (" was",)).table
    assert table.gradient_x_activation[:-1].sum() != pytest.approx(table.gradient_x_activation.iloc[-1], rel=0.05)


@pytest.mark.parametrize(
    ("prompt", "of", "said"),
    [
        (PROMPT, (" wasxyzzy", " is"), "tokens of .*single token"),
        (PROMPT, (" was", " is", " a"), "names 3 tokens"),
        (PROMPT, (" was", " was"), "twice"),
        ("", "ce", "nothing is predicted"),
        ("A" * 4000, "ce", "context"),
    ],
)
def test_what_cannot_be_attributed_says_why(lm, sae, prompt, of, said):
    with pytest.raises(ValueError, match=said):
        sl.attribute(sae, lm, prompt, of)


def test_a_prompt_of_special_tokens_is_refused(lm, sae):
    with pytest.raises(ValueError, match="special tokens alone"):
        sl.attribute(sae, lm, lm.tokenizer.bos_token, (" was",))


def test_an_sae_of_another_width_is_refused(lm):
    other = sl.build("topk", d_in=16, d_sae=64, k=4)
    with pytest.raises(ValueError, match=r"d_in=16, but .* has 32 at L1R"):
        sl.attribute(other, lm, PROMPT, site="L1R")
    with pytest.raises(ValueError, match=r"d_in=16, but .* has 32 at L1R"):
        sl.contexts(other, lm, site="L1R")


def test_the_command_line_attributes(lm, sae, capsys, tmp_path):
    sae.origin = {**sae.origin, "model": lm.name}
    folder = str(sl.save_sae(sae, tmp_path / "sae"))
    assert main(["attribute", folder, PROMPT, "--of", " was", " is", "--top", "3", "--json"]) == 0
    table = json.loads(capsys.readouterr().out)["table"]
    assert [row["node"] for row in table] == ["latent"] * 3 + ["rest", "error", "bias", "total"]
    assert main(["attribute", folder, PROMPT, "--top", "2"]) == 0
    assert "CE" in capsys.readouterr().out
    assert main(["attribute", folder, PROMPT, "--of", "qwertyuiop"]) == 2
