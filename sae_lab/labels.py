"""The labelled world's concepts on tokens of its text: which each token carries, and which those imply."""

from itertools import pairwise

import numpy as np
import torch
from scipy import sparse

from .shapes import Mask
from .tiny import world
from .tiny.world.tree import lineage
from .tokens import TokenBlock


def lineages(names: tuple[str, ...]) -> sparse.csr_array:
    """[concepts, concepts]: which concepts each one implies, itself and those above it in the tree."""
    ids = {name: i for i, name in enumerate(names)}
    above = [[ids[name] for name in lineage(leaf) if name in ids] for leaf in names]
    row = np.repeat(np.arange(len(names)), [len(a) for a in above])
    return sparse.csr_array((np.ones(len(row), bool), (row, np.concatenate(above))), shape=(len(names),) * 2)


def token_concepts(block: TokenBlock, keep: Mask, concepts: world.Concepts) -> sparse.csr_array:
    """Which concepts each kept token of a block of the world carries: [kept tokens, concepts]."""
    size = len(concepts.names)
    of, spans = block.doc[keep].numpy(), torch.stack([block.start, block.end], -1)[keep].numpy()
    order = np.argsort(of, kind="stable")
    cuts = np.flatnonzero(np.diff(of[order], prepend=-1, append=-1))
    tokens, ids = [], []
    for begin, end in pairwise(cuts):
        here = order[begin:end]
        token, concept = world.token_labels(block.texts[of[here[0]] - block.first], spans[here], concepts)
        tokens.append(here[token])
        ids.append(concept)
    token, concept = np.concatenate(tokens), np.concatenate(ids)
    known = concept < size
    place = (token[known], concept[known])
    return sparse.csr_array((np.ones(known.sum(), bool), place), shape=(len(of), size))
