"""Neuronpedia's JSON: ours against the keys that SAEDashboard 0.8 reads, theirs as its API and exports have it."""

import gzip
import json
import math
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from small import identity, small_llama

import sae_lab as sl
from sae_lab import neuronpedia
from sae_lab.explanation.results import Explained, Explanations
from sae_lab.explanation.rules import Explanation
from sae_lab.neuronpedia import beside, read_neuronpedia, to_neuronpedia
from sae_lab.runs import Damaged
from sae_lab.windows.results import Contexts

TEXT = [f"Anna à Zürich has {i} pears, and Bruno 🍐 has {i * 3 % 17} plums. They are happy." for i in range(300)]
NAMES = {"model_id": "small", "layer": 1, "source_set": "mine-64"}
BATCH = {"model_id", "layer", "sae_set", "sae_id_suffix", "features"}
FEATURE = {  # NeuronpediaDashboardFeature
    *("feature_index", "neuron_alignment_indices", "neuron_alignment_values", "neuron_alignment_l1"),
    *("correlated_neurons_indices", "correlated_neurons_l1", "correlated_neurons_pearson"),
    *("correlated_features_indices", "correlated_features_l1", "correlated_features_pearson"),
    *("neg_str", "neg_values", "pos_str", "pos_values", "frac_nonzero"),
    *("freq_hist_data_bar_values", "freq_hist_data_bar_heights"),
    *("logits_hist_data_bar_values", "logits_hist_data_bar_heights"),
    *("n_prompts_total", "n_tokens_in_prompt", "dataset", "decoder_weights_dist", "vector", "activations"),
}
ACTIVATION = {"bin_min", "bin_max", "bin_contains", "tokens", "values", "qualifying_token_index"}


@pytest.fixture(scope="module")
def sae():
    return identity(over=0.5, silent=[9])


@pytest.fixture(scope="module")
def cards(sae, tmp_path_factory):
    lm = small_llama(tmp_path_factory.mktemp("llama"))
    return sl.contexts(sae, lm, site="L1R", text=TEXT, tokens=1200, context=64, n=4, sampled=12, width=5)


def strict(path):
    """JSON without NaN and Infinity, and without half a character, which orjson refuses."""

    def refuse(name):
        raise ValueError(name)

    found = json.loads(path.read_bytes(), parse_constant=refuse)
    json.dumps(found, ensure_ascii=False).encode()
    return found


@pytest.fixture(scope="module")
def batches(cards, sae, tmp_path_factory):
    folder = to_neuronpedia(cards, tmp_path_factory.mktemp("np") / "out", **NAMES, per_batch=24, sae=sae)
    return [strict(folder / f"batch-{i}.json") for i in range(3)]


@pytest.fixture(scope="module")
def features(batches):
    return {f["feature_index"]: f for batch in batches for f in batch["features"]}


def test_batches_have_the_keys_that_the_importer_reads(batches, features):
    assert [len(batch["features"]) for batch in batches] == [24, 24, 16]
    for batch in batches:
        assert set(batch) == BATCH
        assert {key: batch[key] for key in ("model_id", "layer", "sae_set")} == {
            "model_id": "small",
            "layer": 1,
            "sae_set": "mine-64",
        }
    assert list(features) == list(range(64))
    assert all(set(f) == FEATURE and all(set(a) == ACTIVATION for a in f["activations"]) for f in features.values())


def test_a_feature_says_what_its_card_says(cards, features):
    shown = 0
    for latent, f in features.items():
        card = cards[latent]
        assert f["frac_nonzero"] == card.density
        for name, effects in (("pos", card.promoted), ("neg", card.suppressed)):
            assert f[f"{name}_str"] == [token for token, _ in effects]
            assert f[f"{name}_values"] == pytest.approx([logit for _, logit in effects], rel=1e-5)
        contexts = [*card.top, *card.sampled]
        shown += len(contexts)
        assert ["".join(a["tokens"]) for a in f["activations"]] == [c.text for c in contexts]
        for a, c in zip(f["activations"], contexts):
            assert a["values"] == pytest.approx(c.values, rel=1e-5)
            assert a["values"][a["qualifying_token_index"]] == pytest.approx(c.activation, rel=1e-5)
    assert shown > 200
    assert features[0]["n_tokens_in_prompt"] == 64
    assert features[0]["n_prompts_total"] == math.ceil(cards.about["tokens"] / 64)
    assert features[0]["dataset"] == cards.about["text"]


def test_the_strongest_are_marked_as_saedashboard_marks_them(cards, features):
    for latent, f in features.items():
        for a, c in zip(f["activations"], cards[latent].top):
            assert (a["bin_min"], a["bin_contains"]) == (-1, -1)
            assert a["bin_max"] == pytest.approx(cards[latent][0].activation, rel=1e-5)
            assert max(a["values"]) >= c.activation * 0.999


def test_sampled_contexts_lie_in_their_interval_which_says_its_share_of_all_firings(cards, features):
    intervals = set()
    for latent, f in features.items():
        card = cards[latent]
        for a, c in zip(f["activations"][len(card.top) :], card.sampled):
            low, high = a["bin_min"], a["bin_max"]
            assert low * 0.9999 <= c.activation <= high * 1.0001
            inside = (card.edges[:-1] >= low * 0.9999) & (card.edges[1:] <= high * 1.0001)
            assert a["bin_contains"] == pytest.approx(card.histogram[inside].sum() / card.histogram.sum(), rel=1e-4)
            intervals.add((low, high))
    assert len(intervals) > 3


def test_what_is_beyond_the_histogram_belongs_to_its_ends():
    contexts = neuronpedia.Context(0, ("a",), (50.0,), 0), neuronpedia.Context(0, ("b",), (1e-6,), 0)
    histogram = np.array([3, 0, 0, 0, 0, 0, 0, 1])
    card = neuronpedia.Card(0, 0.1, contexts[:1], contexts, (), (), (), (), 2.0 ** np.arange(-4, 5), histogram)
    _, high, low = neuronpedia._activations(card)
    assert (low["bin_min"], low["bin_max"], low["bin_contains"]) == (0, 1, 0.75)
    assert (high["bin_min"], high["bin_max"], high["bin_contains"]) == (1, 50, 0.25)


def test_the_histogram_has_every_firing_once_between_the_first_and_the_last_bar(cards, features):
    for latent, f in features.items():
        card, heights = cards[latent], f["freq_hist_data_bar_heights"]
        assert sum(heights) == card.histogram.sum()
        assert len(heights) == len(f["freq_hist_data_bar_values"])
        if heights:
            assert heights[0] > 0 and heights[-1] > 0
            middle = sum(h * v for h, v in zip(heights, f["freq_hist_data_bar_values"])) / sum(heights)
            exact = (card.histogram * (card.edges[:-1] + card.edges[1:]) / 2).sum() / card.histogram.sum()
            assert middle == pytest.approx(exact, rel=1e-4)


def test_a_silent_latent_has_no_bars_and_no_activations(features):
    assert features[9]["frac_nonzero"] == 0
    assert features[9]["freq_hist_data_bar_heights"] == features[9]["activations"] == []
    assert features[9]["pos_str"]  # its direction promotes tokens all the same


def test_the_direction_is_the_decoder_row_and_its_largest_coordinates(cards, sae, tmp_path):
    other = identity()
    other.W_dec.data[5, :4] = other.W_dec.data.new_tensor([4.0, -9.0, 2.0, 1.5])  # beside the 1 of the identity
    (batch,) = (strict(f) for f in to_neuronpedia(cards, tmp_path / "a", **NAMES, sae=other).iterdir())
    f = batch["features"][5]
    assert f["vector"] == other.W_dec[5].tolist()
    assert f["neuron_alignment_indices"] == [0, 2, 3]
    assert f["neuron_alignment_values"] == [4, 2, 1.5]
    assert f["neuron_alignment_l1"] == pytest.approx([4 / 17.5, 2 / 17.5, 1.5 / 17.5], rel=1e-5)


def test_what_is_not_known_is_empty_and_never_made_up(cards, features, tmp_path):
    known = {"vector", "neuron_alignment_indices", "neuron_alignment_values", "neuron_alignment_l1"}
    never = {key for key in FEATURE if key.startswith(("correlated", "logits_hist", "decoder_weights"))}
    assert all(f[key] == [] for f in features.values() for key in never) and len(never) == 9
    assert all(features[0][key] for key in known)
    folder = to_neuronpedia(cards, tmp_path / "a", **NAMES)
    assert all(strict(folder / "batch-0.json")["features"][0][key] == [] for key in known)


def test_a_suffix_is_written_and_none_is_null(cards, batches, tmp_path):
    assert batches[0]["sae_id_suffix"] is None
    folder = to_neuronpedia(cards, tmp_path / "a", **NAMES, source_id_suffix="l0-50")
    assert strict(folder / "batch-0.json")["sae_id_suffix"] == "l0-50"


def test_half_a_character_and_infinite_logits_do_not_reach_the_file(cards):
    card = replace(cards[0], promoted=(("\ud83c", 1.0), ("never", -math.inf)), top=())
    f = neuronpedia._feature(card, cards.about, None)
    assert (f["pos_str"], f["pos_values"]) == (["\ufffd"], [1.0])
    assert neuronpedia._text("\ud83c\udf50") == "🍐"


def test_a_folder_with_something_in_it_is_left_alone(cards, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="there already"):
        to_neuronpedia(cards, tmp_path, **NAMES)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_a_folder_is_there_whole_or_not_at_all(cards, tmp_path, monkeypatch):
    write, written = neuronpedia.write_json, []

    def one(path, value):
        if written:
            raise OSError("broken off")
        written.append(path)
        write(path, value)

    monkeypatch.setattr(neuronpedia, "write_json", one)
    with pytest.raises(OSError, match="broken off"):
        to_neuronpedia(cards, tmp_path / "out", **NAMES, per_batch=16)
    assert len(written) == 1 and list(tmp_path.iterdir()) == []


def test_an_sae_that_the_cards_are_not_of_and_batches_of_nothing_are_refused(cards, tmp_path):
    with pytest.raises(ValueError, match="latent 63, and this SAE has latents 0 to 15"):
        to_neuronpedia(cards, tmp_path / "a", **NAMES, sae=identity(8))
    with pytest.raises(ValueError, match="per_batch=0"):
        to_neuronpedia(cards, tmp_path / "a", **NAMES, per_batch=0)
    assert not list(tmp_path.iterdir())


def test_what_we_write_is_read_back(cards, tmp_path):
    found = read_neuronpedia(to_neuronpedia(cards, tmp_path / "out", **NAMES, per_batch=10))
    assert list(found) == ["latent", "explanation", "by", "score", "density", "top_tokens"]
    assert found["latent"].tolist() == list(range(64))
    assert found["density"].tolist() == cards.density.tolist()
    assert found["top_tokens"][7] == tuple(token for token, _ in cards[7].promoted)
    assert found["explanation"].isna().all() and found["score"].isna().all()


# reading

SCORE = {"explanationScoreTypeName": "recall_alt", "explanationScoreModelName": "gpt-4o-mini"}
FIRST = {
    "description": " fruit ",
    "explanationModelName": "gpt-4o-mini",
    "typeName": "oai_token-act-pair",
    "scores": [],
}
BETTER = FIRST | {"description": "pears", "explanationModelName": "claude", "scores": [SCORE | {"value": 0.7}]}
WORSE = FIRST | {"description": "plums", "scores": [SCORE | {"value": 0.1}, SCORE | {"value": 0.6}]}
AT = {"modelId": "llama3.1-8b", "layer": "15-res-32k"}
FEATURES = [
    AT | {"index": "12", "frac_nonzero": 0.01, "pos_str": [" pear", " plum"], "explanations": [FIRST, WORSE, BETTER]},
    AT | {"index": 3, "frac_nonzero": 0.5, "pos_str": [], "explanations": [FIRST]},
]


def rows(table):
    return [
        tuple(None if isinstance(v, float) and math.isnan(v) else v for v in row)
        for row in table.itertuples(index=False)
    ]


READ = [
    (3, "fruit", "gpt-4o-mini", None, 0.5, ()),
    (12, "pears", "claude", 0.7, 0.01, (" pear", " plum")),
]


@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("lines", [False, True], ids=["json", "jsonl"])
def test_features_of_the_api_are_read_from_every_kind_of_file(tmp_path, lines, zipped):
    text = "\n".join(map(json.dumps, FEATURES)) + "\n" if lines else json.dumps(FEATURES, indent=1)
    path = tmp_path / f"f.json{'l' * lines}{'.gz' * zipped}"
    path.write_bytes(gzip.compress(text.encode()) if zipped else text.encode())
    assert rows(read_neuronpedia(path)) == rows(read_neuronpedia(str(path))) == READ


def test_json_is_read_as_text_and_as_what_it_says():
    assert rows(read_neuronpedia(json.dumps(FEATURES))) == rows(read_neuronpedia(FEATURES)) == READ
    assert rows(read_neuronpedia(FEATURES[0])) == READ[1:]
    assert rows(read_neuronpedia([])) == []


def test_explanations_exported_by_themselves_join_their_features(tmp_path):
    folder = tmp_path / "15-res-32k"
    folder.mkdir()
    bare = [{key: value for key, value in f.items() if key != "explanations"} for f in FEATURES]
    said = [AT | {"index": "12"} | e for e in (FIRST, WORSE, BETTER)] + [AT | {"index": "3"} | FIRST]
    for number, records in enumerate((bare, said)):
        (folder / f"batch-{number}.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, records)).encode()))
    for name in ("run_settings.json", "batch-0.json.part"):
        (folder / name).write_text("{}")
    assert rows(read_neuronpedia(folder)) == READ
    assert rows(read_neuronpedia(said))[1] == (12, "pears", "claude", 0.7, None, ())


def test_who_explained_is_the_kind_of_explanation_where_no_model_is_named():
    said = {"index": 1, "description": "x", "typeName": "np_max-act", "explanationModelName": None}
    assert read_neuronpedia(said)["by"][0] == "np_max-act"


def test_a_file_that_unzips_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(neuronpedia, "MOST", 100_000)
    bomb, plain = tmp_path / "batch-0.json.gz", tmp_path / "plain.json"
    bomb.write_bytes(gzip.compress(b"[" + b" " * 10**7 + b"]"))
    assert bomb.stat().st_size < 100_000
    plain.write_bytes(b"[" + b" " * 100_000 + b"]")
    for path in (bomb, plain, tmp_path):
        with pytest.raises(Damaged, match=r"holds more than 0\.0001 GB"):
            read_neuronpedia(path)
    bomb.write_bytes(gzip.compress(b" " * 10**8))
    tracemalloc.start()
    with pytest.raises(Damaged):
        read_neuronpedia(bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * 10**7  # of 10^8 bytes
    plain.write_bytes(b"[" + b" " * 99_998 + b"]")
    assert len(read_neuronpedia(plain)) == 0


def test_the_limit_is_of_each_file_of_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(neuronpedia, "MOST", 2000)
    for number in range(2):
        (tmp_path / f"batch-{number}.json").write_text(json.dumps(FEATURES[number]) + " " * 1200)
    assert rows(read_neuronpedia(tmp_path)) == READ
    (tmp_path / "batch-1.json").write_text("[" + " " * 2000 + "]")
    with pytest.raises(Damaged, match=r"batch-1\.json holds more"):
        read_neuronpedia(tmp_path)


@pytest.mark.parametrize(
    ("said", "seen"),
    [
        ({"weights": [1]}, "'weights'"),
        ({"index": 3, "tokens": ["a"], "values": [1]}, "'index', 'tokens'"),  # an export's activations
        ({"description": "no latent"}, "'description'"),
        ({"features": [{"index": 1}]}, "'index'"),
        ({"features": [7]}, "found 7"),
        ([FEATURES[0], "x"], "found 'x'"),
        ([[FEATURES[0]]], "found \\[{"),
    ],
    ids=["other", "activations", "no index", "batch", "number", "string", "nested"],
)
def test_json_of_another_shape_is_refused_with_what_was_looked_for(said, seen):
    with pytest.raises(ValueError, match=f"Looked for 'features'.*'feature_index'.*'explanations'.*{seen}"):
        read_neuronpedia(said)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[" * 100_000,
        b'[{"index": 1,',
        gzip.compress(json.dumps(FEATURES).encode())[:-20],
        b"\x1f\x8bno",
        b"\xff{}",
    ],
    ids=["empty", "deep", "cut", "cut gz", "no gz", "no text"],
)
def test_damaged_files_are_named(tmp_path, data):
    (tmp_path / "f.json").write_bytes(data)
    with pytest.raises(Damaged, match=r"f\.json"):
        read_neuronpedia(tmp_path / "f.json")


def test_a_bad_line_is_not_passed_over(tmp_path):
    (tmp_path / "f.jsonl").write_text(
        "\n".join([json.dumps(FEATURES[0]), '{"index": 3, "descr', json.dumps(FEATURES[1])])
    )
    with pytest.raises(Damaged, match="cut short or altered"):
        read_neuronpedia(tmp_path / "f.jsonl")


def test_no_file_and_a_folder_without_batches_are_said(tmp_path):
    (tmp_path / "notes.json").write_text("{}")
    for where in (tmp_path / "none.json", tmp_path):
        with pytest.raises(FileNotFoundError, match=r"batch-0\.json"):
            read_neuronpedia(where)


def test_latents_of_two_saes_are_not_mixed(batches):
    with pytest.raises(ValueError, match=r"llama3\.1-8b/15-res-32k, and of llama3\.1-8b/16-res-32k"):
        read_neuronpedia([FEATURES[0], FEATURES[1] | {"layer": "16-res-32k"}])
    with pytest.raises(ValueError, match="small/1-mine-64__b"):
        read_neuronpedia([batches[0], batches[1] | {"sae_id_suffix": "b"}])
    assert len(read_neuronpedia(batches)) == 64
    same = {"modelId": "small", "layer": "1-mine-64", "index": "0", "description": "zero"}
    assert read_neuronpedia([*batches, same])["explanation"][0] == "zero"


@pytest.mark.parametrize("index", [-1, True, "1e3", None, 1.5, "9" * 5000, "٣", [1]])
def test_an_index_that_is_no_number_of_a_latent_is_refused(index):
    with pytest.raises(ValueError, match="is no number of a latent"):
        read_neuronpedia({"index": index, "description": "x"})


def test_what_others_wrote_stays_text_and_odd_numbers_are_none():
    text = "__import__('os').system('true') {0} %s <script>"
    scores = [{"value": "0.9"}, {"value": math.nan}, {"value": math.inf}, {"value": 10**400}, {"value": True}, 7]
    said = [
        {"description": {"a": 1}},
        {"description": "  ", "scores": [{"value": 1.0}]},
        {"description": text, "scores": scores},
    ]
    record = {"index": 1, "explanations": said, "frac_nonzero": "0.5", "pos_str": ["a", 5, None]}
    assert rows(read_neuronpedia(record)) == [(1, text, None, None, None, ("a",))]


# beside ours


@pytest.fixture
def ours():
    def explained(latent, text, detection):
        return Explained(Explanation(latent, text, "rule"), {"detection": detection, "detection, hard": 0.5}, (20, 20))

    found = {3: explained(3, "the token ' pear'", 0.7), 12: explained(12, "plums", 0.9), 40: explained(40, "x", 0.6)}
    return Explanations(found, {}, {"explainer": "rule", "judge": "rule"})


def test_theirs_stand_beside_ours_by_latent(ours):
    table = beside(ours, read_neuronpedia(FEATURES))
    assert list(table) == ["latent", "ours", "detection", "theirs", "their score"]
    assert rows(table) == [
        (12, "plums", 0.9, "pears", 0.7),
        (3, "the token ' pear'", 0.7, "fruit", None),
        (40, "x", 0.6, None, None),
    ]


def test_a_table_of_another_kind_or_of_other_latents_is_refused(ours):
    with pytest.raises(ValueError, match="theirs has no column 'explanation'"):
        beside(ours, read_neuronpedia(FEATURES).drop(columns="explanation"))
    with pytest.raises(ValueError, match="None of our 3 latents is among the 1 of theirs"):
        beside(ours, read_neuronpedia({"index": 5, "description": "x"}))


def test_contexts_of_some_latents_are_written_alone(cards, tmp_path):
    some = Contexts({name: a[5:7] for name, a in cards.by_latent.items()}, cards.common, cards.about)
    found = strict(to_neuronpedia(some, tmp_path / "a", **NAMES) / "batch-0.json")
    assert [f["feature_index"] for f in found["features"]] == [5, 6]
