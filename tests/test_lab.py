"""The notebook's widgets in a real browser: JupyterLab in Chromium, a mouse, a keyboard, and what reaches Python."""

import asyncio
import json
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from lab import uses_lab

import sae_lab
from sae_lab.plots import COLOURS, MORE

SOURCE = (Path(sae_lab.__file__).parent / "panels" / "faces" / "cloud.js").read_text()
PURE = """async ([source, ask, given]) => {
  const js = await import(URL.createObjectURL(new Blob([source], { type: "text/javascript" })))
  return eval(ask)(js, given)
}"""
CLOUD = """
import numpy as np
from sae_lab.panels import PointCloud

xy = np.vstack([[(-1, -1), (1, -1), (1, 1), (-1, 1), (0, 0)], np.random.default_rng(0).uniform(-0.9, 0.9, (400, 2))])
heard, asked = [], []

def label(i):
    asked.append(i)
    return f"point {i}"

cloud = PointCloud(xy, np.arange(405) % 2, names=["even", "odd"], title="kind", label=label, sizes=6.0)
cloud.observe(lambda change: heard.append(change["new"]), "clicked")
cloud
"""
XY = np.vstack([[(-1, -1), (1, -1), (1, 1), (-1, 1), (0, 0)], np.random.default_rng(0).uniform(-0.9, 0.9, (400, 2))])
HOSTILE = '<img src=x onerror="window.hit=1"><script>window.hit=1</script><b onclick=x>\u202e\x1b[31m\U0001f600'
NO_WEBGL = """() => {
  const get = HTMLCanvasElement.prototype.getContext
  window.__webgl = () => { HTMLCanvasElement.prototype.getContext = get }
  HTMLCanvasElement.prototype.getContext = function (kind, how) {
    return kind === "webgl2" ? null : get.call(this, kind, how)
  }
}"""


@pytest.fixture
def cloud(lab):
    """A cloud of 405 points, of which the first five are in the corners and in the middle."""
    lab.run([CLOUD], restart=False)
    drawn(lab)
    return lab.page.locator(".sae-cloud-root")


def drawn(lab, count: int = 1) -> None:
    lab.page.locator(".sae-cloud-root[data-frames]").nth(count - 1).wait_for()
    lab.page.locator(".sae-cloud-root").first.scroll_into_view_if_needed()


@contextmanager
def redrawn(lab):
    """Waits for the frame that what is done inside leads to."""
    frames = "() => Number(document.querySelector('.sae-cloud-root').dataset.frames)"
    before = lab.page.evaluate(frames)
    yield
    lab.wait(f"before => ({frames})() > before", before)


def pixel(lab, x: float, y: float, which: int = 0, zoom: float = 0.95) -> tuple[float, float]:
    """Where a place of the whole map is on the page."""
    lab.page.locator(".sae-cloud-stage").nth(which).scroll_into_view_if_needed()
    box = lab.page.locator(".sae-cloud-stage").nth(which).bounding_box()
    span = zoom * min(box["width"], box["height"]) / 2
    return box["x"] + box["width"] / 2 + x * span, box["y"] + box["height"] / 2 - y * span


def click(lab, x: float, y: float, which: int = 0) -> None:
    lab.page.mouse.click(*pixel(lab, x, y, which))


def drag(lab, corners, which: int = 0) -> None:
    """A line from place to place with the button held."""
    mouse = lab.page.mouse
    mouse.move(*pixel(lab, *corners[0], which))
    mouse.down()
    for corner in corners[1:]:
        mouse.move(*pixel(lab, *corner, which), steps=3)
    mouse.up()


def lasso(lab, corners, which: int = 0) -> None:
    lab.page.keyboard.down("Shift")
    drag(lab, corners, which)
    lab.page.keyboard.up("Shift")


def around(left, bottom, right, top):
    return [(left, bottom), (right, bottom), (right, top), (left, top)]


def within(left, bottom, right, top) -> str:
    """The points there, as the kernel prints their numbers."""
    x, y = XY.T
    found = (left < x) & (x < right) & (bottom < y) & (y < top)
    assert 5 < found.sum() < 300
    return str(np.flatnonzero(found).tolist())


def at(lab, x: float, y: float, which: int = 0) -> np.ndarray:
    """The colour that the page shows at a place of the map."""
    box = lab.page.locator(".sae-cloud-stage").nth(which).bounding_box()
    left, top = pixel(lab, x, y, which)
    seen = lab.pixels(lab.page.locator(".sae-cloud-stage").nth(which))
    return seen[round(top - box["y"]), round(left - box["x"])].astype(int)


def rgb(colour: str) -> np.ndarray:
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])


def computed(lab, selector: str, style: str) -> np.ndarray:
    """A colour of an element as [r, g, b]; what is clear shows what is behind it."""
    ask = """([selector, style]) => {
      for (let e = document.querySelector(selector); e; e = e.parentElement) {
        const found = getComputedStyle(e)[style].match(/[\\d.]+/g).map(Number)
        if (found.length < 4 || found[3] > 0.5) return found.slice(0, 3)
      }
    }"""
    return np.array(lab.page.evaluate(ask, [selector, style]))


def contrast(a, b) -> float:
    """WCAG's: 1 to 21."""
    linear = [np.where((c := np.asarray(x) / 255) <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) for x in (a, b)]
    low, high = sorted(float(x @ [0.2126, 0.7152, 0.0722]) for x in linear)
    return (high + 0.05) / (low + 0.05)


# The lab itself


def test_the_lab_hears_what_is_wrong_and_what_is_asked_of_others(lab):
    lab.page.evaluate("() => { console.error('planted'); fetch('https://example.org/x').catch(() => {}) }")
    lab.wait("() => true")
    lab.page.wait_for_timeout(200)
    assert lab.abroad == ["https://example.org/x"] and "planted" in lab.errors
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        lab.run(["1 / 0"], restart=False)
    with pytest.raises(AssertionError, match="NameError"):
        lab.ask("nothing")
    lab.abroad.clear()
    lab.errors.clear()


def test_a_fresh_kernel_knows_nothing_of_the_last(lab):
    lab.run(["x = 1\nprint(x)"])
    assert lab.outputs()[0][0]["text"] == "1\n"
    lab.run(["print('x' in globals())"], restart=False)
    assert lab.outputs()[0][0]["text"] == "True\n"
    lab.run(["print('x' in globals())"])
    assert lab.outputs()[0][0]["text"] == "False\n"


def test_between_browser_tests_others_may_run_loops_of_their_own(lab):
    lab.mark(running=False)
    assert asyncio.run(asyncio.sleep(0, "ran")) == "ran"
    lab.mark(running=True)
    assert lab.ask("print(3)") == "3"


def test_files_whose_tests_take_the_lab_are_known(tmp_path):
    other = tmp_path / "test_other.py"
    other.write_text("def test_a(tmp_path,\n           lab): pass\n")
    near = tmp_path / "test_near.py"
    near.write_text("lab = 1\ndef test_label(labels, laboratory): return lab\n")
    assert uses_lab(Path(__file__)) and uses_lab(other)
    assert not uses_lab(near) and not uses_lab(Path(__file__).with_name("test_cloud.py"))


# What the JavaScript computes


def pure(lab, ask: str, given=None):
    return lab.page.evaluate(PURE, [SOURCE, ask, given])


def test_the_nearest_point_is_the_one_that_numpy_finds(lab):
    rng = np.random.default_rng(1)
    xy, at_ = rng.uniform(-1, 1, (300, 2)).astype("f4"), rng.uniform(-1.1, 1.1, (200, 2))
    ask = "(js, [xy, at]) => { const g = js.grid(xy); return at.map(([x, y]) => js.nearest(g, xy, x, y, 0.06)) }"
    found = pure(lab, ask, [xy.ravel().tolist(), at_.tolist()])
    far = np.square(xy[None].astype(float) - at_[:, None]).sum(2)
    expected = np.where(far.min(1) < 0.06**2, far.argmin(1), -1)
    assert found == expected.tolist() and 20 < (expected >= 0).sum() < 180


def test_a_lasso_holds_the_points_around_which_it_winds(lab):
    xy = np.random.default_rng(2).uniform(-1, 1, (1003, 2))
    angles = np.linspace(0, 2 * np.pi, 10, endpoint=False)
    star = np.stack([np.cos(angles), np.sin(angles)], 1) * np.where(np.arange(10) % 2, 0.35, 0.95)[:, None]
    bits = pure(lab, "(js, [xy, star]) => Array.from(js.lassoed(xy, star))", [xy.ravel().tolist(), star.tolist()])
    seen = star[None] - xy[:, None]  # turns of the direction to a corner, as it goes around
    angle = np.arctan2(seen[..., 1], seen[..., 0])
    turn = np.diff(np.concatenate([angle, angle[:, :1]], 1), axis=1)
    winding = np.round(((turn + np.pi) % (2 * np.pi) - np.pi).sum(1) / (2 * np.pi))
    mask = np.unpackbits(np.array(bits, np.uint8), bitorder="little")
    assert len(bits) == 126 and mask[1003:].sum() == 0
    assert np.array_equal(mask[:1003], winding != 0) and 200 < mask.sum() < 500
    back = pure(lab, "(js, bits) => Array.from(js.unpacked(Uint8Array.from(bits), 1003))", bits)
    assert back == mask[:1003].tolist()
    assert pure(lab, "js => Array.from(js.unpacked(new Uint8Array(0), 3))") == [0, 0, 0]


def test_bytes_at_an_odd_place_are_read(lab):
    ask = "js => { const b = new Uint8Array(13); new DataView(b.buffer).setFloat32(5, 2.5, true)"
    ask += "; return [js.floats(new DataView(b.buffer, 5, 4))[0], js.octets(new DataView(b.buffer, 7, 2)).length] }"
    assert pure(lab, ask) == [2.5, 2]


def test_viridis_is_matplotlibs(lab):
    known = {0: (68, 1, 84), 0.25: (59, 82, 139), 0.5: (33, 145, 140), 0.75: (94, 201, 98), 1: (253, 231, 37)}
    found = pure(lab, "(js, shares) => shares.map(js.viridis)", [*known, -1, 2])
    assert np.abs(np.subtract(found, [*known.values(), known[0], known[1]])).max() <= 2


@pytest.mark.parametrize("dark", [False, True])
def test_every_colour_is_seen_on_its_ground(lab, dark):
    ground = (17, 17, 17) if dark else (255, 255, 255)
    for names, codes, least in ((["x"] * 16, range(16), 2.4), (None, range(0, 255, 2), 1.25), (None, [255], 3)):
        key = {"names": names, "colours": COLOURS + MORE}
        ask = "(js, [key, dark]) => Array.from(js.palette(key, dark))"
        colours = np.array(pure(lab, ask, [key, dark])).reshape(256, 4)[:, :3]
        assert min(contrast(colours[code], ground) for code in codes) >= least


# The cloud in a notebook


def test_points_are_where_and_what_they_should_be(lab, cloud):
    assert cloud.get_attribute("data-drawn-by") == "webgl"
    for i, (x, y) in enumerate(XY[:4]):
        assert np.abs(at(lab, x, y) - (0.8 * rgb(COLOURS[i % 2]) + 0.2 * 255)).max() <= 3
    assert at(lab, -1.2, 0).tolist() == [255, 255, 255]
    assert cloud.locator(".sae-cloud-legend").inner_text().split() == ["kind", "even", "odd"]
    assert cloud.locator(".sae-cloud-status").inner_text() == "405 points"


def test_a_click_reaches_python_every_time(lab, cloud):
    for place in ((1, 1), (1, 1), (0, 0), (-1.2, 0)):
        click(lab, *place)
    lab.until("print(heard)", "[2, 2, 4, -1]")


def test_a_hover_asks_for_one_label_once(lab, cloud):
    tip = cloud.locator(".sae-cloud-tip")
    for _ in range(2):
        lab.page.mouse.move(*pixel(lab, 1, -1))
        lab.wait("() => document.querySelector('.sae-cloud-tip').textContent === 'point 1'")
        assert tip.is_visible() and cloud.locator(".sae-cloud-live").text_content() == "point 1"
        lab.page.mouse.move(*pixel(lab, -1.3, 0))
        assert not tip.is_visible()
    assert lab.ask("print(asked)") == "[1]"
    for x, y in XY[:4]:  # in every corner it stays on the map
        lab.page.mouse.move(*pixel(lab, x, y))
        tip.wait_for()
        box, stage = tip.bounding_box(), cloud.locator(".sae-cloud-stage").bounding_box()
        assert stage["x"] <= box["x"] and box["x"] + box["width"] <= stage["x"] + stage["width"]
        assert stage["y"] <= box["y"] and box["y"] + box["height"] <= stage["y"] + stage["height"]


def test_a_lasso_selects_in_python_what_it_holds(lab, cloud):
    lasso(lab, around(-0.5, -0.8, 0.3, 0.2))
    lab.until("print(cloud.chosen.tolist())", within(-0.5, -0.8, 0.3, 0.2))
    chosen = int(lab.ask("print(len(cloud.chosen))"))
    assert cloud.locator(".sae-cloud-status").inner_text() == f"{chosen} of 405 points selected"
    assert np.abs(at(lab, 1, 1) - 255).max() < 40  # what is not selected is dim
    cloud.get_by_text("Lasso").click()
    drag(lab, around(0.1, 0.1, 0.8, 0.8))
    lab.until("print(cloud.chosen.tolist())", within(0.1, 0.1, 0.8, 0.8))
    with redrawn(lab):
        lab.ask("cloud.choose([0, 4])")
    lab.wait("() => document.querySelector('.sae-cloud-status').textContent.startsWith('2 of')")
    assert np.abs(at(lab, -1, -1) - rgb(COLOURS[0])).max() <= 3
    cloud.get_by_text("Clear").click()
    lab.until("print(cloud.chosen.tolist(), heard)", "[] []")


def test_a_drag_and_a_wheel_move_the_map(lab, cloud):
    drag(lab, [(0, 0.97), (-0.5, 0.97), (-1, 0.97)])  # the map, by one to the left: what was at 1 is at 0
    click(lab, 0, 1)
    lab.until("print(heard)", "[2]")
    lab.page.keyboard.press("0")
    lab.page.mouse.move(*pixel(lab, 1, 1))
    lab.page.mouse.wheel(0, -1000)  # what is under the pointer stays there
    click(lab, 1, 1)
    lab.until("print(heard)", "[2, 2]")
    click(lab, 0, 0)
    lab.until("print(len(heard))", "3")
    assert lab.ask("print(heard[-1])") not in ("2", "4")
    cloud.get_by_text("Reset").click()
    click(lab, 0, 0)
    lab.until("print(heard[-1])", "4")


def test_a_wheel_over_a_map_that_nobody_touched_scrolls_the_page(lab):
    lab.run([CLOUD, "print('x\\n' * 400)"], restart=False)
    drawn(lab)
    box = lab.page.locator(".sae-cloud-stage").bounding_box()
    lab.page.mouse.move(*pixel(lab, 0, 0))
    lab.page.mouse.wheel(0, 200)
    lab.wait("y => document.querySelector('.sae-cloud-stage').getBoundingClientRect().y < y - 50", box["y"])


def test_keys_move_the_map_and_leave_the_notebook_alone(lab, cloud):
    kernel = lab.ask("import os; print(os.getpid())")
    page, stage = lab.page, cloud.locator(".sae-cloud-stage")
    stage.focus()
    box = stage.bounding_box()
    step = 0.1 * box["height"]
    for key, right, down in (("Right", -1, 0), ("Up", 0, 1), ("Left", 1, 0), ("Down", 0, -1)):
        page.keyboard.press(f"Arrow{key}")
        x, y = pixel(lab, 0, 0)
        page.mouse.click(x + right * step, y + down * step)
        lab.until("print(heard)", "[4]")
        lab.ask("heard.clear()")
        page.keyboard.press("0")
    for key in ("+", "+", "-", "="):
        page.keyboard.press(key)
    near = int(np.hypot(*(XY - 0.25).T).argmin())
    page.mouse.click(*pixel(lab, *XY[near], zoom=0.95 * 1.4**2))
    lab.until("print(heard)", f"[{near}]")
    page.keyboard.press("l")
    assert cloud.get_by_text("Lasso").get_attribute("aria-pressed") == "true"
    drag(lab, around(-0.5, -0.5, 0.5, 0.5))
    lab.until("print(len(cloud.chosen) > 5)", "True")
    page.keyboard.press("Escape")
    lab.until("print(len(cloud.chosen))", "0")
    for focused in (stage, cloud.get_by_text("Reset")):
        focused.focus()
        for key in ("d", "d", "0", "0", "x", "a", "b", "Shift+L"):  # delete, restart, cut, above, below, line numbers
            page.keyboard.press(key)
        assert page.locator(".jp-Dialog").count() == 0 and page.locator(".jp-Notebook-cell").count() == 1
        assert focused.evaluate("e => e === document.activeElement")
    assert lab.ask("import os; print(os.getpid())") == kernel


def test_other_colours_come_with_another_legend(lab, cloud):
    legend = cloud.locator(".sae-cloud-legend")
    with redrawn(lab):
        lab.ask("cloud.recolour(np.arange(405.0), title='density', unit='log10', limits=(0.0, 2.0))")
    lab.wait("() => document.querySelector('.sae-cloud-scale')")
    assert legend.inner_text().split() == ["density", "[log10]", "0", "2"]
    low, middle, high = (at(lab, *XY[i]) for i in (0, 1, 2))
    viridis = pure(lab, "js => [0, 0.46, 0.92].map(js.viridis)")
    for seen, colour in zip((low, middle, high), viridis):
        assert np.abs(seen - (0.8 * np.array(colour) + 0.2 * 255)).max() <= 4
    with redrawn(lab):
        lab.ask("cloud.recolour([-1, 0, 20] * 135, names=[f'n{i}' for i in range(21)], title='cluster')")
    lab.wait("() => document.querySelectorAll('.sae-cloud-swatch').length === 22")
    assert legend.inner_text().split()[-1] == "none"
    assert np.abs(at(lab, *XY[0]) - (0.4 * 128 + 0.6 * 255)).max() <= 3
    assert np.abs(at(lab, *XY[2]) - (0.8 * rgb((COLOURS + MORE)[4]) + 0.2 * 255)).max() <= 3


def test_points_move_to_where_they_are_put(lab, cloud):
    with redrawn(lab):
        lab.ask("cloud.move(xy[::-1] * [1, -1])")
    click(lab, 1, -1)
    lab.until("print(heard)", "[402]")


def test_two_clouds_know_nothing_of_each_other(lab):
    second = CLOUD.replace("cloud", "other").replace("heard", "listened").replace("sizes=6.0", "height=300")
    lab.run([CLOUD, second], restart=False)
    drawn(lab, 2)
    click(lab, 1, 1, which=0)
    click(lab, -1, 1, which=1)
    lab.until("print(heard, listened)", "[2] [3]")
    lasso(lab, around(-0.5, -0.5, 0.5, 0.5), which=1)
    lab.until("print(len(cloud.chosen), len(other.chosen) > 5)", "0 True")
    assert lab.page.locator(".sae-cloud-stage").nth(1).bounding_box()["height"] == 300


def test_two_views_of_one_cloud_show_one_selection(lab):
    lab.run([CLOUD, "cloud"], restart=False)
    drawn(lab, 2)
    lasso(lab, around(-0.5, -0.5, 0.5, 0.5), which=1)
    lab.wait("() => document.querySelector('.sae-cloud-status').textContent.includes('selected')")


def test_a_cloud_follows_the_theme(lab, cloud):
    light = at(lab, 1, 1)
    with redrawn(lab):
        lab.dark()
    shown = 0.8 * (0.7 * rgb(COLOURS[0]) + 0.3 * 255) + 0.2 * 17
    for _ in range(100):  # a frame may be drawn while half of the theme is there
        if np.abs(at(lab, 1, 1) - shown).max() <= 3:
            break
        lab.page.wait_for_timeout(100)
    assert np.abs(at(lab, 1, 1) - shown).max() <= 3 and np.abs(at(lab, 1, 1) - light).max() > 20
    lab.page.mouse.move(*pixel(lab, 0, 0))
    for part in ("title", "name", "status", "tip", "button"):
        ink, ground = (computed(lab, f".sae-cloud-{part}", style) for style in ("color", "backgroundColor"))
        assert contrast(ink, ground) >= 4.5, part


def test_a_label_is_never_markup(lab):
    code = f"from sae_lab.panels import PointCloud\nbad, long = {HOSTILE!r}, 'x' * 100_000\n"
    code += "cloud = PointCloud([(0, 0), (1, 1), (-1, -1)], [0, 1, 0], names=[bad, long], title=bad, unit=bad,\n"
    code += "                   label=lambda i: [bad, long, bad * 2000][i])\ncloud"
    lab.run([code], restart=False)
    drawn(lab)
    root = lab.page.locator(".sae-cloud-root")
    for x, y in ((0, 0), (1, 1), (-1, -1)):
        lab.page.mouse.move(*pixel(lab, x, y))
        lab.wait("() => document.querySelector('.sae-cloud-tip').textContent.length > 2")
        lab.page.mouse.move(*pixel(lab, -0.5, 0.5))
    assert "\\u202e" in root.text_content() and "onerror" in root.text_content()
    assert root.locator("img, script, [onclick], [onerror], b:not(.sae-cloud-title)").count() == 0
    assert lab.page.evaluate("() => window.hit") is None
    assert not set("\u202e\x1b") & set(root.text_content()) and len(root.text_content()) < 20_000
    widest = root.bounding_box()["width"]
    assert all(part.bounding_box()["width"] <= widest for part in root.locator(".sae-cloud-name").all())


def test_without_webgl_the_same_is_drawn_on_a_canvas(lab, cloud):
    fast = lab.pixels(cloud.locator(".sae-cloud-stage")).astype(int)
    lab.page.evaluate(NO_WEBGL)
    try:
        lab.run([CLOUD], restart=False)
        drawn(lab)
    finally:
        lab.page.evaluate("() => window.__webgl()")
    assert cloud.get_attribute("data-drawn-by") == "canvas"
    slow = lab.pixels(cloud.locator(".sae-cloud-stage")).astype(int)
    inked = (fast < 250).any(2)
    assert np.abs(fast - slow)[inked].mean() < 25 and ((slow < 250).any(2) & inked).sum() > 0.85 * inked.sum()
    click(lab, 1, -1)
    lasso(lab, around(-0.5, -0.8, 0.3, 0.2))
    lab.until("print(heard, cloud.chosen.tolist())", f"[1] {within(-0.5, -0.8, 0.3, 0.2)}")
    with redrawn(lab):
        lab.ask("cloud.choose([0])")
    lab.page.mouse.move(0, 0)
    assert np.abs(at(lab, -1, -1) - rgb(COLOURS[0])).max() <= 3 and np.abs(at(lab, 1, 1) - 255).max() < 40
    with redrawn(lab):
        lab.ask("cloud.choose([]); cloud.recolour(np.full(405, np.nan))")
    lab.wait("() => !document.querySelector('.sae-cloud-status').textContent.includes('selected')")
    assert np.abs(at(lab, 1, 1) - (0.4 * 128 + 0.6 * 255)).max() <= 3


def test_a_context_that_is_lost_is_replaced_and_used_again_when_it_is_back(lab, cloud):
    lose = """() => {
      const context = document.querySelector(".sae-cloud-points").getContext("webgl2")
      window.__lost = context.getExtension("WEBGL_lose_context")
      window.__lost.loseContext()
    }"""
    lab.page.evaluate(lose)
    lab.wait("() => document.querySelector('[data-drawn-by=canvas]')")
    assert np.abs(at(lab, 1, 1) - (0.8 * rgb(COLOURS[0]) + 0.2 * 255)).max() <= 3
    lab.page.evaluate("() => window.__lost.restoreContext()")
    lab.wait("() => document.querySelector('[data-drawn-by=webgl]')")
    assert np.abs(at(lab, 1, 1) - (0.8 * rgb(COLOURS[0]) + 0.2 * 255)).max() <= 3


def test_the_ninth_cloud_takes_the_context_of_the_first(lab):
    cells = [CLOUD.replace("\ncloud\n", "\n"), *["PointCloud(xy, height=120)"] * 9]
    lab.run(cells, restart=False)
    drawn(lab, 9)
    kinds = "() => Array.from(document.querySelectorAll('.sae-cloud-root'), e => e.dataset.drawnBy).join(' ')"
    lab.wait(f"() => ({kinds})() === 'canvas' + ' webgl'.repeat(8)")
    last = "Array.from(document.querySelectorAll('.sae-cloud-points')).at(-1).getContext('webgl2')"
    lab.page.evaluate(f"() => {{ window.__last = {last} }}")
    lab.run([CLOUD], restart=False)  # those that are gone give theirs back
    drawn(lab)
    lab.wait("() => globalThis.__sae_lab_clouds__.length === 1 && window.__last.isContextLost()")


def test_a_cloud_is_as_wide_as_there_is_room(lab, cloud):
    ask = """() => {
      const stage = document.querySelector(".sae-cloud-stage"), canvas = document.querySelector(".sae-cloud-points")
      return canvas.width === stage.clientWidth && stage.clientWidth
    }"""
    before = lab.wait(ask)
    try:
        with redrawn(lab):
            lab.page.set_viewport_size({"width": 900, "height": 1400})
        assert lab.wait(f"before => {{ const now = ({ask})(); return now < before - 300 && now }}", before)
        click(lab, 1, 1)
        lab.until("print(heard)", "[2]")
        lab.ask("cloud.height = 200")
        lab.wait("() => document.querySelector('.sae-cloud-points').height === 200")
    finally:
        lab.page.set_viewport_size({"width": 1280, "height": 1400})


def test_in_a_box_a_cloud_takes_the_room_that_is_left(lab):
    box = "import ipywidgets as W\nbeside = W.Label('beside')\nW.VBox([cloud, W.HBox([beside, PointCloud(xy)])])"
    lab.run([CLOUD.removesuffix("cloud\n"), box], restart=False)
    drawn(lab, 2)
    wide = "() => Array.from(document.querySelectorAll('.sae-cloud-stage'), e => e.clientWidth)"
    lab.wait(f"() => ({wide})().every(width => width > 900)")


def test_the_picture_is_what_is_seen(lab, cloud):
    with lab.page.expect_download() as download:
        cloud.get_by_text("PNG").click()
    assert download.value.suggested_filename == "points.png"
    saved = lab.decoded(Path(download.value.path()).read_bytes()).astype(int)
    height, width, _ = saved.shape
    for i, (x, y) in enumerate(XY[:4]):
        spot = saved[round(height / 2 - 0.475 * height * y), round(width / 2 + 0.475 * height * x)]
        assert np.abs(spot - (0.8 * rgb(COLOURS[i % 2]) + 0.2 * 255)).max() <= 3
    assert (width, height) == (lab.page.evaluate("() => document.querySelector('.sae-cloud-points').width"), 480)


def test_a_map_whose_kernel_is_gone_says_so_and_makes_no_noise(lab, cloud):
    lab.restart()
    click(lab, 1, 1)
    lab.page.mouse.move(*pixel(lab, 1, -1))
    lasso(lab, around(-0.5, -0.5, 0.5, 0.5))
    lab.wait("() => document.querySelector('.sae-cloud-status').textContent.startsWith('No kernel')")
    lab.run([CLOUD])
    drawn(lab)
    click(lab, 1, 1)
    lab.until("print(heard)", "[2]")


# Figures

FIGURES = """
import numpy as np
from sae_lab import plots
from sae_lab.panels.faces.figures import LiveFigure, go
def drawn(n):
    figure = plots.style(go.Figure(go.Scatter(x=np.arange(n), y=np.arange(n) % 7, name="loss")))
    return figure.update_xaxes(title_text="tokens").update_layout(showlegend=True)
def made():
    return LiveFigure(drawn(50))
first = made()
first
"""
PLOT = ".js-plotly-plot .main-svg .scatterlayer .trace"


def test_a_second_figure_costs_little_and_both_live(lab):
    before = lab.received
    lab.run([FIGURES])
    lab.page.locator(PLOT).wait_for()
    assert 4_000_000 < lab.received - before < 7_000_000
    before = lab.received
    lab.run(["second = made()\nsecond"], restart=False)
    lab.page.locator(PLOT).wait_for()
    assert 3_000 < lab.received - before <= 100_000
    lab.run(["import ipywidgets as W\nW.VBox([first, second])"], restart=False)
    lab.page.locator(PLOT).nth(1).wait_for()
    count = "() => Array.from(document.querySelectorAll('.js-plotly-plot'), e => e._fullData[0].x.length).join()"
    lab.ask("first.show(drawn(80))")
    lab.wait(f"() => ({count})() === '80,50'")


def test_a_figure_in_a_box_is_as_wide_as_there_is_room(lab):
    tabs = "import ipywidgets as W\ntabs = W.Tab([W.VBox([first]), W.HBox([W.Label('beside'), made()])])\ntabs"
    lab.run([FIGURES.removesuffix("first\n"), tabs], restart=False)
    lab.page.locator(PLOT).wait_for()
    wide = "() => Array.from(document.querySelectorAll('.js-plotly-plot'), e => e._fullLayout.width)"
    lab.wait(f"() => ({wide})().every(width => width > 1000)")
    try:
        lab.page.set_viewport_size({"width": 800, "height": 1400})
        lab.wait(f"() => ({wide})().every(width => width > 400 && width < 700)")
        lab.ask("tabs.selected_index = 1")
        lab.wait(f"() => ({wide})().length === 2 && ({wide})()[1] < 700")
    finally:
        lab.page.set_viewport_size({"width": 1280, "height": 1400})


def test_a_click_on_a_box_of_a_tree_is_heard(lab):
    tree = """
boxes = {"ids": ["r", "r/1", "r/1/2", "r/3"], "parents": ["", "r", "r/1", "r"], "values": [0, 0, 3, 2]}
tree = LiveFigure(go.Figure(go.Treemap(**boxes, labels=["all", "one", "two", "three"])))
tree
"""
    for name, place in (("three", 3), ("one", 1), ("two", 2)):
        lab.run([FIGURES.removesuffix("first\n"), tree], restart=False)
        box = lab.page.locator(".js-plotly-plot .treemaplayer text", has_text=name)
        box.wait_for()
        lab.page.wait_for_timeout(300)  # boxes grow into their places
        at = box.bounding_box()
        lab.page.mouse.click(at["x"] + at["width"] / 2, at["y"] + at["height"] / 2)
        lab.until("print(tree.clicked)", f"[0, {place}]")


def test_a_click_on_flows_is_heard(lab):
    flows = """
import pandas as pd
counted = pd.DataFrame({"out of": ["a: one", "a: two"], "into": "b: three", "latents": [3, 2]})
flows = LiveFigure(plots.splitting(counted, pd.DataFrame({"b in a": [0.5, 0.5]}, index=[0.0, 0.1]), 0.3))
flows
"""
    lab.run([FIGURES.removesuffix("first\n"), flows], restart=False)
    for part, said in (("node-rect", "box"), ("sankey-link", "band")):
        for place in (1, 0):
            found = lab.page.locator(f".js-plotly-plot .{part}").nth(place)
            found.wait_for()
            lab.page.wait_for_timeout(300)  # boxes grow into their places
            at = found.bounding_box()
            y = at["height"] * (0.5 if said == "box" else (0.1, 0.9)[place])
            lab.page.mouse.click(at["x"] + min(at["width"] / 2, 20), at["y"] + y)
            lab.until("print(flows.clicked)", f"[0, {place}, '{said}']")


def test_a_zoom_outlives_new_data(lab):
    lab.run([FIGURES], restart=False)
    lab.page.locator(PLOT).wait_for()
    box = lab.page.locator(".js-plotly-plot .nsewdrag").first.bounding_box()
    middle = box["y"] + box["height"] / 2
    lab.page.mouse.move(box["x"] + 0.25 * box["width"], middle)
    lab.page.mouse.down()
    lab.page.mouse.move(box["x"] + 0.5 * box["width"], middle, steps=5)
    lab.page.mouse.up()
    shown = "() => document.querySelector('.js-plotly-plot')._fullLayout.xaxis.range.map(Math.round).join()"
    zoomed = lab.wait(f"() => {{ const now = ({shown})(); return !now.startsWith('-') && now !== '0,49' && now }}")
    lab.ask("first.show(drawn(500))")
    lab.wait("() => document.querySelector('.js-plotly-plot')._fullData?.[0].x.length === 500")
    assert lab.page.evaluate(shown) == zoomed


def test_a_figure_follows_the_theme(lab):
    lab.run([FIGURES], restart=False)
    lab.page.locator(PLOT).wait_for()
    for dark in (False, True):
        lab.dark(dark)
        for part in (".xtick text", ".xtitle", ".legendtext"):
            ink = f"() => getComputedStyle(document.querySelector('.sae-figure {part}')).fill"
            lab.wait(f"dark => ({ink})().match(/\\d+/g).slice(0, 3).every(part => (part > 128) === dark)", dark)
        ground = lab.pixels(lab.page.locator(".js-plotly-plot").first)[2, 2]
        assert ground.max() < 40 if dark else ground.min() > 240


def test_after_a_load_that_failed_the_next_figure_tries_again(lab):
    spoilt = "from sae_lab.panels.faces.figures import Library\nkept = Library.here().source\n"
    spoilt += "Library.here().source = 'throw new Error(1)'\n"
    lab.page.evaluate("() => globalThis.__sae_lab_plotly__?.clear()")
    lab.run([FIGURES.replace("first = made()", f"{spoilt}first = made()")], restart=False)
    lab.page.locator(".jp-OutputArea-output").first.wait_for()
    lab.wait("() => globalThis.__sae_lab_plotly__?.size === 0")
    lab.run(["Library.here().source = kept\nsecond = made()\nsecond"], restart=False)
    lab.page.locator(PLOT).wait_for()
    assert lab.errors
    lab.errors.clear()


def test_a_page_loaded_anew_shows_what_the_kernel_has(lab):
    lab.run([FIGURES, CLOUD], restart=False)
    lab.page.locator(PLOT).wait_for()
    lab.ask("first.show(drawn(33))")
    lab.page.evaluate("() => jupyterapp.commands.execute('docmanager:save')")
    lab.open()
    lab.page.locator(PLOT).wait_for()
    drawn(lab)
    lab.wait("() => document.querySelector('.js-plotly-plot')._fullData?.[0].x.length === 33")
    click(lab, 1, 1)
    lab.until("print(heard)", "[2]")


# The form


def test_a_form_says_what_is_wrong_beside_the_field(lab):
    lab.run(["import sae_lab as sl\nform = sl.panels.form('topk')\nform"])
    row = lab.page.locator(".sae-row", has=lab.page.locator("label", has_text="k").get_by_text("k", exact=True))
    field = row.locator("input[type=text]")
    field.fill("many")
    field.press("Enter")
    row.locator(".sae-wrong").wait_for()
    assert "k='many' must be int" in row.locator(".sae-wrong").inner_text()
    field.fill("24")
    field.press("Enter")
    row.locator(".sae-wrong").wait_for(state="detached")
    said = json.loads(lab.ask("import json; print(json.dumps(form.knobs))"))
    assert said == {"variant": "topk", "d_sae": 2048, "k": 24}
    lab.page.locator(".sae-row select").first.focus()
    for key in ("d", "d"):
        lab.page.keyboard.press(key)
    assert lab.page.evaluate("() => jupyterapp.shell.currentWidget.content.model.cells.length") == 1
    assert lab.page.locator(".sae-panel").count() == 1
