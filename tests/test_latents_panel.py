"""The panel of latents on an SAE whose firings are known: search, cards, a text of one's own, comments."""

import json
import threading

import pytest
import torch
from small import identity, small_llama
from test_panels import HOSTILE, texts

import sae_lab as sl
from sae_lab.panels import Latents, LatentsPanel, Selection
from sae_lab.runs import Lines, Run, write_sae

TEXT = [
    f"Anna has {i} pears, and Bruno has {i * 3 % 17} plums. {HOSTILE if i % 3 else ''} They go." for i in range(400)
]
WHAT = {"text": "names of people", "latent": 3, "by": "me", "rule": None}


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return small_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def run(lm, tmp_path_factory):
    """relu(x - 0.5), relu(-x - 0.5), of which 9 never fires; 3 is explained, and 40 without a bias."""
    made = Run(tmp_path_factory.mktemp("run") / "known")
    sae = identity(over=0.5, silent=[9])
    sae.origin = {"model": lm.name, "site": "L1R", "text": "world"}
    made.describe({"variant": "relu", "site": "L1R"})
    write_sae(sae, made.folder / "sae")
    made.beat("done", step=1, steps=1)
    sl.contexts(made, lm, text=TEXT, split="test", tokens=2_000, context=64)
    Lines(made, "explanations", {"n": 1}).add({"latent": 3, "explanation": WHAT, "scores": {"detection": 0.75}})
    return made


@pytest.fixture
def latents(run, lm):
    return Latents(run, lm)


@pytest.fixture
def panel(run, lm, monkeypatch):
    monkeypatch.setattr("sae_lab.panels.faces.panel.Panel.watch", lambda self: None)
    return LatentsPanel(run, lm)


def test_every_latent_is_a_row_and_dead_ones_are_marked(latents):
    table = latents.table
    assert len(table) == 64 and table.loc[9, "kind"] == "dead" and table.loc[9, "density"] == 0
    assert table.loc[3, ["explanation", "detection"]].tolist() == ["names of people", 0.75]
    assert (table["kind"] == "dense").tolist() == (table["density"] >= 0.1).tolist()


def test_latents_are_searched_by_number_by_words_and_by_comment(latents, run):
    assert latents.search("9").index.tolist() == [9] and latents.search("9", alive=True).empty
    assert latents.search("People NAMES").index.tolist() == [3]
    assert 9 in latents.search("dead").index
    run.comment(40, "  my favourite ")
    assert latents.search("favourite").index.tolist() == [40] and run.comments == {40: "my favourite"}
    run.comment(40, "")
    assert latents.search("favourite").empty and run.comments == {}


def test_latents_are_searched_by_the_concept_they_fit_best(run, lm, monkeypatch):
    monkeypatch.setattr("sae_lab.panels.faces.panel.Panel.watch", lambda self: None)
    monkeypatch.setattr("sae_lab.panels.latents.NAMED", 0.1)  # the axes of random weights fit nothing better
    panel = LatentsPanel(run, lm)
    assert panel._gather.description == "Name concepts" and "concept" not in panel.latents.table
    panel.gather(2_000)
    panel.wait(60)
    assert panel._fault.value == "" and panel._gather.layout.display == "none"
    told = sl.map_latents([run.sae], lm, tokens=2_000).latents
    known, table = told["f1"] >= 0.1, panel.latents.table
    assert 3 < known.sum() < 64 and table["concept"].tolist() == told["concept"].where(known, "").tolist()
    assert table.loc[known, "F1"].tolist() == told.loc[known, "f1"].tolist() and table.loc[~known, "F1"].isna().all()
    best = int(told["f1"].idxmax())
    name = told.loc[best, "concept"]
    assert panel.latents.search(name).index.tolist() == told.index[known & (told["concept"] == name)].tolist()
    panel.look(best)
    assert f"{name} (F1 {told.loc[best, 'f1']:.2f})" in panel._card.value


def test_what_was_said_of_other_weights_is_not_shown(run, lm):
    other = Lines(run, "explanations", {"n": 2})
    other.add({"latent": 5, "explanation": WHAT, "scores": {}})
    path = other._path
    head, *rows = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps({"about": json.loads(head)["about"] | {"weights": "others"}}), *rows]))
    assert Latents(run, lm).table.loc[5, "explanation"] == ""
    path.unlink()


def test_a_text_of_ones_own_finds_the_latents_that_fire_on_it(latents, lm, run):
    text = "Anna has pears."
    words, z = latents.on(text)
    ids, mask = lm.encode(text)
    x = lm.read(ids, "L1R", mask=mask)["L1R"][0, 1:]
    assert "".join(words) == text
    expected = (x - 0.5).clamp(min=0).index_fill(1, torch.tensor([9]), 0.0)
    torch.testing.assert_close(z[:, :32], expected, atol=1e-5, rtol=1e-4)
    found = latents.strongest(text, 5)
    shares = (z.max(0).values / torch.tensor(latents.table["activation"].to_numpy())).nan_to_num(0)
    assert found.index[0] == int(shares.argmax()) and (found["share of its most"].diff().dropna() <= 0).all()
    with pytest.raises(ValueError, match="type a text"):
        latents.on("")


def test_a_badge_counts_the_seeds_that_have_a_latent(run, lm, tmp_path):
    peers = []
    for i, kept in enumerate((range(64), range(32))):
        sae = identity()
        sae.origin = run.sae.origin
        with torch.no_grad():
            for W in (sae.W_enc, sae.W_dec):
                W[[n for n in range(64) if n not in kept]] = torch.randn(64 - len(kept), 32)
        peers.append(Run(tmp_path / str(i)))
        peers[i].describe({"variant": "relu", "site": "L1R"})
        write_sae(sae, peers[i].folder / "sae")
    table = Latents(run, lm, peers).table
    assert set(table["found in"][:32]) == {"2 of 2"} and set(table["found in"][32:]) == {"1 of 2"}


def test_a_run_without_contexts_offers_to_read_and_then_shows_them(lm, tmp_path, monkeypatch):
    monkeypatch.setattr("sae_lab.panels.faces.panel.Panel.watch", lambda self: None)
    made = Run(tmp_path / "new")
    sae = identity(over=0.5)
    sae.origin = {"model": lm.name, "site": "L1R", "text": "world"}
    made.describe({"variant": "relu", "site": "L1R"})
    write_sae(sae, made.folder / "sae")
    panel = LatentsPanel(made, lm)
    assert "nobody has read text" in texts(panel) and panel._gather.layout.display == ""
    panel.gather(300)
    panel.wait(60)
    assert panel.ready and len(panel._grid.rows) > 0 and panel._gather.layout.display == "none"


def test_a_panel_of_no_run_says_what_to_do_and_follows_the_selection(run, lm, monkeypatch):
    monkeypatch.setattr("sae_lab.panels.faces.panel.Panel.watch", lambda self: None)
    seen = Selection()
    panel = LatentsPanel(lm=lm, selection=seen)
    assert "no run is chosen" in texts(panel) and repr(panel) == "<latents panel: no run, latent none>"
    seen.run = str(run.folder)
    seen.latent = 3
    assert "names of people" in panel._card.value and "3" in repr(panel)


def test_a_click_shows_the_latent_everywhere(panel):
    other = LatentsPanel(panel.latents.run, panel._lm, selection=panel.selection)
    panel._grid.on_top = "3"
    assert panel.selection.latent == 3 and panel._card.value == other._card.value != ""
    panel._near.children[1].click()
    assert panel.selection.latent != 3
    panel._grid.chosen = ["1", "2"]
    assert panel.selection.latents == (1, 2)


def test_contexts_are_the_strongest_or_a_sample_by_quantile(panel):
    panel.look(3)
    assert "strongest firings" in panel._card.value and "quarter" not in panel._card.value
    panel._order.value = "by quantile"
    assert all(f"quarter {i} of 4" in panel._card.value for i in (1, 2, 3, 4))


def test_ones_own_text_is_shaded_and_ranks_the_latents(panel):
    panel._try.value = "Anna has pears."
    assert panel._fault.value == ""
    assert panel.selection.latent == panel.latents.strongest("Anna has pears.").index[0]
    assert "your text" in panel._card.value and "sae-peak" in panel._card.value


def test_a_comment_is_kept_in_the_run_with_its_latent(panel):
    panel.look(3)
    panel._comment.value = HOSTILE
    assert panel.latents.run.comments == {3: HOSTILE.strip()}
    panel.look(4)
    assert panel._comment.value == "" and panel.latents.run.comments == {3: HOSTILE.strip()}
    panel.look(3)
    panel._comment.value = ""
    assert panel.latents.run.comments == {}


def test_hostile_text_is_text_in_cards_and_snapshots(panel):
    for latent in range(0, 64, 5):
        panel.look(latent)
        for shown in (panel._card.value, panel.snapshot()):
            assert "<script" not in shown and "<img" not in shown and "\x1b" not in shown and "\u202e" not in shown
    assert any("&lt;" in panel.latents.card(n)[0].text or "<" in panel.latents.card(n)[0].text for n in range(8))


def test_contexts_of_other_weights_are_made_again(lm, tmp_path, monkeypatch):
    monkeypatch.setattr("sae_lab.panels.faces.panel.Panel.watch", lambda self: None)
    made = Run(tmp_path / "new")
    sae = identity(over=0.5)
    sae.origin = {"model": lm.name, "site": "L1R", "text": "world"}
    made.describe({"variant": "relu", "site": "L1R"})
    write_sae(sae, made.folder / "sae")
    LatentsPanel(made, lm).latents.gather(300)
    sae.b_enc.data.fill_(-0.1)
    write_sae(sae, made.folder / "sae")
    panel = LatentsPanel(made, lm)
    assert not panel.ready and not panel.latents.named and "Read" in panel._gather.description
    panel.gather(300)
    panel.wait(60)
    assert panel.ready and panel.latents.named and panel.latents.error == ""


def test_a_panel_that_reads_answers_all_the_same(run, lm, monkeypatch):
    monkeypatch.setattr("sae_lab.panels.faces.panel.Panel.watch", lambda self: None)
    panel, reading, done = LatentsPanel(run, lm), threading.Event(), threading.Event()
    monkeypatch.setattr(panel.latents, "gather", lambda tokens: (reading.set(), done.wait(60)))
    panel.gather(300)
    assert reading.wait(60)
    panel._alive.value = not panel._alive.value  # would wait for the reading to end
    assert panel.latents.working == "reading 300 tokens"
    with pytest.raises(RuntimeError, match="Still reading"):
        panel.gather()
    done.set()
    panel.wait(60)
    assert panel.latents.working == ""
