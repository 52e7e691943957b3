"""Tested, notebooks train on a fifth of the tokens that they show; in one of several processes, each on one thread."""

import os

os.environ.setdefault("SAE_LAB_TOKENS", "204800")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
