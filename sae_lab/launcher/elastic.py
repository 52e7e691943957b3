"""One training by several processes, started by torch's elastic agent: if one dies, all begin again at the newest
checkpoint.

Three kinds of process: the one that was asked (`shared`, which reads the run's folder and says how it stands), the
agent that watches over the workers and ends when nobody listens any more, and the workers, of whom the first keeps the
run.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from ..runs import Run
from ..training import Record, Step
from .job import Job

RESTARTS = 20
LOOK = 0.1  # seconds between two looks at the run's log
JOB, PID = "SAE_LAB_JOB", "SAE_LAB_PID"  # in the environment of agent and workers


def shared(job: Job) -> Iterator[Step]:
    """The measured steps of a job that several processes do, as they come.

    Raises:
        RuntimeError: if it failed; with the reason.
    """
    run, seen = Run(job.run), 0
    run.control("run")
    run.mark("starting")
    told = {JOB: json.dumps(job.to_json()), PID: str(os.getpid()), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", f"{__package__}.agent"]
    agent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=sys.stderr, env={**os.environ, **told})
    try:
        while agent.poll() is None:
            time.sleep(LOOK)
            rows = [row for row in run.rows if "fvu" in row]
            seen = min(seen, len(rows))  # after a restart some are taken back
            for row in rows[seen:]:
                yield _step(job, row)
            seen = len(rows)
    except (GeneratorExit, KeyboardInterrupt):
        run.control("stop")
        agent.wait()
        raise
    finally:
        agent.stdin.close()
    status = run.status
    if status["state"] == "failed" or (agent.returncode and not run.trained):
        raise RuntimeError(f"{run!r} failed: {status.get('error') or f'its agent ended with {agent.returncode}'}")


def _step(job: Job, row: dict[str, Any]) -> Step:
    record = Record(**{f.name: row[f.name] for f in fields(Record) if f.name in row})
    return Step(row["step"], job.train.steps, row["tokens"], row["rate"], row["step"], (record,))


def watch() -> None:
    """The agent's work: to start the workers, on this machine, and to start them again."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    job = Job.from_json(json.loads(os.environ[JOB]))
    threading.Thread(target=_until_nobody_listens, daemon=True).start()
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // job.gpus)))
    here = job.nodes == 1
    if here:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    config = LaunchConfig(
        min_nodes=job.nodes,
        max_nodes=job.nodes,
        nproc_per_node=job.gpus,
        run_id="sae_lab",
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0" if here else job.rendezvous,
        local_addr="127.0.0.1" if here else None,
        max_restarts=RESTARTS,
        monitor_interval=LOOK,
    )
    try:
        elastic_launch(config, sys.executable)("-u", "-m", f"{__package__}.worker")
    except ChildFailedError as error:
        Run(job.run).mark("failed", int(os.environ[PID]), error=f"its processes died {RESTARTS} times: {error}"[:2000])
        sys.exit(1)


def _until_nobody_listens() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), 15)  # the agent ends its workers
