"""Training in a process of its own, which outlives the notebook and is steered by files in its run folder.

    run = launch(variant="batchtopk", site="L2R", k=32, tokens=10_000_000)
    run.log; run.pause(); run.resume(); run.stop(); run.wait().sae

`python -m sae_lab.launcher FOLDER` is what the process runs: the job.json of that folder.
"""

from .job import REMOTE, Job, checked, devices, reader, run_job, stream
from .process import Launched, active, begin, launch, main, ps, serve
