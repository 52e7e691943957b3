"""OpenAI's sparse_autoencoder (Gao et al. 2024, arXiv:2406.04093): a pickle of tensors; TopK or ReLU, layer norm."""

from typing import Any

from .form import Form
from .stored import Stored

NAME = "openai"
KEYS = ("pre_bias", "encoder.weight", "latent_bias", "decoder.weight")


def recognises(stored: Stored) -> str | None:
    return stored.pick(*KEYS)


def read(stored: Stored, file: str) -> Form:
    d_sae, d = stored.shape(file, "encoder.weight")
    stored.demand(file, "decoder.weight", (d, d_sae))
    act = str(stored.extra.get("activation", "ReLU"))
    if act not in ("TopK", "ReLU"):
        raise ValueError(f"{stored.root / file}: activation={act!r} of OpenAI's SAEs is none of ours: TopK and ReLU.")
    rule: dict[str, Any] = {"fires": "positive"}
    if act == "TopK":
        k = stored.extra.get("activation_state_dict.k")
        rule = {"fires": "topk", "k": int(k if k is not None else stored.whole(file, "activation_state_dict.k"))}
    # layer norm goes with TopK: that is how theirs were trained
    per_token = "layer_norm" if act == "TopK" else "none"
    return Form(
        **rule,
        W_enc=stored.rows(file, "encoder.weight").float(),
        W_dec=stored.rows(file, "decoder.weight", transposed=True).float(),
        b_enc=stored.numbers(file, "latent_bias").float(),
        b_dec=stored.whole(file, "pre_bias").float(),
        centred=True,
        per_token=per_token,
        origin={"of": NAME},
        conventions=("b_dec subtracted before the encoder", f"tokens scaled by {per_token.replace('_', ' ')}"),
    )
