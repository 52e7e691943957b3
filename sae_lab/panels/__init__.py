"""What a notebook shows and asks: a controller without widgets, which tests can drive, and a thin face.

Names load on first use: a map of points needs no model.
"""

from importlib import import_module
from typing import Any

_FILE = {
    "Form": "forms",
    "TrainingForm": "forms",
    "FormPanel": "faces",
    "form": "faces",
    "LiveFigure": "figures",
    "PointCloud": "cloud",
}
__all__ = sorted(_FILE)


def __getattr__(name: str) -> Any:
    if name not in _FILE:
        raise AttributeError(f"sae_lab.panels has no {name!r}. It has: {', '.join(__all__)}.")
    return getattr(import_module(f"{__name__}.{_FILE[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
