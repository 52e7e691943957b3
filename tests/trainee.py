"""Trainings that are killed: run as a script, it forks one child per scenario before any kernel has run.

python trainee.py FOLDER step:13 fsync:20 ...    kills at the 13th batch, at the 20th fsync ...
"""

import os
import signal
import sys
from pathlib import Path

import torch

import sae_lab.sparse.native  # noqa: F401 (once, before the forks: numba is slow to import)
from sae_lab.runs import Run
from sae_lab.saes import SAE, Objective, build
from sae_lab.saes.topk import TopK
from sae_lab.training import train

sys.path.insert(0, str(Path(__file__).parent))
from streams import Stream

KNOBS = {
    "tokens": 24 * 32,
    "batch": 32,
    "lr": 1e-2,
    "checkpoint_steps": 6,
    "snapshots": 0,
    "log_every": 2,
    "calibration_tokens": 64,
}


class Noisy(TopK):
    """TopK that draws, so that its run hangs on torch's generator too. Not registered: it saves as a TopK."""

    prepare = SAE.prepare  # no sample: fewer batches to wait for

    def objective(self, batch) -> Objective:
        out = super().objective(batch)
        noise = 0.1 * torch.randn(len(self.b_dec))
        return out._replace(terms=out.terms | {"noise": (noise * self.b_dec).sum()})


def saes(n=1):
    settings = build("topk", d_in=16, d_sae=24, k=3, choose_in="float32").cfg  # "auto" goes by the clock
    batchtopk = build("batchtopk", d_in=16, d_sae=20, k=3, choose_in="float32")
    return [Noisy(settings), batchtopk][:n]


def trained(folder, n=1, source=None, **knobs):
    """The steps of a training, to its end; of one SAE, or of two on one stream."""
    return list(train(saes(n), source or Stream(), run=folder, **(KNOBS | knobs)))


def digest(folder, n=1):
    """sha256 of weights, optimiser, silent latents, ring, cursors and generators at the last checkpoint."""
    runs = [Run(folder)] if n == 1 else [Run(p) for p in sorted(Path(folder).iterdir())]
    found = []
    for run in runs:
        step = run.checkpoints.steps[0]
        sums = run.checkpoints.sums(step)
        found.append((step, {name: sums[name] for name in sums if name.endswith(".safetensors")}))
    return found


class Mortal(Stream):
    """A stream whose n-th batch is the process's last."""

    def __init__(self, last):
        super().__init__()
        self.last, self.count = last, 0

    def next(self, n):
        self.count += 1
        if self.count == self.last:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().next(n)


def die(folder, scenario):
    kind, count, n = scenario.split(":")
    torch.set_num_threads(1)
    if kind == "fsync":
        left, sync = [int(count)], os.fsync

        def deadly(handle):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            sync(handle)

        os.fsync = deadly
    trained(folder, int(n), Mortal(int(count) if kind == "step" else None))


if __name__ == "__main__":
    root, *scenarios = sys.argv[1:]
    for scenario in scenarios:
        pid = os.fork()
        if not pid:
            die(Path(root) / scenario.replace(":", "-"), scenario)
            os._exit(0)
        status = os.waitpid(pid, 0)[1]
        print(scenario, os.waitstatus_to_exitcode(status), flush=True)
