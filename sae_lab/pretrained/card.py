"""The card of an SAE on a hub: what it is, how to load it, its conventions in words, and its numbers if a run has some.

What comes from data (names of models, texts and runs) is shown as plain text: it cannot break the YAML, nor be HTML.
"""

import html
import json
import math
import re
from collections.abc import Iterable
from pathlib import Path, PureWindowsPath
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..runs import Run
from ..saes import SAE
from ..sites import Site

LONG = 200  # characters of a name
PART = {
    "R": "the residual stream after layer {}",
    "A": "the attention output of layer {}",
    "M": "the MLP output of layer {}",
    "N": "the MLP neurons of layer {}",
    "TC": "what the MLP of layer {} reads, the normalised residual stream without the norm's weight",
}
FIRES = {
    "positive": "A latent fires where its pre-activation is above 0.",
    "topk": "The {k} latents with the largest pre-activations of a token fire, if above 0.",
    "priced topk": "The {k} latents of a token with the largest pre-activation times decoder norm fire, if above 0.",
    "grouptop": "Latents stand in {k} groups, in order; of each group the largest pre-activation of a token fires, if "
    "above 0.",
    "threshold": "A latent fires where its pre-activation is above its threshold ({threshold}); its value is the "
    "pre-activation itself, without the threshold subtracted.",
    "gate": "With u = W_enc x, or W_enc (x - b_dec): a latent fires where u + b_enc is above 0; its value is "
    "relu(exp(r_mag) u + b_mag).",
}
PER_TOKEN = {
    "none": "It reads raw activations, as the model computes them: nothing is to be scaled.",
    "norm": "It reads raw activations, scales each token to a norm of sqrt(d_in) itself, and its reconstruction back.",
    "layer_norm": "It reads raw activations, subtracts each token's mean and divides by its standard deviation itself, "
    "and scales its reconstruction back.",
}
TOOLS = {
    "saelens": ("SAELens", "from sae_lens import SAE", "sae = SAE.load_from_disk(folder)"),
    "sparsify": ("sparsify", "from sparsify import SparseCoder", "sae = SparseCoder.load_from_disk(folder)"),
    "dictionary_learning": (
        "dictionary_learning",
        "from dictionary_learning.utils import load_dictionary",
        'sae, config = load_dictionary(folder, device="cpu")',
    ),
    "llama_scope": (
        "Language-Model-SAEs 1",
        "from lm_saes import SparseAutoEncoder",
        "sae = SparseAutoEncoder.from_pretrained(folder)",
    ),
}
UNCENTRED = ("gemma_scope", "llamascopium")  # formats of SAEs that subtract nothing
WORDS = {
    "fvu": "fraction of variance unexplained, 0 is best",
    "l0": "latents active per token",
    "ce_increase": "cost of splicing it in, nats per token",
    "ce_recovered": "cross-entropy recovered: 1 = free, 0 = as bad as zeros",
    "kl": "KL(model, model with it spliced in), nats per token",
    "dead": "share of latents that never fired on these tokens",
    "dense": "share of latents on more than 10% of tokens",
}
ASKED = ("tokens", "batch", "lr", "scaling", "warmup", "decay", "seed")  # of run.config["train"]
READ = ("model", "text", "split", "context", "dtype")  # of what was read to train


def card(sae: SAE, run: Run | None = None, *, repo: str = "", format: str = "", citation: str = "") -> str:
    """Markdown with YAML front matter.

    Args:
        run: whose evaluation and settings are told; without, what the SAE itself knows.
        repo: "org/name", where it will be found.
        format: that it is written in.
        citation: BibTeX.
    """
    model = sae.origin.get("model")
    title = f"# {plain(sae.name)} SAE" + (f" of {_name(model)}" if model else "")
    sections = [_front(model), title, _facts(sae), _load(sae, repo, format), _conventions(sae, format), _numbers(run)]
    sections += [_trained(sae, run), f"## Citation\n\n{_block(citation, 'bibtex')}" if citation.strip() else ""]
    return "\n\n".join(section for section in sections if section) + "\n"


def names_repo(text: str) -> bool:
    """Whether this is "org/name" by the hub's own rule."""
    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return text.count("/") == 1


def plain(value: Any) -> str:
    """Text that Markdown and HTML show as it is, on one line and not at its beginning."""
    said = " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())[:LONG]
    return re.sub(r"([\\`*_\[\]|~$])", r"\\\1", html.escape(said, quote=False))


def _name(value: Any) -> str:
    """A model or a text by its name; of a path on somebody's machine the last part."""
    said = str(value)
    local = PureWindowsPath(said).anchor or said.startswith(("~", "."))
    return plain(PureWindowsPath(said).name if local else said)


def _front(model: Any) -> str:
    lines = ["---", "library_name: sae_lab", "tags:", "- sparse-autoencoder", "- interpretability"]
    if isinstance(model, str) and names_repo(model) and not Path(model).exists():
        lines.append(f"base_model: {json.dumps(model)}")
    return "\n".join([*lines, "---"])


def _facts(sae: SAE) -> str:
    rows = [("variant", f"{plain(sae.name)} ({plain(sae.paper)})"), ("d_in", f"{sae.cfg.d_in:,}")]
    rows.append(("d_sae", f"{sae.cfg.d_sae:,} ({sae.cfg.d_sae / sae.cfg.d_in:.3g} latents per dimension)"))
    if site := _site(sae):
        rows.append(("site", f"{site}: {PART[site.part].format(site.layer)}"))
    elif "hook" in sae.origin:
        rows.append(("site", plain(sae.origin["hook"])))
    if sae.cfg.transcode:
        rows.append(("predicts", PART["M"].format(site.layer) if site else "another activation than it reads"))
    for key, unit in (("model", ""), ("context", " tokens")):
        if sae.origin.get(key):
            rows.append((key, _name(sae.origin[key]) + unit))
    if sae.origin.get("of"):
        rows.append(("published as", plain(sae.origin["of"])))
    return _table(("", ""), rows)


def _site(sae: SAE) -> Site | None:
    try:
        return Site(str(sae.origin.get("site", "")))
    except ValueError:
        return None


def _load(sae: SAE, repo: str, format: str) -> str:
    where = json.dumps(repo if names_repo(repo) else "org/name")
    at = f" at {site}" if (site := _site(sae)) else ""
    ours = ["import sae_lab as sl", "", f"sae = sl.load_sae({where})", f"z = sae.encode(x)  # x: raw activations{at}"]
    parts = ["## How to load it", _block("\n".join(ours), "python")]
    if format in TOOLS:
        tool, imported, loaded = TOOLS[format]
        fetched = f"folder = snapshot_download({where})"
        theirs = ["from huggingface_hub import snapshot_download", imported, "", fetched, loaded]
        parts += [f"The files are those of {tool}:", _block("\n".join(theirs), "python")]
    elif format:
        parts.append(f"The files are of the format {plain(format)}.")
    return "\n\n".join(parts)


def _conventions(sae: SAE, format: str) -> str:
    said = [PER_TOKEN[sae.cfg.per_token]]
    if sae.centre is None:
        said.append("b_dec is not subtracted before the encoder.")
    elif _moved(sae, format):
        said.append("b_dec is not subtracted before the encoder: in these files its part has been moved into b_enc.")
    else:
        said.append("b_dec is subtracted before the encoder.")
    if sae.fires in FIRES:
        said.append(FIRES[sae.fires].format(k=getattr(sae.cfg, "k", None), threshold=_thresholds(sae)))
    said.append("Reconstruction: z W_dec + b_dec" + (" + W_skip x." if sae.W_skip is not None else "."))
    lines = [re.sub(r"(\w+_\w+)", r"`\1`", line) for line in said]
    if read := sae.origin.get("conventions"):
        lines.append(f"Applied when it was read from another tool: {'; '.join(map(plain, read))}.")
    return "## Conventions\n\n" + "\n".join(f"- {line}" for line in lines)


def _moved(sae: SAE, format: str) -> bool:
    """Whether the format's files have no subtraction, so that writing folds it."""
    jump = format == "dictionary_learning" and sae.fires == "threshold" and sae.threshold.dim() > 0
    return format in UNCENTRED or jump


def _thresholds(sae: SAE) -> str:
    if sae.fires != "threshold":
        return ""
    low, high = sae.threshold.min().item(), sae.threshold.max().item()
    return f"{low:.4g} for all" if low == high else f"each has its own, {low:.4g} to {high:.4g}"


def _numbers(run: Run | None) -> str:
    """What the evaluation measured, nothing where there was none."""
    found = run.eval if run is not None else {}
    rows = []
    for name, number in found.items():
        if isinstance(number, dict) and _is_number(number.get("value")):
            low, high = number.get("low"), number.get("high")
            interval = f"{low:.4g} to {high:.4g}" if _is_number(low) and _is_number(high) else ""
            rows.append((plain(name), f"{number['value']:.4g}", interval, WORDS.get(name, "")))
    if not rows:
        return ""
    about = found.get("about") if isinstance(found.get("about"), dict) else {}
    on = [f"{plain(key)}: {_name(value)}" for key, value in about.items() if isinstance(value, str | int | float)]
    return "## Measured\n\n" + _table(("number", "value", "95% interval", "meaning"), rows) + "\n\n" + "; ".join(on)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _trained(sae: SAE, run: Run | None) -> str:
    config = run.config if run is not None else {}
    source, asked = config.get("source") or sae.origin, dict(config.get("train") or {})
    asked |= {"lr": config["lr"]} if config.get("lr") else {}
    rows = [("run", plain(run.name))] if run is not None else []
    rows += [(key, _name(source[key])) for key in READ if source.get(key) is not None]
    rows += [(key, plain(asked[key])) for key in ASKED if asked.get(key) is not None]
    settings = config.get("sae") or {}
    rows += [(f"sae.{plain(key)}", plain(value)) for key, value in settings.items() if value is not None]
    return "## Training\n\n" + _table(("", ""), rows) if rows else ""


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ("---",) * len(head), *rows))


def _block(text: str, language: str) -> str:
    """A fenced block; the fence is longer than any in the text."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.strip()}\n{fence}"
