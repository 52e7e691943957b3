"""Absorption on the world's tree, where parents and children are known: animal > pet > dog.

For each parent a probe on raw activations and the latent that names it best, both from the validation split. On the
test split, among the tokens of a child that the probe calls: how often the parent's latent is silent while a latent of
the child (the best for it or for a concept below it) carries at least 0.4 of the activation's projection onto the
probe. From this the rate is taken at which the parent's latent is silent on the siblings: what it misses anyway.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from .. import plots
from ..intervals import Estimate, draws, interval
from ..labelled import Examples, Labels, read_labels, read_parts
from ..models import LM
from ..probes import Probe, f1_of, fit, tally
from ..reading import own_directions
from ..recovery import HIGHEST, Choice, Firings, choose
from ..saes import SAE
from ..sites import Site

CARRIED = 0.4  # share of the probe's projection that one latent has to carry
PROBED = 0.6  # F1 on other text that a parent's probe has to reach
NAMED = 0.5  # share of a parent's tokens, on the text it was chosen on, that its latent has to fire on
TOKENS = 20  # of a child, and of its siblings, that the probe has to call on the text scored on
ROWS = 10_000  # that a probe is fitted to

COUNTS = ("tokens", "absorbed", "silent", "sibling_tokens", "sibling_silent")


@dataclass(frozen=True)
class Absorption:
    """Rates per parent and child on text that nothing was chosen on.

    Attributes:
        pairs: parent, child, the parent's latent, and how well probe and latent name the parent.
        counts: per document and pair: `COUNTS`, of tokens that the probe calls.
        refused: parents left out, and why.
    """

    pairs: pd.DataFrame
    counts: Float[np.ndarray, "docs pairs 5"]
    refused: dict[str, str]
    about: dict[str, Any]

    @property
    def mean(self) -> Estimate:
        """Mean absorption over pairs; a latent that misses siblings as often as a child's tokens has none."""
        return interval(np.nanmean(self._rates()["absorption"], axis=1))

    @property
    def by_parent(self) -> pd.DataFrame:
        """Mean over the children of each parent, with its interval."""
        rates, rows = self._rates()["absorption"], []
        for parent, at in self.pairs.groupby("parent", sort=False).indices.items():
            e = interval(np.nanmean(rates[:, at], axis=1))
            rows.append((parent, len(at), e.value, e.low, e.high))
        return pd.DataFrame(rows, columns=["parent", "children", "absorption", "low", "high"])

    @property
    def table(self) -> pd.DataFrame:
        """One row per parent and child, most absorbed first."""
        rates = self._rates()
        columns = {name: of[0] for name, of in rates.items()} | {"tokens": self.counts[..., 0].sum(0).astype(int)}
        low, high = np.nanquantile(rates["absorption"][1:], [0.025, 0.975], axis=0)
        found = self.pairs.assign(**columns, low=low, high=high)
        return found.sort_values("absorption", ascending=False, ignore_index=True)

    def _rates(self, n: int = 300) -> dict[str, Float[np.ndarray, "draws pairs"]]:
        sums = np.einsum("wd,dpc->cwp", draws(len(self.counts), n), self.counts, optimize=True)
        named = dict(zip(COUNTS, sums))
        with np.errstate(invalid="ignore", divide="ignore"):
            rates = {name: named[name] / named["tokens"] for name in ("absorbed", "silent")}
            rates["sibling_silent"] = named["sibling_silent"] / named["sibling_tokens"]
        return rates | {"absorption": rates["absorbed"] - rates["sibling_silent"]}

    @property
    def figure(self):
        """The most absorbed children: share absorbed, and the rate at which siblings are missed (plotly)."""
        return plots.absorbed(self.table)

    def to_json(self) -> dict[str, Any]:
        pairs = self.table.to_dict("records")
        return {"absorption": self.mean.to_json(), "pairs": pairs, "refused": self.refused, "about": self.about}

    def __repr__(self) -> str:
        top = self.table.iloc[0]
        return (
            f"Absorption at {self.about['site']} over {len(self.pairs)} children of {self.pairs.parent.nunique()} "
            f"parents: mean {self.mean}; most of {top.child}: {top.absorbed:.0%} absorbed, where siblings are missed "
            f"{top.sibling_silent:.0%} of the time"
        )


def absorbed(
    sae: SAE,
    lm: LM,
    *,
    parents: Iterable[str] | None = None,
    site: str | Site | None = None,
    tokens: int = 100_000,
    seed: int = 0,
    **options: Any,
) -> Absorption:
    """How often latents of the world's concepts fall silent where a child's latent fires in their stead.

    Args:
        parents: concepts with children; default: all that cover at most a fifth of the tokens.
        tokens: in each of the two splits.

    Raises:
        ValueError: a parent without children; no parent whose probe reaches F1 0.6 and whose children are frequent.
    """
    site = own_directions(sae, site)
    labels = read_labels("world")
    families = _families(labels, parents)
    learnt, held = read_parts(lm, site, labels, {"": sae}, tokens, seed, **options)
    latents = _naming(learnt)
    rows, counts, refused = [], [], {}
    for parent, children in families.items():
        latent, latent_f1 = int(latents.unit[parent]), float(latents.f1[parent])
        found = _probed(learnt, held, parent, latent, everywhere=parents is None)
        if not isinstance(found, str):
            probe, f1 = found
            members = {c: held.truth(c) for c in children}
            own = {c: _named_below(latents.unit, learnt.counts, labels, c) - {latent} for c in children}
            found = (
                measure(held, sae, probe, latent, held.truth(parent), members, own) or f"no child of {TOKENS} tokens"
            )
        if isinstance(found, str):
            refused[labels.names[parent]] = found
            continue
        for child, of in found.items():
            shown = {"latent": latent, "latent_f1": latent_f1, "probe_f1": f1}
            rows.append({"parent": labels.names[parent], "child": labels.names[child]} | shown)
            counts.append(of)
    if not rows:
        why = "; ".join(f"{n}: {w}" for n, w in list(refused.items())[:5])
        raise ValueError(f"Absorption needs a parent with a probe of F1 {PROBED} and frequent children ({why}).")
    about = {"site": str(site), "model": lm.name, "rows": [len(learnt.doc), len(held.doc)], "documents": held.docs}
    return Absorption(pd.DataFrame(rows), np.stack(counts, 1), refused, about | {"seed": seed})


def _families(labels: Labels, parents: Iterable[str] | None) -> dict[int, list[int]]:
    ids = {name: i for i, name in enumerate(labels.names)}
    found: dict[int, list[int]] = {}
    for name, i in ids.items():
        if "." in name:
            found.setdefault(ids[name.rpartition(".")[0]], []).append(i)
    if parents is None:
        return {i: children for i, children in found.items() if len(children) > 1}
    asked = [parents] if isinstance(parents, str) else list(parents)
    odd = [name for name in asked if len(found.get(ids.get(name, -1), [])) < 2]
    if odd:
        raise ValueError(
            f"{odd[0]!r} is no concept with children. Some are: entity.animal, entity.food, attribute.colour."
        )
    return {ids[name]: found[ids[name]] for name in asked}


def _probed(learnt: Examples, held: Examples, parent: int, latent: int, everywhere: bool) -> tuple[Probe, float] | str:
    """The parent's probe and its F1 on held-out text, or why there is none."""
    n, y = learnt.counts[parent], held.truth(parent)
    if min(n, y.sum()) < 2 * TOKENS:
        return f"{min(n, y.sum())} tokens"
    if everywhere and n > HIGHEST * len(learnt.doc):
        return f"on {n / len(learnt.doc):.0%} of the tokens"
    fires = float((learnt.codes[""][learnt.truth(parent)][:, [latent]].toarray() != 0).mean())
    if fires < NAMED:
        return f"its best latent, {latent}, fires on {fires:.0%} of its tokens"
    probe = fit(learnt.acts, learnt.truth(parent), ROWS)
    f1 = float(f1_of(tally(probe(held.acts) > probe.cut, y, held.doc, held.docs).sum(0)))
    return (probe, f1) if f1 >= PROBED else f"probe F1 {f1:.2f} under {PROBED}"


def _naming(learnt: Examples) -> Choice:
    """The latent that names each label best."""
    z = learnt.codes[""].tocoo()
    return choose(
        Firings(z.col.astype(np.int32), z.row.astype(np.int32), z.data, z.shape[1], z.shape[0]), learnt.labels
    )


def _named_below(unit: Int[np.ndarray, " names"], counts: np.ndarray, labels: Labels, child: int) -> set[int]:
    """The latents that name a child or a concept below it, of those with tokens enough to tell."""
    name = labels.names[child]
    under = [i for i, other in enumerate(labels.names) if other == name or other.startswith(name + ".")]
    return {int(unit[i]) for i in under if counts[i] >= TOKENS}


def measure(
    held: Examples,
    sae: SAE,
    probe: Probe,
    latent: int,
    family: Bool[np.ndarray, " rows"],
    members: dict[int, Bool[np.ndarray, " rows"]],
    own: dict[int, set[int]],
) -> dict[int, Float[np.ndarray, "docs 5"]]:
    """`COUNTS` per document for each child with enough tokens.

    Args:
        latent: the parent's.
        family, members: which rows have the parent, and each child.
        own: latents of each child.
    """
    rows = np.flatnonzero(family & (probe(held.acts) > probe.cut))
    z, doc = held.codes[""][rows].tocsc(), held.doc[rows]
    silent = z[:, [latent]].toarray()[:, 0] == 0
    direction = probe.weight / np.linalg.norm(probe.weight)
    projection = (held.acts[rows] - sae.b_dec.detach().cpu().numpy()) @ direction
    adds = sae.W_dec.detach().double().cpu().numpy() @ direction
    found = {}
    for child, truth in members.items():
        here = truth[rows]
        if min(here.sum(), (~here).sum()) < TOKENS:
            continue
        latents = sorted(own[child])
        parts = z[:, latents].toarray() * adds[latents]
        carried = (parts.max(1, initial=0) >= CARRIED * projection) & (projection > 0)
        columns = (here, here & silent & carried, here & silent, ~here, ~here & silent)
        found[child] = np.stack([np.bincount(doc, c, held.docs) for c in columns], 1)
    return found
