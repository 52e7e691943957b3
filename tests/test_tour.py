"""The tour in a real browser: train from it, look at latents, map them, steer; and no text is ever markup."""

import shutil
from pathlib import Path

import pytest
from small import identity, small_llama
from test_lab import HOSTILE, around, click, drawn, lasso

import sae_lab as sl
from sae_lab.launcher import Launched
from sae_lab.runs import Lines, Run, write_sae

POINTS = "() => document.querySelector('.js-plotly-plot')?._fullData?.[0].x.length ?? 0"
FIRST = "() => document.querySelector('.js-plotly-plot')._fullData[0].x[0]"
TABS = ("Train", "Runs", "Latents", "Geometry", "Steer")
KNOBS = "variant='topk', site='L1R', d_sae=64, k=4, tokens=50_000_000, batch=256, log_every=1, evaluation=0, context=64"

SLOW = """
import time
from sae_lab.panels import steering as controller

steps, write = [], controller.steer

class Slow:
    def __init__(self, made):
        self.made = made
    def __iter__(self):
        for step in self.made:
            time.sleep(0.2)
            steps.append(step)
            yield step

controller.steer = lambda *a, **k: Slow(write(*a, **k))
tour.steer._tokens.value = 90
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a small model, and two SAEs of it whose firings are known; one has been read with and explained."""
    folder = tmp_path_factory.mktemp("tour")
    lm = small_llama(folder / "model")
    for i in range(2):
        run = Run(folder / "runs" / f"known-{i}")
        sae = identity(over=0.5, silent=[9])
        sae.origin = {"model": lm.name, "site": "L1R", "text": "world", "context": 64}
        run.describe({"variant": "relu", "site": "L1R", "sae": {"d_sae": 64, "seed": i}})
        write_sae(sae, run.folder / "sae")
        run.beat("done", step=1, steps=1, tokens=64)
        run.write_eval({"fvu": {"value": 0.5 + i / 10}, "l0": {"value": 20.0 + i}})
    return folder


@pytest.fixture
def folder(made, tmp_path):
    """A copy of it that a test may spoil."""
    shutil.copytree(made / "runs", tmp_path / "runs")
    return tmp_path


def opened(lab, made: Path, folder: Path, knobs: str = KNOBS) -> None:
    code = (
        f"import sae_lab as sl\ntour = sl.panels.tour({str(folder / 'runs')!r}, model={str(made / 'model')!r}, {knobs})"
    )
    lab.run([f"{code}\ntour"], restart=False)
    lab.page.get_by_role("tab", name="Train").wait_for()


def tab(lab, name: str) -> None:
    lab.page.get_by_role("tab", name=name, exact=True).first.click()
    lab.until("print(tour._tabs.selected_index)", str(TABS.index(name)))


def press(lab, name: str) -> None:
    button = lab.page.locator("button:visible:enabled", has_text=name).first
    button.wait_for()
    button.click()


def headline(lab, word: str) -> None:
    """Waits until the panel's headline has a word."""
    lab.page.locator(".sae-headline:visible", has_text=word).first.wait_for()


def test_a_training_is_launched_watched_paused_resumed_found_again_and_stopped(lab, made, folder):
    opened(lab, made, folder)
    try:
        press(lab, "Launch")
        headline(lab, "running")
        grown = lab.wait(f"() => {{ const n = ({POINTS})(); return n > 3 && n }}")
        lab.wait(f"before => ({POINTS})() > before", grown)
        press(lab, "Pause")
        headline(lab, "paused")
        press(lab, "Resume")
        headline(lab, "running")
        step = int(lab.ask("print(tour.train.training.run.status['step'])"))
        first = lab.page.evaluate(FIRST)
        lab.restart()  # and the training goes on
        opened(lab, made, folder)
        headline(lab, "1 run is active")
        shown = lab.page.locator("select:visible", has=lab.page.locator("option", has_text="topk-L1R"))
        shown.select_option(label=str(folder / "runs/topk-L1R"))
        headline(lab, "running")
        lab.wait(f"step => ({POINTS})() > 3 && ({FIRST})() === step", first)
        assert int(lab.ask("print(tour.train.training.run.status['step'])")) > step
        press(lab, "Stop")
        headline(lab, "stopped")
        assert Run(folder / "runs/topk-L1R").checkpoints.steps
    finally:
        for run in (folder / "runs").glob("topk*"):
            Launched(run).stop()


def test_a_sweep_is_typed_and_launched(lab, made, folder):
    opened(lab, made, folder, KNOBS.replace("50_000_000", "10_000").replace("evaluation=0", "evaluation=500"))
    lab.page.get_by_text("Sweep over", exact=True).click()
    pick = lab.page.locator("select:visible", has=lab.page.locator("option", has_text="vary a knob"))
    pick.select_option("lr")
    field = lab.page.locator(".sae-row:visible", has=lab.page.get_by_text("lr", exact=True)).locator("input").first
    field.fill("1e-3, nonsense")
    field.press("Enter")
    lab.page.locator(".sae-wrong:visible", has_text="lr='nonsense'").wait_for()
    assert lab.page.locator("button:visible", has_text="Launch sweep").is_disabled()
    field.fill("1e-3, 1e-4")
    field.press("Enter")
    lab.page.get_by_text("2 SAEs in 2 passes").wait_for()
    press(lab, "Launch sweep")
    lab.page.locator(".sae-headline:visible", has_text="done").wait_for(timeout=120_000)
    rows = lab.page.locator(".sae-grid:visible tbody tr")
    lab.wait("() => document.querySelectorAll('.sae-grid tbody tr').length >= 2")
    assert "0.001" in rows.nth(0).inner_text() and "done" in rows.nth(0).inner_text()
    rows.nth(1).click()
    lab.until("print(tour.selection.run.endswith('topk-k4-d64-lr0.0001-s0'))", "True")


def test_a_run_is_chosen_its_latents_read_mapped_marked_and_steered(lab, made, folder):
    opened(lab, made, folder)
    tab(lab, "Runs")
    lab.page.locator(".sae-grid:visible tbody tr", has_text="known-0").click()
    tab(lab, "Latents")
    lab.page.locator("button:visible", has_text="Read 200,000 tokens").wait_for()
    lab.ask("tour.latents.gather(3_000)")
    rows = lab.page.locator(".sae-grid:visible tbody tr")
    rows.nth(3).wait_for()
    rows.nth(3).click()
    lab.page.locator(".sae-tokens:visible .sae-peak").first.wait_for()
    read = int(lab.ask("print(tour.selection.latent)"))
    assert rows.nth(3).inner_text().split()[0] == str(read)

    tab(lab, "Geometry")
    drawn(lab)
    lab.until("print(tour.geometry.geometry.working)", "")
    lab.ask("tour.geometry.wait()")
    before = read
    for x, y in ((0.5, 0.5), (-0.5, 0.5), (0.0, 0.0), (0.5, -0.5), (-0.5, -0.5), (0.3, 0.0), (0.0, 0.3)):
        click(lab, x, y)
        if int(lab.ask("print(tour.selection.latent)")) != before:
            break
    else:
        pytest.fail("no click on the map chose a latent")
    lasso(lab, around(-1, -1, 1, 1))
    lab.until("print(len(tour.selection.latents) > 3)", "True")


def test_what_a_model_writes_comes_token_by_token_and_can_be_cancelled(lab, made, folder):
    opened(lab, made, folder)
    lab.ask(f"tour.selection.run = {str(folder / 'runs/known-0')!r}; tour.selection.latent = 3")
    tab(lab, "Steer")
    press(lab, "Add")
    lab.page.get_by_text("latent 3", exact=True).wait_for()
    lab.ask("tour.steer._tokens.value = 4")
    press(lab, "Write")
    lab.page.locator("h4:visible", has_text="steered").wait_for()
    lab.until("print(tour.steer.steering.working)", "")
    texts = lab.page.locator(".sae-tokens:visible").all_inner_texts()
    assert len(texts) == 2 and all(text.startswith("One morning the old baker found") for text in texts)
    lab.page.get_by_text("logits that rose").wait_for()
    lab.ask(SLOW)
    press(lab, "Write")
    lab.until("print(len(tour.steer.steering.texts[1]) > 3)", "True")
    press(lab, "Cancel")
    lab.until("print(tour.steer.steering.working)", "")
    assert lab.ask("print(tour.steer.steering.changes.empty, 0 < len(steps) < 80)") == "True True"
    lab.page.locator("button:visible:enabled", has_text="Write").wait_for()


def test_no_text_in_any_panel_is_markup(lab, made, folder):
    bad = Run(folder / "runs" / ("<b>x" + HOSTILE.replace("/", "")))
    shutil.copytree(folder / "runs/known-0", bad.folder)
    bad.append({"step": 1, "tokens": 64, "fvu": 0.5, "l0": 4.0, "dead": 0, "note": HOSTILE})
    bad.beat("failed", step=1, steps=1, tokens=64, error=HOSTILE * 50)
    lm = sl.load_model(str(made / "model"))
    long = "x" * 100_000
    sl.contexts(bad, lm, text=[f"{HOSTILE} Anna has {i} pears. {HOSTILE}" for i in range(60)], tokens=1_500, context=64)
    what = {"text": HOSTILE + long, "latent": 3, "by": HOSTILE, "rule": None}
    Lines(bad, "explanations", {"n": 1}).add({"latent": 3, "explanation": what, "scores": {"detection": 0.75}})
    bad.comment(3, HOSTILE)
    opened(lab, made, folder)
    lab.ask(f"bad = {str(bad.folder)!r}; hostile = {HOSTILE!r}; long = {long!r}")
    lab.ask("tour.train.attach(bad); tour.train._form.set('text', hostile); tour.train.over.set('text', hostile)")
    seen = [shown(lab)]
    for name in TABS[1:]:
        tab(lab, name)
        if name == "Runs":
            lab.ask("tour.runs.show(); tour.runs.choose(bad)")
        elif name == "Latents":
            lab.ask("tour.selection.run = bad; tour.latents.look(3); tour.latents._try.value = hostile")
        elif name == "Geometry":
            drawn(lab)
            lab.ask("tour.geometry.wait(); tour.geometry._cloud.choose(list(range(64)))")
        else:
            lab.ask("tour.steer.add(3); tour.steer._prompt.value = hostile; tour.steer._tokens.value = 3")
            lab.ask("tour.steer.write(); tour.steer.wait()")
            lab.ask("tour.steer.complain(RuntimeError(hostile + long))")
        seen.append(shown(lab))
    assert [name for name, text in zip(TABS, seen) if "onerror" not in text] == ["Geometry"]  # it shows numbers
    assert lab.page.evaluate("() => window.hit") is None


def shown(lab) -> str:
    """What the visible panel says, once it holds no element that a text could have brought."""
    lab.until("print(tour.steer.steering is None or not tour.steer.steering.working)", "True")
    lab.page.wait_for_timeout(1000)  # panels look again every quarter of a second
    root = lab.page.locator(".sae-panel:visible").first
    odd = "img, script, iframe, object, [onclick], [onerror], [onload], a[href^='javascript']"
    assert root.locator(odd).count() == 0
    text = root.inner_text()
    assert not set("\u202e\x1b") & set(text) and len(text) < 300_000
    return text
