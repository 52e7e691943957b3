"""Labels on tokens of text: which each token carries, and which of the world's concepts imply which."""

from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np
import torch
from jaxtyping import Int
from scipy import sparse

from .shapes import Mask
from .tiny import world
from .tiny.world.tree import lineage
from .tokens import TokenBlock


@dataclass(frozen=True)
class LabelledText:
    """A text; labels of its words, (start, end, label), that count on a word's last token; labels of the whole of it,
    that count on all its tokens."""

    text: str
    words: tuple[tuple[int, int, str], ...] = ()
    whole: tuple[str, ...] = ()

    def on_tokens(self, spans: Int[np.ndarray, "tok 2"], ids: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
        """(token, label id) pairs for tokens at `spans`, in reading order."""
        last = [int(np.searchsorted(spans[:, 1], end)) for _, end, _ in self.words]
        found = [
            (at, ids[label]) for at, (_, end, label) in zip(last, self.words) if at < len(spans) and spans[at, 0] < end
        ]
        found += [(at, ids[label]) for label in self.whole for at in range(len(spans))]
        pairs = np.array(found, int).reshape(-1, 2)
        return pairs[:, 0], pairs[:, 1]


def lineages(names: tuple[str, ...]) -> sparse.csr_array:
    """[concepts, concepts]: which concepts each one implies, itself and those above it in the tree."""
    ids = {name: i for i, name in enumerate(names)}
    above = [[ids[name] for name in lineage(leaf) if name in ids] for leaf in names]
    row = np.repeat(np.arange(len(names)), [len(a) for a in above])
    return sparse.csr_array((np.ones(len(row), bool), (row, np.fromiter(chain(*above), int))), shape=(len(names),) * 2)


def token_concepts(block: TokenBlock, keep: Mask, concepts: world.Concepts) -> sparse.csr_array:
    """Which concepts each kept token of a block carries: [kept tokens, concepts]."""
    size = len(concepts.names)
    of, spans = block.doc[keep].numpy(), torch.stack([block.start, block.end], -1)[keep].numpy()
    order = np.lexsort((spans[:, 0], of))
    cuts = np.flatnonzero(np.diff(of[order], prepend=-1, append=-1))
    tokens, ids = [np.zeros(0, int)], [np.zeros(0, int)]  # a page may hold no token that counts
    for begin, end in pairwise(cuts):
        here = order[begin:end]
        text = block.texts[of[here[0]] - block.first]
        known = isinstance(text, LabelledText)
        token, concept = (
            text.on_tokens(spans[here], concepts.ids) if known else world.token_labels(text, spans[here], concepts)
        )
        tokens.append(here[token])
        ids.append(concept)
    token, concept = np.concatenate(tokens), np.concatenate(ids)
    known = concept < size
    place = (token[known], concept[known])
    return sparse.csr_array((np.ones(known.sum(), bool), place), shape=(len(of), size))
