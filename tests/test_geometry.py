"""Maps of directions: planted groups lie together, neighbours are exact, and chance is known in closed form."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.manifold import trustworthiness as theirs
from small import small_llama

from sae_lab import map_latents
from sae_lab.cli import main
from sae_lab.directions import chance_below, chance_cosine, dimension, nearest, trustworthiness
from sae_lab.library import save_sae
from sae_lab.runs.kept import Kept
from sae_lab.saes import build

D_IN, GROUPS = 24, 6


def directions(n, d_in=D_IN, seed=0):
    return torch.randn(n, d_in, generator=torch.Generator().manual_seed(seed))


def grouped(n, seed, site="L1R"):
    """A dictionary whose rows lie near one of six directions that all seeds share; row i is of group i % 6."""
    sae = build("relu", d_in=D_IN, d_sae=n, seed=seed, choose_in="float32")
    with torch.no_grad():
        sae.W_dec.copy_(2 * directions(GROUPS, seed=99)[torch.arange(n) % GROUPS] + 0.8 * directions(n, seed=seed))
    sae.origin = {"site": site, "model": "a"}
    return sae


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAE_LAB_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def made(cache):
    """At once with PCA; the others wait for UMAP."""
    found = map_latents([grouped(120, 0), grouped(180, 1)])
    shown = (found.ready, found.figure.layout.xaxis.title.text, list(found.trustworthiness))
    return found.wait(), shown


def test_pca_is_there_before_umap(made):
    found, (ready, title, trusted) = made
    assert not ready and "PCA" in title and trusted == ["pca"]
    x = found.directions.numpy() - found.directions.numpy().mean(0)
    _, values, _ = np.linalg.svd(x)
    assert np.square(found.pca).sum(0) == pytest.approx(np.square(values[:2]), rel=1e-4)


def test_planted_groups_lie_together_and_are_the_clusters(made):
    found, _ = made
    group = found.latents["latent"].to_numpy() % GROUPS
    of = [set(group[found.clusters == c]) for c in range(found.clusters.max() + 1)]
    assert len(of) == GROUPS and all(len(groups) == 1 for groups in of)
    assert (found.clusters >= 0).mean() > 0.9
    assert "UMAP" in found.coloured("cluster").layout.xaxis.title.text
    assert "UMAP" in found.figure.layout.xaxis.title.text


def test_the_same_weights_are_not_mapped_twice_and_others_are(made, monkeypatch):
    monkeypatch.setattr(Kept, "start", lambda self, **more: None)
    again = map_latents([grouped(120, 0), grouped(180, 1)])
    assert again.ready and np.array_equal(again.umap, made[0].umap)
    expected = theirs(again.directions.numpy(), again.umap, n_neighbors=15)
    assert again.trustworthiness["umap"] == pytest.approx(expected, abs=1e-4) and expected > 0.9
    other = map_latents([grouped(120, 0), grouped(180, 2)])
    assert not other.ready
    with pytest.raises(RuntimeError, match="being made"):
        _ = other.umap
    assert not map_latents([grouped(120, 0), grouped(180, 1)], seed=1).ready


def test_neighbours_are_the_largest_cosines_of_every_dictionary(made):
    found, _ = made
    unit = torch.nn.functional.normalize(found.directions.double(), dim=1)
    cosine = unit[120 + 7] @ unit.T
    table = found.neighbours(7, dictionary=1, n=3)
    assert table.dictionary.tolist() == [0] * 3 + [1] * 3
    assert table.latent[:3].tolist() == cosine[:120].topk(3).indices.tolist()
    cosine[127] = -2
    assert table.latent[3:].tolist() == cosine[120:].topk(3).indices.tolist()
    assert table.cosine[3:].tolist() == pytest.approx(cosine[120:].topk(3).values.tolist(), abs=1e-5)
    with pytest.raises(ValueError, match="0 to 179"):
        found.neighbours(180, dictionary=1)
    with pytest.raises(ValueError, match="No dictionary 2"):
        found.neighbours(0, dictionary=2)


def test_it_is_one_json_object_and_a_table_of_dictionaries(made):
    said = json.loads(json.dumps(made[0].to_json()))
    assert said["clusters"] == GROUPS and said["about"]["site"] == "L1R"
    assert made[0].table["latents"].tolist() == [120, 180]
    assert made[0].table["participation"].max() < 0.7 * made[0].table["random participation"].min()
    assert len(made[0].cosines.data) == 6  # two within, two across, random of either width


def test_density_and_concepts_come_from_a_model_that_reads(made, tmp_path, monkeypatch):
    monkeypatch.setattr(Kept, "start", lambda self, **more: None)
    lm = small_llama(tmp_path)
    sae = build("relu", d_in=32, d_sae=48, choose_in="float32")
    with torch.no_grad():
        sae.b_enc[40:] = -1e6
    found = map_latents(sae, lm, site="L1R", text="world", tokens=600, neighbours=5)
    assert (found.latents.density[40:] == 0).all() and (found.latents.density[:40] > 0).mean() > 0.9
    assert set(found.latents.columns) >= {"concept", "f1"}
    assert found.coloured("density") and found.coloured("concept")
    with pytest.raises(ValueError, match=r"Give map_latents\(lm=\)"):
        made[0].coloured("density")


@pytest.mark.parametrize(
    ("saes", "said"),
    [
        ([grouped(60, 0), grouped(60, 1, "L2R")], "several sites"),
        ([grouped(60, 0), build("relu", d_in=8, d_sae=60)], "several d_in"),
        ([grouped(20, 0)], "too few"),
    ],
)
def test_what_has_no_map_is_refused(saes, said):
    for sae in saes:
        sae.origin.setdefault("site", "L1R")
    with pytest.raises(ValueError, match=said):
        map_latents(saes)


def test_a_process_that_fails_says_why(cache):
    broken = Kept("sae_lab.geometry", {"directions": directions(40)}, {"seed": 0})
    broken.start(index=torch.zeros(40, 3, dtype=torch.long), cosine=torch.zeros(40, 3))
    with pytest.raises(RuntimeError, match="min_dist"):
        broken.wait()


def test_the_command_line_maps_runs(made, tmp_path, capsys):
    runs = [str(save_sae(grouped(n, i), tmp_path / str(i))) for i, n in enumerate((120, 180))]
    assert main(["geometry", *runs, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["clusters"] == GROUPS


def test_nearest_is_the_largest_cosine_and_never_oneself(monkeypatch):
    monkeypatch.setattr("sae_lab.directions.ROWS", 7)
    rows = directions(40)
    cosine = torch.corrcoef(torch.cat([rows, -rows], 1))  # of centred rows: the cosine
    found = nearest(torch.cat([rows, -rows], 1), torch.cat([rows, -rows], 1), 3, themselves=True)
    expected = cosine.fill_diagonal_(-2).topk(3)
    assert np.array_equal(found.index, expected.indices.numpy())
    assert found.cosine == pytest.approx(expected.values.numpy(), abs=1e-5)
    with pytest.raises(ValueError, match="ask for fewer"):
        nearest(rows, rows, 40, themselves=True)
    with pytest.raises(ValueError, match="one d_in"):
        nearest(rows, directions(5, 8))


@pytest.mark.parametrize(("d_in", "n"), [(3, 5), (24, 1), (24, 200)])
def test_chance_is_what_random_directions_have(d_in, n):
    best = nearest(directions(2000, d_in, 1), directions(n, d_in, 2), 1).cosine[:, 0]
    if n == 1:
        best = nearest(directions(2000, d_in, 1), directions(2000, d_in, 2), 2000).cosine[:, ::7].ravel()
    else:  # new directions each time: the same few are near to more or fewer
        best = np.concatenate(
            [nearest(directions(50, d_in, 100 + i), directions(n, d_in, 200 + i), 1).cosine[:, 0] for i in range(60)]
        )
    for q in (0.1, 0.5, 0.9):
        assert (best < chance_cosine(d_in, n, q)).mean() == pytest.approx(q, abs=0.04)
        assert chance_below(np.array([chance_cosine(d_in, n, q)]), d_in, n) == pytest.approx(q)
    assert chance_below(np.array([-1.0, 1.0]), d_in, n).tolist() == [0, 1]


def test_dimensions_of_known_spectra():
    assert dimension(torch.eye(8)[torch.arange(65) % 5]).participation == pytest.approx(5)
    assert dimension(torch.eye(8)[torch.arange(65) % 5]).entropy == pytest.approx(5)
    assert dimension(torch.cat([torch.eye(8), torch.zeros(9, 8)])).participation == pytest.approx(8)
    found = dimension(directions(500))
    assert found.participation == pytest.approx(found.chance, rel=0.02) and found.participation < found.entropy < D_IN
    lopsided = torch.eye(4)[[0, 0, 0, 1]]
    assert dimension(lopsided).participation == pytest.approx(1 / (0.75**2 + 0.25**2))


def test_trustworthiness_is_scikit_learns(monkeypatch):
    monkeypatch.setattr("sae_lab.directions.ROWS", 33)
    rows, picture = torch.nn.functional.normalize(directions(90), dim=1), directions(90, 2, 1).numpy()
    near = np.linalg.norm(picture[:, None] - picture[None], axis=-1).argsort(1)[:, 1:8]
    assert trustworthiness(rows, near) == pytest.approx(theirs(rows.numpy(), picture, n_neighbors=7), abs=1e-6)
    assert trustworthiness(rows, nearest(rows, rows, 7, themselves=True).index) == pytest.approx(1)


def test_a_map_that_is_being_made_is_not_begun_twice(monkeypatch, tmp_path):
    monkeypatch.setenv("SAE_LAB_CACHE", str(tmp_path))
    begun, alive = [], SimpleNamespace(poll=lambda: None)
    monkeypatch.setattr("sae_lab.runs.kept.subprocess.Popen", lambda *a, **how: begun.append(a) or alive)
    of = {"directions": directions(40)}
    for _ in range(2):
        Kept("sae_lab.geometry", of, {"seed": 0}).start()
    Kept("sae_lab.geometry", of, {"seed": 1}).start()
    assert len(begun) == 2
    alive.poll = lambda: 1  # it failed: another try is one
    Kept("sae_lab.geometry", of, {"seed": 0}).start()
    assert len(begun) == 3
