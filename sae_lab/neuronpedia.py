"""Neuronpedia's dashboards: our contexts written as its importer reads them, its explanations read beside ours.

Written are the batches of SAEDashboard 0.8 (`batch-0.json` ...). Read are those, the answers of Neuronpedia's API
(`/api/feature/..`, `/api/explanation/export`) and its bulk exports (`features/`, `explanations/`).
"""

import gzip
import json
import math
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd
import torch

from .explanation.results import Explanations
from .runs import Damaged, write_json
from .runs.files import whole_folder
from .saes import SAE
from .windows.results import Card, Context, Contexts

MOST = 10**9  # bytes of JSON that are read of a file, unzipped
DIGITS = 6  # of the numbers that are written
ALIGNED = 3  # coordinates of the activation that a latent's direction is strongest on: as many as SAEDashboard writes
OCTAVE = 4  # of a card's bins: contexts are shown in groups of activations that differ by less than a factor of 2
UNKNOWN = (  # what cards do not know, under Neuronpedia's names
    *(f"correlated_{of}_{what}" for of in ("neurons", "features") for what in ("indices", "l1", "pearson")),
    *("logits_hist_data_bar_values", "logits_hist_data_bar_heights", "decoder_weights_dist"),
)
BATCH = re.compile(r"batch-\d+\.jsonl?(\.gz)?")
SAYS = ("explanations", "description", "frac_nonzero", "pos_str")  # a record of a latent has one of these


def to_neuronpedia(
    cards: Contexts,
    folder: str | Path,
    *,
    model_id: str,
    layer: int,
    source_set: str,
    source_id_suffix: str = "",
    per_batch: int = 256,
    sae: SAE | None = None,
) -> Path:
    """Writes a new folder of feature batches, for SAEDashboard's `export_neuronpedia_dashboards`.

    What contexts do not know (correlations, the logits of the whole vocabulary) is an empty list there. The histogram's
    bars are at the middles of our bins, which grow by a quarter of an octave; prompts are rows of `context` tokens.

    Args:
        model_id, source_set: its names of the model and of a family of SAEs; a suffix tells those of one layer apart.
        sae: what the cards are of: gives `vector` and the alignment with coordinates; without it they are empty.

    Raises:
        ValueError: `per_batch` below 1, or an SAE that has not all of the latents.
        FileExistsError: if the folder is there and not empty.
    """
    folder = Path(folder)
    if per_batch < 1:
        raise ValueError(f"per_batch={per_batch} must be at least 1: it is how many latents a file holds.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{str(folder)!r} is there already. Write into a folder of its own.")
    latents = list(cards)
    if sae is not None and latents and latents[-1] >= sae.cfg.d_sae:
        has = f"The cards have latent {latents[-1]}, and this SAE has latents 0 to {sae.cfg.d_sae - 1}."
        raise ValueError(f"{has} Give the SAE that the contexts were made with.")
    said = {"model_id": model_id, "layer": layer, "sae_set": source_set, "sae_id_suffix": source_id_suffix or None}
    with whole_folder(folder) as new:
        for number, first in enumerate(range(0, len(latents), per_batch)):
            features = [_feature(cards[n], cards.about, sae) for n in latents[first : first + per_batch]]
            write_json(new / f"batch-{number}.json", said | {"features": features})
    return folder


def _feature(card: Card, about: dict[str, Any], sae: SAE | None) -> dict[str, Any]:
    """A latent under Neuronpedia's names."""
    used = np.flatnonzero(card.histogram)
    bars = slice(used[0], used[-1] + 1) if len(used) else slice(0)
    context = about.get("context", 0)
    return {
        "feature_index": card.latent,
        **_direction(sae, card.latent),
        **{name: [] for name in UNKNOWN},
        **_logits("neg", card.suppressed),
        **_logits("pos", card.promoted),
        "frac_nonzero": card.density,
        "freq_hist_data_bar_values": _numbers((card.edges[:-1] + card.edges[1:])[bars] / 2),
        "freq_hist_data_bar_heights": card.histogram[bars].tolist(),
        "n_prompts_total": math.ceil(about.get("tokens", 0) / context) if context else 0,
        "n_tokens_in_prompt": context,
        "dataset": str(about.get("text", "")),
        "activations": _activations(card),
    }


def _direction(sae: SAE | None, latent: int) -> dict[str, list]:
    """The decoder row, and the coordinates where it is largest, with their shares of its L1 norm."""
    names = [f"neuron_alignment_{what}" for what in ("indices", "values", "l1")]
    if sae is None:
        return {name: [] for name in ("vector", *names)}
    row = sae.W_dec[latent].detach().float().cpu()
    value, index = row.topk(min(ALIGNED, len(row)))
    share = value.abs() / row.abs().sum().clamp(min=torch.finfo(row.dtype).tiny)
    return {"vector": _numbers(row), **dict(zip(names, (index.tolist(), _numbers(value), _numbers(share))))}


def _logits(sign: str, effects: Sequence[tuple[str, float]]) -> dict[str, list]:
    known = [(token, logit) for token, logit in effects if math.isfinite(logit)]
    return {f"{sign}_str": [_text(t) for t, _ in known], f"{sign}_values": _numbers([logit for _, logit in known])}


def _activations(card: Card) -> list[dict[str, Any]]:
    """The strongest contexts, then the sample by octaves, the highest first, with the share of firings in each."""
    bin_max = max((c.activation for c in card.top), default=0.0)
    found = [_activation(c, -1.0, bin_max, -1.0) for c in card.top]  # so SAEDashboard marks the strongest
    for context in card.sampled:  # strongest first; what is beyond the edges counts in the first bin and in the last
        edges, bins = card.edges, len(card.histogram)
        place = np.clip(np.searchsorted(edges, context.activation, "right") - 1, 0, bins - 1)
        first = int(place) // OCTAVE * OCTAVE
        last = min(first + OCTAVE, bins)
        high = float(edges[last]) if last < bins else max(bin_max, float(edges[last]))
        share = float(card.histogram[first:last].sum() / max(1, card.histogram.sum()))
        found.append(_activation(context, float(edges[first]) if first else 0.0, high, share))
    return found


def _activation(context: Context, *bounds: float) -> dict[str, Any]:
    return {
        **dict(zip(("bin_min", "bin_max", "bin_contains"), _numbers(bounds))),
        "tokens": [_text(token) for token in context.tokens],
        "values": _numbers(context.values),
        "qualifying_token_index": context.peak,
    }


def _numbers(values: Any) -> list[float]:
    return [float(f"{value:.{DIGITS}g}") for value in np.asarray(values, np.float64).tolist()]


def _text(token: str) -> str:
    """Without halves of a pair of surrogates, which strict readers of JSON refuse."""
    return token.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def read_neuronpedia(where: str | Path | dict | list) -> pd.DataFrame:
    """One row per latent: what Neuronpedia says of it.

    Columns: `latent`; `explanation`, the best scored, else the first, else None; `by`, the model that explained;
    `score`, the highest that any scorer gave it; `density`, share of tokens; `top_tokens`, those it promotes most.

    Args:
        where: a file (JSON or JSONL, as it is or gzipped), a folder of `batch-0` ..., JSON as text, or what it says.

    Raises:
        FileNotFoundError: if there is no such file.
        Damaged: a file that is no JSON, or unzips to more than `MOST` bytes.
        ValueError: JSON that is not of Neuronpedia's latents, or of several SAEs.
    """
    found: dict[int, dict[str, Any]] = {}
    sources: set[tuple[str, str]] = set()
    for name, value in _read(where):
        for source, record in _records(value, name):
            sources |= {source} if all(source) else set()
            if len(sources) > 1:
                a, b = ("/".join(source) for source in sorted(sources))
                raise ValueError(f"{name} has latents of {a}, and of {b} there are some too. Read one SAE at a time.")
            _merge(found, record, name)
    rows = [{"latent": latent, **_best(said.pop("explanations")), **said} for latent, said in sorted(found.items())]
    return pd.DataFrame(rows, columns=["latent", "explanation", "by", "score", "density", "top_tokens"])


def _read(where: str | Path | dict | list) -> Iterator[tuple[str, Any]]:
    """(name, JSON) of all that is there."""
    if isinstance(where, dict | list):
        yield "The JSON", where
    elif isinstance(where, str) and where.lstrip()[:1] in ("{", "["):
        yield from (("The JSON", value) for value in _parsed(where.encode("utf-8", "surrogatepass"), "The JSON"))
    else:
        path = Path(where)
        files = sorted(p for p in path.glob("batch-*") if BATCH.fullmatch(p.name)) if path.is_dir() else [path]
        if not files or not path.exists():
            raise FileNotFoundError(f"No file {str(path)!r}, or no batch-0.json, .jsonl or .gz of those in the folder.")
        for file in files:
            yield from ((str(file), value) for value in _parsed(_bytes(file), str(file)))


def _bytes(path: Path) -> bytearray:
    """What the file holds, unzipped; hardly more than `MOST` of it is ever in memory."""
    data = bytearray()
    with open(path, "rb") as plain:
        zipped = plain.peek(2)[:2] == b"\x1f\x8b"
        file = gzip.GzipFile(fileobj=plain) if zipped else plain
        try:
            while len(data) <= MOST and (part := file.read(2**20)):
                data += part
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise Damaged(f"{path} cannot be unzipped ({error}): it was cut short or altered.") from error
    if len(data) > MOST:
        raise Damaged(f"{path} holds more than {MOST / 1e9:g} GB of JSON, which is the most that is read. Split it.")
    return data


def _parsed(data: bytes | bytearray, name: str) -> Iterator[Any]:
    """The JSON, or that of each line."""
    try:
        try:
            values = [json.loads(data)]
        except ValueError:
            values = map(json.loads, [line for line in data.splitlines() if line.strip()] or [data])
        yield from values
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{name} is not readable as JSON or JSONL ({error}): it was cut short or altered.") from error


def _records(value: Any, name: str) -> Iterator[tuple[tuple[str, str], dict[str, Any]]]:
    """((model, source), record) of each latent or explanation."""
    if isinstance(value, list):
        for part in value:
            yield from _records(part, name) if isinstance(part, dict) else _refuse(part, name)
    elif not isinstance(value, dict):
        _refuse(value, name)
    elif isinstance(value.get("features"), list):
        suffix = value.get("sae_id_suffix")
        source = f"{value.get('layer')}-{value.get('sae_set')}" + (f"__{suffix}" if suffix else "")
        for part in value["features"]:
            if not isinstance(part, dict) or "feature_index" not in part:
                _refuse(part, name)
            yield (str(value.get("model_id") or ""), source if value.get("sae_set") else ""), part
    elif ("index" in value or "feature_index" in value) and any(key in value for key in SAYS):
        yield (str(value.get("modelId") or ""), str(value.get("layer") or "")), value
    else:
        _refuse(value, name)


def _refuse(value: Any, name: str) -> NoReturn:
    holds = f"the keys {', '.join(map(repr, list(value)[:8]))}" if isinstance(value, dict) else f"{value!r:.60}"
    raise ValueError(
        f"{name} is no feature JSON of Neuronpedia. Looked for 'features' with a 'feature_index' each (dashboards), or "
        f"'index' beside one of {', '.join(map(repr, SAYS))} (API and exports), and found {holds}."
    )


def _merge(found: dict[int, dict[str, Any]], record: dict[str, Any], name: str) -> None:
    """Adds what a record says of its latent: explanations may come in records, and files, of their own."""
    index = record.get("feature_index", record.get("index"))
    if not re.fullmatch(r"[0-9]{1,9}", str(index)):
        raise ValueError(f"{name}: {index!r:.60} is no number of a latent; 'index' and 'feature_index' count from 0.")
    said = found.setdefault(int(index), {"explanations": [], "density": math.nan, "top_tokens": ()})
    if "description" in record:
        said["explanations"].append(record)
    said["explanations"] += [e for e in _list(record.get("explanations")) if isinstance(e, dict)]
    if not math.isnan(density := _number(record.get("frac_nonzero"))):
        said["density"] = density
    if tokens := tuple(token for token in _list(record.get("pos_str")) if isinstance(token, str)):
        said["top_tokens"] = tokens


def _best(explanations: list[dict[str, Any]]) -> dict[str, Any]:
    best = {"explanation": None, "by": None, "score": math.nan}
    for said in explanations:
        text, by = said.get("description"), said.get("explanationModelName") or said.get("typeName")
        scores = [_number(s.get("value")) for s in _list(said.get("scores")) if isinstance(s, dict)]
        score = max((s for s in scores if not math.isnan(s)), default=math.nan)
        better = best["explanation"] is None or score > best["score"] or math.isnan(best["score"]) > math.isnan(score)
        if better and isinstance(text, str) and text.strip():
            best = {"explanation": text.strip(), "by": by if isinstance(by, str) else None, "score": score}
    return best


def _list(value: Any) -> list:
    return value if isinstance(value, list) else []


def _number(value: Any) -> float:
    """NaN for what is none, or not finite."""
    known = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
    return float(value) if known else math.nan


def beside(ours: Explanations, theirs: pd.DataFrame) -> pd.DataFrame:
    """Our explanations, each with what `read_neuronpedia` found of the same latent: `latent`, `ours`, our scores by
    name, `theirs`, `their score`. Scores are of different scorers, and compare only with others of their kind.

    Raises:
        ValueError: a table of another kind, or one that knows none of our latents.
    """
    if missing := {"latent", "explanation", "score"} - set(theirs):
        raise ValueError(f"theirs has no column {min(missing)!r}: give read_neuronpedia(...). It has {list(theirs)}.")
    table = ours.table.rename(columns={"explanation": "ours"})
    known = theirs[["latent", "explanation", "score"]].rename(columns={"explanation": "theirs", "score": "their score"})
    if len(table) and not table["latent"].isin(known["latent"]).any():
        raise ValueError(f"None of our {len(table)} latents is among the {len(known)} of theirs: of another SAE?")
    return table.merge(known, on="latent", how="left")
