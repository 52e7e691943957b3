"""Train and study any sparse autoencoder on Llama models, in Jupyter.

Names load on first use, so that `import sae_lab` costs nothing.
"""

import os
from importlib import import_module, metadata
from typing import Any

# Before torch loads: threads that wait spin a little and then sleep. By default they spin long,
# and take the core that another process needs: beside two busy ones a step took 600 ms instead of 80.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "12000"

__version__ = metadata.version("sae-lab")

_ROOM = {
    "Site": "sites",
    "load_model": "models",
    "Server": "models",
    "Edit": "models",
    "activations": "harvest",
    "cache": "caching",
    "cache_cost": "caching",
    "Cached": "caching",
    "build": "saes",
    "train": "training",
    "evaluate": "evaluation",
    "evaluate_together": "evaluation",
    "by_position": "evaluation",
    "transfer": "evaluation",
    "recover": "concepts",
    "agree": "meaning",
    "compare": "comparison",
    "contexts": "windows",
    "split": "splitting",
    "map_latents": "geometry",
    "attribute": "attribution",
    "explain": "explanation",
    "validate": "validity",
    "probe": "probing",
    "tpp": "probing",
    "scr": "probing",
    "absorbed": "absorption",
    "first_letters": "absorption",
    "steer": "steering",
    "Push": "steering",
    "doses": "steering",
    "frontier": "steering",
    "launch": "launcher",
    "estimate": "costs",
    "gauge": "planning",
    "predict": "planning",
    "Machine": "planning",
    "sweep": "sweeps",
    "Sweep": "sweeps",
    "suite_file": "sweeps",
    "submit": "clusters",
    "submitted": "clusters",
    "outlook": "sweeps",
    "suite": "suites",
    "Suite": "suites",
    "verify": "verification",
    "to_neuronpedia": "neuronpedia",
    "read_neuronpedia": "neuronpedia",
    "doctor": "diagnosis",
    "cite": "citing",
    "load_sae": "library",
    "save_sae": "library",
    "load_latents": "library",
    "push": "library",
    "Run": "runs",
    "world": "tiny",
}
# what a notebook reaches by name: sl.plots
_ROOMS = ("explanation", "panels", "plots", "pretrained", "runs", "saes", "steering", "sweeps", "toys")
__all__ = sorted([*_ROOM, *_ROOMS])


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"{__name__}.{name}")
    if name not in _ROOM:
        raise AttributeError(f"sae_lab has no {name!r}. It has: {', '.join(__all__)}.")
    if name == "world":
        return import_module(f"{__name__}.tiny.world")
    return getattr(import_module(f"{__name__}.{_ROOM[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
