"""Absorption planted in hand-made SAEs, on the world's tree and on first letters."""

import json

import numpy as np
import pytest
import torch
from little import tokenizer as little_tokenizer
from scipy import sparse
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from sae_lab import absorbed, build, first_letters, load_model, save_sae, tiny
from sae_lab.absorption import letters, tree
from sae_lab.absorption.letters import LETTERS, score
from sae_lab.cli import main
from sae_lab.labelled import Examples, codes, read_labels
from sae_lab.models import LM
from sae_lab.saes import SAE

NAMES = read_labels("world").names
KINDS = ("pet", "farm", "wild")
ANIMAL, MEMBERS = NAMES.index("entity.animal"), [NAMES.index(f"entity.animal.{kind}") for kind in KINDS]
DIM, MARK = 8, 5  # dimension 0 is animal, 1 to 3 its kinds, MARK marks the animals that an SAE absorbs


def animals(seed: int, rate=0.4, n=3000) -> tuple[np.ndarray, np.ndarray]:
    """(x, kind: 0 to 2, or -1 for no animal); the marked ones are `rate` of the pets."""
    rng = np.random.default_rng(seed)
    kind = np.where(rng.random(n) < 0.3, rng.integers(3, size=n), -1)
    x = 0.05 * rng.normal(size=(n, DIM)).astype(np.float32)
    x[:, MARK], x[kind >= 0, 0] = 0, 4
    x[np.arange(n)[kind >= 0], 1 + kind[kind >= 0]] += 1
    pets = np.flatnonzero(kind == 0)
    x[pets[: round(rate * len(pets))], MARK] += 1
    return x, kind


def zoo(absorbs=True, carries=1.0, misses=0.0) -> SAE:
    """Latent 0 is animal, silent on the marked; latents 1 to 3 are the kinds, and the pets' writes `carries` animal."""
    sae = build("relu", d_in=DIM, d_sae=6, choose_in="float32")
    with torch.no_grad():
        for W in (sae.W_enc, sae.W_dec):
            W.zero_()
            W[:4, :4] = torch.eye(4)
        sae.W_enc[0, MARK] = -20.0 if absorbs else 0.0
        sae.W_enc[0, 2] = -misses
        sae.b_enc[:4] = -0.5
        sae.W_dec[1, 0] = 8 * carries  # it fires with 0.5: all of the animal's 4
    return sae


def rows(sae: SAE, seed: int, rate=0.4) -> Examples:
    x, kind = animals(seed, rate)
    labels = np.zeros((len(x), len(NAMES)), bool)
    labels[kind >= 0, ANIMAL] = labels[kind >= 0, NAMES.index("entity")] = True
    for i, member in enumerate(MEMBERS):
        labels[kind == i, member] = True
    return Examples(x, {"": codes(sae, torch.from_numpy(x))}, sparse.csr_array(labels), np.arange(len(x)) // 50)


@pytest.fixture
def measured(monkeypatch, speller):
    """Absorption of a hand-made SAE on planted rows."""

    def measured(sae: SAE, rate=0.4):
        monkeypatch.setattr(tree, "read_parts", lambda *a, **k: [rows(sae, 0, rate), rows(sae, 1, rate)])
        return absorbed(sae, speller, parents="entity.animal", site="L0R")

    return measured


def of(found, kind):
    return found.table.set_index("child").loc[f"entity.animal.{kind}"]


def test_the_planted_rate_is_found_on_the_planted_child_alone(measured):
    found = measured(zoo())
    pet = of(found, "pet")
    assert (pet.latent, found.pairs.parent.unique().tolist()) == (0, ["entity.animal"])
    assert pet.absorbed == pet.silent == pytest.approx(0.4, abs=0.003)
    assert pet.sibling_silent == 0 and pet.absorption == pet.absorbed
    assert pet.low < 0.4 < pet.high
    for kind, siblings in (("farm", "wild"), ("wild", "farm")):
        child = of(found, kind)
        x, kinds = animals(1)
        others = (kinds >= 0) & (kinds != KINDS.index(kind))
        assert child.absorbed == 0
        assert child.sibling_silent == pytest.approx((x[others, MARK] > 0.5).mean(), abs=0.003)  # the pets among them
        assert found.mean.low <= found.mean.value <= found.mean.high
        assert siblings


def test_a_child_that_is_always_absorbed_has_rate_1_and_an_sae_without_absorption_0(measured):
    assert of(measured(zoo(), rate=1.0), "pet").absorption == 1
    none = measured(zoo(absorbs=False))
    assert (none.table.absorption == 0).all() and none.mean.value == 0


def test_silence_alone_is_no_absorption(measured):
    """The pets' latent fires, and writes nothing of what animals have in common."""
    pet = of(measured(zoo(carries=0.0)), "pet")
    assert pet.silent == pytest.approx(0.4, abs=0.003) and pet.absorbed == 0


@pytest.mark.parametrize(("carries", "there"), [(0.6, True), (0.3, False)])
def test_a_child_latent_has_to_carry_two_fifths(measured, carries, there):
    assert (of(measured(zoo(carries=carries)), "pet").absorbed > 0.3) == there


def test_what_the_parent_misses_anyway_is_taken_off(measured):
    """Latent 0 is silent on all farm animals, too: a bad animal latent absorbs less than it seems to."""
    pet = of(measured(zoo(misses=20.0)), "pet")
    kind = animals(1)[1]
    assert pet.absorbed == pytest.approx(0.4, abs=0.003)
    assert pet.sibling_silent == pytest.approx((kind == 1).sum() / (kind > 0).sum(), abs=0.003)
    assert pet.absorption == pet.absorbed - pet.sibling_silent


def test_b_dec_is_not_for_latents_to_carry(measured):
    """The same SAE with what all tokens share in b_dec: projections are of x - b_dec."""
    sae = zoo(carries=0.6)
    with torch.no_grad():
        sae.b_dec[0] = -6.0  # latents now have 10 to carry, of which the pets' writes 2.4
    assert of(measured(sae), "pet").absorbed == 0


def test_a_parent_without_a_probe_or_a_latent_is_refused_with_the_reason(measured, monkeypatch, speller):
    with pytest.raises(ValueError, match="is no concept with children"):
        absorbed(zoo(), speller, parents="entity.animal.pet.dog", site="L0R")
    deaf = zoo()
    with torch.no_grad():
        deaf.b_enc[:] = -10.0
    with pytest.raises(ValueError, match="its best latent, 0, fires on 0% of its tokens"):
        measured(deaf)
    blind = [rows(zoo(), seed) for seed in (0, 1)]
    noise = np.random.default_rng(0)
    blind = [Examples(noise.normal(size=e.acts.shape).astype(np.float32), e.codes, e.labels, e.doc) for e in blind]
    monkeypatch.setattr(tree, "read_parts", lambda *a, **k: blind)
    with pytest.raises(ValueError, match=r"probe F1 0.\d\d under 0.6"):
        absorbed(zoo(), speller, parents="entity.animal", site="L0R")
    with pytest.raises(ValueError, match="transcoder"):
        absorbed(build("topk", d_in=8, d_sae=8, k=2, transcode=True), speller, site="L0TC")


# First letters

D = 64
MARKED = 30  # words with b that have a dimension of their own


def marked_words() -> list[str]:
    vocabulary = AutoTokenizer.from_pretrained(tiny.folder("tiny"))
    texts = {vocabulary.convert_tokens_to_string([t]).strip().lower() for t in vocabulary.get_vocab()}
    return sorted(t for t in texts if t.isascii() and t.isalpha() and t[0] == "b")[:MARKED]


@pytest.fixture(scope="module")
def speller() -> LM:
    """A Llama whose residual stream is its embedding: dimension i is letter i, the first 30 words with b have one each,
    the rest is noise."""
    vocabulary = AutoTokenizer.from_pretrained(tiny.folder("tiny"))
    torch.manual_seed(0)
    shape = {"hidden_size": D, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": len(vocabulary)}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
    module = LlamaForCausalLM(LlamaConfig(**shape, **heads)).eval().requires_grad_(False)
    layer, words = module.model.layers[0], marked_words()
    for weight in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
        weight.zero_()
    table = module.get_input_embeddings().weight
    table.normal_(std=0.02)
    for token, i in vocabulary.get_vocab().items():
        word = vocabulary.convert_tokens_to_string([token]).strip().lower()
        if word and word[0] in LETTERS:
            table[i, LETTERS.index(word[0])] += 3
        if word in words:
            table[i, 26 + words.index(word)] += 1
    return LM("speller", module, vocabulary)


def alphabet(absorbs: bool) -> SAE:
    """Latent i is letter i; those behind are marked words, and where they fire the latent of b does not."""
    sae = build("relu", d_in=D, d_sae=26 + MARKED, choose_in="float32")
    with torch.no_grad():
        for W in (sae.W_enc, sae.W_dec):
            W.copy_(torch.eye(26 + MARKED, D))
        sae.b_enc[:] = -0.5
        if absorbs:
            sae.W_enc[1, 26 : 26 + MARKED] = -20.0
            sae.W_dec[26:, 1] = 6.0
    sae.origin = {"site": "L0R", "text": "world"}
    return sae


@pytest.fixture(scope="module")
def prompted(speller):
    return first_letters(alphabet(True), speller)


@pytest.mark.parametrize("mode", ["prompt", "context"])
def test_the_share_of_absorbed_words_is_found_for_the_letter_they_have(speller, prompted, mode):
    found = prompted if mode == "prompt" else first_letters(alphabet(True), speller, mode, tokens=10_000, documents=16)
    table = found.table.set_index("letter")
    here = [w for w, of in zip(found.words, found.letter) if found.letters.letter[of] == "b"]
    share = np.mean([w in marked_words() for w in here])
    assert 0.02 < share < 0.9 and len(table) >= 20
    for name in letters.SCORES:
        assert table.loc["b", name] == pytest.approx(share)
        assert table.drop("b")[name].max() == 0
        assert found.mean(name).value == pytest.approx(share / len(table))
    assert table.loc["b", "main"] == [1] and table.splits.max() == 0
    assert found.mean().low <= found.mean().value <= found.mean().high
    assert json.loads(json.dumps(found.to_json()))["about"]["mode"] == mode


def test_an_sae_with_a_latent_per_letter_absorbs_nothing(speller):
    found = first_letters(alphabet(False), speller, most=1500)
    assert max(found.mean(name).value for name in letters.SCORES) == 0


def plainly(f, x, p, W, main, b_dec=0.0):
    """papers.md 10.7, steps 5 and 6, one word at a time: (fraction, full)."""
    f, W = f * W.norm(dim=1), W / W.norm(dim=1, keepdim=True)
    c, total = W @ p, float((x - b_dec) @ p)
    of_main = float((f[main] * c[main]).sum())
    absorbers = sorted((float(f[i] * c[i]) for i in range(len(f)) if i not in main and c[i] >= 0.1), reverse=True)
    carried = sum(v for v in absorbers[:3] if v > 0)
    if of_main >= total or carried / total < 0.4:
        fraction = 0.0
    elif of_main <= 0:
        fraction = 1.0
    else:
        a = min(carried, total - of_main)
        fraction = min(max(a / (a + of_main), 0.0), 1.0)
    top = int((f * c).argmax())
    full = all(f[i] < 1e-8 for i in main) and c[top] >= 0.025 and total > 0 and f[top] * c[top] >= 0.4 * total
    return fraction, float(full)


def test_scores_equal_the_published_formula_word_by_word_with_and_without_b_dec():
    torch.manual_seed(0)
    sae = build("topk", d_in=12, d_sae=30, k=3, choose_in="float32").double()
    with torch.no_grad():
        sae.W_dec.mul_(torch.rand(30, 1) * 2 + 0.2)
        sae.b_dec.normal_(std=0.5)
    p = torch.nn.functional.normalize(torch.randn(12), dim=0).double()
    x = (torch.randn(400, 12) + 0.8 * p).double()
    z, main = sae.encode(x).detach(), [3, 17]
    found = score(sae, sparse.csr_array(z.dense().numpy()), (x @ p).numpy(), p.numpy(), main)
    W, b_dec = sae.W_dec.detach(), sae.b_dec.detach()
    plain = [plainly(f, row, p, W, main) + plainly(f, row, p, W, main, b_dec) for f, row in zip(z.dense(), x)]
    np.testing.assert_allclose(found, plain, atol=1e-9)
    assert ((found > 0) & (found < 1)).any() and (found[:, 1] == 1).any() and (found[:, 0] != found[:, 2]).any()


@pytest.mark.parametrize("which", ["tiny", "little"])
def test_a_words_place_is_found_by_any_tokenizer(which):
    vocabulary = AutoTokenizer.from_pretrained(tiny.folder("tiny")) if which == "tiny" else little_tokenizer(512)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": len(vocabulary)}
    lm = LM("one", LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=2, num_key_value_heads=2)), vocabulary)
    words, before = letters._vocabulary(lm), "\ncat has the first letter: C\n"
    read = 0
    for word in words[:: max(1, len(words) // 80)]:
        ids, at = letters._up_to(lm, before + word, " has the first letter:", len(before))
        if at is not None:
            read += 1
            assert at == len(ids) - 1 and ids[0] == vocabulary.bos_token_id
            assert vocabulary.decode([ids[at]]) == word
    assert read >= 20
    assert letters._up_to(lm, f"{before} incomprehensibilities", " has", len(before))[1] is None


def test_a_model_that_cannot_spell_is_refused_with_what_is_left(speller):
    """Words whose letters are few, letters that no probe finds, and no word at all."""
    few = [w for w in letters._vocabulary(speller) if w.strip()[0].lower() in "abc"]
    with pytest.raises(ValueError, match=r"3 of 26 letters .* and 3 of these .*; 20 are needed"):
        first_letters(alphabet(False), speller, words=few)
    bare = load_model("untrained:tiny")
    with pytest.raises(ValueError, match=r"untrained:tiny does not spell at L0R.* and 0 of these a probe of F1 0.6"):
        first_letters(build("random", d_in=192, d_sae=64, k=4), bare, site="L0R", most=800)
    with pytest.raises(ValueError, match="0 of 1 words are single tokens, 0 different ones; 0 of 26 letters"):
        first_letters(alphabet(False), speller, words=["incomprehensibilities"])
    with pytest.raises(ValueError, match="neither 'prompt' nor 'context'"):
        first_letters(alphabet(False), speller, "text")


def test_the_command_line_says_the_same_or_why_not(speller, prompted, tmp_path, capsys):
    folder = tmp_path / "speller"
    speller.module.save_pretrained(folder)
    speller.tokenizer.save_pretrained(folder)
    sae = alphabet(True)
    sae.origin |= {"model": str(folder)}
    save_sae(sae, tmp_path / "sae")
    capsys.readouterr()
    assert main(["absorption", str(tmp_path / "sae"), "--letters", "prompt", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["full"]["value"] == prompted.mean("full").value
    assert main(["absorption", str(tmp_path / "sae"), "--letters", "context", "--tokens", "500"]) == 2
    assert "does not spell" in capsys.readouterr().err
    assert main(["absorption", str(tmp_path / "sae"), "--tokens", "2000", "--json"]) == 0
    assert {"absorption", "pairs", "refused", "about"} == set(json.loads(capsys.readouterr().out))
    labels = tmp_path / "labels.csv"
    labels.write_text("text,kind\n" + "".join(f"{i} {w},{w}\n" for i in range(80) for w in ("bread", "stone")))
    assert main(["probe", str(tmp_path / "sae"), "--labels", str(labels), "--column", "kind", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["about"]["row"] == "document" and {r["units"] for r in shown["scores"]} >= {"latents", "raw", "pca"}
    assert main(["probe", str(tmp_path / "sae"), "--labels", str(labels)]) == 2
    assert "no column 'label'. It has: text, kind" in capsys.readouterr().err


def test_a_real_model_of_few_tokens_cannot_spell(stories):
    """Of the 850 words of Basic English, 26 are one token of its 512, counting I."""
    lm = load_model(str(stories))
    file = stories.parents[1] / "labelled" / "first_letter_basic_english.jsonl"
    words = [json.loads(line)["word"] for line in file.read_text().splitlines()]
    single = sum(len(lm.tokenizer(word, add_special_tokens=False).input_ids) == 1 for word in words)
    sae = build("random", d_in=lm.d_model, d_sae=128, k=4)
    with pytest.raises(ValueError, match=f"stories260K does not spell at L2R: {single} of 850 words are single tokens"):
        first_letters(sae, lm, words=words, site="L2R")
    with pytest.raises(ValueError, match=r"2 of 26 letters have at least 10 of them, and 0 of these"):
        first_letters(sae, lm, site="L2R")
