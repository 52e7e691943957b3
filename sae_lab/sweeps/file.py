"""A suite file: TOML that says which SAEs, of which sites, on which text, and where they are kept.

    model = "tiny"
    sites = ["L0R", "L1-2M"]        # L1-2M: L1M and L2M
    variants = ["topk", "relu"]
    k = [16, 32]
    d_sae = [1024, 4096]
    seeds = 2
    tokens = 1_000_000
    own.topk.aux_weight = 0.0       # a knob of one variant, width or site alone
    folder = "runs/four-sites"

Every knob of a sweep may stand in it. `[shape]` has the widths of a model that is not here, for `outlook`.
"""

import re
import tomllib
from importlib import resources
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from ..arithmetic import Figures
from ..sites import PARTS, Site
from .plan import Plan

LARGEST = 2**20  # bytes of a file
MOST = 20_000  # SAEs of one
PLAIN = (str, int, float, bool)
SHIPPED = ("llama-scope",)  # those that come with the package
RANGE = re.compile(rf"L(\d{{1,4}})-(\d{{1,4}})({'|'.join(PARTS)})")


class SuiteFile(NamedTuple):
    """What a suite file says.

    Attributes:
        folder: where the sweep is kept.
        studied: tokens that each study reads, or None where nothing is studied.
        shape: the model's widths, where the file says them.
    """

    plan: Plan
    folder: str
    studied: int | None
    shape: Figures | None


def suite_file(path: str | Path) -> SuiteFile:
    """The suite that a TOML file describes, or one that comes with the package: "llama-scope".

    Raises:
        FileNotFoundError: if there is none.
        ValueError: for what is wrong with it; the message names file and key, the rule and the way out.
    """
    name = str(path)
    try:
        said = tomllib.loads(_text(name))
        return _suite(said, PurePath(name).stem)
    except (ValueError, KeyError, TypeError, RecursionError) as error:  # TOML's own errors are ValueErrors
        told = error.args[0] if error.args else "nested too deeply"
        raise ValueError(f"{name}: {told}") from error


def _text(name: str) -> str:
    if name in SHIPPED:
        return resources.files(__package__).joinpath(f"{name}.toml").read_text(encoding="utf-8")
    if not Path(name).is_file():
        raise FileNotFoundError(f"No suite file {name!r}. Give a TOML file, or one of {', '.join(SHIPPED)}.")
    data = Path(name).read_bytes()
    if len(data) > LARGEST:
        raise ValueError(f"{len(data):,} bytes are no suite file: it takes {LARGEST:,} at most.")
    return data.decode("utf-8")


def _suite(said: dict[str, Any], stem: str) -> SuiteFile:
    for key, value in said.items():
        _checked(key, value)
    if "site" in said:
        raise ValueError('site is called sites here: sites = ["L1R"], also where there is one.')
    folder, studied, shape = said.pop("folder", f"runs/{stem}"), said.pop("studied", None), said.pop("shape", None)
    if not isinstance(folder, str) or not folder or PurePath(folder).is_absolute() or ".." in PurePath(folder).parts:
        raise ValueError(f"folder={folder!r} must lie below the folder one is in: write runs/{stem}, or give --folder.")
    if studied is not None and (isinstance(studied, bool) or not isinstance(studied, int) or studied < 1000):
        raise ValueError(f"studied={studied!r} must be a number of tokens, 1,000 or more; leave it out for no studies.")
    sites = _sites(said.pop("sites", ["L2R"]))
    if studied and len(sites) > 1:
        raise ValueError(f"studied={studied}: studies are of one site, and there are {len(sites)}. Leave it out.")
    count = len(sites)
    for name in ("variants", "k", "d_sae"):
        count *= len(said[name]) if isinstance(said.get(name), list) else 1
    if count * (said.get("seeds") if isinstance(said.get("seeds"), int) else 1) > MOST:
        raise ValueError(f"sites x variants x k x d_sae x seeds are more than {MOST:,} SAEs: ask for fewer.")
    plan = Plan.of(**said, site=sites if len(sites) > 1 else sites[0]).check()
    return SuiteFile(plan, folder, studied, None if shape is None else Figures.read(shape))


def _sites(given: Any) -> list[str]:
    """Their short names; L0-31R stands for all from L0R to L31R."""
    found: list[str] = []
    for name in [given] if isinstance(given, str) else given if isinstance(given, list) else [given]:
        if not isinstance(name, str):
            raise ValueError(f'sites names {name!r}: write names, as in sites = ["L0R", "L1-3M"].')
        if several := RANGE.fullmatch(name):
            first, last = int(several[1]), int(several[2])
            if first >= last:
                raise ValueError(f"sites names {name!r}, whose first layer must be below its last.")
            found += [f"L{layer}{several[3]}" for layer in range(first, last + 1)]
        else:
            found.append(str(Site(name)))
    if not found or len(set(found)) < len(found):
        twice = next((name for name in found if found.count(name) > 1), None)
        raise ValueError(f"sites names {twice} twice: name each once." if twice else "sites names none: name one.")
    return found


def _checked(key: str, value: Any) -> None:
    """Raises:
    ValueError: if a value is neither plain nor a list of such, nor one of the two tables.
    """
    if key == "own" and isinstance(value, dict):
        for of, knobs in value.items():
            if not isinstance(knobs, dict):
                raise ValueError(f"own.{of} = {knobs!r} must be a table of knobs: own.{of}.aux_weight = 0.0, say.")
            for name, one in knobs.items():
                _checked(f"own.{of}.{name}", one)
    elif key == "shape" and isinstance(value, dict):
        return
    elif isinstance(value, dict):
        raise ValueError(f"[{key}] is no table of a suite file: knobs of {key!r} alone stand in [own.{key}].")
    elif key in ("own", "shape"):
        raise ValueError(f"{key} = {value!r} must be a table: [{key}] with its keys below it.")
    elif not isinstance(value, PLAIN) and not (isinstance(value, list) and all(isinstance(v, PLAIN) for v in value)):
        raise ValueError(f"{key} = {value!r} must be text, a number, true or false, or a list of one kind of these.")
