"""What each verb does. Options come from the same knobs as forms and saved configs."""

import sys
from dataclasses import field, fields, make_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import tyro

from ..evaluation import evaluate
from ..launcher import Job, ps, resume, run_job
from ..library import load_sae
from ..models import load_model
from ..runs import Run, find_runs, fresh
from ..saes import REGISTRY
from . import say
from .progress import note, watched


def parsed(kind: type, argv: list[str], verb: str) -> Any:
    """An options dataclass filled from the command line; a knob's sentence is its help."""
    return tyro.cli(kind, args=argv, prog=f"sae-lab {verb}", description=kind.__doc__)
