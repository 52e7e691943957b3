"""Dose and response: each number by hand on a small model, baselines, and curves of known answer."""

import json
from collections import Counter
from zlib import crc32

import numpy as np
import pytest
import torch
from small import identity, small_llama
from transformers import AutoModelForCausalLM

import sae_lab as sl
from sae_lab.models import Edit, load_model
from sae_lab.steering import BASELINES, Curve, Push, activity
from sae_lab.steering.baselines import ASKED, MEANS, RANDOM, Beside, asked, converses, mean, wish, worlds
from sae_lab.steering.measuring import Counts, Text

DOG, PROMPTS = (
    " dog",
    tuple(f"One {day} the old baker" for day in ("day", "night", "morning", "evening", "year", "time")),
)


def dog(text):
    return DOG in text


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return small_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def plain(lm):
    return AutoModelForCausalLM.from_pretrained(lm.name).eval()


@pytest.fixture(scope="module")
def sae(lm):
    """Its latent 0 writes the direction that the head reads as " dog" (layer 2 is the last)."""
    made = identity()
    made.origin = {"site": "L2R", "text": "world"}
    (token,) = lm.tokenizer(DOG, add_special_tokens=False).input_ids
    with torch.no_grad():
        head = lm.module.get_output_embeddings().weight[token] * lm.module.model.norm.weight
        made.W_dec[0] = 3 * head / head.norm()
    return made


HOW = {"prompts": PROMPTS, "max_new_tokens": 8, "strengths": (0.0, 1.0, 40.0)}


@pytest.fixture(scope="module")
def found(lm, sae):
    return sl.doses(sae, lm, Push(0), dog, **HOW, wanted="a story about a dog", examples=(["a dog dog"], ["the cat"]))


def test_nothing_moves_at_strength_0_and_enough_of_the_direction_writes_the_concept(found):
    table = found.table.set_index(["intervention", "strength"])
    assert set(found.curves) == {"untouched", "add 0", *BASELINES}
    zero = table.loc[[(name, 0.0) for name in ("untouched", "add 0", MEANS, RANDOM)]]
    assert (zero[["kl", "kl_low", "kl_high"]] == 0).all(axis=None)
    assert zero.ce.nunique() == 1  # the same texts
    assert table.loc[("add 0", 40.0), "effect"] == 1 > table.loc[(RANDOM, 40.0), "effect"]
    assert table.loc[("add 0", 40.0), "repetition"] == pytest.approx(4 / 5)  # 8 dogs: 5 grams, all one
    assert table.loc[("add 0", 40.0), "kl"] > table.loc[("add 0", 1.0), "kl"] > 0
    assert table.loc[("add 0", 40.0), "effect_low"] > 0.5
    for number in ("effect", "kl", "ce", "repetition"):
        low, value, high = (table[number + end] for end in ("_low", "", "_high"))
        assert (low <= value + 1e-9).all() and (value <= high + 1e-9).all()
    assert all([prompt for prompt, _ in texts] == list(PROMPTS) for texts in found.texts.values())
    assert found.texts["add 0", 40.0][0][1] == 8 * DOG


def test_all_of_it_is_told(found):
    told = json.loads(json.dumps(found.to_json()))
    assert len(told["table"]) == len(found.table) and told["about"]["left_out"] == []
    assert told["about"]["asked"] == "in front of the prompt: 'A story about a dog.\\n\\n'"
    assert "Doses for dog at L2R, 6 prompts" in repr(found)
    assert [line.name for line in found.figure.data] == list(found.curves)
    with pytest.raises(KeyError, match="No intervention 'add 1'"):
        found["add 1"]


def test_the_sums_of_a_text_are_those_of_two_runs_by_hand(lm, plain, sae):
    """KL(clean || steered) and the clean model's loss at the new tokens alone; 4-grams; activations read clean."""
    v = torch.randn(32, generator=torch.Generator().manual_seed(1))
    texts = [
        Text(0, 1, [0, 300, 301], [0, 300, 301], [400, 401, 402, 400, 401, 402, 400, 401], (Edit("L2R", v, 2.0),)),
        Text(1, 0, [0, 310, 311, 312], [0, 310, 311, 312], [500, 501], (Edit("L1R", v, 3.0, prompt=False),)),
        Text(1, 1, [0, 320], [0, 700, 701, 320], [600, 601, 602], ()),  # asked: the model saw more
        Text(0, 0, [0, 330], [0, 330], [], ()),
    ]
    bos = lm.tokenizer.bos_token_id
    texts = [Text(t.row, t.prompt, [bos, *t.head[1:]], [bos, *t.behind[1:]], t.new, t.edits) for t in texts]
    counts = Counts(2, 2, sae.cfg.d_sae)
    counts.add(lm, sae, sl.Site("L2R"), texts)
    for t in texts[:3]:
        n, whole = len(t.new), torch.tensor([t.head + t.new])
        with torch.no_grad():
            out = plain(whole, output_hidden_states=True)
        p = out.logits[0, -n - 1 : -1].log_softmax(-1)
        where = torch.ones(1, len(t.behind) + n, dtype=torch.bool)
        where[0, : 1 if not t.edits or t.edits[0].prompt else len(t.behind)] = False
        fns = {e.site: lambda x, e=e: x + e.strength * e.vector for e in t.edits} or {"L2R": lambda x: x}
        q = lm.splice(torch.tensor([t.behind + t.new]), fns, where=where).logits[0, -n - 1 : -1].log_softmax(-1)
        kl, nats = (p.exp() * (p - q)).sum().item(), -p.gather(1, torch.tensor(t.new)[:, None]).sum().item()
        assert kl > 0.01
        assert counts.sums["kl"][t.row, t.prompt] == pytest.approx(kl, rel=1e-3)
        assert counts.sums["ce"][t.row, t.prompt] == pytest.approx(nats, rel=1e-4)
        assert counts.sums["tokens"][t.row, t.prompt] == n
        x = lm.read(whole, "L2R")["L2R"][0, -n:]
        z = torch.cat([x, -x], 1).clamp(min=0).sum(0)
        np.testing.assert_allclose(counts.fired(t.row)[[t.prompt]].toarray()[0], z, rtol=1e-3, atol=1e-4)
    assert counts.sums["grams"].tolist() == [[0, 5], [0, 0]]
    assert counts.sums["repeated"].tolist() == [[0, 2], [0, 0]]
    assert counts.sums["tokens"][0, 0] == 0


def test_every_intervention_writes_on_the_same_prompts_with_the_same_chances(lm, sae, monkeypatch):
    """All edits of a prompt in one generation; baselines as long as what is pushed, at its positions."""
    asked_of, generate = [], type(lm).generate

    def spy(self, prompt, edits=(None,), **how):
        asked_of.append((list(prompt), [tuple(e or ()) for e in edits], how["seed"]))
        return generate(self, prompt, edits, **how)

    monkeypatch.setattr(type(lm), "generate", spy)
    pushes = [Push(1, "add", 2.0, 3.0, "generated"), Push(2, "add", 1.0, 4.0, "generated")]
    found = sl.doses(sae, lm, pushes, "language.french", prompts=PROMPTS, strengths=(1.0, 2.0), max_new_tokens=2)
    length = (2 * 3 * sae.W_dec[1] / sae.W_dec[1].norm() + 4 * sae.W_dec[2] / sae.W_dec[2].norm()).norm().item()
    assert found.about["length"] == pytest.approx(length, rel=1e-5)
    ((prompts, edits, seed), (asking, one, same)) = asked_of
    assert prompts == list(PROMPTS) and len(edits) == 7 and seed == same and one == [()]
    assert asking == [f"A story in French.\n\n{p}" for p in PROMPTS]
    sizes = [sum(e.strength * e.vector for e in row).norm().item() for row in edits[1:]]
    assert sizes == pytest.approx([length, 2 * length] * 3, rel=1e-5)
    assert all(e.prompt is False and e.new for row in edits for e in row)


def test_a_difference_of_means_is_learnt_on_validation_texts(lm):
    with_it, without = worlds("language.french", 0)
    assert len(with_it) == len(without) == 64
    assert {crc32(t.encode()) % 16 for t in (*with_it, *without)} == set(sl.world.RESIDUES["validation"])
    assert all("language.french" in {c for *_, c in sl.world.recognise(t)} for t in with_it[:5])
    site = sl.Site("L1R")
    expected = []
    for texts in (with_it[:9], without[:9]):
        rows = [lm.read(ids[:, : lm.context], site)[site][0, 1:] for ids, _ in map(lm.encode, texts)]
        expected.append(torch.cat(rows).mean(0))
        torch.testing.assert_close(mean(lm, site, texts), expected[-1], rtol=1e-4, atol=1e-5)
    beside = Beside.of(lm, site, "none", [], (MEANS, RANDOM), (with_it[:9], without[:9]), None, 0)
    gap = expected[0] - expected[1]
    torch.testing.assert_close(beside.vectors[MEANS], gap / gap.norm(), rtol=1e-3, atol=1e-4)
    assert beside.vectors[RANDOM].norm().item() == pytest.approx(1.0, abs=1e-5)
    assert abs(beside.vectors[RANDOM] @ beside.vectors[MEANS]) < 0.6


def test_asking_is_in_the_chat_format_where_there_is_one():
    assert wish("language.spanish") == "a story in Spanish"
    assert wish("register.letter") == "a letter"
    assert wish("topic.garden") == "a story about the garden"
    assert wish("entity.animal.pet.dog") == "a story with a dog in it"
    base, chat = load_model("tiny"), load_model("tiny-chat")
    assert base.tokenizer.chat_template and not converses(base)  # it has the format, and was never trained on it
    assert converses(chat)
    (prompt,), how = asked("a letter", ["Dear Anna,"], None)
    assert prompt == "A letter.\n\nDear Anna," and "in front of the prompt" in how
    beside = Beside.of(chat, sl.Site("L1R"), "language.spanish", ["Dear", "One"], (ASKED,), ([], []), None, 0)
    assert (
        beside.free and beside.left == [] and beside.asked == "in the chat format: 'Please write a story in Spanish.'"
    )
    assert len(beside.prompts) == 2 and beside.prompts[0] == beside.prompts[1]
    ids = chat.encode(beside.prompts[0])[0][0].tolist()
    assert ids.count(chat.tokenizer.bos_token_id) == 1 and len(set(ids) & set(chat.special_ids)) >= 3
    greedy = Beside.of(chat, sl.Site("L1R"), "language.spanish", ["a"], (ASKED,), ([], []), None, 0, sampled=False)
    assert greedy.left == [ASKED] and greedy.prompts == []


def test_a_chat_model_that_is_asked_answers_and_is_read_by_its_answer():
    chat, sae = load_model("tiny-chat"), identity(192)
    sae.origin = {"site": "L2R", "text": "world"}
    how = {"strengths": (1.0,), "baselines": (ASKED,), "max_new_tokens": 24, "prompts": PROMPTS}
    found = sl.doses(sae, chat, Push(0, unit=1.0), "language.spanish", **how)
    table = found.table.set_index("intervention")
    assert table.effect[ASKED] > 0.6 > table.effect["untouched"] == 0
    assert all(prompt == "" and new for prompt, new in found.texts[ASKED, 1.0])
    assert table.kl[ASKED] > 0.05 and 0 < table.ce[ASKED] < 3


def test_a_baseline_that_nobody_can_make_is_said_to_be_missing(lm, sae):
    found = sl.doses(sae, lm, Push(0, unit=1.0), dog, prompts=PROMPTS[:2], strengths=(1.0,), max_new_tokens=1)
    assert found.about["left_out"] == [MEANS, ASKED] and set(found.curves) == {"untouched", "add 0", RANDOM}


def test_other_latents_that_move_are_found_on_some_prompts_and_measured_on_others():
    """Latent 2 is twice its spread higher on all prompts, latent 3 on those alone where latents are chosen."""
    counts, prompts = Counts(2, 40, 5), np.arange(40)
    counts.sums["tokens"][:] = 10
    rng = np.random.default_rng(0)
    for row in (0, 1):
        level = np.full((40, 5), 30.0) + rng.normal(0, 1, (40, 5))
        if row:
            level[:, 2] += 2 * 4.0 * 10
            level[::2, 3] += 3 * 4.0 * 10
        for latent in range(5):
            counts._fired[row].append(np.stack([prompts, np.full(40, latent), level[:, latent]]))
    table = counts.side([("untouched", 0.0), ("add 1", 1.0)], np.array([4.0, 4.0, 4.0, 4.0, 0.0]), [1]).set_index(
        "latent"
    )
    assert list(table.index[:2]) == [3, 2] and set(table.index) == {0, 2, 3}  # 1 is pushed, 4 never varies
    assert table.moved[2] == pytest.approx(2.0, abs=0.05) and table.moved_low[2] > 1.9
    assert table.moved[3] == pytest.approx(0.0, abs=0.05) and table.moved_low[3] < 0 < table.moved_high[3]


def test_side_effects_leave_the_pushed_latent_out(found, lm, sae):
    assert set(found.side.columns) >= {"intervention", "strength", "latent", "moved", "moved_low", "moved_high"}
    assert 0 not in set(found.side.latent) and (found.side.moved_low <= found.side.moved_high).all()
    still = found.side[(found.side.intervention == "add 0") & (found.side.strength == 0.0)]
    assert (still.moved == 0).all()
    assert found.side[(found.side.intervention == "add 0") & (found.side.strength == 40.0)].moved.abs().max() > 0.3
    assert activity(sae, lm).spread.min() > 0


def curve(name, kl, effect, prompts=100, concept="c"):
    """A curve of given KL and effect at each strength, the same tokens in every text."""
    names, tokens = tuple(map(str, range(prompts))), np.full((len(kl), prompts), 7.0)
    shown = np.array([np.arange(prompts) < round(e * prompts) for e in effect], float)
    sums = {"tokens": tokens, "kl": np.array(kl)[:, None] * tokens, "ce": tokens, "grams": tokens, "repeated": tokens}
    return Curve(name, concept, names, tuple(range(len(kl))), shown, sums)


def test_two_curves_are_compared_at_equal_kl_and_not_at_equal_strength():
    """The weaker at each strength is the better one: it reaches 0.2 + 0.4 KL, the other 0.1 + 0.2 KL."""
    a, b = curve("a", [0.5, 1.0, 1.5], [0.4, 0.6, 0.8]), curve("b", [1.0, 2.0, 4.0], [0.3, 0.5, 0.9])
    assert (a.table.effect.to_numpy()[:2] > b.table.effect.to_numpy()[:2]).all()
    found = sl.frontier(a, b, at=(1.0, 1.25, 1.5))
    assert found.table.a.tolist() == pytest.approx([0.6, 0.7, 0.8])
    assert found.table.b.tolist() == pytest.approx([0.3, 0.35, 0.4])
    assert found.table.difference.tolist() == pytest.approx([0.3, 0.35, 0.4])
    assert found.difference.value == pytest.approx(0.35) and found.difference.low > 0.2
    assert (found.about["low"], found.about["high"]) == (1.0, 1.5)
    back = sl.frontier(b, a)
    assert back.difference.value == pytest.approx(-0.35)
    assert back.table.kl.tolist() == pytest.approx([1.0, 1.125, 1.25, 1.375, 1.5])
    assert json.loads(json.dumps(found.to_json()))["difference"]["value"] == pytest.approx(0.35)
    assert "a less b on c at equal KL (1 to 1.5)" in repr(found) and len(found.figure.data) == 2


def test_a_strength_that_another_beats_for_less_is_not_on_the_frontier():
    """At KL 2 the curve has fallen to 0.1; on the way from 0.4 at 1 to 0.8 at 3 it counts for nothing."""
    a, b = curve("a", [1.0, 2.0, 3.0, 4.0], [0.4, 0.1, 0.8, 0.2]), curve("b", [1.0, 4.0], [0.0, 0.0])
    assert sl.frontier(a, b, at=(1.0, 2.0, 3.0, 4.0)).table.a.tolist() == pytest.approx([0.4, 0.6, 0.8, 0.8])


def test_the_interval_of_a_difference_is_over_prompts_drawn_for_both():
    """Two curves whose texts show the concept on the very same prompts differ by nothing in any resampling."""
    a = curve("a", [1.0, 2.0], [0.5, 0.5], prompts=40)
    same = curve("b", [1.0, 2.0], [0.5, 0.5], prompts=40)
    assert sl.frontier(a, same).difference.high == sl.frontier(a, same).difference.low == 0
    other = curve("b", [1.0, 2.0], [0.5, 0.5], prompts=40)
    other.found[:] = other.found[:, ::-1].copy()
    spread = sl.frontier(a, other).difference
    assert spread.value == 0 and spread.high > 0.15 and spread.low < -0.15


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (
            lambda: sl.frontier(curve("a", [1, 2], [0, 1]), curve("b", [3, 4], [0, 1])),
            "No KL in common: a moves.*1 to 2 n",
        ),
        (
            lambda: sl.frontier(curve("a", [1, 2], [0, 1]), curve("b", [1, 2], [0, 1]), at=(2.5,)),
            "at=2.5 is not between",
        ),
        (lambda: sl.frontier(curve("a", [1], [0]), curve("b", [1], [0], prompts=50)), "other prompts"),
        (lambda: sl.frontier(curve("a", [1], [0]), curve("b", [1], [0], concept="d")), "of other concepts"),
    ],
)
def test_curves_that_do_not_compare_are_refused(ask, said):
    with pytest.raises(ValueError, match=said):
        ask()


@pytest.mark.parametrize(
    ("asked_for", "said"),
    [
        ({"pushes": {}}, "at least one Push"),
        ({"pushes": {"a": []}}, "at least one Push"),
        ({"pushes": {RANDOM: Push(0)}}, "name yours otherwise"),
        ({"baselines": ("mean",)}, "No baseline 'mean'. Known: difference of means, random direction, asked"),
        ({"prompts": ("One",)}, "one tells no interval"),
        ({"prompts": ("One", "Two dogs")}, "The prompt 'Two dogs' shows the concept already"),
        ({"prompts": "One morning"}, "one tells no interval"),
        ({"concept": "language.english", "prompts": 2}, "Nearly every English text"),
        ({"examples": ([], ["a"])}, "empty on one side"),
        ({"pushes": Push(64)}, "No latent 64"),
    ],
)
def test_what_cannot_be_swept_is_refused(lm, sae, asked_for, said):
    given = {"pushes": Push(0, unit=1.0), "concept": dog, "prompts": PROMPTS, "max_new_tokens": 1} | asked_for
    with pytest.raises(ValueError, match=said):
        sl.doses(sae, lm, given.pop("pushes"), given.pop("concept"), **given)


def test_two_saes_are_compared_by_what_they_cost(lm, sae, found):
    """The planted direction against a random one of the same sweep: ahead wherever both were measured."""
    both = sl.frontier(found, found[RANDOM])
    assert both.about["a"] == "add 0" and both.difference.value >= 0
    assert Counter(both.curves.intervention) == {"a: add 0": 3, f"b: {RANDOM}": 3}


def test_another_model_is_swept_with_prompts_and_words_of_ones_own(stories, stories_text):
    """A Llama that never read the world: SentencePiece, no chat format, " it" written by its last layer's head."""
    lm = load_model(str(stories))
    made = identity(lm.d_model)
    made.origin = {"site": f"L{lm.n_layers - 1}R", "text": str(stories_text)}
    token = next(i for i in range(lm.vocab) if lm.words([i]) == [" it"])
    with torch.no_grad():
        head = lm.module.get_output_embeddings().weight[token] * lm.module.model.norm.weight
        made.W_dec[0] = head / head.norm()
    prompts, sides = ["Once upon a time there was", "Lily had"], (["The dog ran. Good dog!"], ["It was a cat."])
    how = {"strengths": (0.0, 9.0), "max_new_tokens": 6, "wanted": "a story about a dog", "examples": sides}
    found = sl.doses(made, lm, Push(0), lambda text: " it it it" in text, prompts=prompts, **how)
    table = found.table.set_index(["intervention", "strength"])
    assert table.effect["add 0", 9.0] == 1 > table.effect["add 0", 0.0] and table.kl["add 0", 0.0] == 0
    assert table.ce["untouched", 0.0] + 1 < table.ce["add 0", 9.0] and "in front of" in found.about["asked"]
