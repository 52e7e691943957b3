"""A name becomes a model: the embedded Llamas, a folder, or a name on the Hugging Face hub.

Everything that can be wrong with a name or a folder is found here, and said in words a user can act on.
"""

import contextlib
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import enable_progress_bars
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils import logging

from sae_lab import tiny
from sae_lab.arithmetic import Figures
from sae_lab.models import traces
from sae_lab.models.lm import LM
from sae_lab.models.remote import RemoteLM
from sae_lab.models.server import Server

EMBEDDED = ("tiny", "tiny-chat")
UNTRAINED = "untrained:"
FAMILY = "Llama, Mistral, Qwen2, Qwen3, Gemma, Phi-3"
_PARTS = ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp.down_proj")  # of every layer


def load_model(
    name: str | Path,
    device: str | None = None,
    dtype: Any = None,
    *,
    remote: bool | str | Server = False,
    files: str | Path | None = None,
    revision: str | None = None,
) -> LM:
    """A language model by name: "tiny", "tiny-chat", a folder in Hugging Face's layout, or a hub name.

    "untrained:NAME" is the model of that name with weights as training would begin with them: the control that shows
    what an SAE finds by text and architecture alone (Heap et al. 2025, arXiv:2501.17727).

    `device` is a CUDA device where there is one, else the CPU. `dtype` ("bfloat16", torch.float16 ...) is float32 on a
    CPU and the stored one elsewhere.

    With `remote` the weights stay on NDIF, or on the server at that address, or on a `Server` with its own deadline;
    config and tokenizer alone are read. Then `device` has no say, and `dtype` is what activations are sent in, bfloat16
    by default. The key is NDIF_API_KEY of the environment.

    Args:
        files: a folder with config and tokenizer of a remote model that no hub has under its name.
        revision: of a remote model; None: as the server has it.

    Raises:
        FileNotFoundError: no such model, or its weights are not here and cannot be fetched.
        ValueError: the files are damaged, the architecture is not of the Llama family, or `dtype` is unknown.
    """
    if remote:
        return _remote(str(name), dtype, remote, str(files or name), revision)
    if files or revision:
        raise ValueError(
            f"files={files!r}, revision={revision!r} are for remote=True; here give the folder as the name."
        )
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    kind = _dtype(dtype, device)
    if str(name).startswith(UNTRAINED):
        lm = load_model(str(name).removeprefix(UNTRAINED), str(device), dtype)
        return LM(str(name), _forgetful(lm.module), lm.tokenizer)
    if str(name) in EMBEDDED:
        return _embedded(str(name), device, torch.bfloat16 if kind == "auto" else kind)
    source = _source(str(name))
    with _quiet(source):
        config = _ask(name, lambda: AutoConfig.from_pretrained(source))
        _check_family(name, config)
        tokenizer = _ask(name, lambda: AutoTokenizer.from_pretrained(source))
        module = _weights(name, source, kind)
    return LM(str(name), module.to(device), tokenizer)


def _embedded(name: str, device: torch.device, kind: torch.dtype) -> LM:
    tiny.folder(name)  # says itself what to do where there are no weights
    module, tokenizer = _ask(name, lambda: tiny.load(name))
    return LM(name, module.to(device, kind), tokenizer)


def _remote(name: str, dtype: Any, remote: bool | str | Server, files: str, revision: str | None) -> LM:
    """A model on a server, from its config and tokenizer alone."""
    if name in EMBEDDED or name.startswith(UNTRAINED):
        raise ValueError(f"{name!r} is no model that a server has: leave out remote=, it is loaded here.")
    server = remote if isinstance(remote, Server) else Server(remote if isinstance(remote, str) else None)
    source = _source(files)
    with _quiet(source):
        _check_family(name, _ask(name, lambda: AutoConfig.from_pretrained(source, revision=revision)))
        tokenizer = _ask(name, lambda: AutoTokenizer.from_pretrained(source, revision=revision))
        model = _ask(name, lambda: traces.outline(source, tokenizer, revision))
        with contextlib.suppress(OSError):  # not every model has one
            model._module.generation_config = GenerationConfig.from_pretrained(source, revision=revision)
    return RemoteLM(name, model, tokenizer, server, _dtype(dtype or torch.bfloat16, torch.device("cpu")), revision)


def figures(name: str | Path) -> Figures:
    """A model's widths, from its config alone.

    Raises:
        FileNotFoundError, ValueError: as `load_model`.
    """
    bare = str(name).removeprefix(UNTRAINED)
    source = str(tiny.folder(bare)) if bare in EMBEDDED else _source(bare)
    with _quiet(source):
        config = _ask(name, lambda: AutoConfig.from_pretrained(source))
    _check_family(name, config)
    return Figures.of(config)


def _forgetful(module: torch.nn.Module) -> torch.nn.Module:
    """A model like it with fresh weights, the same at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        fresh = AutoModelForCausalLM.from_config(module.config, dtype=module.dtype)
    return fresh.eval().requires_grad_(False).to(module.device)


def _source(name: str) -> str:
    if Path(name).is_dir():
        if not (Path(name) / "config.json").exists():
            raise FileNotFoundError(f"{name} holds no config.json: give the folder of a saved Hugging Face model.")
        return name
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return name
    raise FileNotFoundError(
        f"No model {name!r}. Write {', '.join(map(repr, EMBEDDED))}, an existing folder, or a hub name such as "
        "'meta-llama/Llama-3.1-8B'."
    )


def _weights(name: str | Path, source: str, dtype: torch.dtype | str) -> torch.nn.Module:
    def load() -> tuple:
        return AutoModelForCausalLM.from_pretrained(source, dtype=dtype, output_loading_info=True)

    module, info = _ask(name, load)
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(
            f"The weights of {name} lack {len(missing)} tensors ({', '.join(missing[:3])} ...): fetch the model anew."
        )
    return module


def _ask(name: str | Path, load: Any) -> Any:
    """Runs a load from disk or hub; what goes wrong there is said in one sentence."""
    try:
        return load()
    except SafetensorError as error:
        raise ValueError(
            f"A weights file of {name} is damaged or cut short ({error}): copy or fetch it anew."
        ) from error
    except (OSError, ValueError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        if isinstance(error, OSError):
            raise FileNotFoundError(
                f"{name}: {first} If the name is right, the files are not on this machine: connect to the hub and log "
                "in where the model is gated (`hf auth login`), or give a folder that holds config.json, the tokenizer "
                "and model.safetensors; or use 'tiny', which comes with the package."
            ) from error
        raise ValueError(f"{name} cannot be loaded: {first} Models of the Llama family work: {FAMILY}.") from error


def _check_family(name: str | Path, config: Any) -> None:
    with torch.device("meta"):
        empty = _ask(name, lambda: AutoModelForCausalLM.from_config(config))
    layers = getattr(getattr(empty, "model", None), "layers", None)
    parts = dict(layers[0].named_modules()) if layers else {}
    lacks = next((p for p in _PARTS if p not in parts), None) if layers else "model.layers"
    if not lacks and "RMSNorm" not in type(layers[0].input_layernorm).__name__:
        lacks = "RMSNorm"
    if lacks:
        raise ValueError(
            f"{name} is a {type(empty).__name__}, which is not built like a Llama (no {lacks}): sites would not mean "
            f"what they say. Models of the Llama family work: {FAMILY}."
        )


def _dtype(dtype: Any, device: torch.device) -> torch.dtype | str:
    if dtype is None:
        return torch.float32 if device.type == "cpu" else "auto"
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"dtype={dtype!r} is not a torch dtype. Write 'float32', 'bfloat16' or 'float16'.")
    return found


@contextlib.contextmanager
def _quiet(source: str):
    """Without the loader's progress bars and reports, which fill a notebook; errors and downloads still show."""
    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    if bars and not Path(source).is_dir():
        enable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
