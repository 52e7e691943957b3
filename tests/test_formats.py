"""Other tools' files, made here with weights whose decoder norms differ, against each format's own definition."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sae_lab import pretrained
from sae_lab.pretrained import Form
from sae_lab.saes import build

D, F = 16, 48


@pytest.fixture
def w():
    """Weights as a trainer leaves them: decoder norms between a third and three."""
    g = torch.Generator().manual_seed(1)
    norms = torch.linspace(1 / 3, 3, F)[torch.randperm(F, generator=g)]
    rows = torch.nn.functional.normalize(torch.randn(F, D, generator=g), dim=1)
    return SimpleNamespace(
        W_enc=rows * torch.rand(F, 1, generator=g).add(0.5),
        W_dec=rows * norms[:, None],
        b_enc=0.2 * torch.randn(F, generator=g),
        b_dec=0.5 * torch.randn(D, generator=g),
        theta=torch.rand(F, generator=g) * 0.5 + 0.1,
        r_mag=0.3 * torch.randn(F, generator=g),
        b_mag=0.2 * torch.randn(F, generator=g),
        W_skip=0.1 * torch.randn(D, D, generator=g),
        x=3 * torch.randn(200, D, generator=g),
    )


def put(folder, said, tensors, config="config.json", weights="sae_weights.safetensors"):
    (folder / weights).parent.mkdir(parents=True, exist_ok=True)
    if said is not None:
        (folder / config).write_text(json.dumps(said))
    tensors = {name: t.contiguous().clone() for name, t in tensors.items()}
    if weights.endswith(".npz"):
        np.savez(folder / weights, **{name: t.numpy() for name, t in tensors.items()})
    elif weights.endswith(("pt", "pth")):
        torch.save(tensors, folder / weights)
    else:
        save_file(tensors, folder / weights)
    return folder


def top(h, k):
    best = h.topk(k, dim=-1)
    return torch.zeros_like(h).scatter(-1, best.indices, best.values.relu())


def same(folder, x, z, x_hat, name):
    """Our reading of a folder, against latents and reconstructions of its own definition."""
    sae = pretrained.read(folder).sae()
    assert sae.origin["format"] == name
    ours = sae.encode(x)
    torch.testing.assert_close(sae.reconstruct(ours, x), x_hat, atol=1e-5, rtol=1e-5)
    if z is not None:
        torch.testing.assert_close(ours.dense(), z, atol=1e-5, rtol=1e-5)
        assert (z > 0).sum(1).float().mean() > 1  # else nothing was compared
    return sae


# Llama Scope


def llama_scope(folder, w, norms, part="R", **said):
    hook = {"R": "hook_resid_post", "TC": "ln2.hook_normalized"}[part]
    out = "hook_mlp_out" if part == "TC" else hook
    said = {
        "d_model": D, "d_sae": F, "expansion_factor": 3,
        "hook_point_in": f"blocks.5.{hook}", "hook_point_out": f"blocks.5.{out}",
        "act_fn": "jumprelu", "jump_relu_threshold": 0.3, "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": norms, "use_decoder_bias": True, "apply_decoder_bias_to_pre_encoder": False,
        "sparsity_include_decoder_norm": True, "top_k": 50, "use_glu_encoder": False,
    } | said  # fmt: skip
    tensors = {"encoder.weight": w.W_enc, "encoder.bias": w.b_enc, "decoder.weight": w.W_dec.T, "decoder.bias": w.b_dec}
    return put(folder, said, tensors, "hyperparams.json", "checkpoints/final.safetensors")


@pytest.mark.parametrize(("part", "norms"), [("R", {"in": 6.3, "out": 6.3}), ("TC", {"in": 4.0, "out": 0.7})])
def test_llama_scope_fires_as_its_trainer_does_where_decoder_norms_differ(tmp_path, w, part, norms):
    """In the units of training: active iff pre |W_dec| > theta s_out (formats.md A 2.4 and B 2a)."""
    s_in, s_out = math.sqrt(D) / norms["in"], math.sqrt(D) / norms["out"]
    pre, n = (s_in * w.x) @ w.W_enc.T + w.b_enc, w.W_dec.norm(dim=1)
    z = pre * (pre * n > 0.3 * s_out)
    sae = same(
        llama_scope(tmp_path, w, norms, part), w.x, z * n / s_out, (z @ w.W_dec + w.b_dec) / s_out, "llama_scope"
    )
    assert sae.name == "llama_scope" and sae.origin["site"] == f"L5{part}" and sae.cfg.transcode == (part == "TC")
    assert sae.origin["stated"] == {"l0": 50.0}


def test_llama_scope_folded_as_the_official_loader_does(tmp_path, w):
    """The order of from_config: scale, then decoder norms, then a threshold in raw units."""
    norms = {"in": 9.0, "out": 5.0}
    s_in, s_out = math.sqrt(D) / norms["in"], math.sqrt(D) / norms["out"]
    b_enc, b_dec, W_dec = w.b_enc / s_in, w.b_dec / s_out, w.W_dec * s_in / s_out
    n = W_dec.norm(dim=1)
    h = w.x @ (w.W_enc * n[:, None]).T + b_enc * n
    z = h * (h > 0.3)
    same(llama_scope(tmp_path, w, norms), w.x, z, z @ (W_dec / n[:, None]) + b_dec, "llama_scope")


def test_llama_scope_in_bf16_and_without_the_norms_in_the_gate(tmp_path, w):
    half = SimpleNamespace(**{name: t.bfloat16() for name, t in vars(w).items()})
    folder = llama_scope(tmp_path, half, {"in": 4.0, "out": 4.0}, sparsity_include_decoder_norm=False)
    pre = w.x @ half.W_enc.float().T + half.b_enc.float()
    z = pre * (pre > 0.3)
    same(folder, w.x, z, z @ half.W_dec.float() + half.b_dec.float(), "llama_scope")


# Llamascopium and R1-Distill


def test_r1_distill_has_a_threshold_per_latent_in_units_of_training(tmp_path, w):
    tensors = {"encoder.weight": w.W_enc, "encoder.bias": w.b_enc, "decoder.weight": w.W_dec.T, "decoder.bias": w.b_dec}
    said = {"d_model": D, "expansion_factor": 3, "hook_point_in": "blocks.2.hook_resid_post"}
    folder = put(tmp_path, said, tensors | {"log_jumprelu_threshold": w.theta.log()})
    with pytest.raises(ValueError, match=r"does not say that norm.*load_sae\(\.\.\., norm="):
        pretrained.read(folder)
    s = math.sqrt(D) / 7.0
    pre = s * w.x @ w.W_enc.T + w.b_enc
    z = pre * (pre > w.theta)
    sae = pretrained.read(folder, norm={"in": 7.0}).sae()
    torch.testing.assert_close(sae.encode(w.x).dense(), z, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sae(w.x), (z @ w.W_dec + w.b_dec) / s, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("by_norm", [False, True])
@pytest.mark.parametrize("act", ["jumprelu", "topk", "relu"])
@pytest.mark.parametrize("mode", ["dataset-wise", "token-wise", "inference"])
def test_llamascopium_by_its_own_reconstruction(tmp_path, w, act, by_norm, mode):
    said = {"sae_type": "sae", "d_model": D, "expansion_factor": 3.0, "act_fn": act, "norm_activation": mode}
    said |= {"sparsity_include_decoder_norm": by_norm, "top_k": 6, "hook_point_in": "blocks.1.hook_mlp_out"}
    said["hook_point_out"] = said["hook_point_in"]
    tensors = {"W_E": w.W_enc.T, "b_E": w.b_enc, "W_D": w.W_dec, "b_D": w.b_dec}
    tensors["dataset_average_activation_norm.blocks.1.hook_mlp_out"] = torch.tensor(5.0)
    if act == "jumprelu":
        tensors["activation_function.log_jumprelu_threshold"] = w.theta.log()
    scale = {
        "dataset-wise": math.sqrt(D) / 5.0,
        "token-wise": math.sqrt(D) / w.x.norm(dim=1, keepdim=True),
        "inference": 1.0,
    }[mode]
    h, n = (scale * w.x) @ w.W_enc.T + w.b_enc, w.W_dec.norm(dim=1) if by_norm else 1.0
    g = {"jumprelu": lambda v: v * (v > w.theta), "topk": lambda v: top(v, 6), "relu": torch.relu}[act](h * n)
    same(put(tmp_path, said, tensors), w.x, g / n, (g / n @ w.W_dec + w.b_dec) / scale, "llamascopium")


def test_llamascopium_in_a_pickle(tmp_path, w):
    said = {"sae_type": "sae", "d_model": D, "expansion_factor": 3.0, "act_fn": "relu", "norm_activation": "inference"}
    said |= {"hook_point_in": "blocks.1.hook_mlp_out", "hook_point_out": "blocks.1.hook_mlp_out"}
    tensors = {"W_E": w.W_enc.T, "b_E": w.b_enc, "W_D": w.W_dec, "b_D": w.b_dec}
    (tmp_path / "config.json").write_text(json.dumps(said))
    torch.save({"sae": {name: t.contiguous() for name, t in tensors.items()}, "step": 1}, tmp_path / "sae_weights.pt")
    z = (w.x @ w.W_enc.T + w.b_enc).relu()
    same(tmp_path, w.x, z, z @ w.W_dec + w.b_dec, "llamascopium")


# SAELens


def saelens(folder, w, architecture, tensors, **said):
    metadata = {"sae_lens_version": "6.5.0", "hook_name": "blocks.3.hook_resid_post", "model_name": "m"}
    whole = {"architecture": architecture, "d_in": D, "d_sae": F, "dtype": "float32", "device": "cpu"}
    whole |= {"apply_b_dec_to_input": True, "normalize_activations": "none", "reshape_activations": "none"}
    tensors = {"W_enc": w.W_enc.T, "W_dec": w.W_dec, "b_dec": w.b_dec} | tensors
    return put(folder, whole | {"metadata": metadata} | said, tensors, "cfg.json")


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize(
    "name", ["standard", "topk", "topk by norm", "jumprelu", "gated", "batchtopk", "jumprelu in training"]
)
def test_saelens_by_its_own_forward(tmp_path, w, name, centred):
    given = w.x - w.b_dec * centred
    h, n = given @ w.W_enc.T + w.b_enc, w.W_dec.norm(dim=1)
    more, tensors, architecture = {"apply_b_dec_to_input": centred}, {"b_enc": w.b_enc}, name.split()[0]
    values = None  # what latents are worth, where that differs from what is decoded
    if name == "standard":
        z = h.relu()
    elif name == "topk":
        z, more = top(h, 5), more | {"k": 5, "rescale_acts_by_decoder_norm": False}
    elif name == "topk by norm":
        values, more = top(h * n, 5), more | {"k": 5, "rescale_acts_by_decoder_norm": True}
        z = values / n
    elif name == "gated":
        open_, v = given @ w.W_enc.T + w.b_enc > 0, given @ (w.W_enc.T * w.r_mag.exp()) + w.b_mag
        z, tensors = open_ * v.relu(), {"b_gate": w.b_enc, "b_mag": w.b_mag, "r_mag": w.r_mag}
    elif name == "batchtopk":
        tensors |= {"topk_threshold": torch.tensor(0.4, dtype=torch.float64)}
        z, more = h.relu() * (h > torch.tensor(0.4)), more | {"k": 5, "rescale_acts_by_decoder_norm": False}
    else:
        z = h.relu() * (h > w.theta)
        tensors |= {"threshold": w.theta} if name == "jumprelu" else {"log_threshold": w.theta.log()}
    folder = saelens(tmp_path, w, architecture, tensors, **more)
    sae = same(folder, w.x, z if values is None else values, z @ w.W_dec + w.b_dec, "saelens")
    assert sae.origin["site"] == "L3R" and sae.origin["model"] == "m"


@pytest.mark.parametrize("name", ["transcoder", "skip_transcoder", "jumprelu_transcoder"])
def test_saelens_transcoders(tmp_path, w, name):
    h = w.x @ w.W_enc.T + w.b_enc
    z = h.relu() * (h > w.theta) if "jumprelu" in name else h.relu()
    tensors = {"b_enc": w.b_enc} | ({"threshold": w.theta} if "jumprelu" in name else {})
    x_hat = z @ w.W_dec + w.b_dec
    if "skip" in name:
        tensors["W_skip"], x_hat = w.W_skip, x_hat + w.x @ w.W_skip.T
    same(saelens(tmp_path, w, name, tensors, d_out=D, apply_b_dec_to_input=False), w.x, z, x_hat, "saelens")


@pytest.mark.parametrize("mode", ["layer_norm", "constant_norm_rescale", "expected_average_only_in"])
def test_saelens_norms_of_activations(tmp_path, w, mode):
    w.x[:100] *= 1e-3  # where it matters that 1e-5 is added on the way in alone
    if mode == "layer_norm":
        mean, size = w.x.mean(1, keepdim=True), w.x.std(1, keepdim=True)
    else:
        mean, size = (
            0.0,
            w.x.norm(dim=1, keepdim=True) / math.sqrt(D) if mode == "constant_norm_rescale" else torch.tensor(1 / 0.8),
        )
    folder = saelens(tmp_path, w, "standard", {"b_enc": w.b_enc}, normalize_activations=mode)
    if mode == "expected_average_only_in":
        with pytest.raises(ValueError, match="does not say by how much"):
            pretrained.read(folder)
        (folder / "activation_scaler.json").write_text('{"scaling_factor": 0.8, "has_whitening": false}')
    z = (((w.x - mean) / (size + 1e-5 * (mode == "layer_norm")) - w.b_dec) @ w.W_enc.T + w.b_enc).relu()
    same(folder, w.x, z, (z @ w.W_dec + w.b_dec) * size + mean, "saelens")


def test_a_place_behind_gemmas_norm_is_none_of_ours(tmp_path, w):
    metadata = {"sae_lens_version": "6.5.0", "hook_name": "blocks.3.hook_mlp_out"}
    for model, known in (("meta-llama/Llama-3.1-8B", True), ("google/gemma-2-2b", False)):
        said = {"metadata": metadata | {"model_name": model}}
        found = pretrained.read(saelens(tmp_path / model[-2:], w, "standard", {"b_enc": w.b_enc}, **said)).origin
        assert ("site" in found) == known and ("remarks" in found) != known


def test_saelens_before_version_6(tmp_path, w):
    said = {
        "d_in": D,
        "d_sae": F,
        "hook_point": "blocks.3.hook_resid_post",
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": 4},
    }
    tensors = {"W_enc": w.W_enc.T, "W_dec": w.W_dec, "b_dec": w.b_dec, "b_enc": w.b_enc}
    z = top((w.x - w.b_dec) @ w.W_enc.T + w.b_enc, 4)
    same(put(tmp_path, said, tensors, "cfg.json"), w.x, z, z @ w.W_dec + w.b_dec, "saelens")


# dictionary_learning


@pytest.mark.parametrize(
    "name",
    [
        *("AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "JumpReluAutoEncoder"),
        *("AutoEncoderTopK", "BatchTopKSAE", "unset BatchTopKSAE", "MatryoshkaBatchTopKSAE"),
    ],
)
def test_dictionary_learning_by_its_own_forward(tmp_path, w, name):
    centre = w.x - w.b_dec
    linear = {"encoder.weight": w.W_enc, "decoder.weight": w.W_dec.T}
    h = centre @ w.W_enc.T + w.b_enc
    k, threshold = torch.tensor(5, dtype=torch.int), torch.tensor(-1.0 if "unset" in name else 0.4)
    name = name.removeprefix("unset ")
    tensors, z = {
        "AutoEncoder": ({"bias": w.b_dec, "encoder.bias": w.b_enc, **linear}, h.relu()),
        "AutoEncoderNew": (
            {"encoder.bias": w.b_enc, "decoder.bias": w.b_dec, **linear}, (w.x @ w.W_enc.T + w.b_enc).relu()),
        "GatedAutoEncoder": (
            {"decoder_bias": w.b_dec, "gate_bias": w.b_enc, "mag_bias": w.b_mag, "r_mag": w.r_mag, **linear},
            (h > 0) * (w.r_mag.exp() * (centre @ w.W_enc.T) + w.b_mag).relu()),
        "JumpReluAutoEncoder": (
            {"W_enc": w.W_enc.T, "b_enc": w.b_enc, "W_dec": w.W_dec, "b_dec": w.b_dec, "threshold": w.theta},
            (w.x @ w.W_enc.T + w.b_enc) * (w.x @ w.W_enc.T + w.b_enc > w.theta)),
        "AutoEncoderTopK": (
            {"k": k, "threshold": threshold, "encoder.bias": w.b_enc, "b_dec": w.b_dec, **linear}, top(h.relu(), 5)),
        "BatchTopKSAE": (
            {"k": k, "threshold": threshold, "encoder.bias": w.b_enc, "b_dec": w.b_dec, **linear},
            h.relu() * (h.relu() > threshold)),
        "MatryoshkaBatchTopKSAE": (
            {"W_enc": w.W_enc.T, "b_enc": w.b_enc, "W_dec": w.W_dec, "b_dec": w.b_dec, "k": k, "threshold": threshold,
             "group_sizes": torch.tensor([16, 32])}, h.relu() * (h.relu() > threshold)),
    }[name]  # fmt: skip
    said = {
        "trainer": {"dict_class": name, "layer": 4, "lm_name": "m", "submodule_name": "resid_post_layer_4"},
        "buffer": {"ctx_len": 64},
    }
    sae = same(put(tmp_path, said, tensors, weights="ae.pt"), w.x, z, z @ w.W_dec + w.b_dec, "dictionary_learning")
    assert sae.origin["site"] == "L4R" and sae.origin["context"] == 64
    backup = tmp_path / "backup"
    backup.mkdir()
    (backup / "config.json").write_text(json.dumps(said))
    biases = (
        "bias",
        "encoder.bias",
        "decoder.bias",
        "decoder_bias",
        "gate_bias",
        "mag_bias",
        "b_enc",
        "b_dec",
        "threshold",
    )
    halved = {key: t / 2 if key in biases and (key != "threshold" or t.min() > 0) else t for key, t in tensors.items()}
    torch.save({"ae": halved, "step": 3}, backup / "ae.pt")
    with pytest.raises(ValueError, match="a norm_factor that it does not say"):
        pretrained.read(backup)
    torch.save({"ae": halved, "step": 3, "norm_factor": 2.0}, backup / "ae.pt")
    same(backup, w.x, z, z @ w.W_dec + w.b_dec, "dictionary_learning")


def test_a_topk_of_dictionary_learning_without_its_config_is_not_guessed(tmp_path, w):
    tensors = {"encoder.weight": w.W_enc, "decoder.weight": w.W_dec.T, "encoder.bias": w.b_enc, "b_dec": w.b_dec}
    put(tmp_path, None, tensors | {"k": torch.tensor(5), "threshold": torch.tensor(0.1)}, weights="ae.pt")
    with pytest.raises(ValueError, match="same tensors and choose differently"):
        pretrained.read(tmp_path)


# sparsify


@pytest.mark.parametrize("transcode", [False, True])
@pytest.mark.parametrize("rule", ["topk", "groupmax"])
def test_sparsify_by_its_own_forward(tmp_path, w, rule, transcode):
    k, folder = 6, tmp_path / "layers.7.mlp"
    p = ((w.x if transcode else w.x - w.b_dec) @ w.W_enc.T + w.b_enc).relu()
    if rule == "groupmax":
        best = p.unflatten(-1, (k, F // k)).max(-1)
        index = best.indices + torch.arange(k) * (F // k)
        z = torch.zeros_like(p).scatter(-1, index, best.values)
    else:
        z = top(p, k)
    said = {
        "activation": rule,
        "expansion_factor": 3,
        "normalize_decoder": True,
        "num_latents": 0,
        "k": k,
        "multi_topk": False,
    }
    said |= {"skip_connection": transcode, "transcode": transcode, "d_in": D}
    tensors = {"encoder.weight": w.W_enc, "encoder.bias": w.b_enc, "W_dec": w.W_dec, "b_dec": w.b_dec}
    x_hat = z @ w.W_dec + w.b_dec
    if transcode:
        tensors["W_skip"], x_hat = w.W_skip, x_hat + w.x @ w.W_skip.T
    sae = same(put(folder, said, tensors, "cfg.json", "sae.safetensors"), w.x, z, x_hat, "sparsify")
    if transcode:  # it reads the module's input, with the norm's gain
        assert "site" not in sae.origin and "input" in sae.origin["remarks"][0]
    else:
        assert sae.origin["site"] == "L7M"


# Gemma Scope, OpenAI, Goodfire


def test_gemma_scope_both_releases(tmp_path, w):
    h = w.x @ w.W_enc.T + w.b_enc
    z = h * (h > w.theta)
    tensors = {"W_enc": w.W_enc.T, "W_dec": w.W_dec, "b_enc": w.b_enc, "b_dec": w.b_dec, "threshold": w.theta}
    first = tmp_path / "gemma-scope-2b-pt-res" / "layer_12" / "width_16k" / "average_l0_82"
    sae = same(put(first, None, tensors, weights="params.npz"), w.x, z, z @ w.W_dec + w.b_dec, "gemma_scope")
    assert (sae.origin["model"], sae.origin["site"], sae.origin["stated"]) == (
        "google/gemma-2-2b",
        "L12R",
        {"l0": 82.0},
    )
    lower = {key.lower(): t for key, t in tensors.items()} | {"affine_skip_connection": w.W_skip.T}
    second = tmp_path / "transcoder" / "layer_7_width_16k_l0_small"
    said = {
        "architecture": "jump_relu",
        "model_name": "gemma-v3-1b",
        "hf_hook_point_in": "model.layers.7.pre_feedforward_layernorm.output",
    }
    put(second, said, lower, weights="params.safetensors")
    sae = same(second, w.x, z, z @ w.W_dec + w.b_dec + w.x @ w.W_skip.T, "gemma_scope")
    assert sae.cfg.transcode and "site" not in sae.origin and "behind a norm" in sae.origin["remarks"][0]


def test_gemma_scope_is_not_guessed_from_names_alone(tmp_path, w):
    """SAELens's JumpReLU has the same five names, and mostly subtracts b_dec."""
    tensors = {"W_enc": w.W_enc.T, "W_dec": w.W_dec, "b_enc": w.b_enc, "b_dec": w.b_dec, "threshold": w.theta}
    put(tmp_path, None, tensors)
    with pytest.raises(ValueError, match="no SAE of a known format"):
        pretrained.read(tmp_path)


def test_more_latents_per_token_than_we_train_with_are_read(tmp_path):
    g = torch.Generator().manual_seed(0)
    rows = torch.randn(1000, D, generator=g)
    tensors = {
        "encoder.weight": rows,
        "decoder.weight": rows.T,
        "encoder.bias": torch.zeros(1000),
        "b_dec": torch.zeros(D),
    }
    tensors |= {"k": torch.tensor(640), "threshold": torch.tensor(-1.0)}
    put(tmp_path, {"trainer": {"dict_class": "AutoEncoderTopK"}}, tensors, weights="ae.pt")
    assert pretrained.read(tmp_path).sae().cfg.k == 640


@pytest.mark.parametrize("said", [{"scaling_factor": 3.0}, {"activation_fn": "tanh-relu"}])
def test_what_old_saelens_did_and_we_do_not_is_refused(tmp_path, w, said):
    tensors = {"b_enc": w.b_enc} | {name: torch.full((F,), v) for name, v in said.items() if name == "scaling_factor"}
    folder = saelens(tmp_path, w, "standard", tensors, **{k: v for k, v in said.items() if k == "activation_fn"})
    with pytest.raises(ValueError, match=r"none of ours|of their own"):
        pretrained.read(folder)


def test_a_file_that_must_name_a_place_is_not_given_one(tmp_path):
    sae = ours("relu")
    sae.origin = {}
    for format in ("llama_scope", "llamascopium"):
        with pytest.raises(ValueError, match="it names the place it reads, and nobody said it"):
            pretrained.write(sae, tmp_path / format, format)


@pytest.mark.parametrize("act", ["TopK", "ReLU"])
def test_openai(tmp_path, w, act):
    tensors = {"pre_bias": w.b_dec, "encoder.weight": w.W_enc, "latent_bias": w.b_enc, "decoder.weight": w.W_dec.T}
    state = {**tensors, "activation": act, "stats_last_nonzero": torch.zeros(F, dtype=torch.long)}
    state |= {"activation_state_dict": {"k": 7, "postact_fn": "ReLU"}} if act == "TopK" else {}
    torch.save(state, tmp_path / "v5.pt")
    w.x[:100] *= 1e-3
    mean, size, eps = (w.x.mean(1, keepdim=True), w.x.std(1, keepdim=True), 1e-5) if act == "TopK" else (0.0, 1.0, 0.0)
    h = ((w.x - mean) / (size + eps) - w.b_dec) @ w.W_enc.T + w.b_enc
    z = top(h, 7) if act == "TopK" else h.relu()
    same(tmp_path / "v5.pt", w.x, z, (z @ w.W_dec + w.b_dec) * size + mean, "openai")


def test_goodfire(tmp_path, w):
    names = {"encoder_linear.weight": w.W_enc, "encoder_linear.bias": w.b_enc}
    names |= {"decoder_linear.weight": w.W_dec.T, "decoder_linear.bias": w.b_dec}
    put(tmp_path, None, names, weights="Llama-3.1-8B-Instruct-SAE-l19.pth")
    z = (w.x @ w.W_enc.T + w.b_enc).relu()
    sae = same(tmp_path, w.x, z, z @ w.W_dec + w.b_dec, "goodfire")
    assert sae.origin["site"] == "L19R" and sae.origin["model"] == "meta-llama/Llama-3.1-8B-Instruct"


# what was written comes back


def ours(name, seed=0, **config):
    sae = build(name, d_in=D, d_sae=2 * D if name == "pca" else F, **config)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in sae.parameters():
            tensor += 0.3 * torch.randn(tensor.shape, generator=g)
        if hasattr(sae, "threshold") and not hasattr(sae, "log_threshold"):
            sae.threshold.copy_(torch.rand(sae.threshold.shape, generator=g) + 0.1)
    sae.origin = {"site": "L2TC" if sae.cfg.transcode else "L2R", "model": "tiny", "context": 128}
    return sae


CASES = {
    "relu": {}, "topk": {"k": 5}, "batchtopk": {"k": 5}, "matryoshka": {"k": 5}, "jumprelu": {}, "gated": {},
    "llama_scope": {"k": 5}, "feature_choice": {"k": 5}, "groupmax": {"k": 6}, "groupmax uneven": {"k": 5},
    "p_anneal": {}, "pca": {"k": 5}, "topk skip": {"k": 5, "transcode": True, "skip": True},
    "relu transcoder": {"transcode": True}, "jumprelu transcoder": {"transcode": True},
    "topk layer_norm": {"k": 5, "per_token": "layer_norm"},
}  # fmt: skip
REFUSED = {
    "llama_scope": "gated, groupmax, jumprelu, feature_choice, topk skip, topk layer_norm, jumprelu transcoder",
    "llamascopium": "gated, groupmax, topk skip, topk layer_norm",
    "saelens": "groupmax, topk skip",
    "sparsify": "relu, batchtopk, matryoshka, jumprelu, gated, llama_scope, feature_choice, p_anneal, relu transcoder, "
    "jumprelu transcoder, topk layer_norm",
    "dictionary_learning": "groupmax, topk skip, relu transcoder, jumprelu transcoder, topk layer_norm",
    "gemma_scope": "topk, gated, groupmax, pca, topk skip, topk layer_norm",
}
REFUSED = {(f, case) for f, cases in REFUSED.items() for case in [*cases.split(", "), "groupmax uneven"]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("format", pretrained.WRITES)
def test_what_is_written_comes_back_bit_for_bit_or_is_refused_with_the_reason(tmp_path, w, format, case, dtype):
    sae = ours(case.split()[0], **CASES[case])
    if (format, case) in REFUSED:
        with pytest.raises(ValueError, match=rf"cannot be written as {format}: .+, .+\. "):
            pretrained.write(sae, tmp_path / "out", format, dtype)
        assert not (tmp_path / "out").exists()
        return
    pretrained.write(sae, tmp_path / "out", format, dtype)
    form = pretrained.read(tmp_path / "out")
    assert form.origin["format"] == format
    back = form.sae()
    pretrained.write(back, tmp_path / "again", format, dtype)
    assert contents(tmp_path / "again") == contents(tmp_path / "out")
    folded = (sae.centre is not None and format in ("gemma_scope", "llamascopium")) or (
        case == "feature_choice" and format == "dictionary_learning"
    )
    for name, tensor in sae.state_dict().items():
        if name in ("W_enc", "W_dec", "b_dec", "r_mag", "b_mag", "W_skip") or (name == "b_enc" and not folded):
            assert torch.equal(getattr(back, name), tensor.to(dtype).float()), name
    if dtype == torch.float32:
        z, theirs = sae.encode(w.x), back.encode(w.x)
        exact = not folded and format != "llamascopium"
        if exact:
            assert torch.equal(theirs.dense(), z.dense())
        torch.testing.assert_close(back.reconstruct(theirs, w.x), sae.reconstruct(z, w.x), atol=1e-4, rtol=1e-5)
        assert (z.dense() > 0).sum(1).float().mean() > 1


def contents(folder):
    """Every file's bytes; what JSON says of where it is from left out, and pickles by their tensors."""
    found = {}
    for path in sorted(folder.rglob("*.*")):
        if path.suffix == ".json":
            said = json.loads(path.read_text())
            found[path.name] = {k: v for k, v in said.items() if k not in ("metadata", "trainer")}
        elif path.suffix in (".pt", ".npz"):
            tensors = torch.load(path, weights_only=True) if path.suffix == ".pt" else np.load(path)
            found[path.name] = {
                k: np.asarray(tensors[k].float() if path.suffix == ".pt" else tensors[k]).tobytes() for k in tensors
            }
        else:
            found[path.name] = path.read_bytes()
    return found


def test_a_rule_that_no_other_tool_knows_is_kept_at_home(tmp_path):
    sae = build("temporal_mask", d_in=D, d_sae=F, inference="important")
    with pytest.raises(ValueError, match=r"a rule of its own.*save_sae"):
        pretrained.write(sae, tmp_path / "out", "saelens")


def test_two_formats_in_one_folder_are_not_guessed(tmp_path, w):
    llama_scope(tmp_path, w, {"in": 4.0, "out": 4.0})
    saelens(tmp_path, w, "standard", {"b_enc": w.b_enc})
    with pytest.raises(ValueError, match="could be llama_scope or saelens"):
        pretrained.read(tmp_path)


def test_a_form_keeps_its_thresholds_through_logarithms():
    theta = torch.rand(F) * 3
    form = Form("threshold", torch.randn(F, D), torch.randn(F, D), None, torch.zeros(D), threshold=theta)
    assert torch.equal(form.sae().threshold, theta)
    assert torch.equal(Form.of(replace(form, threshold=theta).sae()).threshold, theta)
