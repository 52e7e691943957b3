"""What all faces have: the look, keys that stay inside, errors that are shown, and a page for where no widget runs."""

import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ipywidgets as W

from ...report import write_markup
from .. import look
from .keys import Keys

EVERY = 0.25  # seconds between looks at what is shown


class Panel(W.VBox):
    """A face. One of its own says in `snapshot` what it shows, and in `refresh` how to show what is there now."""

    def __init__(self, *children: W.Widget):
        self._fault, self._lock, self._ticker = W.HTML(), threading.RLock(), None
        super().__init__([W.HTML(look.STYLE), Keys(), *children, self._fault])
        self.add_class("sae-panel")

    def snapshot(self) -> str:
        """What it shows, as HTML that needs nothing else: escaped, without widgets or scripts."""
        raise NotImplementedError

    def refresh(self) -> None:
        """Shows how things are now."""

    def to_html(self, path: str | Path) -> Path:
        """Writes what it shows as a page of its own."""
        return write_markup(Path(path), repr(self), look.STYLE + self.snapshot())

    def complain(self, error: BaseException) -> None:
        """Says at the foot of the panel what went wrong."""
        said = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
        self._fault.value = look.told(f"{type(error).__name__}: {said}", wrong=True)

    def stay(self, work: Callable[..., None]) -> Callable[..., None]:
        """`work` as a callback whose errors are shown: ipywidgets would say them where nobody looks."""

        def guarded(*args: Any) -> None:
            with self._lock:
                self._fault.value = ""
                try:
                    work(*args)
                except Exception as error:
                    self.complain(error)

        return guarded

    def watch(self) -> None:
        """Refreshes from now on, a few times a second, in a thread: asyncio stands still while a cell runs."""
        if self._ticker is None:
            self._ticker = threading.Thread(target=_tick, args=(weakref.ref(self),), daemon=True)
            self._ticker.start()

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        return super()._repr_mimebundle_(**kwargs) | {"text/html": look.STYLE + self.snapshot()}


def _tick(panel: "weakref.ref[Panel]") -> None:
    """Until the panel is closed or gone."""
    while (here := panel()) is not None and here.comm is not None:
        with here._lock:
            try:
                here.refresh()
            except Exception as error:
                here.complain(error)
        del here
        time.sleep(EVERY)
