"""The README's picture, from the figures of an executed notebook: python tests/picture.py NOTEBOOK OUT.png

Needs the system's Chromium, as the browser tests do.
"""

import argparse
import json
import shutil
from pathlib import Path

import plotly.graph_objects as go
from playwright.sync_api import sync_playwright

from sae_lab import plots

STYLE = "body{margin:0;padding:18px;width:1180px;background:#fff;font:15px system-ui,sans-serif;color:#24292f}"
STYLE += ".row{display:flex;gap:24px}.row>div{flex:1;min-width:0}h3{margin:6px 0 0;font-size:15px;font-weight:600}"


def figures(notebook: Path) -> list[go.Figure]:
    """The plotly figures among a notebook's outputs, in order."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    outputs = [o for cell in cells for o in cell.get("outputs", []) if "data" in o]
    kind = "application/vnd.plotly.v1+json"
    return [go.Figure(o["data"][kind]["data"], o["data"][kind]["layout"]) for o in outputs if kind in o["data"]]


def picture(notebook: Path, out: Path) -> None:
    """What latents mean, beside what one of them does."""
    _, meaning, steering = figures(notebook)
    parts = (("Which concept a single latent names", meaning), ("What adding one latent does", steering))
    drawn = "".join(
        f"<div><h3>{title}</h3>{plots.div(figure.update_layout(height=680, width=578))}</div>"
        for title, figure in parts
    )
    html = f"<meta charset=utf-8><style>{STYLE}</style><script>{plots.script()}</script><div class=row>{drawn}</div>"
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1216, "height": 760}, device_scale_factor=1.5)
        page.set_content(html)
        page.wait_for_timeout(1000)
        page.locator("body").screenshot(path=out)
        browser.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebook", type=Path)
    parser.add_argument("out", type=Path)
    picture(**vars(parser.parse_args()))
