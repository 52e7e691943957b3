"""Reading one latent of a wide SAE without its file: python tests/bench_latents.py FOLDER [--d-in 4096 --d-sae 131072]

Makes a Llama Scope checkpoint in bf16 (2.1 GB at the default sizes) in FOLDER if there is none. Each time is of another
latent in a process of its own, imports left out; cold: after the system was asked to forget the file.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import save_file

ONE = """
import sys, time
import sae_lab as sl
from sae_lab import pretrained
import sae_lab.library
began = time.perf_counter()
found = sl.load_latents(sys.argv[1], [int(sys.argv[2])])
print(time.perf_counter() - began, tuple(found.W_enc.shape), tuple(found.W_dec.shape))
"""


def make(folder: Path, d: int, d_sae: int) -> None:
    """In the sizes of Llama Scope; the numbers are the same row over and over, which reading does not know."""
    (folder / "checkpoints").mkdir(parents=True)
    norms = {"in": 10.8, "out": 10.8}
    said = {
        "d_model": d,
        "d_sae": d_sae,
        "hook_point_in": "blocks.15.hook_resid_post",
        "act_fn": "jumprelu",
        "top_k": 50,
    }
    said |= {"jump_relu_threshold": 0.355, "norm_activation": "dataset-wise", "dataset_average_activation_norm": norms}
    (folder / "hyperparams.json").write_text(json.dumps(said))
    row = torch.randn(1, d, dtype=torch.bfloat16)
    both = {"encoder.weight": row.expand(d_sae, d).contiguous(), "decoder.weight": row.T.expand(d, d_sae).contiguous()}
    biases = {
        "encoder.bias": torch.zeros(d_sae, dtype=torch.bfloat16),
        "decoder.bias": torch.zeros(d, dtype=torch.bfloat16),
    }
    save_file(both | biases, folder / "checkpoints" / "final.safetensors")
    os.sync()


def forget(path: Path) -> None:
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def timed(folder: Path, latent: int) -> float:
    done = subprocess.run(
        [sys.executable, "-c", ONE, str(folder), str(latent)], capture_output=True, text=True, check=True
    )
    return float(done.stdout.split()[0])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--d-in", type=int, default=4096)
    parser.add_argument("--d-sae", type=int, default=131072)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    if not (given.folder / "hyperparams.json").exists():
        make(given.folder, given.d_in, given.d_sae)
    cold, warm = [], []
    for i in range(given.rounds):
        forget(given.folder / "checkpoints" / "final.safetensors")
        latent = (i + 1) * given.d_sae // (given.rounds + 2)
        cold.append(timed(given.folder, latent))
        warm.append(timed(given.folder, latent))
    for name, times in (("cold", cold), ("warm", warm)):
        print(f"{name}: median {median(times) * 1e3:.0f} ms, {min(times) * 1e3:.0f} to {max(times) * 1e3:.0f} ms")
