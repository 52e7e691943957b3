"""Says when kernels are being compiled, which happens once on a machine and takes seconds."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def compiling(say: Callable[[], None]) -> Iterator[None]:
    """Calls `say` when the first kernel is compiled that no cache has; what is cached says nothing."""
    from numba.core.event import Listener, install_listener

    class Once(Listener):
        told = False

        def on_start(self, event) -> None:
            if not self.told:
                self.told = True
                say()

        def on_end(self, event) -> None:
            pass

    with install_listener("numba:compile", Once()):
        yield
