"""Splitting on planted trees: every split that was made is found, none is invented; and what stands beside it."""

import json
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
from scipy import sparse
from small import identity, small_llama

import sae_lab as sl
from sae_lab.cli import main
from sae_lab.directions import chance_cosine, nearest
from sae_lab.families import CHILDREN, PARENTS, Families, Meeting, Rule, Tree, fired
from sae_lab.intervals import Redrawn
from sae_lab.library import save_sae
from sae_lab.recovery import Naming
from sae_lab.saes import SAE, build
from sae_lab.sparse import Latents, Support
from sae_lab.splitting import Link, Splitting

D_IN, TOKENS, DOC = 32, 6000, 50


def latents(dense: np.ndarray) -> Latents:
    mask = torch.from_numpy(dense > 0)
    return Latents(torch.from_numpy(dense).float()[mask], Support.where(mask))


@dataclass
class World:
    """Parents fire at random; of `splits` parents each firing belongs to one of several children."""

    parents: torch.Tensor
    children: torch.Tensor
    old: np.ndarray
    new: np.ndarray
    parent: np.ndarray


def planted(splits=(3, 2, 4), n=24, seed=0, angle=0.8, alike=1.0) -> World:
    """The first parents split into as many children as `splits` says, in parts; the others go on alone."""
    rng = np.random.default_rng(seed)
    rows = torch.from_numpy(np.linalg.qr(rng.normal(size=(D_IN, D_IN)))[0])[:n].float()
    old = (rng.random((TOKENS, n)) < 0.06).astype(float)
    children, firing, parent = [], [], []
    for p in range(n):
        count = splits[p] if p < len(splits) else 1
        share = rng.integers(count, size=TOKENS)
        for c in range(count):
            own = torch.from_numpy(rng.normal(size=D_IN)).float()
            own -= (own @ rows[p]) * rows[p]
            cosine = angle if count > 1 else alike
            children.append(cosine * rows[p] + (1 - cosine**2) ** 0.5 * own / own.norm())
            firing.append(old[:, p] * (share == c))
            parent.append(p)
    order = rng.permutation(len(parent))
    return World(
        rows, torch.stack(children)[order.tolist()], old, np.stack(firing, 1)[:, order], np.array(parent)[order]
    )


def families(w: World, rule: Rule, k: int = 4, redrawn: int = 20) -> Families:
    old, new = fired(latents(w.old)), fired(latents(w.new))
    meeting = Meeting(w.parents, w.children, nearest(w.children, w.parents, k))
    half, doc = TOKENS // 2, np.arange(TOKENS) // DOC
    meeting.add(old[:half], new[:half])
    tree, weigh = Tree(meeting.parents(rule), len(w.parents)), Redrawn(redrawn)
    for part in (slice(half, half + 700), slice(half + 700, TOKENS)):  # as pages come
        tree.add(old[part], new[part], weigh(doc[part] - doc[half]))
    alive = tuple(times >= rule.least for times in meeting.times)
    return Families(tree, meeting.near, alive, rule, D_IN)


def names(which: np.ndarray, of: tuple[str, ...]) -> list[str]:
    return [of[i] for i in which[:, 0]]


def test_every_planted_split_is_found_and_none_invented():
    w = planted()
    found = families(w, Rule(0.5))
    assert names(found.verdicts, PARENTS) == ["split"] * 3 + ["match"] * 21
    assert np.array_equal(found.tree.parent, w.parent)
    assert names(found.kinds, CHILDREN) == ["split" if p < 3 else "shared" for p in w.parent]
    assert found.cover[:, 0] == pytest.approx(1) and found.overlap[:3, 0] == pytest.approx(0)


def test_a_permuted_copy_is_all_matches():
    w = planted(splits=())
    found = families(w, Rule(0.5))
    shares = {key: share[0] for key, share in found.shares().items()}
    assert shares["parents", "match"] == shares["children", "shared"] == 1
    assert shares["parents", "split"] == shares["children", "new"] == 0


def test_unrelated_dictionaries_are_new_and_lost():
    w, other = planted(), planted(seed=7)
    limit = chance_cosine(D_IN, len(w.parents), 0.999)
    found = families(World(w.parents, other.children, w.old, other.new, other.parent), Rule(limit))
    assert set(names(found.verdicts, PARENTS)) == {"lost"}
    assert set(names(found.kinds, CHILDREN)) == {"new"}


def test_near_directions_that_fire_elsewhere_are_no_children():
    w = planted()
    w.new = w.new[np.random.default_rng(1).permutation(TOKENS)]
    assert set(names(families(w, Rule(0.5)).kinds, CHILDREN)) == {"new"}


def test_children_that_overlap_or_leave_firings_out_are_no_split():
    w = planted(splits=(3, 2, 4))
    first, second = np.flatnonzero(w.parent == 1)
    w.new[:, first] = w.old[:, 1] * (np.arange(TOKENS) % 10 < 6)
    w.new[:, second] = w.old[:, 1] * (np.arange(TOKENS) % 10 > 1) * (np.arange(TOKENS) % 10 < 8)  # mostly both
    thinned = np.arange(TOKENS) % 4 == 0
    w.new[:, w.parent == 2] *= thinned[:, None]  # four that leave three quarters out
    found = families(w, Rule(0.5, least=5))
    assert names(found.verdicts, PARENTS)[:3] == ["split", "mixed", "mixed"]
    assert found.overlap[1, 0] == pytest.approx(2 / 3, abs=0.1) and found.cover[2, 0] == pytest.approx(0.25, abs=0.05)


def test_a_parent_that_stays_beside_its_details_is_matched_by_itself():
    """One child fires wherever the parent does, nine others in a part of it each: their mean overlap is 0.2."""
    w = planted(splits=(10,))
    here = np.flatnonzero(w.parent == 0)
    w.new[:, here[3]] = w.old[:, 0]
    found = families(w, Rule(0.5, least=5))
    assert found.overlap[0, 0] < 0.5 and found.alone[0, 0] == 1
    assert names(found.verdicts, PARENTS)[0] == "match"
    assert [CHILDREN[k] for k in found.kinds[here, 0]] == ["related"] * 3 + ["shared"] + ["related"] * 6


def test_counts_are_what_counting_token_by_token_gives():
    w = planted(splits=(3, 2), n=8)
    rng = np.random.default_rng(3)
    w.new[rng.random(w.new.shape) < 0.02] = 1.0
    found = families(w, Rule(0.5))
    old, new = w.old[TOKENS // 2 :] > 0, w.new[TOKENS // 2 :] > 0
    for p in range(8):
        children = np.flatnonzero(found.tree.parent == p)
        inside = [set(np.flatnonzero(new[:, c])) for c in children]
        fires = set(np.flatnonzero(old[:, p]))
        covered = fires & set().union(*inside)
        assert found.cover[p, 0] == pytest.approx(len(covered) / len(fires))
        assert found.alone[p, 0] == pytest.approx(max(len(fires & c) for c in inside) / len(covered))
        pairs = [(a, b) for i, a in enumerate(inside) for b in inside[:i]]
        shares = [len(a & b) / min(len(a), len(b)) for a, b in pairs]
        assert found.overlap[p, 0] == pytest.approx(np.mean(shares) if shares else 0)


def test_resampled_documents_give_what_counting_them_as_often_gives():
    w = planted(splits=(3, 2), n=8)
    found, doc = families(w, Rule(0.5)), np.arange(TOKENS // 2) // DOC
    times = Redrawn(20)(doc)
    assert (times[:, 0] == 1).all() and times[:, 1:].mean() == pytest.approx(1, abs=0.05)
    again = np.repeat(w.old[TOKENS // 2 :], times[:, 7].astype(int), axis=0)
    assert found.tree.counts["parents"][:, 7] == pytest.approx(again.sum(0))
    half = Redrawn(20)
    assert np.array_equal(np.vstack([half(doc[:40]), half(doc[40:])]), times)  # whatever the pages


def test_without_directions_firing_finds_the_parents():
    """As in levels of one dictionary, where a child's row is at right angles to its parent's."""
    w = planted(angle=0.0)
    meeting = Meeting(w.parents, w.children, None)
    for part in (slice(0, 2000), slice(2000, TOKENS)):
        meeting.add(fired(latents(w.old[part])), fired(latents(w.new[part])))
    meeting.settle(4)
    assert np.array_equal(meeting.parents(Rule(-1.0)), w.parent)
    row = 5
    expected = torch.cosine_similarity(w.children[row], w.parents[meeting.near.index[row, 0]], dim=0)
    assert meeting.near.cosine[row, 0] == pytest.approx(expected.item(), abs=1e-5)


def test_a_lift_keeps_a_parent_that_fires_half_the_time_from_adopting_all():
    w = planted(splits=(), n=8)
    w.old[:, 0] = np.arange(TOKENS) % 10 < 6
    w.children[w.parent == 3] = w.parents[0]
    assert families(w, Rule(0.5)).tree.parent[w.parent == 3] == 0
    assert families(w, Rule(0.5, lift=3.0)).tree.parent[w.parent == 3] == -1


def test_a_stray_is_what_has_no_match_of_its_own():
    rows = torch.eye(4)
    new = torch.stack([rows[0], rows[0] + 0.9 * rows[1], rows[2], rows[3] + 0.1 * rows[0]])
    meeting = Meeting(rows[[0, 2, 3]], new, nearest(new, rows[[0, 2, 3]], 1))
    meeting.times[1][:] = 100
    assert meeting.strays == pytest.approx([1 / 1.81**0.5], abs=1e-6)


def test_a_latent_is_named_by_the_concept_of_the_best_f1():
    fires = np.array([[1, 0], [1, 0], [0, 1], [0, 1], [0, 0]], float)
    labels = np.array([[1, 1, 0], [1, 0, 0], [0, 1, 0], [0, 1, 1], [0, 0, 1]], float)
    naming = Naming()
    for part in (slice(0, 2), slice(2, 5)):
        naming.add({"a": sparse.csc_array(fires[part])}, sparse.csr_array(labels[part]))
    best = naming.best("a", ("x", "y", "z"))
    assert best.concept.tolist() == ["x", "y"]
    assert best.f1.tolist() == pytest.approx([1.0, 2 * 2 / (2 + 3)])


TEXT = [f"A text about number {i} and what came after {i * 7 % 31}." for i in range(400)]
SMALL = {"text": TEXT, "tokens": 1500, "context": 64, "redrawn": 10}


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return small_llama(tmp_path_factory.mktemp("llama"))


def sae(signs=1.0, seed=0, site="L1R", model="a", halves=None) -> SAE:
    """relu(x), a latent a dimension; with `halves` each latent is two, of which one fires above a level."""
    made = build("relu", d_in=32, d_sae=32 * (2 if halves else 1), seed=seed, choose_in="float32")
    rows = torch.eye(32) * signs
    with torch.no_grad():
        made.W_enc.copy_(torch.cat([rows, rows]) if halves else rows)
        made.W_dec.copy_(made.W_enc)
    made.origin = {"site": site, "model": model}
    return made


def test_a_copy_is_all_matches_and_opposites_are_none(lm):
    """Both dictionaries fire on the same places, and the null's have no direction in common."""
    wide = identity()  # relu(x) and relu(-x)
    wide.origin = {"site": "L1R", "model": "a"}
    found = sl.split([sae(seed=1), wide], lm, null=[sae(seed=2), sae(-1.0, seed=3)], **SMALL)
    of = found.table.set_index(["of", "kind"])
    assert of.share["parents", "match"] == 1 and of.null["parents", "match"] == 0
    assert of.share["children", "shared"] == pytest.approx(0.5)
    assert of.share["children", "new"] == pytest.approx(0.5) and of.null["children", "new"] == 1
    assert (of.share_low <= of.share).all() and (of.share <= of.share_high).all()
    assert json.loads(json.dumps(found.to_json()))["about"]["documents"] > 10
    assert "null" in repr(found) and isinstance(found.figure, go.Figure) and isinstance(found.treemap, go.Figure)
    assert found.families.children.map(len).eq(1).all()


def test_without_a_null_it_says_so_and_asks_for_one(lm):
    found = sl.split([sae(seed=1), identity()], lm, site="L1R", **SMALL)
    assert found.table.null.isna().all() and "give null=" in repr(found)
    with pytest.raises(ValueError, match="has no labels"):
        _ = found.follows


def test_dictionaries_that_began_alike_are_named(lm):
    found = sl.split([sae(seed=4), sae(seed=4, halves=True)], lm, **SMALL)
    assert "began with the same rows" in repr(found)
    assert "began with" not in repr(sl.split([sae(seed=4), sae(seed=5, halves=True)], lm, **SMALL))


def test_a_null_moves_the_least_cosine_of_a_child(lm):
    """Latents without a match of their own, at a cosine of 0.7 in the null: from there on a child begins."""
    rows = torch.eye(32)
    null = sae(seed=3)
    with torch.no_grad():
        null.W_dec[16:] = rows[:16] + 1.02 * rows[16:]  # nearest to their own, and at 0.7 to another's
        null.W_dec[24:] = rows[:8] + 0.98 * rows[24:]
    found = sl.split([sae(seed=1), sae(seed=2, halves=True)], lm, null=[sae(seed=4), null], **SMALL)
    assert found.rule.cosine == pytest.approx(0.714, abs=0.01)
    alone = sl.split([sae(seed=1), sae(seed=2, halves=True)], lm, **SMALL)
    assert alone.rule.cosine == pytest.approx(chance_cosine(32, 32, 0.999))


@pytest.mark.parametrize(
    ("saes", "null", "said"),
    [
        ([sae()], [], "widths \\[32\\]"),
        ([sae(), sae(seed=1)], [], "widths \\[32, 32\\]"),
        ([sae(), sae(halves=True, site="L2R")], [], "several sites"),
        ([sae(), sae(halves=True, model="b")], [], "several models"),
        ([sae(), build("relu", d_in=16, d_sae=64)], [], "several d_in"),
        ([sae(), sae(halves=True)], [sae()], "null= has widths"),
        ([sae(), sae(halves=True)], [sae(), sae(halves=True)], "null= has widths"),
    ],
)
def test_what_cannot_be_compared_is_refused(lm, saes, null, said):
    for one in saes:
        one.origin.setdefault("site", "L1R")
    with pytest.raises(ValueError, match=said):
        sl.split(saes, lm, null=null, **SMALL)


def test_levels_are_compared_with_the_next_ones_latents(lm):
    made = build("matryoshka", d_in=32, d_sae=32, k=4, levels=3, seed=0)
    with torch.no_grad():
        made.W_enc.copy_(torch.eye(32))
        made.W_enc[8:16] = made.W_enc[:8]  # the second level's fire where the first one's do
        made.threshold.fill_(lm.read(lm.encode(TEXT[0])[0], ["L1R"])["L1R"][0, 1:].quantile(0.9))
    made.origin = {"site": "L1R"}
    found = sl.split(made, lm, **SMALL)
    assert [link.new for link in found.links] == ["matryoshka 8 to 16", "matryoshka 16 to 32"]
    parent = found.links[0].families.tree.parent  # of those that are neither silent nor dense here
    assert (parent >= 0).sum() > 5 and (parent[parent >= 0] == np.flatnonzero(parent >= 0)).all()
    with pytest.raises(ValueError, match="levels of the SAE"):
        sl.split(made, lm, null=[sae(), sae(seed=1)], **SMALL)


def named(concepts: list[str], f1: float = 0.9) -> pd.DataFrame:
    ids = {c.name: i for i, c in enumerate(sl.world.concepts())}
    return pd.DataFrame({"concept": concepts, "f1": f1, "id": [ids[c] for c in concepts]})


def test_following_the_tree_is_counted_beside_shuffled_children():
    under = {  # three splits, of which one child keeps its parent's concept, one leaves it, and one has no concept
        "entity.animal": ["entity.animal.pet.dog", "entity.animal.pet.cat", "entity.animal.pet"],
        "attribute.colour": ["attribute.colour.red", "attribute.colour.blue"],
        "attribute.age": ["attribute.age.being", "attribute.age", "entity.animal.pet", "attribute.age.thing.new"],
    }
    w = planted()
    mine = named([*under, *["entity"] * 21])
    theirs = named(["entity"] * len(w.parent))
    for p, concepts in enumerate(under.values()):
        theirs.loc[w.parent == p] = named(concepts).set_axis(np.flatnonzero(w.parent == p))
    theirs.loc[np.flatnonzero(w.parent == 2)[3], "f1"] = 0.1
    link = Link("a", "b", families(w, Rule(0.5)), (mine, theirs))
    found = link.follows()
    assert (found["splits"], found["children"]) == (3, 8)
    assert found["below"] == pytest.approx(6 / 8) and found["same"] == pytest.approx(1 / 8)
    slots, children = (
        [p for p, n in zip(under, (3, 2, 3)) for _ in range(n)],
        [c for q in under.values() for c in q[:3]],
    )
    chance = np.mean([c.startswith(p + ".") for p in slots for c in children])
    assert found["below_chance"] == pytest.approx(chance, abs=0.02)
    assert found["below_low"] <= found["below"] <= found["below_high"]
    row = link.parents().set_index("parent").loc[0]
    assert row.concept == "entity.animal" and set(row["children's concepts"]) == set(under["entity.animal"])
    assert isinstance(Splitting((link,), {"text": "world", "same start": []}).treemap, go.Figure)


def test_the_command_line_reads_the_world_by_the_saes_own_model(tmp_path, capsys):
    small_llama(tmp_path / "llama")
    runs = []
    for i, wide in enumerate((None, True, None, None)):
        runs.append(str(save_sae(sae(seed=i, model=str(tmp_path / "llama"), halves=wide), tmp_path / str(i))))
    assert main(["split", *runs[:2], "--null", *runs[2:], "--tokens", "600", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert {row["kind"] for row in said["shares"]} == {*PARENTS, *CHILDREN}
    assert said["about"]["text"] == "world" and len(said["tree"]) == 2
    assert main(["split", runs[0], runs[2]]) == 2
    assert "two or more widths" in capsys.readouterr().err
