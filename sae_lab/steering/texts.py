"""Prompts, what a model writes on them, and what can be read off it."""

from collections.abc import Callable
from functools import lru_cache
from itertools import chain, count, islice
from typing import Any

import torch

from ..models import LM, Edit
from ..tiny import world

Concept = str | Callable[[str], bool]


def write(
    lm: LM, prompts: list[str], edits: dict[tuple[str, float], Edit | None], **writing: Any
) -> dict[tuple[str, float], list[tuple[str, str]]]:
    """Every prompt continued under every edit, 64 texts at a time: (prompt, continuation) by edit."""
    texts = {key: [] for key in edits}
    at_once = max(1, 64 // len(edits))
    for i in range(0, len(prompts), at_once):
        part = prompts[i : i + at_once]
        written = lm.generate(part, list(edits.values()), **writing | {"seed": writing.get("seed", 0) + i}).texts
        for n, key in enumerate(edits):
            texts[key] += list(zip(part, written[n :: len(edits)]))
    return texts


@torch.no_grad()
def surprise(lm: LM, texts: list[tuple[str, str]]) -> float:
    """Cross-entropy of continuations under the untouched model, nats per new token; `texts`: (prompt, continuation)."""
    total, count = 0.0, 0
    texts = [(prompt, new) for prompt, new in texts if new]
    for i in range(0, len(texts), 16):
        part = texts[i : i + 16]
        ids, mask = lm.encode([prompt + new for prompt, new in part])
        first = torch.tensor([lm.encode(prompt)[0].shape[1] for prompt, _ in part])
        new = mask & (torch.arange(ids.shape[1])[None] >= first[:, None])
        of = lm.logits(ids, mask)[:, :-1].float().log_softmax(-1).gather(2, ids[:, 1:, None].to(lm.device))[..., 0]
        total -= of.cpu()[new[:, 1:]].sum().item()
        count += int(new[:, 1:].sum())
    return total / max(1, count)


def openings(lm: LM, concept: Concept, n: int, split: str, seed: int, words: int = 8, among: int = 100) -> list[str]:
    """The first words of held-out texts that do not show a concept; texts in English, since steering is read there.

    Raises:
        ValueError: if fewer than `n` of the first `among * n` texts are without it.
    """
    found = []
    for text in islice(chain.from_iterable(english(block, seed, split) for block in count()), among * n):
        opening = " ".join(text.split(" ")[:words])
        if not shows(opening, concept) and not shows(text, concept):
            found.append(opening)
        if len(found) == n:
            return found
    raise ValueError(f"Nearly every English text shows {concept}: there is nothing to steer to. Take another concept.")


@lru_cache(maxsize=64)
def english(block: int, seed: int, split: str) -> tuple[str, ...]:
    """The English ones among the texts 100 * block to 100 * block + 99 of a split."""
    return tuple(text.text for text in world.block(block, 100, seed, split) if text.language == "en")


def shows(text: str, concept: Concept) -> bool:
    """Whether the recogniser finds a concept, or one below it, anywhere in a text; or what a function says of it."""
    if callable(concept):
        return bool(concept(text))
    return any(c == concept or c.startswith(concept + ".") for c in recognised(text))


@lru_cache(maxsize=4096)
def recognised(text: str) -> frozenset[str]:
    """The concepts that the recogniser finds in a text; the same texts are asked about for many concepts."""
    return frozenset(concept for *_, concept in world.recognise(text))
