"""What the final weights and the SAE at inference tell."""

import math

import torch

from ..sites import Site
from .case import Case, Unchecked
from .checks import Complaint, check, lower_lr

ROWS = 4096  # of the decoder, that are compared with all others


@check("inference gap")
def drifted(case: Case) -> Complaint:
    at, trained, fvu = case.inference, case.late("l0"), case.late("fvu")
    told = f"{at.where}: L0 {at.l0:.3g} and FVU {at.fvu:.3g} on {at.tokens:,} tokens; log.jsonl: {trained:.3g} and "
    told += f"{fvu:.3g} of late, in training"
    ratio = at.l0 / max(trained, 1e-9)
    remedy = "Raise calibration_tokens, or train on: the threshold was set on few tokens, or is still on its way."
    if not 0.8 < ratio < 1.25:
        return "warning" if 0.5 < ratio < 2 else "critical", told, remedy
    if at.fvu > 2.5 * fvu + 0.1:
        return "warning", told, "Measure it where it was trained: the same model, site and kind of text."
    return None


@check("unset threshold")
def unset(case: Case) -> Complaint:
    threshold = getattr(case.sae, "threshold", None)
    if threshold is None or bool((threshold != 0).any()) or case.late("l0") < 0.95 * (case.budget or 0.0):
        return None  # where fewer than k are positive, 0 is right
    told = (
        f"sae/: all of `threshold` is 0, so that every positive latent fires; log.jsonl: L0 {case.late('l0'):.3g} in "
    )
    return (
        "critical",
        told + "training",
        "Call sae.calibrate(...) on training activations, or train the run to its end.",
    )


@check("stuck thresholds")
def stuck(case: Case) -> Complaint:
    log, first = getattr(case.sae, "log_threshold", None), case.cfg.get("init_threshold")
    if log is None or first is None:
        return None
    case.course()
    if not case.learned:
        return None  # nor does anything else
    scale = case.config.get("target_scale", case.config["scale"])  # a transcoder's latents are in the target's units
    moved = (log + math.log(scale) - math.log(first)).abs().median().item()
    if moved > 0.01:
        return None
    told = f"sae/: half of the thresholds are within {moved:.1%} of init_threshold, {first:g}"
    width = case.cfg["bandwidth"]
    return (
        "warning",
        told,
        f"Raise bandwidth, {width:g}: only pre-activations this near a threshold move it. Or raise lr.",
    )


@check("non-finite weights")
def infinite(case: Case) -> Complaint:
    where, sae = case.weights
    bad = [name for name, t in sae.state_dict().items() if not bool(torch.isfinite(t).all())]
    return ("critical", f"{where}: {', '.join(bad)} hold NaN or infinity", lower_lr(case)) if bad else None


@check("duplicate latents")
@torch.no_grad()
def doubled(case: Case) -> Complaint:
    case.course()
    where, sae = case.weights
    W = torch.nn.functional.normalize(sae.W_dec.float(), dim=1)
    some = torch.linspace(0, len(W) - 1, min(ROWS, len(W))).long()
    nearest = []
    for part in some.split(256):
        cosine = W[part] @ W.T
        cosine[torch.arange(len(part)), part] = -1
        nearest.append(cosine.max(1).values)
    share = (torch.cat(nearest) > 0.98).float().mean().item()
    if share <= 0.6:  # L1 alone, which is the same for one latent and for two, makes up to half of a small one double
        return None
    told = f"{where}: {share:.0%} of {len(some):,} decoder rows have a twin, at a cosine over 0.98"
    return (
        "warning",
        told,
        f"Lower d_sae, which is {len(W):,}: the data has fewer directions. Or raise the price of sparsity.",
    )


@check("misaligned encoder")
@torch.no_grad()
def crossed(case: Case) -> Complaint:
    case.course()
    (where, sae), site = case.weights, case.config["site"]
    if Site(site).target != site:
        raise Unchecked("a transcoder's decoder need not look like its encoder")
    cosine = torch.nn.functional.cosine_similarity(sae.W_enc, sae.W_dec, dim=1).median().item()
    if cosine > 0.1:
        return None
    told = f"{where}: the median cosine of a latent's encoder and decoder row is {cosine:.2g}; they start alike"
    return "warning", told, lower_lr(case)
