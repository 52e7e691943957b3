"""Text becomes token blocks: whole documents behind their own BOS, in an order that seed, split and number decide."""

import itertools
import json

import little
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from transformers import AddedToken, AutoTokenizer

from sae_lab import tiny
from sae_lab.tokens import sources, token_blocks
from sae_lab.tokens.packing import pack, sections
from sae_lab.tokens.sources import plain

BOS, EOS = 1, 2


@pytest.fixture(scope="module")
def tokenizer():
    return little.tokenizer()


def story(i: int, sentences: int = 3) -> str:
    return " ".join(f"Cat {i} sat on mat {j}." for j in range(sentences))


STORIES = [story(i, 1 + i % 5) for i in range(300)]


def same(a, b):
    tensors = ("ids", "mask", "keep", "doc", "position", "start", "end")
    texts = [[plain(t) for t in block.texts] for block in (a, b)]
    return texts[0] == texts[1] and all(torch.equal(getattr(a, f), getattr(b, f)) for f in tensors)


def test_a_text_where_a_name_belongs_is_refused():
    for text in ("Once upon a time. " * 99, "Two\nlines"):
        with pytest.raises(ValueError, match="in a list"):
            token_blocks(None, text, eos=False)


def test_a_block_is_a_function_of_seed_split_and_number(tokenizer):
    make = lambda **k: token_blocks(tokenizer, STORIES, context=64, documents=16, **k)  # noqa: E731
    forward, backward = make(), make()
    ahead = [forward.block(i) for i in range(6)]
    assert all(same(backward.block(i), ahead[i]) for i in (5, 2, 0, 2))
    assert not same(make(seed=1).block(0), ahead[0])
    assert not same(make(split="test").block(0), ahead[0])


def test_every_document_is_read_once_an_epoch_in_a_new_order(tokenizer):
    blocks = token_blocks(tokenizer, STORIES, context=64, documents=10, split="all")
    epochs = [[t for i in range(30 * e, 30 * e + 30) for t in blocks.block(i).texts] for e in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(STORIES)
    assert epochs[0] != epochs[1] != STORIES


def test_splits_share_no_document_and_are_a_twentieth_each(tokenizer):
    many = [f"Story number {i}." for i in range(4000)]
    found = {s: set(sources.source(many, None, 0, s, 999)._kept) for s in ("train", "validation", "test")}
    assert set.union(*found.values()) == set(many)
    assert sum(map(len, found.values())) == len(many)
    assert 140 < len(found["test"]) < 260
    assert 140 < len(found["validation"]) < 260
    reordered = set(sources.source(many[::-1], None, 5, "test", 999)._kept)
    assert reordered == found["test"], "neither the seed nor a document's place decides its split"


def test_rows_hold_whole_documents_each_behind_its_own_bos(tokenizer):
    block = token_blocks(tokenizer, STORIES, context=128, documents=32).block(0)
    assert block.ids.shape[1] <= 128
    seen = []
    for row in range(len(block.ids)):
        for doc in block.doc[row].unique().tolist():
            here = block.doc[row] == doc
            if doc < 0:
                assert not block.mask[row][here].any()
                continue
            ids = block.ids[row][here].tolist()
            assert ids == [BOS, *tokenizer(block.text(doc), add_special_tokens=False)["input_ids"]]
            assert block.position[row][here].tolist() == list(range(len(ids)))
            assert block.keep[row][here].tolist() == [False] + [True] * (len(ids) - 1)
            seen.append(doc)
    assert sorted(seen) == list(range(32)), "each once, and none in two rows"
    assert not block.mask[:, :-1].logical_not().logical_and(block.mask[:, 1:]).any(), "padding is on the right"


def test_an_eos_ends_each_document_where_it_is_wanted(tokenizer):
    block = token_blocks(tokenizer, STORIES, context=128, documents=8, eos=True).block(1)
    for doc in range(8, 16):
        ids = block.ids[block.doc == doc].tolist()
        assert (ids[0], ids[-1]) == (BOS, EOS)
    assert not block.keep[block.ids == EOS].any()
    assert int((block.ids == EOS)[block.mask].sum()) == 8
    plain = token_blocks(tokenizer, STORIES, context=64, documents=8).block(1)
    assert not (plain.ids[plain.mask] == EOS).any()


def test_a_special_token_that_a_text_spells_out_does_not_count(tokenizer):
    text = "the cat<eos> sat"
    block = token_blocks(tokenizer, [text], context=64, documents=1, split="all").block(0)
    spelled = (block.ids == EOS) & block.mask
    assert spelled.sum() == 1
    assert not block.keep[spelled].any()
    assert text[int(block.start[spelled]) : int(block.end[spelled])] == "<eos>"
    assert block.keep.sum() == block.mask.sum() - 2


def test_texts_may_be_objects_that_hold_a_string(tokenizer):
    class Text:
        def __init__(self, text):
            self.text = text

    held = [Text(t) for t in STORIES]
    block = token_blocks(tokenizer, held, context=64, documents=8).block(0)
    assert all(isinstance(t, Text) for t in block.texts)
    assert torch.equal(block.ids, token_blocks(tokenizer, STORIES, context=64, documents=8).block(0).ids)


def test_a_tokenizer_without_bos_parts_documents_by_its_eos(tokenizer):
    bare = little.tokenizer()
    bare.bos_token = None
    block = token_blocks(bare, STORIES, context=64, documents=8).block(0)
    for row, doc, mask in zip(block.ids, block.doc, block.mask):
        ends = (doc[1:] != doc[:-1]).nonzero()[:, 0][: int(mask.sum()) - 1]
        assert (row[ends] == bare.eos_token_id).all()
    assert not block.keep[block.ids == bare.eos_token_id].any()
    without = token_blocks(bare, STORIES, context=64, documents=8, eos=False).block(0)
    assert torch.equal(without.keep, without.mask)


def test_marks_of_chats_do_not_count(tokenizer):
    """Llama 3 lists them as special among its added tokens, and names only a few of them."""
    chat = little.tokenizer()
    chat.add_tokens([AddedToken("<|eot|>", special=True)])
    assert chat.convert_tokens_to_ids("<|eot|>") not in chat.all_special_ids
    block = token_blocks(chat, ["a cat sat.<|eot|>a dog ran."] * 8, context=64, documents=8, split="all").block(0)
    mark = block.ids == chat.convert_tokens_to_ids("<|eot|>")
    assert mark.any()
    assert not block.keep[mark].any()


def test_a_few_long_documents_share_out_the_splits(tokenizer):
    books = [" ".join(f"The {animal} number {i} ran." for i in range(3000)) for animal in ("cat", "dog", "cow")]
    texts = {split: set(token_blocks(tokenizer, books, 64, split=split).block(0).texts) for split in ("train", "test")}
    assert all(texts.values())
    assert not texts["train"] & texts["test"]


def test_what_is_no_text_is_left_out_of_a_stream_and_half_characters_are_mended(tokenizer):
    rows = ["a cat", None, "a \ud800 dog", "a cow"] * 50
    block = token_blocks(tokenizer, lambda: iter(rows), context=64, documents=6, split="all").block(0)
    assert block.texts == ["a cat", "a \ufffd dog", "a cow"] * 2
    held = token_blocks(tokenizer, ["a \ud800 dog"] * 5, context=64, documents=5, split="all").block(0)
    assert set(held.texts) == {"a \ufffd dog"}


def test_an_endless_stream_of_rows_is_refused_at_its_first(tokenizer):
    with pytest.raises(ValueError, match="Give strings"):
        token_blocks(tokenizer, ({"text": "a cat"} for _ in itertools.count()))


def test_a_stream_that_breaks_begins_again(tokenizer):
    broken = [True]

    def start():
        for i in range(100):
            if i == 5 and broken:
                broken.clear()
                raise ConnectionError("the line broke")
            yield f"a cat number {i}"

    blocks = token_blocks(tokenizer, start, context=64, documents=4, split="all")
    first = blocks.block(0).texts
    with pytest.raises(ConnectionError):
        blocks.block(1)
    assert blocks.block(1).texts == [f"a cat number {i}" for i in range(4, 8)]
    assert blocks.block(0).texts == first


def test_rows_of_a_block_are_the_block_cut(tokenizer):
    block = token_blocks(tokenizer, STORIES, context=64, documents=8).block(0)
    part = block.rows(slice(1, 3))
    for name in ("ids", "mask", "keep", "doc", "position", "start", "end"):
        assert torch.equal(getattr(part, name), getattr(block, name)[1:3]), name


def test_character_spans_cut_each_token_out_of_its_document(tokenizer):
    long = " ".join(story(i, 20) for i in range(3))
    block = token_blocks(tokenizer, [long, *STORIES[:20]], context=48, documents=21, split="all").block(0)
    assert (block.start[~block.keep] == -1).all()
    places = block.keep.nonzero().tolist()
    for r, c in places:
        start, end = int(block.start[r, c]), int(block.end[r, c])
        assert block.text(int(block.doc[r, c]))[start:end] == tokenizer.decode([int(block.ids[r, c])])
    covered = dict.fromkeys(block.doc[block.keep].tolist(), "")
    order = sorted(places, key=lambda p: (int(block.doc[p[0], p[1]]), int(block.start[p[0], p[1]])))
    for r, c in order:
        d = int(block.doc[r, c])
        covered[d] += block.text(d)[int(block.start[r, c]) : int(block.end[r, c])]
    assert all(covered[d] == block.text(d) for d in covered), "no character is lost, also not of the long document"


def test_a_long_document_is_split_between_sentences_with_a_bos_for_each_part(tokenizer):
    long = " ".join(f"The cat number {i} sat on the mat." for i in range(12))
    block = token_blocks(tokenizer, [long], context=50, documents=1, split="all").block(0)
    starts = ((block.ids == BOS) & block.mask).nonzero().tolist()
    assert len(starts) > 2
    assert block.doc[block.mask].unique().tolist() == [0]
    for r, c in starts:
        first = int(block.start[r, c + 1])
        assert first == 0 or long[:first].rstrip().endswith(".")
        assert int(block.position[r, c + 1]) == 1


def test_no_row_is_longer_than_the_context(tokenizer):
    texts = [" ".join(f"the cat {i + j} sat" for j in range(60)) for i in range(3)]
    for context in range(20, 60):
        block = token_blocks(tokenizer, texts, context=context, documents=3, split="all").block(0)
        assert block.ids.shape[1] <= context


def test_a_text_without_sentences_is_split_all_the_same(tokenizer):
    for text in ("a" * 500, "word " * 200, "日本語のテキスト" * 30):
        block = token_blocks(tokenizer, [text], context=32, documents=4, split="all").block(0)
        here = block.keep & (block.doc == 0)
        order = block.start[here].argsort(stable=True)
        assert tokenizer.decode(block.ids[here][order]) == block.text(0)
        assert len(block.text(0)) > 32


def test_a_book_counts_as_several_documents():
    book = "".join(f"It was day {i}. " for i in range(5000))
    parts = sections(book, 2000)
    assert "".join(parts) == book
    assert max(map(len, parts)) <= 2000
    assert all(p.endswith(". ") for p in parts)
    one = sources.Documents("book", [book], 0, "test", 2000)
    assert 0 < len(one) < len(parts)


def test_packing_wastes_little_and_never_overflows():
    lengths = np.random.default_rng(0).integers(20, 200, 400).tolist()
    rows = pack(lengths, 256)
    assert sorted(itertools.chain(*rows)) == list(range(400))
    sums = [sum(lengths[i] for i in row) for row in rows]
    assert max(sums) <= 256
    assert sum(sums) > 0.95 * 256 * len(rows)
    assert all(row == sorted(row) for row in rows)


def test_files_of_every_kind_give_the_same_documents(tokenizer, tmp_path):
    docs = [d + "\n" for d in STORIES[:40]]
    (tmp_path / "a.txt").write_text("<|endoftext|>".join(docs))
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"id": "x", "text": d}) for d in docs) + "\n\n")
    pyarrow.parquet.write_table(pyarrow.table({"n": [1] * 40, "story": docs}), tmp_path / "a.parquet")
    expected = token_blocks(tokenizer, docs, context=64, split="all").block(0)
    for name in ("a.txt", "a.jsonl", "a.parquet"):
        assert same(token_blocks(tokenizer, tmp_path / name, context=64, split="all").block(0), expected), name
    folder = token_blocks(tokenizer, tmp_path, context=64, split="all", documents=120).block(0)
    assert sorted(folder.texts) == sorted(docs * 3)


def test_a_function_is_streamed_and_can_be_asked_again(tokenizer):
    def endless():
        return (f"Story {i}. The cat sat." for i in itertools.count())

    blocks = token_blocks(tokenizer, endless, context=64, documents=8)
    ahead = [blocks.block(i) for i in range(4)]
    assert same(blocks.block(1), ahead[1])
    assert same(blocks.block(3), ahead[3])
    test = token_blocks(tokenizer, endless, context=64, documents=8, split="test").block(0)
    assert not {*test.texts} & {t for b in ahead for t in b.texts}
    short = token_blocks(tokenizer, lambda: iter(STORIES[:5]), context=64, documents=8, split="all").block(0)
    assert short.texts == STORIES[:5] + STORIES[:3], "a finite one begins again"


def test_a_data_set_of_the_hub_is_streamed(tokenizer, monkeypatch):
    asked = {}

    class Rows(list):
        def shuffle(self, seed, buffer_size):
            asked["seed"] = seed
            return self

    def load(name, split, streaming):
        asked.update(name=name, streaming=streaming)
        return Rows([{"id": str(i), "text": t} for i, t in enumerate(STORIES)])

    monkeypatch.setattr("datasets.load_dataset", load)
    block = token_blocks(tokenizer, "someone/stories", context=64, documents=8, seed=3, split="all").block(0)
    assert block.texts == STORIES[:8]
    assert asked == {"name": "someone/stories", "streaming": True, "seed": 3}


def test_a_stream_tells_what_it_reads(tokenizer):
    one = token_blocks(tokenizer, STORIES, context=64).describe()
    assert json.loads(json.dumps(one)) == one
    assert one["digest"] != token_blocks(tokenizer, STORIES[1:], context=64).describe()["digest"]
    assert token_blocks(tokenizer, STORIES, context=32, seed=9).describe()["digest"] == one["digest"]


def test_mistakes_are_told_with_the_way_out(tokenizer, tmp_path):
    empty, blank, bad, two = (tmp_path / n for n in ("empty.txt", "blank.txt", "bad.jsonl", "two.jsonl"))
    later = tmp_path / "later.jsonl"
    later.write_text('{"text": "a"}\n{"texts": "b"}\n')
    empty.touch()
    blank.write_text(" \n ")
    bad.write_text('{"text": "a"}\n{"text": \n')
    two.write_text('{"title": "a", "body": "b"}\n')
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 not whole")
    (tmp_path / "a.pdf").write_text("x")
    (tmp_path / "nothing").mkdir()
    for text, more, error, says in [
        (empty, {}, ValueError, r"empty\.txt is empty"),
        (blank, {}, ValueError, "holds no text"),
        ([], {}, ValueError, "holds no text"),
        (["One.", 2], {}, ValueError, "hold 2, which is no text"),
        (17, {}, ValueError, "text=17 is no text"),
        (bad, {}, ValueError, "line 2 is not JSON"),
        (two, {}, ValueError, "column=: title, body"),
        (two, {"column": "text"}, ValueError, "column=: title, body"),
        (later, {}, ValueError, "line 2 has no text under 'text'"),
        (tmp_path / "cut.parquet", {}, ValueError, "not a whole parquet"),
        (tmp_path / "a.pdf", {}, ValueError, r"\.txt, \.jsonl, \.parquet"),
        (tmp_path / "nothing", {}, FileNotFoundError, "holds no"),
        (tmp_path / "absent.txt", {}, FileNotFoundError, r"No file .*absent\.txt"),
        (["one text"], {"split": "tset"}, ValueError, "No split 'tset'"),
        ("world", {"split": "all"}, ValueError, "No split 'all'"),
        (["One.", "Two."], {"split": "test"}, ValueError, "falls into split 'test'"),
        (["One."], {"context": 1, "split": "all"}, ValueError, "leaves no room"),
        (["One."], {"where": "entity.animal"}, ValueError, "text='world'"),
        ("no/such-data", {"split": "all"}, FileNotFoundError, "data set of that name cannot be read"),
    ]:
        with pytest.raises(error, match=says):
            token_blocks(tokenizer, text, **{"context": 64} | more).block(0)


def test_the_worlds_texts_come_with_their_labels(tokenizer):
    blocks = token_blocks(tokenizer, "world", context=64, documents=6)
    block = blocks.block(2)
    assert [block.text(block.first + i) for i in range(6)] == [t.text for t in block.texts]
    assert all(t.labels() for t in block.texts)
    assert same(blocks.block(2), block)


def test_the_embedded_llama_reads_texts_packed_as_it_was_trained():
    words = AutoTokenizer.from_pretrained(tiny.folder("tiny"))
    block = token_blocks(words, "world", documents=4).block(0)
    ids = block.ids[block.doc == 0].tolist()
    assert (ids[0], ids[-1]) == (words.bos_token_id, words.eos_token_id)
    assert words.decode(ids, skip_special_tokens=True) == block.text(0)
    assert token_blocks(little.tokenizer(), "world").describe()["eos"] is False
