"""Wrong conventions that loaders of published SAEs have had, each with what undoes it.

A mistake changes a `Form`, given s, by which activations were scaled in training (sqrt(d) / their mean norm); what it
changes nothing about is not made, and gives None.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from .form import Form, scaled

Change = Callable[[Form, float], Form | None]
NEAR = 0.02  # a scale so near to 1 is none


@dataclass(frozen=True)
class Mistake:
    """One way to read a checkpoint wrongly; `sites` is by how many layers it reads elsewhere."""

    name: str
    make: Change
    undo: tuple[Change, ...]
    sites: tuple[int, ...] = ()


def _by(factor: Callable[[float], float], change: Callable[[Form, float], Form | None]) -> Change:
    """The change with a factor made of s, if that is not 1."""
    return lambda form, s: None if abs(s - 1) < NEAR else change(form, factor(s))


def _rescaled(form: Form, factor: float) -> Form | None:
    return scaled(form, factor) if form.per_token == "none" else None


def _centre(form: Form, centred: bool) -> Form | None:
    if form.centred == centred or form.transcode or not form.b_dec.any():
        return None
    return replace(form, centred=centred)


def _flipped(form: Form, s: float) -> Form | None:
    return _centre(form, not form.centred)


def _gate(power: int) -> Change:
    """Thresholds, or the order of a choice, by decoder norms or not."""

    def change(form: Form, s: float) -> Form | None:
        norms = form.W_dec.norm(dim=1)
        if norms.std() < NEAR * norms.mean():
            return None
        if form.fires == "threshold":
            return replace(form, threshold=form.thresholds * norms.to(form.threshold) ** power, variant=None)
        other = {"topk": "priced topk", "priced topk": "topk"}.get(form.fires)
        return replace(form, fires=other, variant=None) if other else None

    return change


def _threshold(form: Form, factor: float) -> Form | None:
    return replace(form, threshold=form.threshold * factor) if form.fires == "threshold" else None


def _output(form: Form, factor: float) -> Form:
    return replace(form.uncentred(), W_dec=form.W_dec * factor, b_dec=form.b_dec * factor)


def _biases(form: Form, factor: float) -> Form | None:
    if not form.b_dec.any() and (form.b_enc is None or not form.b_enc.any()):
        return None
    b_enc = None if form.b_enc is None else form.b_enc * factor
    b_mag = None if form.b_mag is None else form.b_mag * factor
    return replace(form, b_enc=b_enc, b_mag=b_mag, b_dec=form.b_dec * factor)


def _per_token(kind: str) -> Change:
    return lambda form, s: (
        None if form.per_token == kind or form.transcode else replace(form, per_token=kind, variant=None)
    )


UP, DOWN = (lambda s: s), (lambda s: 1 / s)

MISTAKES = (
    Mistake("input scale left out", _by(DOWN, _rescaled), (_by(UP, _rescaled),)),
    Mistake("input scale applied twice", _by(UP, _rescaled), (_by(DOWN, _rescaled),)),
    Mistake("b_dec before the encoder", _flipped, (_flipped,)),
    Mistake("decoder norms in the choice", _gate(1), (_gate(-1), _gate(1))),
    Mistake("threshold in other units", _by(UP, _threshold), (_by(DOWN, _threshold), _by(UP, _threshold))),
    Mistake("output in other units", _by(UP, _output), (_by(DOWN, _output), _by(UP, _output))),
    Mistake("biases in other units", _by(UP, _biases), (_by(DOWN, _biases), _by(UP, _biases))),
    Mistake("another layer", lambda form, s: None, (), sites=(1, -1)),
    Mistake(
        "tokens scaled one by one", _per_token("norm"), tuple(_per_token(k) for k in ("norm", "layer_norm", "none"))
    ),
)
