"""What a training would take: amounts of work against arithmetic by hand and against what real steps do; no clock."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import sae_lab as sl
from sae_lab import workload
from sae_lab.arithmetic import Figures, disk_bytes, forward_flop
from sae_lab.bench import heavy_tailed
from sae_lab.cli import main
from sae_lab.planning import Machine, gauging
from sae_lab.planning.gauging import Fixed, explained
from sae_lab.saes import REGISTRY, Batch, build
from sae_lab.sparse import Adam, kernels, native, preacts
from sae_lab.sparse.coarse import available
from sae_lab.workload import KINDS, UNITS, Caches, Collective, Mesh, Step

BIG = Caches(2**30, 2**30)  # one that holds everything
HAND = Step("topk", d_in=100, d_sae=1000, k=10, batch=64)
needs_8_bits = pytest.mark.skipif(not available(), reason="this CPU does not multiply 8-bit numbers four at a time")


def machine(**seconds):
    """One that takes a nanosecond for everything but what is given."""
    about = {"host": "paper", "cpu": "none"}
    return Machine(
        dict.fromkeys(UNITS, 1e-9) | seconds, Caches(2**21, 2**25), 1, 10**8, {1: "float32", 128: "int8"}, about
    )


# arithmetic


def test_the_dense_product_is_the_encoders_forward_alone():
    work = workload.product(HAND, BIG)
    assert work["mac int8"] == 64 * 1000 * 100
    assert work["near panel"] == 8 * 1000 * 100  # 8 shares of 8 tokens, each of which meets all codes
    assert work["far panel"] == 0
    assert work["code"] == 1000 * 100 + 64 * 100
    assert work["score"] == 64 * 1000
    assert HAND.flop == 2 * 64 * (1000 * 100 + 100 * (26 + 4 * 10))


def test_a_product_in_floats_is_read_again_to_be_compared():
    work = workload.product(replace(HAND, choose_in="float32"), BIG)
    assert work == {"mac float32": 6_400_000, "scan": 64_000, "streamed": 0}
    assert replace(HAND, choose_in="float32").candidates == 0  # its numbers are exact


def test_the_other_parts_of_a_step():
    choice = workload.choice(HAND, BIG)
    assert choice["near"] == 64 * 26 * 100
    assert choice["candidate"] == pytest.approx(64 * 128 * (1 + math.log(1000 / 256) / math.log(128 / 26)))
    sparse = workload.sparse(HAND, BIG)
    none = dict.fromkeys(("far", "far row", "distant", "distant row"), 0)
    assert sparse == {"near": 4 * 640 * 100, "nonzero": 640 * 1.5, "written": 200_000} | none
    assert workload.optimiser(HAND) == {"moved": 200_000, "held": 100_000, "streamed": 300_000}
    rest = workload.rest(HAND, BIG)
    assert rest == {"near element": pytest.approx(9.2 * 6400), "page": 0, "latent": 1000, "step": 1}


def test_a_table_twice_the_cache_is_missed_half_of_the_time():
    found = workload.gathered(rows=10, of=1000, width=100, cache=Caches(200_000, 10**7))
    assert found == {"near": 500, "far": 500, "distant": 0, "far row": 5, "distant row": 0}


def test_a_table_as_large_as_the_last_cache_is_in_none_half_of_the_time():
    found = workload.gathered(rows=10, of=1000, width=100, cache=Caches(40_000, 400_000))
    assert found == {"near": 100, "far": 400, "distant": 500, "far row": 4, "distant row": 5}
    small = workload.gathered(rows=10, of=1000, width=100, cache=Caches(200_000, 200_000))
    assert small == {"near": 500, "far": 0, "distant": 500, "far row": 0, "distant row": 5}


def test_a_batch_too_large_for_kept_memory_is_written_to_new_pages():
    big = Step("topk", 1024, 4096, 32, 8192)
    assert 4 * big.batch * big.d_in == workload.FRESH
    assert workload.rest(big, BIG)["page"] == pytest.approx(7.2 * 8192)
    assert workload.rest(replace(big, batch=8191), BIG)["page"] == 0


def test_where_more_fires_than_there_is_room_for_the_product_is_made_twice():
    few, many = (workload.product(Step("jumprelu", 512, 65536, k, 4096), BIG) for k in (32, 256))
    assert many["mac int8"] == 2 * few["mac int8"]
    assert many["kernel"] == 2


def test_a_prediction_is_amounts_times_seconds():
    found = sl.predict("topk", d_in=100, d_sae=1000, k=10, batch=64, tokens=640, choose_in="int8", machine=machine())
    want = 1e-9 * sum(sum(amounts.values()) for amounts in workload.step(HAND, machine().cache).values())
    assert found.step_seconds == pytest.approx(want)
    assert found.steps == 10
    assert found.seconds == pytest.approx(10 * want)
    assert found.rate == pytest.approx(64 / want)
    assert found.table["share"].sum() == pytest.approx(1)
    slow = sl.predict(
        "topk", d_in=100, d_sae=1000, k=10, batch=64, choose_in="int8", machine=machine(**{"mac int8": 1e-6})
    )
    assert slow.parts["encoder product"] - found.parts["encoder product"] == pytest.approx(6.4e6 * 999e-9)
    assert "64 tokens x 100 x 1,000" in repr(found)
    assert json.loads(json.dumps(found.to_json()))["step"]["d_sae"] == 1000
    assert len(found.figure.data[0].x) == len(found.parts)


@pytest.mark.parametrize("variant", KINDS)
@pytest.mark.parametrize("grown", ["d_in", "d_sae", "batch", "k"])
def test_more_never_takes_less(variant, grown):
    small = {"d_in": 256, "d_sae": 8192, "batch": 1024, "k": 16}
    steps = [Step(variant, **small | {grown: small[grown] * times}) for times in (1, 2, 4, 8)]
    times = [sum(machine().times(workload.step(s, machine().cache)).values()) for s in steps]
    assert times == sorted(times)
    totals = [sum(workload.memory(s).values()) for s in steps]
    assert totals == sorted(totals)


# against what real steps do


def built(variant, d_in=64, d_sae=512, k=8, **knobs):
    own = {"k": k} if "k" in REGISTRY[variant].Config.__dataclass_fields__ else {}
    return build(variant, d_in=d_in, d_sae=d_sae, **own, **knobs)


@needs_8_bits
@pytest.mark.parametrize("variant", ["topk", "batchtopk"])
def test_a_real_step_gathers_what_is_predicted(variant, monkeypatch):
    """Rows times width of all calls of both sparse kernels; b_dec's gradient reads W_enc once, which is `streamed`."""
    numbers = []
    for name in ("dots", "sums"):
        kernel = getattr(kernels, name)
        monkeypatch.setattr(kernels, name, wrapped(kernel, numbers))
    s = Step(variant, 128, 1024, 10, 256)
    sae, x = built(variant, 128, 1024, 10, choose_in="int8"), heavy_tailed(256, 128)
    sum(sae.objective(Batch(x, x, torch.zeros(1024, dtype=torch.bool))).terms.values()).backward()
    gathered = [workload.choice(s, BIG), workload.sparse(s, BIG)]
    assert sum(numbers) == pytest.approx(sum(g["near"] for g in gathered) + s.weights, rel=1e-3)


def wrapped(kernel, numbers):
    def counting(start, latent, rows_or_values, W, out):
        numbers.append(len(latent) * W.shape[1])
        return kernel(start, latent, rows_or_values, W, out)

    return counting


@needs_8_bits
@pytest.mark.parametrize(("d_in", "d_sae", "k"), [(128, 2048, 16), (256, 4096, 16), (512, 4096, 32)])
def test_candidates_of_a_floor_are_what_rounding_may_hide(d_in, d_sae, k, monkeypatch):
    found, cut = [], preacts.PreActs._cut
    monkeypatch.setattr(
        preacts.PreActs, "_cut", lambda self, rule, s, *a: (found.append(len(s.latent)), cut(self, rule, s, *a))[1]
    )
    rng = torch.Generator().manual_seed(0)
    x, W = torch.randn(512, d_in, generator=rng), torch.randn(d_sae, d_in, generator=rng)
    x *= 1 + workload.SPREAD * torch.randn(512, 1, generator=rng)
    W /= W.norm(dim=1, keepdim=True)
    pre = preacts.encode(x, W, choose_in=torch.int8)
    floor = (x @ W.T).flatten().topk(512 * k).values[-1]
    pre.over(floor)
    assert found[-1] / 512 == pytest.approx(Step("jumprelu", d_in, d_sae, k, 512).candidates, rel=0.15)


@pytest.mark.parametrize("variant", KINDS)
def test_weights_moments_and_gradients_are_those_of_the_real_tensors(variant):
    sae = built(variant)
    adam = Adam([(n, p) for n, p in sae.named_parameters() if p.requires_grad])
    for p in adam.params.values():
        p.grad = torch.zeros_like(p)
    memory = workload.memory(Step(variant, 64, 512, 8, 256))
    assert memory["weights"] == sum(p.nbytes for p in adam.params.values())
    assert memory["moments"] == sum(t.nbytes for kept in (adam.m, adam.v) for t in kept.values())
    assert memory["gradients"] == sum(p.grad.nbytes for p in adam.params.values())


@pytest.mark.parametrize("variant", ["topk", "batchtopk", "jumprelu"])
def test_disk_is_that_of_a_real_run_folder(variant, tmp_path):
    folder, x = tmp_path / "run", heavy_tailed(256, 64)
    steps = sl.train(built(variant), Fixed(x), tokens=256 * 8, batch=256, run=folder, snapshots=2, checkpoint_steps=2)
    assert [s.index for s in steps][-1] == 8
    written = sum(p.stat().st_size for p in folder.rglob("*.safetensors"))
    saved = workload.memory(Step(variant, 64, 512, 8, 256))["weights"]
    kept = disk_bytes(saved, 512, snapshots=2, checkpoints=2)
    assert written == pytest.approx(kept, rel=0.03)  # names and generators besides


def test_a_layers_weights_are_those_of_a_real_llama():
    lm = sl.load_model("tiny")
    config = lm.module.config.to_dict()
    layer = lm.module.model.layers[0]
    whole = sum(p.numel() for p in layer.parameters() if p.dim() == 2)
    assert Figures.of(config).layer_params == Figures.of(lm.module.config).layer_params == whole


def test_flop_of_a_forward_pass_by_hand():
    of = Figures(d_model=10, layers=3, mlp=20, heads=2, kv_heads=1, head_dim=5, vocab=100)
    assert of.layer_params == 10 * 10 + 2 * 10 * 5 + 10 * 10 + 3 * 10 * 20
    assert forward_flop(of, 1, context=9) == 2 * of.layer_params + 2 * 10 * 10
    assert forward_flop(of, 3, context=9) == 3 * forward_flop(of, 1, context=9)
    with pytest.raises(ValueError, match="does not say intermediate_size"):
        Figures.of({"hidden_size": 10, "num_attention_heads": 2, "num_hidden_layers": 3, "vocab_size": 9})


# many devices


def test_what_devices_exchange_by_hand():
    s = Step("topk", 100, 1000, 10, 64)
    assert Mesh().collectives(s) == []
    assert Mesh(latents=2).collectives(s) == [
        Collective("candidates' values", "latents", "all-gather", 4 * 64 * 10),
        Collective("partial x_hat", "latents", "all-reduce", 4 * 64 * 100),
        Collective("gradient of b_dec by the encoder", "latents", "all-reduce", 400),
    ]
    (gradients,) = Mesh(data=4).collectives(s)
    assert gradients.bytes == 4 * (2 * 100_000 + 1000 + 100)
    assert Mesh(data=4).seconds(s, bandwidth=1e6) == pytest.approx(1.5 * gradients.bytes / 1e6)
    assert Mesh(data=4).seconds(s, bandwidth=1e30, latency=0.001) == pytest.approx(6 * 0.001)
    gathered, x_hat, b_dec = (c.bytes for c in Mesh(latents=4).collectives(s))
    assert Mesh(latents=4).seconds(s, 1e6) == pytest.approx((3 * gathered + 1.5 * (x_hat + b_dec)) / 1e6)


def test_a_device_has_its_share_and_what_cannot_be_shared_is_refused():
    s = Step("batchtopk", 100, 1000, 10, 64)
    share = Mesh(latents=2, data=4).share(s)
    assert (share.d_sae, share.batch, share.k, share.flop * 8) == (500, 16, 5, s.flop)
    assert any(c.name == "histogram of scores" for c in Mesh(data=2).collectives(s))
    with pytest.raises(ValueError, match="d_sae=1000 cannot be divided evenly over 3"):
        Mesh(latents=3).share(s)
    found = sl.predict(
        "batchtopk", d_in=100, d_sae=1000, k=10, batch=64, machine=machine(), mesh=Mesh(2, 4), bandwidth=1e6
    )
    assert found.parts["exchange"] == pytest.approx(Mesh(2, 4).seconds(s, 1e6, 20e-6))


# the machine


def test_each_unit_is_known_by_the_simplest_thing_that_has_it():
    plain = [({"near": 10.0}, print), ({"near": 10.0, "far": 5.0}, print)]
    whole = [({"near": 10.0, "step": 1.0}, print)]
    found, off = explained([plain, whole], [[20e-9, 35e-9], [120e-9]])
    assert found == {"near": pytest.approx(2e-9), "far": pytest.approx(3e-9), "step": pytest.approx(100e-9)}
    assert off == pytest.approx(0, abs=1e-9)
    found, off = explained([plain, whole], [[20e-9, 35e-9], [15e-9]])  # less than its kernels: nothing is negative
    assert found["step"] == 0
    assert off == pytest.approx(1 / 3)


def test_a_gauged_machine_knows_every_unit_and_is_kept_as_json(tmp_path):
    found = sl.gauge(1.0)
    sizes = {"d_in": 1024, "d_sae": 65536, "batch": 8192, "machine": found}
    for variant in KINDS:
        for choose_in in ("float32", "bfloat16", *(["int8"] if available() else [])):
            assert sl.predict(variant, choose_in=choose_in, **sizes).seconds > 0
    assert sl.predict("topk", model=sl.load_model("tiny").module.config.to_dict(), **sizes).parts["model"] > 0
    assert found.base > 2**20
    again = sl.Machine.load(found.save(tmp_path / "machine.json"))
    assert again == found
    assert repr(again) == repr(found)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is not JSON"),
        ("[]", "no machine of format"),
        ('{"format": "sae_lab machine/1"}', "has to say about, base"),
    ],
)
def test_a_file_that_is_no_machines_is_refused(tmp_path, text, says):
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(ValueError, match=says):
        Machine.load(tmp_path / "m.json")


@pytest.mark.parametrize("odd", [-1.0, math.nan, math.inf, "1"])
def test_seconds_that_cannot_be_are_refused(odd):
    with pytest.raises(ValueError, match="finite time"):
        machine(near=odd)


@pytest.mark.parametrize(
    ("odd", "says"),
    [
        ({"variant": "gated"}, "has no model"),
        ({"d_sae": 0}, "d_sae=0"),
        ({"batch": -1}, "batch=-1"),
        ({"k": 0}, "k=0"),
        ({"k": 201}, "at most 0.2"),
        ({"k": math.nan}, "k=nan"),
        ({"choose_in": "int4"}, "int4"),
        ({"tokens": 0}, "tokens=0"),
        ({"bandwidth": 0}, "bandwidth=0"),
    ],
)
def test_what_makes_no_sense_is_refused(odd, says):
    asked = {"variant": "topk", "d_in": 100, "d_sae": 1000, "k": 10, "batch": 64, "machine": machine()} | odd
    with pytest.raises((ValueError, KeyError), match=says):
        sl.predict(**asked)


def test_a_unit_that_was_not_gauged_is_named():
    lame = replace(machine(), seconds={"step": 1.0})
    with pytest.raises(ValueError, match="without 'mac int8'"):
        sl.predict("topk", d_in=128, d_sae=1000, k=10, machine=lame)


def test_the_arithmetic_needs_no_torch():
    code = "import sys, sae_lab.workload; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_command_line_predicts_for_another_machine(tmp_path, capsys):
    file = str(machine().save(tmp_path / "cluster.json"))
    asked = ["predict", "topk", "--d-in", "4096", "--d-sae", "32768", "--k", "64", "--machine", file]
    assert main([*asked, "--over-latents", "4", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    found = sl.predict("topk", d_in=4096, d_sae=32768, k=64, machine=machine(), mesh=Mesh(4))
    assert said["seconds"] == pytest.approx(found.seconds)
    assert said["step"]["choose_in"] == "int8"
    assert main([*asked[:-1], str(tmp_path / "none.json")]) == 2
    assert 2**16 <= gauging.caches().own <= gauging.caches().last
    assert native.PARTS == workload.PARTS
