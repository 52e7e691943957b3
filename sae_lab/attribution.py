"""Attribution: what each latent does, on one prompt, to a logit, a difference of two, or the loss.

Two estimates side by side. Gradient x activation: one backward pass for all latents, exact where the model behind the
site is linear. Ablation: one forward pass for each of the largest, with what it writes at its place taken away.
The error node is what the SAE leaves over, x - x_hat; with it and the bias the rows add up to the whole activation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from . import plots
from .models import LM
from .models.lm import ce
from .reading import fitting
from .saes import SAE
from .shapes import Ids, LatentMask, Logits, Rows
from .sites import Site
from .sparse import decode

Measure = Callable[[Logits], Float[Tensor, " batch"]]


@dataclass(frozen=True, eq=False)
class Attribution:
    """What each part of a site's activations does to one number.

    Attributes:
        table: a row per part, in this order: the largest latents, place by place ("latent"), the sum of all others
            ("rest"), the error x - x_hat ("error"), what the SAE adds at every token ("bias"), and all of it together
            ("total"). Positive: the number is larger for it.
        clean: the number on the untouched run.
        about: prompt, site, what the number is.
    """

    table: pd.DataFrame
    clean: float
    about: dict[str, Any]

    @property
    def latents(self) -> pd.DataFrame:
        """The latents' rows summed over places, one row per latent, largest effect first."""
        rows = self.table[self.table.node == "latent"]
        summed = rows.groupby("latent")[["activation", "gradient_x_activation", "ablation"]].sum().reset_index()
        return summed.sort_values("gradient_x_activation", key=abs, ascending=False, ignore_index=True)

    @property
    def completeness(self) -> float:
        """Sum of gradient x activation over all parts, as a share of what taking all of it away does: 1 if linear."""
        total = self.table[self.table.node == "total"].iloc[0]
        return total.gradient_x_activation / total.ablation if total.ablation else float("nan")

    @property
    def figure(self):
        """Gradient x activation beside ablation, part by part (plotly)."""
        return plots.effects(self.table[self.table.node != "total"], self.about["of"])

    def to_json(self) -> dict[str, Any]:
        rows = self.table.astype(object).where(self.table.notna(), None).to_dict("records")
        return {"clean": self.clean, "completeness": self.completeness, "about": self.about, "table": rows}

    def __repr__(self) -> str:
        a = self.about
        shown = self.table.head(5).to_string(index=False, float_format=lambda v: f"{v:.3g}", na_rep="")
        return f"Attribution of {a['of']} ({self.clean:.3f}) at {a['site']} on {a['prompt']!r}\n{shown}"


def attribute(
    sae: SAE,
    lm: LM,
    prompt: str,
    of: str | Sequence[str] = "ce",
    *,
    site: str | Site | None = None,
    top: int = 20,
) -> Attribution:
    """What each latent does to a number on a prompt.

    Args:
        of: two tokens, (" he", " she"): the first's logit less the second's, of what follows the prompt; one token,
            (" he",): its logit; "ce": the cross-entropy of the prompt in nats, summed over its tokens.
        top: how many latents, each at one place, get a row and an ablation of their own.

    Raises:
        ValueError: an `of` that is not a token of this model, a prompt of one token for "ce" or beyond the context, an
            SAE that does not fit, a remote model.
    """
    if lm.remote:
        raise ValueError(f"{lm.name} is remote: attribution needs its gradients and logits. Load the model here.")
    site = fitting(sae, lm, site)
    ids, _ = lm.encode(prompt)
    measure, name = _measure(lm, ids, of)
    keep = ~lm.special(ids)[0]
    if not keep.any():
        raise ValueError(f"The prompt {prompt!r} holds special tokens alone, at which no SAE reads. Give it a word.")
    gradient = lm.gradients(ids, site.target, of=lambda logits: measure(logits).sum())[0].float()
    parts = _Parts(sae, lm, ids, site, keep, gradient, top)
    clean = lm.logits(ids)
    table, number = parts.table, measure(clean)[0].item()
    table["ablation"] = number - _without(lm, ids, site, parts, clean, measure)
    words = _words(lm, prompt, ids)
    table.insert(3, "token", [words[p] if p >= 0 else None for p in table.position])
    for column in ("latent", "position"):
        table[column] = table[column].astype("Int64").mask(table[column] < 0)
    return Attribution(table, number, {"prompt": prompt, "of": name, "site": str(site), "model": lm.name})


class _Parts:
    """What a site's activations on a prompt are the sum of, and how much of the number each makes up by the gradient.

    `table` has a row per part; `written(i)` is what part i adds, place by place.
    """

    @torch.no_grad()
    def __init__(self, sae: SAE, lm: LM, ids: Ids, site: Site, keep: LatentMask, gradient: Rows, top: int):
        read = {s: a[0].to(sae.W_dec) for s, a in lm.read(ids, {site, site.target}).items()}
        self.place = keep.nonzero()[:, 0].to(sae.W_dec.device)
        self.shape, x, y = read[site.target].shape, read[site][self.place], read[site.target][self.place]
        slope, z = gradient.to(sae.W_dec)[self.place], sae.encode(x).detach()
        size = sae.token_scale(x)[1]  # of what a latent adds, by token
        latent, token = z.support.latent.long(), z.support.token
        effect = z.value * ((slope * size)[token] * sae.W_dec[latent]).sum(-1)
        largest = effect.abs().topk(min(top, len(effect))).indices
        others = z.value.index_fill(0, largest, 0.0)
        self.token = token[largest]
        self.single = z.value[largest, None] * sae.W_dec[latent[largest]] * (torch.ones_like(y) * size)[self.token]
        bias = sae.beside(x).expand_as(y)
        self.whole = {
            "rest": decode(z.to(others), sae.W_dec) * size,
            "error": y - sae.reconstruct(z, x),
            "bias": bias,
            "total": y,
        }
        columns = (latent[largest], self.place[self.token], z.value[largest], effect[largest])
        rows = [("latent", *row) for row in zip(*(c.tolist() for c in columns))]
        rows += [(name, -1, -1, np.nan, (slope * w).sum().item()) for name, w in self.whole.items()]
        self.table = pd.DataFrame(rows, columns=["node", "latent", "position", "activation", "gradient_x_activation"])

    def __len__(self) -> int:
        return len(self.table)

    def written(self, i: int) -> Rows:
        out = self.single.new_zeros(self.shape)
        if i < len(self.single):
            out[self.place[self.token[i]]] = self.single[i]
        else:
            out[self.place] = list(self.whole.values())[i - len(self.single)]
        return out


@torch.no_grad()
def _without(
    lm: LM, ids: Ids, site: Site, parts: _Parts, clean: Logits, measure: Measure
) -> Float[np.ndarray, " parts"]:
    """The number with each part taken away, a batch of parts at a time."""
    numbers = []
    for some in torch.arange(len(parts)).split(max(1, lm.at_once // ids.shape[1])):
        away = torch.stack([parts.written(i) for i in some.tolist()])
        same = clean.expand(len(some), -1, -1)
        out = lm.splice(ids.expand(len(some), -1), site.target, lambda x, a=away: x - a.to(x.device), clean=same)
        numbers.append(measure(out.logits).double().cpu().numpy())
    return np.concatenate(numbers)


def _measure(lm: LM, ids: Ids, of: Any) -> tuple[Measure, str]:
    """(the number of each row's logits, its name)."""
    if isinstance(of, str) and of == "ce":
        counts = ~lm.special(ids)[0].roll(-1)
        counts[-1] = False
        if not counts.any():
            raise ValueError("of='ce' needs a prompt of at least one token behind another: nothing is predicted here.")
        return lambda logits: ce(logits, ids.to(logits.device).expand(len(logits), -1))[:, counts].sum(1), "CE"
    names = (of,) if isinstance(of, str) else tuple(of)
    if not 1 <= len(names) <= 2:
        raise ValueError(f"of={of!r} names {len(names)} tokens. Give two, (' he', ' she'), one, or 'ce'.")
    first, *second = [_token(lm, name) for name in names]
    if second == [first]:
        raise ValueError(f"of={of!r} names one token twice: their difference is 0 whatever the latents do.")
    last = lambda logits, i: logits[:, -1, i].float()  # noqa: E731
    if not second:
        return lambda logits: last(logits, first), f"logit of {names[0]!r}"
    return lambda logits: last(logits, first) - last(logits, second[0]), f"logit of {names[0]!r} less {names[1]!r}"


def _token(lm: LM, name: str) -> int:
    ids = lm.tokenizer(name, add_special_tokens=False, verbose=False)["input_ids"]
    if lm.words(ids) != [name]:  # SentencePiece puts a space in front of any text: "he" becomes " he", " he" two tokens
        known = lm.tokenizer.get_vocab()
        exact = {known[mark] for mark in (name, name.replace(" ", "▁")) if mark in known}
        ids = [i for i in exact if lm.words([i]) == [name]] or ids
    if len(ids) != 1:
        pieces = ", ".join(map(repr, lm.words(ids))) or "none"
        raise ValueError(
            f"{name!r} is {len(ids)} tokens of {lm.name} ({pieces}): give one that is a single token. A space in front "
            "matters: ' she' and 'she' are different tokens."
        )
    return ids[0]


def _words(lm: LM, prompt: str, ids: Ids) -> list[str]:
    """The text of each token as it stands in the prompt; the BOS in front is empty."""
    offsets = lm.tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True, verbose=False)[
        "offset_mapping"
    ]
    return [""] * (ids.shape[1] - len(offsets)) + [prompt[a:b] for a, b in offsets]
