"""What takes long in a panel is done in a thread, one thing at a time, and says what it is and how it failed."""

from collections.abc import Callable
from threading import Thread


class Work:
    """What a controller does in a thread.

    Attributes:
    working: what is being done now; "" for nothing.
    error: how the last thing failed; "" if it did not.
    """

    def __init__(self):
        self.working, self.error, self._thread = "", "", None

    def begin(self, what: str, work: Callable[[], None]) -> None:
        """Does something in a thread.

        Raises:
            RuntimeError: while something else is going on.
        """
        if self.working:
            raise RuntimeError(f"Still {self.working}: wait a moment, or cancel it where that can be.")
        self.working, self.error = what, ""
        self._thread = Thread(target=self._guarded, args=(work,), daemon=True)
        self._thread.start()

    def wait(self, timeout: float | None = None) -> "Work":
        """This, once nothing is going on."""
        if self._thread is not None:
            self._thread.join(timeout)
        return self

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            self.error = f"{type(error).__name__}: {error}"
        finally:
            self.working = ""
