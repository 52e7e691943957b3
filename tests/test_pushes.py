"""What is done to latents, mode by mode, against transformers with hooks and no cache."""

import copy
import json
import threading
from dataclasses import replace

import pytest
import torch
from small import small_llama
from transformers import AutoModelForCausalLM

import sae_lab as sl
from sae_lab.cli import main
from sae_lab.models import Edit, load_model
from sae_lab.saes import REGISTRY, build
from sae_lab.steering import MODES, Push, activity
from sae_lab.steering.pushes import Reading, recipe

PROMPT, LATENTS, LAYER = "Anna has seven pears, and Bruno", (3, 11), 1


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return small_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def plain(lm):
    return AutoModelForCausalLM.from_pretrained(lm.name).eval()


@pytest.fixture(scope="module")
def sae():
    """Untrained: it reconstructs badly, its decoder rows are of all lengths, and each latent fires on many tokens."""
    made = build("relu", d_in=32, d_sae=24, choose_in="float32")
    rng = torch.Generator().manual_seed(5)
    with torch.no_grad():
        made.W_enc.copy_(torch.randn(24, 32, generator=rng))
        made.W_dec.copy_(torch.randn(24, 32, generator=rng) * torch.linspace(0.5, 2.0, 24)[:, None])
        made.b_enc.copy_(torch.randn(24, generator=rng))
        made.b_dec.copy_(torch.randn(32, generator=rng))
    made.origin = {"site": f"L{LAYER}R", "text": "world"}
    return made


def by_hand(sae, push, x, scale=1.0):
    """What a push makes of x, as the issue has it."""
    W, s, m = sae.W_dec[push.latent].detach(), scale * push.strength, push.unit
    d = W / W.norm()
    z = (x @ sae.W_enc[push.latent].detach() + sae.b_enc[push.latent].detach()).clamp(min=0)[..., None]
    along = (x @ d)[..., None]
    return {
        "add": x + s * m * d,
        "clamp": x + (s * m - z) * W,
        "ablate": x - z * W,
        "orthogonal": x - along * d + s * m * d,
        "cap": x - (along - s * m).clamp(min=0) * d,
    }[push.mode]


def hooked(plain, ids, pushes, sae, where, scale=1.0):
    """Logits of a forward pass without a cache, in which a layer's output is changed at some tokens."""

    def change(module, args, out):
        x = out[0] if isinstance(out, tuple) else out
        new = x + sum(by_hand(sae, p, x, scale) - x for p in pushes)
        new = torch.where(torch.tensor(where)[None, :, None], new, x)
        return (new, *out[1:]) if isinstance(out, tuple) else new

    handle = plain.model.layers[LAYER].register_forward_hook(change)
    try:
        with torch.no_grad():
            return plain(ids).logits
    finally:
        handle.remove()


def written(plain, ids, n, pushes, sae, reaches, scale=1.0):
    """n likeliest tokens, each from a whole pass over all before it."""
    tokens, first = [], ids.shape[1]
    for _ in range(n):
        where = [reaches(i, first) for i in range(ids.shape[1])]
        tokens.append(int(hooked(plain, ids, pushes, sae, where, scale)[0, -1].argmax()))
        ids = torch.cat([ids, torch.tensor([tokens[-1:]])], 1)
    return tokens


EVERYWHERE = lambda i, first: i > 0  # noqa: E731  (a BOS keeps its activation)
AIM = {"add": 3.0, "clamp": 2.0, "ablate": 1.0, "orthogonal": 4.0, "cap": -1.0}


@pytest.mark.parametrize("mode", MODES)
def test_each_mode_is_its_formula_with_a_cache_and_without(lm, plain, sae, mode):
    push = Push(LATENTS[0], mode, AIM[mode], unit=1.5)
    ids, _ = lm.encode(PROMPT)
    at = recipe(sae, sl.Site(f"L{LAYER}R"), [push])
    logits = lm.edited(ids.expand(2, -1), [at(1.0), ()])
    where = [EVERYWHERE(i, 0) for i in range(ids.shape[1])]
    expected = hooked(plain, ids, [push], sae, where)[0]
    torch.testing.assert_close(logits[0], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits[1], plain(ids).logits[0], rtol=1e-4, atol=1e-4)
    assert (logits[0] - logits[1]).abs().max() > 0.1
    steered = sl.steer(sae, lm, push, PROMPT, scale=(None, 1.0, 2.0), max_new_tokens=5)
    tokens = list(zip(*(step.ids for step in steered)))
    for row, scale in ((1, 1.0), (2, 2.0)):
        assert list(tokens[row]) == written(plain, ids, 5, [push], sae, EVERYWHERE, scale)
    assert list(tokens[0]) == written(plain, ids, 5, [], sae, EVERYWHERE)


@pytest.mark.parametrize(
    ("positions", "reaches"),
    [
        ("generated", lambda i, first: i >= first),
        ("last", lambda i, first: i == first - 1),
        ("2:4", lambda i, first: 2 <= i < 4),
        (":", lambda i, first: 0 < i < first),
        ("-2:", lambda i, first: first - 2 <= i < first),
    ],
)
def test_positions_are_where_a_push_acts(lm, plain, sae, positions, reaches):
    """Over prompts of several lengths, padded on the left, so that places are counted from each prompt's own start."""
    pushes = [Push(LATENTS[0], "add", 6.0, 1.0, positions), Push(LATENTS[1], "clamp", 5.0, 1.0, positions)]
    prompts = [PROMPT, "One morning the old baker found a red boat"]
    edits = recipe(sae, sl.Site(f"L{LAYER}R"), pushes)(1.0)
    rows = list(zip(*(step.ids for step in lm.generate(prompts, [None, edits], max_new_tokens=4))))
    everywhere = recipe(sae, sl.Site(f"L{LAYER}R"), [replace(p, positions="all") for p in pushes])(1.0)
    other = list(zip(*(step.ids for step in lm.generate(prompts, [everywhere], max_new_tokens=4))))
    assert [rows[1], rows[3]] != other
    for p, prompt in enumerate(prompts):
        ids, _ = lm.encode(prompt)
        assert list(rows[2 * p + 1]) == written(plain, ids, 4, pushes, sae, reaches)
        where = [reaches(i, ids.shape[1]) for i in range(ids.shape[1])]
        logits = lm.edited(ids, [edits])
        torch.testing.assert_close(logits, hooked(plain, ids, pushes, sae, where), rtol=1e-4, atol=1e-4)


def test_several_latents_each_in_its_mode_add_their_differences(lm, plain, sae):
    pushes = [Push(i, mode, AIM[mode], 1.2) for i, mode in zip((1, 4, 9, 16, 20), MODES)]
    ids, _ = lm.encode(PROMPT)
    steered = sl.steer(sae, lm, pushes, PROMPT, scale=(0.5, 1.0), max_new_tokens=4)
    rows = list(zip(*(step.ids for step in steered)))
    for row, scale in zip(rows, (0.5, 1.0)):
        assert list(row) == written(plain, ids, 4, pushes, sae, EVERYWHERE, scale)


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_what_is_read_of_some_latents_is_what_is_read_of_all(name):
    """At their price alone where latents do not compete; and a clamp adds what is missing, whatever the variant."""
    asked = {"k": 4} if hasattr(REGISTRY[name].Config, "k") else {}
    sae = build(name, d_in=8, choose_in="float32", **asked | ({} if name == "pca" else {"d_sae": 40}))
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        sae.b_dec.add_(torch.randn(8, generator=rng) / 3)
        for key, p in (*sae.named_parameters(), *sae.named_buffers()):
            if p.dim() == 1 and p.is_floating_point() and key != "b_dec":
                p.add_(torch.rand(len(p), generator=rng) / 5)
    x = torch.randn(3, 7, 8, generator=rng)
    sae.calibrate([torch.randn(300, 8, generator=rng)])
    dense = sae.encode(x).dense().detach()
    latents = [i for i in (2, 5, 11) if dense[..., i].any()] + [0]
    assert len(latents) > 1
    read = Reading(sae, latents)
    torch.testing.assert_close(read(x), dense[..., latents])
    assert len(read.sae.W_enc) == (len(latents) if sae.alone else sae.cfg.d_sae)
    (edit,) = recipe(sae, sl.Site("L0R"), [Push(latents[0], "clamp", 1.0, unit=1.0)])(1.0)
    added = edit.strength(edit.sees(x))
    torch.testing.assert_close(added, 1.0 - dense[..., latents[0]])
    if not sae.alone:
        with pytest.raises(ValueError, match="encode with all of them"):
            sae.only([1])


def test_a_latent_clamped_to_its_own_value_changes_nothing(lm, plain, sae):
    ids, _ = lm.encode(PROMPT)
    with torch.no_grad():
        z = sae.encode(lm.read(ids, f"L{LAYER}R")[f"L{LAYER}R"]).dense()[0, -1]
        clean = plain(ids).logits
    latent = int(z.argmax())
    for more, same in ((0.0, True), (3.0, False)):
        push = Push(latent, "clamp", z[latent].item() + more, 1.0, "last")
        logits = lm.edited(ids, [recipe(sae, sl.Site(f"L{LAYER}R"), [push])(1.0)])
        assert torch.allclose(logits, clean, rtol=1e-4, atol=1e-4) == same


def test_variants_whose_latents_do_not_compete_say_so():
    assert {name for name, made in REGISTRY.items() if made.alone is True} == {
        *("batchtopk", "end_to_end", "feature_choice", "gated", "jumprelu", "matryoshka", "mutual_choice", "p_anneal"),
        "relu",
    }


def test_the_error_term_stays_where_it_is(lm, sae):
    """What is left of x once the pushed latent's row is projected out is the same to the last bits, however badly the
    SAE reconstructs; the reconstruction itself is far away."""
    ids, _ = lm.encode(PROMPT)
    x = lm.read(ids, f"L{LAYER}R")[f"L{LAYER}R"]
    assert (sae(x) - x).norm() > 0.5 * x.norm()
    latent = LATENTS[0]
    d = sae.W_dec[latent].detach() / sae.W_dec[latent].detach().norm()
    for mode in MODES:
        (edit,) = recipe(sae, sl.Site(f"L{LAYER}R"), [Push(latent, mode, AIM[mode], 1.0)])(1.0)
        seen = x if edit.sees is None else edit.sees(x)
        amount = edit.strength(seen) if callable(edit.strength) else torch.full(x.shape[:-1], edit.strength)
        new = x + amount[..., None] * edit.vector.detach()
        outside = lambda y: y - (y @ d)[..., None] * d  # noqa: E731
        torch.testing.assert_close(outside(new), outside(x), rtol=1e-4, atol=1e-4)
        assert (new - x)[:, 1:].norm() > 0.1


def test_one_reading_of_the_latents_serves_all_rows(lm, sae, monkeypatch):
    """A generation of eight rows encodes once a step, and only the latents that are clamped."""
    seen, encode = [], type(sae).encode

    def spy(self, x):
        seen.append((len(self.W_enc), *x.shape))
        return encode(self, x)

    monkeypatch.setattr(
        type(sae), "encode", lambda self, x: seen.append((len(self.W_enc), *x.shape)) or encode(self, x)
    )
    pushes = [Push(i, "clamp", 2.0, 1.0) for i in LATENTS]
    steered = sl.steer(sae, lm, pushes, PROMPT, scale=(None, *(0.5 * i for i in range(8))), max_new_tokens=3)
    assert len(list(steered)) == 3
    length = lm.encode(PROMPT)[0].shape[1]
    assert seen == [(2, 8, length, 32), (2, 8, 1, 32), (2, 8, 1, 32)]


def test_a_transcoder_is_clamped_by_what_it_reads_where_it_writes(lm):
    """z is of the MLP's input, the difference goes to its output; the other modes look at the output itself."""
    made = build("relu", d_in=32, d_sae=8, transcode=True, choose_in="float32")
    made.origin = {"site": "L1TC", "text": "world"}
    ids, _ = lm.encode(PROMPT)
    both = lm.read(ids, ["L1TC", "L1M"])
    z = (both["L1TC"] @ made.W_enc[2] + made.b_enc[2]).clamp(min=0)[..., None].detach()
    d = (made.W_dec[2] / made.W_dec[2].norm()).detach()
    wanted = {
        "clamp": both["L1M"] + (60.0 - z) * made.W_dec[2].detach(),
        "orthogonal": both["L1M"] - (both["L1M"] @ d)[..., None] * d + 60.0 * d,
    }
    for mode, new in wanted.items():
        edits = recipe(made, sl.Site("L1TC"), [Push(2, mode, 60.0, 1.0)])(1.0)
        expected = lm.splice(ids, "L1M", lambda _, new=new: new)
        torch.testing.assert_close(lm.edited(ids, [edits]), expected.logits, rtol=1e-4, atol=1e-4)
        assert expected.kl[expected.counts].mean() > 1e-3


def test_an_old_dictionary_of_amounts_still_adds_decoder_rows(lm, sae):
    ids, _ = lm.encode(PROMPT)
    old = sl.steer(sae, lm, {3: 2.0, 11: -1.0}, PROMPT, scale=(0.0, 1.0), max_new_tokens=2)
    assert old.names == ("untouched", "x 1")
    expected = lm.splice(ids, f"L{LAYER}R", lambda x: x + 2 * sae.W_dec[3] - sae.W_dec[11]).logits
    torch.testing.assert_close(lm.edited(ids, old.edits[1:]), expected.detach())


def test_the_unit_is_the_latents_maximum_on_validation_text(lm, sae):
    from sae_lab.reading import walk
    from sae_lab.tokens import token_blocks

    found = activity(sae, lm, tokens=3000, context=64)
    blocks = token_blocks(lm.tokenizer, text="world", split="validation", context=64)
    x = torch.cat([p.acts["L1R"] for p in walk(lm, blocks, [sl.Site("L1R")], 3000)])
    z = (x @ sae.W_enc.T + sae.b_enc).clamp(min=0).detach().double()
    torch.testing.assert_close(found.maximum, z.amax(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.spread, z.std(0, correction=0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.typical, z.sum(0) / (z > 0).sum(0).clamp(min=1), rtol=1e-4, atol=1e-5)
    steered = sl.steer(sae, lm, Push(3, strength=2.0), PROMPT, max_new_tokens=1, text="world")
    (edit,) = steered.edits[1]
    assert edit.strength == pytest.approx(2 * activity(sae, lm).maximum[3].item())
    assert edit.vector.norm().item() == pytest.approx(1.0, abs=1e-5)


def test_the_next_tokens_that_rise_and_fall_most_are_those_of_two_runs(lm, plain, sae):
    push = Push(3, "add", 5.0, 1.0)
    steered = sl.steer(sae, lm, push, PROMPT, max_new_tokens=1)
    table, (ids, _) = steered.changes, lm.encode(PROMPT)
    before = plain(ids).logits[0, -1].detach()
    after = hooked(plain, ids, [push], sae, [EVERYWHERE(i, 0) for i in range(ids.shape[1])])[0, -1]
    change = after - before
    change[list(lm.special_ids)] = 0.0
    for way, best in (("risen", change.topk(10)), ("fallen", (-change).topk(10))):
        rows = table[table.way == way]
        assert list(rows.token) == lm.words(best.indices.tolist())
        assert rows.before.tolist() == pytest.approx(before[best.indices].tolist(), abs=1e-3)
        assert rows.p_after.tolist() == pytest.approx(after.softmax(-1)[best.indices].tolist(), abs=1e-4)
        assert rows.p_before.tolist() == pytest.approx(before.softmax(-1)[best.indices].tolist(), abs=1e-4)
        assert rows.change.tolist() == pytest.approx((rows.after - rows.before).tolist(), abs=1e-3)
    assert set(table.edit) == {"x 1"}
    told = json.loads(json.dumps(steered.to_json()))
    assert [row["edit"] for row in told["texts"]] == ["untouched", "x 1"] and len(told["changes"]) == 20
    assert len(steered.figure.data) == 1 and PROMPT in repr(steered)


def test_a_special_token_that_rises_most_is_not_among_them(lm, sae):
    made, end = copy.deepcopy(sae), lm.tokenizer.eos_token_id
    with torch.no_grad():
        made.W_dec[3] = lm.module.get_output_embeddings().weight[end] * lm.module.model.norm.weight
    steered = sl.steer(made, lm, Push(3, "add", 50.0, 1.0), PROMPT, site="L2R", max_new_tokens=1)
    clean, after = lm.edited(lm.encode(PROMPT)[0].expand(2, -1), steered.edits)[:, -1]
    assert int((after - clean).argmax()) == end
    assert len(steered.changes) == 20 and lm.words([end])[0] not in set(steered.changes.token)


def test_breaking_off_leaves_nothing_running(lm, sae):
    threads, steered = threading.active_count(), sl.steer(sae, lm, Push(3, unit=1.0), PROMPT, max_new_tokens=30)
    for step in steered:
        if step.index == 1:
            break
    written = [new for _, new in steered.generation.ids]
    assert max(map(len, written)) == 2 and threading.active_count() == threads
    assert lm._lock.acquire(blocking=False)
    lm._lock.release()
    assert [new for _, new in steered.generation.ids] == written


def silent(sae):
    made = copy.deepcopy(sae)
    with torch.no_grad():
        made.b_enc[5] = -1e9
        made.W_dec[6] = 0.0
    return made


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda sae, lm: sl.steer(sae, lm, Push(24, unit=1.0), PROMPT), "No latent 24: this SAE has latents 0 to 23"),
        (lambda sae, lm: sl.steer(sae, lm, Push(-1, unit=1.0), PROMPT), "No latent -1"),
        (lambda sae, lm: sl.steer(sae, lm, Push(5), PROMPT), "Latent 5 never fires on validation text.*unit=1.0"),
        (lambda sae, lm: sl.steer(sae, lm, Push(6, unit=1.0), PROMPT), "row of latent 6 is all zeros"),
        (lambda sae, lm: sl.steer(sae, lm, Push(3, unit=1.0), "a " * 200), "Shorten the prompt"),
        (lambda sae, lm: sl.steer(sae, lm, [], PROMPT), "at least one Push"),
        (lambda sae, lm: sl.steer(sae, lm, {}, PROMPT), "names none"),
        (
            lambda sae, lm: sl.steer(sae, lm, Push(3, unit=1.0), PROMPT, scale=(float("nan"),)),
            "scale=nan must be a fin",
        ),
        (lambda sae, lm: sl.steer(sae, lm, {3: float("inf")}, PROMPT), "amounts must be finite"),
        (lambda sae, lm: Push(3, "clamp", float("nan")), "strength=nan of latent 3 must be a finite number"),
        (lambda sae, lm: Push(3, "cap", float("inf")), "strength=inf"),
        (lambda sae, lm: Push(3, "push"), "No mode 'push' of steering. Known: add, clamp"),
        (lambda sae, lm: Push(3, unit=0.0), "unit=0.0 of latent 3 must be above 0"),
        (lambda sae, lm: Push(3, positions="first"), "No positions 'first'"),
        (
            lambda sae, lm: sl.steer(sae, lm, Push(3, unit=1.0, positions="3:99"), PROMPT),
            "No token at 3:99 of the prompt",
        ),
        (lambda sae, lm: sl.steer(sae, lm, Push(3, unit=1.0, positions="0:1"), PROMPT), "No token at 0:1"),
        (lambda sae, lm: sl.steer(sae, lm, Push(3, unit=1.0, positions="5:3"), PROMPT), "No token at 5:3"),
        (lambda sae, lm: lm.edited(lm.encode("a")[0], [(Edit("L1R", torch.zeros(5)),)]), "L1R is 32 wide"),
    ],
)
def test_what_cannot_be_done_is_refused(lm, sae, ask, said):
    with pytest.raises(ValueError, match=said):
        ask(silent(sae), lm)


def test_a_dead_latent_can_be_pushed_by_an_absolute_amount(lm, sae):
    assert sl.steer(silent(sae), lm, Push(5, unit=1.0), PROMPT, max_new_tokens=1).names == ("untouched", "x 1")


def test_the_command_line_steers_as_the_function_does(tmp_path, capsys):
    sae = sl.build("relu", d_in=192, d_sae=256, choose_in="float32")
    sae.origin = {"site": "L2R", "model": "tiny", "text": "world", "context": 128}
    folder = str(sl.save_sae(sae, tmp_path / "sae"))
    argv = ["steer", folder, "One morning the", "--latent", "12", "7", "--mode", "add", "clamp", "--strength", "4", "2"]
    argv += ["--unit", "3", "--positions", "all", "--scale", "1", "2", "--max-new-tokens", "6"]
    assert main([*argv, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    lm = load_model("tiny")
    pushes = [Push(12, "add", 4.0, 3.0), Push(7, "clamp", 2.0, 3.0)]
    same = sl.steer(sl.load_sae(folder), lm, pushes, "One morning the", scale=(None, 1.0, 2.0), max_new_tokens=6)
    assert found["texts"] == same.table.to_dict("records")
    assert main(argv) == 0
    assert "untouched: One morning the" in (out := capsys.readouterr().out) and "risen" in out
    assert main(["steer", folder, "One", "--latent", "1", "2", "--mode", "add", "clamp", "cap"]) == 2
    assert "one for each" in capsys.readouterr().err
    assert main(["steer", folder, "One", "--latent", "999"]) == 2
    assert "latents 0 to 255" in capsys.readouterr().err
