"""Many SAEs: one forward pass per group, whatever the sites; each SAE is what it is alone; killed groups go on."""

import json
import os
import signal
import threading
import time
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from small import llama_and_text

import sae_lab as sl
from sae_lab import arithmetic
from sae_lab.arithmetic import Figures
from sae_lab.cli import main
from sae_lab.harvest import activations
from sae_lab.models import figures, traces
from sae_lab.runs import Run
from sae_lab.saes import build
from sae_lab.saes.topk import TopK
from sae_lab.sparse import Adam
from sae_lab.sweeps import Plan, Sweep, groups, outlook, run_sweep, suite_file, sweep, work
from sae_lab.sweeps.groups import Sizes, grouped
from sae_lab.training import train

LOOP = {"tokens": 128 * 24, "batch": 128, "lr": 1e-2, "snapshots": 0, "sample": 256, "calibration_tokens": 512}
KNOBS = {"k": 4, "d_sae": [48], "seeds": 1, "choose_in": "float32", "evaluation": 300, "buffer": 2048, **LOOP}
SITES = ["L0R", "L1TC", "L2R"]
LLAMA = Figures(d_model=4096, layers=32, mlp=14_336, heads=32, kv_heads=8, head_dim=128, vocab=128_256)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a small Llama and a text: the knobs that name them."""
    return llama_and_text(tmp_path_factory.mktemp("llama")) | {"context": 64}


@pytest.fixture
def unmeasured(monkeypatch):
    """No evaluations, which read text, too."""
    number = {"value": 0.5}
    saved = dict.fromkeys(("fvu", "l0", "dead", "ce_recovered"), number)
    monkeypatch.setattr(work, "evaluate", lambda *a, **k: SimpleNamespace(to_json=lambda: saved))


@pytest.fixture
def forwards(monkeypatch):
    """The sites of every forward pass of the model."""
    seen, read = [], traces.read
    monkeypatch.setattr(
        traces, "read", lambda model, ids, sites, eps: seen.append(sites) or read(model, ids, sites, eps)
    )
    return seen


def weights(folder: Path) -> dict[str, dict]:
    return {p.parent.name: Run(p.parent).sae.state_dict() for p in sorted(folder.glob("*/sae"))}


def same(a: dict, b: dict) -> bool:
    pairs = zip(a.values(), b.values(), strict=True)
    return list(a) == list(b) and all(torch.equal(x, y) for s, t in pairs for x, y in zip(s.values(), t.values()))


# Groups


def test_all_sites_learn_from_one_forward_pass(model, unmeasured, forwards, tmp_path):
    sweep(["topk"], folder=tmp_path / "one", **KNOBS | {"site": "L2R"}, **model)
    alone = len(forwards)
    forwards.clear()
    found = sweep(["topk", "batchtopk"], folder=tmp_path / "many", **KNOBS, site=SITES, **model)
    assert len(forwards) == alone > 4
    assert forwards[0] == {"L0R", "L1TC", "L1M", "L2R"}  # a transcoder's target as well
    assert found.table.site.tolist() == SITES * 2
    assert "6 SAEs at several sites" in found.subtitle and "in 1 pass;" in found.subtitle
    forwards.clear()
    sweep(["topk", "batchtopk"], folder=tmp_path / "parts", at_once=3, **KNOBS, site=SITES, **model)
    first, second = forwards[0], forwards[-1]
    assert (first, second) == ({"L0R", "L1TC", "L1M"}, {"L1TC", "L1M", "L2R"})  # those of one site stay together
    assert len(forwards) == 2 * alone
    assert same(weights(tmp_path / "many"), weights(tmp_path / "parts"))


def test_every_sae_of_many_sites_is_bit_by_bit_what_it_is_alone(model, unmeasured, tmp_path):
    found = sweep(["topk", "jumprelu"], folder=tmp_path, **KNOBS, site=SITES, **model)
    lm = sl.load_model(model["model"])
    for row, asked in list(zip(found.rows, found.plan.saes))[::2]:
        source = activations(lm, row["site"], text=model["text"], context=64, buffer=2048)
        aim = {"k": 4} if asked.variant == "topk" else {"target_l0": 4}
        knobs = {"d_in": 32, "d_sae": 48, "choose_in": "float32", "transcode": row["site"] == "L1TC", **aim}
        sae = build(asked.variant, **knobs)
        list(train(sae, source, **LOOP))
        assert same({"": sae.state_dict()}, {"": Run(row["run"]).sae.state_dict()}), asked.name


def test_a_group_is_as_large_as_memory_lets_it_be():
    plan = Plan.of(["topk"], site=["L2R", "L0R", "L1R"], k=16, d_sae=[4096], seeds=2, tokens=10**6)
    size = Sizes(plan, LLAMA, gpu=True)
    (every,) = plan.groups
    assert [plan.site(asked) for asked in every] == ["L0R", "L0R", "L1R", "L1R", "L2R", "L2R"]
    assert grouped(size, size(every)) == [every]
    assert [len(group) for group in grouped(size, size(every) - 1)] == [5, 1]
    assert [len(group) for group in grouped(size, size(every[:2]))] == [2, 2, 2]
    assert [len(group) for group in grouped(size, 1.0)] == [1] * 6  # measured, not asked for: it is tried
    with pytest.raises(ValueError, match=r"topk-k16-d4096-siteL0R-s0 takes 19\.8 GB, the model with it, and memory=1"):
        grouped(Sizes(replace(plan, memory=1.0), LLAMA, gpu=True), 1e9)


def test_where_a_checkpoint_is_put_together_it_takes_memory():
    plan = Plan.of(["topk"], site="L0R", k=16, d_sae=[1024, 4096], seeds=1, tokens=10**6, dtype="bfloat16", context=64)
    here, there = Sizes(plan, LLAMA, gpu=False), Sizes(plan, LLAMA, gpu=True)
    (every,) = plan.groups
    page = 2 * (8192 - 2048) * (6 * 4096 + 3 * 14_336 + 4096)  # a GPU reads more text at once
    largest = 12 * (2 * 4096 * 4096 + 4096 + 4096)  # weight and two moments, one SAE after another
    assert here(every) - there(every) == largest - page


def test_the_bytes_of_a_group_are_those_of_its_tensors():
    sae = build("topk", d_in=64, d_sae=512, k=8)
    adam = Adam(sae.named_parameters())
    held = 2 * sum(p.nbytes for p in sae.parameters()) + sum(t.nbytes for t in (*adam.m.values(), *adam.v.values()))
    assert arithmetic.HELD * arithmetic.sae_params(64, 512) == held
    batch = 100
    assert arithmetic.sae_bytes(64, 512, 8, batch) == held + batch * (8 * 4 * 64 + 48 * 8)
    lm = sl.load_model("tiny")
    ring = activations(lm, ["L0R", "L1TC"], buffer=4096)
    ring.next(1024)
    widths = [lm.d_model] * 3  # and L1M
    assert sum(a.nbytes for a in ring._ring.values()) == arithmetic.ring_bytes(widths, 4096, 4)
    tied = sum(p.numel() for name, p in lm.module.named_parameters() if "norm" not in name)
    assert figures("tiny").params - lm.vocab * lm.d_model == tied
    with pytest.raises(ValueError, match="There is no L4R: the model has 4 layers"):
        figures("tiny").d_in("L4R")


def test_peers_stay_together_and_other_trainings_have_passes_of_their_own():
    wide = {"48": {"tokens": 4096}, "L0R": {"lr": 1e-3}, "R": {"aux_weight": 0.5}, "topk": {"aux_weight": 0.25}}
    plan = Plan.of(["topk", "mutual_feature"], site=["L0R", "L1M"], k=4, d_sae=[24, 48], seeds=2, tokens=2048, own=wide)
    plan.check()
    named = [
        [asked.name.replace("mutual_feature", "mf") for asked in group] for group in plan.packed(lambda group: False)
    ]
    assert ["mf-k4-d24-siteL0R-s0", "mf-k4-d24-siteL0R-s1"] in named  # though memory is too small for them
    assert len(plan.groups) == 4 + 4
    jobs = {asked.name: plan.job_of(asked, Path()) for asked in plan.saes}
    assert jobs["topk-k4-d48-siteL0R-s2"].train.tokens == 4096 and jobs["topk-k4-d24-siteL0R-s0"].train.tokens == 2048
    assert {job.train.lr for job in jobs.values() if job.site == "L0R"} == {1e-3}
    assert jobs["topk-k4-d24-siteL0R-s0"].sae["aux_weight"] == 0.25  # the variant's word counts more than the part's
    assert jobs["topk-k4-d24-siteL1M-s0"].sae["aux_weight"] == 0.25
    assert jobs["mutual_feature-k4-d24-siteL0R-s0"].sae["aux_weight"] == 0.5
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_what_was_free_at_first_decides_for_good(model, unmeasured, monkeypatch, tmp_path):
    knobs = KNOBS | {"site": SITES}
    for done, _ in enumerate(run_sweep(Plan.of(["topk"], **knobs, **model), tmp_path), 1):
        if done == 3:
            break
    monkeypatch.setattr(groups, "_free", lambda name: 1.0)
    found = sweep(["topk"], folder=tmp_path, **knobs, **model)
    assert "in 1 pass;" in found.subtitle
    assert "resumed at step 3" in Run(found.rows[0]["run"]).notes[0]
    assert sweep(["topk"], folder=tmp_path, memory=8.0, devices=["cpu"], **knobs, **model).rows == found.rows


# Processes

CREW = KNOBS | {"site": ["L0R", "L2R"], "at_once": 1, "devices": ["cpu", "cpu"], "checkpoint_steps": 10}


@pytest.fixture(scope="module")
def straight(model, tmp_path_factory):
    """The same SAEs, trained in this process."""
    folder = tmp_path_factory.mktemp("straight")
    return sweep(["topk"], folder=folder, **CREW | {"devices": [], "tokens": 128 * 150}, **model)


def test_groups_have_processes_and_one_that_is_killed_goes_on_from_its_checkpoint(
    model, straight, tmp_path, monkeypatch
):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    victim, killed = Run(tmp_path / straight.rows[0]["run"].split("/")[-1]), []

    def kill():
        while not (victim.checkpoints.steps and victim.status["step"] < 140):
            time.sleep(0.02)
        killed.append(victim.status)
        os.kill(victim.status["pid"], signal.SIGKILL)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    steps = list(run_sweep(Plan.of(["topk"], **CREW | {"tokens": 128 * 150}, **model), tmp_path))
    thread.join(10)
    assert killed and killed[0]["pid"] != os.getpid()
    found = Sweep.load(tmp_path)
    assert same(weights(tmp_path), weights(straight.folder))
    assert [row["fvu"] for row in found.rows] == [row["fvu"] for row in straight.rows]
    assert found.run.notes == [f"step {steps_before(found)}: {victim.name}: killed by signal 9"]
    assert any("resumed at step" in note for note in victim.notes)
    other = Run(found.rows[1]["run"])
    assert other.notes == [] and other.status["pid"] not in (victim.status["pid"], os.getpid())
    assert (steps[-1].index, steps[-1].steps, steps[-1].tokens) == (300, 300, 300 * 128) and steps[-1].saes
    assert found.run.status["state"] == "done" and found.run.errors == ""


def steps_before(found: Sweep) -> int:
    """As the sweep's log has it, which no test foresees."""
    return found.run.rows[0]["step"]


def test_a_killed_sweep_takes_its_processes_along_and_goes_on(model, straight, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    knobs = CREW | {"tokens": 128 * 150, "at_once": None}  # in one group, to the same bits
    found = sweep(["topk"], folder=tmp_path, detach=True, **knobs, **model)
    first = Run(found.rows[0]["run"])
    while first.status["step"] < 5 and found.run.alive:
        time.sleep(0.02)
    worker = first.status["pid"]
    assert worker != found.run.status["pid"]
    os.kill(found.run.status["pid"], signal.SIGKILL)
    while first.alive:
        time.sleep(0.05)
    assert first.status["state"] == "stopped"  # with a checkpoint
    found.run.resume()
    done = found.wait(timeout=300)
    assert done.run.errors == ""
    assert same(weights(tmp_path), weights(straight.folder))


def test_a_crew_is_told_to_stop_and_a_failing_group_says_why(model, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    one = CREW | {"devices": ["cpu"]}
    plan = Plan.of(["topk"], **one | {"tokens": 128 * 1500}, **model)
    seen = []
    for step in run_sweep(plan, tmp_path):
        seen.append(step)
        Run(tmp_path).control("stop")
    assert Run(tmp_path).status["state"] == "stopped" and seen
    assert {Run(tmp_path / asked.name).status["state"] for asked in plan.saes} <= {"stopped", "none", "starting"}
    (tmp_path / "text.txt").write_text("Too short.")
    with pytest.raises(RuntimeError, match="The group of topk-k4-d48-siteL0R-s0 failed: ValueError: None of"):
        list(run_sweep(Plan.of(["topk"], **one, **model | {"text": str(tmp_path / "text.txt")}), tmp_path / "short"))
    assert Run(tmp_path / "short").status["state"] == "failed"


def test_a_group_that_is_killed_again_and_again_is_given_up(model, tmp_path, monkeypatch):
    from sae_lab.sweeps import crew

    class Dead:
        def __init__(self, *a, **k):
            self.stdin = StringIO()

        def poll(self):
            return -9

        def kill(self):
            pass

        terminate = kill

        def wait(self, timeout=None):
            return -9

    monkeypatch.setattr(crew.subprocess, "Popen", Dead)
    with pytest.raises(RuntimeError, match=r"killed 6 times at step 0 [(]signal 9[)]: if memory ran out"):
        list(run_sweep(Plan.of(["topk"], **CREW, **model), tmp_path))
    monkeypatch.setattr(TopK, "__module__", "__main__")
    with pytest.raises(ValueError, match="defined in this notebook, which a process of its own does not see"):
        list(run_sweep(Plan.of(["topk"], **CREW, **model), tmp_path / "other"))


# Suite files

FILE = """
sites = ["L0R", "L1-2M"]
variants = ["topk", "batchtopk"]
k = 4
d_sae = [48]
seeds = 1
choose_in = "float32"
evaluation = 300
buffer = 2048
tokens = 3072
batch = 128
lr = 1e-2
snapshots = 0
calibration_tokens = 512
own.topk.aux_weight = 0.0
"""


def test_a_suite_file_is_planned_run_and_shown(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = f'model = "{model["model"]}"\ntext = "{model["text"]}"\ncontext = 64\n{FILE}'
    Path("mine.toml").write_text(text)
    said = suite_file("mine.toml")
    assert (said.folder, said.studied, said.shape) == ("runs/mine", None, None)
    assert said.plan.sites == ["L0R", "L1M", "L2M"] and said.plan.own == {"topk": {"aux_weight": 0.0}}
    assert main(["suite", "plan", "mine.toml"]) == 0
    shown = capsys.readouterr().out
    assert "6 SAEs at 3 sites" in shown and "1 pass over the text, 3,072 tokens through the model" in shown
    assert "assumed:" in shown and "measured: most of what is free here" in shown
    hours = json.loads(_out(capsys, ["suite", "plan", "mine.toml", "--json"]))["gpu_hours"]
    flags = ["--gpu-flops", str(2 * 989e12), "--gpu-bandwidth", str(2 * 3.35e12), "--memory", "1.5"]
    half = json.loads(_out(capsys, ["suite", "plan", "mine.toml", *flags, "--json"]))
    assert half["gpu_hours"] == pytest.approx(hours / 2) and half["limit_bytes"] == 1.5e9
    assert half["assumptions"][0].startswith("gpu_flops = 1.978e+15: FLOP/s")
    assert main(["suite", "show", "mine.toml"]) == 2
    assert "No sweep in" in capsys.readouterr().err
    assert main(["suite", "run", "mine.toml", "--json"]) == 0
    ran = json.loads(capsys.readouterr().out)
    assert [row["site"] for row in ran["saes"]] == ["L0R", "L1M", "L2M"] * 2
    assert all(row["state"] == "done" and row["fvu"] > 0 for row in ran["saes"])
    for where in ("mine.toml", "runs/mine"):
        assert main(["suite", "show", where, "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == ran
    assert main(["suite", "run", "mine.toml"]) == 0  # again: it is read
    assert "ce_recovered" in capsys.readouterr().out
    found = sweep(said.plan, folder="runs/mine")
    assert json.loads(json.dumps(found.to_json())) == ran
    assert main(["suite", "rum", "mine.toml"]) == 2
    assert "No suite 'rum': write suite plan FILE" in capsys.readouterr().err
    with pytest.raises(TypeError, match="a plan or knobs, not both: put k into"):
        sweep(said.plan, folder="runs/mine", k=3)


def _out(capsys, line: list[str]) -> str:
    assert main(line) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("sites = [", "Invalid|Unclosed|Expected|expected"),
        ('sites = ["L0Q"]', "No site named 'L0Q'"),
        ('sites = ["L3-1R"]', "first layer must be below its last"),
        ('sites = ["L0-9999R"]\nseeds = 1000', "more than 20,000 SAEs"),
        ("sites = []", "sites names none"),
        ("sites = [3]", "sites names 3: write names"),
        ('sites = ["L1R", "L0-1R"]', "sites names L1R twice"),
        ('site = "L1R"', "site is called sites here"),
        ("tokns = 5", "no knob 'tokns'"),
        ("seeds = -1", "seeds=-1 must lie in"),
        ("seeds = true", "seeds=True must be int"),
        ("lr = nan", "lr=nan must lie in"),
        ("lr = [1e-3, inf]", "lr=inf must lie in"),
        ("k = [[1]]", "k = .* must be text, a number"),
        ("k = 1979-05-27", "k = .* must be text, a number"),
        ("[topk]\naux_weight = 1.0", r"\[topk\] is no table .* stand in \[own.topk\]"),
        ("own = 3", "own = 3 must be a table"),
        ("own.topk = 3", "own.topk = 3 must be a table of knobs"),
        ("own.relu.k = 3", "Knobs for 'relu', which is none of the variants, widths or sites: topk"),
        ("own.topk.seed = 3", "seed cannot be that of 'topk' alone"),
        ("own.topk.d_sae = 3", "d_sae cannot be that of 'topk' alone"),
        ("own.topk.aux_wait = 3", "no knob 'aux_wait'"),
        ('folder = "../../elsewhere"', "folder='../../elsewhere' must lie below"),
        ('folder = "/etc"', "folder='/etc' must lie below"),
        ("folder = 3", "folder=3 must lie below"),
        ("studied = 10", "studied=10 must be a number of tokens"),
        ('studied = 5000\nsites = ["L0R", "L1R"]', "studies are of one site, and there are 2"),
        ('devices = ["gpu0"]', "devices names 'gpu0': write cpu, cuda"),
        ("memory = 0", "memory=0 must lie in"),
        ("gpus = 2", "gpus=2, nodes=1 share one SAE, .* give devices="),
        ('variants = ["topkk"]', "Did you mean 'topk'"),
        ("[shape]\nd_model = 8", r"\[shape\] has d_model, .* 'layers' is missing"),
        (
            "[shape]\nd_model = 8\nlayers = 0\nmlp = 1\nheads = 1\nkv_heads = 1\nhead_dim = 1\nvocab = 1",
            "layers=0 must be a whole number",
        ),
        ("a" * 2**20 + " = 3", "bytes are no suite file"),
        ("k = " + "[" * 50_000, "nested|Invalid|recursion|must be"),
        ("k = '\x00'", "character"),
        (b"k = '\xff'", "utf-8"),
    ],
)
def test_what_is_wrong_with_a_suite_file_is_told_in_one_line(wrong, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    base = "" if isinstance(wrong, str) and wrong.startswith("variants") else 'variants = ["topk"]\n'
    Path("bad.toml").write_bytes(wrong if isinstance(wrong, bytes) else (base + wrong).encode())
    with pytest.raises(ValueError, match=said) as error:
        suite_file("bad.toml")
    assert str(error.value).startswith("bad.toml: ") and len(str(error.value)) < 1000
    assert main(["suite", "run", "bad.toml"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.toml"]


def test_a_file_that_is_not_there_is_no_suite(capsys):
    assert main(["suite", "plan", "nowhere.toml"]) == 2
    assert "No suite file 'nowhere.toml'. Give a TOML file, or one of llama-scope" in capsys.readouterr().err


# Arithmetic


def test_the_llama_scope_plan_by_hand():
    """Every number from the widths of Llama 3.1 8B and the released recipe, multiplied out here."""
    said = suite_file("llama-scope")
    plan = said.plan
    assert len(plan.saes) == 256 and len(plan.sites) == 128
    jobs = {(asked.d_sae, plan.site(asked)): plan.job_of(asked, Path()) for asked in plan.saes}
    assert {job.train.tokens for (d_sae, _), job in jobs.items() if d_sae == 32_768} == {800_000_000}
    assert {job.train.steps for (d_sae, _), job in jobs.items() if d_sae == 131_072} == {781_250}
    assert jobs[32_768, "L5TC"].own["transcode"] and not jobs[32_768, "L5TC"].own["tied_init"]
    assert "tied_init" not in jobs[32_768, "L5R"].own
    found = outlook(plan, said.shape)
    # a layer: queries and output 4096 x 4096, keys and values 4096 x 1024, three of 4096 x 14336
    layer = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14_336
    assert LLAMA.layer_params == layer == 218_103_808
    assert LLAMA.params == 32 * layer + 2 * 128_256 * 4096 == pytest.approx(8.03e9, rel=1e-3)
    token = 32 * (2 * layer + 4 * 512.5 * 4096)  # each token attends to itself and all before it
    assert arithmetic.forward_flop(LLAMA, 32, 1024) == token == 14_227_341_312
    narrow, wide = (2 * 4096 * d_sae + 12 * 50 * 4096 for d_sae in (32_768, 131_072))
    assert arithmetic.step_flop(4096, 131_072, 50) == wide == 1_076_199_424
    # a wide one: 1.07e9 parameters of 16 bytes; 80 GB take two of them beside 16 GB of model
    assert arithmetic.sae_params(4096, 131_072) == 2 * 4096 * 131_072 + 131_072 + 4096
    assert {len(g.saes) for g in found.groups if g.saes[0].d_sae == 131_072} == {2}
    assert all(g.memory <= 72e9 for g in found.groups) and found.limit == 72e9
    held = [16 * 1_073_876_992 + 2048 * (8 * 4 * 4096 + 48 * 50)] * 2
    model = 2 * (LLAMA.params + 8192 * (6 * 4096 + 3 * 14_336 + 2 * 4096))
    first = next(g for g in found.groups if g.saes[0].d_sae == 131_072)
    assert first.sites == ["L0A", "L0TC"]  # a transcoder's target is read as well: three sites
    assert first.memory == 10**9 + sum(held) + model + 8192 * 2 * 4096 + 65_536 * (3 * 4096 * 2 + 24)
    # tokens: a pass for each group
    passes = {d_sae: sum(g.saes[0].d_sae == d_sae for g in found.groups) for d_sae in (32_768, 131_072)}
    assert passes == {32_768: 13, 131_072: 64}
    assert found.tokens == 13 * 800_000_000 + 64 * 1_600_000_000
    # hours: the SAEs' products do not hang on the groups
    steps = 128 * (800_000_000 * narrow + 1_600_000_000 * wide)
    assert sum(g.step for g in found.groups) == pytest.approx(steps)
    assert sum(found.hours(g)[1] for g in found.groups) == pytest.approx(steps / (989e12 * 0.4) / 3600)
    swept = 128 * 40 * (390_625 * 268_472_320 + 781_250 * 1_073_876_992)
    assert sum(g.swept for g in found.groups) == pytest.approx(swept)
    assert sum(found.hours(g)[2] for g in found.groups) == pytest.approx(swept / (3.35e12 * 0.7) / 3600)
    forward = sum(g.tokens * token * g.depth / 32 for g in found.groups)
    assert sum(g.forward for g in found.groups) == pytest.approx(forward)
    assert found.evaluated == 256 * (200_000 + 5 * 32_768)
    hours = (forward + found.evaluated * token + steps) / (989e12 * 0.4) / 3600 + swept / (3.35e12 * 0.7) / 3600
    assert found.gpu_hours == pytest.approx(hours)
    assert found.cache == 1_600_000_000 * (128 * 4096 * 2 + 24)  # 1.7 PB: the suite streams
    assert found.saved == 4 * 128 * (268_472_320 + 1_073_876_992)
    told = json.loads(json.dumps(found.to_json()))
    assert told["gpu_hours"] == found.gpu_hours and told["passes"] == len(told["groups"]) == 77
    shown = repr(found)
    assert "1,678 TB" in shown and "a group may take 72.0 GB: assumed" in shown
    assert "hours" in shown and "measured" not in shown
