"""The loop: what it trains, what it shows, when it stops, and what it leaves behind."""

import json
import math
import os
import resource
import signal
from itertools import islice

import pytest
import torch
from streams import Stream

import sae_lab.training.loop as loop
from sae_lab.runs import DiskFull, Run, RunInUse
from sae_lab.saes import Objective, build
from sae_lab.saes.topk import TopK
from sae_lab.training import TrainConfig, train
from sae_lab.training.diary import Diary
from sae_lab.training.member import Member

KNOBS = {"batch": 64, "lr": 1e-2, "log_every": 5, "calibration_tokens": 512}


def topk(**config):
    return build("topk", **({"d_in": 16, "d_sae": 32, "k": 3, "choose_in": "float32"} | config))


def variant(cls, **config):
    """An unregistered SAE of these settings."""
    return cls(topk(**config).cfg)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def fvu(sae, x):
    return ((sae(x) - x).square().sum() / (x - x.mean(0)).square().sum()).item()


def held_out():
    return torch.cat([Stream(seed=0)._fresh(512) for _ in range(2)])


def test_it_learns_and_the_trained_sae_eats_raw_activations(tmp_path):
    sae, x = topk(), held_out()
    first, *_, last = train(sae, Stream(), 64 * 150, run=tmp_path / "run", **KNOBS)
    assert last.index == last.steps == last.measured == 150
    assert last.tokens == 64 * 150
    assert last.fvu < 0.3 * first.fvu
    assert fvu(sae, x) < 1.5 * last.fvu
    assert same(sae, Run(tmp_path / "run").sae)
    assert Run(tmp_path / "run").config["scale"] == pytest.approx(x.square().sum(1).mean().item() ** -0.5, rel=0.1)


def test_it_needs_no_disk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    list(train(topk(), Stream(), 640, **KNOBS))
    assert list(tmp_path.iterdir()) == []


def test_only_json_and_safetensors_are_written(tmp_path):
    list(train(topk(), Stream(), 640, run=tmp_path, checkpoint_steps=5, **KNOBS))
    names = {p.name for p in tmp_path.rglob("*") if p.is_file()} - {"lock"}
    assert {name.rpartition(".")[2] for name in names} == {"json", "jsonl", "safetensors"}


def test_what_the_activations_are_measured_in_does_not_matter():
    """Unit mean square: twice the activations, twice the reconstruction."""
    one, two, x = topk(), topk(), held_out()
    list(train(one, Stream(size=2.0), 640, **KNOBS))
    list(train(two, Stream(size=4.0), 640, **KNOBS))
    torch.testing.assert_close(one(x) * 2, two(2 * x))


@pytest.mark.parametrize(("scaling", "size"), [("unit_ms", 2.0), ("sqrt_d", 4 / 1.5), ("none", 1.0)])
def test_the_input_is_scaled_as_the_recipe_says(scaling, size):
    class Flat(Stream):
        def statistics(self, site):
            return super().statistics(site)._replace(mean_norm=1.5, mean_square=0.25)

    assert Member(topk(), "L1R", TrainConfig(scaling=scaling)).measured_scale(Flat(), "L1R") == pytest.approx(size)


def test_the_learning_rate_rises_stays_and_falls():
    member = Member(topk(), "L1R", TrainConfig(tokens=100, batch=1, lr=1.0, warmup=0.1, decay=0.2))
    rates = [member.lr(i) for i in range(100)]
    assert rates[:10] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    assert set(rates[10:81]) == {1.0}
    assert rates[80:] == pytest.approx([1 - i / 20 for i in range(20)])


def test_progress_goes_from_nought_to_one():
    class Watching(TopK):
        def objective(self, batch):
            seen.append(batch.progress)
            return super().objective(batch)

    seen = []
    list(train(variant(Watching), Stream(), 64 * 5, **KNOBS))
    assert seen == [0, 0.25, 0.5, 0.75, 1]


def test_the_recipe_decides_where_no_knob_does():
    member = Member(topk(), "L1R", TrainConfig())
    assert member.peak == pytest.approx(2e-4 / math.sqrt(32 / 2**14))
    assert member.adam.eps == 6.25e-10
    assert member.adam.unit == {"W_dec"}
    assert not Member(build("relu", d_in=4, d_sae=8), "L1R", TrainConfig()).adam.unit


def test_decoder_rows_stay_at_norm_one():
    sae = topk()
    list(train(sae, Stream(), 640, **KNOBS))
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(32))


def test_gradients_are_clipped():
    """Adam at its first step forgets a gradient's size, so the second must tell: with a clip a burst weighs nothing."""
    weights = []
    for clip in (1e-3, 0.0):
        member = Member(topk(), "L1R", TrainConfig(clip=clip, lr=1e-2))
        for size in (1.0, 1e6, 1.0):
            for p in member.adam.params.values():
                p.grad = torch.full_like(p, size)
            out = Objective(torch.zeros(1, 16), member.sae.encode(torch.zeros(1, 16)), {})
            member.update(out, 0, member.clipping(0))
        weights.append(member.adam.v["b_dec"].max().item())
    assert weights[0] < 1e-6 < weights[1]


def test_silence_is_counted_in_tokens_and_ends_with_a_firing():
    sae = topk(d_sae=8)
    with torch.no_grad():
        sae.b_enc[5] = -1e6
    member = Member(sae, "L1R", TrainConfig(tokens=1000, dead_after=130, batch=64))
    source = Stream()
    for i in range(3):
        assert member.dead.tolist() == [False] * 8
        rows = source.next(64)["L1R"]
        out = sae.objective(member.batch(rows, 0.0))
        sum(out.terms.values()).backward()
        member.update(out, i, 1.0)
        assert member.silent[5] == 64 * (i + 1)
        assert member.silent[out.z.fired].max() == 0
    assert member.dead.nonzero().flatten().tolist() == [5]


@pytest.mark.parametrize(("tokens", "silence"), [(1_000_000, 100_000), (10**9, 10**7), (5, 1)])
def test_a_latent_is_dead_after_a_tenth_of_the_run_but_ten_million_tokens(tokens, silence):
    assert TrainConfig(tokens=tokens).silence == silence


def test_rows_that_a_variant_makes_anew_lose_their_optimiser_state():
    class Reborn(TopK):
        def after_step(self):
            return torch.tensor([1, 4])

    sae = variant(Reborn, d_sae=8)
    member = Member(sae, "L1R", TrainConfig())
    out = sae.objective(member.batch(Stream().next(64)["L1R"], 0.0))
    sum(out.terms.values()).backward()
    member.update(out, 0, 1.0)
    kept = [i for i in range(8) if i not in (1, 4)]
    for name in ("W_enc", "W_dec", "b_enc"):
        assert not member.adam.m[name][[1, 4]].any()
        assert member.adam.m[name][kept].any()
    assert member.adam.m["b_dec"].any()


def test_saes_that_share_a_stream_learn_what_each_would_alone(tmp_path):
    pair, alone = [topk(seed=1), topk(seed=2, d_sae=24)], [topk(seed=1), topk(seed=2, d_sae=24)]
    *_, last = train(pair, Stream(), 640, run=tmp_path / "pair", **KNOBS)
    for sae in alone:
        list(train(sae, Stream(), 640, **KNOBS))
    assert same(pair[0], alone[0])
    assert same(pair[1], alone[1])
    runs = [Run(tmp_path / "pair" / name) for name in ("0-L1R-topk", "1-L1R-topk")]
    assert [run.sae.cfg.d_sae for run in runs] == [32, 24]
    assert [r.fvu for r in last.saes] == [run.log.fvu.iloc[-1] for run in runs]
    assert runs[0].config["stream"] == runs[1].config["stream"] == ["0-L1R-topk", "1-L1R-topk"]


def test_saes_of_two_sites_are_told_apart(tmp_path):
    class Two(Stream):
        def next(self, n):
            rows = super().next(n)
            return rows | {"L2R": rows["L2R"]._replace(x=rows["L2R"].x.flip(1), target=rows["L2R"].x.flip(1))}

    saes = {"L1R": topk(seed=1), "L2R": topk(seed=1)}
    steps = list(train(saes, Two(sites=("L1R", "L2R")), 64 * 100, run=[tmp_path / "a", tmp_path / "b"], **KNOBS))
    assert [r.site for r in steps[-1].saes] == ["L1R", "L2R"]
    x = held_out()
    assert fvu(saes["L2R"], x.flip(1)) < 0.5 * fvu(saes["L2R"], x)
    assert Run(tmp_path / "b").sae.origin["site"] == "L2R"


def test_peers_are_the_others_of_the_site_and_their_gradients_arrive():
    class Sociable(TopK):
        needs = frozenset({"peers"})

        def objective(self, batch):
            out = super().objective(batch)
            met.append([peer.cfg.seed for peer in batch.peers])
            return out._replace(terms=out.terms | {"peers": sum(peer.b_dec.sum() for peer in batch.peers)})

    met, one_step = [], KNOBS | {"tokens": 64, "scaling": "none", "warmup": 0.0}
    saes, alone = [variant(Sociable, seed=1), variant(Sociable, seed=2)], [topk(seed=1), topk(seed=2)]
    list(train(saes, Stream(), **one_step))
    list(train(alone, Stream(), **one_step))
    assert met == [[2], [1]]
    for sae, other in zip(saes, alone):
        assert (sae.b_dec <= other.b_dec).all()
        assert not torch.equal(sae.b_dec, other.b_dec)


class Drawing(TopK):
    def objective(self, batch):
        out = super().objective(batch)
        return out._replace(terms=out.terms | {"noise": (torch.randn(16) * self.b_dec).sum()})


def test_what_the_process_draws_changes_no_training_and_no_training_what_it_draws():
    quiet, loud = variant(Drawing), variant(Drawing)
    torch.manual_seed(5)
    expected = torch.rand(9)
    torch.manual_seed(5)
    drawn = torch.cat([torch.rand(1) for _ in islice(train(quiet, Stream(), 64 * 9, **KNOBS), 9)])
    torch.manual_seed(77)
    list(train(loud, Stream(), 64 * 9, **KNOBS))
    assert torch.equal(drawn, expected)
    assert same(quiet, loud)


def test_each_step_draws_anew():
    class Telling(TopK):
        def objective(self, batch):
            seen.append(torch.rand(1).item())
            return super().objective(batch)

    seen = []
    list(train(variant(Telling), Stream(), 64 * 5, **KNOBS))
    assert len(set(seen)) == 5


def test_the_seed_of_the_training_moves_what_an_objective_draws():
    one, two = variant(Drawing), variant(Drawing)
    list(train(one, Stream(), 640, seed=1, **KNOBS))
    list(train(two, Stream(), 640, seed=2, **KNOBS))
    assert not same(one, two)


def test_torch_keeps_its_number_of_threads():
    list(train(topk(), Stream(), 640, **KNOBS))
    assert torch.get_num_threads() == 1


def test_batchtopk_fires_k_latents_on_average_when_the_training_is_over():
    sae = build("batchtopk", d_in=16, d_sae=32, k=3)
    list(train(sae, Stream(), 64 * 60, **KNOBS | {"calibration_tokens": 4096}))
    assert float(sae.encode(held_out()).l0) == pytest.approx(3, rel=0.1)


@pytest.mark.parametrize("name", ["random", "pca"])
def test_a_baseline_takes_no_step_and_still_leaves_a_run(name, tmp_path):
    sae = build(name, d_in=16, k=3, **({"d_sae": 64} if name == "random" else {}))
    (step,) = train(sae, Stream(), 6400, run=tmp_path / "run", **KNOBS)
    assert (step.index, step.steps) == (0, 0)
    assert 0 < step.fvu < 1
    x = held_out()
    assert fvu(Run(tmp_path / "run").sae, x) == pytest.approx(step.fvu, rel=0.3)
    assert Run(tmp_path / "run").status["state"] == "done"
    (again,) = train(build(name, **vars(sae.cfg)), Stream(), 6400, run=tmp_path / "run", **KNOBS)
    assert again.fvu == step.fvu


def test_a_variant_that_asks_sees_a_first_sample_in_its_units():
    sae = topk()
    steps = train(sae, Stream(), 640, **KNOBS | {"lr": 1e-9})
    next(steps)
    x = held_out()
    centre = x.median(0).values / x.square().sum(1).mean().sqrt()
    assert (sae.b_dec - centre).norm() < 0.2 * centre.norm()


def test_numbers_between_two_measurements_are_those_of_the_last(tmp_path):
    steps = list(train(topk(), Stream(), 64 * 12, run=tmp_path / "run", **KNOBS))
    assert [s.measured for s in steps] == [1, 1, 1, 1, 5, 5, 5, 5, 5, 10, 10, 12]
    assert steps[6].fvu == steps[4].fvu
    log = Run(tmp_path / "run").log
    assert log.step.tolist() == [1, 5, 10, 12]
    assert log["terms.mse"].tolist() == [steps[i].terms["mse"] for i in (0, 4, 9, 11)]


def test_snapshots_lie_at_halves_of_the_run_and_eat_raw_activations(tmp_path):
    list(train(topk(), Stream(), 64 * 100, run=tmp_path / "run", snapshots=3, **KNOBS))
    run, x = Run(tmp_path / "run"), held_out()
    assert run.snapshots == [12, 25, 50]
    assert 1 > fvu(run.snapshot(12), x) > fvu(run.snapshot(50), x) > fvu(run.sae, x)
    assert run.snapshot(50).origin["step"] == 50


def test_leaving_the_loop_checkpoints_and_going_on_ends_at_the_same_bits(tmp_path):
    straight, broken = topk(), topk()
    list(train(straight, Stream(), 64 * 20, **KNOBS))
    for step in train(broken, Stream(), 64 * 20, run=tmp_path / "run", **KNOBS):
        if step.index == 7:
            break
    run = Run(tmp_path / "run")
    assert run.status["state"] == "stopped"
    assert run.checkpoints.steps == [7]
    first, *_ = train(broken, Stream(), 64 * 20, run=run.folder, **KNOBS)
    assert first.index == 8
    assert "resumed at step 7" in first.note
    assert same(broken, straight)


def test_an_sae_left_in_the_middle_eats_raw_activations_too(tmp_path):
    sae, x = topk(), held_out()
    for step in train(sae, Stream(), 64 * 200, **KNOBS):
        if step.index == 150:
            break
    assert fvu(sae, x) < 1.5 * step.fvu


def test_what_a_run_measured_it_holds_to_the_end(tmp_path, monkeypatch):
    """Its scale and the precision it chooses in, also where a later process would measure others."""

    class Louder(Stream):
        def statistics(self, site):
            return super().statistics(site)._replace(mean_square=1e6)

    def quicker(dtype):
        monkeypatch.setattr("sae_lab.saes.base.choice_dtype", lambda device, d_in: dtype)

    straight, broken = topk(choose_in="auto"), topk(choose_in="auto")
    quicker(torch.bfloat16)
    list(train(straight, Stream(), 640, **KNOBS))
    for _ in islice(train(broken, Stream(), 640, run=tmp_path / "run", **KNOBS), 5):
        pass
    quicker(torch.float32)
    list(train(broken, Louder(), 640, run=tmp_path / "run", **KNOBS))
    assert same(broken, straight)
    assert Run(tmp_path / "run").config["choose_in"] == "bfloat16"
    assert broken.cfg.choose_in == "auto"


def test_leaving_at_the_last_step_leaves_a_finished_run(tmp_path):
    for step in train(topk(), Stream(), 640, run=tmp_path / "run", **KNOBS):
        if step.index == step.steps:
            break
    assert Run(tmp_path / "run").status["state"] == "done"


def test_a_wish_of_a_process_that_died_does_not_bind_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(loop.time, "sleep", lambda _: pytest.fail("it paused"))
    run = Run(tmp_path / "run")
    for _ in islice(train(topk(), Stream(), 640, run=run.folder, **KNOBS), 3):
        pass
    run.control("pause")
    status = json.loads((run.folder / "status.json").read_text())
    (run.folder / "status.json").write_text(json.dumps(status | {"state": "paused", "pid": 2**22 + 1}))
    assert [s.index for s in train(topk(), Stream(), 640, run=run.folder, **KNOBS)][-1] == 10


def test_an_interrupted_calibration_ends_before_it_is_raised(tmp_path):
    class Slow(TopK):
        @torch.no_grad()
        def calibrate(self, chunks):
            os.kill(os.getpid(), signal.SIGINT)
            self.b_dec.add_(1.0)

    sae, plain = variant(Slow), topk()
    with pytest.raises(KeyboardInterrupt):
        list(train(sae, Stream(), 640, run=tmp_path / "run", snapshots=0, **KNOBS))
    list(train(plain, Stream(), 640, **KNOBS))
    run = Run(tmp_path / "run")
    assert run.status["state"] == "done"
    assert run.checkpoints.steps == []
    torch.testing.assert_close(run.sae.b_dec, plain.b_dec + 1 / run.config["scale"])


class Interrupted(Stream):
    """Ctrl-C in the middle of the n-th step."""

    count = 0

    def next(self, n):
        self.count += 1
        if self.count == 64 + 6:  # the sample is 64 batches
            os.kill(os.getpid(), signal.SIGINT)
        return super().next(n)


def test_ctrl_c_finishes_the_step_checkpoints_and_comes_through(tmp_path):
    steps = train(topk(), Interrupted(), 64 * 20, run=tmp_path / "run", **KNOBS)
    with pytest.raises(KeyboardInterrupt):
        list(steps)
    run, sae, straight = Run(tmp_path / "run"), topk(), topk()
    assert run.checkpoints.steps == [6]
    assert run.status["state"] == "stopped"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    list(train(sae, Stream(), 64 * 20, run=run.folder, **KNOBS))
    list(train(straight, Stream(), 64 * 20, **KNOBS))
    assert same(sae, straight)


def test_a_run_obeys_its_control_file(tmp_path, monkeypatch):
    run = Run(tmp_path / "run")
    steps = train(topk(), Stream(), 64 * 20, run=run.folder, **KNOBS)
    next(steps)
    run.control("save")
    next(steps)
    assert run.checkpoints.steps == [1]
    assert run.wanted == "run"
    run.control("pause")
    states = []

    def nap(_):
        states.append(run.status["state"])
        run.control("run")

    monkeypatch.setattr(loop.time, "sleep", nap)
    assert next(steps).index == 3
    assert states == ["paused"]
    assert run.checkpoints.steps == [2, 1]
    run.control("stop")
    assert list(steps) == []
    assert run.status["state"] == "stopped"
    assert run.checkpoints.steps == [3, 2]
    assert [s.index for s in train(topk(), Stream(), 64 * 20, run=run.folder, **KNOBS)][-1] == 20


def test_a_finished_run_is_read_not_trained_again(tmp_path):
    sae, again = topk(), topk()
    *_, last = train(sae, Stream(), 640, run=tmp_path / "run", **KNOBS)
    (step,) = train(again, Stream(), 640, run=tmp_path / "run", **KNOBS)
    assert (step.index, step.fvu, step.terms) == (last.index, last.fvu, last.terms)
    assert "already trained" in step.note
    assert same(again, sae)


def test_a_full_disk_on_the_way_is_remarked_on_and_nothing_lost(tmp_path):
    run, sae, straight = Run(tmp_path / "run"), topk(), topk()
    steps = train(sae, Stream(), 64 * 20, run=run.folder, checkpoint_steps=4, snapshots=0, **KNOBS)
    notes = [next(steps).note for _ in range(4)]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
    try:
        notes += [next(steps).note for _ in range(4)]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert run.checkpoints.steps == [4]
    assert notes[:7] == [""] * 7
    assert "no checkpoint at step 8: no room for" in notes[7]
    list(steps)
    list(train(straight, Stream(), 64 * 20, **KNOBS))
    assert same(run.sae, straight)


def test_a_full_disk_at_the_end_keeps_the_checkpoint_to_go_on_from(tmp_path):
    run, sae = Run(tmp_path / "run"), topk()
    steps = train(sae, Stream(), 64 * 20, run=run.folder, checkpoint_steps=20, snapshots=0, **KNOBS)
    for step in steps:
        if step.index == 19:
            break_at_calibration = resource.getrlimit(resource.RLIMIT_FSIZE)
            break
    steps.close()
    assert run.checkpoints.steps == [19]
    steps = train(sae, Stream(), 64 * 20, run=run.folder, snapshots=0, **KNOBS)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, break_at_calibration[1]))
    try:
        with pytest.raises(DiskFull, match="Everything saved before is intact"):
            list(steps)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, break_at_calibration)
    assert run.status["state"] == "failed"
    assert run.checkpoints.steps == [19]
    list(train(topk(), Stream(), 64 * 20, run=run.folder, snapshots=0, **KNOBS))
    assert run.status["state"] == "done"


def test_a_loss_that_is_not_finite_ends_the_run_before_it_spoils_the_weights(tmp_path):
    class Poisoned(Stream):
        def next(self, n):
            rows = super().next(n)
            if self.served >= 4096 + 64 * 10:
                rows["L1R"].x[0, 0] = math.inf
            return rows

    sae, run = topk(), Run(tmp_path / "run")
    with pytest.raises(FloatingPointError, match=r"'mse' of topk at L1R is (nan|inf) at step 10\. Lower lr"):
        list(train(sae, Poisoned(), 64 * 20, run=run.folder, checkpoint_steps=8, **KNOBS))
    assert run.status["state"] == "failed"
    assert "Diverged" in run.status["error"]
    assert run.checkpoints.steps == [8]
    assert all(t.isfinite().all() for t in sae.state_dict().values())


def test_a_folder_in_use_is_left_alone(tmp_path):
    holder = train(topk(), Stream(), 64 * 20, run=tmp_path / "run", **KNOBS)
    next(holder)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    sae, fresh = topk(), topk()
    with pytest.raises(RunInUse, match="in use by this very process"):
        next(train(sae, Stream(), 64 * 20, run=tmp_path / "run", **KNOBS))
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert same(sae, fresh)
    assert len(list(holder)) == 19


def test_a_run_of_another_config_is_left_alone(tmp_path):
    list(train(topk(), Stream(), 640, run=tmp_path / "run", **KNOBS))
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    with pytest.raises(ValueError, match=r"was made with sae\.k=3, not 4"):
        next(train(topk(k=4), Stream(), 640, run=tmp_path / "run", **KNOBS))
    with pytest.raises(ValueError, match=r"was made with source\.seed=0, not 1"):
        next(train(topk(), Stream(seed=1), 640, run=tmp_path / "run", **KNOBS))
    with pytest.raises(ValueError, match="resume=False would write over it"):
        next(train(topk(), Stream(), 640, run=tmp_path / "run", resume=False, **KNOBS))
    assert json.loads((tmp_path / "run" / "status.json").read_text()) == status


def test_mistakes_are_told_before_anything_happens(tmp_path):
    with pytest.raises(TypeError, match=r"no knob 'batchsize'\. Did you mean 'batch'"):
        train(topk(), Stream(), batchsize=3)
    with pytest.raises(ValueError, match="tokens=0 must lie in"):
        train(topk(), Stream(), 0)
    with pytest.raises(ValueError, match="does not serve site 'L9R', only L1R"):
        train({"L9R": topk()}, Stream())
    with pytest.raises(ValueError, match="serves L1R, L2R: say which SAE is for which"):
        train(topk(), Stream(sites=("L1R", "L2R")))
    with pytest.raises(ValueError, match="d_in=8, but L1R is 16 wide"):
        train(topk(d_in=8), Stream())
    with pytest.raises(ValueError, match="lists 1 folders for 2 SAEs"):
        train([topk(), topk()], Stream(), run=[tmp_path])
    sae = topk()
    with pytest.raises(ValueError, match="each one once"):
        train([sae, sae], Stream())

    class Wanting(TopK):
        needs = frozenset({"grad"})

    with pytest.raises(ValueError, match=r"needs grad: activations\(..., needs=\['grad'\]\)"):
        train(variant(Wanting), Stream())


def test_an_infinity_between_measured_steps_moves_no_weight_and_leaves_no_gradient(tmp_path):
    class Poisoned(Stream):
        def next(self, n):
            rows = super().next(n)
            if self.served >= 4096 + 64 * 7:
                rows["L1R"].x[0, 0] = math.inf
            return rows

    sae, run = topk(), Run(tmp_path / "run")
    with pytest.raises(FloatingPointError, match=r"gradient of topk at L1R is (nan|inf) at step 7\. Lower lr"):
        list(train(sae, Poisoned(), 64 * 20, run=run.folder, checkpoint_steps=6, **KNOBS | {"log_every": 5}))
    assert run.checkpoints.steps == [6]
    assert all(t.isfinite().all() for t in sae.state_dict().values())
    assert all(p.grad is None or not p.grad.any() for p in sae.parameters())


def test_gradients_left_by_others_do_not_count():
    left, clean = topk(), topk()
    left.W_dec.sum().backward()
    list(train(left, Stream(), 64 * 5, **KNOBS))
    list(train(clean, Stream(), 64 * 5, **KNOBS))
    assert same(left, clean)


def test_training_goes_on_from_the_weights_of_an_earlier_one(tmp_path):
    """At an input scale far from 1: not unfolding would begin with biases wrong by the scale."""
    sae = topk()
    first = list(train(sae, Stream(size=30.0), 64 * 200, run=tmp_path / "first", **KNOBS))[-1]
    again = Run(tmp_path / "first").sae
    second = next(train(again, Stream(size=30.0), 64 * 5, **KNOBS | {"lr": 1e-6}))
    assert second.fvu == pytest.approx(first.fvu, abs=0.1)
    assert second.fvu < 0.5


def test_a_generator_that_never_began_leaves_its_sae_untouched():
    sae, fresh = topk(), topk()
    train(sae, Stream(), 640, **KNOBS)
    assert same(sae, fresh)
    assert not sae.origin


def test_leaving_without_room_for_a_checkpoint_says_so(tmp_path):
    sae, run = topk(), Run(tmp_path / "run")
    steps = train(sae, Stream(), 64 * 20, run=run.folder, **KNOBS)
    for _ in range(7):
        next(steps)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(DiskFull, match="make room"):
            steps.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert run.status["state"] == "failed"
    assert "DiskFull" in run.status["error"]


def test_a_wish_that_comes_while_another_is_granted_is_not_lost(tmp_path, monkeypatch):
    run = Run(tmp_path / "run")
    steps = train(topk(), Stream(), 64 * 20, run=run.folder, **KNOBS)
    next(steps)
    run.control("save")
    save = Diary.save

    def slow(self, *args):
        save(self, *args)
        if run.wanted == "save":
            run.control("stop")

    monkeypatch.setattr(Diary, "save", slow)
    assert len(list(steps)) < 19
    assert run.status["state"] == "stopped"


def test_a_finished_run_whose_log_is_gone_still_gives_its_weights(tmp_path):
    run = Run(tmp_path / "run")
    list(train(topk(), Stream(), 640, run=run.folder, **KNOBS))
    (run.folder / "log.jsonl").unlink()
    sae = topk()
    (step,) = train(sae, Stream(), 640, run=run.folder, **KNOBS)
    assert "log is gone" in step.note
    assert same(sae, run.sae)


def test_what_a_variant_draws_after_a_step_comes_from_the_loops_generator():
    class Drawing(TopK):
        def after_step(self):
            with torch.no_grad():
                self.b_enc += 1e-3 * torch.randn_like(self.b_enc)

    found = []
    for _ in range(2):
        sae = variant(Drawing)
        torch.rand(len(found) + 1)  # the process draws something else each time
        list(train(sae, Stream(), 64 * 5, **KNOBS))
        found.append(sae)
    assert same(*found)
