"""A group of a sweep as a Ray task. One whose worker is killed begins again from its checkpoint, on any node.

All nodes see the sweep's folder at the same path; nothing but names and settings goes through Ray.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from ..runs import Run
from ..sweeps import Asked, Plan
from ..sweeps.crew import STOPPED, Crew, task, work_off
from ..sweeps.work import Stopped

KILLED = -9
SLOTS = 10**6  # groups at a time, of which Ray starts as many as the cluster has room for


def library() -> Any:
    """Ray.

    Raises:
        RuntimeError: if it is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise RuntimeError("Ray is not installed here: pip install 'sae-lab[ray]'.") from error
    return ray


def connect(address: str | None = None) -> None:
    """Joins the cluster that the environment names ($RAY_ADDRESS), or one at an address.

    Its token authentication stays as it is: this process shows the token that Ray finds in its environment.
    """
    ray = library()
    if not ray.is_initialized():
        ray.init(address=address or "auto", log_to_driver=False, configure_logging=False)


def _work(folder: str, told: dict[str, Any], cwd: str) -> None:
    """The task."""
    os.chdir(cwd)
    work_off(folder, told, ended=lambda: False)


class Task:
    """A task that looks like a process: `poll` and `wait` say how it ended; `said`: what went wrong."""

    def __init__(self, folder: str, told: dict[str, Any]):
        ray, self.said, self.status = library(), "", None
        gpus = 1 if ray.cluster_resources().get("GPU") else 0
        options = {"num_cpus": 1, "num_gpus": gpus, "max_retries": 0, "name": told["group"][0]}
        self._ref = ray.remote(**options)(_work).remote(folder, told, os.getcwd())

    def poll(self) -> int | None:
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int | None:
        return self._ended(timeout)

    def terminate(self) -> None:
        """Interrupts it: it leaves with a checkpoint."""
        library().cancel(self._ref)

    def kill(self) -> None:
        with suppress(ValueError):
            library().cancel(self._ref, force=True)

    def _ended(self, timeout: float | None) -> int | None:
        ray = library()
        if self.status is None and ray.wait([self._ref], timeout=timeout)[0]:
            try:
                ray.get(self._ref)
                self.status = 0
            except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError, ray.exceptions.OutOfMemoryError):
                self.status = KILLED
            except ray.exceptions.TaskCancelledError:
                self.status = STOPPED
            except ray.exceptions.RayTaskError as error:
                self.status = STOPPED if isinstance(error.cause, Stopped) else 1
                self.said = f"{type(error.cause).__name__}: {error.cause}"
        return self.status


class OnRay(Crew):
    """The groups of a sweep as tasks of the cluster that `connect` joined."""

    def __init__(self, plan: Plan, run: Run, groups: Sequence[list[Asked]]):
        super().__init__(plan, run, groups, slots=min(SLOTS, len(groups)))

    def _process(self, group: Any) -> Any:
        return Task(str(self.run.folder), task(self.plan, group.saes, None))
