"""The embedded Llama: where its weights live, and its chat sibling, kept as the tensors that differ.

`folder("tiny")` is an ordinary Hugging Face folder. `folder("tiny-chat")` holds, in place of weights, what differs
(`delta.safetensors`); `weights("tiny-chat")` puts it in place. Importing this is cheap: torch and safetensors come
when weights are asked for.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

HERE = Path(__file__).parent
FOLDERS = {"tiny": HERE / "model", "tiny-chat": HERE / "chat"}


def folder(name: str) -> Path:
    """The folder of an embedded model: "tiny" or "tiny-chat".

    Raises:
        KeyError: no embedded model has this name.
        FileNotFoundError: the name is known but its weights have not been made.
    """
    if name not in FOLDERS:
        raise KeyError(f"No embedded model named {name!r}. Known: {', '.join(sorted(FOLDERS))}.")
    if not (FOLDERS[name] / "config.json").exists():
        raise FileNotFoundError(
            f"{name!r} has no weights in {FOLDERS[name]}: make them with `python -m sae_lab.tiny.make "
            f"{'chat' if name == 'tiny-chat' else 'train'}`, which takes its time."
        )
    return FOLDERS[name]


def weights(name: str) -> "dict[str, Tensor]":
    """The state dict of an embedded model, in bf16: for the chat sibling the base with what differs put in place."""
    from safetensors.torch import load_file

    base = load_file(folder("tiny") / "model.safetensors")
    return base if name == "tiny" else changed(base, load_file(folder(name) / "delta.safetensors"))


def changed(base: "dict[str, Tensor]", delta: "dict[str, Tensor]") -> "dict[str, Tensor]":
    """A state dict with what differs put in place: whole tensors, and rows of tensors."""
    for key in [key for key in delta if key.endswith(".rows")]:
        target = key.removesuffix(".rows")
        base[target][delta.pop(f"{target}.which")] = delta.pop(key).to(base[target].dtype)
    return base | delta


def load(name: str):
    """(LlamaForCausalLM in eval mode, tokenizer) of an embedded model, on the CPU, in float32."""
    from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig.from_pretrained(folder(name)))
    model.load_state_dict(weights(name), strict=False)
    model.tie_weights()
    model.generation_config = GenerationConfig.from_pretrained(folder(name))  # a chat ends with <|end|>
    return model.eval(), AutoTokenizer.from_pretrained(folder(name))
