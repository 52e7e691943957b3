"""What a study of splitting found: shares beside the null, families, and how far they follow the world's tree."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int

from .. import plots
from ..directions import chance_below
from ..families import CHILDREN, PARENTS, Families, Rule
from ..intervals import Estimate, draws, interval, plain_json
from ..labels import lineages
from ..tiny import world

NAMED = 0.3  # F1 from which on a latent is said to have a concept
SHUFFLES = 1000


@dataclass(frozen=True)
class Link:
    """From one dictionary to a wider one, or, as a null, between two seeds.

    Attributes:
        concepts: best concept and its F1 of each parent, of each child; empty where the text has no labels.
    """

    old: str
    new: str
    families: Families
    concepts: tuple[pd.DataFrame, pd.DataFrame] | tuple[()] = ()
    null: "Link | None" = None

    def shares(self) -> pd.DataFrame:
        """The share of each verdict, with its interval, beside the null's."""
        rows, null = [], self.null.families.shares() if self.null else {}
        for (side, kind), share in self.families.shares().items():
            row = {"from": self.old, "to": self.new, "of": side, "kind": kind}
            for name, draw in (("share", share), ("null", null.get((side, kind)))):
                e = interval(draw) if draw is not None else Estimate(np.nan, np.nan, np.nan)
                row |= {name: e.value, f"{name}_low": e.low, f"{name}_high": e.high}
            rows.append(row)
        return pd.DataFrame(rows)

    def parents(self) -> pd.DataFrame:
        """One row per living parent: its verdict, its children, how well they cover it and how much they overlap."""
        f, tree = self.families, self.families.tree
        of = np.split(tree.of.indices, tree.of.indptr[1:-1])
        table = pd.DataFrame(
            {
                "from": self.old,
                "to": self.new,
                "parent": np.arange(len(of)),
                "verdict": np.array(PARENTS)[f.verdicts[:, 0]],
                "children": [tuple(c.tolist()) for c in of],
                "cosines": [tuple(f.cosine[c].round(3).tolist()) for c in of],
                "cover": f.cover[:, 0],
                "overlap": np.where(f.children > 1, f.overlap[:, 0], np.nan),
                "alone": f.alone[:, 0],
                "firings": tree.counts["parents"][:, 0].astype(int),
            }
        )
        if self.concepts:
            mine, theirs = self.concepts
            table["concept"], table["f1"] = mine["concept"], mine["f1"]
            table["children's concepts"] = [tuple(theirs["concept"].iloc[c]) for c in of]
        return table[f.alive[0]]

    def follows(self, seed: int = 0) -> dict[str, Any]:
        """How often split children's concepts lie under their parent's in the world's tree, and are the same one;
        `chance`: where the children of all splits are shuffled. Only latents of which F1 says that they have a concept.
        """
        f, (mine, theirs) = self.families, self.concepts
        child = np.flatnonzero(f.kinds[:, 0] == 0)
        parent = f.tree.parent[child]
        named = (mine["f1"].to_numpy()[parent] >= NAMED) & (theirs["f1"].to_numpy()[child] >= NAMED)
        parent, child = parent[named], child[named]
        above, below = mine["id"].to_numpy()[parent], theirs["id"].to_numpy()[child]
        under = lineages(tuple(c.name for c in world.concepts())).toarray().T
        strictly = under & ~np.eye(len(under), dtype=bool)
        splits, of = np.unique(parent, return_inverse=True)
        row = {"from": self.old, "to": self.new, "splits": len(splits), "children": len(child)}
        rng = np.random.default_rng(seed)
        shuffles = [rng.permutation(below) for _ in range(SHUFFLES if len(child) else 0)]
        for name, holds in (("below", strictly), ("same", np.eye(len(under), dtype=bool))):
            found = _per_split(holds[above, below], of, len(splits))
            by_chance = [holds[above, b].mean() for b in shuffles] or [np.nan]
            chance = Estimate(float(np.mean(by_chance)), *np.quantile(by_chance, [0.025, 0.975]).tolist())
            row |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
            row |= {f"{name}_chance": chance.value, f"{name}_chance_high": chance.high}
        return row


@dataclass(frozen=True)
class Splitting:
    """What became of latents from each width, or level, to the next.

    Attributes:
        links: one per pair of neighbouring widths, each with its null.
        about: what was measured on, and the rule that was applied.
    """

    links: tuple[Link, ...]
    about: dict[str, Any]

    @property
    def table(self) -> pd.DataFrame:
        """One row per share: of parents and of children, beside the null."""
        return pd.concat([link.shares() for link in self.links], ignore_index=True)

    @property
    def families(self) -> pd.DataFrame:
        """One row per living parent."""
        return pd.concat([link.parents() for link in self.links], ignore_index=True)

    @property
    def follows(self) -> pd.DataFrame:
        """How often splits follow the world's tree, beside chance; the nulls' own splits below.

        Raises:
            ValueError: if the text has no labels.
        """
        if not self.links[0].concepts:
            raise ValueError(f"The text {self.about['text']!r} has no labels: splits follow the tree of text='world'.")
        nulls = {id(link.null): link.null for link in self.links if link.null}
        return pd.DataFrame([link.follows() for link in (*self.links, *nulls.values())])

    @property
    def flows(self) -> pd.DataFrame:
        """One row per living latent that may be a child: its number, its parent's (-1: none), and the boxes of the
        figure between which it is counted; shares are in their names."""
        return pd.concat([_flows(link) for link in self.links], ignore_index=True)

    @property
    def figure(self):
        """What became of the latents, and their best cosines beside the null's and random directions' (plotly)."""
        counted = self.flows[["out of", "into"]].value_counts(sort=False).reset_index(name="latents")
        return plots.splitting(counted, _curves(self.links), self.rule.cosine)

    @property
    def treemap(self):
        """The split latents with their children, as large as they fire often (plotly)."""
        return plots.treemap(_nested(self.links))

    @property
    def starts(self) -> list[str]:
        """Pairs of one seed: a wide dictionary then begins with the very rows of the narrow one."""
        return self.about["same start"]

    @property
    def rule(self) -> Rule:
        return self.links[0].families.rule

    def to_json(self) -> dict[str, Any]:
        rows = [self.table] + ([self.follows] if self.links[0].concepts else [])
        shares, *tree = (plain_json(of.to_dict("records")) for of in rows)
        splits = self.families.query("verdict == 'split'")
        splits = plain_json(splits.to_dict("records"))
        return {"shares": shares, "tree": tree[0] if tree else [], "splits": splits, "about": self.about}

    def __repr__(self) -> str:
        rows = []
        for (old, new), t in self.table.groupby(["from", "to"], sort=False):
            null = (lambda r: f" (null {r.null:.1%})") if self.links[0].null else lambda r: ""
            said = [f"{r.kind} {r.share:.1%}{null(r)}" for r in t.itertuples() if r.of == "children"]
            rows.append(f"Splitting {old} -> {new}: of {new}'s latents {', '.join(said)}")
        rows += [] if self.links[0].null else ["No null: give null=[two seeds of one width]."]
        rows += [f"{pair} have one seed: they began with the same rows, and match for that." for pair in self.starts]
        return "\n".join(rows)


def _flows(link: Link) -> pd.DataFrame:
    f, box = link.families, {}
    for row in link.shares().itertuples():
        null = f" (null {row.null:.0%})" if link.null else ""
        box[row.kind, row.of] = f"{row.to if row.of == 'children' else link.old}: {row.kind} {row.share:.0%}{null}"
    rows = []
    for child in np.flatnonzero(f.alive[1]):
        parent = int(f.tree.parent[child])
        out = f"{link.new}: no parent" if parent < 0 else box[PARENTS[f.verdicts[parent, 0]], "parents"]
        rows.append((link.old, link.new, parent, int(child), out, box[CHILDREN[f.kinds[child, 0]], "children"]))
    return pd.DataFrame(rows, columns=["from", "to", "parent", "child", "out of", "into"])


def _curves(links: Sequence[Link]) -> pd.DataFrame:
    """Shares of living children by their largest cosine with a latent of the other, of nulls, and by chance."""
    edges, curves = np.arange(-0.1, 1.01, 0.02), {}
    for link in links:
        for one in filter(None, (link, link.null)):
            best = one.families.near.cosine[one.families.alive[1], 0]
            name = f"{one.new} in {one.old}" + (" (null)" if one is link.null else "")
            curves[name] = np.histogram(best, edges)[0] / len(best)
        curves["random directions"] = np.diff(chance_below(edges, link.families.d_in, len(link.families.children)))
    return pd.DataFrame(curves, index=(edges[:-1] + edges[1:]) / 2)


def _nested(links: Sequence[Link]) -> pd.DataFrame:
    """For the treemap: links, their split parents, these parents' children."""
    rows = []
    for link in links:
        top, f = f"{link.old} to {link.new}", link.families
        rows.append((top, "", top, 0.0))
        for row in link.parents().query("verdict == 'split'").to_dict("records"):
            here = f"{top}/{row['parent']}"
            rows.append((here, top, f"{row['parent']} {row.get('concept', '')}", 0.0))
            names = row.get("children's concepts", [""] * len(row["children"]))
            for child, name in zip(row["children"], names):
                rows.append((f"{here}/{child}", here, f"{child} {name}", float(f.tree.counts["inside"][child, 0])))
    return pd.DataFrame(rows, columns=["id", "within", "label", "size"])


def _per_split(holds: Bool[np.ndarray, " children"], of: Int[np.ndarray, " children"], splits: int) -> Estimate:
    """The share of children of which it holds, with a bootstrap over splits."""
    if not splits:
        return Estimate(np.nan, np.nan, np.nan)
    weights = draws(splits, 1000)
    return interval((weights @ np.bincount(of, holds)) / (weights @ np.bincount(of)))
