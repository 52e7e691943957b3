"""How fast a cloud of points is in JupyterLab: python tests/bench_cloud.py [--points N] [--rounds N] [--json]

Drawn: from running the cell to a finished picture. Recoloured: from the call in the kernel to a finished picture.
Lasso: from letting go of the button to the callback in the kernel. Medians in seconds; the browser draws in software.
"""

import argparse
import json
from statistics import median

from lab import Lab, opened

SET_UP = """
import time, numpy as np
from sae_lab.panels import PointCloud
n, rng, heard = {points}, np.random.default_rng(0), []
xy = rng.normal(size=(n, 2)) @ [[1.0, 0.3], [0.0, 0.8]]
"""
SHOW = """
cloud = PointCloud(xy, rng.normal(size=n), title="density")
cloud.observe(lambda change: heard.append((time.time(), len(cloud.chosen))), "selected")
cloud
"""
CORNERS = ((0.35, 0.2), (0.65, 0.2), (0.7, 0.8), (0.3, 0.75))  # of the lasso, as shares of the map
BEGIN = """code => {
  const now = Date.now() / 1000, shown = jupyterapp.shell.currentWidget
  const frames = Number(document.querySelector(".sae-cloud-root")?.dataset.frames ?? 0)
  if (code) shown.sessionContext.session.kernel.requestExecute({ code, store_history: false })
  else jupyterapp.commands.execute("notebook:run-all-cells")
  return [now, frames]
}"""
# A frame is finished when its pixels can be read.
FINISHED = """frames => new Promise(resolve => {
  const look = () => {
    const root = document.querySelector(".sae-cloud-root")
    if (Number(root?.dataset.frames ?? 0) <= frames) return requestAnimationFrame(look)
    const gl = root.querySelector(".sae-cloud-points").getContext("webgl2")
    gl?.readPixels(0, 0, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array(4))
    requestAnimationFrame(() => resolve(Date.now() / 1000))
  }
  look()
})"""
RELEASED = """() => {
  addEventListener("pointerup", () => { window.__released = Date.now() / 1000 }, { capture: true, once: true })
}"""


def show(lab: Lab, points: int) -> tuple[float, int]:
    """Seconds, and bytes from the kernel."""
    lab.run([SET_UP.format(points=points)])
    lab.swap([SHOW], restart=False)
    before = lab.received
    begun, _ = lab.page.evaluate(BEGIN, "")
    drawn = lab.page.evaluate(FINISHED, 0) - begun
    lab.wait("() => true")
    return drawn, lab.received - before


def recolour(lab: Lab) -> float:
    code = "shades = rng.normal(size=n); begun = time.time(); cloud.recolour(shades, title='other')"
    _, frames = lab.page.evaluate(BEGIN, code)
    return lab.page.evaluate(FINISHED, frames) - float(lab.ask("print(begun)"))


def lasso(lab: Lab) -> tuple[float, int]:
    """Seconds, and the points it held."""
    box = lab.page.locator(".sae-cloud-stage").bounding_box()
    at = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in CORNERS]
    lab.page.get_by_text("Clear").click()
    lab.until("print(len(cloud.chosen)); heard.clear()", "0")
    lab.page.evaluate(RELEASED)
    lab.page.keyboard.down("Shift")
    lab.page.mouse.move(*at[0])
    lab.page.mouse.down()
    for corner in at[1:]:
        lab.page.mouse.move(*corner, steps=10)
    lab.page.mouse.up()
    lab.page.keyboard.up("Shift")
    lab.until("print(len(heard))", "1")
    heard, held = json.loads(lab.ask("import json; print(json.dumps(heard[0]))"))
    return heard - lab.page.evaluate("() => window.__released"), held


def bench(points: int, rounds: int) -> dict[str, float]:
    with opened() as lab:
        shown = [show(lab, points) for _ in range(rounds)]
        lab.page.locator(".sae-cloud-stage").scroll_into_view_if_needed()
        coloured = [recolour(lab) for _ in range(rounds)]
        held = [lasso(lab) for _ in range(rounds)]
    found = {"points": points, "drawn": median(s for s, _ in shown), "payload": max(size for _, size in shown)}
    return found | {"recoloured": median(coloured), "lasso": median(s for s, _ in held), "held": held[-1][1]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=131_072)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    found = bench(asked.points, asked.rounds)
    print(json.dumps(found) if asked.json else "\n".join(f"{name:>12} {value:,.3f}" for name, value in found.items()))
