"""The processes of sweeps: a detached one, or, with the word "group", one that does a group of it."""

import json
import sys
from pathlib import Path

from ..launcher import serve
from ..runs import Run
from .crew import STOPPED, asked_to_leave, work_off
from .plan import Plan
from .work import Stopped, run_sweep

if __name__ == "__main__":
    if sys.argv[2:] == ["group"]:
        try:
            work_off(sys.argv[1], json.load(sys.stdin), asked_to_leave())
        except Stopped:
            sys.exit(STOPPED)
    else:
        serve(Run(sys.argv[1]), lambda job: run_sweep(Plan.from_json(job), Path(sys.argv[1])))
