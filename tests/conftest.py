"""Shapes are checked while tests run; tiny tensors want one thread; the shared models and texts are found once."""

import os
import signal
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of processes that tests start: the other cores have work

import pytest
import torch
from jaxtyping import install_import_hook
from lab import jupyter, lab, uses_lab  # noqa: F401  (fixtures)
from shared import SHARED
from skipped import pytest_configure  # noqa: F401  (a hook)

signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a shell it would be ignored
torch.set_num_threads(1)  # tiny tensors: threads only fight
HOUSE, LOOPS = (
    Path(__file__).parents[1] / "sae_lab",
    ("kernels", "choosing", "tiles", "assignment"),
)  # numba compiles those
ROOMS = [p.stem for p in HOUSE.glob("[a-z]*") if p.stem not in ("tiny", "sparse", "models")]
DOOR = [f"models.{p.stem}" for p in (HOUSE / "models").glob("[a-z]*.py") if p.stem != "there"]  # it is sent by source
CORE = [f"sparse.{p.stem}" for p in (HOUSE / "sparse").glob("[a-z]*.py") if p.stem not in LOOPS]
# No tensors in the world: checking every string it writes made its tests twenty times slower.
install_import_hook([f"sae_lab.{name}" for name in (*ROOMS, *DOOR, *CORE, "tiny.make")], "shapecheck.checked")


@pytest.fixture(scope="session")
def stories() -> Path:
    """The folder of a real pretrained Llama (260K parameters)."""
    folder = SHARED / "data" / "models" / "stories260K"
    if not folder.exists():
        pytest.skip("no shared model: set SAE_LAB_SHARED to a folder that holds data/models/stories260K")
    return folder


@pytest.fixture(scope="session")
def stories_text() -> Path:
    """TinyStories, one JSON object a line, held-out part."""
    file = SHARED / "data" / "text" / "tinystories_v1_valid_head.jsonl"
    if not file.exists():
        pytest.skip("no shared text: set SAE_LAB_SHARED to a folder that holds data/text")
    return file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """By file, and all files with browser tests as one: they share a JupyterLab."""
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "lab" if uses_lab(config.rootpath / file) else file

    return ByFile(config, log) if config.getvalue("dist") == "loadfile" else None
