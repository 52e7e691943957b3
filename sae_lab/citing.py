"""BibTeX of what a run used: its variant, what its config switched on, its model and text, how it was measured."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd

from .runs import Run
from .saes import REGISTRY
from .tiny import FOLDERS

OWN = {*FOLDERS, "world"}  # models and text that come with the package
MODELS = {r"llama-?2": "2307.09288", r"llama-?3": "2407.21783"}  # in a model's name -> its paper
TEXTS = {r"tinystories": "2305.07759"}
MEASURED = {  # a number in eval.json -> (paper, what of it was used)
    "ce_recovered": ("bricken2023monosemanticity", "cross-entropy recovered against zero ablation"),
    "mcc": ("2505.20254", "mean correlation coefficient of matched dictionaries"),
    "shared": ("2501.16615", "share of latents that two seeds have in common"),
}
OURS = """@software{{sae_lab,
  title = {{{{sae\\_lab}}: Train and study any sparse autoencoder on {{Llama}} models}},
  author = {{{{The sae\\_lab authors}}}},
  year = {{2026}},
  version = {{{version}}},
}}"""


@dataclass(frozen=True)
class Citations:
    """What to cite for a run; shown, or printed, it is BibTeX.

    Attributes:
        entries: (key, why it is here, BibTeX) of each.
        missing: what was used and has no entry here.
    """

    run: str
    entries: tuple[tuple[str, str, str], ...]
    missing: tuple[str, ...]

    @property
    def table(self) -> pd.DataFrame:
        return pd.DataFrame(self.entries, columns=["key", "used", "bibtex"]).drop(columns="bibtex")

    def to_json(self) -> dict[str, Any]:
        named = [dict(zip(("key", "used", "bibtex"), entry)) for entry in self.entries]
        return {"run": self.run, "entries": named, "missing": list(self.missing)}

    def __repr__(self) -> str:
        notes = [f"% no entry here, cite it yourself: {what}" for what in self.missing]
        return "\n\n".join([*(f"% {why}\n{text}" for _, why, text in self.entries), *notes])


def cite(run: str | Path | Run) -> Citations:
    """BibTeX of what a run used, each with what for: of nothing else.

    Raises:
        FileNotFoundError: if the folder holds no run.
    """
    run = run if isinstance(run, Run) else Run(run)
    whys: dict[str, list[str]] = {}
    missing = []
    for name, why in _used(run):
        keys = known(name)
        for key in keys:
            whys[key] = [*dict.fromkeys([*whys.get(key, []), why])]
        if not keys:
            missing.append(f"{why} ({name})")
    entries = [(key, "; ".join(why), papers()[key]) for key, why in whys.items()]
    ours = ("sae_lab", "training and measurement", OURS.format(version=metadata.version("sae-lab")))
    return Citations(str(run.folder), (*entries, ours), tuple(missing))


@cache
def papers() -> dict[str, str]:
    """Key -> entry of papers.bib."""
    text = Path(__file__).with_name("papers.bib").read_text(encoding="utf-8")
    return {re.match(r"@\w+\{([^,]+),", entry)[1]: entry for entry in text.strip().split("\n\n")}


def known(name: str) -> list[str]:
    """Keys of the entries that `name` speaks of: by key, by arXiv id, or by the note that an entry has instead."""

    def speaks_of(key: str, entry: str) -> bool:
        mark = re.search(r"^  (?:eprint|note) = \{(.*)\}", entry, re.M)
        return name == key or (mark is not None and mark[1] in name)

    return [key for key, entry in papers().items() if speaks_of(key, entry)]


def _used(run: Run) -> Iterator[tuple[str, str]]:
    """(a name for `known`, what it was used for)."""
    config = run.config or run.job
    variant, source = config["variant"], config.get("source", config)
    if variant in REGISTRY:
        yield REGISTRY[variant].paper, f"the variant, {variant}"
        if REGISTRY[variant].trainable:
            yield "1412.6980", "the optimiser"
    else:
        yield variant, "the variant"
    sae = config["sae"]
    terms = {term for row in run.rows for term in row.get("terms", ())}
    if "auxk" in terms and sae.get("aux_weight"):
        yield "2406.04093", "AuxK against dead latents"
    if source.get("source") == "planted" or source.get("model") == "planted":
        yield "2505.20254", "the generator of planted activations"
    elif model := source.get("model"):
        yield "2407.14561", "reading and editing the model"
        yield from _of("the model", model, MODELS)
    if text := source.get("text"):
        yield from _of("the text", text, TEXTS)
    yield from _measured(run.eval)


def _of(what: str, name: str, table: dict[str, str]) -> Iterator[tuple[str, str]]:
    """The paper of a model or text by its name, unless it comes with the package."""
    if name not in OWN:
        found = [paper for pattern, paper in table.items() if re.search(pattern, name, re.I)]
        yield (found or [name])[0], f"{what} {name}" if found else what


def _measured(evaluation: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, (paper, what) in MEASURED.items():
        if name in evaluation:
            yield paper, what
    if any(isinstance(number, dict) and "low" in number for number in evaluation.values()):
        yield "efron1979bootstrap", "bootstrap intervals over documents"
