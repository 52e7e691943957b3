"""What every published SAE comes down to: which latents fire, six tensors, and a few conventions.

A format is a way to write this down. Reading gives a `Form`, a `Form` gives one of our SAEs, and back.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..runs import Damaged
from ..saes import SAE, blank, build, variant

VARIANT = {"positive": "relu", "topk": "topk", "threshold": "jumprelu", "gate": "gated", "priced topk": "llama_scope"}
VARIANT |= {"grouptop": "groupmax"}


@dataclass(frozen=True)
class Form:
    """An SAE as all formats know it: pre = W_enc (x - centre) + b_enc, latents by `fires`, x_hat = z W_dec + b_dec.

    Attributes:
        fires: as `SAE.fires`.
        W_enc: [d_sae, d_in], as W_dec.
        k: of the topk kinds.
        threshold: one number, or one per latent; a latent fires above it, strictly.
        r_mag, b_mag: of gates: the value is relu(exp(r_mag) (pre - b_enc) + b_mag).
        centred: whether b_dec is subtracted before the encoder.
        per_token: as the knob.
        variant: which of ours it should become; by default what `fires` alone says.
        origin: model, site, context ... where the format says.
        conventions: in words, what was applied on the way from the file to raw activations.
        stated: what the checkpoint says of itself: l0, fvu.
    """

    fires: str
    W_enc: Tensor
    W_dec: Tensor
    b_enc: Tensor | None
    b_dec: Tensor
    k: int | None = None
    threshold: Tensor | None = None
    r_mag: Tensor | None = None
    b_mag: Tensor | None = None
    W_skip: Tensor | None = None
    centred: bool = False
    per_token: str = "none"
    transcode: bool = False
    variant: str | None = None
    origin: dict[str, Any] = field(default_factory=dict)
    conventions: tuple[str, ...] = ()
    stated: dict[str, float] = field(default_factory=dict)

    @property
    def d_in(self) -> int:
        return self.W_enc.shape[1]

    @property
    def d_sae(self) -> int:
        return self.W_enc.shape[0]

    @classmethod
    def of(cls, sae: SAE) -> "Form":
        """What one of ours comes down to, in its own tensors.

        Raises:
            ValueError: for a variant whose choice of latents no other tool knows.
        """
        if sae.fires is None:
            raise ValueError(
                f"{sae.name} chooses latents by a rule of its own, which no other tool's format can say. Save it in "
                "ours: save_sae(sae, folder). A variant of yours says which rule it follows by its attribute `fires`."
            )
        tensors = {name: t.detach() for name, t in sae.state_dict().items()}
        kept = {name: tensors[name] for name in ("r_mag", "b_mag", "W_skip") if name in tensors}
        return cls(
            sae.fires,
            *(tensors[name] for name in ("W_enc", "W_dec")),
            tensors.get("b_enc"),
            tensors["b_dec"],
            k=getattr(sae.cfg, "k", None),
            threshold=sae.threshold.detach() if sae.fires == "threshold" else None,
            centred=sae.centre is not None,
            per_token=sae.cfg.per_token,
            transcode=sae.cfg.transcode,
            variant=sae.name,
            origin=dict(sae.origin),
            **kept,
        )

    def sae(self) -> SAE:
        """One of ours that does the same, in float32.

        Raises:
            Damaged: numbers that are not finite.
        """
        name = self.variant or VARIANT[self.fires]
        config = {"centred": self.centred, "per_token": self.per_token}
        config |= {"transcode": self.transcode, "skip": self.W_skip is not None, "encoder_bias": self.b_enc is not None}
        if hasattr(variant(name).Config, "k"):
            config["k"] = min(self.k or variant(name).Config.k, self.d_sae)
        with blank():
            sae = build(name, d_in=self.d_in, d_sae=self.d_sae, **config)
        state = {key: getattr(self, key) for key in ("W_enc", "W_dec", "b_enc", "b_dec", "r_mag", "b_mag", "W_skip")}
        if self.threshold is not None:
            state |= self._thresholds(sae)
        with torch.no_grad():
            for key, tensor in state.items():
                if tensor is not None:
                    self._fill(sae, key, tensor)
        sae.origin = self.origin | {"conventions": list(self.conventions), "stated": self.stated}
        return sae.eval()

    def _thresholds(self, sae: SAE) -> dict[str, Tensor]:
        """As the variant holds them: logarithms of them, one number, or one per latent."""
        if hasattr(sae, "log_threshold"):
            return {
                "log_threshold": (self.threshold if self.threshold.dim() else self.thresholds)
                .clamp(min=0)
                .double()
                .log()
            }
        return {"threshold": self.threshold if sae.threshold.dim() == self.threshold.dim() else self.thresholds}

    def _fill(self, sae: SAE, key: str, tensor: Tensor) -> None:
        target = getattr(sae, key)
        if target.shape != tensor.shape:
            raise Damaged(f"{key} is {list(tensor.shape)} and should be {list(target.shape)}, as the weights have it.")
        if tensor.isnan().any() or (tensor.isinf() & ~((tensor < 0) & (key == "log_threshold"))).any():
            raise Damaged(f"{key} has numbers that are not finite: such weights compute nothing. Copy the file again.")
        target.copy_(tensor)

    def uncentred(self) -> "Form":
        """The same, with b_dec's part of the pre-activations moved into b_enc."""
        if not self.centred:
            return self
        moved = (self.W_enc.double() @ self.b_dec.double()).to(self.W_enc.dtype)
        if self.fires == "gate":
            moved_gate = self.zeros() - moved if self.b_enc is None else self.b_enc - moved
            return replace(self, b_enc=moved_gate, b_mag=self.b_mag - self.r_mag.exp() * moved, centred=False)
        return replace(self, b_enc=-moved if self.b_enc is None else self.b_enc - moved, centred=False)

    def zeros(self) -> Tensor:
        """A number per latent."""
        return self.W_enc.new_zeros(self.d_sae)

    @property
    def bias(self) -> Tensor:
        """b_enc, zeros where there is none."""
        return self.zeros() if self.b_enc is None else self.b_enc

    @property
    def thresholds(self) -> Tensor:
        """One per latent."""
        return self.threshold.expand(self.d_sae).contiguous()

    def refuse(self, format: str, rule: str, why: str, way: str) -> None:
        """Raises:
        ValueError: always: the format cannot say this.
        """
        raise ValueError(f"{self.variant or self.fires} cannot be written as {format}: {rule}, {why}. {way}")


def unit_rows(form: Form) -> Form:
    """The same with decoder rows of norm 1, whose norms go into the encoder: latents and thresholds grow by them."""
    norms = form.W_dec.norm(dim=1).clamp(min=1e-30)
    grown = {"W_enc": form.W_enc * norms[:, None], "W_dec": form.W_dec / norms[:, None]}
    for name in ("b_enc", "b_mag"):
        if getattr(form, name) is not None:
            grown[name] = getattr(form, name) * norms
    return replace(form, **grown)


def scaled(form: Form, scale: float, target_scale: float | None = None) -> Form:
    """A form of x * scale, and of target * target_scale, as one of x: latents stay as they are."""
    target_scale = scale if target_scale is None else target_scale
    form = form if scale == target_scale else form.uncentred()
    changed = {"W_enc": form.W_enc * scale, "W_dec": form.W_dec / target_scale, "b_dec": form.b_dec / target_scale}
    if form.W_skip is not None:
        changed["W_skip"] = form.W_skip * (scale / target_scale)
    return replace(form, **changed)


def some(form: Form, latents: Sequence[int]) -> Form:
    """The form of some latents alone."""
    wrong = [latent for latent in latents if not 0 <= latent < form.d_sae]
    if wrong:
        raise IndexError(f"There is no latent {wrong[0]}: it has 0 to {form.d_sae - 1}.")
    index = torch.tensor(list(latents))
    few = {"W_enc": form.W_enc[index], "W_dec": form.W_dec[index]}
    for name in ("b_enc", "r_mag", "b_mag"):
        if getattr(form, name) is not None:
            few[name] = getattr(form, name)[index]
    if form.threshold is not None and form.threshold.dim():
        few["threshold"] = form.threshold[index]
    return replace(form, **few)
