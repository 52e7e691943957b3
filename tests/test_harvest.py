"""Activations: the rows that come out are those that went in, shuffled, scaled and resumed exactly."""

import json

import little
import pytest
import torch

from sae_lab.harvest import activations
from sae_lab.harvest import stream as ring
from sae_lab.models import load_model

STORIES = [" ".join(f"cat {i} sat on mat {j}." for j in range(1 + i % 4)) for i in range(400)]


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return load_model(little.save(tmp_path_factory.mktemp("llama")))


def stream(lm, sites="L1R", **options):
    return activations(lm, sites, STORIES, **{"buffer": 512, "documents": 16, "split": "all"} | options)


def address(rows):
    """One number for each row's token."""
    return (rows.doc * 1000 + rows.position).tolist()


def equal(a, b):
    fields = ("x", "target", "doc", "position")
    return all(torch.equal(getattr(a[s], f), getattr(b[s], f)) for s in a for f in fields) and list(a) == list(b)


def reference(lm, source, site, blocks):
    """{address: activation} of every counted token, read block by block without a stream."""
    found = {}
    for i in range(blocks):
        block = source.blocks.block(i)
        x = lm.read(block.ids, site, block.mask)[site]
        for r, c in block.keep.nonzero().tolist():
            found[int(block.doc[r, c]) * 1000 + int(block.position[r, c])] = x[r, c]
    return found


def test_rows_are_the_models_activations_with_their_addresses(lm):
    source = stream(lm, ["L1R", "L0TC"], buffer=256)
    expected = {s: reference(lm, source, s, 4) for s in ("L1R", "L0TC", "L0M")}
    for _ in range(3):
        batch = source.next(64)
        assert list(batch) == ["L1R", "L0TC"]
        r, tc = batch["L1R"], batch["L0TC"]
        assert address(r) == address(tc)
        for found, site in ((r.x, "L1R"), (r.target, "L1R"), (tc.x, "L0TC"), (tc.target, "L0M")):
            torch.testing.assert_close(
                found, torch.stack([expected[site][a] for a in address(r)]), rtol=1e-4, atol=1e-5
            )


def test_every_token_is_served_at_most_once_and_special_ones_never(lm):
    source, seen = stream(lm), []
    for _ in range(40):
        seen += address(source.next(128)["L1R"])
    assert len(set(seen)) == len(seen) == source.served == 40 * 128
    assert min(a % 1000 for a in seen) == 1, "position 0 is the BOS"
    source.state()
    waiting = set((source._ring["doc"] * 1000 + source._ring["position"]).tolist()) - set(seen)
    first = set(reference(lm, source, "L1R", 6))
    assert first <= set(seen) | waiting, "nothing is lost on the way"


def test_a_batch_mixes_documents_and_neighbours_do_not_come_in_order(lm):
    source = stream(lm, buffer=4096)
    batch = source.next(128)["L1R"]
    assert len(batch.doc.unique()) > 60
    plain = stream(lm, buffer=4096)
    plain.next(128)
    later = [source.next(128)["L1R"] for _ in range(20)][-1]
    spread = later.doc.float().std()
    assert spread > 10
    assert (later.doc.diff() < 0).sum() > 20


def test_streams_are_equal_for_equal_seeds_only(lm):
    a, b, c = stream(lm), stream(lm), stream(lm, seed=1)
    b.statistics("L1R")  # asking for it changes nothing
    assert all(equal(a.next(64), b.next(64)) for _ in range(8))
    assert not equal(a.next(64), c.next(64))


@pytest.mark.parametrize("batches", [0, 1, 7, 23])
@pytest.mark.parametrize("saved", [True, False])
def test_a_stream_resumes_bit_for_bit(lm, monkeypatch, batches, saved):
    options = {"sites": ["L2TC", "L1R"], "buffer": 512, "needs": {"grad"}}
    if not saved:
        monkeypatch.setattr(ring, "SAVED_RING", 0)
    source = stream(lm, **options)
    for _ in range(batches):
        source.next(48)
    source.contexts(5)
    tensors, told = source.state()
    told = json.loads(json.dumps(told))
    assert ("ring.L1R" in tensors) == saved
    tensors = {k: v.clone() for k, v in tensors.items()}
    resumed = stream(lm, **options)
    resumed.restore(tensors, told)
    assert resumed.served == batches * 48
    for _ in range(15):
        one, two = source.next(48), resumed.next(48)
        assert equal(one, two)
        assert torch.equal(one["L1R"].grad, two["L1R"].grad)
    assert torch.equal(source.contexts(9).ids, resumed.contexts(9).ids)
    assert resumed.statistics("L2M").mean_square == source.statistics("L2M").mean_square
    assert torch.equal(resumed.statistics("L1R").mean, source.statistics("L1R").mean)


def test_a_state_does_not_change_when_the_stream_goes_on(lm):
    source = stream(lm)
    source.next(64)
    tensors, _ = source.state()
    before = {k: v.clone() for k, v in tensors.items()}
    for _ in range(5):
        source.next(64)
    assert all(torch.equal(before[k], tensors[k]) for k in before)


def test_a_state_of_another_stream_is_refused(lm):
    tensors, told = stream(lm).state()
    with pytest.raises(ValueError, match=r"'seed': 0.*'seed': 3"):
        stream(lm, seed=3).restore(tensors, told)
    other = activations(lm, "L1R", STORIES[1:], buffer=512, documents=16, split="all")
    with pytest.raises(ValueError, match="digest"):
        other.restore(tensors, told)


def test_statistics_are_those_of_the_first_tokens(lm):
    source = stream(lm, ["L0TC"], buffer=300)
    s = source.statistics("L0M")
    every = reference(lm, source, "L0M", 6)
    first = torch.stack(list(every.values())[:300])
    assert s.tokens == 300 < len(every)
    assert s.mean_norm == pytest.approx(first.norm(dim=-1).mean().item(), rel=1e-5)
    assert s.mean_square == pytest.approx(first.square().sum(-1).mean().item(), rel=1e-5)
    torch.testing.assert_close(s.mean, first.mean(0), rtol=1e-4, atol=1e-6)
    assert source.statistics("L0TC").mean_square == pytest.approx(lm.d_model, rel=0.05)


def test_gradients_come_with_their_rows(lm):
    source = stream(lm, "L1R", needs={"grad"}, buffer=128)
    batch = source.next(64)["L1R"]
    expected = {}
    for i in range(3):
        block = source.blocks.block(i)
        g = lm.gradients(block.ids, "L1R", mask=block.mask)
        for r, c in block.keep.nonzero().tolist():
            expected[int(block.doc[r, c]) * 1000 + int(block.position[r, c])] = g[r, c]
    torch.testing.assert_close(batch.grad, torch.stack([expected[a] for a in address(batch)]), rtol=1e-3, atol=1e-4)
    assert batch.grad.abs().sum(-1).gt(0).float().mean() > 0.8
    assert stream(lm).next(64)["L1R"].grad is None


def test_contexts_are_whole_rows_in_reading_order_that_hold_as_many_tokens_as_asked(lm):
    source, blocks = stream(lm), [stream(lm).blocks.block(i) for i in range(8)]
    counted = blocks[0].keep.sum(1)
    asked = (int(counted[:3].sum()), 700, 1, 300)
    parts = [source.contexts(n) for n in asked]
    assert torch.equal(parts[0].ids, blocks[0].ids[:3, : parts[0].ids.shape[1]])
    rows = [row[m].tolist() for p in parts for row, m in zip(p.ids, p.mask)]
    assert rows == [row[m].tolist() for b in blocks for row, m in zip(b.ids, b.mask)][: len(rows)]
    kept = torch.cat([b.keep.sum(1) for b in blocks]).tolist()
    for n, part in zip(asked, parts):
        found, whole = part.keep.sum(1).tolist(), [kept.pop(0) for _ in part.ids]
        assert found[:-1] == whole[:-1] and 0 < found[-1] <= whole[-1] and sum(found) == n
        last = part.keep[-1].nonzero()[:, 0]
        assert not part.keep[-1, last[-1] + 1 :].any() and part.mask[-1].sum() > whole[-1], "no token is cut off"
    lm.read(parts[1].ids, "L0R", parts[1].mask)


def test_a_ring_grows_to_two_batches_and_leaves_no_slot_unserved(lm):
    source = stream(lm, buffer=100)
    seen = [a for _ in range(6) for a in address(source.next(96)["L1R"])]
    assert len(source._ring["doc"]) == 192
    assert len(set(seen)) == len(seen)
    uneven = stream(lm, buffer=250)
    uneven.next(100)
    assert len(uneven._ring["doc"]) == 200


def test_a_stream_can_be_made_again_from_its_description(lm, tmp_path):
    file = tmp_path / "stories.txt"
    file.write_text("<|endoftext|>".join(STORIES))
    source = activations(lm, ["L1R", "L0M"], file, seed=4, context=48, buffer=256, documents=8, split="all")
    about = json.loads(json.dumps(source.describe()))
    model, dtype, digest = (about.pop(k) for k in ("model", "dtype", "digest"))
    again = activations(load_model(model, dtype=dtype), **about)
    assert equal(source.next(32), again.next(32))
    assert again.describe()["digest"] == digest


def test_mistakes_are_told_with_the_way_out(lm):
    for call, says in [
        (lambda: stream(lm, "L9R"), "No site L9R"),
        (lambda: stream(lm, context=65), "context=65 is beyond the 64 tokens"),
        (lambda: stream(lm, needs={"gradient"}), r"can hold \['grad', 'patched_kl'\]"),
        (lambda: stream(lm).statistics("L0R"), "only of L1R"),
        (lambda: activations(lm, "L0R", []), "holds no text"),
    ]:
        with pytest.raises(ValueError, match=says):
            call()
    source = stream(lm)
    source.next(32)
    with pytest.raises(ValueError, match="same n each time"):
        source.next(33)


def test_a_real_model_gives_a_stream_of_real_text(stories, stories_text):
    source = activations(load_model(stories), ["L3R", "L2TC"], stories_text, context=256, buffer=4096)
    for _ in range(3):
        batch = source.next(512)
    assert batch["L3R"].x.shape == (512, 64)
    assert source.statistics("L2TC").mean_square == pytest.approx(64, rel=0.01)
    assert 50 < source.statistics("L3R").mean_square < 200
