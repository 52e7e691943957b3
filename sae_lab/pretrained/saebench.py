"""An SAE as SAEBench 0.6 takes one (Karvonen et al. 2025, arXiv:2503.09532): dense, with unit decoder rows.

    run_eval(config, [("mine", for_saebench(sae, "meta-llama/Llama-3.2-1B"))], ...)

Nothing of SAEBench is needed to make one: it asks for attributes, not for a class.
"""

import re
from collections.abc import Callable
from copy import copy, deepcopy
from dataclasses import asdict, dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..saes import SAE
from ..shapes import Acts
from . import places

AT_ONCE = 2**25  # numbers of dense latents that are made at a time, beside those that are handed out

Dense = Float[Tensor, "*lead d_sae"]


@dataclass
class Config:
    """The fields of SAEBench's `CustomSAEConfig`, for where it is not installed; `metadata` is what it adds."""

    model_name: str
    d_in: int
    d_sae: int
    hook_layer: int
    hook_name: str
    context_size: int | None = None
    hook_head_index: int | None = None
    architecture: str = ""
    apply_b_dec_to_input: bool | None = None
    finetuning_scaling_factor: bool | None = None
    activation_fn_str: str = ""
    activation_fn_kwargs: dict[str, Any] = field(default_factory=dict)
    prepend_bos: bool = True
    normalize_activations: str = "none"
    dtype: str = ""
    device: str = ""
    model_from_pretrained_kwargs: dict[str, Any] = field(default_factory=dict)
    dataset_path: str = ""
    dataset_trust_remote_code: bool = True
    seqpos_slice: tuple = (None,)
    training_tokens: int = -100_000
    sae_lens_training_version: str | None = None
    neuronpedia_id: str | None = None
    metadata: SimpleNamespace = field(default_factory=SimpleNamespace)

    def to_dict(self) -> dict[str, Any]:
        """What is saved beside results: all but `metadata`."""
        said = asdict(self)
        del said["metadata"]
        return said


class SAEBenchSAE(nn.Module):
    """What a latent adds to x_hat is a unit row of `W_dec` times its activation, which has grown by the row's norm.

    Latents are those of the SAE itself, in float32 and by its own rule; `dtype` is that of what goes in and out.
    `W_enc`, `b_enc` and `b_mag` are there for SAEBench's statistics of weights: changing them changes no latent. A
    decoder row of zeros stays one, and SAEBench warns of it.

    Attributes:
        cfg: SAEBench's `CustomSAEConfig`, or a `Config` where it is not installed.
    """

    def __init__(self, sae: SAE, cfg: Any, dtype: torch.dtype, device: str | torch.device):
        super().__init__()
        self.cfg = cfg
        with torch.no_grad():
            norms = sae.W_dec.detach().float().norm(dim=1)
            norms = torch.where(norms > 0, norms, torch.ones_like(norms))
            b_enc = torch.zeros_like(norms) if sae.b_enc is None else sae.b_enc
            tensors = {
                "W_enc": (sae.W_enc * norms[:, None]).T,
                "W_dec": sae.W_dec / norms[:, None],
                "b_enc": b_enc * norms,
                "b_dec": sae.b_dec.clone(),
            }
            if hasattr(sae, "b_mag"):
                tensors["b_mag"] = sae.b_mag * norms
        for name, tensor in tensors.items():
            self.register_parameter(name, nn.Parameter(tensor.detach(), requires_grad=False))
        self._exact = (_frozen(sae), norms)  # no submodule: `to(dtype)` would round what decides which latents fire
        self.to(device=device, dtype=dtype)

    @property
    def device(self) -> torch.device:
        return self.W_dec.device

    @property
    def dtype(self) -> torch.dtype:
        return self.W_dec.dtype

    def encode(self, x: Acts) -> Dense:
        """All latents, most of them zero, as SAEBench wants them: no more memory than these numbers and `AT_ONCE`."""
        return self._by_parts(x, self._latents, self.cfg.d_sae)

    def decode(self, feature_acts: Dense) -> Acts:
        return feature_acts.to(self.W_dec) @ self.W_dec + self.b_dec

    def forward(self, x: Acts) -> Acts:
        """x_hat; the latents of all tokens are never there at once."""
        return self._by_parts(x, lambda part: self.decode(self._latents(part)), self.cfg.d_in)

    def _latents(self, x: Acts) -> Dense:
        sae, norms = self._exact
        return (sae.encode(x).dense() * norms).to(self.dtype)

    def _by_parts(self, x: Acts, of: Callable[[Tensor], Tensor], width: int) -> Tensor:
        rows, size = x.to(self.device).reshape(-1, self.cfg.d_in), max(1, AT_ONCE // self.cfg.d_sae)
        out = torch.empty(len(rows), width, dtype=self.dtype, device=self.device)
        for first in range(0, len(rows), size):
            out[first : first + size] = of(rows[first : first + size])
        return out.view(*x.shape[:-1], width)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SAEBenchSAE":
        """What `to`, `cuda`, `half` and the like all end in: the exact SAE follows to the device, and `cfg` says it."""
        super()._apply(fn, recurse)
        self._exact = tuple(part.to(self.device) for part in self._exact)
        self.cfg.dtype, self.cfg.device = str(self.dtype).removeprefix("torch."), str(self.device)
        return self


def for_saebench(
    sae: SAE,
    model_name: str,
    layer: int | None = None,
    hook_name: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> SAEBenchSAE:
    """The SAE as SAEBench evaluates one: `[("a name", for_saebench(sae, "pythia-70m-deduped", 4))]`.

    Its latents are dense numbers there: 128 tokens of 131,072 latents are 67 MB in float32, so keep batches small. It
    uses the weights of `sae` itself: train that no further meanwhile.

    Args:
        model_name: as TransformerLens knows it.
        layer, hook_name: where, in TransformerLens's words; default: the site that the SAE was trained at, and of a
            layer alone its residual stream.

    Raises:
        ValueError: an SAE that SAEBench cannot decode; no place, or two that differ.
    """
    if sae.cfg.transcode:
        raise ValueError(
            "This is a transcoder (transcode=True): SAEBench puts x_hat where x was read, and a transcoder's belongs "
            "elsewhere. Give it an SAE of one site."
        )
    if sae.cfg.per_token != "none":
        raise ValueError(
            f"per_token={sae.cfg.per_token!r} scales x_hat by each token's own size, and SAEBench decodes from latents "
            'alone. Give it an SAE with per_token="none".'
        )
    layer, hook_name = _place(sae.origin.get("site"), layer, hook_name)
    cfg = _config(model_name=model_name, d_in=sae.cfg.d_in, d_sae=sae.cfg.d_sae, hook_layer=layer, hook_name=hook_name)
    cfg.architecture, cfg.context_size = sae.name, sae.origin.get("context")
    cfg.apply_b_dec_to_input = sae.centre is not None
    return SAEBenchSAE(sae, cfg, dtype, device)


def _config(**said: Any) -> Any:
    try:
        from sae_bench.custom_saes.custom_sae_config import CustomSAEConfig
    except ImportError:
        return Config(**said)
    return CustomSAEConfig(**said)


def _place(site: str | None, layer: int | None, hook_name: str | None) -> tuple[int, str]:
    """(layer, hook), from what was asked for, else from the site of the training."""
    if hook_name is None and site is not None:
        hook_name = places.hook(site)
    if hook_name is None and layer is None:
        raise ValueError(
            "This SAE does not say which site it was trained at: for_saebench(sae, model_name, layer=...) reads the "
            'residual stream after a layer, hook_name="blocks.4.hook_mlp_out" any place.'
        )
    hook_name = hook_name or places.hook(f"L{layer}R")
    number = re.search(r"\d+", hook_name)
    if number is None and layer is None:
        raise ValueError(f"hook_name={hook_name!r} names no layer: give layer= too.")
    if number is not None and layer not in (None, int(number[0])):
        raise ValueError(
            f"layer={layer} and {hook_name!r}, the place that was asked for or trained at, differ. Leave out layer, or "
            "give the hook_name that you mean."
        )
    return int(number[0]) if layer is None else layer, hook_name


def _frozen(sae: SAE) -> SAE:
    """The same weights in a module of its own: it may be moved to another device while the SAE stays where it is."""
    kept = copy(sae)
    kept._parameters = {
        name: None if p is None else nn.Parameter(p.detach(), requires_grad=False)
        for name, p in sae._parameters.items()
    }
    kept._buffers, kept._modules = dict(sae._buffers), {name: deepcopy(m) for name, m in sae._modules.items()}
    return kept.eval()
