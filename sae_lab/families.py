"""Parents and children: which latents of a wide dictionary one of a narrow dictionary became, by direction and firing.

A child has a decoder row near its parent's and fires where it does. A parent is
    split   if it has several children that together cover its firings, overlap little, and none of which does it alone
    match   if it has one child, or one that alone covers nearly all that they cover together
    mixed   if it has several, but they overlap or leave most of its firings out
    lost    if it has none
and a child is "split" or "shared" as its parent is, "related" if its parent is mixed or matched by another, "new" if it
has no parent. Counts come from text as it streams by, with one column per resampling of its documents (the first is the
text itself), so that memory depends on the number of latents alone.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import sparse

from .directions import Dictionary, Neighbours, unit
from .sparse import Latents

PARENTS, CHILDREN = ("split", "match", "mixed", "lost"), ("split", "shared", "related", "new")

Counts = Float[np.ndarray, "_ _"]  # of latents or pairs, a column per resampling


@dataclass(frozen=True)
class Rule:
    """What makes a child and a split.

    Attributes:
        cosine: how near a child's decoder row is at least.
        inside: the share of a child's firings on which its parent fires, at least.
        lift: how many times the share of all tokens on which the parent fires that share is, at least.
        cover: the share of a parent's firings on which some child fires, at least, for a split.
        overlap: the share of the rarer sibling's firings on which the other fires, mean over pairs, at most.
        alone: the share of what all children cover that one of them covers, at most, for a split.
        least: firings under which a latent counts as silent.
    """

    cosine: float
    inside: float = 0.5
    lift: float = 0.0
    cover: float = 0.5
    overlap: float = 0.5
    alone: float = 0.9
    least: int = 20


def fired(z: Latents) -> sparse.csc_array:
    """[tokens, d_sae]: 1 where a latent fires."""
    on = (z.value.detach().abs() > 0).cpu()
    latent, token = z.support.latent.cpu()[on].int().numpy(), z.support.token.cpu()[on].numpy()
    start = np.concatenate([[0], np.bincount(token, minlength=z.support.tok).cumsum()])
    return sparse.csr_array((np.ones(len(latent)), latent, start), shape=(z.support.tok, z.support.d_sae)).tocsc()


def together(a: sparse.csc_array, b: sparse.csc_array, of: Int[np.ndarray, " pairs"], to: Int[np.ndarray, " pairs"]):
    """[tokens, pairs]: 1 where latent `of` of a and latent `to` of b both fire."""
    return a[:, of].multiply(b[:, to])


class Meeting:
    """Which latents of two dictionaries could be parent and child, and how often those fire together.

    Each child's candidates are its `near` ones where these are given. Without, its firing finds them, at the price of a
    number for every two latents that ever fire together: in the levels of one dictionary a child's row is what its
    parent's lacks, and not like it.
    """

    def __init__(self, old: Dictionary, new: Dictionary, near: Neighbours | None):
        self.old, self.new, self.near, self.tokens = old, new, near, 0
        self.common = 0 if near is None else np.zeros(near.index.shape)
        self.times = (np.zeros(len(old)), np.zeros(len(new)))

    def add(self, old: sparse.csc_array, new: sparse.csc_array) -> None:
        """Counts on some tokens what fires of the parents' dictionary and of the children's."""
        self.tokens += old.shape[0]
        for times, matrix in zip(self.times, (old, new)):
            times += matrix.sum(0)
        if self.near is None:
            self.common = self.common + new.T @ old
        else:
            child = np.repeat(np.arange(len(self.common)), self.common.shape[1])
            self.common += together(new, old, child, self.near.index.ravel()).sum(0).reshape(self.common.shape)

    def settle(self, k: int) -> None:
        """Without neighbours by direction, takes those by firing: the k of the largest F1."""
        if self.near is not None:
            return
        index, common = np.zeros((len(self.new), k), int), np.zeros((len(self.new), k))
        table = self.common.tocsr()
        for child, (first, last) in enumerate(pairwise(table.indptr)):
            who, both = table.indices[first:last], table.data[first:last]
            best = np.argsort(-both / (self.times[0][who] + self.times[1][child]), kind="stable")[:k]
            index[child, : len(best)], common[child, : len(best)] = who[best], both[best]
        rows, among = unit(self.new), unit(self.old)
        cosine = torch.stack([(rows * among[torch.from_numpy(column)]).sum(1) for column in index.T], 1)
        self.near, self.common = Neighbours(index, cosine.cpu().numpy()), common

    def parents(self, rule: Rule) -> Int[np.ndarray, " children"]:
        """The parent of each child, or -1: of its candidates that are near enough and fire where it does, the first."""
        times, often = self.times[1][:, None], self.times[0][self.near.index] / max(self.tokens, 1)
        fits = (self.near.cosine >= rule.cosine) & (times >= rule.least)
        fits &= self.common >= np.maximum(rule.inside, rule.lift * often) * times
        return np.where(fits.any(1), self.near.index[np.arange(len(fits)), fits.argmax(1)], -1)

    @property
    def strays(self) -> Float[np.ndarray, " some"]:
        """The largest cosine of every living child that is not the nearest of all to its nearest: without a match."""
        alive = self.times[1] >= Rule.least
        nearest, cosine = self.near.index[alive, 0], self.near.cosine[alive, 0]
        best = np.full(len(self.old), -np.inf)
        np.maximum.at(best, nearest, cosine)
        return cosine[cosine < best[nearest]]


class Tree:
    """Children with fixed parents, and what they do on other text than they were chosen on."""

    def __init__(self, parent: Int[np.ndarray, " children"], parents: int):
        self.parent, has = parent, np.flatnonzero(parent >= 0)
        self.of = sparse.csc_array((np.ones(len(has)), (has, parent[has])), shape=(len(parent), parents))
        siblings = sparse.triu(self.of @ self.of.T, 1).tocoo()
        self.pairs = np.stack([siblings.row, siblings.col])
        self.counts: dict[str, Counts] = {}

    def add(self, old: sparse.csc_array, new: sparse.csc_array, weights: Float[np.ndarray, "tokens draws"]) -> None:
        """Counts what parents (`old`) and children (`new`) do on some tokens."""
        matrices = {
            "parents": old,
            "children": new,
            "inside": new.multiply(old @ self.of.T),
            "covered": old.multiply(new @ self.of > 0),
            "both": together(new, new, *self.pairs),
        }
        for name, matrix in matrices.items():
            self.counts[name] = self.counts.get(name, 0) + matrix.T @ weights


@dataclass(frozen=True)
class Families:
    """What became of the latents of one dictionary in another.

    Attributes:
        tree: children with their parents.
        near: each child's candidates, the nearest by direction or, of levels, by firing first.
        alive: which parents and which children fire at all; shares are of these.
    """

    tree: Tree
    near: Neighbours
    alive: tuple[Bool[np.ndarray, " parents"], Bool[np.ndarray, " children"]]
    rule: Rule
    d_in: int

    @property
    def cosine(self) -> Float[np.ndarray, " children"]:
        """Each child's cosine with its parent; without one, with its first candidate."""
        of = self.near.index == self.tree.parent[:, None]
        return self.near.cosine[np.arange(len(of)), of.argmax(1)]

    @cached_property
    def children(self) -> Int[np.ndarray, " parents"]:
        """How many each parent has."""
        return np.diff(self.tree.of.indptr)

    @cached_property
    def cover(self) -> Counts:
        """Share of each parent's firings on which some child fires."""
        return _ratio(self.tree.counts["covered"], self.tree.counts["parents"])

    @cached_property
    def overlap(self) -> Counts:
        """Share of the rarer sibling's firings on which the other fires, mean over each parent's pairs of children."""
        (i, j), counts = self.tree.pairs, self.tree.counts
        shares = _ratio(counts["both"], np.minimum(counts["children"][i], counts["children"][j]))
        to = (np.ones(len(i)), (self.tree.parent[i], np.arange(len(i))))
        return _ratio(
            sparse.csr_array(to, shape=(len(self.children), len(i))) @ shares,
            (self.children * (self.children - 1) / 2)[:, None],
        )

    @cached_property
    def alone(self) -> Counts:
        """Share of what each parent's children cover that the one covers which covers most."""
        most = np.zeros_like(self.tree.counts["covered"])
        has = self.tree.of.indices
        np.maximum.at(most, self.tree.parent[has], self.tree.counts["inside"][has])
        return _ratio(most, self.tree.counts["covered"])

    @cached_property
    def verdicts(self) -> Int[np.ndarray, "parents draws"]:
        """Which of `PARENTS` each parent is."""
        several, rule = (self.children > 1)[:, None], self.rule
        split = several & (self.cover >= rule.cover) & (self.overlap <= rule.overlap) & (self.alone <= rule.alone)
        match = (self.children == 1)[:, None] | (several & (self.alone > rule.alone))
        return np.select([split, match, several], [0, 1, 2], 3)

    @cached_property
    def kinds(self) -> Int[np.ndarray, "children draws"]:
        """Which of `CHILDREN` each child is."""
        has, parent = self.tree.parent >= 0, self.tree.parent
        inside = np.where(has, self.tree.counts["inside"][:, 0], -1)
        order = np.lexsort((-inside, parent))
        heirs = np.zeros(len(has), bool)
        heirs[order[np.unique(parent[order], return_index=True)[1]]] = True
        of = self.verdicts[parent]
        return np.select([~has[:, None], of == 0, (of == 1) & heirs[:, None]], [3, 0, 1], 2)

    def shares(self) -> dict[tuple[str, str], Float[np.ndarray, " draws"]]:
        """The share of each verdict among living parents, and of each kind among living children."""
        sides = {"parents": (self.verdicts, PARENTS), "children": (self.kinds, CHILDREN)}
        return {
            (side, name): (found[alive] == i).mean(0)
            for (side, (found, names)), alive in zip(sides.items(), self.alive)
            for i, name in enumerate(names)
        }


def _ratio(a: Counts, b: Counts) -> Counts:
    return a / np.maximum(b, 1e-9)
