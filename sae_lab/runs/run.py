"""The folder of one training: what was asked, what happened, what came out. Written by the holder of its lock alone.

config.json  immutable: SAE, training, source, measured scale, environment
log.jsonl    one row per measured step, and notes
status.json  state, progress, heartbeat; whose process it is
control.json what is wanted of it: run | pause | stop | save
checkpoints/ snapshots/ sae/ contexts/ studies/ eval.json report.html lock, and job.json + stderr.txt of a detached one
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ..saes import SAE, variant
from .checkpoints import Checkpoints
from .files import Damaged, read_json, read_lines, replace, room_for, write_json
from .lock import Lock, lives, whose
from .store import read_sae

if TYPE_CHECKING:
    import pandas as pd

WANTED = ("run", "pause", "stop", "save")
MAY_DIFFER = ("about", "cwd", "memory", "devices", "train.log_every", "train.checkpoint")  # none moves a weight
UNFINISHED = ("starting", "running", "paused", "evaluating")


class Run:
    """A training's folder, of now or of last year; `Run("runs/first").sae` is what it learned."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.checkpoints = Checkpoints(self.folder / "checkpoints")
        self._lock: Lock | None = None
        self._unwritten: list[dict] = []

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def exists(self) -> bool:
        return (self.folder / "config.json").exists() or (self.folder / "job.json").exists()

    @property
    def config(self) -> dict[str, Any]:
        """What was asked and measured when the run began: sae, train, source, scale, environment.

        Raises:
            FileNotFoundError: if the folder holds no run.
        """
        if not self.exists:
            raise FileNotFoundError(
                f"No run in {str(self.folder)!r}: it has no config.json. Train with run={self.name!r}."
            )
        file = self.folder / "config.json"
        return read_json(file) if file.exists() else {}

    @property
    def job(self) -> dict[str, Any]:
        """What a detached process was asked to do; empty for a run trained in a notebook."""
        file = self.folder / "job.json"
        return read_json(file) if file.exists() else {}

    @property
    def kind(self) -> str:
        """ "training", "sweep", or "" where there is no run."""
        return (self.config or self.job).get("kind", "training") if self.exists else ""

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The log as it was written, oldest first."""
        return read_lines(self.folder / "log.jsonl")

    @property
    def log(self) -> "pd.DataFrame":
        """One row per measured step; the loss terms are columns "terms.<name>"."""
        import pandas as pd

        return pd.json_normalize([row for row in self.rows if "fvu" in row])

    @property
    def notes(self) -> list[str]:
        """What the log says in words: resumed, checkpoint set aside, disk full ..."""
        return [f"step {row['step']}: {row['note']}" for row in self.rows if row.get("note")]

    @property
    def status(self) -> dict[str, Any]:
        """State and progress.

        State: none, starting, running, paused, stopped, evaluating, done, failed, or lost (killed).
        """
        try:
            status = read_json(self.folder / "status.json")
        except FileNotFoundError:
            return {"state": "none", "step": 0, "steps": 0}
        except Damaged:  # a heartbeat that a power cut spoiled
            return {"state": "lost", "step": 0, "steps": 0}
        if status["state"] in UNFINISHED and not lives(status):
            status["state"] = "lost"
        return status

    @property
    def trained(self) -> bool:
        """Whether the final SAE is there."""
        return (self.folder / "sae" / "config.json").exists()

    @property
    def alive(self) -> bool:
        """Whether its process is at work, or paused."""
        return self.status["state"] in UNFINISHED

    @property
    def sae(self) -> SAE:
        """The trained SAE; it eats raw activations.

        Raises:
            FileNotFoundError: if the training has not finished.
        """
        if not self.trained:
            status = self.status
            raise FileNotFoundError(
                f"Run {str(self.folder)!r} has no final SAE: it is {status['state']} at step {status['step']} of "
                f"{status['steps']}. Resume it, or take one of its snapshots: {self.snapshots or 'none yet'}."
            )
        return read_sae(self.folder / "sae")

    @property
    def snapshots(self) -> list[int]:
        """Steps at which the weights alone were kept, ascending."""
        return sorted(int(p.name) for p in (self.folder / "snapshots").glob("*") if p.name.isdigit())

    def snapshot(self, step: int) -> SAE:
        """The SAE as it was at `step`, one of `snapshots`.

        Raises:
            FileNotFoundError: if there is none; the message lists those there are.
        """
        if step not in self.snapshots:
            raise FileNotFoundError(f"No snapshot of step {step}. There are: {self.snapshots or 'none'}.")
        return read_sae(self.folder / "snapshots" / f"{step:08d}")

    @property
    def eval(self) -> dict[str, Any]:
        """The evaluation's numbers; empty before there was one."""
        file = self.folder / "eval.json"
        return read_json(file) if file.exists() else {}

    @property
    def recovered(self) -> list[dict[str, float]]:
        """CE recovered, by step and tokens, as it was measured on the way and, last, in the evaluation."""
        found = [read_json(path) for path in sorted((self.folder / "studies" / "recovered").glob("*.json"))]
        end = self.eval.get("ce_recovered", {}).get("value") if found else None
        status = self.status if end is not None else {}
        return found + (
            [{"step": status["step"], "tokens": status["tokens"], "ce_recovered": end}] if status.get("tokens") else []
        )

    @property
    def errors(self) -> str:
        """What a detached process wrote to its error stream."""
        file = self.folder / "stderr.txt"
        return file.read_text(errors="replace") if file.exists() else ""

    def control(self, want: str) -> None:
        """Asks the training process to pause, go on ("run"), checkpoint and end ("stop"), or checkpoint ("save").

        Raises:
            ValueError: for any other wish.
        """
        if want not in WANTED:
            raise ValueError(f"control({want!r}) is not one of {', '.join(map(repr, WANTED))}.")
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "control.json", {"want": want}, durable=False)

    @property
    def wanted(self) -> str:
        """What was last asked of the process; "run" where nothing was."""
        try:
            return read_json(self.folder / "control.json").get("want", "run")
        except (FileNotFoundError, Damaged):
            return "run"

    # what follows is for the process that trains

    def acquire(self) -> None:
        """Raises:
        RunInUse: if another training writes here.
        """
        with room_for(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = Lock(self.folder / "lock")

    def release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def discard(self) -> None:
        """Deletes the folder of a training that has to begin anew.

        Raises:
            RunInUse: if it is at work.
        """
        self.acquire()
        shutil.rmtree(self.folder)
        self.release()

    def describe(
        self, asked: dict[str, Any], measure: Callable[[], dict] = dict, file: str = "config.json"
    ) -> dict[str, Any]:
        """The immutable `file`: what is asked and what `measure` finds, both as they were when the run began.

        Raises:
            ValueError: if something else was asked then; the message names the first difference and the way out.
        """
        path, asked = self.folder / file, json.loads(json.dumps(asked))
        if not path.exists():
            with room_for(path):
                self.folder.mkdir(parents=True, exist_ok=True)
            write_json(path, {**asked, **measure()})
        saved = read_json(path)
        for key, here, there in differences(asked, {key: saved.get(key) for key in asked}):
            if not key.startswith(MAY_DIFFER) and not _newer(key, here, saved):
                raise ValueError(
                    f"Run {str(self.folder)!r} was made with {key}={there!r}, not {here!r}. A run's config never "
                    "changes: choose another folder (sae_lab.runs.fresh gives one), or delete this one."
                )
        return saved

    def append(self, row: dict[str, Any]) -> None:
        """Adds a row to the log. Rows that found no room are kept and tried again with the next one.

        Raises:
            DiskFull: after keeping the row.
        """
        self._unwritten.append(row)
        path = self.folder / "log.jsonl"
        data = "".join(json.dumps(row) + "\n" for row in self._unwritten).encode()
        with room_for(path), open(path, "ab", buffering=0) as file:
            start = file.tell()
            try:
                while data:
                    data = data[file.write(data) :]
            except OSError:
                file.truncate(start)  # no half rows
                raise
        self._unwritten.clear()

    def rewind(self, step: int) -> None:
        """Drops the rows after `step`, which a resumed training will write again; notes stay."""
        path = self.folder / "log.jsonl"
        if path.exists():
            kept = [row for row in self.rows if row["step"] <= step or "fvu" not in row]
            replace(path, "".join(json.dumps(row) + "\n" for row in kept).encode())

    def beat(self, state: str, pid: int | None = None, **numbers: Any) -> None:
        """Says how it stands, and that the process lives."""
        row = {"state": state, **numbers, **whose(pid), "heartbeat": time.time()}
        write_json(self.folder / "status.json", row, durable=state not in UNFINISHED)

    def mark(self, state: str, pid: int | None = None, **more: Any) -> None:
        """A new state of this process, or of that with `pid`; the progress as it was."""
        status = self.status
        kept = {key: status[key] for key in ("step", "steps", "tokens", "rate", "eta") if key in status}
        self.beat(state, pid, **kept, **more)

    def write_eval(self, result: dict[str, Any]) -> None:
        write_json(self.folder / "eval.json", result)

    @property
    def comments(self) -> dict[int, str]:
        """What somebody wrote down about latents."""
        file = self.folder / "comments.json"
        return {int(n): said for n, said in read_json(file).items()} if file.exists() else {}

    def comment(self, latent: int, said: str) -> None:
        """Keeps a comment on a latent; an empty one takes back what was said."""
        kept = self.comments | {latent: said.strip()}
        write_json(self.folder / "comments.json", {str(n): kept[n] for n in sorted(kept) if kept[n]})

    def study(self, name: str, measure: Callable[[], Any]) -> Any:
        """What is in studies/<name>.json; measured and written, in one moment, where it is not there yet."""
        path = self.folder / "studies" / f"{name}.json"
        if not path.exists():
            found = measure()
            with room_for(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, found)
        return read_json(path)

    def open_errors(self) -> IO[bytes]:
        """The file that takes a detached process's error stream, opened to append."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return open(self.folder / "stderr.txt", "ab")

    def __repr__(self) -> str:
        status = self.status
        return f"Run({str(self.folder)!r}: {status['state']}, step {status['step']:,} of {status['steps']:,})"


def _newer(key: str, here: Any, saved: dict[str, Any]) -> bool:
    """Whether a knob of the SAE came after the run was made, and is asked to do what was always done."""
    knob = key.removeprefix("sae.")
    if knob == key or not isinstance(saved.get("sae"), dict) or knob in saved["sae"] or not saved.get("variant"):
        return False
    config = variant(saved["variant"]).Config
    return any(f.name == knob and f.default == here for f in fields(config))


def differences(a: Any, b: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, value in a, value in b) wherever two JSON values differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        for k in {**a, **b}:
            yield from differences(a.get(k), b.get(k), f"{key}.{k}" if key else str(k))
    elif a != b:
        yield key, a, b


def fresh(folder: str | Path) -> Path:
    """`folder` if no run is there yet, else the first free of folder-2, folder-3 ..."""
    folder = Path(folder)
    names = (folder if i == 1 else folder.with_name(f"{folder.name}-{i}") for i in range(1, 10_000))
    return next(path for path in names if not Run(path).exists)


def find_runs(folder: str | Path = "runs") -> list[Run]:
    """The runs in a folder and the folders below it, by path."""
    found = {p.parent for name in ("config.json", "job.json") for p in Path(folder).rglob(name)}
    return [Run(p) for p in sorted(found) if (p / "status.json").exists() or (p / "job.json").exists()]
