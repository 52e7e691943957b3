"""Who does the work: a backend is two products, a sort, the choices and a step of Adam, as functions of tensors."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType

from torch import Tensor

BACKENDS = {"numba": "native", "torch": "reference"}
DEFAULT = {"cpu": "numba"}  # by kind of device; "torch" where none is named

_forced: list[str] = []


def backend_of(t: Tensor) -> ModuleType:
    """The functions that work on `t`: numba on the CPU, plain torch elsewhere, or what `backend` says."""
    name = _forced[-1] if _forced else DEFAULT.get(t.device.type, "torch")
    return import_module(f"{__package__}.{BACKENDS[name]}")


@contextmanager
def backend(name: str) -> Iterator[None]:
    """`with backend("torch"): ...` does everything with that backend; for tests and comparisons.

    Raises:
        KeyError: if there is no such backend.
    """
    if name not in BACKENDS:
        raise KeyError(f"No backend named {name!r}. Known: {', '.join(BACKENDS)}.")
    _forced.append(name)
    try:
        yield
    finally:
        _forced.pop()
