"""Where in a model: "L12R" is the residual stream after layer 12.

R residual stream after the layer · A attention output · M MLP output · N the MLP's neurons · TC what the MLP reads: the
RMS-normalised residual without the norm's weight (Llama Scope, arXiv:2410.20526). A transcoder reads TC and predicts M.
"""

from __future__ import annotations

import re

PARTS = ("A", "TC", "N", "M", "R")  # in the order in which a layer computes them
_LONG = (
    (r"blocks\.(\d+)\.hook_resid_post", "R"),
    (r"blocks\.(\d+)\.hook_attn_out", "A"),
    (r"blocks\.(\d+)\.hook_mlp_out", "M"),
    (r"blocks\.(\d+)\.mlp\.hook_post", "N"),
    (r"blocks\.(\d+)\.ln2\.hook_normalized", "TC"),
    (r"(?:model\.)*layers\.(\d+)", "R"),
    (r"(?:model\.)*layers\.(\d+)\.self_attn", "A"),
    (r"(?:model\.)*layers\.(\d+)\.mlp", "M"),
    (r"resid_post_layer_(\d+)", "R"),
    (r"attention_out_layer_(\d+)", "A"),
    (r"mlp_out_layer_(\d+)", "M"),
)


class Site(str):
    """A site's short name, with its `layer` and `part`; equal to the plain string.

    Reads "L3R", "L3M" and so on, and the long names of TransformerLens, Hugging Face and dictionary_learning.

    Raises:
        ValueError: if the name is none of these.
    """

    layer: int
    part: str

    def __new__(cls, name: str) -> Site:
        if isinstance(name, Site):
            return name
        layer, part = _parse(name)
        site = super().__new__(cls, f"L{layer}{part}")
        site.layer, site.part = layer, part
        return site

    def __getnewargs__(self) -> tuple[str]:
        return (str(self),)

    @property
    def order(self) -> tuple[int, int]:
        """Sorts sites into the order in which a forward pass reaches them."""
        return self.layer, PARTS.index(self.part)

    @property
    def target(self) -> Site:
        """The site that an SAE of this site writes: M for a transcoder, else the site itself."""
        return Site(f"L{self.layer}M") if self.part == "TC" else self


def _parse(name: str) -> tuple[int, str]:
    short = re.fullmatch(r"L(\d+)(R|A|M|N|TC)", name)
    if short:
        return int(short[1]), short[2]
    for pattern, part in _LONG:
        long = re.fullmatch(pattern, name)
        if long:
            return int(long[1]), part
    raise ValueError(
        f"No site named {name!r}. Write L<layer> and R (residual), A (attention out), M (MLP out), N (neurons) or TC "
        "(MLP in): 'L3R'; or a long name such as 'blocks.3.hook_resid_post' or 'model.layers.3.mlp'."
    )
