"""What a training step costs, sparse against dense autograd: python tests/bench_step.py [--help]

Each way is a whole step: objective, backward, Adam, decoder rows projected and held at unit norm. The ways take turns
and medians are shown, so that other load on the machine hits all of them; ratios are safer than milliseconds.
"""

import argparse
import os
import statistics
import time

import torch

from sae_lab.saes import Batch, build
from sae_lab.sparse import Adam

LR = 1e-7  # the weights hardly move: every round does the same work


def trained(tok, d_in, d_sae, k, choose_in):
    """An SAE whose latents are heavy-tailed, as after training, a batch for it, and 10% dead latents."""
    torch.manual_seed(0)
    sae = build("topk", d_in=d_in, d_sae=d_sae, k=k, k_aux=d_in // 2, choose_in=choose_in)
    with torch.no_grad():
        sae.b_enc.copy_(torch.randn(d_sae) * 0.5)
    x = torch.randn(tok, d_in) * (torch.rand(tok, 1) + 0.5)
    return sae, Batch(x, x, torch.arange(d_sae) % 10 == 0)


def dense_terms(sae, batch):
    """The same objective as everyone writes it."""
    pre = (batch.x - sae.b_dec) @ sae.W_enc.T + sae.b_enc
    x_hat = scattered(pre, sae.cfg.k) @ sae.W_dec + sae.b_dec
    index = batch.dead.nonzero()[:, 0]
    missed = (batch.target - x_hat).detach()
    error = scattered(pre[:, index], min(sae.cfg.k_aux, len(index))) @ sae.W_dec[index] - missed
    spread = (missed - missed.mean(0)).square().sum(-1).mean()
    aux = sae.cfg.aux_weight * error.square().sum(-1).mean() / spread
    return {"mse": (x_hat - batch.target).square().sum(-1).mean(), "auxk": aux}


def scattered(pre, k):
    top = pre.topk(k, sorted=False)
    return torch.zeros_like(pre).scatter(-1, top.indices, top.values.relu())


def sparse_step(*shape, choose_in):
    sae, batch = trained(*shape, choose_in)
    adam = Adam(sae.named_parameters(), lr=LR, unit=["W_dec"])

    def step():
        loss = sum(sae.objective(batch).terms.values())
        loss.backward()
        adam.step()
        adam.zero_grad()
        return loss.item()

    return step


def dense_step(*shape):
    sae, batch = trained(*shape, "float32")
    adam = torch.optim.Adam(sae.parameters(), lr=LR, fused=True)

    def step():
        loss = sum(dense_terms(sae, batch).values())
        loss.backward()
        with torch.no_grad():
            sae.W_dec.grad -= (sae.W_dec.grad * sae.W_dec).sum(1, keepdim=True) * sae.W_dec
            adam.step()
            sae.W_dec /= sae.W_dec.norm(dim=1, keepdim=True)
        adam.zero_grad()
        return loss.item()

    return step


def interleaved(ways, rounds, clock):
    """Median seconds of each way, the first round left out, and what each way gave in the first."""
    times, first = {name: [] for name in ways}, {}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            begin = clock()
            loss = way()
            times[name].append(clock() - begin)
            first.setdefault(name, loss)
    return {name: statistics.median(t[1:]) for name, t in times.items()}, first


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("tok", 4096), ("d_in", 512), ("d_sae", 8192), ("k", 32), ("rounds", 7)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cpu-time", action="store_true", help="count CPU seconds: with --threads 1 on a busy machine")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    shape = (args.tok, args.d_in, args.d_sae, args.k)
    sae, batch = trained(*shape, "float32")
    ways = {
        "dense autograd": dense_step(*shape),
        "sparse fp32": sparse_step(*shape, choose_in="float32"),
        "sparse bf16": sparse_step(*shape, choose_in="bfloat16"),
        "sparse int8": sparse_step(*shape, choose_in="int8"),
        "encoder product alone": lambda: (batch.x @ sae.W_enc.T)[0, 0].item(),
    }
    seconds, loss = interleaved(ways, args.rounds, time.process_time if args.cpu_time else time.perf_counter)
    print(f"topk + AuxK, tok {args.tok}, d_in {args.d_in}, d_sae {args.d_sae}, k {args.k}, 10% dead")
    print(f"threads {args.threads}, load {os.getloadavg()[0]:.1f}, medians of {args.rounds} interleaved rounds")
    dense = "dense autograd"
    for name, s in seconds.items():
        line = f"{name:24s}{1e3 * s:9.1f} ms"
        if name.startswith("sparse"):
            off = abs(loss[name] / loss[dense] - 1)
            line += f"{seconds[dense] / s:8.1f} x faster, loss differs by {off:.1e} relative"
        print(line)


if __name__ == "__main__":
    main()
