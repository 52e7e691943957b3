"""Probes on rows whose best latents are known, and on labelled text of every kind."""

import json

import numpy as np
import pytest
import torch
from scipy import sparse
from shared import SHARED
from sklearn.metrics import balanced_accuracy_score, f1_score
from small import identity, small_llama

from sae_lab import build, load_model, probe, scr, tpp
from sae_lab.labelled import Examples, Labels, examples, read_labels
from sae_lab.labels import LabelledText, token_concepts
from sae_lab.probes import _balanced, accuracy_of, best_cut, f1_of, fit, mean_differences, tally
from sae_lab.probing import few
from sae_lab.probing.ablation import ablated
from sae_lab.reading import held_out, walk
from sae_lab.saes import SAE
from sae_lab.sites import Site
from sae_lab.tiny import world

WORDS = {"fruit": ["apple", "pear", "plum", "cherry"], "tool": ["hammer", "saw", "knife", "spade"]}
SITE = "L0R"


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return small_llama(tmp_path_factory.mktemp("llama"))


def reviews(n=240, seed=0) -> list[tuple[str, str]]:
    """Texts about fruit or tools."""
    rng = np.random.default_rng(seed)
    kinds = rng.choice(list(WORDS), n)
    return [
        (f"Anna has {i} of the {rng.choice(WORDS[k])} and one {rng.choice(WORDS[k])}.", k) for i, k in enumerate(kinds)
    ]


def planted_rows(n=600, seed=0, docs=60) -> Examples:
    """Latent 3 is label 0; latent 7 is label 1, with misses; the others fire at random."""
    rng = np.random.default_rng(seed)
    labels = rng.random((n, 2)) < [0.2, 0.1]
    z = np.where(rng.random((n, 12)) < 0.1, rng.random((n, 12)), 0.0)
    z[:, 3] = labels[:, 0]
    z[:, 7] = np.where(labels[:, 1] & (rng.random(n) < 0.7), 1.0, 0.0)
    x = rng.normal(size=(n, 4)).astype(np.float32)
    return Examples(x, {"latents": sparse.csr_array(z)}, sparse.csr_array(labels), np.arange(n) * docs // n)


def scored(k=(1, 2)):
    parts = [planted_rows(seed=0), planted_rows(seed=1)]
    return parts, few._scored(parts, [0, 1], {"raw": few.ALL, "latents": None}, k, 0)


def test_a_latent_that_is_the_label_has_f1_1_and_random_numbers_have_chance():
    parts, (f1s, accuracies, units) = scored()
    assert units["latents"][:, 0].tolist() == [3, 7]
    assert f1_of(f1s["latents", 1].sum(0))[0] == 1
    assert accuracy_of(accuracies["latents", 1].sum(0))[0] == 1
    y = parts[1].labels.toarray()
    always = 2 * y.mean(0) / (1 + y.mean(0))
    raw = f1_of(f1s["raw", 0].sum(0))
    assert (raw < always + 0.06).all()
    np.testing.assert_allclose(accuracy_of(accuracies["raw", 0].sum(0)), 0.5, atol=0.08)


def test_scores_are_those_of_scikit_learn_on_the_part_that_nothing_was_fitted_to():
    parts, (f1s, accuracies, _) = scored()
    found = fit(parts[0].codes["latents"][:, [7]].toarray(), parts[0].truth(1))
    score, y = found(parts[1].codes["latents"][:, [7]].toarray()), parts[1].truth(1)
    assert f1_of(f1s["latents", 1].sum(0))[1] == pytest.approx(f1_score(y, score > found.cut))
    assert accuracy_of(accuracies["latents", 1].sum(0))[1] == pytest.approx(balanced_accuracy_score(y, score > 0))


def test_mean_differences_are_means_with_less_means_without():
    rows = planted_rows()
    z, y = rows.codes["latents"].toarray(), rows.labels.toarray()
    plain = np.stack([z[y[:, i]].mean(0) - z[~y[:, i]].mean(0) for i in range(2)])
    np.testing.assert_allclose(mean_differences(rows.codes["latents"], rows.labels), plain, atol=1e-12)
    np.testing.assert_allclose(mean_differences(z, rows.labels), plain, atol=1e-12)


def test_the_cut_is_the_best_of_all():
    rng = np.random.default_rng(0)
    score, y = rng.integers(0, 30, 500) / 7, rng.random(500) < 0.3
    best = max(f1_score(y, score > t) for t in [-1, *np.unique(score)])
    assert f1_score(y, score > best_cut(score, y)) == pytest.approx(best)


def test_a_probe_of_many_rows_is_fitted_to_as_many_of_either_class():
    y = np.arange(10_000) < 3000
    some = _balanced(y, 4000, np.random.default_rng(0))
    assert len(some) == 4000 and y[some].sum() == 2000
    rare = _balanced(np.arange(10_000) < 30, 4000, np.random.default_rng(0))
    assert len(rare) == 4000 and (rare < 30).sum() == 30


def test_a_tally_counts_by_document():
    on, y = np.array([1, 1, 0, 0, 1], bool), np.array([1, 0, 1, 0, 1], bool)
    counts = tally(on, y, np.array([0, 0, 0, 1, 1]), 2)
    assert counts.tolist() == [[1, 2, 2, 3], [1, 1, 1, 2]]
    assert f1_of(counts.sum(0)) == pytest.approx(f1_score(y, on))
    assert accuracy_of(counts.sum(0)) == pytest.approx(balanced_accuracy_score(y, on))


def test_texts_of_a_csv_are_probed_one_row_a_document(lm, tmp_path):
    file = tmp_path / "reviews.csv"
    lines = [f'"{text}",{label}' for text, label in reviews()]
    file.write_text("\n".join(["text,label", *lines]))
    found = probe(identity(), lm, str(file), site=SITE)
    assert found.about["row"] == "document"
    assert found.about["rows"] == found.about["documents"]
    assert sum(found.about["rows"]) == 240
    assert found.mean("raw", 0).value > found.chance + 0.05
    assert set(found.table.units) == {"raw", "latents", "pca", "random"}
    assert found.table.k.tolist() == [1, 2, 5, "all", *[1, 2, 5] * 3]
    e = found.mean("latents", 5)
    assert e.low <= e.value <= e.high
    assert json.loads(json.dumps(found.to_json()))["left_out"] == {}


def test_no_document_is_in_both_parts_and_equal_texts_are_in_one(lm):
    made = read_labels([*reviews(), *reviews()])
    fit_on, score_on = ({t.text for t in made.parts[p]} for p in ("fit", "score"))
    assert not fit_on & score_on
    assert len(fit_on | score_on) == 240


def test_labelled_words_are_rows_on_their_last_token_and_others_are_none(lm, tmp_path):
    file = tmp_path / "words.jsonl"
    text = "The extraordinary hammer of Bartholomew."
    row = {"text": text, "tokens": ["extraordinary", "hammer", "Bartholomew"], "upos": ["ADJ", "NOUN", "NAME"]}
    file.write_text("\n".join(json.dumps(row | {"text": f"{text} {'!' * i}"}) for i in range(20)))
    made = read_labels(file, "upos")
    assert not made.pooled and made.names == ("ADJ", "NAME", "NOUN")
    page = next(walk(lm, made.blocks(lm, "fit", 0), [Site(SITE)], 10**6))
    carried = token_concepts(page.block, page.keep, world.Concepts(made.stored)).toarray()
    texts = [page.block.text(d) for d in page.block.doc[page.keep].tolist()]
    ends = page.block.end[page.keep].numpy()
    spoken = [t[:e].split()[-1].strip(".") for t, e in zip(texts, ends)]
    for name, word in (("ADJ", "extraordinary"), ("NOUN", "hammer"), ("NAME", "Bartholomew")):
        on = carried[:, made.names.index(name)]
        assert on.sum() == len(made.parts["fit"])
        assert {w for w, here in zip(spoken, on) if here} == {word}
    rows = examples(lm, Site(SITE), made.blocks(lm, "fit", 0), made, {"": identity()})
    assert len(rows.doc) == 3 * len(made.parts["fit"])
    assert (rows.labels.sum(1) == 1).all()


def test_pooled_rows_are_means_over_a_documents_tokens(lm):
    made = read_labels(reviews())
    tokens = read_labels(reviews(), pooled=False)
    site, sae = Site(SITE), identity()
    pooled, plain = (examples(lm, site, m.blocks(lm, "score", 0), m, {"": sae}) for m in (made, tokens))
    assert pooled.docs == plain.docs == len(made.parts["score"])
    for doc in (0, 3):
        here = plain.doc == doc
        np.testing.assert_allclose(pooled.acts[doc], plain.acts[here].mean(0), rtol=1e-4, atol=1e-5)
        mean = plain.codes[""][here].toarray().mean(0)
        np.testing.assert_allclose(pooled.codes[""][[doc]].toarray()[0], mean, atol=1e-6)


def test_an_sae_of_an_untrained_model_stands_beside_it(lm, tmp_path):
    bare = load_model(f"untrained:{lm.name}")
    again = load_model(f"untrained:{lm.name}")
    weight = [m.module.model.layers[0].mlp.up_proj.weight for m in (lm, bare, again)]
    assert not torch.equal(weight[0], weight[1]) and torch.equal(weight[1], weight[2])
    found = probe(identity(), lm, reviews(), site=SITE, k=[2], untrained=(identity(), bare))
    row = found.table.set_index(["units", "k"])
    assert np.isfinite(row.loc[("untrained", 2), "f1"])
    assert row.loc[("untrained", 2), "f1"] != row.loc[("latents", 2), "f1"]
    with pytest.raises(ValueError, match="train one alike"):
        probe(identity(), lm, reviews(), site=SITE, untrained=(build("relu", d_in=32, d_sae=16), bare))


@pytest.fixture(scope="module")
def llama():
    return load_model("tiny")


def test_the_world_has_labels_of_its_own_on_tokens(llama):
    names, sae = ["syntax.pos.noun", "entity.number"], build("random", d_in=192, d_sae=64, k=4)
    found = probe(sae, llama, names=names, site=SITE, tokens=3000, k=[1], documents=16)
    assert found.labels == ("syntax.pos.noun", "entity.number")
    assert found.about["row"] == "token" and min(found.about["rows"]) >= 3000
    assert found.mean("raw", 0).value > found.chance + 0.3
    assert found.by_label.rows.min() >= few.POSITIVES


def directions(n: int, d_in: int) -> SAE:
    """Latent i is dimension i where that is positive."""
    sae = build("relu", d_in=d_in, d_sae=n, choose_in="float32")
    with torch.no_grad():
        for W in (sae.W_enc, sae.W_dec):
            W.copy_(torch.eye(n, d_in))
    return sae


def rows_of(x: np.ndarray, labels: np.ndarray, sae: SAE) -> Examples:
    z = {"": sparse.csr_array(sae.encode(torch.from_numpy(x)).dense().detach().double().numpy())}
    return Examples(x, z, sparse.csr_array(labels), np.arange(len(x)))


def classes(seed: int, n=600, kinds=3, d_in=8):
    """Class i is dimension i; half its strength is on dimension i + 3 in a mixture that all classes share."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(kinds, size=n)
    x = 0.3 * rng.normal(size=(n, d_in)).astype(np.float32)
    x[np.arange(n), kind] += 3
    return x, np.arange(kinds) == kind[:, None]


def given(monkeypatch, module, parts):
    monkeypatch.setattr(module, "read_parts", lambda *a, **k: parts)


def test_ablating_the_latents_of_separate_classes_hurts_each_own_probe_alone(monkeypatch, lm):
    from sae_lab.probing import ablation

    sae = directions(8, 8)
    given(monkeypatch, ablation, [rows_of(*classes(seed), sae) for seed in (0, 1)])
    pairs = [("a text", label) for label in "abc"] + [(f"text {i}", "a") for i in range(40)]
    found = tpp(sae, lm, pairs, site=SITE, n=[1, 2])
    one = found.parts.query("latents == 1")
    assert (one.accuracy > 0.99).all()
    assert found.scores[1].value > 0.3
    assert one.own_loss.mean() == pytest.approx(found.scores[1].value + one.other_loss.mean())
    dead = directions(8, 8)
    with torch.no_grad():
        dead.W_enc.copy_(torch.roll(torch.eye(8), 4, 0))  # its latents fire for one class and write another's place
        dead.W_dec.mul_(0)
    given(monkeypatch, ablation, [rows_of(*classes(seed), dead) for seed in (0, 1)])
    assert tpp(dead, lm, pairs, site=SITE, n=[2]).scores[2].value == 0


def test_ablation_is_the_probe_of_the_activation_without_the_latents_and_keeps_the_error():
    torch.manual_seed(0)
    sae = build("topk", d_in=8, d_sae=20, k=4, choose_in="float32")
    with torch.no_grad():
        sae.b_dec.normal_()
        sae.W_dec.mul_(torch.rand(20, 1) + 0.5)
    x = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    rows, probes = rows_of(x, x[:, :1] > 0, sae), [fit(x, x[:, 0] > 0), fit(x, x[:, 1] > 0)]
    z = sae.encode(torch.from_numpy(x)).dense().detach()
    error = torch.from_numpy(x) - sae(torch.from_numpy(x)).detach()
    z[:, [2, 5, 9]] = 0
    edited = (z @ sae.W_dec + sae.b_dec + error).detach().numpy()
    plain = np.stack([p(edited) for p in probes], 1)
    np.testing.assert_allclose(ablated(rows, sae, probes, np.array([2, 5, 9])), plain, atol=1e-4)


def test_ablating_a_spurious_label_gives_a_probe_its_target_back(monkeypatch, lm):
    """The target is the sign of dimension 0, the spurious label, three times as loud, that of dimension 1."""
    from sae_lab.probing import spurious

    def made(seed):
        rng = np.random.default_rng(seed)
        target, other = rng.random(800) < 0.5, rng.random(800) < 0.5
        x = 0.5 * rng.normal(size=(800, 4)).astype(np.float32)
        x[:, 0] += np.where(target, 1, -1)
        x[:, 1] += np.where(other, 3, -3)
        return rows_of(x, np.stack([target, ~target, other, ~other], 1), sae)

    sae = identity(4)  # a latent for each sign
    given(monkeypatch, spurious, [made(0), made(1)])
    texts = [(f"text {i}", ["a", "b", "c", "d"]) for i in range(40)]
    found = scr(sae, lm, texts, target=("a", "b"), spurious=("c", "d"), site=SITE, n=[2])
    assert found.about["probed"] == "target" and found.about["status"] == "debated"
    row = found.parts.query("probed == 'target'").iloc[0]
    assert row.before < row.after <= row.clean + 0.02
    assert found.scores[2].value == pytest.approx((row.after - row.before) / (row.clean - row.before))
    assert found.scores[2].value > 0.5
    with pytest.raises(ValueError, match="each combination needs 20"):
        spurious._cells(planted_four(), ("a", "b", "c", "d"))


def planted_four() -> Examples:
    labels = np.array([[1, 0, 1, 0]] * 50 + [[0, 1, 0, 1]] * 50, bool)
    return Examples(np.zeros((100, 4), np.float32), {}, sparse.csr_array(labels), np.arange(100))


def test_tpp_reads_the_world_and_scr_its_four_combinations(lm):
    options = {"site": SITE, "n": [2], "documents": 16}
    names = ["form.digit", "form.in_quotes"]
    assert np.isfinite(tpp(identity(), lm, names=names, pooled=False, tokens=3000, **options).scores[2].value)
    pairs = {"target": ("register.story", "register.letter"), "spurious": ("language.english", "language.german")}
    found = scr(identity(), lm, **pairs, tokens=6000, **options)
    assert found.table.latents.tolist() == [2] and found.about["rows"] > 80


@pytest.mark.parametrize(
    ("content", "column", "said"),
    [
        ("text,kind\nA plum.,fruit\n", "label", "no column 'label'. It has: text, kind"),
        ("words,label\nA plum.,fruit\n", "label", "must be named text"),
        ("text,label\nA plum.,fruit\nA saw.,\n", "label", "row 2 has no label"),
        ("text,label\n,fruit\n", "label", "row 1 has no text"),
        ("text,label\n", "label", "holds no row"),
        ("text,label\nA plum.,fruit\n", "label", "too few"),
    ],
)
def test_a_file_without_what_a_probe_needs_is_refused(tmp_path, content, column, said):
    (tmp_path / "labels.csv").write_text(content)
    with pytest.raises(ValueError, match=said):
        read_labels(tmp_path / "labels.csv", column)


def test_unlabelled_text_is_refused(tmp_path):
    (tmp_path / "text.txt").write_text("A plum.")
    with pytest.raises(ValueError, match="unlabelled text"):
        read_labels(tmp_path / "text.txt")
    with pytest.raises(ValueError, match=r"'A plum\.' has no label"):
        read_labels(["A plum."])
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv"):
        read_labels("nowhere.csv")
    with pytest.raises(ValueError, match=r"No label 'entity\.unicorn'"):
        read_labels("world", names=["entity.unicorn"])


def test_too_few_positives_are_named_and_left_out(lm):
    with pytest.raises(ValueError, match="Too few positives"):
        probe(identity(), lm, reviews(30), site=SITE)
    some = [*reviews(), ("A stone lies here.", "stone"), ("Another stone.", "stone")]
    found = probe(identity(), lm, some, site=SITE, k=[1])
    assert found.labels == ("fruit", "tool") and found.left_out["stone"] <= 2


def test_more_latents_than_there_are_and_transcoders_are_refused(lm):
    with pytest.raises(ValueError, match="1 to 64 latents"):
        probe(identity(), lm, reviews(), site=SITE, k=[65])
    odd = build("topk", d_in=32, d_sae=64, k=4, transcode=True)
    with pytest.raises(ValueError, match="transcoder"):
        tpp(odd, lm, reviews(), site="L1TC")


def test_a_long_documents_words_keep_their_places_when_it_is_cut(lm):
    """Pieces of one document may stand in any order and on any page."""
    text = " ".join(f"Anna {i} has a hammer here." for i in range(120))
    words, at = [], 0
    while (at := text.find("hammer", at)) >= 0:
        words.append((at, at + 6, "tool"))
        at += 6
    texts = [LabelledText(text, tuple(words))]
    made = Labels(("tool",), ("tool",), sparse.csr_array(np.array([[True]])), {"fit": texts}, False)
    blocks = held_out(lm, texts, "all", 0)
    rows = examples(lm, Site(SITE), blocks, made, {"": identity()})
    assert len(rows.doc) == 120 and rows.docs == 1


def test_parts_of_speech_of_a_treebank_are_probed_where_it_lies_beside(llama, tmp_path):
    file = SHARED / "data" / "labelled" / "ud_ewt_dev.jsonl"
    if not file.exists():
        pytest.skip("no shared treebank: set SAE_LAB_SHARED to a folder that holds data/labelled")
    few = tmp_path / "few.jsonl"
    few.write_text("\n".join(file.read_text().splitlines()[:400]))
    sae, names = build("random", d_in=192, d_sae=64, k=4), ["DET", "PUNCT"]
    found = probe(sae, llama, few, column="upos", names=names, site="L1R", k=[1])
    words = sum(len(json.loads(line)["tokens"]) for line in few.read_text().splitlines())
    assert found.about["row"] == "token" and 0.97 * words < sum(found.about["rows"]) <= words
    assert sum(found.about["documents"]) == 400
    assert found.by_label["raw all"].min() > 0.6
