"""The chat sibling: the embedded Llama fine-tuned on requests about the world, kept as a low-rank delta.

Unusual here: the weights hold base + up @ down at every step, so the same learner gives a weight's gradient, and the
chain rule for its two factors is written out. Only the assistant's turns are learned from.
"""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from sae_lab import tiny

from .bpe import SPECIAL
from .export import digest
from .net import llama
from .replicas import Alone, Replicas
from .run import IDS
from .stream import BOS, Stream

RANK = 16
ROWS = 8  # rows of 512 tokens per step
LR = 2e-3
WARMUP = 20  # steps
TOKENS = 3_000_000
USER, ASSISTANT, END = (SPECIAL.index(f"<|{word}|>") for word in ("user", "assistant", "end"))


def rendered(messages: list[dict]) -> str:
    """A dialogue as the tokenizer's chat template writes it, without <bos>."""
    return "".join(f"<|{one['role']}|>{one['content']}<|end|>" for one in messages)


def dialogues(index: int, n: int, seed: int, split: str) -> list[tuple[str, float]]:
    """The rendered requests of block `index` with their answers, an eighth of `n` because a request takes longer to
    find than a text; the generator's log-probability is not known."""
    from sae_lab.tiny.world.chat import request

    few = max(1, n // 8)
    return [(rendered(request(i, seed, split).messages), 0.0) for i in range(index * few, (index + 1) * few)]


def answer_targets(ids: np.ndarray) -> np.ndarray:
    """The next id where it belongs to an assistant's turn, its <|end|> included; -100 elsewhere."""
    turn = np.where(np.isin(ids, (BOS, USER, ASSISTANT, END)), np.arange(ids.shape[1]), 0)
    spoken = np.take_along_axis(ids, np.maximum.accumulate(turn, 1), 1)
    following = np.full(ids.shape, -100, np.int64)
    following[:, :-1] = np.where(spoken[:, :-1] == ASSISTANT, ids[:, 1:].astype(np.int64), -100)
    return following


class Delta:
    """Two factors for every matrix of a model and free embeddings of the chat tokens; `write` puts them in place."""

    def __init__(self, model: torch.nn.Module, seed: int):
        random = torch.Generator().manual_seed(seed)
        self.parameters = dict(model.named_parameters())
        self.base, self.up, self.down = {}, {}, {}
        for name, weight in self.parameters.items():
            if weight.ndim != 2:
                continue
            self.base[name] = weight.detach().clone()
            rows, columns = weight.shape
            if "embed" in name:
                self.up[name] = torch.zeros(rows, 3, device=weight.device)
                self.up[name][[USER, ASSISTANT, END], range(3)] = 1.0
                self.down[name] = torch.zeros(3, columns, device=weight.device)
            else:
                self.up[name] = torch.zeros(rows, RANK, device=weight.device)
                start = torch.randn(RANK, columns, generator=random) / columns**0.5
                self.down[name] = start.to(weight.device)
        free = [name for name in self.base if "embed" not in name]
        self.factors = [self.up[name] for name in free] + list(self.down.values())

    def chain(self) -> None:
        """Turns the gradients of the weights into gradients of the factors."""
        for name in self.base:
            gradient = self.parameters[name].grad
            self.down[name].grad = self.up[name].T @ gradient
            self.up[name].grad = gradient @ self.down[name].T

    def write(self) -> None:
        """Sets the model's weights to base + up @ down."""
        with torch.no_grad():
            for name, base in self.base.items():
                torch.addmm(base, self.up[name], self.down[name], out=self.parameters[name].data)

    def save(self, file: Path) -> None:
        """Both factors of every matrix in bf16, named as `sae_lab.tiny.weights` reads them."""
        factors = {f"{name}.up": up for name, up in self.up.items()}
        factors |= {f"{name}.down": down for name, down in self.down.items()}
        save_file({key: value.to(torch.bfloat16).contiguous() for key, value in factors.items()}, file)


def tune(tokens: int, seed: int, replicas: int, compiled: bool, device="cpu") -> Iterator[tuple[Delta, list, int]]:
    """Fine-tunes the embedded Llama; yields (delta, curve, steps in all) as it goes."""
    base = tiny.load("tiny")[0]
    config, words = base.config, tiny.folder("tiny") / "tokenizer.json"
    heads = (config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads)
    shape = (config.vocab_size, config.hidden_size, *heads, config.intermediate_size, seed, IDS)
    model = llama(*shape)
    model.load_state_dict(base.state_dict())
    model.to(device)
    learner = Replicas(model, llama, shape, replicas, compiled) if replicas else Alone(model, device, compiled)
    delta, curve, steps = Delta(model, seed), [], max(1, tokens // (ROWS * 512))
    optimiser = torch.optim.AdamW(delta.factors, lr=LR, betas=(0.9, 0.98), weight_decay=0.0)
    stream = Stream(words, seed, documents=dialogues)
    try:
        for step in range(steps):
            rows = stream.next(ROWS)
            loss, _ = learner.learn(rows, answer_targets(rows))
            delta.chain()
            optimiser.param_groups[0]["lr"] = LR * min(1.0, (step + 1) / WARMUP, 2 * (1 - step / steps))
            optimiser.step()
            delta.write()
            curve.append(loss)
            if (step + 1) % 20 == 0 or step + 1 == steps:
                yield delta, curve, steps
            model.zero_grad(set_to_none=True)
    finally:
        stream.close()
        learner.close()


def chat(tokens: int | None, folder: Path, replicas: int, compiled: bool, device="cpu", seed: int = 0) -> None:
    """Fine-tunes, and writes delta, configuration, tokenizer and record into a folder."""
    for delta, curve, steps in tune(tokens or TOKENS, seed, replicas, compiled, device):  # noqa: B007
        mean = sum(curve[-20:]) / len(curve[-20:])
        print(f"step {len(curve)} of {steps}  loss {mean:.4f}  {time.strftime('%H:%M:%S')}", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    base = tiny.folder("tiny")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(base / name, folder / name)
    settings = json.loads((base / "generation_config.json").read_text()) | {"eos_token_id": [IDS["eos_token_id"], END]}
    (folder / "generation_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    delta.save(folder / "delta.safetensors")
    (folder / "delta.safetensors").chmod(0o644)
    record = {
        "base_sha256": digest(base / "model.safetensors"),
        "sha256": digest(folder / "delta.safetensors"),
        "seed": seed,
        "rank": RANK,
        "rows": ROWS,
        "lr": LR,
        "steps": len(curve),
        "curve": [round(sum(curve[i : i + 20]) / len(curve[i : i + 20]), 4) for i in range(0, len(curve), 20)],
    }
    (folder / "training.json").write_text(json.dumps(record) + "\n")
