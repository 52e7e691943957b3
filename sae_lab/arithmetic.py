"""What trainings cost by arithmetic alone: FLOP and bytes of a model's forward pass and of an SAE's step.

Nothing here is measured; a multiplication and an addition are two FLOP.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from .sites import Site

PER_NONZERO = 12  # FLOP per latent kept and number of d_in: six products of a row, forward and backward
HELD = 16  # bytes per parameter in training: weight, gradient, two moments, each in float32
WRITTEN = 12  # bytes per parameter that a checkpoint is put together in, on the CPU: weight and two moments
SWEPT = 40  # bytes moved per parameter and step: gradient zeroed, added to, measured; Adam reads four, writes three
ROWS = 8  # float32 copies of a batch's rows that a step has at once: x, target, x_hat, their gradients ...
NONZERO = 48  # bytes per latent kept: value, latent, token, and the same for gradient and transpose
ADDRESS = 24  # bytes of where a row of the ring is from
KEPT = 3  # checkpoints on a disk at most: two, and one that is being written
NAMED = {
    "d_model": "hidden_size",
    "layers": "num_hidden_layers",
    "mlp": "intermediate_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "vocab": "vocab_size",
}  # in config.json
OPTIONAL = ("kv_heads", "head_dim")


@dataclass(frozen=True)
class Figures:
    """The widths of a decoder of the Llama family."""

    d_model: int
    layers: int
    mlp: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int

    @classmethod
    def of(cls, config: Any) -> "Figures":
        """Those of a Hugging Face config, or of what config.json holds.

        Raises:
            ValueError: if it lacks one.
        """
        said = config if isinstance(config, Mapping) else config.to_dict()
        given = {name: said.get(key) for name, key in NAMED.items()}
        if missing := [NAMED[name] for name, value in given.items() if not value and name not in OPTIONAL]:
            raise ValueError(f"This config of a model does not say {', '.join(missing)}: give a Llama's config.json.")
        usual = {"kv_heads": given["heads"], "head_dim": given["d_model"] // given["heads"]}
        return cls(**given | {name: given[name] or value for name, value in usual.items()})

    @classmethod
    def read(cls, given: dict[str, Any]) -> "Figures":
        """Raises:
        ValueError: if one is missing, or no count; the message names it.
        """
        known = [f.name for f in fields(cls)]
        for name in [*given, *known]:
            if name not in known or name not in given:
                raise ValueError(f"[shape] has {', '.join(known)}, all of them; {name!r} is {_odd(name, given)}.")
            if isinstance(given[name], bool) or not isinstance(given[name], int) or not 0 < given[name] < 2**31:
                raise ValueError(f"[shape] {name}={given[name]!r} must be a whole number of at least 1.")
        return cls(**given)

    def d_in(self, site: str) -> int:
        """Raises:
        ValueError: for a site that such a model lacks.
        """
        if Site(site).layer >= self.layers:
            raise ValueError(
                f"There is no {site}: the model has {self.layers} layers, the last one is {self.layers - 1}."
            )
        return self.mlp if Site(site).part == "N" else self.d_model

    @property
    def layer_params(self) -> int:
        """Of one layer's matrices; its norms are left out."""
        attention = 2 * self.heads * self.head_dim + 2 * self.kv_heads * self.head_dim
        return self.d_model * (attention + 3 * self.mlp)

    @property
    def params(self) -> int:
        """Of all layers, embedding and head."""
        return self.layers * self.layer_params + 2 * self.vocab * self.d_model


def forward_flop(of: Figures, layers: int, context: int) -> float:
    """FLOP per token of a forward pass through the first `layers`, without the head.

    A token attends to itself and all before it: one product with the keys, one with the values.
    """
    attention = 2 * (context + 1) * of.heads * of.head_dim
    return layers * (2 * of.layer_params + attention)


def depth(sites: Iterable[str]) -> int:
    """Layers that are computed to read these sites: up to that of the last one, as if whole."""
    return max(Site(site).layer for site in sites) + 1


def stored(sites: Iterable[str]) -> list[str]:
    """Sites that are read for SAEs at these: theirs and, of transcoders, what these predict."""
    return sorted({read for site in sites for read in (Site(site), Site(site).target)}, key=lambda site: site.order)


def sae_params(d_in: int, d_sae: int) -> int:
    return 2 * d_in * d_sae + d_sae + d_in


def step_flop(d_in: int, d_sae: int, l0: float) -> float:
    """FLOP per token of an SAE's training step, whose only dense product is the encoder's forward."""
    return 2 * d_in * d_sae + PER_NONZERO * l0 * d_in


def swept_bytes(d_in: int, d_sae: int) -> int:
    """Bytes of memory that the optimiser and the gradients move in one step, whatever the batch."""
    return SWEPT * sae_params(d_in, d_sae)


def sae_bytes(d_in: int, d_sae: int, l0: float, batch: int) -> int:
    """Bytes that an SAE in training holds: weights, gradients, moments, and what a step makes."""
    return HELD * sae_params(d_in, d_sae) + int(batch * (ROWS * 4 * d_in + NONZERO * l0))


def ring_bytes(widths: Iterable[int], buffer: int, number: int) -> int:
    """Bytes of the ring that shuffles activations of sites of these widths, `number` bytes each number."""
    return buffer * (sum(widths) * number + ADDRESS)


def model_bytes(of: Figures, tokens: int, widths: Iterable[int], number: int) -> int:
    """Bytes of a model's weights, and of a forward pass of so many tokens at once that keeps some sites."""
    return number * (of.params + tokens * (6 * of.d_model + 3 * of.mlp + sum(widths)))


def saved_bytes(d_in: int, d_sae: int) -> int:
    """Bytes of a trained SAE on a disk."""
    return 4 * sae_params(d_in, d_sae)


def disk_bytes(saved: int, d_sae: int, snapshots: int, checkpoints: int = KEPT, ring: int = 0) -> int:
    """Bytes of tensors in a run folder at most: the SAE of `saved` bytes, snapshots on the way, and checkpoints with
    Adam's two moments and the dead counts; a ring under 1 GB is in those of a group's first SAE."""
    return (1 + snapshots) * saved + checkpoints * (3 * saved + 8 * d_sae + ring)


def cache_bytes(tokens: int, widths: Iterable[int], number: int = 2) -> int:
    """Bytes of a cache of activations: the rows of all sites, and of each token its id, document and place."""
    return tokens * (sum(widths) * number + ADDRESS)


def amount(size: float) -> str:
    """Bytes for a reader."""
    if size >= 1e13:
        return f"{size / 1e12:,.0f} TB"
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.0f} MB"


def duration(seconds: float) -> str:
    """As a clock says it: 4:05, 1:00:00, 3 d 4:00:00."""
    days, rest = divmod(round(seconds), 86_400)
    hours, rest = divmod(rest, 3600)
    clock = f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours or days else f"{rest // 60}:{rest % 60:02d}"
    return f"{days} d {clock}" if days else clock


def _odd(name: str, given: dict[str, Any]) -> str:
    return "none of them" if name in given else "missing"
