"""A sweep as a job of a Ray cluster: submitted from a notebook, which may be closed; found again by its folder."""

import os
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..launcher import Launched
from ..runs import read_json, write_json
from ..sweeps import Plan, Sweep
from .tasks import library

HERE = "http://127.0.0.1:8265"
WAITING = 120.0  # seconds for a cluster that has just started
ENDED = ("STOPPED", "SUCCEEDED", "FAILED")
TOKEN = (
    "The cluster wants its token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to the file that holds it (or "
    "RAY_AUTH_TOKEN) before Python starts."
)


@dataclass(frozen=True)
class Submitted:
    """A job of a cluster.

    Attributes:
        folder: of the sweep.
        address: of the cluster's dashboard.
        id: of the job.
    """

    folder: Path
    address: str
    id: str

    @property
    def state(self) -> str:
        """PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED, as Ray says."""
        return str(client(self.address).get_job_status(self.id).value)

    @property
    def said(self) -> str:
        """What the job printed."""
        return client(self.address).get_job_logs(self.id)

    @property
    def sweep(self) -> Sweep:
        """Its results so far."""
        return Sweep.load(self.folder)

    @property
    def run(self) -> Launched:
        """The sweep's folder: status, log, pause(), stop()."""
        return Launched(self.folder)

    def stop(self) -> None:
        """Asks every group to leave with a checkpoint; `submit` goes on later."""
        self.run.control("stop")

    def wait(self, timeout: float | None = None) -> Sweep:
        """The results once the job has ended.

        Raises:
            TimeoutError: if it has not after `timeout` seconds; it goes on.
            RuntimeError: if it failed; with its last words.
        """
        end = None if timeout is None else time.monotonic() + timeout
        while (state := self.state) not in ENDED:
            if end is not None and time.monotonic() > end:
                raise TimeoutError(f"Job {self.id} is {state} after {timeout} s. Wait longer, or look at .said.")
            time.sleep(0.5)
        if state == "FAILED":
            raise RuntimeError(f"Job {self.id} failed: {self.said.strip()[-2000:] or 'without a word'}")
        return self.sweep


def submit(
    variants: Any = (),
    *,
    folder: str | Path = "runs/sweep",
    address: str | None = None,
    runtime_env: dict[str, Any] | None = None,
    python: str = sys.executable,
    **knobs: Any,
) -> Submitted:
    """A sweep as a job of a Ray cluster; the same call again finds it, or goes on with it where it has ended.

    Args:
        variants: as in `sweep`; a Plan instead of knobs, too.
        folder: which all nodes see at the same path.
        address: of the cluster's dashboard; None: $RAY_API_SERVER_ADDRESS, else this machine's.
        runtime_env: as Ray takes it, where nodes lack this package.
        python: the interpreter there.

    Raises:
        ValueError, KeyError, TypeError: as `sweep`.
        RuntimeError: if Ray is not installed, the cluster refuses, or there is none.
    """
    plan = (variants if isinstance(variants, Plan) else Plan.of(variants, **knobs)).check(detached=True)
    run = Launched(Path(folder).absolute())
    address = address or os.environ.get("RAY_API_SERVER_ADDRESS") or HERE
    asked = {"kind": "sweep", **plan.to_json()}
    jobs = client(address)
    run.describe(asked)
    run.describe({**asked, "cwd": os.getcwd()}, file="job.json")
    if (run.folder / "ray.json").exists():
        there = submitted(run.folder)
        if there.address == address and there.id in _known(jobs) and there.state not in ENDED:
            return there
    entry = shlex.join([python, "-m", "sae_lab.clusters", str(run.folder)])
    made = _accepted(jobs, entrypoint=entry, runtime_env=runtime_env, metadata={"folder": str(run.folder)})
    write_json(run.folder / "ray.json", {"address": address, "id": made})
    return Submitted(run.folder, address, made)


def submitted(folder: str | Path) -> Submitted:
    """The job that was last submitted for a folder.

    Raises:
        FileNotFoundError: if none was.
    """
    path = Path(folder).absolute() / "ray.json"
    if not path.exists():
        raise FileNotFoundError(f"No job was submitted for {str(folder)!r}. Give a folder that submit(folder=...) had.")
    saved = read_json(path)
    return Submitted(path.parent, saved["address"], saved["id"])


def client(address: str) -> Any:
    """Ray's client for jobs.

    Raises:
        RuntimeError: if Ray is not installed, nobody answers, or the cluster does not know this process.
    """
    ray = library()
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except ray.exceptions.AuthenticationError as error:
        raise RuntimeError(TOKEN) from error
    except (ConnectionError, RuntimeError) as error:
        raise RuntimeError(f"No Ray cluster answers at {address}: {error}") from error


def _accepted(jobs: Any, **asked: Any) -> str:
    """The id of a new job. A cluster that has just started has nobody who takes one for half a minute or so.

    Raises:
        RuntimeError: if it is refused.
    """
    patience = time.monotonic() + WAITING
    while True:
        try:
            return jobs.submit_job(**asked)
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > patience:
                raise
            time.sleep(1.0)


def _known(jobs: Any) -> set[str]:
    return {job.submission_id for job in jobs.list_jobs()}
