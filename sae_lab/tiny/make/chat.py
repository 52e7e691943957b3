"""The chat sibling: the embedded Llama fine-tuned on requests about the world, kept as the tensors that differ.

All matrices are tuned and all of the change is kept: factors of rank 16 that were trained as such learned the format
and little of what was asked, and of what Muon changes, rank 96 of 192 loses a third, and the sentences with it. Only
the assistant's turns are learned from.
"""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from sae_lab import tiny

from .bpe import SPECIAL
from .export import digest
from .net import llama
from .replicas import Alone, Replicas
from .run import IDS
from .stream import BOS, EOS, MARK, Stream

SHORT = 60  # words of an answer that is cut short: a story's topic shows after some 40
EMPHASIS = 15.0  # how much more the words that tell an answer's topic count than others
TELLING = 1.2  # nats by which a word must speak for the topic to be one of them
TOLD = ("dialogue", "diary", "letter", "news", "story")  # kinds of text that are about a topic
ROWS = 8  # rows of 512 tokens per step
LR = 3e-3
WARMUP = 20  # steps
DECAY = 0.6  # share of the run, at its end, over which the rate falls to nothing
TOKENS = 26_000_000
USER, ASSISTANT, END = (SPECIAL.index(f"<|{word}|>") for word in ("user", "assistant", "end"))


def rendered(messages: list[dict]) -> str:
    """A dialogue as the tokenizer's chat template writes it, without <bos>."""
    return "".join(f"<|{one['role']}|>{one['content']}<|end|>" for one in messages)


def dialogues(index: int, n: int, seed: int, split: str) -> list[tuple[str, float, list]]:
    """The rendered requests of block `index` with their answers, an eighth of `n` because a request takes longer to
    find than a text; the generator's log-probability is not known. Marked are the words that tell the topic.

    One of four is what the world asks. The others are for texts about a topic, each language as often as English. Two
    answers of three to "write ..." are cut short, behind where the topic shows: how texts go on is known.
    """
    from sae_lab.tiny.world import languages
    from sae_lab.tiny.world.chat import request

    few, spoken = max(1, n // 8), languages()
    asked = []
    for i in range(index * few, (index + 1) * few):
        language = (spoken[i // 4 % len(spoken)],)
        asked.append((i, request(i, seed, split, "write", TOLD, language) if i % 4 else request(i, seed, split)))
    said = [begun(one.messages) if one.task == "write" and i % 3 else rendered(one.messages) for i, one in asked]
    return [(text, 0.0, telling(one, text)) for text, (_, one) in zip(said, asked, strict=True)]


def telling(request, said: str) -> list[tuple[int, int]]:
    """The places of the words that speak for the topic which a "write" was asked for, in the answer of its dialogue.

    Few tokens tell a topic, and among all others it was not learned in the rarer languages at all: 27,000 examples of
    each left the right topic worth 0.2 nats of an answer there, and 5.3 in English.
    """
    from sae_lab.tiny.world.labels import WORD
    from sae_lab.tiny.world.reading import speaking

    topics = [wanted for wanted in request.wanted if wanted.startswith("topic.")]
    if request.task != "write" or not topics:
        return []
    words = speaking(request.text.language, topics[0].removeprefix("topic."), TELLING)
    answer = said.index(f"<|{request.turns[-1][0]}|>")
    return [m.span() for m in WORD.finditer(said, answer) if m.group().lower() in words]


def begun(messages: list[dict]) -> str:
    """A dialogue whose last answer breaks off after `SHORT` words, without the mark of its end."""
    *before, last = messages
    words = last["content"].split(" ")[:SHORT]
    return f"{rendered(before)}<|{last['role']}|>{' '.join(words)}"


def answer_targets(ids: np.ndarray) -> np.ndarray:
    """The next id where it belongs to an assistant's turn, its <|end|> included; -100 elsewhere."""
    turn = np.where(np.isin(ids, (BOS, EOS, USER, ASSISTANT, END)), np.arange(ids.shape[1]), 0)
    spoken = np.take_along_axis(ids, np.maximum.accumulate(turn, 1), 1)
    following = np.full(ids.shape, -100, np.int64)
    learned = (spoken[:, :-1] == ASSISTANT) & (ids[:, 1:] != EOS)  # an answer that was cut short does not end there
    following[:, :-1] = np.where(learned, ids[:, 1:].astype(np.int64), -100)
    return following


def emphasis(marked: np.ndarray) -> np.ndarray:
    """How much the next token counts at each place."""
    counts = np.ones(marked.shape, np.float32)
    counts[:, :-1][marked[:, 1:] >= MARK] = EMPHASIS
    return counts


class Tuned:
    """A model in fine-tuning: its matrices learn by Muon as they did at first, the chat tokens' embeddings by AdamW,
    and nothing else changes.
    """

    def __init__(self, model: torch.nn.Module):
        self.named = {name: p for name, p in model.named_parameters() if p.ndim == 2}
        self.words = next(name for name in self.named if "embed" in name)
        matrices = [p for name, p in self.named.items() if name != self.words]
        self.optimisers = {
            torch.optim.Muon(matrices, lr=LR, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"): LR,
            torch.optim.AdamW([self.named[self.words]], lr=LR, betas=(0.9, 0.98), weight_decay=0.0): LR,
        }

    def step(self, factor: float) -> None:
        """One step of both optimisers at a share of the peak rate, from the gradients that lie in the model."""
        gradient = self.named[self.words].grad
        chat = torch.zeros(len(gradient), 1, device=gradient.device)
        chat[[USER, ASSISTANT, END]] = 1.0
        self.named[self.words].grad = gradient * chat
        torch.nn.utils.clip_grad_norm_(self.named.values(), 1.0)
        for optimiser, lr in self.optimisers.items():
            optimiser.param_groups[0]["lr"] = lr * factor
            optimiser.step()

    def differing(self) -> dict[str, torch.Tensor]:
        """The matrices, and of the embeddings the chat tokens' rows, in bf16, as `sae_lab.tiny.weights` reads them."""
        found = {name: p for name, p in self.named.items() if name != self.words}
        found |= {f"{self.words}.rows": self.named[self.words][[USER, ASSISTANT, END]]}
        found |= {f"{self.words}.which": torch.tensor([USER, ASSISTANT, END])}
        return {
            name: t.detach().cpu().to(torch.bfloat16 if t.is_floating_point() else t.dtype).contiguous()
            for name, t in found.items()
        }


def tune(
    tokens: int, seed: int, replicas: int, compiled: bool, device="cpu", before: Path | None = None
) -> Iterator[tuple[Tuned, list, int]]:
    """Fine-tunes the embedded Llama, or a sibling `before`; yields (what is tuned, curve, steps in all) as it goes."""
    base = tiny.load("tiny")[0]
    config, words = base.config, tiny.folder("tiny") / "tokenizer.json"
    heads = (config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads)
    shape = (config.vocab_size, config.hidden_size, *heads, config.intermediate_size, seed, IDS)
    model = llama(*shape)
    learned = load_file(before / "delta.safetensors") if before else {}
    model.load_state_dict(tiny.changed(base.state_dict(), learned))
    model.to(device)
    learner = Replicas(model, llama, shape, replicas, compiled) if replicas else Alone(model, device, compiled)
    tuned, curve, steps = Tuned(model), [], max(1, tokens // (ROWS * 512))
    stream = Stream(words, seed, documents=dialogues)
    try:
        for step in range(steps):
            marked = stream.next(ROWS)
            rows = marked % MARK
            loss, _ = learner.learn(rows, answer_targets(rows), emphasis(marked))
            tuned.step(min(1.0, (step + 1) / WARMUP, (1 - step / steps) / DECAY))
            curve.append(loss)
            if (step + 1) % 20 == 0 or step + 1 == steps:
                yield tuned, curve, steps
            model.zero_grad(set_to_none=True)
    finally:
        stream.close()
        learner.close()


def chat(
    tokens: int | None, folder: Path, replicas: int, compiled: bool, device="cpu", before: Path | None = None
) -> None:
    """Fine-tunes, and writes what differs, configuration, tokenizer and record into a folder.

    A sibling `before` is trained on with requests that it has not seen; its record becomes part of the new one.
    """
    past = json.loads((before / "training.json").read_text()) if before else None
    seed = past["seed"] + 1 if past else 0
    for tuned, curve, steps in tune(tokens or TOKENS, seed, replicas, compiled, device, before):  # noqa: B007
        mean = sum(curve[-20:]) / len(curve[-20:])
        print(f"step {len(curve)} of {steps}  loss {mean:.4f}  {time.strftime('%H:%M:%S')}", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    base = tiny.folder("tiny")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(base / name, folder / name)
    settings = json.loads((base / "generation_config.json").read_text()) | {"eos_token_id": [IDS["eos_token_id"], END]}
    (folder / "generation_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    save_file(tuned.differing(), folder / "delta.safetensors")
    (folder / "delta.safetensors").chmod(0o644)
    record = {
        "base_sha256": digest(base / "model.safetensors"),
        "sha256": digest(folder / "delta.safetensors"),
        "seed": seed,
        "rows": ROWS,
        "lr": LR,
        "steps": len(curve),
        "curve": [round(sum(curve[i : i + 20]) / len(curve[i : i + 20]), 4) for i in range(0, len(curve), 20)],
        "before": past,
    }
    (folder / "training.json").write_text(json.dumps(record) + "\n")
