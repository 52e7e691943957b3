"""The panels of directions and of steering, without a browser, on SAEs whose latents are known."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small import identity, small_llama
from test_panels import HOSTILE, texts

import sae_lab as sl
from sae_lab.panels import Geometry, GeometryPanel, Selection, Steering, SteerPanel
from sae_lab.runs import Run, write_sae
from sae_lab.saes import build
from sae_lab.steering import Push


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return small_llama(tmp_path_factory.mktemp("llama"))


def kept(folder, lm, sae) -> Run:
    run = Run(folder)
    sae.origin = {"model": lm.name, "site": "L1R", "text": "world"}
    run.describe({"variant": "relu", "site": "L1R"})
    write_sae(sae, run.folder / "sae")
    return run


@pytest.fixture(scope="module")
def run(lm, tmp_path_factory):
    """relu(x - 0.5), relu(-x - 0.5); 9 never fires."""
    return kept(tmp_path_factory.mktemp("run") / "known", lm, identity(over=0.5, silent=[9]))


@pytest.fixture(scope="module")
def wider(lm, tmp_path_factory):
    """The same latents, in another order, and as many again at random."""
    torch.manual_seed(0)
    sae = build("relu", d_in=32, d_sae=128, choose_in="float32")
    with torch.no_grad():
        rows = torch.cat([identity().W_enc.flip(0), torch.nn.functional.normalize(torch.randn(64, 32))])
        sae.W_enc.copy_(rows)
        sae.W_dec.copy_(rows)
        sae.b_enc.fill_(-0.5)
    return kept(tmp_path_factory.mktemp("run") / "wider", lm, sae)


@pytest.fixture(autouse=True)
def silent(monkeypatch, tmp_path_factory):
    """Panels look when they are told to, and read little; maps are kept here."""
    monkeypatch.setattr("sae_lab.panels.faces.panel.Panel.watch", lambda self: None)
    monkeypatch.setattr("sae_lab.panels.steering.READ", 600)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "maps"))


@pytest.fixture
def geometry(run, wider, lm):
    made = Geometry([run, wider], lm, tokens=600)
    made.draw()
    return made.wait()


def test_points_are_the_latents_of_all_runs_in_order(geometry, run, wider):
    assert geometry.latent(3) == (str(run.folder), 3) and geometry.latent(64) == (str(wider.folder), 0)
    assert [geometry.point(*geometry.latent(p)) for p in (0, 63, 64, 191)] == [0, 63, 64, 191]
    assert geometry.point("elsewhere", 3) == geometry.point(str(run.folder), 64) == -1
    assert geometry.places.shape == (192, 2)


def test_colours_are_values_and_names(geometry):
    assert geometry.error == "" and {"dictionary", "density", "concept"} <= set(geometry.colours)
    by = geometry.colour("dictionary")
    assert by["values"].tolist() == [0] * 64 + [1] * 128 or by["values"].tolist() == [1] * 64 + [0] * 128
    rate = geometry.colour("density")["values"]
    assert np.isnan(rate[9]) and np.isfinite(rate[:9]).all() and (rate[:9] <= 0).all()
    with pytest.raises(ValueError, match="No colour 'split' now"):
        geometry.colour("split")


def test_rare_categories_share_a_colour(geometry, monkeypatch):
    monkeypatch.setattr("sae_lab.panels.geometry.FEW", 1)
    by = geometry.colour("dictionary")
    assert by["names"] == [geometry.map.names[1], "other"] and by["values"].tolist() == [1] * 64 + [0] * 128


def test_splits_are_counted_in_the_background_and_colour_points(geometry):
    geometry.begin_splitting()
    with pytest.raises(RuntimeError, match="Still counting splits"):
        geometry.begin_splitting()
    geometry.wait()
    assert geometry.error == "" and geometry.splitting is not None and "split" in geometry.colours
    said = geometry._labels
    assert said[9] == "" and said[3].startswith("parent: ") and said[64 + 60].startswith("child of a ")
    with pytest.raises(ValueError, match="between widths"):
        Geometry(geometry.runs[:1], geometry._lm).begin_splitting()


def test_a_box_of_the_tree_of_splits_is_a_latent(geometry, monkeypatch):
    ids = ["a to b", "a to b/5", "a to b/5/60"]
    drawn = SimpleNamespace(data=[SimpleNamespace(ids=ids)])
    geometry.splitting = SimpleNamespace(links=[SimpleNamespace(old="a", new="b")], treemap=drawn)
    assert [geometry.node(place) for place in range(3)] == [-1, 5, 64 + 60]
    seen = Selection()
    panel = GeometryPanel(*geometry.runs, lm=geometry._lm, selection=seen, tokens=600)
    panel.wait()
    panel.geometry.splitting = geometry.splitting
    panel._on_tree([0, 2])
    assert (seen.run, seen.latent) == (str(geometry.runs[1].folder), 60)
    panel._on_tree([0, 0])
    assert seen.latent == 60


def test_a_box_of_the_flows_and_a_band_between_two_are_their_latents(geometry):
    geometry.begin_splitting()
    geometry.wait()
    drawn, rows = geometry.splitting.figure.data[0], geometry.splitting.flows
    narrow, wide = [str(run.folder) for run in geometry._by_width]
    parents = {geometry.point(narrow, p) for p in rows["parent"] if p >= 0}
    children = {geometry.point(wide, c) for c in rows["child"]}
    bands = [geometry.flow(i, band=True) for i in range(len(drawn.link.value))]
    assert [len(band) for band in bands] == list(drawn.link.value) and len(bands) > 1
    assert set().union(*bands) == children and sum(map(len, bands)) == len(children)
    boxes = {label: geometry.flow(i) for i, label in enumerate(drawn.node.label)}
    assert set().union(*boxes.values()) == parents | children
    for label, points in boxes.items():
        child, mine = rows[rows["into"] == label], rows[rows["out of"] == label]
        expected = {geometry.point(wide, c) for c in [*child["child"], *mine["child"][mine["parent"] < 0]]}
        expected |= {geometry.point(narrow, p) for p in mine["parent"] if p >= 0}
        assert set(points) == expected
    seen = Selection()
    panel = GeometryPanel(*geometry.runs, lm=geometry._lm, selection=seen, tokens=600)
    panel.wait()
    panel.geometry.splitting = geometry.splitting
    panel._on_flows([0, 0, "band"])
    rate = panel.geometry.map.latents["density"]
    assert (seen.run, seen.latent) == panel.geometry.latent(max(bands[0], key=lambda point: rate[point]))
    assert sorted(panel._cloud.chosen) == sorted(bands[0])
    before = seen.latent
    panel._on_flows([1, 3])  # a curve beside the flows
    assert seen.latent == before


def test_a_click_on_a_point_moves_the_selection_and_back(run, wider, lm):
    seen = Selection()
    panel = GeometryPanel(run, wider, lm=lm, selection=seen, tokens=600)
    panel.geometry.wait()
    panel.refresh()
    panel._cloud.clicked = 70
    assert (seen.run, seen.latent) == (str(wider.folder), 6)
    seen.run, seen.latent = str(run.folder), 5
    assert panel._cloud.clicked == 5
    panel.find("11")
    assert seen.latent == 11
    with pytest.raises(ValueError, match="No latent '99'"):
        panel.find("99")


def test_a_lasso_marks_the_latents_of_one_run(run, wider, lm):
    seen = Selection()
    panel = GeometryPanel(run, wider, lm=lm, selection=seen, tokens=600)
    panel.geometry.wait()
    panel._cloud.choose([1, 2, 64, 65, 66])
    assert seen.run == str(wider.folder) and seen.latents == (0, 1, 2) and "5 latents marked" in panel._marked.value
    seen.run = str(run.folder)
    panel._cloud.choose([1, 2, 64])
    assert seen.latents == (1, 2)
    assert "trustworthiness" in repr(panel) and "<table>" in panel.snapshot()


# Steering


@pytest.fixture
def steering(run, lm):
    return Steering(run, lm)


def test_pushes_are_added_changed_and_taken_away(steering):
    steering.add(3)
    steering.add(4, mode="ablate")
    steering.change(3, strength=2.5, positions="last")
    assert steering.pushes == [Push(3, "add", 2.5, positions="last"), Push(4, "ablate")]
    for latent, said in ((3, "pushed already"), (64, "No latent 64")):
        with pytest.raises(ValueError, match=said):
            steering.add(latent)
    steering.remove(3)
    assert [push.latent for push in steering.pushes] == [4]


def test_what_is_written_is_what_the_code_beside_it_writes(steering, run, lm):
    steering.add(3, strength=3.0)
    steering.prompt = "the cat"
    steering.write(tokens=6)
    steering.wait(60)
    assert steering.error == "" and steering.working == ""
    unit = float(steering.maxima[3])
    expected = sl.steer(sl.load_sae(run), lm, [Push(3, strength=3.0, unit=unit)], "the cat", max_new_tokens=6)
    assert list(steering.texts) == expected.generation.texts and not steering.changes.empty
    code = steering.call(tokens=6)
    assert "Push(3, strength=3.0)" in code and "'the cat', max_new_tokens=6" in code
    assert "untouched" in str(expected.table["edit"].iloc[0])


def test_writing_is_cancelled_after_a_token(steering):
    steering.add(3)
    steering.prompt = "the"
    steering.write(tokens=50)
    with pytest.raises(RuntimeError, match="Still writing"):
        steering.write()
    steering.cancel()
    steering.wait(60)
    assert steering.working == "" and steering.changes.empty


def test_without_a_push_or_with_a_dead_latent_nothing_is_written(steering):
    with pytest.raises(ValueError, match="add a latent first"):
        steering.write()
    steering.add(9)
    steering.write(tokens=3)
    steering.wait(60)
    assert "9" in steering.error and steering.texts == ("", "")


def test_the_panel_writes_side_by_side_and_says_the_code(run, lm):
    panel = SteerPanel(run, lm, latents={3: 2.0})
    panel._prompt.value = HOSTILE
    panel._tokens.value = 4
    panel._go.click()
    panel.steering.wait(60)
    panel.refresh()
    assert panel._fault.value == "" and panel.steering.error == ""
    assert "untouched" in panel._texts.value and "<script" not in panel._texts.value + panel._code.value
    assert "&lt;script" in panel._texts.value and "logits that rose" in panel._logits.value
    assert "<script" not in panel.snapshot() and "latent 3" in panel.snapshot()


def test_rows_of_the_panel_are_the_pushes(run, lm):
    seen = Selection(latent=7)
    panel = SteerPanel(run, lm, selection=seen)
    panel._plus.click()
    assert [push.latent for push in panel.steering.pushes] == [7]
    mode, strength, where, away = panel._rows.children[0].children
    mode.value, strength.value = "clamp", 3.0
    assert panel.steering.pushes == [Push(7, "clamp", 3.0)]
    where.value = "nonsense"
    assert "No positions" in panel._fault.value and panel.steering.pushes[0].positions == "all"
    away.click()
    assert panel.steering.pushes == [] and panel._rows.children == ()
    panel._add.value = "a word"
    assert "is no latent" in panel._fault.value


def test_a_panel_of_no_run_says_so(lm):
    panel = SteerPanel(lm=lm)
    assert "no run with a trained SAE" in texts(panel) and panel._go.disabled
    panel._plus.click()
    assert "No run is chosen" in panel._fault.value


def test_a_dose_response_needs_a_concept(run, lm):
    panel = SteerPanel(run, lm, latents={3: 1.0})
    panel._measure.click()
    assert "Choose the concept" in panel._fault.value and not panel.steering.working


def test_a_dose_response_is_drawn_with_what_moved_besides(run, lm):
    panel = SteerPanel(run, lm, latents={3: 1.0})
    panel._tokens.value = 4
    panel.steering.sweep("language.spanish", strengths=(0.5, 1.0), prompts=4)
    panel.wait(120)
    assert panel.steering.error == "" and len(panel._doses.children) == 1
    side = panel.steering.side
    assert side["moved"].abs().is_monotonic_decreasing and set(side) == {"latent", "moved", "moved_low", "moved_high"}
    assert "latents that moved most besides" in panel._side.value and "add 3" in panel.snapshot()
