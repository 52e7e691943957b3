"""Numbers of faithfulness on SAEs whose answers are known: one changes nothing, one halves, one gives zeros."""

import numpy as np
import pytest
import torch
from little import save
from small import identity, small_llama

import sae_lab as sl
from sae_lab import metrics
from sae_lab.evaluation.numbers import Rebuilding
from sae_lab.evaluation.positions import long_rows
from sae_lab.intervals import DocSums
from sae_lab.models import load_model
from sae_lab.reading import held_out, walk
from sae_lab.sites import Site

SITE, TEXT = "L1R", [f"A text about number {i} and what came after {i * 7 % 31}." for i in range(400)]
SMALL = {"site": SITE, "text": TEXT, "split": "all", "context": 64, "documents": 400}  # one page
LONG = [" ".join(f"Then {i * 7 % 31} of {i} came." for i in range(j, j + 12 + 3 * (j % 2))) for j in range(40)]
STORY = [[{"role": "user", "content": f"Tell of {i}."}, {"role": "assistant", "content": TEXT[i]}] for i in range(30)]


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return small_llama(tmp_path_factory.mktemp("llama"))


def scaled(factor: float, d_in: int = 32, site: str = "") -> sl.saes.SAE:
    sae = identity(d_in)
    with torch.no_grad():
        sae.W_dec *= factor
    sae.origin = {"site": site} if site else {}
    return sae


def noisy(scale: float = 0.2) -> sl.saes.SAE:
    sae = identity()
    with torch.no_grad():
        sae.W_dec += scale * torch.randn(sae.W_dec.shape, generator=torch.Generator().manual_seed(1))
    return sae


def activations(lm, tokens=1500):
    blocks = held_out(lm, TEXT, "all", 0, context=64, documents=400)
    return torch.cat([page.acts[SITE] for page in walk(lm, blocks, [Site(SITE)], tokens)])


def test_what_changes_nothing_is_perfect_by_every_number(lm):
    e = sl.evaluate(identity(), lm, **SMALL, tokens=1500, spliced=600)
    for name in ("bias", "ev_llama_scope", "kl_score"):
        assert e.numbers[name].value == pytest.approx(1, abs=1e-5), name


def test_what_gives_zeros_is_as_bad_as_zeros_by_every_number(lm):
    e = sl.evaluate(scaled(0.0), lm, **SMALL, tokens=1500, spliced=600)
    assert e.bias.value == 0
    assert e.kl_score.value == pytest.approx(0, abs=1e-9)
    assert e.ce_recovered.value == pytest.approx(0, abs=1e-9)


def test_half_of_everything_is_a_bias_of_a_half(lm):
    assert sl.evaluate(scaled(0.5), lm, **SMALL, tokens=1500, spliced=100).bias.value == pytest.approx(0.5, abs=1e-12)


def test_bias_and_explained_variance_are_what_their_papers_write(lm):
    sae, x = noisy(), activations(lm).double()
    with torch.no_grad():
        x_hat = sae(x.float()).double()
    e = sl.evaluate(sae, lm, **SMALL, tokens=1500, spliced=100)
    assert e.bias.value == pytest.approx(metrics.bias(x_hat, x), rel=1e-5)
    ratios = (x_hat - x).square().sum(1) / (x - x.mean(0)).square().sum(1)
    assert e.ev_llama_scope.value == pytest.approx(1 - ratios.mean().item(), rel=1e-4)
    assert abs(e.ev_llama_scope.value - (1 - e.fvu.value)) > 1e-3  # another number than 1 - FVU


def test_the_mean_that_llama_scope_compares_with_is_of_all_text_so_far():
    torch.manual_seed(0)
    sae, x = noisy(), 3 + torch.randn(50, 32)
    rebuild = Rebuilding(sae)
    rebuild(x[:40], x[:40])
    _, columns = rebuild(x[40:], x[40:])
    with torch.no_grad():
        error = (sae(x[40:]) - x[40:]).square().sum(1)
    np.testing.assert_allclose(columns["ev"], 1 - error / (x[40:] - x.mean(0)).square().sum(1), rtol=1e-4)


def test_the_kl_score_is_made_of_two_divergences(lm):
    """From the probabilities themselves, on rows of one text each."""
    sae, total = noisy(0.4), torch.zeros(2, dtype=torch.float64)
    for text in TEXT[:20]:
        ids, _ = lm.encode(text)
        clean = lm.logits(ids).double().log_softmax(-1)
        for i, fn in enumerate((sae, torch.zeros_like)):
            out = lm.splice(ids, SITE, lambda x, fn=fn: fn(x).detach())
            other = out.logits.double().log_softmax(-1)
            total[i] += (clean.exp() * (clean - other)).sum(-1)[out.counts].sum()
    small = SMALL | {"text": TEXT[:20], "context": 24, "eos": False}  # a row holds one text
    e = sl.evaluate(sae, lm, **small, tokens=10**6, spliced=10**6)
    assert e.kl_score.value == pytest.approx(1 - (total[0] / total[1]).item(), rel=1e-3)


def by_position(lm, sae, **more):
    options = {"site": SITE, "text": LONG, "split": "all", "length": 90, "width": 16, "tokens": 10**6} | more
    return sl.by_position(sae, lm, **options)


def test_numbers_by_position_are_those_of_the_tokens_there(lm):
    """Against plain reads and splices of each document on its own."""
    sae, found = noisy(), by_position(lm, noisy())
    rows = [ids[:, :90] for ids, _ in map(lm.encode, LONG) if ids.shape[1] >= 90]
    assert found.about["documents"] == len(rows) > 5
    ids = torch.cat(rows)
    x = lm.read(ids, SITE)[SITE]
    with torch.no_grad():
        x_hat = sae(x)
    spliced, zero = (lm.splice(ids, SITE, lambda x, fn=fn: fn(x).detach()) for fn in (sae, torch.zeros_like))
    for (start, stop), fvu, l0, increase, recovered in zip(found.bins, *found.numbers.values(), strict=True):
        here = slice(max(start, 1), stop)
        assert fvu.value == pytest.approx(metrics.fvu(x_hat[:, here], x[:, here]), rel=1e-4)
        assert l0.value == pytest.approx((x[:, here] != 0).float().sum(-1).mean().item())
        costs = [ce[:, here][spliced.counts[:, here]].mean() for ce in (spliced.ce, zero.ce, spliced.ce_clean)]
        assert increase.value == pytest.approx((costs[0] - costs[2]).item(), rel=1e-3, abs=1e-5)
        assert recovered.value == pytest.approx(((costs[1] - costs[0]) / (costs[1] - costs[2])).item(), rel=1e-3)


def test_every_bin_is_about_the_same_documents_each_behind_its_own_bos(lm):
    blocks = held_out(lm, LONG, "all", 0, context=128)
    rows = list(long_rows(blocks, 10**6, 90, 200))
    assert all(len(r.ids) <= 2 for r in rows)
    ids, keep = torch.cat([r.ids for r in rows]), torch.cat([r.keep for r in rows])
    assert (ids[:, 0] == lm.tokenizer.bos_token_id).all() and not keep[:, 0].any() and keep[:, 1:].all()
    starts = [lm.tokenizer.decode(row[1:8]) for row in ids]
    assert all(any(text.startswith(start) for text in LONG) for start in starts)
    docs = torch.cat([r.doc for r in rows])
    assert (docs == docs[:, :1]).all() and len(docs[:, 0].unique()) == len(ids) > 5


def test_an_sae_that_breaks_behind_the_trained_context_is_seen_to(lm):
    """It gives zeros for the activations that are read behind position 40, and all others back."""
    ids = torch.cat([ids[:, :90] for ids, _ in map(lm.encode, LONG) if ids.shape[1] >= 90])
    late, sae = lm.read(ids, SITE)[SITE][:, 40:], identity()
    assert by_position(lm, sae, trained=40).beyond["fvu"].value == pytest.approx(0, abs=1e-9)
    sae.reconstruct = lambda z, x: x * ~_among(x, late)[:, None]
    found = by_position(lm, sae, trained=40)
    assert (32, 40) in found.bins and (40, 48) in found.bins  # the trained context parts bins
    assert found.beyond["fvu"].low > 0.5
    for name, least in (("fvu", 0.5), ("ce_increase", 1e-3)):
        sizes = [abs(e.value) for e in found.numbers[name]]
        assert max(sizes[:3]) < 1e-4 and min(sizes[3:]) > least, name


def _among(rows, others):
    return torch.cdist(rows, others.reshape(-1, rows.shape[1])).amin(1) < 1e-3


def test_the_difference_between_positions_is_taken_within_documents(lm):
    """Documents differ much more than positions do: unpaired intervals would be wide."""
    rng = np.random.default_rng(0)
    before, after = DocSums(), DocSums()
    level = rng.normal(0, 10, 50)
    before.add(np.arange(50), v=level, n=np.ones(50))
    after.add(np.arange(50), v=level + 1 + rng.normal(0, 0.01, 50), n=np.ones(50))
    change = before.change(after, lambda s: s["v"] / s["n"])
    assert change.value == pytest.approx(1, abs=0.01) and change.high - change.low < 0.02
    whole = DocSums.joined([before, after])
    assert whole.estimate(lambda s: s["v"] / s["n"]).value == pytest.approx(level.mean() + 0.5, abs=0.01)


def test_the_trained_context_comes_from_the_origin_and_is_drawn(lm):
    sae = identity()
    sae.origin = {"context": 32}
    found = by_position(lm, sae)
    assert found.trained == 32 and set(found.beyond) == set(found.numbers)
    assert [shape.x0 for shape in found.figure.layout.shapes] == [32] * len(found.numbers)
    assert len(found.table) == len(found.bins) * len(found.numbers) and found.to_json()["trained"] == 32
    assert by_position(lm, identity()).beyond == {} and "not known" in repr(by_position(lm, identity()))


def test_a_text_without_long_documents_says_so(lm):
    with pytest.raises(ValueError, match=r"No document of 90 tokens .* length= a smaller"):
        by_position(lm, identity(), text=TEXT)
    with pytest.raises(ValueError, match=r"length=400.*8 to 128"):
        by_position(lm, identity(), length=400)


def test_splices_together_are_one_run_with_all_of_them(lm):
    """What the second SAE reads is what the first one left."""
    first, second = scaled(0.7, site="L0R"), scaled(0.8, site="L2A")
    small = {"text": TEXT[:20], "split": "all", "context": 24, "eos": False, "tokens": 10**6}
    found = sl.evaluate_together([first, second], lm, **small)
    total, clean, n = torch.zeros(2, dtype=torch.float64), 0.0, 0
    for text in TEXT[:20]:
        ids, _ = lm.encode(text)
        for i, factors in enumerate(((0.7, 0.8), (0.0, 0.0))):
            out = lm.splice(ids, {"L0R": lambda x, f=factors: f[0] * x, "L2A": lambda x, f=factors: f[1] * x})
            total[i] += out.ce[out.counts].sum()
        clean, n = clean + out.ce_clean[out.counts].sum().item(), n + int(out.counts.sum())
    both = found.numbers["together"]
    assert both["ce_increase"].value == pytest.approx((total[0].item() - clean) / n, rel=1e-3)
    assert both["ce_recovered"].value == pytest.approx(((total[1] - total[0]) / (total[1] - clean)).item(), rel=1e-3)
    alone = [sl.evaluate(sae, lm, **small, spliced=10**6).ce_increase.value for sae in (first, second)]
    assert [found.numbers[at]["ce_increase"].value for at in ("L0R", "L2A")] == pytest.approx(alone, rel=1e-6)
    assert found.excess["ce_increase"].value == pytest.approx(both["ce_increase"].value - sum(alone), abs=1e-6)
    assert set(found.table.spliced) == {"L0R", "L2A", "together", "beyond the sum"}
    cost = found.table.query("number == 'ce_increase'")
    drawn = next(trace for trace in found.figure.data if trace.name == "ce_increase")
    assert list(drawn.y) == list(cost.spliced) and list(drawn.x) == list(cost.value)  # names at the left
    assert list(drawn.error_x.array) == list(cost.high - cost.value)
    assert "CE increase (nats/token)" in [title.text for title in found.figure.layout.annotations]


def test_identities_together_cost_nothing_and_transcoders_join(lm):
    coder = sl.build("topk", d_in=32, d_sae=64, k=4, transcode=True)
    coder.origin = {"site": "L1TC"}
    found = sl.evaluate_together([scaled(1.0, site="L0R"), coder], lm, text=TEXT, split="all", tokens=400)
    assert found.numbers["L0R"]["kl"].value == pytest.approx(0, abs=1e-5)
    assert found.numbers["together"]["kl"].value == pytest.approx(found.numbers["L1TC"]["kl"].value, rel=1e-3)
    assert found.numbers["L1TC"]["kl"].value > 1e-3


def test_what_cannot_be_spliced_together_says_so(lm):
    with pytest.raises(ValueError, match="1 SAEs"):
        sl.evaluate_together([scaled(1.0, site="L0R")], lm)
    with pytest.raises(ValueError, match="L0R, L0R: two write the same place"):
        sl.evaluate_together([scaled(1.0, site="L0R")] * 2, lm)
    with pytest.raises(ValueError, match="give site="):
        sl.evaluate_together([identity(), identity()], lm)


def test_a_sibling_that_is_the_base_itself_changes_nothing(lm):
    found = sl.transfer(noisy(), lm, lm, site=SITE, dialogues=STORY, tokens=10**6)
    change = found.changes["sibling"]
    assert all(e.value == e.low == e.high == 0 for e in change.values())
    assert any(
        abs(e.value) > 1e-3 for e in found.changes["sibling, chat format"].values()
    )  # other text around the words
    assert len(found.table) == 3 * len(found.numbers["base"]) and found.figure.data
    assert set(found.to_json()) == {"numbers", "changes", "about"}


def test_marks_of_the_chat_format_are_left_out_and_words_are_not(lm):
    """Every number of the format's row is over the words of the turns, read behind the format's marks."""
    sae, found = noisy(), sl.transfer(noisy(), lm, lm, site=SITE, dialogues=STORY, tokens=10**6)
    marks, x = set(lm.special_ids), []
    for messages in STORY:
        ids, _ = lm.encode(lm.tokenizer.apply_chat_template(messages, tokenize=False))
        words = torch.tensor([[i not in marks for i in row] for row in ids.tolist()])
        assert (~words).sum() == 5  # BOS, user, end, assistant, end
        x.append(lm.read(ids, SITE)[SITE][words])
    x = torch.cat(x)
    with torch.no_grad():
        fvu = metrics.fvu(sae(x), x)
    assert found.numbers["sibling, chat format"]["fvu"].value == pytest.approx(fvu, rel=1e-4)
    assert found.numbers["sibling, chat format"]["length"].value == pytest.approx(
        x.square().sum(1).mean().sqrt().item()
    )
    assert found.about["tokens"]["sibling, chat format"] == len(x)


def test_a_sibling_is_told_from_another_model(lm, tmp_path):
    other = load_model(str(save(tmp_path / "other")))
    with pytest.raises(ValueError, match=r"d_in=32, but .* has 16"):
        sl.transfer(identity(), lm, other, site=SITE, dialogues=STORY)
    plain = load_model(str(save(tmp_path / "plain")))
    with pytest.raises(ValueError, match="has no chat format"):
        sl.transfer(identity(16), plain, plain, site=SITE, dialogues=STORY)
    plain.tokenizer.chat_template = "x"
    with pytest.raises(ValueError, match="read different tokens"):
        sl.transfer(identity(16), other, _with_vocabulary(plain), site=SITE, dialogues=STORY)
    with pytest.raises(ValueError, match="No dialogue"):
        sl.transfer(identity(), lm, lm, site=SITE, dialogues=[])


def _with_vocabulary(lm):
    lm.tokenizer.get_vocab = lambda: {"a": 0}
    return lm
