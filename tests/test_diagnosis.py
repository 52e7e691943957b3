"""The doctor: silent on healthy runs of every variant, and each fault, really produced where it can be, is named."""

import json
import shutil
import subprocess
import sys
import time

import psutil
import pytest
import torch

from sae_lab import diagnosis
from sae_lab.cli import main
from sae_lab.diagnosis import Finding, doctor
from sae_lab.diagnosis.checks import CHECKS
from sae_lab.diagnosis.findings import SEVERITIES
from sae_lab.runs import Run, write_sae
from sae_lab.saes import REGISTRY, build
from sae_lab.saes.topk import TopK
from sae_lab.toys import Planted
from sae_lab.training import train

SMALL = {  # knobs that suit planted activations of 16 dimensions
    "relu": {"l1_weight": 3.0},
    "temporal_mask": {"l1_weight": 3.0},
    "p_anneal": {"l1_weight": 1.0},
    "gated": {"l1_weight": 0.1},
    "jumprelu": {"l0_weight": 0.02, "bandwidth": 0.05, "init_threshold": 0.05},
}
ALONE = sorted(name for name, cls in REGISTRY.items() if cls.needs <= {"grad", "peers"})  # the others need a model


class World(Planted):
    """Planted activations, spoilt on demand; with gradients, for those who need some."""

    needs = ("grad",)

    def __init__(self, spoil=lambda x, start: x, **config):
        super().__init__(**({"d_in": 16, "features": 48, "k": 3, "zipf": 0.5} | config))
        self.spoil = spoil

    def rows(self, start, n):
        x, codes = super().rows(start, n)
        return self.spoil(x, start), codes

    def next(self, n):
        rng = torch.Generator().manual_seed(self.served)
        return {site: r._replace(grad=torch.randn(r.x.shape, generator=rng)) for site, r in super().next(n).items()}


def trained(folder, name="topk", source=None, steps=100, sae=None, stop=None, **knobs):
    """The run of a little training; `stop`: the step after which nobody asks for more."""
    cls, sae = REGISTRY[name], dict(sae or {})
    fields = cls.Config.__dataclass_fields__
    if name != "pca":
        sae.setdefault("d_sae", 64)
    if "k" in fields:
        sae.setdefault("k", 4)
    made = build(name, d_in=16, **(SMALL.get(name, {}) | sae))
    knobs = {"batch": 256, "lr": 5e-3, "log_every": 4, "calibration_tokens": 4096, "snapshots": 0} | knobs
    for step in train(made, source or World(), knobs["batch"] * steps, run=folder, **knobs):
        if step.index == stop:
            break
    return Run(folder)


def evaluated(run, source):
    """Puts into eval.json what the SAE does on a stream that it was not trained on."""
    sae, x = run.sae, source.next(8192)["L0R"].x
    z = sae.encode(x)
    error = (sae.decode(z) - x).square().sum() / (x - x.mean(0)).square().sum()
    dead = 1 - z.fired.float().mean().item()
    numbers = {"l0": z.l0.item(), "fvu": error.item(), "dead": dead}
    run.write_eval(
        {name: {"value": v, "low": v, "high": v} for name, v in numbers.items()} | {"about": {"tokens": len(x)}}
    )
    return run


def found(run, *arguments) -> dict[str, Finding]:
    return {finding.name: finding for finding in doctor(run, *arguments).findings}


def rewritten(run, change):
    """The run with its log rows changed."""
    rows = [change(row) for row in run.rows]
    (run.folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def status(run, **changes):
    file = run.folder / "status.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return run


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("runs") / "run").folder


@pytest.fixture
def healthy(once, tmp_path):
    """A copy of a healthy run, to spoil."""
    return Run(shutil.copytree(once, tmp_path / "copy"))


@pytest.mark.parametrize("name", ALONE)
def test_on_a_healthy_run_it_is_silent_during_and_after_the_training(name, tmp_path):
    run = evaluated(trained(tmp_path / "run", name), World(stream=1))
    diagnosis = doctor(run)
    assert diagnosis.findings == ()
    assert diagnosis.healthy and "Nothing wrong was found" in repr(diagnosis)
    if REGISTRY[name].trainable:
        assert diagnosis.unchecked == {}
        assert set(diagnosis.passed) == set(CHECKS)
    for share in (0.1, 0.3, 0.5, 0.8):  # as the record was, then
        part = tmp_path / f"at {share}"
        part.mkdir()
        for file in ("config.json", "status.json"):
            shutil.copy(run.folder / file, part / file)
        lines = (run.folder / "log.jsonl").read_text().splitlines(keepends=True)
        (part / "log.jsonl").write_text("".join(lines[: int(share * len(lines))]))
        assert doctor(part).findings == ()


@pytest.mark.parametrize("name", ["topk", "relu"])
def test_an_absurd_learning_rate(name, tmp_path):
    said = found(trained(tmp_path, name, lr=1.0))
    assert {"no learning", "collapse", "dead latents", "misaligned encoder"} <= said.keys()
    assert "missed L0" not in said  # which would advise another k
    assert said["no learning"].severity == "critical"
    assert "Lower lr from 1: the recipe's is" in said["no learning"].remedy


def test_a_learning_rate_that_moves_nothing(tmp_path):
    said = found(trained(tmp_path, lr=1e-6))
    assert list(said) == ["no learning"]
    assert "add up to 8.8e-05" in said["no learning"].evidence
    assert said["no learning"].remedy.startswith("Raise lr from 1e-06")


def test_a_loss_that_jumps(tmp_path):
    said = found(trained(tmp_path, "relu", lr=1.0, log_every=2))
    assert "the loss is over twice its neighbours'" in said["loss spikes"].evidence
    assert said["loss spikes"].remedy.startswith("Lower lr")


def test_an_error_that_grows_again(tmp_path):
    """The text changes near the end, and learning from it is slower than the change."""
    other = World(seed=5)
    source = World(spoil=lambda x, start: x if start < 256 * 88 else 4 * other.rows(start, len(x))[0])
    said = found(trained(tmp_path, source=source, decay=0.5))
    assert said["divergence"].severity == "critical"
    assert "fvu was" in said["divergence"].evidence


@pytest.mark.parametrize("name", ["relu", "jumprelu"])
def test_a_penalty_that_is_off(name, tmp_path):
    weight = "l0_weight" if name == "jumprelu" else "l1_weight"
    said = found(trained(tmp_path, name, sae={weight: 0.0}))
    assert said["idle penalty"].severity == "critical"
    assert said["idle penalty"].remedy.startswith(f"Raise {weight} from 0")


def test_a_penalty_that_is_far_too_low(tmp_path):
    said = found(trained(tmp_path, "relu", sae={"l1_weight": 0.01}))
    assert list(said) == ["idle penalty"]
    assert "in 16 dimensions and 64 latents" in said["idle penalty"].evidence
    assert said["idle penalty"].remedy.startswith("Raise l1_weight three times")


def test_a_penalty_that_is_far_too_high(tmp_path):
    said = found(trained(tmp_path, "relu", sae={"l1_weight": 100.0}))
    assert {"no learning", "collapse", "dead latents"} <= said.keys()
    assert said["collapse"].remedy.startswith("Lower l1_weight, which is 100")


@pytest.mark.parametrize(("name", "size"), [("batchtopk", 1000.0), ("relu", 1000.0), ("topk", 0.001), ("gated", 0.001)])
def test_activations_at_the_wrong_scale(name, size, tmp_path):
    said = found(trained(tmp_path, name, World(spoil=lambda x, start: size * x), 40, scaling="none"))
    assert said["input scale"].severity == "critical"
    assert "scaling is 'none'" in said["input scale"].evidence
    assert said["input scale"].remedy.startswith("Leave scaling unset")


def test_a_scale_that_was_measured_on_other_text(tmp_path):
    class Begins(World):
        def statistics(self, site):
            return World().statistics(site)

    said = found(trained(tmp_path, source=Begins(spoil=lambda x, start: 5 * x), steps=40))
    assert said["input scale"].severity == "warning"
    assert "shuffle the text" in said["input scale"].remedy


@pytest.mark.parametrize("name", ["topk", "batchtopk"])
def test_a_k_that_the_data_has_no_use_for(name, tmp_path):
    said = found(trained(tmp_path, name, sae={"k": 40}))
    assert list(said) == ["missed L0"]
    assert "k is 40" in said["missed L0"].evidence
    assert said["missed L0"].remedy.startswith("Lower k to about")


def test_a_target_l0_that_is_not_reached(tmp_path):
    said = found(trained(tmp_path, "jumprelu", sae={"target_l0": 1.0, "target_weight": 1e-3}))
    assert "target_l0 is 1" in said["missed L0"].evidence


def test_a_target_that_is_met_where_latents_are_used_is_met(tmp_path):
    """`temporal_mask` switches latents off in training alone."""
    run = trained(tmp_path, "jumprelu", sae={"target_l0": 1.0, "target_weight": 1e-3})
    for l0, missed in ((1.02, False), (1.2, True)):
        run.write_eval({"l0": {"value": l0, "low": l0, "high": l0}, "about": {"tokens": 8192}})
        assert ("missed L0" in {finding.name for finding in doctor(run).findings}) == missed


def test_an_l0_that_is_still_falling_is_left_alone_until_the_end(healthy):
    """It is over d_in, but on its way."""

    def penalised(falls):
        config = Run(healthy.folder).config
        config["sae"] = {"d_in": 16, "d_sae": 64, "l1_weight": 1.0}
        (healthy.folder / "config.json").write_text(json.dumps(config))
        return rewritten(healthy, lambda row: row | {"l0": 60.0 - falls * row["step"]})

    for falls, share, told in ((0.4, 0.6, False), (0.0, 0.6, True), (0.4, 1.0, True)):
        run = penalised(falls)
        lines = (run.folder / "log.jsonl").read_text().splitlines(keepends=True)
        (run.folder / "log.jsonl").write_text("".join(lines[: int(share * len(lines))]))
        assert ("idle penalty" in found(run)) == told
        (run.folder / "log.jsonl").write_text("".join(lines))


def test_a_loss_without_a_reconstruction_is_judged_by_itself(tmp_path):
    """As end to end, where FVU need not fall."""

    class Far(TopK, name="far"):
        def objective(self, batch):
            out = super().objective(batch)
            return out._replace(terms={"kl": out.terms["mse"]})

    try:
        for lr, said in ((5e-3, set()), (1e-6, {"no learning"})):
            run = trained(tmp_path / str(lr), "far", lr=lr)
            run = rewritten(run, lambda row: row | {"fvu": 3.0})
            assert found(run).keys() == said
        assert "no term of its loss" in doctor(run).unchecked["divergence"]
    finally:
        del REGISTRY["far"]


def test_dead_latents(tmp_path):
    said = found(trained(tmp_path, sae={"d_sae": 512, "aux_weight": 0.0}, lr=3e-2))
    assert said["dead latents"].severity == "critical"
    assert "of 512 latents were silent for 2,560 tokens at step 100" in said["dead latents"].evidence
    assert said["dead latents"].remedy.startswith("Raise aux_weight from 0 to 0.03. Lower lr from 0.03")


def test_latents_that_are_dead_on_held_out_text_only(healthy):
    run = evaluated(healthy, World(stream=1))
    run.write_eval(run.eval | {"dead": {"value": 0.3}})
    assert not found(run)  # on 8,192 tokens, where rare latents look dead
    run.write_eval(run.eval | {"about": {"tokens": 200_000}})
    assert "eval.json: 30.0% of the latents never fire on 200,000" in found(run)["dead latents"].evidence


def test_a_few_tokens_that_drown_the_others(tmp_path):
    def spoil(x, start):
        rng = torch.Generator().manual_seed(start)
        return x + 100.0 * (torch.rand(len(x), 1, generator=rng) < 0.01)

    assert "attention sink" in found(trained(tmp_path, source=World(spoil), steps=40))["loud tokens"].evidence


def test_latents_that_fire_on_every_token(tmp_path):
    """For a part of the activations that all share, and that varies."""

    def spoil(x, start):
        rng = torch.Generator().manual_seed(start)
        return x + 4.0 * (1 + torch.rand(len(x), 1, generator=rng))

    said = found(trained(tmp_path, "batchtopk", World(spoil)))["dominant latents"]
    assert said.severity == "warning"
    assert "the densest fires on 100% of tokens" in said.evidence


def test_a_latent_that_does_most_of_the_work(tmp_path):
    """One feature, and twenty latents a token."""
    said = found(trained(tmp_path, source=World(features=1, k=1), sae={"k": 20}))
    assert {"dominant latents", "missed L0", "dead latents"} <= said.keys()


def test_a_single_latent_that_is_always_on_is_only_noted(healthy):
    def always(row):
        return row | {"l0": 1.0, "vitals": row["vitals"] | {"densest": 0.99}}

    assert found(rewritten(healthy, always))["dominant latents"].severity == "note"


def test_a_threshold_that_was_never_set(tmp_path):
    run = trained(tmp_path, "batchtopk")
    sae = run.sae
    sae.threshold.zero_()
    write_sae(sae, run.folder / "sae")
    said = found(evaluated(run, World(stream=1)))
    assert said["unset threshold"].severity == "critical"
    assert said["inference gap"].severity == "critical"
    assert "eval.json: L0" in said["inference gap"].evidence


def test_an_sae_that_is_measured_on_other_activations(healthy):
    said = found(evaluated(healthy, World(spoil=lambda x, start: x + 1.0)))
    assert "the same model, site and kind of text" in said["inference gap"].remedy


def test_thresholds_that_their_kernel_is_too_narrow_for(tmp_path):
    said = found(trained(tmp_path, "jumprelu", sae={"bandwidth": 1e-6}))
    assert said["stuck thresholds"].remedy.startswith("Raise bandwidth, 1e-06")


def test_weights_that_are_not_finite(healthy):
    sae = healthy.sae
    sae.W_enc.data[3, 3] = torch.nan
    write_sae(sae, healthy.folder / "sae")
    assert "W_enc" in found(healthy)["non-finite weights"].evidence


def test_a_file_that_was_cut_short(healthy):
    weights = healthy.folder / "sae" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    diagnosis = doctor(healthy)
    assert [finding.name for finding in diagnosis.findings] == ["damaged file"]
    assert diagnosis.unchecked["non-finite weights"] == "a file is damaged"


def test_latents_that_are_the_same(healthy):
    sae = healthy.sae
    sae.W_dec.data[::2] = sae.W_dec.data[1::2]
    write_sae(sae, healthy.folder / "sae")
    assert "100% of 64 decoder rows have a twin" in found(healthy)["duplicate latents"].evidence


def test_a_loss_that_is_no_longer_finite(tmp_path):
    source = World(spoil=lambda x, start: torch.where(torch.tensor(start >= 256 * 50), torch.inf, x))
    with pytest.raises(FloatingPointError):
        trained(tmp_path, source=source)
    said = found(Run(tmp_path))
    assert "Diverged" in said["failure"].evidence and "of 100" in said["failure"].evidence
    assert "Lower lr" in said["failure"].remedy


@pytest.fixture
def running(tmp_path):
    """A training that somebody holds and nobody asks for more, with a checkpoint at step 20."""
    sae = build("topk", d_in=16, d_sae=64, k=4)
    steps = train(sae, World(), 256 * 100, run=tmp_path / "run", batch=256, lr=5e-3, log_every=2, checkpoint_steps=20)
    for step in steps:
        if step.index == 30:
            break
    yield Run(tmp_path / "run")
    steps.close()


def test_a_running_training_has_nothing_wrong_with_it(running):
    diagnosis = doctor(running)
    assert diagnosis.healthy and diagnosis.state == "running"
    assert diagnosis.unchecked["unset threshold"] == "there is no final SAE: the run is running"
    assert "Could not look for:" in repr(diagnosis)


def test_while_there_is_no_final_sae_the_newest_snapshot_is_looked_at(running):
    sae = running.snapshot(25)
    sae.W_dec.data[3] = torch.inf
    write_sae(sae, running.folder / "snapshots" / "00000025")
    assert found(running)["non-finite weights"].evidence == "snapshots/00000025/: W_dec hold NaN or infinity"


def test_a_process_that_is_gone(running):
    gone = subprocess.Popen([sys.executable, "-c", "pass"])
    gone.wait()
    status(running, pid=gone.pid, heartbeat=time.time() - 3 * 3600)
    said = found(running)["dead process"]
    assert said.severity == "critical"
    assert f"process {gone.pid} on" in said.evidence and "its last heartbeat was 3 hours ago" in said.evidence
    assert "it goes on from the checkpoint at step 20" in said.remedy


def test_a_process_on_another_machine_is_not_called_dead_while_its_heart_beats(running):
    status(running, host="elsewhere", heartbeat=time.time())
    assert "dead process" in doctor(running).unchecked
    status(running, heartbeat=time.time() - 3600)
    assert "dead process" in found(running)


def test_a_spoilt_status_is_one_of_a_dead_process(running):
    (running.folder / "status.json").write_text("{")
    assert "cut short" in found(running)["dead process"].evidence


def test_a_process_that_stands_still(running):
    assert psutil.pid_exists(running.status["pid"])
    status(running, heartbeat=time.time() - 600)
    said = found(running)["standstill"]
    assert "lives, but its last heartbeat was 10 minutes ago" in said.evidence
    status(running, state="starting")  # a large model is on its way
    assert "standstill" not in found(running)


def test_a_training_that_has_become_slow(healthy):
    run = healthy
    usual = run.rows[10]["rate"]
    late = sorted(row["step"] for row in run.rows)[-6]
    rewritten(run, lambda row: row | {"rate": 50.0 if row["step"] > late else usual})
    assert "50 tokens a second over the last five rows" in found(run)["slowdown"].evidence
    rewritten(run, lambda row: row | {"rate": 0.5 * usual if row["step"] > late else usual})
    assert not found(run)


def test_a_checkpoint_that_was_damaged(tmp_path):
    run = trained(tmp_path, stop=50, checkpoint_steps=20)
    weights = run.checkpoints.folder / f"{run.checkpoints.steps[0]:08d}" / "sae.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    assert "was damaged" in found(trained(tmp_path, checkpoint_steps=20))["disk trouble"].evidence


def test_a_log_of_an_earlier_version_says_what_it_cannot_tell(healthy):
    run = rewritten(healthy, lambda row: {key: row[key] for key in row if key != "vitals"})
    diagnosis = doctor(run)
    assert diagnosis.healthy
    assert diagnosis.unchecked.keys() == {"input scale", "loud tokens", "dominant latents", "inference gap"}
    assert "earlier version" in diagnosis.unchecked["loud tokens"]


def test_a_variant_that_only_another_notebook_knows(tmp_path):
    class Mine(TopK, name="mine"):
        pass

    try:
        run = trained(tmp_path, "mine", lr=1.0, snapshots=2)
    finally:
        del REGISTRY["mine"]
    diagnosis = doctor(run)
    assert "Lower lr from 1 to 0.33" in {f.name: f for f in diagnosis.findings}["no learning"].remedy
    assert "no variant named 'mine' is known here" in diagnosis.unchecked["input scale"]
    shutil.rmtree(run.folder / "sae")
    assert "no variant named 'mine' is known here" in doctor(run).unchecked["non-finite weights"]


def test_the_worst_comes_first_and_every_finding_has_all_its_parts(tmp_path):
    diagnosis = doctor(trained(tmp_path, lr=1.0))
    ranks = [SEVERITIES.index(finding.severity) for finding in diagnosis.findings]
    assert ranks == sorted(ranks) and len(set(ranks)) > 1
    assert json.loads(json.dumps(diagnosis.to_json()))["healthy"] is False
    assert list(diagnosis.table.columns) == ["name", "severity", "evidence", "remedy"]
    assert len(diagnosis.table) == len(diagnosis.findings)
    for finding in diagnosis.findings:
        assert finding.evidence.split(":")[0] in ("log.jsonl", "config.json", "sae/")
        assert finding.remedy.endswith(".") and finding.evidence in " ".join(repr(diagnosis).split())


def test_with_the_model_it_measures_the_sae(tmp_path):
    from small import small_llama

    from sae_lab.harvest import activations

    lm = small_llama(tmp_path / "model")
    source = activations(lm, "L1R", text="world", seed=0, context=64, buffer=4096)
    sae = build("batchtopk", d_in=32, d_sae=64, k=4)
    list(train(sae, source, 256 * 60, run=tmp_path / "run", batch=256, lr=5e-3, log_every=4))
    run = Run(tmp_path / "run")
    assert "evaluate it, or give doctor() the model" in doctor(run).unchecked["inference gap"]
    diagnosis = doctor(run, lm, tokens=4000)
    assert diagnosis.healthy and "inference gap" in diagnosis.passed
    sae = run.sae
    sae.threshold.mul_(0.2)
    write_sae(sae, run.folder / "sae")
    assert "validation text: L0" in found(run, lm)["inference gap"].evidence


def test_where_there_is_no_run_it_says_so_and_a_run_that_only_starts_is_not_judged(tmp_path):
    with pytest.raises(FileNotFoundError, match="No run in"):
        doctor(tmp_path / "none")
    (tmp_path / "job.json").write_text("{}")
    run = doctor(tmp_path)
    assert run.healthy and run.unchecked["no learning"] == "there is no config.json yet: the training has not begun"


def test_the_command_line_says_the_same(healthy, tmp_path, capsys):
    run = rewritten(healthy, lambda row: row | {"dead": 60})
    assert main(["doctor", str(run.folder)]) == 0
    assert capsys.readouterr().out.strip() == repr(doctor(run))
    assert main(["doctor", str(run.folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == doctor(run).to_json()
    assert main(["doctor", str(tmp_path / "none")]) == 2
    assert diagnosis.doctor is doctor and "No run in" in capsys.readouterr().err
