"""What keeps a step undisturbed: generators of its own, and a Ctrl-C that waits for its end."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

Generators = dict[str, Tensor]  # device -> state of its global generator


def own_rng(seed: int, devices: set[torch.device]) -> Generators:
    """Fresh generator states for the CPU and these devices."""
    names = {"cpu", *(str(device) for device in devices)}
    return {name: torch.Generator(name).manual_seed(seed).get_state() for name in sorted(names)}


@contextmanager
def drawing(states: Generators) -> Iterator[None]:
    """Torch draws from `states`, which move on; the process's own generators stay as they were."""
    before = {name: _get(name) for name in states}
    for name, state in states.items():
        _set(name, state)
    try:
        yield
    finally:
        for name in states:
            states[name] = _get(name)
            _set(name, before[name])


@contextmanager
def uninterrupted() -> Iterator[None]:
    """A Ctrl-C inside is raised at the end; a second one at once. Elsewhere than in the main thread: nothing."""
    old = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or old in (signal.SIG_IGN, None):
        yield
        return
    caught = []

    def wait(number, frame):
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    signal.signal(signal.SIGINT, wait)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, old)
    if caught:
        raise KeyboardInterrupt


def _get(name: str) -> Tensor:
    return torch.get_rng_state() if name == "cpu" else torch.cuda.get_rng_state(name)


def _set(name: str, state: Tensor) -> None:
    if name == "cpu":
        torch.set_rng_state(state)
    else:
        torch.cuda.set_rng_state(state, name)
