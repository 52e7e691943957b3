"""Contexts of latents whose firings are known exactly."""

import pytest
import torch
from small import identity, small_llama

from sae_lab import contexts
from sae_lab.reading import walk
from sae_lab.sites import Site
from sae_lab.tokens import token_blocks

TEXT = [f"Anna has {i} pears, and Bruno has {i * 3 % 17} plums. They are happy." for i in range(900)]
SMALL = {"site": "L1R", "text": TEXT, "split": "test", "tokens": 800, "context": 64}


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return small_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def pages(lm):
    blocks = token_blocks(lm.tokenizer, text=TEXT, split="test", context=64)
    return list(walk(lm, blocks, [Site("L1R")], 800))


def test_the_strongest_firing_comes_first_and_is_the_strongest_of_all(lm, pages):
    found = contexts(identity(), lm, [5], **SMALL)[5]
    peaks = [c.values[c.peak] for c in found]
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[0] == pytest.approx(max(p.acts["L1R"][:, 5].max().item() for p in pages), rel=1e-5)


def test_a_window_is_the_text_as_it_was(lm):
    for c in contexts(identity(), lm, [5], width=500, **SMALL)[5]:
        assert c.text in TEXT
        assert max(c.values) == c.values[c.peak]


def test_values_belong_to_their_tokens(lm, pages):
    """A latent that reads one direction: its value at a token equals the activation there."""
    c = contexts(identity(), lm, [5], width=500, **SMALL)[5][0]
    block, keep = pages[0].block, pages[0].keep
    doc = next(d for d in block.doc[keep].unique().tolist() if block.text(d) == c.text)
    x = pages[0].acts["L1R"][(block.doc[keep] == doc), 5]
    torch.testing.assert_close(torch.tensor(c.values), x.clamp(min=0).double().float(), atol=1e-5, rtol=1e-4)


def test_width_limits_the_window_around_the_peak(lm):
    for c in contexts(identity(), lm, [5], width=3, **SMALL)[5]:
        assert len(c.tokens) <= 7
        assert c.peak <= 3


def test_one_window_per_document_and_n_at_most(lm):
    found = contexts(identity(), lm, [5, 6], n=4, width=500, **SMALL)
    assert len(found[5]) == len(found[6]) == 4
    assert len({c.text for c in found[5]}) == 4


def test_density_counts_every_firing(lm, pages):
    found = contexts(identity(), lm, [5], n=1, **SMALL)
    x = torch.cat([p.acts["L1R"] for p in pages])[:, 5]
    assert found.density[5] == pytest.approx((x > 0).float().mean().item())


def test_a_latent_that_is_not_there_is_refused(lm):
    with pytest.raises(ValueError, match="latents 0 to 63"):
        contexts(identity(), lm, [64], **SMALL)


def test_windows_of_documents_longer_than_a_row_are_still_pieces_of_them(lm):
    long = [" ".join(f"Anna {i} has {j} pears and Bruno has {j * 3 % 17} plums." for j in range(30)) for i in range(12)]
    options = {"site": "L1R", "text": long, "split": "all", "tokens": 10**6, "context": 64, "n": 99}
    found = contexts(identity(), lm, [5, 6], **options)
    for latent in (5, 6):
        assert len(found[latent]) <= 12 * 3  # sections of documents count as documents
        assert all(any(c.text in document for document in long) for c in found[latent])


def test_the_table_has_a_row_per_window(lm):
    found = contexts(identity(), lm, [5], n=3, **SMALL)
    assert found.table.latent.tolist() == [5, 5, 5]
    assert "<<" in repr(found[5][0])
