"""Whether a ten-second gauge on small sizes predicts larger training steps: python tests/bench_scale.py [--help]

The steps are the loop's own, on one tensor. Every size is at least four times larger than anything the gauge tried, in
the dimension it is named after. Sizes take turns, the gauge is made anew in each round, and medians over rounds count:
other load hits all of it. With --threads 1 processor time is counted, which other load hardly changes.
"""

import argparse
import gc
import os
import resource
import statistics
import subprocess
import sys

import torch

from sae_lab.planning import gauge, predict
from sae_lab.planning.gauging import LARGEST, WARM, clock_of, steps_of
from sae_lab.workload import KINDS, Step

BOUND = 0.25
SIZES = {  # batch, d_in, d_sae, k
    "d_sae x4": (1024, 256, 16384, 16),
    "d_in x4": (1024, 1024, 4096, 16),
    "k x4": (1024, 256, 4096, 64),
    "batch x4": (4096, 256, 4096, 16),
    "d_in, d_sae, batch, k x2-4": (4096, 512, 8192, 32),
    "d_sae x8": (4096, 512, 32768, 32),
    "all x4": (4096, 1024, 16384, 64),
    "batch x8": (8192, 1024, 16384, 32),
    "d_in x8": (2048, 2048, 8192, 32),
    "the most": (4096, 1024, 32768, 64),
}


def measured(s: Step, turns: int, clock) -> float:
    """Median seconds of real steps."""
    steps, times = steps_of(s), []
    for _ in range(WARM + turns):
        begin = clock()
        next(steps)
        times.append(clock() - begin)
    steps.close()
    del steps
    gc.collect()
    return statistics.median(times[WARM:])


def peak(variant: str, size: tuple[int, ...]) -> int:
    """Bytes that a process of its own holds at most in some steps."""
    s = Step(variant, size[1], size[2], size[3], size[0])
    measured(s, 3, clock_of(1))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", default="topk,batchtopk,jumprelu", help=f"out of {', '.join(KINDS)}")
    parser.add_argument("--sizes", default=",".join(map(str, range(len(SIZES)))), help="numbers of rows")
    parser.add_argument("--choose-in", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each gauge")
    parser.add_argument("--memory", action="store_true", help="peak memory instead of time")
    parser.add_argument("--peak", help="(used by --memory)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    names = [list(SIZES)[int(i)] for i in args.sizes.split(",")]
    asked = [(variant, name) for variant in args.variants.split(",") for name in names]
    if args.peak:
        print(peak(args.variants, SIZES[args.peak]))
        return
    print(f"the gauge tries at most batch, d_in, d_sae, k = {LARGEST}; threads {args.threads}")
    rounds = [a_round(asked, args) for _ in range(args.rounds)]
    outside = 0
    for i, (variant, name) in enumerate(asked):
        want, found = (statistics.median(r[i][j] for r in rounds) for j in (0, 1))
        outside += abs(want / found - 1) > BOUND
        unit, scale = ("MB", 1e-6) if args.memory else ("ms", 1e3)
        size = " x ".join(map(str, SIZES[name]))
        print(
            f"{variant:<10} {name:<27}{size:<26} predicted {scale * want:8.1f} {unit}  measured {scale * found:8.1f}"
            f"  ratio {want / found:.2f}{'  OUTSIDE' if abs(want / found - 1) > BOUND else ''}"
        )
    print(f"{len(asked) - outside} of {len(asked)} within {BOUND:.0%}; load {os.getloadavg()[0]:.1f}")


def a_round(asked, args):
    """(predicted, measured) of each row; one gauge for all."""
    machine, clock, found = gauge(args.seconds), clock_of(args.threads), []
    for variant, name in asked:
        batch, d_in, d_sae, k = SIZES[name]
        plan = predict(
            variant, d_in=d_in, d_sae=d_sae, k=k, batch=batch, choose_in=args.choose_in, machine=machine, tokens=10**9
        )
        if args.memory:
            own = [sys.executable, __file__, "--variants", variant, "--peak", name, "--threads", str(args.threads)]
            took = subprocess.run(own, capture_output=True, text=True, check=True).stdout
            found.append((sum(plan.memory.values()), int(took)))
        else:
            found.append((plan.step_seconds, measured(plan.step, args.turns, clock)))
        print(f"{variant} {name}: {found[-1][0] / found[-1][1]:.2f}", file=sys.stderr, flush=True)
    return found


if __name__ == "__main__":
    main()
