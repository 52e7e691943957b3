"""Takes a picture of each panel, light and dark, for the README: python tests/screenshots.py [FOLDER]

Trains three small SAEs of the embedded model first, in a folder that goes; needs the system's Chromium.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from lab import Lab, opened
from saved import png

import sae_lab as sl

HERE = Path(__file__).parents[1] / "notebooks" / "panels"
SIZE = {"width": 1280, "height": 2100}
MADE = [("batchtopk", {"k": 32}, 1024, 0), ("batchtopk", {"k": 32}, 2048, 1), ("jumprelu", {"target_l0": 32}, 1024, 2)]
TOKENS, READ = 1_000_000, 200_000
ASKED = f"variant='batchtopk', d_sae=1024, k=32, context=256, tokens={TOKENS}, batch=1024, lr=2e-3"  # of the first


def trained(folder: Path) -> list[Path]:
    """The runs that are shown."""
    lm = sl.load_model("tiny")
    saes = [sl.build(name, d_in=lm.d_model, d_sae=d_sae, seed=seed, **k) for name, k, d_sae, seed in MADE]
    runs = [folder / f"{sae.name}-{sae.cfg.d_sae}" for sae in saes]
    source = sl.activations(lm, "L2R", context=256)
    for _ in sl.train(saes, source, tokens=TOKENS, batch=1024, lr=2e-3, log_every=5, run=runs, about={"model": "tiny"}):
        pass
    for sae, run in zip(saes, runs):
        sl.Run(run).write_eval(sl.evaluate(sae, lm, tokens=20_000, spliced=8_000).to_json())
    return runs


def panels(lab: Lab, runs: list[Path]) -> dict[str, str]:
    """By name of a picture the code that makes the panel look as it should; each ends with nothing going on."""
    first, second = (str(run) for run in runs[:2])
    spanish = "tour.latents.search('language.spanish')['F1'].idxmax()"
    return {
        "train": f"tour.train.attach({first!r}); tour._tabs.selected_index = 0",
        "runs": f"tour._tabs.selected_index = 1; tour.runs.choose({first!r}, {second!r})",
        "latents": f"tour.selection.run = {second!r}; tour._tabs.selected_index = 2; tour.latents.gather({READ}); "
        "tour.latents.wait(); found = tour.latents.search('entity').sort_values('F1', ascending=False); "
        "tour.latents.look(found.index[0])",
        "geometry": "tour._tabs.selected_index = 3; tour.geometry.wait(); tour.geometry._colour.value = 'concept'",
        "splitting": f"split = sl.panels.GeometryPanel({first!r}, {second!r}, selection=tour.selection, height=300); "
        "tour._map.children = [split]; split.wait(); split.geometry.begin_splitting(); split.wait()",
        "steer": f"tour.selection.run = {first!r}; tour.latents.gather({READ}); tour.latents.wait(); "
        f"tour._tabs.selected_index = 4; tour.steer.add({spanish}, 0.75); tour.steer.write(); "
        "tour.steer.wait(); tour.steer._concept.value = 'language.spanish'; tour.steer.measure(); tour.steer.wait()",
    }


def take(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work, opened() as lab:
        runs = trained(Path(work) / "runs")
        lab.page.set_viewport_size(SIZE)
        lab.ask(f"import os; os.chdir({work!r})")
        lab.run([f"import sae_lab as sl\ntour = sl.panels.tour({ASKED})\ntour"], restart=False)
        for name, code in panels(lab, [run.relative_to(work) for run in runs]).items():
            lab.page.set_default_timeout(600_000)
            lab.ask(code)
            for dark in (False, True):
                lab.dark(dark)
                lab.page.mouse.move(0, 0)
                lab.page.wait_for_timeout(2500)
                pixels = lab.pixels(lab.page.locator(".sae-panel").first)
                (folder / f"{name}-{'dark' if dark else 'light'}.png").write_bytes(png(pixels))
                print(name, "dark" if dark else "light", pixels.shape, file=sys.stderr)
            lab.dark(False)
        if lab.abroad or lab.errors:
            raise RuntimeError(f"The page was not quiet: {lab.abroad} {lab.errors}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=HERE, metavar="FOLDER")
    take(parser.parse_args().folder)
