"""What a saved notebook holds. That notebooks run is tested by running them: pytest collects them as files."""

import json
import struct
import zlib
from base64 import b64decode
from pathlib import Path

import numpy as np
import pytest
from saved import FIGURE, png

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def cells(path: Path) -> list[dict]:
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def name(path: Path) -> str:
    return path.name


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_a_saved_notebook_is_small_clean_and_of_no_machine(path):
    text = path.read_text(encoding="utf-8")
    outputs = [output for cell in cells(path) for output in cell["outputs"]]
    assert len(text) < 300_000
    assert not [word for word in ("/root", "/work/", "/tmp/", "/home/", "localhost:") if word in text]
    assert not [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_a_saved_notebook_was_run_in_order_and_holds_what_it_claims(path):
    *_, last = ran = cells(path)
    assert [cell["execution_count"] for cell in ran] == list(range(1, len(ran) + 1))
    assert "assert " in "".join(last["source"]) and "".join(last["outputs"][0]["text"]) == "all of it holds\n"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_every_figure_has_a_picture_beside_it(path):
    shown = [output["data"] for cell in cells(path) for output in cell["outputs"] if FIGURE in output.get("data", ())]
    assert all(b64decode(data["image/png"])[:4] == b"\x89PNG" for data in shown)


def test_a_picture_keeps_its_colours_where_they_are_few():
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (40, 3), dtype=np.uint8)
    pixels = colours[rng.integers(40, size=(7, 5))]
    assert (read(png(pixels)) == pixels).all()
    many = rng.integers(0, 256, (30, 30, 3), dtype=np.uint8)
    many[0] = 255
    shown = read(png(many)).astype(int)
    assert np.abs(shown - many).max() <= 25 and (shown[0] == 255).all()  # white stays white


def read(data: bytes) -> np.ndarray:
    """The pixels of a png of colours by number, whose rows are not filtered."""
    parts, at = {}, 8
    while at < len(data):
        size = struct.unpack(">I", data[at : at + 4])[0]
        parts[data[at + 4 : at + 8]] = data[at + 8 : at + 8 + size]
        at += size + 12
    width, height = struct.unpack(">II", parts[b"IHDR"][:8])
    rows = np.frombuffer(zlib.decompress(parts[b"IDAT"]), np.uint8).reshape(height, width + 1)
    assert not rows[:, 0].any()
    return np.frombuffer(parts[b"PLTE"], np.uint8).reshape(-1, 3)[rows[:, 1:]]
