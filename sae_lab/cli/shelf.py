"""The verbs for weights from elsewhere, and for elsewhere: look at them, convert them, put them on the hub."""

from dataclasses import field

import tyro

from ..knobs import knob
from ..library import load_sae, push, save_sae
from ..models import load_model
from ..pretrained import WRITES
from ..reading import model_of
from ..verification import verify
from . import say
from .commands import options, parsed

INSIDE = (str, knob("", help="which of a repository's or a folder's SAEs: a folder, a file, or a site such as L15R"))
FORMAT = (str, knob("saelens", choices=("sae_lab", *WRITES), help="whose format"))


def run_verify(argv: list[str], as_json: bool) -> None:
    """`verify WHERE [INSIDE] --model M`: whether a loaded SAE does what its checkpoint says."""
    more = {
        "where": (tyro.conf.Positional[str], field()),
        "inside": INSIDE,
        "model": (str | None, knob(None, help="the model; None: the one the checkpoint names")),
        "site": (str | None, knob(None, help="where it reads; None: what the checkpoint says")),
        "text": (str, knob("world", help="text to read: world, a file, or a dataset's name")),
        "tokens": (int, knob(4096, 1, 10**8, "tokens to read, special ones left out")),
        "l0": (float | None, knob(None, 0, help="mean L0 of its paper or page; None: what the checkpoint says")),
    }
    doc = "Try an SAE as it was loaded and as every known mistake would have read it; exit 1 where another fits better."
    given = parsed(options("VerifyOptions", doc=doc, **more), argv, "verify")
    sae = load_sae(given.where, given.inside)
    if not given.model and "model" not in sae.origin:
        raise ValueError("The checkpoint does not say of which model it is: give --model.")
    lm = load_model(given.model) if given.model else model_of(sae)
    asked = {"site": given.site, "text": given.text, "tokens": given.tokens, "l0": given.l0}
    found = verify(sae.to(lm.device), lm, **asked)
    rows = found.table.drop(columns="cost").to_string(index=False, float_format="{:.3f}".format)
    say(found.to_json(), as_json, f"{found!r}\n\n{rows}")
    if not found.healthy:
        raise RuntimeError(found.verdict)


def run_convert(argv: list[str], as_json: bool) -> None:
    """`convert FROM TO --format saelens`: a run's or another tool's SAE, in a format of one's choice."""
    more = {
        "where": (tyro.conf.Positional[str], field()),
        "folder": (tyro.conf.Positional[str], field()),
        "inside": INSIDE,
        "format": FORMAT,
        "dtype": (str, knob("float32", choices=("float32", "bfloat16", "float16"), help="precision of the weights")),
    }
    given = parsed(options("ConvertOptions", doc="Write an SAE in another format.", **more), argv, "convert")
    sae = load_sae(given.where, given.inside)
    folder = save_sae(sae, given.folder, given.format, given.dtype)
    applied = "; ".join(sae.origin.get("conventions", [])) or "nothing to apply"
    said = {"folder": str(folder), "format": given.format, "variant": sae.name, "conventions": applied}
    say(said, as_json, f"{folder}: {sae.name} in the format {given.format} ({applied}).")


def run_push(argv: list[str], as_json: bool) -> None:
    """`push RUN ORG/NAME`: onto the Hugging Face hub, with a card."""
    more = {
        "where": (tyro.conf.Positional[str], field()),
        "repo": (tyro.conf.Positional[str], field()),
        "format": FORMAT,
        "private": (bool, knob(False, help="whether only you can see it")),
    }
    given = parsed(options("PushOptions", doc="Put an SAE on the hub; needs HF_TOKEN.", **more), argv, "push")
    address = push(given.where, given.repo, format=given.format, private=given.private)
    say({"address": address}, as_json, address)
