"""The door to the model: what is read equals torch hooks, what is written changes the run, and mistakes are told."""

import inspect
import threading
from itertools import pairwise

import little
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config

from sae_lab import models
from sae_lab.models import Edit, load_model
from sae_lab.sites import Site

MODULES = {"R": "", "A": ".self_attn", "M": ".mlp", "N": ".mlp.down_proj"}


@pytest.fixture(scope="module", params=little.FAMILIES)
def folder(request, tmp_path_factory):
    return little.save(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def lm(folder):
    return load_model(folder)


@pytest.fixture(scope="module")
def plain(folder):
    """The same model without the package's door."""
    return AutoModelForCausalLM.from_pretrained(folder).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return load_model(little.save(tmp_path_factory.mktemp("llama")))


@pytest.fixture(scope="module")
def plain_llama(llama):
    return AutoModelForCausalLM.from_pretrained(llama.name).eval().requires_grad_(False)


def random_ids(lm, rows=3, width=12, seed=0):
    ids = torch.randint(3, lm.vocab, (rows, width), generator=torch.Generator().manual_seed(seed))
    ids[:, 0] = lm.tokenizer.bos_token_id
    return ids


def hooked(plain, ids, mask=None):
    """Every R, A, M and mid-residual of a plain run."""
    found, handles = {}, []
    for i, layer in enumerate(plain.model.layers):

        def keep(name):
            return lambda m, a, out: found.update({name: out[0] if isinstance(out, tuple) else out})

        handles += [layer.register_forward_hook(keep(f"L{i}R")), layer.mlp.register_forward_hook(keep(f"L{i}M"))]
        handles += [layer.self_attn.register_forward_hook(keep(f"L{i}A"))]
        neurons = lambda m, a, i=i: found.update({f"L{i}N": a[0]})  # noqa: E731
        handles += [layer.mlp.down_proj.register_forward_pre_hook(neurons)]
        mid = lambda m, a, out, i=i: found.update({f"L{i}mid": a[0]})  # noqa: E731
        handles += [layer.post_attention_layernorm.register_forward_hook(mid)]
    logits = plain(ids, attention_mask=mask).logits
    for handle in handles:
        handle.remove()
    return found, logits


def written(plain, site, fn, ids):
    """Logits of a plain run in which a hook replaces what a module returns."""
    module = plain.get_submodule(f"model.layers.{site.layer}{MODULES[site.part]}")
    if site.part == "N":
        handle = module.register_forward_pre_hook(lambda m, a: (fn(a[0]),))
    else:
        hook = lambda m, a, out: (fn(out[0]), *out[1:]) if isinstance(out, tuple) else fn(out)  # noqa: E731
        handle = module.register_forward_hook(hook)
    logits = plain(ids).logits
    handle.remove()
    return logits


def test_every_site_read_equals_what_hooks_see_bit_for_bit(lm, plain):
    ids = random_ids(lm)
    found, _ = hooked(plain, ids)
    sites = sorted(lm.sites(), reverse=True)  # not in the order of the computation
    acts = lm.read(ids, sites)
    assert list(acts) == sites
    for site in sites:
        if site.part != "TC":
            assert torch.equal(acts[site], found[site]), site


def test_tc_is_the_mlps_input_before_the_norms_weight(lm, plain):
    ids = random_ids(lm)
    found, _ = hooked(plain, ids)
    for i, layer in enumerate(plain.model.layers):
        tc, norm = lm.read(ids, f"L{i}TC")[f"L{i}TC"], layer.post_attention_layernorm
        eps = getattr(norm, "variance_epsilon", None) or norm.eps
        mid = found[f"L{i}mid"]
        torch.testing.assert_close(tc, mid / (mid.square().mean(-1, keepdim=True) + eps).sqrt())
        torch.testing.assert_close(tc.square().mean(-1), torch.ones(ids.shape), rtol=0.02, atol=0)
        weight = 1 + norm.weight if "Gemma" in type(norm).__name__ else norm.weight
        torch.testing.assert_close(layer.mlp(tc * weight), found[f"L{i}M"])
        assert not torch.allclose(tc, tc * weight, rtol=0.1), "the random weights are far enough from one"


def test_reading_stops_after_the_last_site(llama):
    ran = []
    rest = [llama.module.model.layers[2], llama.module.model.norm, llama.module.lm_head]
    handles = [m.register_forward_hook(lambda m, a, out: ran.append(type(m).__name__)) for m in rest]
    llama.read(random_ids(llama), ["L1R", "L0M"])
    assert ran == []
    llama.logits(random_ids(llama))
    assert len(ran) == 3, "the hooks do see a whole run"
    for handle in handles:
        handle.remove()


def test_padding_on_the_right_changes_nothing_to_its_left(lm, plain):
    texts = ["the cat sat on a mat.", "a dog"]
    ids, mask = lm.encode(texts)
    together = lm.read(ids, ["L2R", "L1TC"], mask)
    found, _ = hooked(plain, ids, mask.long())
    torch.testing.assert_close(together["L2R"][mask], found["L2R"][mask])
    for row, text in enumerate(texts):
        alone = lm.read(lm.encode(text)[0], ["L2R", "L1TC"])
        for site, x in alone.items():
            torch.testing.assert_close(together[site][row][mask[row]], x[0])


def test_encoding_puts_one_bos_in_front_and_leaves_the_tokenizer_alone(lm):
    ids, mask = lm.encode(["a dog ran!", "no"])
    assert (ids[:, 0] == lm.tokenizer.bos_token_id).all()
    assert (ids[:, 1] != lm.tokenizer.bos_token_id).all()
    assert mask.sum(1).tolist() == [len(lm.tokenizer(t)["input_ids"]) + 1 for t in ("a dog ran!", "no")]
    assert lm.tokenizer.padding_side == "right"
    assert torch.equal(lm.encode("<bos>no")[0], lm.encode("no")[0]), "a chat template brings its own"


@pytest.mark.parametrize("site", ["L0R", "L1A", "L2M", "L1N"])
def test_a_splice_equals_a_hook_that_writes(lm, plain, site):
    ids = random_ids(lm)
    fn = lambda x: 0.5 * x + 0.1  # noqa: E731
    everywhere = torch.ones_like(ids, dtype=torch.bool)
    out = lm.splice(ids, site, fn, where=everywhere)
    torch.testing.assert_close(out.logits, written(plain, Site(site), fn, ids))
    clean = plain(ids).logits
    logp, logq = clean.log_softmax(-1), out.logits.log_softmax(-1)
    torch.testing.assert_close(out.kl, (logp.exp() * (logp - logq)).sum(-1))
    picked = logq[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    torch.testing.assert_close(out.ce[:, :-1], -picked)
    torch.testing.assert_close(out.ce_clean[:, :-1], -logp[:, :-1].gather(-1, ids[:, 1:, None])[..., 0])


def test_a_splice_that_keeps_the_activations_keeps_the_run(lm):
    ids = random_ids(lm)
    out = lm.splice(ids, {s: (lambda x: x) for s in lm.sites("RAMN")})
    assert out.kl.abs().max() == 0
    assert torch.equal(out.ce, out.ce_clean)


def test_a_tc_and_the_neurons_of_its_layer_are_spliced_together(lm, plain):
    """The TC's function sees the MLP's input as it is, and has the last word on its output."""
    ids = random_ids(lm)
    norm, mlp = plain.model.layers[1].post_attention_layernorm, plain.model.layers[1].mlp
    weight = 1 + norm.weight if "Gemma" in type(norm).__name__ else norm.weight
    both = lm.splice(ids, {"L1N": torch.zeros_like, "L1TC": lambda x: mlp(x * weight)})
    torch.testing.assert_close(both.logits, plain(ids).logits)
    with pytest.raises(ValueError, match="write the same place"):
        lm.splice(ids, {"L1M": torch.zeros_like, "L1TC": torch.zeros_like})


def test_a_tc_splice_writes_the_mlps_output(lm, plain):
    ids = random_ids(lm)
    norm, mlp = plain.model.layers[1].post_attention_layernorm, plain.model.layers[1].mlp
    weight = 1 + norm.weight if "Gemma" in type(norm).__name__ else norm.weight
    same = lm.splice(ids, "L1TC", lambda x: mlp(x * weight))
    torch.testing.assert_close(same.logits, plain(ids).logits)
    everywhere = torch.ones_like(ids, dtype=torch.bool)
    zero = lm.splice(ids, "L1TC", torch.zeros_like, where=everywhere)
    torch.testing.assert_close(zero.logits, written(plain, Site("L1M"), torch.zeros_like, ids))


def test_special_tokens_and_padding_keep_their_own_values(llama):
    ids, mask = llama.encode(["the cat sat.", "no"])
    ids[0, 3] = llama.tokenizer.eos_token_id
    seen = {}

    def fn(x):
        seen["x"] = x
        return x * 0

    out = llama.splice(ids, {"L0R": fn, "L1R": lambda x: seen.update(after=x) or x}, mask=mask)
    rows = seen["x"].clone()
    rows[mask & ~llama.special(ids)] = 0
    expected = llama.module.model.layers[1](
        rows, position_embeddings=llama.module.model.rotary_emb(rows, torch.arange(ids.shape[1])[None])
    )
    assert rows.abs().sum(-1).gt(0).tolist() == (~mask | llama.special(ids)).tolist()
    torch.testing.assert_close(seen["after"], expected)
    assert not out.counts[:, -1].any()
    assert not out.counts[0, 3], "an <eos> is not replaced"
    assert not out.counts[~mask].any()


def test_counted_places_predict_real_tokens_that_are_not_special(llama):
    bos, eos, pad = 1, 2, 0
    ids = torch.tensor([[bos, 5, 6, eos, bos, 7, 8, pad], [bos, 5, 6, 7, bos, 7, 8, 9]])
    mask = ids != pad
    out = llama.splice(ids, "L0R", lambda x: x, mask=mask)
    assert out.counts.long().tolist() == [[0, 1, 0, 0, 0, 1, 0, 0], [0, 1, 1, 0, 0, 1, 1, 0]]
    total = llama.gradients(ids, "L0R", of=lambda logits: models.lm.ce(logits, ids)[:, [0, 1, 2, 4, 5]].sum())
    torch.testing.assert_close(
        llama.gradients(ids[1:], "L0R")[0, :3] - total[1, :3],
        llama.gradients(ids[1:], "L0R", of=lambda logits: models.lm.ce(logits, ids[1:])[:, 6].sum())[0, :3],
        rtol=1e-3,
        atol=1e-4,
    )


def test_several_splices_share_one_clean_run(llama, monkeypatch):
    ids, runs, run = random_ids(llama), [], models.lm.traces.run
    monkeypatch.setattr(models.lm.traces, "run", lambda *a, **k: runs.append(1) or run(*a, **k))
    clean = llama.logits(ids)
    whole = llama.splice(ids, "L1R", torch.zeros_like)
    shared = llama.splice(ids, "L1R", torch.zeros_like, clean=clean)
    assert torch.equal(whole.kl, shared.kl)
    assert len(runs) == 1 + 2 + 1


@pytest.mark.parametrize(("site", "behind"), [("L0R", ["L2R", "L1R"]), ("L1A", ["L1R"]), ("L1TC", ["L1R", "L2R"])])
def test_a_splice_tells_how_far_residuals_behind_it_move(llama, plain_llama, site, behind):
    ids = random_ids(llama)
    out = llama.splice(ids, site, lambda x: 0.5 * x, moved=behind, clean=llama.logits(ids))
    clean, _ = hooked(plain_llama, ids)
    seen, where, s = {}, ~llama.special(ids), Site(site)
    half = lambda x, by: torch.where(where[..., None], 0.5 * by, x)  # noqa: E731
    by = llama.read(ids, site)[site]
    module = plain_llama.get_submodule(f"model.layers.{s.layer}{MODULES[s.target.part]}")
    change = lambda m, a, o: (half(o[0], by), *o[1:]) if isinstance(o, tuple) else half(o, by)  # noqa: E731
    handles = [module.register_forward_hook(change)]
    for i, layer in enumerate(plain_llama.model.layers):
        handles.append(layer.register_forward_hook(lambda m, a, o, i=i: seen.update({f"L{i}R": o})))
    assert torch.equal(plain_llama(ids).logits, out.logits)
    for handle in handles:
        handle.remove()
    assert sorted(out.moved) == sorted(behind)
    for name, far in out.moved.items():
        torch.testing.assert_close(far, (seen[name] - clean[name]).square().sum(-1))
        assert far[where].min() > 0


def test_only_residuals_behind_a_splice_are_compared(llama):
    for moved in ("L1R", "L0R", "L2M"):
        with pytest.raises(ValueError, match=rf"moved=\['{moved}'\]: only residuals behind L0R, L1R move"):
            llama.splice(random_ids(llama), {"L0R": torch.zeros_like, "L1R": torch.zeros_like}, moved=[moved])


def test_a_splice_can_carry_gradients_to_what_it_splices_in(llama):
    ids, scale = random_ids(llama), torch.ones((), requires_grad=True)
    out = llama.splice(ids, "L1R", lambda x: x * scale, grad=True)
    (by_graph,) = torch.autograd.grad(out.ce[out.counts].sum(), scale)

    def total(s):
        found = llama.splice(ids, "L1R", lambda x: x * s)
        return found.ce[found.counts].double().sum()

    torch.testing.assert_close(by_graph.double(), (total(1.01) - total(0.99)) / 0.02, rtol=0.02, atol=1e-3)
    assert not llama.splice(ids, "L1R", lambda x: x * scale).ce.requires_grad


@pytest.mark.parametrize("site", ["L0R", "L1A", "L1M", "L1N"])
def test_gradients_equal_those_of_a_hook(lm, plain, site):
    ids, held = random_ids(lm), {}

    def keep(x):
        held["x"] = x.detach().requires_grad_(True)
        return held["x"]

    logits = written(plain, Site(site), keep, ids)
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
    (expected,) = torch.autograd.grad(loss, held["x"], retain_graph=True)
    torch.testing.assert_close(lm.gradients(ids, site), expected)
    (expected,) = torch.autograd.grad((logits[:, -1, 5] - logits[:, -1, 9]).sum(), held["x"])
    torch.testing.assert_close(lm.gradients(ids, site, of=(5, 9)), expected)


def test_several_gradients_come_from_one_call(lm):
    ids = random_ids(lm)
    together = lm.gradients(ids, ["L2R", "L0R", "L1TC", "L1A", "L1N"])
    assert list(together) == ["L2R", "L0R", "L1TC", "L1A", "L1N"]
    for site, g in together.items():
        torch.testing.assert_close(g, lm.gradients(ids, site), rtol=1e-4, atol=1e-5)


def test_a_tc_gradient_goes_through_the_mlp_alone(lm):
    ids = random_ids(lm)
    tc, step = lm.read(ids, "L1TC")["L1TC"], 1e-2
    direction = torch.randn(tc.shape, generator=torch.Generator().manual_seed(1))
    norm, mlp = lm.module.model.layers[1].post_attention_layernorm, lm.module.model.layers[1].mlp
    weight = 1 + norm.weight if "Gemma" in type(norm).__name__ else norm.weight
    everywhere = torch.ones_like(ids, dtype=torch.bool)

    def loss(sign):
        moved = mlp((tc + sign * step * direction) * weight)
        return lm.splice(ids, "L1TC", lambda x: moved, where=everywhere).ce.double().sum()

    slope = (loss(1) - loss(-1)) / (2 * step)
    torch.testing.assert_close((lm.gradients(ids, "L1TC") * direction).sum().double(), slope, rtol=0.02, atol=0.02)


def test_gradients_are_taken_at_the_last_real_token_or_where_asked(llama):
    ids, mask = llama.encode(["the cat sat on a mat.", "no"])
    last = mask.sum(1) - 1
    by_default = llama.gradients(ids, "L0R", of=7, mask=mask)
    assert torch.equal(by_default, llama.gradients(ids, "L0R", of=7, mask=mask, at=last))
    assert by_default[1, last[1] + 1 :].abs().max() == 0
    early = llama.gradients(ids, "L0R", of=7, mask=mask, at=torch.tensor([1, 1]))
    assert early[:, 2:].abs().max() == 0
    assert early[:, 1].abs().min() > 0


def test_neurons_are_what_the_last_matrix_of_the_mlp_reads(lm):
    ids = random_ids(lm)
    hidden = lm.read(ids, "L1N")["L1N"]
    assert hidden.shape[-1] == lm.mlp_width == lm.d_in("L1N")
    torch.testing.assert_close(lm.module.model.layers[1].mlp.down_proj(hidden), lm.read(ids, "L1M")["L1M"])


def test_greedy_text_equals_a_run_without_a_cache(lm, plain):
    ids, _ = lm.encode("the cat")
    written = lm.generate("the cat", max_new_tokens=8)
    tokens = [w.ids[0] for w in written]
    for token in tokens:
        best = int(plain(ids).logits[0, -1].argmax())
        assert token == best
        ids = torch.cat([ids, torch.tensor([[best]])], 1)


def test_prompts_of_different_lengths_do_not_disturb_each_other(lm):
    prompts = ["the cat sat on a mat.", "a dog"]
    together = lm.generate(prompts, max_new_tokens=6).texts
    assert together == [lm.generate(p, max_new_tokens=6).text for p in prompts]


def test_an_edit_changes_its_row_alone_and_equals_a_hook(lm, plain):
    ids, vector = lm.encode("the cat sat")[0], torch.randn(lm.d_model, generator=torch.Generator().manual_seed(3))
    rows = lm.generate("the cat sat", [None, Edit("L1R", vector, 3.0), Edit("L1R", vector, -3.0)], max_new_tokens=5)
    assert rows.rows == [(0, 0, 0), (0, 1, 0), (0, 2, 0)]
    tokens = torch.tensor([w.ids for w in rows]).T
    alone = [w.ids[0] for w in lm.generate("the cat sat", max_new_tokens=5)]
    assert [t for t in tokens[0].tolist() if t >= 0] == alone
    for row, strength in ((1, 3.0), (2, -3.0)):
        so_far = ids

        def add(x, strength=strength):
            added = x + strength * vector
            added[:, 0] = x[:, 0]  # the BOS keeps its own value
            return added

        for token in (t for t in tokens[row].tolist() if t >= 0):
            assert token == int(written(plain, Site("L1R"), add, so_far)[0, -1].argmax())
            so_far = torch.cat([so_far, torch.tensor([[token]])], 1)
    assert tokens[1].tolist() != tokens[2].tolist()


def test_edits_act_together_and_a_strength_may_look_at_the_activation(llama, monkeypatch):
    v, ids = torch.randn(llama.d_model, generator=torch.Generator().manual_seed(4)), llama.encode("a dog")[0]
    rows = {
        "both": ([Edit("L0R", v, 2.0), Edit("L1M", -v, 1.0)], {"L0R": lambda x: x + 2 * v, "L1M": lambda x: x - v}),
        "clamp": (Edit("L1R", v, lambda x: 5 - x @ v), {"L1R": lambda x: x + (5 - x @ v)[..., None] * v}),
        "transcoder": (Edit("L1TC", v, lambda x: x @ v), {"L1TC": lambda x: mlp(x) + (x @ v)[..., None] * v}),
        "later": (Edit("L0R", v, 9.0, prompt=False), {"L0R": lambda x: x}),
    }
    layer = AutoModelForCausalLM.from_pretrained(llama.name).model.layers[1].requires_grad_(False)
    mlp = lambda x: layer.mlp(x * layer.post_attention_layernorm.weight)  # noqa: E731
    seen, step = [], llama.step
    monkeypatch.setattr(llama, "step", lambda *a: seen.append(step(*a)) or seen[-1])
    run = llama.generate("a dog", [edit for edit, _ in rows.values()], max_new_tokens=2)
    newest = next(iter(run)).ids
    for row, (_, fns) in enumerate(rows.values()):
        torch.testing.assert_close(seen[0][row], llama.splice(ids, fns).logits[0, -1])
    next(iter(run))
    longer = torch.cat([ids, torch.tensor([newest[3:]])], 1)
    only_new = torch.arange(longer.shape[1])[None] == ids.shape[1]
    expected = llama.splice(longer, "L0R", lambda x: x + 9 * v, where=only_new)
    torch.testing.assert_close(seen[1][3], expected.logits[0, -1])


def test_text_streams_token_by_token_and_can_be_left_early(llama):
    run = llama.generate(["a dog", "no"], max_new_tokens=6)
    lengths = []
    for step in run:
        lengths.append([len(t) for t in step.texts])
        if step.index == 2:
            break
    assert all(a <= b for before, after in pairwise(lengths) for a, b in zip(before, after))
    assert [t[: len(s)] for t, s in zip(run.texts, step.texts)] == step.texts, "what came before is kept"
    assert llama.logits(random_ids(llama)).shape[-1] == llama.vocab


def test_a_row_ends_with_its_document(llama):
    stop = llama.tokenizer.eos_token_id
    head = llama.module.lm_head.weight
    before = head[stop].clone()
    try:
        head.data[stop] = 50 * llama.read(llama.encode("no")[0], "L2R")["L2R"][0, -1]
        run = llama.generate(["no", "the cat sat"], max_new_tokens=10)
        steps = list(run)
    finally:
        head.data[stop] = before
    assert steps[0].done[0]
    assert run.texts[0] == ""
    assert all(s.ids[0] == -1 for s in steps[1:])


def test_samples_depend_on_the_seed_and_are_shared_by_edits(llama):
    how = {"max_new_tokens": 12, "temperature": 1.0, "n": 3}
    one = llama.generate("the", seed=1, **how).texts
    assert one == llama.generate("the", seed=1, **how).texts
    assert one != llama.generate("the", seed=2, **how).texts
    assert len(set(one)) == 3
    nothing = Edit("L1R", torch.zeros(llama.d_model))
    pairs = llama.generate("the", [None, nothing], seed=1, **how).texts
    assert pairs[:3] == pairs[3:] == one


def test_sampling_follows_the_models_probabilities(llama):
    ids, _ = llama.encode("the cat")
    p = llama.logits(ids)[0, -1].softmax(-1)
    first = next(iter(llama.generate("the cat", max_new_tokens=1, temperature=1.0, n=4000))).ids
    share = torch.bincount(torch.tensor(first), minlength=llama.vocab) / 4000
    assert (share - p).abs().max() < 5 * 0.5 / 4000**0.5
    narrow = next(iter(llama.generate("the cat", max_new_tokens=1, temperature=1.0, top_p=0.3, n=1000))).ids
    best = p.sort(descending=True)
    allowed = best.indices[: int((best.values.cumsum(0) < 0.3).sum()) + 1]
    assert set(narrow) == set(allowed.tolist())


def test_threads_take_turns(llama):
    ids, errors = random_ids(llama), []
    expected = llama.read(ids, "L1R")["L1R"]

    def work():
        try:
            for _ in range(5):
                assert torch.equal(llama.read(ids, "L1R")["L1R"], expected)
                llama.generate("no", max_new_tokens=2).text  # noqa: B018
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert errors == []


def test_a_failing_splice_shows_its_own_error_and_leaves_the_model_usable(llama):
    ids = random_ids(llama)
    before = llama.logits(ids)

    def breaks(x):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        llama.splice(ids, "L1R", breaks)
    assert torch.equal(llama.logits(ids), before)


def test_weights_can_be_read_in_another_type(folder):
    lm = load_model(folder, dtype="bfloat16")
    assert lm.dtype == torch.bfloat16
    assert lm.read(random_ids(lm), "L1TC")["L1TC"].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda lm: lm.read(torch.ones(1, 4, dtype=torch.long), "L9R"), "No site L9R.*layers 0 to 2"),
        (lambda lm: lm.read(torch.ones(1, 4, dtype=torch.long), "resid"), "No site named 'resid'"),
        (lambda lm: lm.read(torch.ones(1, 65, dtype=torch.long), "L0R"), "65 tokens a row.*context.*64"),
        (lambda lm: lm.read(torch.full((1, 4), 5000), "L0R"), "Token id 5000 is outside.*lm.encode"),
        (lambda lm: lm.read(torch.full((1, 4), -1), "L0R"), "Token id -1 is outside"),
        (lambda lm: lm.read(torch.ones(1, 3, dtype=torch.long), "L0R", torch.tensor([[False, True, True]])), "right"),
        (lambda lm: lm.splice(torch.ones(1, 4, dtype=torch.long), "L0R", lambda x: x[:, :2]), "Keep the shape"),
        (lambda lm: lm.splice(torch.ones(1, 4, dtype=torch.long), {"L0M": abs, "L0TC": abs}), "write the same place"),
        (lambda lm: lm.gradients(torch.ones(1, 4, dtype=torch.long), "L0R", of="loss"), "of='loss' is unknown"),
        (lambda lm: lm.generate("a " * 100), "context.*64.*Shorten the prompt"),
        (lambda lm: lm.generate("no", n=2), "Set temperature"),
        (lambda lm: lm.generate("no", [Edit("L9R", torch.zeros(16))]), "No site L9R"),
        (lambda lm: lm.generate("no", []), "at least one"),
        (lambda lm: lm.generate(["no", "a"], max_new_tokens=1).text, "take `.texts`"),
        (lambda lm: load_model(lm.name, dtype="float33"), "dtype='float33'"),
    ],
)
def test_mistakes_are_told_with_the_way_out(llama, call, says):
    with pytest.raises(ValueError, match=says):
        call(llama)


def test_a_missing_model_says_what_would_be_found(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No model 'tinny'.*'tiny'"):
        load_model("tinny")
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        load_model(tmp_path)
    with pytest.raises(FileNotFoundError, match="not on this machine"):
        load_model("nobody/no-such-model")


def test_absent_and_damaged_weights_are_told_apart(tmp_path):
    weights = little.save(tmp_path) / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="damaged or cut short"):
        load_model(tmp_path)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match="not on this machine"):
        load_model(tmp_path)


def test_weights_that_lack_a_tensor_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    weights = little.save(tmp_path) / "model.safetensors"
    tensors = load_file(weights)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lack 1 tensors.*up_proj"):
        load_model(tmp_path)


def test_a_model_of_another_build_is_refused(tmp_path):
    config = GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=50)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    little.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="not built like a Llama"):
        load_model(tmp_path)


def test_the_real_llama_reads_like_hooks_and_writes_its_known_story(stories):
    lm, plain = load_model(stories), AutoModelForCausalLM.from_pretrained(stories).eval().requires_grad_(False)
    ids = random_ids(lm, 4, 40)
    found, _ = hooked(plain, ids)
    for site, x in lm.read(ids, lm.sites("RAM")).items():
        assert torch.equal(x, found[site]), site
    tokenizer = AutoTokenizer.from_pretrained(stories)
    once = tokenizer("Once upon a time", return_tensors="pt")
    expected = plain.generate(**once, max_new_tokens=30, do_sample=False, pad_token_id=0)
    text = lm.generate("Once upon a time", max_new_tokens=30).text
    assert "Once upon a time" + text == tokenizer.decode(expected[0], skip_special_tokens=True)


def test_what_was_written_so_far_stays_as_it_was(llama):
    steps = list(llama.generate("the cat", max_new_tokens=4))
    texts = [step.texts[0] for step in steps]
    assert [len(llama.tokenizer(t, add_special_tokens=False).input_ids) for t in texts] == sorted(
        len(llama.tokenizer(t, add_special_tokens=False).input_ids) for t in texts
    )
    assert texts[0] != texts[-1]
    assert texts[-1].startswith(texts[0])


def test_ids_of_a_wrong_shape_and_edits_of_a_wrong_width_are_refused(llama):
    unchecked = inspect.unwrap(type(llama)._checked)  # as without the tests' own shape checks
    for ids, mask in (([[1, 2]], None), (torch.tensor([1, 2]), None), (random_ids(llama), torch.ones(1, 2).bool())):
        with pytest.raises(ValueError, match=r"lm\.encode"):
            unchecked(llama, ids, mask)
    with pytest.raises(ValueError, match="L0R is 16 wide"):
        llama.generate("no", [Edit("L0R", torch.ones(5))])


def test_a_model_with_another_norm_is_refused(tmp_path):
    from transformers import StableLmConfig, StableLmForCausalLM

    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    StableLmForCausalLM(StableLmConfig(vocab_size=300, num_key_value_heads=2, **shape)).save_pretrained(tmp_path)
    little.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no RMSNorm"):
        load_model(tmp_path)
