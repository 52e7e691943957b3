"""SAEs as SAEBench 0.6 uses them: what it asks of one, and that nothing of the SAE itself is lost on the way."""

import sys
from dataclasses import asdict, dataclass
from types import ModuleType, SimpleNamespace

import pytest
import torch

from sae_lab.pretrained import saebench
from sae_lab.pretrained.saebench import for_saebench
from sae_lab.saes import SAE, build

D, F = 16, 48
K = {"k": 6}
KINDS = {
    "relu": {},
    "topk": K,
    "batchtopk": K,
    "jumprelu": {},
    "gated": {},
    "llama_scope": K,  # trained: one threshold
    "llama_scope, untrained": K,  # TopK by value times decoder norm
    "groupmax": K,
    "matryoshka": K,
}


def made(kind: str, **knobs) -> SAE:
    """Biases everywhere, decoder norms between a third and three, and a few latents per token."""
    name, g = kind.split(",")[0], torch.Generator().manual_seed(1)
    sae = build(name, d_in=D, d_sae=F, **KINDS[kind] | knobs)
    norms = torch.linspace(1 / 3, 3, F)[torch.randperm(F, generator=g), None]
    with torch.no_grad():
        sae.W_enc /= sae.W_enc.norm(dim=1, keepdim=True)
        sae.W_dec *= norms / sae.W_dec.norm(dim=1, keepdim=True)
        for bias in (sae.b_enc, sae.b_dec, getattr(sae, "b_mag", None), getattr(sae, "r_mag", None)):
            if bias is not None:
                bias.copy_(0.3 * torch.randn(bias.shape, generator=g))
        if hasattr(sae, "log_threshold"):
            sae.log_threshold.copy_(torch.rand(F, generator=g))
        if name in ("batchtopk", "matryoshka") or kind == "llama_scope":
            sae.threshold.fill_(1.5)
    sae.origin = {"site": "L3R", "context": 256}
    return sae


@pytest.fixture
def x():
    return 2 * torch.randn(3, 7, D, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_what_was_encoded_is_what_the_sae_gives(kind, x):
    sae = made(kind)
    theirs = for_saebench(sae, "pythia-70m-deduped")
    z, exact = theirs.encode(x), sae.encode(x)
    assert z.shape == (3, 7, F)
    assert 0.02 < (z > 0).float().mean() < 0.6  # else nothing was compared
    torch.testing.assert_close(theirs.decode(z), sae(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(theirs(x), sae(x), atol=1e-5, rtol=1e-5)
    norms = sae.W_dec.norm(dim=1)
    torch.testing.assert_close(z, exact.dense() * norms, atol=1e-5, rtol=1e-5)
    assert norms.max() / norms.min() > 5


@pytest.mark.parametrize("kind", KINDS)
def test_rows_and_texts_of_tokens_give_the_same(kind, x):
    theirs = for_saebench(made(kind), "m")
    flat = theirs.encode(x.flatten(0, 1))
    assert flat.shape == (21, F)
    torch.testing.assert_close(flat.view(3, 7, F), theirs.encode(x))
    torch.testing.assert_close(theirs(x.flatten(0, 1)).view(3, 7, D), theirs(x))
    assert theirs.encode(x[:0]).shape == (0, 7, F)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_have_the_names_shapes_and_unit_rows_that_are_asked_for(kind):
    sae = made(kind)
    theirs = for_saebench(sae, "m")
    shapes = {name: tuple(p.shape) for name, p in theirs.named_parameters()}
    more = {"b_mag": (F,)} if kind == "gated" else {}
    assert shapes == {"W_enc": (D, F), "W_dec": (F, D), "b_enc": (F,), "b_dec": (D,)} | more
    torch.testing.assert_close(theirs.W_dec.norm(dim=1), torch.ones(F), atol=1e-5, rtol=0)
    torch.testing.assert_close(theirs.W_dec * sae.W_dec.norm(dim=1)[:, None], sae.W_dec)
    assert not any(p.requires_grad for p in theirs.parameters())


@pytest.mark.parametrize("centred", [True, False])
def test_the_weights_shown_are_those_that_give_the_latents(x, centred):
    theirs = for_saebench(made("relu", centred=centred), "m")
    assert theirs.cfg.apply_b_dec_to_input is centred
    shown = ((x - theirs.b_dec * centred) @ theirs.W_enc + theirs.b_enc).relu()
    torch.testing.assert_close(theirs.encode(x), shown, atol=1e-5, rtol=1e-5)


def test_an_sae_without_encoder_biases_shows_zeros():
    sae = made("batchtopk")
    assert sae.b_enc is None
    assert torch.equal(for_saebench(sae, "m").b_enc, torch.zeros(F))


def test_a_decoder_row_of_zeros_breaks_nothing(x):
    sae = made("relu")
    sae.W_dec.data[4] = 0
    theirs = for_saebench(sae, "m")
    assert torch.equal(theirs.W_dec[4], torch.zeros(D))
    torch.testing.assert_close(theirs(x), sae(x), atol=1e-5, rtol=1e-5)


def test_tokens_are_encoded_a_few_at_a_time(x, monkeypatch):
    sae = made("topk")
    theirs, whole, seen = for_saebench(sae, "m"), sae(x), []
    encode = type(sae).encode

    def watched(self, x):
        seen.append(len(x))
        return encode(self, x)

    monkeypatch.setattr(type(sae), "encode", watched)
    monkeypatch.setattr(saebench, "AT_ONCE", 4 * F)
    torch.testing.assert_close(theirs.decode(theirs.encode(x)), whole, atol=1e-5, rtol=1e-5)
    assert seen == [4, 4, 4, 4, 4, 1]
    torch.testing.assert_close(theirs(x), whole, atol=1e-5, rtol=1e-5)
    assert seen[6:] == [4, 4, 4, 4, 4, 1]
    monkeypatch.setattr(saebench, "AT_ONCE", 1)
    assert theirs.encode(x[0]).shape == (7, F) and seen[12:] == [1] * 7


@pytest.mark.parametrize("how", ["to", "method", "argument"])
def test_its_precision_is_what_goes_in_and_out_and_the_choice_of_latents_stays_exact(x, how):
    sae = made("topk")
    theirs = for_saebench(sae, "m", dtype=torch.bfloat16 if how == "argument" else torch.float32)
    if how != "argument":
        assert theirs.dtype == torch.float32 and theirs.cfg.dtype == "float32"
        assert (theirs.to(dtype=torch.bfloat16) if how == "to" else theirs.bfloat16()) is theirs
    x = x.bfloat16()
    z = theirs.encode(x)
    assert theirs.dtype == z.dtype == theirs(x).dtype == theirs.W_enc.dtype == torch.bfloat16
    assert theirs.cfg.dtype == "bfloat16" and theirs.cfg.to_dict()["dtype"] == "bfloat16"
    assert torch.equal(z > 0, sae.encode(x.float()).dense() > 0)
    exact = sae.encode(x.float()).dense() * sae.W_dec.norm(dim=1)
    assert torch.equal(z, exact.bfloat16())
    assert sae.W_dec.dtype == torch.float32


def test_moving_it_moves_all_of_it_and_nothing_of_the_sae():
    sae = made("jumprelu")
    theirs = for_saebench(sae, "m")
    theirs.to("meta")
    assert theirs.device.type == theirs.cfg.device == "meta"
    exact, norms = theirs._exact
    assert {t.device.type for t in (*exact.parameters(), *exact.buffers(), norms)} == {"meta"}
    assert {p.device.type for p in (*sae.parameters(), *sae.buffers())} == {"cpu"}


def test_gradients_reach_what_is_read_and_a_mask_on_latents(x):
    theirs = for_saebench(made("relu"), "m")
    mask = torch.ones(F, requires_grad=True)
    theirs.decode(theirs.encode(x) * mask).square().sum().backward()
    assert mask.grad.abs().sum() > 0
    read = x.clone().requires_grad_()
    theirs(read).sum().backward()
    assert read.grad.abs().sum() > 0


def test_the_config_says_where_and_what():
    cfg = for_saebench(made("topk"), "llama").cfg
    assert (cfg.model_name, cfg.d_in, cfg.d_sae) == ("llama", D, F)
    assert (cfg.hook_layer, cfg.hook_name) == (3, "blocks.3.hook_resid_post")
    assert (cfg.architecture, cfg.context_size, cfg.dtype, cfg.device) == ("topk", 256, "float32", "cpu")
    said = cfg.to_dict()
    assert "metadata" not in said and said["hook_name"] == cfg.hook_name and said["activation_fn_kwargs"] == {}
    cfg.metadata.hook_layer = 3  # as SAEBench back-fills it


def test_saebench_is_asked_for_its_own_config_where_it_is(monkeypatch):
    @dataclass
    class CustomSAEConfig:
        model_name: str
        d_in: int
        d_sae: int
        hook_layer: int
        hook_name: str
        context_size: int = None
        architecture: str = ""
        apply_b_dec_to_input: bool = None
        dtype: str = ""
        device: str = ""

        def to_dict(self):
            return asdict(self)

    for name in ("sae_bench", "sae_bench.custom_saes"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    module = SimpleNamespace(CustomSAEConfig=CustomSAEConfig)
    monkeypatch.setitem(sys.modules, "sae_bench.custom_saes.custom_sae_config", module)
    cfg = for_saebench(made("gated"), "m").cfg
    assert type(cfg) is CustomSAEConfig
    said = {"model_name": "m", "d_in": D, "d_sae": F, "hook_layer": 3, "hook_name": "blocks.3.hook_resid_post"}
    said |= {"context_size": 256, "architecture": "gated", "apply_b_dec_to_input": True}
    assert cfg.to_dict() == said | {"dtype": "float32", "device": "cpu"}


@pytest.mark.parametrize(
    ("site", "asked", "found"),
    [
        ("L7M", {}, (7, "blocks.7.hook_mlp_out")),
        ("L7A", {"layer": 7}, (7, "blocks.7.hook_attn_out")),
        (None, {"layer": 4}, (4, "blocks.4.hook_resid_post")),
        (None, {"hook_name": "blocks.5.hook_mlp_out"}, (5, "blocks.5.hook_mlp_out")),
        ("L7M", {"hook_name": "blocks.5.hook_mlp_out"}, (5, "blocks.5.hook_mlp_out")),
        (None, {"hook_name": "hook_embed", "layer": 0}, (0, "hook_embed")),
    ],
)
def test_the_place_is_what_was_asked_for_else_where_it_was_trained(site, asked, found):
    sae = made("relu")
    sae.origin = {"site": site} if site else {}
    cfg = for_saebench(sae, "m", **asked).cfg
    assert (cfg.hook_layer, cfg.hook_name) == found


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({}, "does not say which site"),
        ({"hook_name": "hook_embed"}, "names no layer"),
        ({"layer": 4, "hook_name": "blocks.5.hook_mlp_out"}, "layer=4 and 'blocks.5.hook_mlp_out'.* differ"),
    ],
)
def test_a_place_that_is_not_said_or_said_twice_is_refused(asked, why):
    sae = made("relu")
    sae.origin = {}
    with pytest.raises(ValueError, match=why):
        for_saebench(sae, "m", **asked)
    sae.origin = {"site": "L3R"}
    with pytest.raises(ValueError, match="differ"):
        for_saebench(sae, "m", layer=5)


@pytest.mark.parametrize("scaling", ["layer_norm", "norm"])
def test_scaling_by_token_is_refused_with_the_reason(scaling):
    with pytest.raises(ValueError, match=f"per_token='{scaling}'.*decodes from latents alone"):
        for_saebench(made("relu", per_token=scaling), "m")


def test_transcoders_are_refused_with_the_reason():
    with pytest.raises(ValueError, match=r"transcode=True.*puts x_hat where x was read"):
        for_saebench(made("relu", transcode=True), "m")
