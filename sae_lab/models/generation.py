"""A model writes: one row for each prompt, edit and sample, token by token."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache

from sae_lab.models import there
from sae_lab.models.edits import Edit, changes, fixed
from sae_lab.shapes import Mask


@dataclass(frozen=True)
class Written:
    """The state after one more token: `ids` are the newest tokens (-1 in a finished row)."""

    index: int
    ids: list[int]
    done: list[bool]
    _decode: Callable[[], list[str]] = field(repr=False)

    @property
    def texts(self) -> list[str]:
        """What each row has written so far, without its prompt."""
        return self._decode()


class Generation:
    """A running generation: iterate for a `Written` per token; `texts` runs it to the end.

    `rows` names each row's prompt, edit and sample by number. To stop early, stop asking.
    """

    def __init__(
        self,
        lm: Any,
        prompts: Sequence[str],
        edits: Sequence[tuple[Edit, ...]],
        max_new_tokens: int,
        temperature: float,
        top_p: float,
        n: int,
        seed: int,
    ):
        if n > 1 and temperature == 0:
            raise ValueError(f"n={n} samples at temperature 0 are all the same text. Set temperature=0.8, or n=1.")
        if temperature < 0 or not 0 < top_p <= 1:
            raise ValueError(f"temperature={temperature} must be >= 0 and top_p={top_p} in (0, 1].")
        self.rows = [(p, e, i) for p in range(len(prompts)) for e in range(len(edits)) for i in range(n)]
        if not self.rows:
            raise ValueError("Nothing to write: give at least one prompt, one edit (None for a plain row) and n >= 1.")
        self._lm, self._edits = lm, [edits[e] for _, e, _ in self.rows]
        self._sampling = temperature, top_p, n, seed
        self._prompts = [_prompt_ids(lm, text, max_new_tokens) for text in prompts]
        self._new: list[list[int]] = [[] for _ in self.rows]
        for p, e, _ in self.rows:
            for edit in edits[e]:
                edit.check(self._prompts[p], lm.special_ids)
        self._starts = [len(self._decoded(p, [])) for p in range(len(prompts))]
        self._steps = self._run(max_new_tokens)

    def __iter__(self) -> Iterator[Written]:
        return self._steps

    @property
    def texts(self) -> list[str]:
        """The finished texts, without their prompts, in the order of `rows`."""
        for _ in self._steps:
            pass
        return self._so_far()

    @property
    def text(self) -> str:
        """The finished text of a generation of one row.

        Raises:
            ValueError: with several rows, which `texts` gives.
        """
        if len(self.rows) > 1:
            raise ValueError(f"{len(self.rows)} rows were written: take `.texts`.")
        return self.texts[0]

    @property
    def ids(self) -> list[tuple[list[int], list[int]]]:
        """(prompt, what was written so far) of each row, as tokens; a mark of the end is left out."""
        return [(self._prompts[p], list(new)) for (p, _, _), new in zip(self.rows, self._new)]

    def _run(self, max_new_tokens: int) -> Iterator[Written]:
        stops, done = _stop_ids(self._lm), [False] * len(self.rows)
        for index, newest in enumerate(self._tokens(max_new_tokens, stops)):
            done = [over or i in stops for i, over in zip(newest, done)]
            for row, i in zip(self._new, newest):
                if i >= 0 and i not in stops:
                    row.append(i)
            yield Written(index, newest, list(done), partial(self._so_far, index + 1))

    def _tokens(self, count: int, stops: set[int]) -> Iterator[list[int]]:
        """The newest token of every row, -1 in those that have ended, until all have."""
        lm, (ids, mask) = self._lm, self._padded()
        draw, real, special = _Draw(*self._sampling, rows=self.rows), mask, lm.special(ids)
        if not count:
            return
        if lm.remote:  # all of it in one request
            first, later = (fixed(self._edits, real & ~special, reach) for reach in (self._reach, None))
            u = torch.stack([draw.numbers() for _ in range(count)])
            yield from lm.write(ids, mask, first, later, u, (draw.temperature, draw.top_p), sorted(stops))
            return
        cache, over = DynamicCache(config=lm.config), [False] * len(self.rows)
        for index in range(count):
            positions = (mask.long().cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
            made = changes(self._edits, real & ~special, self._reach if index == 0 else None)
            newest = draw(lm.step(ids, cache, mask, positions, made)).tolist()
            newest = [-1 if ended else i for i, ended in zip(newest, over)]
            over = [ended or i in stops for i, ended in zip(newest, over)]
            yield newest
            if all(over):
                return
            ids = torch.tensor(newest, device=lm.device).clamp(min=0)[:, None]
            real, special = torch.ones_like(ids, dtype=torch.bool), lm.special(ids)
            mask = torch.cat([mask, real], 1)

    def _padded(self) -> tuple[Int[Tensor, "rows seq"], Mask]:
        """Prompts padded on the LEFT, so that every row's next token is in the same column."""
        width = max(map(len, self._prompts))
        rows = [self._prompts[p] for p, _, _ in self.rows]
        ids = torch.tensor([[row[0]] * (width - len(row)) + row for row in rows], device=self._lm.device)
        lengths = torch.tensor([len(row) for row in rows], device=self._lm.device)
        return ids, torch.arange(width, device=self._lm.device)[None] >= width - lengths[:, None]

    def _reach(self, row: int, edit: Edit) -> Bool[Tensor, " seq"]:
        """Which places of the padded prompts an edit is for."""
        width, own = max(map(len, self._prompts)), len(self._prompts[self.rows[row][0]])
        return F.pad(edit.reaches(own, own), (width - own, 0))

    def _so_far(self, steps: int | None = None) -> list[str]:
        """The texts after so many tokens; None: the finished ones."""
        texts = [self._decoded(p, new[:steps])[self._starts[p] :] for (p, _, _), new in zip(self.rows, self._new)]
        return texts if steps is None else [t.rstrip("\ufffd") for t in texts]  # half a character may be missing

    def _decoded(self, prompt: int, new: list[int]) -> str:
        return self._lm.tokenizer.decode(self._prompts[prompt] + new, skip_special_tokens=True)


class _Draw:
    """Chooses next tokens; one random number per prompt and sample, shared by that prompt's edits."""

    def __init__(self, temperature: float, top_p: float, n: int, seed: int, rows: list[tuple[int, int, int]]):
        self.temperature, self.top_p = temperature, top_p
        self.random = torch.Generator().manual_seed(seed)
        self.of_row = torch.tensor([p * n + i for p, _, i in rows])

    def __call__(self, logits: Float[Tensor, "rows vocab"]) -> Int[Tensor, " rows"]:
        return there.drawn(logits, self.numbers(), self.temperature, self.top_p)

    def numbers(self) -> Float[Tensor, " rows"]:
        """One in [0, 1) for each row; drawn in the order of the tokens."""
        if self.temperature == 0:
            return torch.zeros(len(self.of_row))
        return torch.rand(int(self.of_row.max()) + 1, generator=self.random)[self.of_row]


def _prompt_ids(lm: Any, text: str, room: int) -> list[int]:
    ids, _ = lm.encode(text)
    if ids.shape[1] + room > lm.context:
        raise ValueError(
            f"A prompt of {ids.shape[1]} tokens and max_new_tokens={room} exceed the context of {lm.name} "
            f"({lm.context}). Shorten the prompt to {max(lm.context - room, 0)} tokens or ask for fewer new ones."
        )
    return ids[0].tolist()


def _stop_ids(lm: Any) -> set[int]:
    """Ends of text and of turns, and a BOS, which begins the next text: every special token but the unknown one."""
    ends = lm.module.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    return {i for i in (*ends, *lm.special_ids) if i is not None and i != lm.tokenizer.unk_token_id}
