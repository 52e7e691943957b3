"""Small models that tests build: seconds cheaper than a real one, and always there."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from sae_lab import tiny
from sae_lab.models import LM, load_model
from sae_lab.saes import SAE, build


def small_llama(folder: Path) -> LM:
    """A Llama of random weights, far from uniform, with the embedded tokenizer: d_model 32, 3 layers, context 128."""
    tokenizer = AutoTokenizer.from_pretrained(tiny.folder("tiny"))
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "vocab_size": len(tokenizer)}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**shape, **heads, initializer_range=0.5)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_model(str(folder))


def llama_and_text(folder: Path) -> dict[str, str]:
    """A small Llama and a text in a folder: the knobs that name them."""
    small_llama(folder / "model")
    texts = [f"A text about number {i} and what came after {i * 7 % 31}." for i in range(400)]
    (folder / "text.txt").write_text("<|endoftext|>".join(texts))
    return {"model": str(folder / "model"), "text": str(folder / "text.txt")}


def identity(d_in: int = 32, over: float = 0.0, silent: Sequence[int] = ()) -> SAE:
    """relu(x) - relu(-x) = x: an SAE that changes nothing; or relu(x - over) ..., some of whose latents never fire."""
    sae = build("relu", d_in=d_in, d_sae=2 * d_in, choose_in="float32")
    with torch.no_grad():
        sae.W_enc.copy_(torch.cat([torch.eye(d_in), -torch.eye(d_in)]))
        sae.W_dec.copy_(sae.W_enc)
        sae.b_enc.fill_(-over)
        sae.b_enc[list(silent)] = -1e9
    return sae
