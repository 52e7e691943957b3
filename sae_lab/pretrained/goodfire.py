"""Goodfire's SAEs of Llama 3.1 8B and 3.3 70B: a pickle of two linear layers; ReLU, b_dec not subtracted."""

import re
from typing import Any

from .form import Form
from .stored import Stored

NAME = "goodfire"
KEYS = ("encoder_linear.weight", "encoder_linear.bias", "decoder_linear.weight", "decoder_linear.bias")


def recognises(stored: Stored) -> str | None:
    return stored.pick(*KEYS)


def read(stored: Stored, file: str) -> Form:
    d_sae, d = stored.shape(file, KEYS[0])
    stored.demand(file, KEYS[2], (d, d_sae))
    named: dict[str, Any] = {}
    release = re.search(r"(Llama-3\.\d-\d+B-Instruct)-SAE-l(\d+)", file)
    if release:
        named = {"model": f"meta-llama/{release[1]}", "site": f"L{release[2]}R"}
    return Form(
        "positive",
        stored.rows(file, KEYS[0]).float(),
        stored.rows(file, KEYS[2], transposed=True).float(),
        stored.numbers(file, KEYS[1]).float(),
        stored.whole(file, KEYS[3]).float(),
        origin=named | {"of": NAME},
        conventions=("b_dec not subtracted",),
    )
