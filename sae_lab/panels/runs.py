"""What a panel of runs shows, without widgets: a table to filter, the curves and settings of those that were chosen."""

import csv
import io
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from ..plots import overlaid
from ..runs import Damaged, Run, find_runs
from ..runs.run import differences

COLUMNS = (
    "run",
    "state",
    "variant",
    "site",
    "d_sae",
    "L0",
    "FVU",
    "CE recovered",
    "dead share",
    "tokens",
    "lr",
    "seed",
)
FIRST = ("fvu", "l0", "dead")
END = {"L0": "l0", "FVU": "fvu", "CE recovered": "ce_recovered", "dead share": "dead"}  # of an evaluation


class Runs:
    """The runs in a folder and those below it. A row's label is its folder's path."""

    def __init__(self, folder: str | Path = "runs"):
        self.folder, self.words = Path(folder), ""

    def table(self) -> pd.DataFrame:
        """One row per run that has all of the `words`, in any of its columns.

        Measured numbers are the evaluation's, where there is one, else the last of the log.
        """
        rows = {str(run.folder): _row(run, self.folder) for run in find_runs(self.folder)}
        frame = pd.DataFrame.from_dict(rows, orient="index", columns=list(COLUMNS))
        said = [" ".join(map(str, row)).lower() for row in frame.itertuples(index=False)]
        return frame[[all(word in line for word in self.words.lower().split()) for line in said]]

    def differences(self, chosen: Sequence[str]) -> pd.DataFrame:
        """The settings in which the chosen runs differ, one row each, one column per run."""
        configs = {name: _config(Run(name)) for name in chosen}
        if len(configs) < 2:
            return pd.DataFrame()
        first, *others = configs.values()
        keys = dict.fromkeys(key for other in others for key, *_ in differences(first, other))
        short = {name: Run(name).name for name in configs}
        rows = {key: {short[name]: _at(config, key) for name, config in configs.items()} for key in keys}
        return pd.DataFrame.from_dict(rows, orient="index")

    def curves(self, chosen: Sequence[str], number: str = "fvu"):
        """One measured number of the chosen runs over tokens (plotly)."""
        return overlaid({Run(name).name: Run(name).log for name in chosen}, number)

    def numbers(self, chosen: Sequence[str]) -> list[str]:
        """What the logs of the chosen runs measured."""
        found = dict.fromkeys(c for name in chosen for c in Run(name).log.select_dtypes("number"))
        shown = [c for c in found if c not in ("step", "tokens") and not c.startswith(("state.", "vitals."))]
        return sorted(shown, key=lambda c: FIRST.index(c) if c in FIRST else len(FIRST))

    def csv(self) -> str:
        """The table as it is filtered now."""
        out = io.StringIO()
        writer, frame = csv.writer(out, lineterminator="\n"), self.table()
        writer.writerow(frame.columns)
        writer.writerows([_plain(cell) for cell in row] for row in frame.itertuples(index=False))
        return out.getvalue()


def _plain(cell: Any) -> Any:
    """A cell for a spreadsheet, which takes what begins like a formula for one."""
    if isinstance(cell, str) and cell[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return "'" + cell
    return "" if cell is None or cell != cell else cell


def _row(run: Run, folder: Path) -> list[Any]:
    try:
        asked, found = _config(run), run.eval
        last = (
            _last(str(run.folder), (run.folder / "log.jsonl").stat().st_mtime)
            if (run.folder / "log.jsonl").exists()
            else {}
        )
    except Damaged as damage:
        return [str(run.folder.relative_to(folder)), f"damaged: {damage}", *[None] * (len(COLUMNS) - 2)]
    sae, train = asked.get("sae", {}), asked.get("train", {})
    if "dead" in last and sae.get("d_sae"):
        last = last | {"dead": last["dead"] / sae["d_sae"]}  # a share, as the evaluation has it
    measured = {name: found.get(key, {}).get("value", last.get(key)) for name, key in END.items()}
    known = {"run": str(run.folder.relative_to(folder)), "state": run.status["state"], "variant": asked.get("variant")}
    known |= {"site": asked.get("site"), "d_sae": sae.get("d_sae"), "lr": asked.get("lr"), "seed": sae.get("seed")}
    known |= measured | {"tokens": run.status.get("tokens", train.get("tokens"))}
    return [known.get(name) for name in COLUMNS]


@lru_cache(maxsize=4096)
def _last(folder: str, changed: float) -> dict[str, Any]:
    return next((row for row in reversed(Run(folder).rows) if "fvu" in row), {})


def _config(run: Run) -> dict[str, Any]:
    """What a run was asked for; of one that has not begun, its job."""
    return {
        key: value
        for key, value in (run.config or run.job).items()
        if key not in ("environment", "stream", "cwd", "run")
    }


def _at(config: dict[str, Any], key: str) -> str:
    for part in key.split("."):
        config = config.get(part, {}) if isinstance(config, dict) else {}
    return "" if config == {} else str(config)
