"""Which wrong conventions `verify` recognises: python tests/bench_verify.py RUN RUN ... [--tokens 4096] [--json]

For each SAE a file as each format would hold it, with decoder norms between 1/3 and 3; read right, and read with each
mistake planted. A row is what was planted, a column what the verdict named.
"""

import argparse
import json
import math
from dataclasses import replace

import pandas as pd
import torch

import sae_lab as sl
from sae_lab.pretrained import Form
from sae_lab.pretrained.mistakes import MISTAKES
from sae_lab.reading import fitting, held_out, own_text, walk
from sae_lab.verification import AS_LOADED, Verification, mistake_of

RIGHT = "none"


def uneven(form: Form) -> Form:
    """The same SAE with decoder rows of other norms, each latent smaller by as much as its row is longer."""
    g = torch.Generator().manual_seed(0)
    norms = torch.exp((torch.rand(form.d_sae, generator=g) * 2 - 1) * math.log(3))
    shrunk = {name: getattr(form, name) / norms for name in ("b_enc", "b_mag") if getattr(form, name) is not None}
    if form.threshold is not None:
        shrunk["threshold"] = form.thresholds / norms
    fires = "priced topk" if form.fires == "topk" else form.fires
    return replace(
        form, fires=fires, variant=None, W_enc=form.W_enc / norms[:, None], W_dec=form.W_dec * norms[:, None], **shrunk
    )


def plant(form: Form, scale: float) -> dict[str, Form]:
    """The form as each mistaken loader would have made it."""
    made = {RIGHT: form}
    for mistake in MISTAKES:
        found = mistake.make(form, scale)
        if found is not None:
            made[mistake.name] = found
    return made


def named(found: Verification) -> str:
    best = list(dict.fromkeys(mistake_of(reading) for reading in found.best))
    if not found.works:
        return "nothing fits"
    if AS_LOADED in best:
        return RIGHT
    return best[0] if len(best) == 1 else "indistinguishable"


def confusion(runs: list[str], tokens: int) -> pd.DataFrame:
    rows = []
    for run in runs:
        sae = sl.load_sae(run)
        lm = sl.load_model(sae.origin.get("model", "tiny"))
        site = fitting(sae, lm, None)
        text, options = own_text(sae, None, {})
        pages = list(walk(lm, held_out(lm, text, "test", 1, **options), [site], tokens, sae))
        x = torch.cat([page.acts[site] for page in pages])
        scale = math.sqrt(sae.cfg.d_in) / x.norm(dim=1).mean().item()
        right = uneven(Form.of(sae))
        l0 = float(right.sae().encode(x).l0)
        for name, form in plant(right, scale).items():
            wrong = form.sae()
            wrong.origin = sae.origin | {"stated": {"l0": round(l0)}}
            rows.append((sae.name, name, named(sl.verify(wrong, lm, tokens=tokens))))
        moved = right.sae()
        moved.origin = sae.origin | {"stated": {"l0": round(l0)}, "site": f"L{site.layer - 1}{site.part}"}
        rows.append((sae.name, "another layer", named(sl.verify(moved, lm, tokens=tokens))))
    return pd.DataFrame(rows, columns=["variant", "planted", "named"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = confusion(given.runs, given.tokens)
    if given.json:
        print(json.dumps(found.to_dict("records")))
    else:
        print(pd.crosstab(found.planted, found.named).to_string())
        print(found.pivot(index="planted", columns="variant", values="named").fillna("-").to_string())
