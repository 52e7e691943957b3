"""Weights leave a run as an ordinary Hugging Face folder, measured, with the record of how they came about."""

import json
import os
import platform
import shutil
import tempfile
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

import torch
from torch import nn

from .run import Run
from .stream import Documents, held_out, targets, world_documents

BOUND = 1.10  # the test loss over the generator's own that the weights in the package keep


def digest(file: Path) -> str:
    """sha256 of a file."""
    return sha256(file.read_bytes()).hexdigest()


def loss_sums(model: nn.Module, rows: torch.Tensor, target: torch.Tensor, batch: int = 8) -> float:
    """Summed cross-entropy of packed rows in float32."""
    total = 0.0
    with torch.no_grad():
        for i in range(0, len(rows), batch):
            logits = model(input_ids=rows[i : i + batch]).logits.float()
            flat = target[i : i + batch].reshape(-1)
            total += nn.functional.cross_entropy(logits.flatten(0, 1), flat, reduction="sum").item()
    return total


def measure(
    folder: Path, tokens: int, split: str = "test", seed: int = 0, documents: Documents = world_documents
) -> dict:
    """Nats per token, <eos> included, of the model in a folder and of the generator's own choices on held-out text."""
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    loss = logp = 0.0
    count = 0
    for rows, own in held_out(folder / "tokenizer.json", split, tokens, seed, documents):
        target = torch.from_numpy(targets(rows))
        loss += loss_sums(model, torch.from_numpy(rows.astype("int64")), target)
        logp += own
        count += int((target >= 0).sum())
    return {
        "split": split,
        "seed": seed,
        "tokens": count,
        "loss": round(loss / count, 5),
        "entropy": round(-logp / count, 5),
        "ratio": round(loss / -logp, 5),
    }


def report(found: dict) -> str:
    """One line about a measurement."""
    return (
        f"{found['split']} loss {found['loss']:.4f} nats/token over {found['tokens']} tokens, generator "
        f"{found['entropy']:.4f}, ratio {found['ratio']:.4f} (at most {BOUND:.2f} wanted)"
    )


def export(run: Run, folder: Path, tokens: int) -> dict:
    """Writes weights in bf16, configuration and record into a folder, file by file, the weights last; the record."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        made = Path(place)
        for file in [run.tokenizer, *Path(run.tokenizer).parent.glob("tokenizer*"), folder / "chat_template.jinja"]:
            if Path(file).exists():
                shutil.copy(file, made)
        model = run.model
        model.config._attn_implementation = "sdpa"
        model.to(torch.bfloat16).save_pretrained(made)
        found = measure(made, tokens)
        print(report(found), flush=True)
        record = {
            "plan": asdict(run.plan),
            "place": asdict(run.place),
            "finished": run.place.last is not None and run.place.step >= run.place.last,
            "test": found,
            "sha256": digest(made / "model.safetensors"),
            "tokenizer_sha256": digest(made / "tokenizer.json"),
            "made_with": {"torch": torch.__version__, "python": platform.python_version(), "device": str(run.device)},
            "curve": {"columns": ["step", "tokens", "train loss"], "rows": run.curve},
        }
        (made / "training.json").write_text(json.dumps(record, indent=None) + "\n")
        for file in sorted(made.iterdir(), key=lambda f: f.name == "model.safetensors"):
            file.chmod(0o644)
            os.replace(file, folder / file.name)
    return record
