"""Names of places in a model, as other tools write them: a hook of TransformerLens, a module of Hugging Face."""

from typing import Any

from ..sites import Site

HOOK = {
    "R": "hook_resid_post",
    "A": "hook_attn_out",
    "M": "hook_mlp_out",
    "TC": "ln2.hook_normalized",
    "N": "mlp.hook_post",
}
MODULE = {"R": "", "A": ".self_attn", "M": ".mlp", "TC": ".post_attention_layernorm", "N": ".mlp.act_fn"}


def hook(site: str) -> str:
    """TransformerLens's name."""
    site = Site(site)
    return f"blocks.{site.layer}.{HOOK[site.part]}"


def module(site: str) -> str:
    """Hugging Face's name, within the base model."""
    site = Site(site)
    return f"layers.{site.layer}{MODULE[site.part]}"


def at(name: Any, model: Any = None) -> dict[str, Any]:
    """{"site": ...} of another tool's name; what we have no site for is kept as `hook`. A norm's output is none: it
    has the norm's gain, which TC has not.
    """
    try:
        site = Site(str(name).removesuffix(".output"))
        if site.part in ("A", "M") and any(f"gemma-{n}" in str(model) for n in (2, 3)):
            return {"hook": str(name), "remarks": ["Gemma has a norm behind this place, and theirs reads behind that"]}
        return {"site": str(site)}
    except (ValueError, TypeError):
        return {"hook": str(name)} if name else {}
