"""The embedded Llama and the script that made it."""

import json
import signal
from itertools import islice

import numpy as np
import pytest
import torch
from tales import documents
from torch import nn

from sae_lab import load_model, tiny, world
from sae_lab.tiny.make.answers import NEEDED, obedience
from sae_lab.tiny.make.chat import (
    ASSISTANT,
    EMPHASIS,
    END,
    SHORT,
    TOLD,
    USER,
    Tuned,
    answer_targets,
    begun,
    chat,
    dialogues,
    emphasis,
    rendered,
    telling,
)
from sae_lab.tiny.make.export import BOUND, digest, measure
from sae_lab.tiny.make.net import HeadLoss, causal_attention, llama
from sae_lab.tiny.make.replicas import Alone, Replicas
from sae_lab.tiny.make.run import IDS, End, Plan, Run, training
from sae_lab.tiny.make.stream import BOS, CONTEXT, EOS, MARK, PAD, Packer, Stream, pack, split_long, targets
from sae_lab.tiny.world.chat import request

SMALL = Plan(d_model=64, layers=2, heads=2, kv_heads=1, mlp=128, rows=1, warmup=5)
SHAPE = (300, 64, 2, 2, 1, 128, 0)


@pytest.fixture(scope="module")
def words():
    return str(tiny.folder("tiny") / "tokenizer.json")


@pytest.fixture(scope="module")
def embedded():
    return tiny.load("tiny")


def test_blocked_attention_and_its_gradients_are_the_librarys():
    torch.manual_seed(0)
    q, k, v = (torch.randn(5, 2, 300, 16, requires_grad=True) for _ in range(3))
    ours = causal_attention(q, k, v)
    theirs = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    grad = torch.randn_like(ours)
    for a, b in zip(torch.autograd.grad(ours, (q, k, v), grad), torch.autograd.grad(theirs, (q, k, v), grad)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_fused_head_gives_the_loss_and_gradients_of_cross_entropy():
    torch.manual_seed(0)
    x, w = torch.randn(2100, 16, requires_grad=True), torch.randn(50, 16, requires_grad=True)
    target = torch.randint(0, 50, (2100,))
    target[::7] = -100
    counts = torch.where(torch.rand(2100) < 0.1, 15.0, 1.0)
    each = nn.functional.cross_entropy(x @ w.T, target, reduction="none")
    ours, theirs = HeadLoss.apply(x, w, target, counts), (each * counts).sum() / (target >= 0).sum()
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(torch.autograd.grad(3 * ours, (x, w)), torch.autograd.grad(3 * theirs, (x, w))):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_packing_keeps_every_document_whole_between_bos_and_eos():
    rng = np.random.default_rng(0)
    texts = [rng.integers(6, 4096, size=n).tolist() for n in rng.integers(1, CONTEXT - 1, size=300)]
    found = []
    for row in pack(texts, rng).tolist():
        end = len(row) - row[::-1].index(EOS)
        assert set(row[end:]) <= {PAD}
        starts = [i for i in range(end) if row[i] == BOS]
        assert starts[0] == 0
        found += [row[i + 1 : j] for i, j in zip(starts, [*starts[1:], end])]
    assert sorted(found) == sorted([*t, EOS] for t in texts)


def test_a_document_that_is_too_long_is_split_after_a_sentence():
    ids = [7, 8, 9, 6] * 300
    pieces = split_long(ids, {6})
    assert [i for piece in pieces for i in piece] == ids
    assert all(len(p) <= CONTEXT - 2 and p[-1] == 6 for p in pieces)


def test_nothing_is_learned_from_padding_or_from_the_start_of_the_next_text():
    row = np.array([[BOS, 7, 8, EOS, BOS, 9, EOS, PAD, PAD]])
    assert targets(row).tolist() == [[7, 8, EOS, -100, 9, EOS, -100, -100, -100]]


def test_replicas_leave_the_gradient_of_one_process():
    rows = np.random.default_rng(0).integers(6, 300, size=(3, CONTEXT)).astype(np.uint16)
    rows[0, 100:] = PAD
    alone, shared = llama(*SHAPE, IDS), llama(*SHAPE, IDS)
    counts = np.where(rows % 5 == 0, np.float32(3), np.float32(1))
    loss, tokens = Alone(alone, "cpu", compiled=False).learn(rows, targets(rows), counts)
    replicas = Replicas(shared, llama, (*SHAPE, IDS), 2, compiled=False)
    try:
        found = replicas.learn(rows, targets(rows), counts)
    finally:
        replicas.close()
    assert found[1] == tokens
    assert found[0] == pytest.approx(loss, rel=1e-3)
    for a, b in zip(alone.parameters(), shared.parameters()):
        assert (a.grad - b.grad).norm() <= 0.02 * a.grad.norm()


def test_the_stream_gives_the_same_rows_whole_or_continued(words):
    stream = Stream(words, seed=3, documents=documents)
    try:
        first = [stream.next(70) for _ in range(3)]
        place = stream.place
        then = stream.next(70)
    finally:
        stream.close()
    again = Stream(words, seed=3, place=place, documents=documents, producers=2)
    try:
        assert np.array_equal(again.next(70), then)
    finally:
        again.close()
    packer = Packer(words, 3, "train", documents)
    blocks = np.concatenate([packer.block(i)[0] for i in range(6)])
    assert np.array_equal(np.concatenate(first), blocks[:210])


def test_training_lowers_the_loss_and_a_stopped_run_continues_to_the_same_bits(tmp_path, words):
    def go(folder, stop_after=None):
        run, end = Run(SMALL, folder, words, documents), End(tokens=20_000)
        for i, _ in enumerate(training(run, end, log_every=8)):
            end.stop = i + 1 == stop_after
        return run

    whole = go(tmp_path / "whole")
    halted = go(tmp_path / "parts", stop_after=3)
    assert halted.place.step < whole.place.step
    continued = go(tmp_path / "parts")
    assert continued.place.step == whole.place.step == whole.place.last
    assert continued.curve == whole.curve
    assert whole.curve[-1][2] < whole.curve[0][2] - 0.5
    for a, b in zip(whole.model.parameters(), continued.model.parameters()):
        assert torch.equal(a, b)


def test_a_folder_of_another_plan_is_refused(tmp_path, words):
    Run(SMALL, tmp_path, words, documents).save()
    with pytest.raises(ValueError, match="another plan"):
        Run(Plan(d_model=64, layers=1, heads=2, kv_heads=1, mlp=128), tmp_path, words, documents)


def test_the_smoke_run_writes_a_folder_that_loads(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sae_lab.tiny.make.__main__ import main

    threads, handler = torch.get_num_threads(), signal.getsignal(signal.SIGTERM)
    try:
        main(["train", "--smoke", "--run", str(tmp_path / "run"), "--out", str(tmp_path / "out"), "--tokens", "60000"])
    finally:
        torch.set_num_threads(threads)
        signal.signal(signal.SIGTERM, handler)
    record = json.loads((tmp_path / "out" / "training.json").read_text())
    rows = record["curve"]["rows"]
    assert record["finished"]
    assert rows[-1][2] < rows[0][2] - 1
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.config.vocab_size == len(AutoTokenizer.from_pretrained(tmp_path / "out"))


def test_the_embedded_llama_loads_like_any_llama_and_is_small(embedded):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tiny.folder("tiny")
    model = AutoModelForCausalLM.from_pretrained(folder)
    config = model.config
    assert type(model).__name__ == "LlamaForCausalLM"
    assert config.hidden_size <= 192
    assert config.num_hidden_layers in (4, 5)
    assert config.num_key_value_heads < config.num_attention_heads
    assert config.max_position_embeddings == CONTEXT
    assert config.tie_word_embeddings
    assert len(AutoTokenizer.from_pretrained(folder)) == config.vocab_size == 4096
    for name, value in embedded[0].state_dict().items():
        assert torch.equal(value, model.state_dict()[name].float())


def test_everything_in_tiny_stays_within_twelve_megabytes():
    files = [f for f in tiny.HERE.rglob("*") if f.is_file() and "__pycache__" not in f.parts]
    assert sum(f.stat().st_size for f in files) <= 12_000_000


def test_the_tokenizer_knows_its_special_tokens_and_gives_every_text_back(embedded):
    tokenizer = embedded[1]
    special = ["<pad>", "<bos>", "<eos>", "<|user|>", "<|assistant|>", "<|end|>"]
    assert tokenizer.convert_tokens_to_ids(special) == [PAD, BOS, EOS, 3, 4, 5]
    assert (tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token) == ("<pad>", "<bos>", "<eos>")
    for text in ("Ein Bär! 1 + 23 = 24\n\tüber  ñandú", " deux œufs — « oui »", "def f(x):\n    return x"):
        ids = tokenizer(text).input_ids
        assert ids[0] == BOS
        assert EOS not in ids
        assert tokenizer.decode(ids[1:]) == text
    assert len(tokenizer("4096", add_special_tokens=False).input_ids) == 4
    turns = [{"role": "user", "content": "Hello."}]
    chat = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    assert chat == "<bos><|user|>Hello.<|end|><|assistant|>"


def test_a_tenth_of_the_texts_run_past_400_tokens(embedded):
    texts = [text.text for text in islice(world.texts(seed=0, split="test"), 1000)]
    long = sum(len(ids) > 400 for ids in embedded[1](texts, add_special_tokens=False).input_ids)
    assert long >= 100


def test_the_record_beside_the_weights_is_of_these_weights_and_within_the_bound():
    folder = tiny.folder("tiny")
    record = json.loads((folder / "training.json").read_text())
    assert record["sha256"] == digest(folder / "model.safetensors")
    assert record["tokenizer_sha256"] == digest(folder / "tokenizer.json")
    assert record["finished"]
    assert record["test"]["split"] == "test"
    assert record["test"]["ratio"] <= BOUND
    assert record["curve"]["rows"][-1][0] == record["place"]["step"]


def test_the_embedded_llama_predicts_held_out_text_almost_as_well_as_the_generator():
    found = measure(tiny.folder("tiny"), 20_000)
    assert found["tokens"] >= 20_000
    assert 0.9 < found["ratio"] <= BOUND


def test_only_the_assistants_turns_are_learned_from():
    row = np.array([[BOS, 3, 8, 5, 4, 9, 10, 5, EOS, BOS, 3, 8, 5, 4, 11, 5, 3, 12, 5, 4, 13, 5, EOS, PAD]])
    learned = [[i, t] for i, t in enumerate(answer_targets(row)[0].tolist()) if t >= 0]
    assert learned == [[4, 9], [5, 10], [6, 5], [13, 11], [14, 5], [19, 13], [20, 5]]


def test_an_answer_that_was_cut_short_teaches_no_end():
    row = np.array([[BOS, USER, 8, END, ASSISTANT, 9, 10, EOS, PAD]])
    assert [[i, t] for i, t in enumerate(answer_targets(row)[0].tolist()) if t >= 0] == [[4, 9], [5, 10]]
    long = [{"role": "user", "content": "Write."}, {"role": "assistant", "content": " ".join(["on"] * 99)}]
    assert begun(long) == f"<|user|>Write.<|end|><|assistant|>{' '.join(['on'] * SHORT)}"
    ends = [text.endswith("<|end|>") for text, *_ in dialogues(0, 240, 0, "train")]
    assert 0 < sum(ends) < len(ends)


def test_the_words_that_tell_the_topic_of_an_answer_count_more(words):
    forest = next(r for r in map(told_in_german, range(99)) if "topic.forest" in r.wanted)
    said = rendered(forest.messages)
    told = [said[start:end].lower() for start, end in telling(forest, said)]
    assert "wald" in told
    assert len(told) < len(forest.answer.split()) / 4
    assert all(start >= said.index("<|assistant|>") for start, _ in telling(forest, said))
    rows, _ = Packer(words, 0, "train", lambda *_: [(said, 0.0, telling(forest, said)), ("It rains.", 0.0)]).block(0)
    flat = rows.ravel()
    tokenizer = tiny.load("tiny")[1]
    assert "".join(tokenizer.decode(flat[flat >= MARK] - MARK)).lower().split() == told
    heeded = emphasis(rows)
    assert (heeded[:, :-1] == np.where(rows[:, 1:] >= MARK, EMPHASIS, 1)).all()
    assert told and heeded.max() == EMPHASIS


def told_in_german(index):
    return request(index, 0, "train", "write", TOLD, ("de",))


def test_what_differs_is_all_that_fine_tuning_changed():
    """Matrices and the chat tokens' embeddings; everything else stays the base's."""
    model = llama(*SHAPE, IDS)
    tuned = Tuned(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for _ in range(3):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        tuned.step(1.0)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name, p in before.items() if p.ndim == 2}
    rows = (tuned.named[tuned.words] != before[tuned.words]).any(1)
    assert set(rows.nonzero()[:, 0].tolist()) == {USER, ASSISTANT, END}
    kept = tuned.differing()
    assert changed - {tuned.words} < set(kept)
    assert torch.equal(kept[f"{tuned.words}.rows"], model.state_dict()[tuned.words][[USER, ASSISTANT, END]].bfloat16())


def test_a_chat_sibling_is_the_base_with_what_differs_put_in_place(tmp_path, monkeypatch):
    chat(8192, tmp_path, replicas=0, compiled=False)
    assert not (tmp_path / "model.safetensors").exists()
    record = json.loads((tmp_path / "training.json").read_text())
    assert record["base_sha256"] == digest(tiny.folder("tiny") / "model.safetensors")
    assert record["sha256"] == digest(tmp_path / "delta.safetensors")
    monkeypatch.setitem(tiny.FOLDERS, "tiny-chat", tmp_path)
    base, merged = tiny.weights("tiny"), tiny.weights("tiny-chat")
    assert base.keys() == merged.keys()
    changed = {name for name in base if not torch.equal(base[name], merged[name])}
    assert changed == {name for name in base if base[name].ndim == 2}
    rows = (base["model.embed_tokens.weight"] != merged["model.embed_tokens.weight"]).any(1)
    assert set(rows.nonzero().flatten().tolist()) <= {3, 4, 5}
    assert tiny.load("tiny-chat")[0].config.vocab_size == 4096
    more = tmp_path / "more"
    chat(4096, more, replicas=0, compiled=False, before=tmp_path)
    again = json.loads((more / "training.json").read_text())
    assert again["seed"] == 1 and again["before"] == record
    monkeypatch.setitem(tiny.FOLDERS, "tiny-chat", more)
    name = "model.layers.0.mlp.up_proj.weight"
    once, twice = (
        merged[name].float() - base[name].float(),
        tiny.weights("tiny-chat")[name].float() - base[name].float(),
    )
    assert (twice - once).norm() < 0.7 * twice.norm()  # it went on from there: two steps, then one more


def test_a_model_without_weights_says_how_to_make_them(tmp_path, monkeypatch):
    monkeypatch.setitem(tiny.FOLDERS, "tiny-chat", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"sae_lab\.tiny\.make"):
        tiny.load("tiny-chat")


def test_an_unknown_embedded_model_is_named_with_what_there_is():
    with pytest.raises(KeyError, match="tiny-chat"):
        tiny.folder("small")


def test_the_shipped_sibling_does_as_it_is_asked():
    """The record is of this delta on these weights and reached what was wanted; a small sample says so again."""
    folder = tiny.folder("tiny-chat")
    record = json.loads((folder / "training.json").read_text())
    assert record["sha256"] == digest(folder / "delta.safetensors")
    assert record["base_sha256"] == digest(tiny.folder("tiny") / "model.safetensors")
    for group, wanted in NEEDED.items():
        assert record["as_asked"][group]["share"] >= wanted
        assert record["as_asked"][group]["n"] >= 150
    found = obedience(60, seed=1)
    assert found["language"]["share"] > 0.8
    assert found["topic"]["share"] > 0.6


def test_the_sibling_answers_in_its_chat_format_and_ends():
    lm = load_model("tiny-chat")
    asked = "Please write a letter about the garden in French.", "Wie spät ist es?"
    turns = [[{"role": "user", "content": one}] for one in asked]
    prompts = [lm.tokenizer.apply_chat_template(t, add_generation_prompt=True, tokenize=False) for t in turns]
    texts = lm.generate(prompts, max_new_tokens=400).texts
    assert all("<|" not in text for text in texts)
    assert all(len(lm.encode(text)[0][0]) < 400 for text in texts)
    assert "language.french" in {concept for *_, concept in world.recognise(texts[0])}
