"""What choosing latents by rounded numbers costs an SAE: python tests/bench_choice.py [--help]

The same recipe on the same text, trained once per seed and precision; FVU and CE recovered on held-out text. A coarse
choice costs nothing that matters if its mean lies within the seeds of float32.
"""

import argparse
from tempfile import TemporaryDirectory

import pandas as pd

import sae_lab as sl


def measured(lm, args, choose_in, seed):
    source = sl.activations(lm, args.site, text=args.text, seed=seed, context=args.context)
    sae = sl.build(args.variant, d_in=lm.d_in(args.site), d_sae=args.d_sae, k=args.k, seed=seed, choose_in=choose_in)
    with TemporaryDirectory() as run:
        for _ in sl.train(sae, source, tokens=args.tokens, batch=1024, lr=2e-3, seed=seed, run=run):
            pass
    found = sl.evaluate(sae, lm, tokens=args.held_out, spliced=args.held_out)
    return {"fvu": found.fvu.value, "ce_recovered": found.ce_recovered.value, "l0": found.l0.value}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given = {"model": "tiny", "site": "L1R", "text": "world", "variant": "batchtopk"}
    given |= {"d_sae": 2048, "k": 32, "context": 256, "tokens": 1_000_000, "held_out": 50_000, "seeds": 3}
    for name, default in given.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16", "int8"])
    args = parser.parse_args()
    lm, rows = sl.load_model(args.model), []
    for seed in range(args.seeds):
        for choose_in in args.precisions:
            rows.append({"choose_in": choose_in, "seed": seed} | measured(lm, args, choose_in, seed))
            print(*(f"{k} {v:.5f}" if isinstance(v, float) else f"{k} {v}" for k, v in rows[-1].items()), flush=True)
    table = pd.DataFrame(rows).drop(columns="seed").groupby("choose_in", sort=False).agg(["mean", "min", "max"])
    print(table.round(4).to_string())


if __name__ == "__main__":
    main()
