"""What is summed over text, token by token, and the numbers that are made of the sums.

Special tokens are left out of every number. Sums are float64, so that a number is one division over the whole set.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from ..models import LM
from ..reading import home
from ..saes import SAE
from ..shapes import Acts, Direction, Ids, Logits, Mask, Rows
from ..sites import Site
from ..sparse import Latents

Sums = dict[str, np.ndarray]  # of named columns, one row per draw of documents
Columns = dict[str, np.ndarray]  # [tokens] or [tokens, d_in] by name
Edits = dict[Site, Callable[[Acts], Acts]]

RECONSTRUCTION: dict[str, Callable[[Sums], np.ndarray]] = {
    "fvu": lambda s: s["error"] / (s["square"] - np.square(s["y"]).sum(-1) / s["n"]),
    "l0": lambda s: s["l0"] / s["n"],
    "cosine": lambda s: s["cosine"] / s["n"],
    "bias": lambda s: np.divide(s["hat_square"], s["dot"], np.zeros_like(s["dot"]), where=s["hat_square"] > 0),
    "ev_llama_scope": lambda s: s["ev"] / s["n"],
}
COST: dict[str, Callable[[Sums], np.ndarray]] = {
    "ce_clean": lambda s: s["clean"] / s["n"],
    "ce_spliced": lambda s: s["spliced"] / s["n"],
    "ce_zero": lambda s: s["zero"] / s["n"],
    "ce_increase": lambda s: (s["spliced"] - s["clean"]) / s["n"],
    "ce_recovered": lambda s: (s["zero"] - s["spliced"]) / (s["zero"] - s["clean"]),
    "kl": lambda s: s["kl_spliced"] / s["n"],
    "kl_score": lambda s: 1 - s["kl_spliced"] / s["kl_zero"],
}
COST_MEAN: dict[str, Callable[[Sums], np.ndarray]] = {
    "ce_mean": lambda s: s["mean"] / s["n"],
    "ce_recovered_mean": lambda s: (s["mean"] - s["spliced"]) / (s["mean"] - s["clean"]),
}
MEANS = {
    "fvu": "fraction of variance unexplained",
    "l0": "latents active per token",
    "cosine": "cosine of reconstruction and activation",
    "bias": "E|x_hat|^2 / E[x_hat . x]: 1 = none, below 1 = shrinkage (Gated SAE paper)",
    "ev_llama_scope": "Llama Scope's explained variance: a ratio per token, then the mean; not 1 - fvu",
    "ce_clean": "cross-entropy of the model, nats per token",
    "ce_spliced": "with the SAE spliced in",
    "ce_zero": "with zeros in its place",
    "ce_mean": "with the mean activation in its place",
    "ce_increase": "cost of splicing, nats per token",
    "ce_recovered": "1 = free, 0 = as bad as zeros",
    "ce_recovered_mean": "1 = free, 0 = as bad as the mean",
    "kl": "KL(clean || spliced), nats per token",
    "kl_score": "1 - KL / KL with zeros: 1 = free, 0 = as bad as zeros",
    "dead": "share of latents that never fired here",
    "dense": "share of latents on more than 10% of tokens",
}


def fitting(sae: SAE, lm: LM, site: str | Site | None) -> Site:
    """The site an SAE is measured at: the one asked for, else where it was trained.

    Raises:
        ValueError: if nobody said, or the model is of another width there.
    """
    site = home(sae, site)
    if lm.d_in(site) != sae.cfg.d_in:
        raise ValueError(f"The SAE reads d_in={sae.cfg.d_in}, but {lm.name} has {lm.d_in(site)} at {site}. Give site=.")
    return site


class Rebuilding:
    """Reconstructions of activations as text streams by, with what is summed of them."""

    def __init__(self, sae: SAE):
        self.sae, self._total, self._n = sae, 0.0, 0

    @torch.no_grad()
    def __call__(self, x: Rows, y: Rows) -> tuple[Latents, Columns]:
        """(latents of x, a number per token by name); y is what x_hat should match.

        Llama Scope takes the mean of its batch; here it is the mean of all that has passed, this batch included.
        """
        z = self.sae.encode(x)
        x_hat = self.sae.reconstruct(z, x)
        self._total, self._n = self._total + y.double().sum(0), self._n + len(y)
        error, mean = (x_hat - y).square().sum(-1), (self._total / self._n).to(y)
        fired = z.support.token[z.value != 0].cpu().numpy()
        columns = {
            "error": error,
            "square": y.square().sum(-1),
            "y": y,
            "cosine": torch.cosine_similarity(x_hat, y, dim=-1),
            "hat_square": x_hat.square().sum(-1),
            "dot": (x_hat * y).sum(-1),
            "ev": 1 - error / (y - mean).square().sum(-1),
        }
        counts = {"n": np.ones(len(y)), "l0": np.bincount(fired, minlength=len(y)).astype(float)}
        return z, counts | {name: _numpy(column) for name, column in columns.items()}


def substitutes(
    saes: Mapping[Site, SAE], keep: Mask, means: Mapping[Site, Direction] | None = None
) -> dict[str, Edits]:
    """What is put in place of activations: the SAEs' reconstructions, zeros, and means where they are given."""
    found = {
        "spliced": {site: _rebuilt(sae, keep) for site, sae in saes.items()},
        "zero": dict.fromkeys(saes, torch.zeros_like),
    }
    if means is not None:
        found["mean"] = {site: lambda x, mean=mean: mean.to(x).expand_as(x) for site, mean in means.items()}
    return found


def _rebuilt(sae: SAE, keep: Mask) -> Callable[[Acts], Acts]:
    """By the SAE at the kept places alone: a BOS can be a hundred times louder than what SAEs are made for."""

    def rebuilt(x: Tensor) -> Tensor:
        out, kept = torch.zeros_like(x), keep.to(x.device)
        out[kept] = sae(x[kept].to(sae.W_dec)).to(x)
        return out

    return rebuilt


@torch.no_grad()
def costs(
    lm: LM, ids: Ids, mask: Mask, keep: Mask, edits: Mapping[str, Edits], clean: Logits | None = None
) -> tuple[Bool[np.ndarray, "batch seq"], Columns]:
    """(the places that count, cross-entropy and KL there by name) of a text with edits at the kept places."""
    clean = lm.clean(ids, mask) if clean is None else clean
    columns = {}
    for name, edit in edits.items():  # one after the other: logits of a wide vocabulary are large
        out = lm.splice(ids, edit, mask=mask, where=keep, clean=clean)
        columns[name] = _numpy(out.ce[out.counts])
        if name != "mean":
            columns[f"kl_{name}"] = _numpy(out.kl[out.counts])
    columns |= {"clean": _numpy(out.ce_clean[out.counts]), "n": np.ones(len(columns[name]))}
    return out.counts.cpu().numpy(), columns


def _numpy(t: Tensor) -> np.ndarray:
    return t.detach().cpu().double().numpy()
