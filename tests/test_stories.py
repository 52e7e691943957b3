"""The real pretrained Llama of 260,000 parameters, where it lies beside the repository: train, evaluate, steer."""

import json
from itertools import islice

import pytest
import torch
from transformers import AutoModelForCausalLM

import sae_lab as sl


@pytest.fixture(scope="module")
def lm(stories):
    return sl.load_model(str(stories))


@pytest.fixture(scope="module")
def sae(lm, stories_text, tmp_path_factory):
    """250,000 tokens at layer 3, on the file's own train split."""
    source = sl.activations(lm, "L3R", text=str(stories_text), seed=0)
    made = sl.build("batchtopk", d_in=lm.d_model, d_sae=512, k=16)
    run = tmp_path_factory.mktemp("runs") / "stories"
    for _ in sl.train(made, source, tokens=250_000, batch=1024, lr=2e-3, run=run, about={"model": lm.name}):
        pass
    return sl.load_sae(run)


def test_an_sae_of_a_real_model_keeps_it(sae, lm):
    """Most of the loss that zeros cost comes back, on stories of the file that no training saw."""
    e = sl.evaluate(sae, lm, tokens=14_000, spliced=6_000)
    assert e.ce_recovered.value > 0.95
    assert e.ce_recovered_mean.value > 0.8
    assert e.fvu.value < 0.2
    assert abs(e.l0.value - 16) < 1.6
    assert e.dead.value < 0.1


def test_its_loss_is_the_one_that_plain_transformers_gives(sae, lm, stories_text):
    texts = [json.loads(line)["text"] for line in islice(stories_text.open(), 30)]
    texts = [text for text in texts if len(text) < 1000]
    e = sl.evaluate(sae, lm, text=texts, split="all", tokens=1_000, spliced=10_000)
    plain = AutoModelForCausalLM.from_pretrained(lm.name).eval()
    total = count = 0
    for text in texts:
        ids, _ = lm.encode(text)
        assert ids.shape[1] <= lm.context
        with torch.no_grad():
            total += plain(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    assert e.about["spliced_tokens"] == count
    assert e.ce_clean.value == pytest.approx(total / count, rel=1e-4)


def test_contexts_are_words_of_the_stories(sae, lm):
    latent = int(sl.evaluate(sae, lm, tokens=4_000, spliced=1_000).density.argmax())
    shown = sl.contexts(sae, lm, [latent], n=2, tokens=4_000)[latent]
    assert len(shown) == 2
    assert all(max(c.values) > 0 and c.text.strip() for c in shown)


def test_steering_a_real_model_changes_what_it_writes_the_more_the_stronger(sae, lm):
    prompt, scale = "Once upon a time, there was a", (0.0, 1.0, 4.0)
    latent = int(sl.evaluate(sae, lm, tokens=4_000, spliced=1_000).density.argsort()[-20])
    typical = sl.steering.typical_activation(sae, lm, sl.Site("L3R"), tokens=4_000)[latent].item()
    steered = sl.steer(sae, lm, {latent: 8 * typical}, prompt, scale=scale, max_new_tokens=20)
    untouched, weak, strong = steered.table.text
    assert untouched == lm.generate(prompt, max_new_tokens=20).text
    surprise = [sl.steering.surprise(lm, [(prompt, text)]) for text in (untouched, weak, strong)]
    assert surprise[0] < surprise[1] < surprise[2]
    ids, _ = lm.encode(prompt)
    pushed = lm.splice(ids, "L3R", lambda x: x + 8 * typical * sae.W_dec[latent])
    assert torch.all(pushed.kl[pushed.counts] > 0)
