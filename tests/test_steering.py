"""Steering with a direction whose effect is known."""

import copy

import pandas as pd
import pytest
import torch
from small import identity, small_llama

from sae_lab import steer, world
from sae_lab.models import load_model
from sae_lab.sites import Site
from sae_lab.steering import (
    BABBLE,
    candidates,
    direction,
    experiment,
    experiments,
    openings,
    shows,
    surprise,
    target,
    typical_activation,
)
from sae_lab.steering.experiments import _strength


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return small_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def sae(lm):
    """Its latent 0 writes the direction that the head reads as token 300 (layer 2 is the last)."""
    made = identity()
    made.origin = {"site": "L2R", "text": "world"}
    with torch.no_grad():
        head = lm.module.get_output_embeddings().weight[300] * lm.module.model.norm.weight
        made.W_dec[0] = head / head.norm()
    return made


def test_a_strong_enough_direction_decides_the_token(lm, sae):
    """At the last layer the logit of token 300 grows without bound along this direction."""
    steered = steer(sae, lm, {0: 1.0}, "Once", scale=(0.0, 1e4), max_new_tokens=3)
    untouched, pushed = steered.table.text
    assert pushed == lm.tokenizer.decode([300] * 3)
    assert untouched != pushed


def test_strength_zero_is_the_untouched_model(lm, sae):
    plain = lm.generate("Once", max_new_tokens=5).text
    assert steer(sae, lm, {0: 1.0}, "Once", scale=(0.0,), max_new_tokens=5).table.text[0] == plain


def test_several_latents_add_up(lm, sae):
    both = steer(sae, lm, {0: 2.0, 1: -1.0}, "Once", scale=(1.0,), max_new_tokens=1)
    edit = both.generation._edits[0][0]
    torch.testing.assert_close(edit.vector, 2 * sae.W_dec[0] - sae.W_dec[1])


def test_tokens_arrive_as_they_are_written(lm, sae):
    steps = list(steer(sae, lm, {0: 1.0}, "Once", max_new_tokens=4))
    assert [s.index for s in steps] == list(range(len(steps)))
    assert len(steps[0].texts) == 2


def test_typical_activation_is_the_mean_over_firings(lm, sae):
    from sae_lab.reading import walk
    from sae_lab.sites import Site
    from sae_lab.tokens import token_blocks

    blocks = token_blocks(lm.tokenizer, text="world", split="validation", context=128)
    x = torch.cat([p.acts["L2R"] for p in walk(lm, blocks, [Site("L2R")], 2000)])[:, 3]
    got = typical_activation(sae, lm, Site("L2R"), tokens=2000, context=128)[3].item()
    assert got == pytest.approx(x[x > 0].mean().item(), rel=1e-4)


def test_a_latent_that_never_fires_has_no_strength(lm, sae):
    silent = copy.deepcopy(sae)
    with torch.no_grad():
        silent.b_enc[5] = -1e9
    with pytest.raises(ValueError, match="Latent 5 never fires"):
        experiment(silent, lm, 5, "entity.animal.pet.dog", prompts=2, max_new_tokens=2)


def test_surprise_is_the_cross_entropy_of_the_new_tokens(lm):
    prompt, new = "The cat", " sat on the mat"
    ids, _ = lm.encode(prompt + new)
    first = lm.encode(prompt)[0].shape[1]
    logp = lm.logits(ids)[0, first - 1 : -1].log_softmax(-1)
    expected = -logp.gather(1, ids[0, first:, None]).mean().item()
    assert surprise(lm, [(prompt, new)]) == pytest.approx(expected, rel=1e-4)
    both = [(prompt, new), ("A much longer prompt than that", " is")]
    pieces = [(surprise(lm, [row]), len(lm.tokenizer(row[1], add_special_tokens=False).input_ids)) for row in both]
    assert surprise(lm, both) == pytest.approx(sum(s * n for s, n in pieces) / sum(n for _, n in pieces), rel=1e-4)


def test_a_strength_that_makes_the_model_babble_is_not_chosen():
    lm = load_model("tiny")  # a model that knows what text is likely
    dog, likely = "entity.animal.pet.dog", lm.generate("The", max_new_tokens=8).text
    unlikely = " dog ) Juni = écrit 7 def Wolf soup"
    texts = {("untouched", 0.0): [("The", likely)], ("latent", 1.0): [("The", likely)]}
    assert surprise(lm, [("The", unlikely)]) > surprise(lm, [("The", likely)]) + BABBLE
    assert _strength(lm, texts | {("latent", 2.0): [("The", unlikely)]}, dog) == 1.0
    sound = [("The dog", lm.generate("The dog", max_new_tokens=8).text)]
    assert _strength(lm, texts | {("latent", 2.0): sound}, dog) == 2.0


def test_a_concept_that_every_text_shows_cannot_be_steered_to(lm):
    with pytest.raises(ValueError, match=r"language\.english"):
        openings(lm, "language.english", 2, "test", 0)


def test_an_experiment_steers_by_typical_activations_and_controls_by_a_direction_as_long(lm, sae, monkeypatch):
    """What is asked of the model: the latent's direction times its typical activation, chosen on validation prompts."""
    asked = []
    generate = type(lm).generate

    def spy(self, prompt, edits=(None,), **how):
        asked.append((list(prompt), list(edits), how["seed"]))
        return generate(self, prompt, edits, **how)

    monkeypatch.setattr(type(lm), "generate", spy)
    concept = "entity.animal.pet.dog"
    found = experiment(sae, lm, 7, concept, strengths=(1.0, 3.0), prompts=30, max_new_tokens=2)
    typical = typical_activation(sae, lm, Site("L2R"))[7]
    wanted = sae.W_dec[7].norm() * typical
    edits = [e for _, of, _ in asked for e in of if e is not None]
    assert {e.strength for e in edits} == {1.0, 3.0}
    for edit in edits:
        torch.testing.assert_close(edit.vector.norm(), wanted.to(edit.vector.dtype), rtol=1e-4, atol=1e-5)
    first = [p for prompts, of, _ in asked if len(of) == 3 for p in prompts]
    assert first == openings(lm, concept, 16, "validation", 0)
    second = [p for prompts, of, _ in asked if len(of) == 5 for p in prompts]
    assert second == openings(lm, concept, 30, "test", 0)
    seeds = [seed for _, of, seed in asked if len(of) == 5]
    assert len(set(seeds)) == len(seeds) > 1  # no two parts share their random numbers
    assert set(found.table.edit) == {"untouched", "latent", "random latent"}
    with pytest.raises(ValueError, match="latents 0 to 63"):
        experiment(sae, lm, 9999, concept)


def rows(*concepts):
    row = {"latents": 0.9, "positives": 99}
    return pd.DataFrame([{"concept": name, "latent": 3 + i} | row for i, name in enumerate(concepts)])


def test_the_target_is_the_concept_that_is_written_more(lm, sae, monkeypatch):
    """Latent 0 writes " dog" whatever the prompt; the others change nothing that a reader of words could see."""
    dog, cat = "entity.animal.pet.dog", "entity.animal.pet.cat"
    made = copy.deepcopy(sae)
    token = lm.tokenizer(" dog", add_special_tokens=False).input_ids
    assert len(token) == 1
    head = lm.module.get_output_embeddings().weight[token[0]] * lm.module.model.norm.weight
    with torch.no_grad():
        made.W_dec[4] = 1e4 * head / head.norm()
    trying = {"prompts": 4, "max_new_tokens": 2}
    monkeypatch.setattr(experiments, "surprise", lambda lm, texts: 1.0)
    assert target(made, lm, rows(cat, dog), **trying).concept == dog
    monkeypatch.setattr(
        experiments, "surprise", lambda lm, texts: 9.0 if any(" dog" in new for _, new in texts) else 1.0
    )
    assert target(made, lm, rows(cat, dog), **trying).concept == cat  # who babbles steers nowhere


def test_candidates_are_concepts_a_reader_can_see_and_not_all_of_one_branch():
    readable = [c for c in world.recognisable() if c.startswith("entity.animal")][:5]
    assert len(readable) == 5
    table = rows("language", "form.digit", "language.english", *readable, "language.french")
    assert [row.concept for row in candidates(table, 3)] == [*readable[:3], "language.french"]
    few = rows(*readable)
    few.loc[0, "positives"] = 49
    assert [row.concept for row in candidates(few, 2)] == readable[1:3]


def test_a_latent_that_is_not_there_is_refused(sae):
    with pytest.raises(ValueError, match="latents 0 to 63"):
        direction(sae, 64)


def test_prompts_do_not_show_the_concept_they_will_be_steered_to(lm):
    concept = "entity.animal.pet.dog"
    for prompt in openings(lm, concept, 8, "test", 0):
        assert not shows(prompt, concept)
        assert len(prompt.split(" ")) == 8
