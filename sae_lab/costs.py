"""What a training would cost: its first steps are done, for two seconds, in a process of its own that keeps nothing."""

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import psutil
import torch

from .arithmetic import amount, duration
from .launcher import Job, checked, reader, stream
from .saes import build, variant
from .training import train

SECONDS = 2.0
WARM = 3  # steps before the clock starts: kernels are compiled, buffers filled
KEPT = 2  # checkpoints that a run holds


@dataclass(frozen=True)
class Cost:
    """Measured on the first steps, where an SAE that is steered to its L0 fires most: later ones are no slower.

    Attributes:
        tokens: of the whole training.
        rate: tokens per second, reading the model included.
        memory: bytes that the process takes at most; without those of a GPU.
        device_memory: bytes on the GPU at most; 0 without one.
        disk: bytes of the run folder at most.
    """

    tokens: int
    rate: float
    memory: int
    device_memory: int
    disk: int

    @property
    def seconds(self) -> float:
        """Of the training, without the evaluation at its end."""
        return self.tokens / self.rate

    @property
    def shortage(self) -> str:
        """What this machine has too little of, in words; empty if nothing."""
        free = {"memory": psutil.virtual_memory().available, "disk": psutil.disk_usage(str(Path.cwd())).free}
        short = [f"{name}: {amount(getattr(self, name))} of {amount(has)}" for name, has in free.items()]
        return "; ".join(s for s, (name, has) in zip(short, free.items()) if getattr(self, name) > has)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"seconds": self.seconds}

    def __str__(self) -> str:
        gpu = f", {amount(self.device_memory)} on the GPU" if self.device_memory else ""
        return (
            f"{self.tokens:,} tokens at {self.rate:,.0f} a second: {duration(self.seconds)}; "
            f"{amount(self.memory)} of memory{gpu}, {amount(self.disk)} of disk"
        )


class Probe:
    """A measurement in the making."""

    def __init__(self, job: Job):
        checked(job)
        if job.remote:
            raise ValueError(
                f"{job.model} is remote: what reading it costs, cache_cost() says (`sae-lab cache --plan`); the rest "
                "is a training on that cache."
            )
        self._said, self._errors = TemporaryFile("w+"), TemporaryFile("w+")  # noqa: SIM115  (a pipe would fill up)
        self._cost: Cost | None = None
        self._failed = ""
        command = [sys.executable, "-m", __name__]
        pipes = {"stdin": subprocess.PIPE, "stdout": self._said, "stderr": self._errors}
        self._child = subprocess.Popen(command, text=True, **pipes)
        with self._child.stdin as asked:
            asked.write(json.dumps(job.to_json()))

    @property
    def cost(self) -> Cost | None:
        """None while it is being measured.

        Raises:
            RuntimeError: if it cannot be; with the last words of the process.
        """
        if self._cost is None and not self._failed and self._child.poll() is not None:
            for file in (self._said, self._errors):
                file.seek(0)
            with self._said, self._errors:
                said, errors = self._said.read().splitlines(), self._errors.read().strip().splitlines()
            if self._child.returncode:
                self._failed = f"Such a training cannot begin: {errors[-1] if errors else 'it was killed'}"
            else:
                self._cost = Cost(**json.loads(said[-1]))
        if self._failed:
            raise RuntimeError(self._failed)
        return self._cost

    def wait(self, timeout: float | None = None) -> Cost:
        """Raises:
        TimeoutError: if it takes longer than `timeout` seconds.
        RuntimeError: as `cost`.
        """
        try:
            self._child.wait(timeout)
        except subprocess.TimeoutExpired as late:
            raise TimeoutError(f"No cost after {timeout} s: a model has to be read first. Wait longer.") from late
        return self.cost

    def stop(self) -> None:
        self._child.kill()
        self._child.wait()
        self._said.close()
        self._errors.close()


def estimate(job: Job | None = None, timeout: float | None = None, **knobs: Any) -> Cost:
    """What a training would cost in time, memory and disk; the knobs are those of `launch`. Ten seconds or so.

    Raises:
        ValueError, TypeError, KeyError: for what a job can ask wrongly.
        RuntimeError: if such a training fails in its first steps.
    """
    return Probe(job or Job.of(**knobs)).wait(timeout)


def measure(job: Job, seconds: float = SECONDS) -> Cost:
    """The cost of a job, measured in this process, which afterwards is best ended."""
    lm = reader(job)
    source = stream(job, lm, variant(job.variant).needs)
    sae = build(job.variant, d_in=source.d_in(job.site), seed=job.seed, **job.own).to(lm.device if lm else "cpu")
    start, first, last = 0.0, 0, 0
    for step in train(sae, source, config=job.train):
        now, last = time.perf_counter(), step.index
        if step.index == min(WARM, job.train.steps - 1):
            start, first = now, step.index
        elif start and now - start > seconds:
            break
    spent = max(time.perf_counter() - start, 1e-9)
    rate = max(last - first, 1) * job.train.batch / spent
    gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return Cost(job.train.tokens, rate, peak(), gpu, on_disk(sae, source, job))


def on_disk(sae: Any, source: Any, job: Job) -> int:
    """Bytes of SAE, snapshots, and checkpoints, which hold Adam's two moments and the stream's buffer as well."""
    weights = sum(t.nbytes for t in sae.state_dict().values())
    moments = 2 * sum(p.nbytes for p in sae.parameters())
    buffer = sum(t.nbytes for t in source.state()[0].values())
    snapshots = min(job.train.snapshots, max(0, job.train.steps.bit_length() - 1))
    return (1 + snapshots) * weights + (KEPT + 1) * (weights + moments + buffer)


def peak() -> int:
    """Bytes of this process at most so far; what it takes now where the system does not say."""
    status = Path("/proc/self/status")
    told = (
        [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        if status.exists()
        else []
    )
    return int(told[0]) * 1024 if told else psutil.Process().memory_info().rss


if __name__ == "__main__":
    print(json.dumps(asdict(measure(Job.from_json(json.load(sys.stdin))))))
