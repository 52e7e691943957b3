"""What 24 SAEs at once cost over the sum of their steps and one harvest: python tests/bench_suite.py [--help]

4 sites x 3 variants x 2 seeds on the embedded Llama. Three ways take turns, a few steps each: the suite, as `sweep`
trains it, with run folders, logs and heartbeats; its harvest alone, the same rows drawn by a second stream; each SAE
alone on those rows, out of memory and without a folder: objective, backward, clipping, Adam, and the numbers of each
tenth step. Medians over rounds. In the end every SAE of the suite has the bits that it has alone, or the bench fails.
"""

import argparse
import os
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import torch

import sae_lab as sl
from sae_lab.launcher import stream
from sae_lab.sweeps import Plan
from sae_lab.training import train


class Replay:
    """A source of rows that were read before."""

    def __init__(self, source, site):
        self.source, self.sites, self.site, self.served, self.needs = source, [site], site, 0, frozenset()
        self.rows = []

    def d_in(self, site):
        return self.source.d_in(site)

    def statistics(self, site):
        return self.source.statistics(site)

    def next(self, n):
        return {self.site: self.rows.pop(0)}

    def describe(self):
        return {}


class Ways:
    """The suite, its harvest, and every SAE alone, at the same step."""

    def __init__(self, plan, folder):
        lm, jobs = sl.load_model("tiny"), [plan.job_of(asked, folder) for asked in plan.groups[0]]
        sites = list(dict.fromkeys(job.site for job in jobs))
        source, self.harvest = (stream(jobs[0], lm, plan.needs, sites) for _ in range(2))
        make = lambda: [sl.build(j.variant, d_in=lm.d_in(j.site), seed=j.seed, **j.own) for j in jobs]  # noqa: E731
        self.saes, self.alone, self.batch = make(), make(), jobs[0].train.batch
        at = {site: [sae for sae, job in zip(self.saes, jobs) if job.site == site] for site in sites}
        self.suite = train(at, source, run=[job.run for job in jobs], config=jobs[0].train)
        self.replays = [Replay(self.harvest, job.site) for job in jobs]
        pairs = zip(self.alone, self.replays)
        self.singles = [train(sae, replay, config=jobs[0].train) for sae, replay in pairs]

    def read(self, n):
        for _ in range(n):
            rows = self.harvest.next(self.batch)
            for replay in self.replays:
                replay.rows.append(rows[replay.site])

    def turn(self, n, clock, drawn=0):
        """Seconds of (suite, harvest, sum of the SAEs) for n steps; `drawn`: batches that come before the first."""
        times = [clock()]
        for _ in range(n):
            next(self.suite)
        times.append(clock())
        self.read(drawn + n)
        times.append(clock())
        for single in self.singles:
            for _ in range(n):
                next(single)
        times.append(clock())
        return [b - a for a, b in pairwise(times)]

    def check(self):
        for suite, alone in zip(self.saes, self.alone):
            assert all(map(torch.equal, suite.state_dict().values(), alone.state_dict().values())), suite.name


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rounds", 9), ("steps", 10), ("d_sae", 1024), ("k", 16), ("batch", 2048)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--variants", nargs="+", default=["topk", "batchtopk", "jumprelu"])
    parser.add_argument("--sites", nargs="+", default=["L0R", "L1R", "L2R", "L2M"])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cpu-time", action="store_true", help="count CPU seconds: with --threads 1 on a busy machine")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    drawn, steps = 4096 // args.batch, 2 + args.rounds * args.steps
    knobs = {"site": args.sites, "k": args.k, "d_sae": args.d_sae, "seeds": args.seeds, "batch": args.batch}
    knobs |= {"tokens": (steps + 1) * args.batch, "snapshots": 0, "sample": drawn * args.batch, "lr": 2e-3}
    plan = Plan.of(args.variants, **knobs).check()
    with tempfile.TemporaryDirectory() as folder:
        ways = Ways(plan, Path(folder))
        clock = time.process_time if args.cpu_time else time.perf_counter
        ways.turn(2, clock, drawn)  # preparations, first kernels
        rounds = [ways.turn(args.steps, clock) for _ in range(args.rounds)]
        ways.check()
    shown = ("the suite's steps", "one harvest", f"{len(plan.saes)} SAEs alone")
    many = f"{', '.join(args.sites)}; {', '.join(args.variants)}; {args.seeds} seeds"
    print(f"{len(plan.saes)} SAEs of {args.d_sae} latents: {many}")
    print(
        f"{args.rounds} rounds of {args.steps} steps of {args.batch} tokens, threads {args.threads}, load "
        f"{os.getloadavg()[0]:.1f}, {'CPU' if args.cpu_time else 'wall'} time"
    )
    for name, column in zip(shown, zip(*rounds)):
        print(f"{name:20s}{1e3 * statistics.median(column) / args.steps:9.1f} ms a step")
    ratios = [suite / (harvest + alone) for suite, harvest, alone in rounds]
    low, high = min(ratios), max(ratios)
    print(f"suite over the sum of both: {statistics.median(ratios):.3f} [{low:.3f}, {high:.3f}]; bits are those alone")


if __name__ == "__main__":
    main()
