"""One of the processes that train an SAE together; what is wrong with the job ends it, all else starts it anew."""

import json
import os
import signal

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from ..runs import DiskFull, Run, RunInUse
from ..saes import build, variant
from ..sparse import Mesh
from ..training import Diverged, train
from .elastic import JOB, PID
from .job import Job, reader, stream

FINAL = (ValueError, TypeError, KeyError, FileNotFoundError, RunInUse, Diverged, DiskFull)


def work() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    job = Job.from_json(json.loads(os.environ[JOB]))
    place = int(os.environ["LOCAL_RANK"])
    device = torch.device(job.device if job.device == "cpu" else f"cuda:{place}")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store, rank, world = next(rendezvous("env://"))
    if os.environ.get("GROUP_WORLD_SIZE") == "1":  # the agent's store keeps the addresses of those that died, too
        store = dist.PrefixStore(f"start-{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    dist.init_process_group("gloo" if device.type == "cpu" else "nccl", store=store, rank=rank, world_size=world)
    mesh = Mesh(job.slices)
    try:
        _train(job.but(device=str(device)), mesh, device)
    except FINAL as error:
        if mesh.first:
            Run(job.run).mark("failed", int(os.environ[PID]), error=f"{type(error).__name__}: {error}")
    dist.destroy_process_group()


def _train(job: Job, mesh: Mesh, device: torch.device) -> None:
    lm = None if job.cache else reader(job)
    source = stream(job, lm, variant(job.variant).needs)
    sae = build(job.variant, d_in=source.d_in(job.site), seed=job.seed, **job.own).to(device)
    for _ in train(sae, source, run=job.run, config=job.train, mesh=mesh):
        pass


if __name__ == "__main__":
    work()
