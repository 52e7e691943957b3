"""The detached process of a sweep: the plan of one folder."""

import sys
from pathlib import Path

from ..launcher import serve
from ..runs import Run
from .plan import Plan
from .work import run_sweep

if __name__ == "__main__":
    serve(Run(sys.argv[1]), lambda job: run_sweep(Plan.from_json(job), Path(sys.argv[1])))
