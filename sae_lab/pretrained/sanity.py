"""What weights alone say of an SAE: numbers that cannot be, an encoder and a decoder that do not belong together."""

import math

import torch

from .form import Form

SOME = 4096  # latents that are looked at
FEW = 0.5  # share of latents without a direction that is worth a word


@torch.no_grad()
def odd(form: Form) -> list[str]:
    """Remarks, none for an SAE that looks like one."""
    rows = slice(None, None, max(1, form.d_sae // SOME))
    W_enc, W_dec = form.W_enc[rows].float(), form.W_dec[rows].float()
    norms, found = W_dec.norm(dim=1), list(form.origin.get("remarks", ()))
    silent = (norms < 1e-8).float().mean().item()
    if silent > FEW:
        found.append(f"{silent:.0%} of the decoder's rows are zero: these latents write nothing.")
    cosines = torch.nn.functional.cosine_similarity(W_enc, W_dec, dim=1)
    chance = 0.01 + 3 / math.sqrt(form.d_in * len(cosines))
    if not form.transcode and len(cosines) >= 32 and cosines.mean().abs() < chance:
        found.append(
            f"encoder and decoder rows of a latent have nothing in common (mean cosine {cosines.mean():.3f}): one of "
            "the matrices may be of another SAE, or in another order."
        )
    if form.threshold is not None and (form.threshold <= 0).all():
        found.append("all thresholds are 0 or less: every positive pre-activation fires, and L0 will be high.")
    if form.fires == "positive" and form.stated.get("l0"):
        found.append(
            "the threshold of a batch-dependent SAE was never set, so all positive pre-activations fire: L0 will be "
            f"far above the {form.stated['l0']:.0f} of its training."
        )
    return found
