"""Bits, threads and places: results do not hang on them. And the fused Adam against torch's."""

import hashlib
import os
import subprocess
import sys
import threading

import numba
import pytest
import torch

from sae_lab.saes import Batch, build
from sae_lab.sparse import Adam, Latents, Support, backend, batch_topk, dots, encode, latent_sums, sums, topk


def fingerprint(threads):
    """Of everything a training step of a few thousand latents gives, AuxK and Adam included."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(700, 64, generator=rng)
    prints = []
    for name in ("topk", "batchtopk"):
        for choose_in in ("float32", "bfloat16", "int8"):
            sae = build(name, d_in=64, d_sae=3000, k=20, choose_in=choose_in)
            adam = Adam(sae.named_parameters(), lr=1e-3, unit=["W_dec"])
            for _ in range(2):
                out = sae.objective(Batch(x, x, torch.arange(3000) % 10 == 0))
                sum(out.terms.values()).backward()
                adam.step()
                adam.zero_grad()
            parts = [out.z.support.latent, out.x_hat.detach(), *sae.state_dict().values(), *adam.state_dict().values()]
            prints += [hashlib.sha256(t.contiguous().numpy().tobytes()).hexdigest()[:12] for t in parts]
    torch.set_num_threads(before)
    return prints


def test_prefixes_that_leave_latents_out_are_refused():
    s = Support(torch.tensor([0, 3]).int(), torch.tensor([0, 2]), 4)
    assert s.split([1, 4]).start.tolist() == [0, 1, 2]
    for bounds in ([1, 2], [2, 1, 4], []):
        with pytest.raises(ValueError, match="end with d_sae=4"):
            s.split(bounds)


def test_a_repr_is_one_line_and_says_what_there_is():
    z = Latents(torch.tensor([0.0, 2.0]), Support(torch.tensor([0, 1]).int(), torch.tensor([0, 1, 2]), 3))
    assert repr(z) == "Latents(tokens [2], d_sae 3, 2 stored, l0 0.5)"


def test_steps_are_bit_identical_twice_and_in_a_fresh_process():
    threads = torch.get_num_threads()
    again = subprocess.run(
        [sys.executable, __file__, str(threads)], capture_output=True, text=True, check=True, timeout=300
    ).stdout
    assert fingerprint(threads) == fingerprint(threads) == again.split()


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="one core")
def test_steps_do_not_depend_on_the_number_of_threads():
    assert fingerprint(1) == fingerprint(2)


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="one core")
def test_the_kernels_do_not_depend_on_the_number_of_threads():
    rng = torch.Generator().manual_seed(0)
    score, W, rows = (torch.randn(*s, generator=rng) for s in ((500, 4000), (4000, 65), (500, 65)))
    before, out = torch.get_num_threads(), []
    for n in (1, 2):
        torch.set_num_threads(n)
        s = topk(score, 20)
        b = batch_topk(score, 9000)
        v = s.score
        out.append((s.latent, b.latent, b.start, sums(s, v, W), latent_sums(s, v, rows), dots(s, rows, W)))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*out))


THREE_THREADS = """
import threading, torch
from sae_lab.sparse import Latents, decode, encode, topk
torch.set_num_threads(2)
x, W = torch.randn(200, 16), torch.randn(300, 16)
def work(out):
    for _ in range(20):
        pre = encode(x, W)
        out.append(decode(pre.keep(pre.choose(topk, 5)), W))
outs = [[], [], []]
threads = [threading.Thread(target=work, args=(out,)) for out in outs]
[t.start() for t in threads]; [t.join() for t in threads]
assert all(torch.equal(y, outs[0][0]) for out in outs for y in out) and sum(map(len, outs)) == 60
import numba; print(numba.threading_layer())
"""


def run(code, **env):
    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | env, capture_output=True, text=True, timeout=300
    )


def test_three_python_threads_may_call_kernels_where_numba_has_only_its_workqueue():
    """That layer aborts the process when two threads call it at once."""
    done = run(THREE_THREADS, NUMBA_THREADING_LAYER="workqueue", NUMBA_NUM_THREADS="2")
    assert done.returncode == 0 and done.stdout.strip() == "workqueue", done.stderr


def test_kernels_work_where_no_place_for_the_cache_can_be_written(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    code = "import torch; from sae_lab.sparse import topk; print(topk(torch.eye(3), 1).latent.tolist())"
    done = run(code, NUMBA_CACHE_DIR=str(tmp_path / "file" / "below"), NUMBA_NUM_THREADS="1")
    assert done.returncode == 0 and done.stdout.strip() == "[0, 1, 2]", done.stderr


def test_importing_the_package_does_not_start_numba():
    done = run("import sys, sae_lab.sparse, sae_lab.saes; print('numba' in sys.modules)")
    assert done.stdout.strip() == "False", done.stderr


def test_the_number_of_torchs_threads_is_left_alone():
    done = run(
        "import torch; torch.set_num_threads(1); from sae_lab.sparse import topk; topk(torch.eye(3), 1);"
        "print(torch.get_num_threads())"
    )
    assert done.stdout.strip() == "1", done.stderr


def test_scratch_may_be_given_back_by_another_thread():
    held, results = [], []
    x, W = torch.randn(600, 32), torch.randn(900, 32)

    def work():
        for _ in range(10):
            pre = encode(x, W)
            results.append(pre.keep(pre.choose(topk, 3)).value.detach())
            held.append(results[-1])

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(r, results[0]) for r in results)


# Adam


def weights(dtype=torch.float64):
    rng = torch.Generator().manual_seed(0)
    W = torch.randn(30, 7, generator=rng, dtype=dtype)
    return {
        "W": torch.nn.Parameter(W / W.norm(dim=1, keepdim=True)),
        "b": torch.nn.Parameter(torch.randn(30, generator=rng, dtype=dtype)),
        "s": torch.nn.Parameter(torch.randn((), generator=rng, dtype=dtype)),
    }


def loss(params, step):
    target = torch.linspace(-1, 1, 7, dtype=params["W"].dtype) * (step + 1)
    return ((params["W"] @ target - params["b"]) ** 2).sum() + (params["s"] * params["W"]).sum().sin()


@pytest.mark.parametrize("which", ["numba", "torch"])
def test_adam_equals_torchs(which):
    mine, theirs = weights(), weights()
    adam = Adam(mine.items(), lr=1e-2, betas=(0.8, 0.95), eps=1e-6)
    other = torch.optim.Adam(theirs.values(), lr=1e-2, betas=(0.8, 0.95), eps=1e-6)
    for step in range(5):
        for params, optimiser in ((mine, adam), (theirs, other)):
            loss(params, step).backward()
            if step == 3:
                norm = torch.nn.utils.get_total_norm([p.grad for p in params.values()]).item()
                if optimiser is adam:
                    assert abs(adam.grad_norm() - norm) < 1e-9
                else:
                    torch.nn.utils.clip_grad_norm_(params.values(), norm / 2)
            with backend(which):
                optimiser.step(0.5) if optimiser is adam and step == 3 else optimiser.step()
            optimiser.zero_grad()
    for name in mine:
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("which", ["numba", "torch"])
def test_unit_rows_move_only_across_themselves_and_stay_at_norm_1(which):
    mine, theirs = weights(), weights()
    adam = Adam(mine.items(), lr=1e-2, unit=["W"])
    other = torch.optim.Adam(theirs.values(), lr=1e-2)
    for step in range(4):
        loss(mine, step).backward()
        with backend(which):
            adam.step()
        adam.zero_grad()
        loss(theirs, step).backward()
        with torch.no_grad():
            W = theirs["W"]
            W.grad -= (W.grad * W).sum(1, keepdim=True) * W
            other.step()
            W /= W.norm(dim=1, keepdim=True)
        other.zero_grad()
    torch.testing.assert_close(mine["W"].norm(dim=1), torch.ones(30, dtype=torch.float64), rtol=1e-12, atol=0)
    torch.testing.assert_close(mine["W"], theirs["W"], rtol=1e-9, atol=1e-12)


def test_adams_state_goes_through_tensors_and_back_to_the_same_bits():
    whole, cut = weights(torch.float32), weights(torch.float32)
    a, b = Adam(whole.items(), unit=["W"]), Adam(cut.items(), unit=["W"])
    for step in range(6):
        if step == 3:
            state = {name: t.clone() for name, t in b.state_dict().items()}
            b = Adam(cut.items(), unit=["W"])
            b.load_state_dict(state)
        for params, adam in ((whole, a), (cut, b)):
            loss(params, step).backward()
            adam.step()
            adam.zero_grad()
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    assert a.steps == b.steps == 6


def test_rows_whose_moments_are_forgotten_start_anew():
    params = weights()
    adam = Adam(params.items())
    loss(params, 0).backward()
    adam.step()
    adam.reset_rows("W", torch.tensor([2, 5]))
    assert not adam.m["W"][[2, 5]].any() and not adam.v["W"][[2, 5]].any() and adam.m["W"][3].all()


def test_a_state_of_other_parameters_is_refused():
    params = weights()
    with pytest.raises(ValueError, match=r"other parameters: m\.b"):
        Adam(params.items()).load_state_dict(Adam([("W", params["W"]), ("s", params["s"])]).state_dict())
    with pytest.raises(ValueError, match=r"unit=\['V'\] names no parameter"):
        Adam(params.items(), unit=["V"])


def test_nan_gradients_arrive_in_the_weights():
    params = weights()
    loss(params, 0).backward()
    params["W"].grad[4, 2] = torch.nan
    Adam(params.items(), unit=["W"]).step()
    assert params["W"][4].isnan().all() and not params["W"][3].isnan().any()


def test_a_support_refuses_what_int32_cannot_count(monkeypatch):
    class Long:
        def __len__(self):
            return 2**31

    plain = getattr(Support.__init__, "__wrapped__", Support.__init__)
    with pytest.raises(ValueError, match="Use fewer tokens"):
        plain(Support.__new__(Support), Long(), None, 3)


if __name__ == "__main__":
    print(*fingerprint(int(sys.argv[1])))
