"""Other libraries' training steps, to be timed beside ours: each in an environment of its own, never a dependency."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import torch

LIBRARIES = {"sae-lens": "6.54.12", "dictionary-learning": "0.1.0", "eai-sparsify": "1.3.3"}
OURS = ("GOMP_SPINCOUNT", "12000")  # what `import sae_lab` sets: other libraries are timed without it
SCRIPT = Path(__file__).with_name("peer_step.py")


@contextmanager
def peers(shape: tuple[int, int, int, int] | None) -> Iterator[dict[str, Callable[[], None]]]:
    """One callable per library that makes one training step at (tokens, d_in, d_sae, k); none where `shape` is None.

    The first use makes the environments, which takes minutes, in `~/.cache/sae_lab/peers` (or $SAE_LAB_PEERS).
    """
    with ExitStack() as stack:
        yield {f"{name} {LIBRARIES[name]}": stack.enter_context(peer(name, shape)) for name in LIBRARIES if shape}


@contextmanager
def peer(library: str, shape: tuple[int, int, int, int]) -> Iterator[Callable[[], None]]:
    """A process that holds one library's trainer and steps when told.

    Raises:
        RuntimeError: the library could not be installed, or its process ended; with what it said.
    """
    command = [environment(library), SCRIPT, library, *map(str, shape), str(torch.get_num_threads())]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    pipes["env"] = {name: value for name, value in os.environ.items() if (name, value) != OURS}
    with (
        TemporaryFile("w+") as said,  # a pipe that nobody reads would fill up
        subprocess.Popen(command, text=True, bufsize=1, stderr=said, **pipes) as process,
    ):
        try:
            _answer(process, library, said)
            yield lambda: _answer(process, library, said, b"\n")
        finally:
            process.kill()


def environment(library: str) -> Path:
    """The Python that has the library, made if need be."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    folder = Path(os.environ.get("SAE_LAB_PEERS", cache / "sae_lab" / "peers")) / library
    python, done = folder / "bin" / "python", folder / LIBRARIES[library]
    if not done.exists():
        print(f"Installing {library} {LIBRARIES[library]} into {folder} ...", file=sys.stderr)
        ours = torch.__version__.partition("+")[0]
        _run(library, sys.executable, "-m", "venv", folder)
        _run(library, python, "-m", "pip", "install", "-q", f"torch=={ours}", f"{library}=={LIBRARIES[library]}")
        _run(library, python, "-m", "pip", "uninstall", "-q", "-y", "torchvision")  # built for another torch
        done.touch()
    return python


def _run(library: str, *command: object) -> None:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{library} could not be installed; leave it out with no --peers.\n{done.stderr[-2000:]}")


def _answer(process: subprocess.Popen, library: str, said: IO[str], told: bytes = b"") -> None:
    with suppress(BrokenPipeError):  # it has ended: what follows says why
        os.write(process.stdin.fileno(), told)  # unbuffered: what could not be sent would be tried again on closing
    if not process.stdout.readline():
        process.wait()
        said.seek(0)
        raise RuntimeError(f"{library} ended before its step was done.\n{said.read()[-2000:]}")
