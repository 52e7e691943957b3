"""All variants. A new file in this folder is found by being here; edit nothing else."""

from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from ..knobs import hint, knobs, plain
from .base import REGISTRY, SAE, Batch, Objective, Recipe, blank, register

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")


def build(name: str, **config: Any) -> SAE:
    """`build("topk", d_in=2048, d_sae=16384, k=64)`.

    Raises:
        KeyError, TypeError, ValueError: as `configured`.
    """
    settings = configured(name, **config)
    return variant(name)(settings)


def configured(name: str, **config: Any) -> Any:
    """The settings of a variant, checked, without its weights. Where L0 is k, `target_l0` says k.

    Raises:
        KeyError: if no variant has this name.
        TypeError: if the variant has no such knob, or one without a default is missing.
        ValueError: if a knob is out of its range.
    """
    cls = variant(name)
    rows = {row.name: row for row in knobs(cls.Config)}
    for key in config:
        if key not in rows:
            raise TypeError(f"SAE {name!r} has no knob {key!r}.{hint(key, rows)} Its knobs: {', '.join(rows)}.")
    missing = [key for key in ("d_in", "d_sae") if key not in config and rows[key].required]
    if missing:
        raise TypeError(f"SAE {name!r} needs {' and '.join(missing)}: build({name!r}, {missing[0]}=...).")
    config = {key: plain(value) for key, value in config.items()}
    aim = config.get("target_l0")
    if "k" in rows and isinstance(aim, int | float):
        if aim % 1 != 0:
            raise ValueError(f"target_l0={aim} must be a whole number: in {name} it is k.")
        config.setdefault("k", int(aim))
    return cls.Config(**config)


def variant(name: str) -> type[SAE]:
    """The class of a variant.

    Raises:
        KeyError: if no variant has this name.
    """
    if name not in REGISTRY:
        raise KeyError(f"No SAE named {name!r}.{hint(name, REGISTRY)} Known: {', '.join(sorted(REGISTRY))}.")
    return REGISTRY[name]
