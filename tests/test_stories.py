"""The real pretrained Llama of 260,000 parameters, where it lies beside the repository: train, evaluate, steer."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

import sae_lab as sl


@pytest.fixture(scope="module")
def lm(stories):
    return sl.load_model(str(stories))


@pytest.fixture(scope="module")
def runs(lm, stories_text, tmp_path_factory):
    """250,000 tokens at layer 3, on the file's own train split: 512 latents, 128 and 512 again."""
    source = sl.activations(lm, "L3R", text=str(stories_text), seed=0)
    made = [sl.build("batchtopk", d_in=lm.d_model, d_sae=d, k=16, seed=s) for s, d in enumerate((512, 128, 512))]
    folders = [tmp_path_factory.mktemp("runs") / name for name in ("stories", "narrow", "other")]
    for _ in sl.train(made, source, tokens=250_000, batch=1024, lr=2e-3, run=folders, about={"model": lm.name}):
        pass
    return folders


@pytest.fixture(scope="module")
def sae(runs):
    return sl.load_sae(runs[0])


def test_an_sae_of_a_real_model_keeps_it(sae, lm):
    """Most of the loss that zeros cost comes back, on stories of the file that no training saw."""
    e = sl.evaluate(sae, lm, tokens=14_000, spliced=6_000)
    assert e.ce_recovered.value > 0.95
    assert e.ce_recovered_mean.value > 0.8
    assert e.fvu.value < 0.2
    assert abs(e.l0.value - 16) < 1.6
    assert e.dead.value < 0.1


def test_its_loss_is_the_one_that_plain_transformers_gives(lm, stories_text):
    texts = [json.loads(line)["text"] for line in stories_text.read_text().splitlines()[:30]]
    texts = [text for text in texts if len(text) < 1000]
    sae = sl.build("random", d_in=lm.d_model, d_sae=128, k=4)
    e = sl.evaluate(sae, lm, site="L3R", text=texts, split="all", tokens=1_000, spliced=10_000)
    plain = AutoModelForCausalLM.from_pretrained(lm.name).eval()
    total = count = 0
    for text in texts:
        ids, _ = lm.encode(text)
        with torch.no_grad():
            logp = plain(ids).logits[0, :-1].log_softmax(-1)
        special = lm.special(ids)[0]  # an unknown character is one, too
        counts = ~special[1:] & ~special[:-1]  # no prediction of, nor at, a special token is counted
        total -= logp.gather(1, ids[0, 1:, None])[:, 0][counts].sum().item()
        count += int(counts.sum())
    assert e.about["spliced_tokens"] == count
    assert e.ce_clean.value == pytest.approx(total / count, rel=2e-3)  # rows hold several stories, read as one text


def test_contexts_are_words_of_the_stories(sae, lm):
    latent = int(sl.evaluate(sae, lm, tokens=4_000, spliced=1_000).density.argmax())
    shown = sl.contexts(sae, lm, [latent], n=2, tokens=4_000)[latent]
    assert len(shown) == 2
    assert all(max(c.values) > 0 and c.text.strip() for c in shown)


def test_steering_a_real_model_changes_what_it_writes(sae, lm):
    prompt, scale = "Once upon a time, there was a", (0.0, 1.0, 4.0)
    latent = int(sl.evaluate(sae, lm, tokens=4_000, spliced=1_000).density.argsort()[-20])
    typical = sl.steering.typical_activation(sae, lm, sl.Site("L3R"), tokens=4_000)[latent].item()
    steered = sl.steer(sae, lm, {latent: 8 * typical}, prompt, scale=scale, max_new_tokens=20)
    untouched, weak, strong = steered.table.text
    assert untouched == lm.generate(prompt, max_new_tokens=20).text
    surprise = [sl.steering.surprise(lm, [(prompt, text)]) for text in (untouched, weak, strong)]
    assert surprise[0] + 0.5 < min(surprise[1:])
    ids, _ = lm.encode(prompt)
    pushed = lm.splice(ids, "L3R", lambda x: x + 8 * typical * sae.W_dec[latent])
    assert torch.all(pushed.kl[pushed.counts] > 0)


def test_faithfulness_goes_on_past_the_middle_of_a_story_and_a_base_model_has_no_chat(sae, lm):
    found = sl.by_position(sae, lm, length=200, width=50, trained=100, tokens=6_000)
    assert all(e.value < 0.25 for e in found.numbers["fvu"])
    assert abs(found.beyond["fvu"].value) < 0.1
    with pytest.raises(ValueError, match="has no chat format"):
        sl.transfer(sae, lm, lm, site="L3R")


def test_an_sae_agrees_with_itself_on_what_the_world_calls_things(sae, lm):
    """The model never read the world; its latents still fire there, and a matched copy on the same tokens."""
    found = sl.agree(sae, sae, lm, tokens=6_000)
    assert found.pairs.jaccard.min() == found.pairs.concept.sub(found.pairs.concept_ceiling).abs().add(1).max() == 1


def test_latents_of_stories_are_explained_by_rules_and_by_no_labels(runs, lm):
    found = sl.explain(runs[0], lm, range(30), tokens=20_000)
    assert len(found) + len(found.refused) == 30 and len(found) > 20
    assert found.mean("detection").low > 0.55 and found.mean("simulation").low > 0.3
    with pytest.raises(ValueError, match="no labels to explain by: take text='world'"):
        sl.explain(runs[0], lm, range(3), explainer="label", tokens=2_000)


def test_splits_of_a_real_model_stand_beside_their_null_and_in_one_map(runs, lm):
    wide, narrow, other = map(sl.load_sae, runs)
    found = sl.split([narrow, wide], lm, null=[wide, other], tokens=6_000)
    shares = found.table.set_index(["of", "kind"])
    assert shares.loc["children", "share"].sum() == pytest.approx(1) == shares.loc["children", "null"].sum()
    assert shares.loc[("children", "shared"), "share"] < 0.2  # so short a training: seeds share little, widths no more
    shown = sl.map_latents([narrow, wide], lm, tokens=4_000).wait()
    assert shown.umap.shape == (640, 2) and shown.trustworthiness["umap"] > shown.trustworthiness["pca"] > 0.5


def test_a_prompt_of_a_real_model_is_attributed_and_tokens_are_named_by_their_text(sae, lm):
    """Its tokenizer makes two tokens of " a" and puts a space in front of "a"; both mean what they say here."""
    prompt, logits = "Once upon a time, there was", {}
    for name, mark in ((" a", "\u2581a"), ("a", "a"), (" the", "\u2581the")):
        found = sl.attribute(sae, lm, prompt, name, top=5).table.set_index("node")
        logits[name] = found.gradient_x_activation["total"], found.activation.notna().sum()
        assert lm.words([lm.tokenizer.convert_tokens_to_ids(mark)]) == [name]
    assert logits[" a"] != logits["a"] and {n for _, n in logits.values()} == {5}
    with pytest.raises(ValueError, match="give one that is a single token"):
        sl.attribute(sae, lm, prompt, " little house")
