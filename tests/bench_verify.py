"""Which wrong conventions `verify` recognises: python tests/bench_verify.py FOLDER [--tokens 4096] [--json]

FOLDER has runs of topk, batchtopk, relu and jumprelu, the first of each is taken. Each is written as files of every
format that can hold it, read right, and read with each mistake planted; decoder norms lie between 1/3 and 3 where a
format counts them. A row is what was planted, a column a format; an entry is what the verdict named.
"""

import argparse
import json
import math
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

import sae_lab as sl
from sae_lab import pretrained
from sae_lab.models import LM
from sae_lab.pretrained import Form
from sae_lab.pretrained.llama_scope import write_as_trained
from sae_lab.pretrained.mistakes import MISTAKES
from sae_lab.reading import fitting, held_out, own_text, walk
from sae_lab.saes import SAE
from sae_lab.verification import AS_LOADED, Verification, mistake_of

RIGHT = "none"
BY_NORM = "decoder norms in the choice"
HELD = {  # the variant that each format's files are made of
    "llama_scope": "batchtopk", "llamascopium": "jumprelu", "saelens": "jumprelu", "dictionary_learning": "batchtopk",
    "sparsify": "topk", "gemma_scope": "jumprelu", "openai": "relu", "goodfire": "relu",
}  # fmt: skip


def lengths(d_sae: int) -> torch.Tensor:
    return torch.exp((torch.rand(d_sae, generator=torch.Generator().manual_seed(0)) * 2 - 1) * math.log(3))


def uneven(form: Form) -> Form:
    """The same SAE with decoder rows of other norms, each latent smaller by as much as its row is longer."""
    if form.fires == "topk":  # which would choose others
        return form
    norms = lengths(form.d_sae)
    shrunk = {name: getattr(form, name) / norms for name in ("b_enc", "b_mag") if getattr(form, name) is not None}
    if form.threshold is not None:
        shrunk["threshold"] = form.thresholds / norms
    return replace(form, variant=None, W_enc=form.W_enc / norms[:, None], W_dec=form.W_dec * norms[:, None], **shrunk)


def plant(form: Form, scale: float) -> dict[str, Form]:
    """The form as each mistaken loader would have made it."""
    made = {RIGHT: form}
    for mistake in MISTAKES:
        found = mistake.make(form, scale)
        if found is not None:
            made[mistake.name] = found
    return made


def stored(sae: SAE, format: str, folder: Path, norm: float) -> Path:
    """A checkpoint of the format."""
    form = uneven(Form.of(sae))
    if format == "llama_scope":
        return write_as_trained(sae, folder, norm, torch.float32, lengths(sae.cfg.d_sae))
    if format in ("openai", "goodfire"):
        bias = form.bias + form.W_enc @ form.b_dec if format == "openai" else form.bias  # theirs subtracts b_dec
        ends = (form.W_enc, bias, form.W_dec.T.contiguous(), form.b_dec)
        folder.mkdir()
        names = pretrained.goodfire.KEYS
        if format == "openai":
            names, ends = pretrained.openai.KEYS, (ends[3], ends[0], ends[1], ends[2])
        torch.save(dict(zip(names, ends)), folder / "sae.pt")
        return folder
    if format == "dictionary_learning":  # its BatchTopK has one threshold
        form = Form.of(sae)
    return pretrained.write(form, folder, format)


def misread(folder: Path, format: str, scale: float) -> dict[str, Form]:
    """By mistake: what a loader that makes it reads."""
    right = pretrained.read(folder, name=format)
    made = plant(right, scale)
    config = folder / "hyperparams.json"
    if config.exists():  # its reader moves the norms into the encoder: the mistake is not to count them
        said = json.loads(config.read_text())
        config.write_text(json.dumps(said | {"sparsity_include_decoder_norm": False}))
        made[BY_NORM] = pretrained.read(folder, name=format)
    return made


def named(found: Verification) -> str:
    best = list(dict.fromkeys(mistake_of(reading) for reading in found.best))
    if not found.works:
        return "nothing fits"
    if AS_LOADED in best:
        return RIGHT
    return " or ".join(best)


def verdicts(sae: SAE, lm: LM, format: str, tokens: int) -> Iterator[tuple[str, str]]:
    """(planted, named) of a format's files."""
    site = fitting(sae, lm, None)
    text, options = own_text(sae, None, {})
    x = torch.cat([page.acts[site] for page in walk(lm, held_out(lm, text, "test", 1, **options), [site], tokens, sae)])
    norm = x.norm(dim=1).mean().item()
    stated = {"stated": {"l0": round(float(sae.encode(x).l0))}}
    with tempfile.TemporaryDirectory() as aside:
        made = misread(stored(sae, format, Path(aside) / "sae", norm), format, math.sqrt(sae.cfg.d_in) / norm)
    for name, form in made.items():
        read = form.sae()
        read.origin = sae.origin | stated
        yield name, named(sl.verify(read, lm, tokens=tokens))
    moved = made[RIGHT].sae()
    moved.origin = sae.origin | stated | {"site": f"L{site.layer - 1}{site.part}"}
    yield "another layer", named(sl.verify(moved, lm, tokens=tokens))


def confusion(folder: Path, tokens: int) -> pd.DataFrame:
    rows = []
    for format, variant in HELD.items():
        sae = sl.load_sae(next(run for run in sorted(folder.glob(f"{variant}*")) if (run / "sae").exists()))
        lm = sl.load_model(sae.origin.get("model", "tiny"))
        rows += [(format, planted, said) for planted, said in verdicts(sae, lm, format, tokens)]
    return pd.DataFrame(rows, columns=["format", "planted", "named"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = confusion(given.folder, given.tokens)
    order = [RIGHT, *(mistake.name for mistake in MISTAKES)]
    table = found.pivot(index="planted", columns="format", values="named").reindex(order).fillna("-")
    rows = [
        ["planted", *HELD],
        ["---"] * (1 + len(HELD)),
        *([name, *row] for name, row in zip(order, table[list(HELD)].values)),
    ]
    shown = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    print(json.dumps(found.to_dict("records")) if given.json else shown)
