"""How long panels take to open, and whether the kernel answers beside a training: python tests/bench_panels.py [--rounds N] [--json]

Opened: from running the cell to the panel's last widget on the page; the model is loaded, the modules are imported.
Answer: from asking the kernel for nothing to having it, while a run trains on the other cores and its panel is shown.
Medians and the longest, in seconds.
"""  # noqa: E501

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import median

from lab import Lab, opened

import sae_lab as sl

SET_UP = """
import os; os.chdir({work!r})
import sae_lab as sl
from sae_lab.panels import GeometryPanel, LatentsPanel, RunsPanel, SteerPanel, TrainPanel
lm = sl.load_model("tiny")
"""
PANELS = {
    "TrainPanel": ("TrainPanel('batchtopk')", ".sae-panel button"),
    "TrainPanel of a run": ("TrainPanel(run='runs/one')", ".js-plotly-plot .main-svg"),
    "RunsPanel": ("RunsPanel('runs')", ".sae-grid tbody tr"),
    "LatentsPanel": ("LatentsPanel('runs/one', lm)", ".sae-grid tbody tr"),
    "GeometryPanel": ("GeometryPanel('runs/one', lm=lm)", ".sae-cloud-root[data-frames]"),
    "SteerPanel": ("SteerPanel('runs/one', lm)", ".sae-panel textarea"),
}
BEGIN = "() => { jupyterapp.commands.execute('notebook:run-all-cells'); return Date.now() / 1000 }"
SHOWN = """selector => new Promise(resolve => {
  const look = () => document.querySelector(selector) ? resolve(Date.now() / 1000) : requestAnimationFrame(look)
  look()
})"""
ANSWER = """async () => {
  const kernel = jupyterapp.shell.currentWidget.sessionContext.session.kernel, begun = performance.now()
  await kernel.requestExecute({ code: "pass", store_history: false }).done
  return (performance.now() - begun) / 1000
}"""
LIVE = "panel = TrainPanel('batchtopk', tokens=10**9, d_sae=2048, k=32, batch=1024, evaluation=0)\npanel"


def trained(folder: Path) -> None:
    lm = sl.load_model("tiny")
    sae = sl.build("batchtopk", d_in=lm.d_model, d_sae=2048, k=32)
    run = folder / "runs" / "one"
    source = sl.activations(lm, "L2R", context=256)
    for _ in sl.train(sae, source, tokens=200_000, batch=1024, lr=2e-3, log_every=1, run=run, about={"model": "tiny"}):
        pass
    sl.contexts(run, lm, tokens=100_000)


def opening(lab: Lab, code: str, selector: str) -> float:
    lab.swap([f"panel = {code}\npanel"], restart=False)
    lab.page.wait_for_timeout(500)
    begun = lab.page.evaluate(BEGIN)
    seconds = lab.page.evaluate(SHOWN, selector) - begun
    lab.until("print(1)", "1")
    lab.ask("panel.close()")
    return seconds


def answers(lab: Lab, rounds: int) -> list[float]:
    """While a run trains; it is stopped in the end."""
    lab.run([LIVE], restart=False)
    lab.ask("panel.ask('launch')")
    try:
        lab.until("print(panel.training.view().state)", "running", 120)
        found = []
        for _ in range(rounds):
            found.append(lab.page.evaluate(ANSWER))
            time.sleep(0.1)
        return found
    finally:
        lab.ask("panel.training.run.stop()")


def main(rounds: int, as_json: bool) -> None:
    with tempfile.TemporaryDirectory() as work, opened() as lab:
        trained(Path(work))
        lab.run([SET_UP.format(work=work)])
        found = {name: [] for name in PANELS}
        for _ in range(rounds + 1):
            for name, (code, selector) in PANELS.items():
                found[name].append(opening(lab, code, selector))
        found = {f"{name} opened": seconds[1:] for name, seconds in found.items()}
        found["answer beside a training"] = answers(lab, 10 * rounds)
    for name, seconds in found.items() if not as_json else ():
        print(f"{name:<28}{median(seconds):6.2f} s   longest {max(seconds):.2f} s")
    if as_json:
        print(json.dumps(found))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", dest="as_json")
    main(**vars(parser.parse_args()))
