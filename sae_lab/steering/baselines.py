"""What a latent has to beat: a difference of means, a random direction as long, and asking in the prompt."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch

from ..models import LM
from ..shapes import Direction
from ..sites import Site
from ..tiny import world
from ..tiny.world import chat
from .measuring import padded
from .texts import Concept

MEANS, RANDOM, ASKED = "difference of means", "random direction", "asked in the prompt"
BASELINES = (MEANS, RANDOM, ASKED)
EXAMPLES = 64  # texts with the concept, and as many without, that a difference of means is taken of

Examples = tuple[Sequence[str], Sequence[str]]


@dataclass(frozen=True, eq=False)
class Beside:
    """The baselines that there can be.

    Attributes:
        vectors: directions at length 1, by name.
        prompts: which ask for the concept; none if nobody knows what to ask for.
        asked: how they do.
        free: whether what follows is a chat model's answer, which does not go on with the prompt.
        left: names of baselines that there cannot be.
    """

    vectors: dict[str, Direction]
    prompts: list[str]
    asked: str | None
    free: bool
    left: list[str]

    @classmethod
    def of(
        cls,
        lm: LM,
        site: Site,
        concept: Concept,
        prompts: list[str],
        names: Sequence[str],
        examples: Examples | None,
        wanted: str | None,
        seed: int,
        sampled: bool = True,
    ) -> "Beside":
        if odd := [name for name in names if name not in BASELINES]:
            raise ValueError(f"No baseline {odd[0]!r}. Known: {', '.join(BASELINES)}.")
        if isinstance(concept, str):
            examples, wanted = examples or worlds(concept, seed), wanted or wish(concept)
        vectors: dict[str, Direction] = {}
        if MEANS in names and examples:
            a, b = (mean(lm, site, list(texts)) for texts in examples)
            vectors[MEANS] = (a - b) / (a - b).norm()
        if RANDOM in names:
            v = torch.randn(lm.d_in(site), generator=torch.Generator().manual_seed(seed + 1))
            vectors[RANDOM] = v / v.norm()
        free = converses(lm)
        able = wanted and ASKED in names and (sampled or not free)  # else one request has one answer, over and over
        asking, how = asked(wanted, prompts, lm if free else None) if able else ([], None)
        left = [name for name in names if name not in vectors and not (name == ASKED and asking)]
        return cls(vectors, asking, how, free, left)


def worlds(concept: str, seed: int) -> Examples:
    """Texts of the world's validation split with a concept, and without."""
    with_it, without = (
        [t.text for t in islice(world.texts(seed, "validation", where={concept: yes}), EXAMPLES)]
        for yes in (True, False)
    )
    return with_it, without


@torch.no_grad()
def mean(lm: LM, site: Site, texts: list[str]) -> Direction:
    """Mean activation over all tokens of texts, each cut to the model's context."""
    if not texts:
        raise ValueError("examples= is empty on one side: give (texts with the concept, texts without).")
    total, count = torch.zeros(lm.d_in(site)), 0
    for first in range(0, len(texts), 8):
        ids, mask = padded([lm.encode(t)[0][0, : lm.context].tolist() for t in texts[first : first + 8]])
        keep = mask & ~lm.special(ids)
        total += lm.read(ids, site, mask=mask)[site][keep.to(lm.device)].float().sum(0).cpu()
        count += int(keep.sum())
    return total / max(1, count)


def wish(concept: str) -> str:
    """What to ask for, so that a text of the labelled world holds a concept: "a story about the garden"."""
    say, group = chat.phrases("en"), concept.partition(".")[0]
    if concept in chat.things_of("en"):
        return f"a story with {chat.noun('en', chat.things_of('en')[concept])} in it"
    named = say.get(concept, (concept.rpartition(".")[2].replace("_", " "),))[0]
    return {"language": f"a story in {named}", "register": named}.get(group, f"a story about {named}")


def asked(wanted: str, prompts: list[str], chat: LM | None) -> tuple[list[str], str]:
    """(prompts that ask, what was done): a chat model by a request in its format, whose answer begins as it likes;
    another one in a line above the prompt that names what follows."""
    if chat is not None:
        said = f"Please write {wanted}."
        turns = [{"role": "user", "content": said}]
        whole = chat.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        return [whole] * len(prompts), f"in the chat format: {said!r}"
    head = wanted[:1].upper() + wanted[1:] + ".\n\n"
    return [head + prompt for prompt in prompts], f"in front of the prompt: {head!r}"


def converses(lm: LM) -> bool:
    """Whether the model ends its texts as its chat format ends an answer: base models may bring a format along."""
    if not lm.tokenizer.chat_template:
        return False
    turns = [{"role": role, "content": "a"} for role in ("user", "assistant")]
    ids, _ = lm.encode(lm.tokenizer.apply_chat_template(turns, tokenize=False))
    ends = lm.module.generation_config.eos_token_id
    return bool(set(ids[0].tolist()) & set(ends if isinstance(ends, list) else [ends]))
