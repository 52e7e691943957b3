"""Contexts of all latents against plain arithmetic on the same activations, and how a run keeps them."""

import json
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from small import identity, small_llama

import sae_lab as sl
from sae_lab import reading
from sae_lab.cli import main
from sae_lab.reading import walk
from sae_lab.runs import Damaged
from sae_lab.runs import latents as kept
from sae_lab.tokens import token_blocks
from sae_lab.windows import gathering, neighbours
from sae_lab.windows.best import Best
from sae_lab.windows.neighbours import Together, alike

TEXT = [f"Anna à Zürich has {i} pears, and Bruno 🍐 has {i * 3 % 17} plums. They are happy." for i in range(900)]
SMALL = {"site": "L1R", "text": TEXT, "tokens": 1500, "context": 64}


@pytest.fixture(scope="module", autouse=True)
def _many_pages():
    """Pages of four rows, so that few tokens are several of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "pages", partial(reading.pages, size=256))
        yield


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return small_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def sae():
    """relu(x - 0.5), relu(-x - 0.5): as sparse as a test wants it, and one latent that never fires."""
    return identity(over=0.5, silent=[9])


@pytest.fixture(scope="module")
def pages(lm):
    blocks = token_blocks(lm.tokenizer, text=TEXT, split="test", context=64)
    read = list(walk(lm, blocks, [sl.Site("L1R")], 1500))
    assert len(read) > 4
    return read


@pytest.fixture(scope="module")
def z(sae, pages):
    """[tokens, latents], dense."""
    with torch.no_grad():
        return sae.encode(torch.cat([p.acts["L1R"] for p in pages])).dense().numpy()


@pytest.fixture(scope="module")
def found(sae, lm):
    return sl.contexts(sae, lm, n=5, sampled=20, width=8, **SMALL)


@pytest.fixture(scope="module")
def trained(lm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "first"
    text = folder.with_name("text.jsonl")
    text.write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXT))
    source = sl.activations(lm, "L1R", text=str(text), context=64)
    for _ in sl.train(
        sl.build("topk", d_in=32, d_sae=48, k=4), source, tokens=512, batch=256, run=folder, about={"model": lm.name}
    ):
        pass
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy that a test may spoil."""
    import shutil

    return sl.Run(shutil.copytree(trained, tmp_path / "run"))


ASKED = {"text": TEXT, "tokens": 1500, "n": 4, "sampled": 6, "width": 4}


def random_stream(seed, latents=7, docs=40, pages=6):
    """(latent, doc, key) of pages of firings; documents go on over pages."""
    rng = np.random.default_rng(seed)
    for page in range(pages):
        size = int(rng.integers(0, 200))
        latent = np.sort(rng.integers(latents, size=size))
        yield latent, rng.integers(5 * page, 5 * page + docs, size), rng.random(size, dtype=np.float32)


@pytest.mark.parametrize("seed", range(8))
def test_the_best_are_those_that_sorting_everything_gives(seed):
    best, everything = Best(7, 5, 1), []
    for latent, doc, key in random_stream(seed):
        won, slot = best.offer(latent, doc, key)
        best.place[latent[won], slot] = doc[won]
        best.value[latent[won], slot, 1] = key[won]
        everything += zip(latent.tolist(), doc.tolist(), key.tolist())
    best.order()
    for latent in range(7):
        strongest = {}
        for i, doc, key in everything:
            if i == latent:
                strongest[doc] = max(key, strongest.get(doc, 0))
        expected = sorted(strongest.items(), key=lambda item: -item[1])[:5]
        filled = best.key[latent] > -np.inf
        got = list(zip(best.doc[latent].tolist(), best.value[latent, :, 1].tolist()))
        assert [pair for pair, there in zip(got, filled) if there] == expected
        assert best.place[latent][filled].tolist() == [doc for doc, _ in expected]


def test_a_sample_has_early_and_late_firings_alike():
    """Of 400 firings in 8 pages each is drawn with probability 1/10, whenever it came."""
    drawn = np.zeros(400)
    for seed in range(300):
        best, rng = Best(1, 40, 0), np.random.default_rng(seed)
        for page in np.arange(400).reshape(8, 50):
            won, slot = best.offer(np.zeros(50, int), page, rng.random(50, dtype=np.float32))
            best.place[0, slot] = page[won]
        drawn[best.place[0]] += 1
    by_page = drawn.reshape(8, 50).sum(1) / (300 * 50)
    assert np.abs(by_page - 0.1).max() < 0.012  # 5 standard deviations


def test_every_latent_has_its_strongest_firings(found, z, pages):
    doc = np.concatenate([p.doc for p in pages])
    assert list(found) == list(range(64))
    for latent in found:
        by_doc = sorted((z[doc == d, latent].max() for d in np.unique(doc)), reverse=True)
        expected = [v for v in by_doc if v > 0][:5]
        assert [c.activation for c in found[latent].top] == pytest.approx(expected, rel=1e-5)


def test_windows_are_pieces_of_one_document_with_the_values_of_their_own_tokens(found, z, pages, lm):
    """Text and values of a window against those of a document of the pages, at the same place in it."""
    doc, texts = np.concatenate([p.doc for p in pages]), {}
    for p in pages:
        for number, name in zip(p.doc.tolist(), p.block.doc[p.keep].tolist()):
            texts[number] = p.block.text(name)
    for latent in (0, 5, 40):
        for c in found[latent].sampled + found[latent].top:
            hits = []
            for number in (n for n, t in texts.items() if c.text in t):
                whole = z[doc == number, latent]
                offsets = lm.tokenizer(texts[number], add_special_tokens=False, return_offsets_mapping=True)
                begins = [a for a, _ in offsets["offset_mapping"]]
                for i in range(len(whole) - len(c.values) + 1):
                    same = np.allclose(whole[i : i + len(c.values)], c.values, rtol=1e-5)
                    if same and texts[number].startswith(c.text, begins[i]):
                        hits.append((number, i))
            assert hits
            assert c.activation > 0
            assert len(c.tokens) == len(c.values) <= 17
    for of in ("top", "sampled"):  # and nothing of the next document is kept beside them
        shown = sum(v > 0 for latent in found for c in getattr(found[latent], of) for v in c.values)
        assert (found.by_latent[f"{of}_value"] > 0).sum() == shown


def test_a_sample_is_of_all_firings_and_its_quantiles_are_in_order(found, z):
    card = found[3]
    assert len(card.sampled) == 20
    assert {round(c.activation, 4) for c in card.sampled} <= {round(float(v), 4) for v in z[:, 3] if v > 0}
    parts = [[c.activation for c in part] for part in card.quantiles(4)]
    assert [len(p) for p in parts] == [5, 5, 5, 5]
    assert all(max(low) <= min(high) for low, high in pairwise(parts))
    # a planted fault, a sample of the strongest, would have nothing from the weaker half
    assert parts[0][0] < np.median(z[z[:, 3] > 0, 3])


def test_density_and_histogram_count_every_firing(found, z):
    for latent in (0, 17, 63):
        card, fired = found[latent], z[:, latent][z[:, latent] > 0]
        assert card.density == pytest.approx((z[:, latent] > 0).mean())
        inside = np.clip(fired, card.edges[0], np.nextafter(card.edges[-1], 0))
        expected = np.histogram(inside, card.edges)[0]
        assert np.abs(card.histogram - expected).sum() <= 2  # on an edge, float32 and float64 may differ
        assert card.histogram.sum() == len(fired)
    assert found.density[9] == 0
    assert len(found[9]) == len(found[9].sampled) == found[9].histogram.sum() == 0


def jaccard(z):
    on = (z > 0).astype(float)
    both = on.T @ on
    either = on.sum(0)[:, None] + on.sum(0) - both
    index = np.where(either > 0, both / np.maximum(either, 1), 0)
    np.fill_diagonal(index, -1)
    return index, both


def test_those_that_fire_with_it_are_those_of_the_highest_jaccard_index(found, z):
    index, both = jaccard(z)
    for latent in (0, 5, 63):
        near, score, tokens = zip(*found[latent].cofiring)
        assert score == pytest.approx(np.sort(index[latent])[::-1][:10], rel=1e-5)
        assert score == pytest.approx(index[latent, list(near)], rel=1e-5)
        assert list(tokens) == both[latent, list(near)].tolist()
    assert found[9].cofiring == ()


def test_co_firing_beyond_its_memory_is_counted_on_every_second_token(z, monkeypatch):
    monkeypatch.setattr(neighbours, "KEPT", int((z > 0).sum() // 3))
    together, rng = Together(64), np.random.default_rng(0)
    for part in np.split(z, np.sort(rng.integers(len(z), size=9))):
        token, latent = (part > 0).nonzero()
        together.add(latent, np.bincount(token, minlength=len(part)))
        assert together._stored <= neighbours.KEPT
    assert together.stride == 4
    assert together.tokens == len(z[::4])
    index, both = jaccard(z[::4])
    near, score, tokens = together.nearest(np.array([2, 50]), 5)
    for row, latent in enumerate((2, 50)):
        assert score[row] == pytest.approx(np.sort(index[latent])[::-1][:5], rel=1e-5)
        assert tokens[row].tolist() == both[latent, near[row]].tolist()


def test_tables_larger_than_a_piece_are_the_same(monkeypatch):
    sae = sl.build("topk", d_in=16, d_sae=40, k=4)
    rows = np.arange(3, 40)
    whole = alike(sae.W_dec, rows, 4)
    monkeypatch.setattr(neighbours, "CELLS", 160)
    for a, b in zip(whole, alike(sae.W_dec, rows, 4)):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    cosine = torch.nn.functional.cosine_similarity(sae.W_dec[:, None], sae.W_dec[None], dim=-1).fill_diagonal_(-2)
    np.testing.assert_array_equal(whole[0], cosine.topk(4).indices[3:].numpy())


def test_a_direction_of_the_head_promotes_its_token_and_its_opposite_suppresses_it(lm):
    made = identity()
    head, norm = lm.module.get_output_embeddings().weight.detach(), lm.module.model.norm
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.2, 2.0, 32))  # without it in the path other tokens would win
        made.W_dec[0], made.W_dec[1] = head[300] / norm.weight, -7 * head[300] / norm.weight
        made.W_dec[3] = head[lm.special_ids[0]] * 9 / norm.weight
        head[lm.special_ids[0]] *= 9  # the token that this direction raises most
        logits = head @ (norm.weight * made.W_dec[2] / made.W_dec[2].square().mean().sqrt())
    effects = gathering.effects(made, lm, sl.Site("L1R"), np.array([0, 1, 2, 3]))
    norm.weight.data.fill_(1.0)
    head[lm.special_ids[0]] /= 9
    assert effects["promoted"][0, 0] == effects["suppressed"][1, 0]
    best = (head @ head[300]).argmax().item()  # a longer row may have the higher product
    assert effects["promoted"][0, 0] == best
    logits -= logits.mean()
    logits[list(lm.special_ids)] = 0
    assert effects["promoted"][2].tolist() == logits.topk(10).indices.tolist()
    np.testing.assert_allclose(effects["suppressed_logit"][2], (-logits).topk(10).values.neg(), rtol=1e-4)
    assert not set(effects["promoted"].ravel().tolist()) & set(lm.special_ids)


def test_some_latents_are_the_same_as_among_all(found, sae, lm):
    some = sl.contexts(sae, lm, [40, 5], n=5, sampled=20, width=8, **SMALL)
    assert list(some) == [5, 40]
    for latent in some:
        for part in ("top", "density", "promoted", "suppressed", "cofiring", "decoder"):
            assert getattr(some[latent], part) == getattr(found[latent], part)


def test_a_run_keeps_the_contexts_of_all_its_latents(run, lm, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"No contexts of split 'test'.*sae-lab contexts"):
        sl.contexts(run)
    made = sl.contexts(run, lm, **ASKED)
    plain = sl.contexts(run.sae, lm, **ASKED)
    monkeypatch.setattr("sae_lab.windows.verb.walk", None)  # no text is read from here on
    for again in (sl.contexts(run), sl.contexts(str(run.folder), lm, **ASKED), made):
        assert json.dumps(again[7].to_json()) == json.dumps(plain[7].to_json())
        assert again.summary.equals(plain.summary)
        assert isinstance(again.by_latent["top_value"], np.memmap)  # a row is read, not the file
    with pytest.raises(FileNotFoundError, match="'validation'"):
        sl.contexts(run, split="validation")


def test_what_is_kept_is_safetensors_and_json(run, lm):
    made = sl.contexts(run, lm, **ASKED)
    folder = run.folder / "contexts" / "test"
    assert sorted(p.name for p in folder.iterdir()) == ["common.safetensors", "latents.safetensors", "manifest.json"]
    plain = load_file(folder / "latents.safetensors")
    assert plain.keys() == made.by_latent.keys()
    assert all(np.array_equal(plain[name], made.by_latent[name]) for name in plain)


def test_contexts_that_were_asked_for_otherwise_are_made_anew(run, lm):
    assert sl.contexts(run, lm, **ASKED)[7].top[0].peak <= 4
    assert sl.contexts(run, lm, **ASKED | {"width": 2}).about["width"] == 2
    other = sl.contexts(run, lm, **ASKED | {"text": [t.replace("Anna", "Nora") for t in TEXT]})
    assert not any("Anna" in c.text for c in other[7])


def test_contexts_of_other_weights_are_refused_and_made_anew(run, lm):
    sl.contexts(run, lm, **ASKED)
    other = run.sae
    with torch.no_grad():
        other.W_enc.mul_(2)
    sl.save_sae(other, run.folder / "sae")
    with pytest.raises(ValueError, match=r"other weights.*Make them again"):
        sl.contexts(run)
    again = sl.contexts(run, lm, **ASKED)
    assert again.about["weights"] == kept.weights_of(run)
    assert sl.contexts(run)[7].top == sl.contexts(other, lm, **ASKED)[7].top


def test_a_file_that_was_cut_or_altered_is_noticed_and_made_anew(run, lm):
    made = sl.contexts(run, lm, **ASKED)
    good, file = made[7].top, run.folder / "contexts" / "test" / "latents.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(Damaged, match="bytes"):
        sl.contexts(run)
    assert sl.contexts(run, lm, **ASKED)[7].top == good
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    with pytest.raises(Damaged):
        kept.read_contexts(run, "test", whole=True)
    assert sl.contexts(run, lm, **ASKED)[7].top == good
    kept.read_contexts(run, "test", whole=True)


def test_what_is_broken_off_leaves_what_was_there(run, lm, monkeypatch):
    before = sl.contexts(run, lm, **ASKED)[7].top
    monkeypatch.setattr(kept, "write", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        sl.contexts(run, lm, **ASKED | {"width": 2})
    assert sl.contexts(run)[7].top == before
    assert [p.name for p in (run.folder / "contexts").iterdir()] == ["test"]


def test_what_cannot_be_done_says_what_can(run, lm, sae, tmp_path):
    with pytest.raises(ValueError, match=r"contexts\(sae, lm\)"):
        sl.contexts(sae)
    with pytest.raises(ValueError, match="leave out latents="):
        sl.contexts(run, lm, [3])
    with pytest.raises(ValueError, match="names none"):
        sl.contexts(sae, lm, [], **SMALL)
    with pytest.raises(KeyError, match="No latent 48 here: there are 48, from 0 to 47"):
        sl.contexts(run, lm, **ASKED)[48]
    with pytest.raises(FileNotFoundError, match="No contexts"):
        sl.contexts(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="has no final SAE"):
        sl.contexts(tmp_path / "nothing", lm)


def test_the_command_line_shows_what_the_run_holds(run, lm, capsys):
    made = sl.contexts(run, lm, **ASKED)
    assert main(["contexts", str(run.folder), "--latents", "7", "3", "--json"]) == 0
    cards = json.loads(capsys.readouterr().out)
    assert cards == json.loads(json.dumps([made[7].to_json(), made[3].to_json()]))
    assert main(["contexts", str(run.folder), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["latents"]) == 48
    assert main(["contexts", str(run.folder), "--latents", "7"]) == 0
    assert capsys.readouterr().out.strip() == repr(made[7])
    assert main(["contexts", str(run.folder), "--latents", "48"]) == 2
    assert main(["contexts", str(run.folder), "--split", "validation", "--tokens", "900", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["about"]["asked"] == 900
    assert sl.contexts(run, split="validation").about["tokens"] >= 900


def test_tables_and_figures(found):
    assert len(found.summary) == 64
    assert len(found.table) == sum(len(found[i]) for i in found)
    card = found[5]
    assert card.table.of.tolist() == ["top"] * 5 + ["sampled"] * 20
    assert sum(card.figure.data[0].y) == card.histogram.sum()
    assert len(found[9].figure.data[0].y) == 0
    assert "promoted" in repr(card) and "cofiring" in repr(card)
    assert "64 latents at L1R" in repr(found)
