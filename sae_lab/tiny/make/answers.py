"""How often the chat sibling does what it is asked: its answers to held-out requests, read by `world.recognise`."""

from itertools import islice

import torch

from sae_lab import tiny

from .chat import END
from .stream import CONTEXT, EOS, PAD

NEEDED = {"language": 0.95, "topic": 0.80}  # shares of answers that must carry what was asked for


def answers(prompts: list[list[dict]], temperature: float = 0.7, seed: int = 0, batch: int = 25) -> list[str]:
    """The sibling's answers to dialogues that end with the user's turn, sampled."""
    model, tokenizer = tiny.load("tiny-chat")
    torch.manual_seed(seed)
    said: list[str] = []
    for i in range(0, len(prompts), batch):
        ids = [
            tokenizer.apply_chat_template(p, add_generation_prompt=True, return_dict=False)
            for p in prompts[i : i + batch]
        ]
        longest = max(map(len, ids))
        filled = torch.tensor([[PAD] * (longest - len(row)) + row for row in ids])
        out = model.generate(
            filled,
            attention_mask=(filled != PAD).long(),
            max_length=CONTEXT,
            do_sample=True,
            temperature=temperature,
            eos_token_id=[EOS, END],
            pad_token_id=PAD,
        )
        said += tokenizer.batch_decode(out[:, longest:], skip_special_tokens=True)
    return said


def obedience(n: int = 500, seed: int = 0) -> dict[str, dict]:
    """For language and topic: {share of answers that carry what was wanted, requests that wanted one}."""
    from sae_lab.tiny import world

    asked = list(islice(world.requests(seed, "test"), n))
    found = {group: [] for group in NEEDED}
    for request, said in zip(asked, answers([r.prompt for r in asked], seed=seed)):
        carried = {concept for *_, concept in world.recognise(said)}
        for wanted in request.wanted:
            group = wanted.split(".")[0]
            if group in found and request.task == "write":
                found[group].append(wanted in carried)
    return {group: {"share": round(sum(hits) / len(hits), 4), "n": len(hits)} for group, hits in found.items()}
