"""What a job of the cluster runs: the plan of one folder, its groups as tasks."""

import os
import sys
from pathlib import Path

from ..launcher import serve
from ..runs import Run
from ..sweeps import Plan, run_sweep
from .tasks import OnRay, connect

if __name__ == "__main__":
    folder = Run(sys.argv[1])
    os.chdir(folder.job["cwd"])
    connect()
    serve(folder, lambda job: run_sweep(Plan.from_json(job), Path(sys.argv[1]), crew=OnRay))
