"""How far UMAP keeps neighbours of real latents: python tests/bench_maps.py FOLDER, the folder of a suite.

One row per variant and width: a joint map of all its seeds, with the settings of `sl.map_latents`.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd

import sae_lab as sl


def main(folder: str) -> None:
    names = sorted({run.name.rsplit("-s", 1)[0] for run in Path(folder).glob("*-d*-s*")})
    rows = []
    for name in names:
        found = sl.map_latents([sl.load_sae(run) for run in sorted(Path(folder).glob(f"{name}-s*"))]).wait()
        near = found.near.cosine
        cosines = {f"median cosine of neighbour {i}": np.median(near[:, i - 1]) for i in (1, near.shape[1])}
        rows.append({"SAEs": name, "latents": len(found.latents), **cosines, **found.trustworthiness})
        print(pd.DataFrame(rows[-1:]).to_string(header=len(rows) == 1, index=False, float_format="%.3f"), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
