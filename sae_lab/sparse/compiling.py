"""Says when kernels are being compiled, which happens once on a machine and takes seconds."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from numba.core.event import Listener, install_listener


@contextmanager
def compiling(say: Callable[[], None]) -> Iterator[None]:
    """Calls `say` when the first kernel is compiled that no cache has; what is cached says nothing."""
    with install_listener("numba:compile", _Once(say)):
        yield


class _Once(Listener):
    def __init__(self, say: Callable[[], None]):
        self.say: Callable[[], None] | None = say

    def on_start(self, event) -> None:
        say, self.say = self.say, None
        if say:
            say()

    def on_end(self, event) -> None:
        pass
