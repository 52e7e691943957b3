"""Runs a notebook and saves it with a picture beside each figure: python tests/saved.py NOTEBOOK [--as-it-is]

Pictures are for readers that draw no plotly. Needs the system's Chromium, as the browser tests do.
"""

import argparse
import shutil
import struct
import tempfile
import zlib
from base64 import b64decode, b64encode
from pathlib import Path

import nbformat
import numpy as np
import plotly.graph_objects as go
from nbclient import NotebookClient
from playwright.sync_api import Page, sync_playwright

from sae_lab import plots

FIGURE = "application/vnd.plotly.v1+json"
WIDGET = "application/vnd.jupyter.widget-view+json"
WIDTH = 860  # pixels
PIXELS = """async png => {
    const drawn = await createImageBitmap(await (await fetch("data:image/png;base64," + png)).blob())
    const canvas = new OffscreenCanvas(drawn.width, drawn.height).getContext("2d")
    canvas.drawImage(drawn, 0, 0)
    const bytes = canvas.getImageData(0, 0, drawn.width, drawn.height).data
    return [drawn.width, btoa(Array.from(bytes, b => String.fromCharCode(b)).join(""))]
}"""


def run(notebook: nbformat.NotebookNode, beside: Path) -> None:
    """Executes it in a folder of its own, with the data beside it; nothing of the machine or of widgets stays."""
    with tempfile.TemporaryDirectory() as folder:
        for data in beside.glob("*.json"):
            shutil.copy(data, folder)
        client = NotebookClient(notebook, timeout=None, resources={"metadata": {"path": folder}})
        client.execute()
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        cell.metadata = {}
        for output in cell.get("outputs", ()):
            output.get("data", {}).pop(WIDGET, None)


def draw(notebook: nbformat.NotebookNode) -> None:
    """A picture beside each figure."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": 900})
        for cell in notebook.cells:
            for output in cell.get("outputs", ()):
                if FIGURE in output.get("data", ()):
                    output.data["image/png"] = b64encode(picture(page, output.data[FIGURE])).decode()
        browser.close()


def picture(page: Page, figure: dict) -> bytes:
    """A figure as a png on white."""
    drawn = plots.div(go.Figure(figure["data"], figure["layout"]).update_layout(width=WIDTH, paper_bgcolor="white"))
    page.set_content(f"<style>body{{margin:0}}</style><script>{plots.script()}</script>{drawn}")
    plot = page.locator(".js-plotly-plot .main-svg").first
    plot.wait_for()
    page.wait_for_timeout(300)
    width, pixels = page.evaluate(PIXELS, b64encode(plot.screenshot()).decode())
    return png(np.frombuffer(b64decode(pixels), np.uint8).reshape(-1, width, 4)[..., :3])


def png(pixels: np.ndarray) -> bytes:
    """[height, width, 3] in at most 256 colours: a quarter of the size of a screenshot."""
    rounded = (np.unique(round_to(pixels, n).reshape(-1, 3), axis=0, return_inverse=True) for n in (1, 5, 15, 51))
    colours, index = next(found for found in rounded if len(found[0]) <= 256)
    height, width, _ = pixels.shape
    rows = np.hstack([np.zeros((height, 1), np.uint8), index.reshape(height, width).astype(np.uint8)])
    parts = {b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0), b"PLTE": colours.tobytes()}
    parts |= {b"IDAT": zlib.compress(rows.tobytes(), 9), b"IEND": b""}
    chunks = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts.items())
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def round_to(pixels: np.ndarray, step: int) -> np.ndarray:
    """Colours on a grid that holds black and white: 255 is a multiple of the step."""
    return ((pixels.astype(int) + step // 2) // step * step).astype(np.uint8)


def save(path: Path, as_it_is: bool) -> None:
    notebook = nbformat.read(path, 4)
    if not as_it_is:
        run(notebook, path.parent)
    draw(notebook)
    nbformat.write(notebook, path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, metavar="NOTEBOOK")
    parser.add_argument("--as-it-is", action="store_true", help="draws the saved figures, runs nothing")
    save(**vars(parser.parse_args()))
