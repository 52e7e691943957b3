"""What a notebook shows and asks: controllers without widgets, which tests can drive, and thin faces.

Names load on first use: a map of points needs no model.
"""

from importlib import import_module
from typing import Any

_FILE = {
    "Form": "forms",
    "Geometry": "geometry",
    "Latents": "latents",
    "Runs": "runs",
    "Selection": "selection",
    "Steering": "steering",
    "Training": "training",
    "TrainingForm": "forms",
    "FormPanel": "faces.form",
    "GeometryPanel": "faces.geometry",
    "LatentsPanel": "faces.latents",
    "LiveFigure": "faces.figures",
    "PointCloud": "faces.cloud",
    "RunsPanel": "faces.runs",
    "SteerPanel": "faces.steer",
    "Tour": "faces.tour",
    "TrainPanel": "faces.train",
    "form": "faces.form",
    "tour": "faces.tour",
}
__all__ = sorted(_FILE)


def __getattr__(name: str) -> Any:
    if name not in _FILE:
        raise AttributeError(f"sae_lab.panels has no {name!r}. It has: {', '.join(__all__)}.")
    return getattr(import_module(f"{__name__}.{_FILE[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
