"""Training of the embedded Llama: one resumable run in a folder, ended whenever it must end.

The learning rate warms up, stays, and falls to zero over the last part of the run (warm-up, stable, decay), so that a
run of unknown length ends as well as one planned. Matrices are trained by Muon, embeddings and norms by AdamW.
Everything random is a function of the seed and the step; a state on disk holds weights, moments and one place.
"""

import json
import os
import time
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from .net import llama
from .replicas import Alone, Replicas
from .stream import BOS, EOS, PAD, Documents, Stream, targets

IDS = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}


@dataclass(frozen=True)
class Plan:
    """What a run is; kept in its folder and written beside the weights."""

    seed: int = 0
    d_model: int = 192
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    mlp: int = 512
    rows: int = 16  # rows of 512 tokens per step
    lr: float = 4e-3  # for matrices
    lr_vectors: float = 4e-3  # for embeddings and norms
    weight_decay: float = 0.02
    clip: float = 1.0
    warmup: int = 100  # steps
    decay_share: float = 0.4  # of the run


@dataclass
class Place:
    """Where a run is; with the tensors this is its whole state."""

    step: int = 0
    tokens: int = 0  # targets learned from
    stream: tuple[int, int] = (0, 0)
    decay_from: int | None = None
    last: int | None = None
    seconds: float = 0.0


class Run:
    """A model, its optimisers and its place, saved in and restored from `folder`."""

    def __init__(self, plan: Plan, folder: Path, tokenizer: str | Path, documents: Documents, device="cpu"):
        from tokenizers import Tokenizer

        vocabulary = Tokenizer.from_file(str(tokenizer)).get_vocab_size()
        self.plan, self.folder, self.place, self.curve = plan, Path(folder), Place(), []
        self.device, self.tokenizer, self.documents = device, str(tokenizer), documents
        self.shape = (vocabulary, plan.d_model, plan.layers, plan.heads, plan.kv_heads, plan.mlp, plan.seed)
        self.model = llama(*self.shape, IDS).to(device)
        named = dict(self.model.named_parameters())
        matrices = [p for name, p in named.items() if p.ndim == 2 and "embed" not in name]
        vectors = [p for name, p in named.items() if p.ndim != 2 or "embed" in name]
        self.optimisers = {
            "muon": torch.optim.Muon(
                matrices, lr=plan.lr, weight_decay=plan.weight_decay, adjust_lr_fn="match_rms_adamw"
            ),
            "adam": torch.optim.AdamW(vectors, lr=plan.lr_vectors, betas=(0.9, 0.98), weight_decay=0.0),
        }
        for optimiser, lr in (("muon", plan.lr), ("adam", plan.lr_vectors)):
            self.optimisers[optimiser].param_groups[0]["peak"] = lr
        self.folder.mkdir(parents=True, exist_ok=True)
        self.restore()

    def learner(self, replicas: int, compiled: bool) -> Alone | Replicas:
        """What computes a step's gradients: this process, or `replicas` processes of one thread each."""
        if replicas:
            return Replicas(self.model, llama, (*self.shape, IDS), replicas, compiled)
        return Alone(self.model, self.device, compiled)

    def factor(self) -> float:
        """The share of the peak learning rate at this step."""
        place, plan = self.place, self.plan
        factor = min(1.0, (place.step + 1) / plan.warmup)
        if place.decay_from is not None and place.step >= place.decay_from:
            factor *= (place.last - place.step) / max(1, place.last - place.decay_from)
        return factor

    def step(self, stream: Stream, learner: Alone | Replicas) -> float:
        """One step on the stream's next rows; the loss before it."""
        rows = stream.next(self.plan.rows)
        loss, tokens = learner.learn(rows, targets(rows))
        factor = self.factor()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.plan.clip)
        for optimiser in self.optimisers.values():
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * factor
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.place.step += 1
        self.place.tokens += tokens
        self.place.stream = stream.place
        return loss

    def save(self) -> None:
        """A state under the name of its step, whole or not at all; the two newest are kept."""
        tensors = {f"model.{k}": v for k, v in self.model.named_parameters()}
        for name, optimiser in self.optimisers.items():
            for i, state in optimiser.state_dict()["state"].items():
                tensors |= {f"{name}.{i}.{k}": torch.as_tensor(v) for k, v in state.items()}
        target = self.folder / f"state-{self.place.step:07d}.safetensors"
        record = {"place": json.dumps(asdict(self.place)), "curve": json.dumps(self.curve)}
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, f"{target}.part", record)
        os.replace(f"{target}.part", target)
        for old in self.states()[:-2]:
            old.unlink()

    def states(self) -> list[Path]:
        """The states on disk, oldest first."""
        return sorted(self.folder.glob("state-*.safetensors"))

    def restore(self) -> None:
        """Goes to the newest state on disk, if there is one, refusing a folder made by another plan."""
        written = self.folder / "plan.json"
        if not self.states():
            written.write_text(json.dumps(asdict(self.plan), indent=1))
            return
        if json.loads(written.read_text()) != asdict(self.plan):
            raise ValueError(f"{self.folder} holds a run of another plan ({written}). Give an empty folder with --run.")
        newest = self.states()[-1]
        tensors, record = load_file(newest), metadata(newest)
        self.place, self.curve = Place(**json.loads(record["place"])), json.loads(record["curve"])
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(tensors[f"model.{name}"])
        for name, optimiser in self.optimisers.items():
            state: dict = {}
            for key in [key for key in tensors if key.startswith(f"{name}.")]:
                _, i, field = key.split(".", 2)
                state.setdefault(int(i), {})[field] = tensors[key]
            optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})


def metadata(file: Path) -> dict[str, str]:
    """The JSON strings kept in a safetensors file's header."""
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        return opened.metadata()


@dataclass
class End:
    """When a run ends: after `tokens`, or `minutes` from now, or at once by decaying; whichever is known and first."""

    tokens: int | None = None
    minutes: float | None = None
    decay_now: bool = False
    stop: bool = False  # save and leave at the next log, to be continued

    def settle(self, run: Run, rate: float | None, left: float) -> None:
        """Fixes the decay's first and last step once it must begin; `rate` in steps a second, `left` in seconds."""
        place, share = run.place, run.plan.decay_share
        if place.decay_from is not None:
            return
        ratio = share / (1 - share)  # steps of decay per step before it
        lasts = []
        if self.tokens and place.step:
            lasts.append(round(self.tokens / place.tokens * place.step))
        if self.minutes is not None and rate:
            lasts.append(place.step + int(left * rate))
        if self.decay_now:
            lasts.append(round(place.step * (1 + ratio)))
        if lasts and min(lasts) - place.step <= ratio * place.step:
            place.decay_from, place.last = place.step, max(min(lasts), place.step + 1)


def training(
    run: Run, end: End, replicas=0, compiled=False, producers=1, save_every: float = 240.0, log_every: int = 25
):
    """Steps until the end, yielding (mean loss, tokens a second) at each log; a state every `save_every` seconds."""
    stream = Stream(run.tokenizer, run.plan.seed, run.place.stream, documents=run.documents, producers=producers)
    learner = run.learner(replicas, compiled)
    started = saved = logged = time.monotonic()
    before, losses, stamps = run.place.seconds, [], deque(maxlen=200)
    try:
        while run.place.last is None or run.place.step < run.place.last:
            now = time.monotonic()
            stamps.append(now)
            rate = (len(stamps) - 1) / (now - stamps[0]) if len(stamps) > 50 else None
            left = (end.minutes or 0) * 60 - (now - started)
            end.settle(run, rate, left)
            losses.append(run.step(stream, learner))
            run.place.seconds = before + time.monotonic() - started
            if run.place.step % log_every == 0 or run.place.step == run.place.last:
                mean, now = sum(losses) / len(losses), time.monotonic()
                pace = len(losses) * run.plan.rows * 512 / (now - logged)
                run.curve.append([run.place.step, run.place.tokens, round(mean, 4)])
                losses, logged = [], now
                if end.stop or now - saved > save_every or run.place.step == run.place.last:
                    run.save()
                    saved = now
                yield mean, pace
                if end.stop:
                    return
    finally:
        stream.close()
        learner.close()
