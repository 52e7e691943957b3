"""The verb: contexts of an SAE's latents, gathered here or found again in its run."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ..models import LM
from ..reading import fitting, held_out, own_text, walk
from ..runs import Run, read_contexts, weights_of, write_contexts
from ..saes import SAE
from ..sites import Site
from ..tokens import Blocks
from .gathering import Gathering
from .results import Contexts

ALL, SOME = 1_000_000, 100_000  # tokens that are read for all latents, and for some


def contexts(
    sae: SAE | Run | str | Path,
    lm: LM | None = None,
    latents: Iterable[int] | None = None,
    *,
    site: str | Site | None = None,
    text: Any = None,
    split: str = "test",
    tokens: int | None = None,
    n: int = 10,
    sampled: int = 40,
    width: int = 16,
    seed: int = 0,
    **options: Any,
) -> Contexts:
    """What latents fire on: of an SAE in memory, or of a run's, in whose folder those of all latents are kept.

    `contexts(run, lm)` reads text only if the run does not hold just that already; `contexts(run)` reads no text and
    gives what there is of that split, whatever it was made with.

    Args:
        sae: an SAE, or a run (its folder or `Run`).
        latents: which ones; default: all.
        text: as in `sl.activations`; default: the text it was trained on, else "world".
        tokens: how many are read at least; default: 1,000,000 for all latents, 100,000 for some.
        n, sampled: how many of a latent's firings are kept: the strongest; drawn at random. One per document in each.
        width: tokens on either side of a firing.
        options: passed on to `reading.held_out`: context, documents, column ...

    Raises:
        ValueError: a latent that is not there, a model that is not or does not fit, contexts of other weights.
        FileNotFoundError: a run that holds none of this split.
        Damaged: if a file of theirs was cut short or altered.
    """
    run = None if isinstance(sae, SAE) else sae if isinstance(sae, Run) else Run(sae)
    if run is not None and lm is None:
        return _kept(run, split)
    rows = None if latents is None else np.unique(np.array(list(latents), np.int64))
    sae = _checked(sae if run is None else run.sae, lm, rows, run is not None)
    rows = np.arange(sae.cfg.d_sae) if rows is None else rows
    site, (text, options) = fitting(sae, lm, site), own_text(sae, text, options)
    tokens = (ALL if latents is None else SOME) if tokens is None else tokens
    blocks = held_out(lm, text, split, seed, **options)
    made = {"n": n, "sampled": sampled, "width": width, "seed": seed, "asked": tokens, "split": split}
    made |= {"site": str(site), "model": lm.name, "where": repr(options.get("where"))} | blocks.describe()
    found = _kept_as_asked(run, split, made) if run else None
    if found is None:
        found = _gathered(sae, lm, rows, site, blocks, tokens, made)
        found = _keep(run, split, found) if run else found
    return found


def _checked(sae: SAE, lm: LM | None, rows: np.ndarray | None, of_run: bool) -> SAE:
    """The SAE where it runs fastest, if this can be asked of it."""
    if lm is None:
        raise ValueError("contexts(sae) has no model to read with: contexts(sae, lm), or give a run that has some.")
    if rows is None:
        return sae.to(lm.device) if of_run else sae
    if of_run:
        raise ValueError("A run keeps contexts of all its latents: leave out latents=, and take contexts(run, lm)[12].")
    odd = rows[(rows < 0) | (rows >= sae.cfg.d_sae)]
    if len(odd) or not len(rows):
        said = f"No latent {odd[0]}" if len(odd) else "latents=[] names none"
        raise ValueError(f"{said}: this SAE has latents 0 to {sae.cfg.d_sae - 1}.")
    return sae


def _gathered(sae: SAE, lm: LM, rows: np.ndarray, site: Site, blocks: Blocks, tokens: int, made: dict) -> Contexts:
    gathering = Gathering(sae, rows, made["n"], made["sampled"], made["width"], made["seed"])
    for page in walk(lm, blocks, [site], tokens, sae):
        gathering.add(page, page.acts[site])
    by_latent, common = gathering.arrays(lm, site)
    read = {"tokens": gathering.tokens, "documents_read": gathering.documents, "cofiring_on": gathering.together.tokens}
    return Contexts(by_latent, common, made | read)


def _keep(run: Run, split: str, found: Contexts) -> Contexts:
    write_contexts(run, split, {"latents": found.by_latent, "common": found.common}, found.about)
    return _kept(run, split)


def _kept(run: Run, split: str, whole: bool = False) -> Contexts:
    files, about = read_contexts(run, split, whole)
    if about["weights"] != weights_of(run):
        raise ValueError(
            f"The contexts in {str(run.folder)!r} were made with other weights than its SAE has now. Make them again: "
            "contexts(run, lm)."
        )
    return Contexts(files["latents"], files["common"], about)


def _kept_as_asked(run: Run, split: str, made: dict[str, Any]) -> Contexts | None:
    """What the run holds, if it is whole and was made of the same weights in the same way."""
    try:
        found = _kept(run, split, whole=True)
    except (FileNotFoundError, ValueError):  # none, of other weights, or damaged
        return None
    same = all(found.about.get(key) == value for key, value in made.items())
    return found if same and made["text"] != "a function" else None  # which function, nobody can know
