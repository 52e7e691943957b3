"""A run as a doctor sees it: its config, its log and status, its weights where they are there."""

from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import Any

from ..runs import Run
from ..saes import REGISTRY, SAE

FEW = 8  # rows of log below which nothing is said of its course
ROWS = "the log has {n} measured rows so far, this takes {need}"


class Unchecked(Exception):
    """Why a check could not be made."""


@dataclass(frozen=True)
class Measured:
    """What an SAE does at inference, on `tokens` tokens of `where`."""

    where: str
    tokens: int
    l0: float
    fvu: float


class Case:
    """The record of one run, with what checks keep asking of it. Nothing is read before it is asked for."""

    def __init__(self, run: Run, measured: Measured | None = None):
        self.run, self._measured = run, measured
        self.status = run.status

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json.

        Raises:
            Unchecked: if the training has not got so far as to write it.
        """
        if not (self.run.folder / "config.json").exists():
            raise Unchecked("there is no config.json yet: the training has not begun")
        return self.run.config

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The measured rows of log.jsonl, oldest first."""
        return [row for row in self.run.rows if "fvu" in row]

    @property
    def sae(self) -> SAE:
        """The final SAE, of raw activations.

        Raises:
            Unchecked: if there is none yet, or of a variant that this process does not know.
        """
        if not self.run.trained:
            raise Unchecked(f"there is no final SAE: the run is {self.status['state']}")
        _ = self.variant  # reading needs its class
        return self.run.sae

    @cached_property
    def weights(self) -> tuple[str, SAE]:
        """Where it was read, and the final SAE; while there is none, the newest snapshot.

        Raises:
            Unchecked: if there is neither, or the variant is not known.
        """
        if self.run.trained or not self.run.snapshots:
            return "sae/", self.sae
        _ = self.variant
        step = self.run.snapshots[-1]
        return f"snapshots/{step:08d}/", self.run.snapshot(step)

    @property
    def inference(self) -> Measured:
        """What the SAE did at inference: measured with the model given, or else read in eval.json.

        Raises:
            Unchecked: if nobody measured it.
        """
        if self._measured:
            return self._measured
        e, _ = self.run.eval, self.sae
        if "l0" not in e or "fvu" not in e:
            raise Unchecked("nobody measured the SAE at inference: evaluate it, or give doctor() the model, lm=")
        return Measured("eval.json", e["about"]["tokens"], e["l0"]["value"], e["fvu"]["value"])

    @property
    def cfg(self) -> dict[str, Any]:
        """The variant's own knobs, as they were asked for."""
        return self.config["sae"]

    @property
    def variant(self) -> type[SAE]:
        """Its class.

        Raises:
            Unchecked: if this process does not know it.
        """
        name = self.config["variant"]
        if name not in REGISTRY:
            raise Unchecked(f"no variant named {name!r} is known here: import or define it first")
        return REGISTRY[name]

    @property
    def trainable(self) -> bool:
        known = REGISTRY.get(self.config["variant"])
        return known is None or known.trainable

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        train = self.config["train"]
        return -(-train["tokens"] // train["batch"])

    @property
    def done(self) -> float:
        """Share of the steps that the log has."""
        return self.rows[-1]["step"] / self.steps if self.rows and self.steps else 0.0

    @property
    def error(self) -> str:
        """What is to fall: "fvu", or "loss" where no term is of the reconstruction."""
        return "fvu" if self.rows and {"mse", "error"} & self.rows[-1]["terms"].keys() else "loss"

    @property
    def learned(self) -> bool:
        """Whether the error has fallen, and below what the mean alone gives."""
        first = number(self.rows[0], self.error)
        return self.late(self.error) < 0.9 * (min(1.0, first) if self.error == "fvu" else first)

    @property
    def own_lr(self) -> float | None:
        """The recipe's learning rate; None for a variant that this process does not know."""
        known = REGISTRY.get(self.config["variant"])
        return known.recipe.lr_for(self.cfg["d_sae"]) if known else None

    @property
    def hasty(self) -> bool:
        """Whether the learning rate is far over the recipe's."""
        return self.own_lr is not None and self.config["lr"] > 3 * self.own_lr

    @property
    def budget(self) -> float | None:
        """The L0 that was asked for: target_l0 or k; None where a penalty alone decides."""
        return self.cfg.get("target_l0") or self.cfg.get("k")

    def course(self, share: float = 0.0, need: int = FEW) -> list[dict[str, Any]]:
        """The measured rows of a run that trains.

        Raises:
            Unchecked: if it does not, or has fewer rows than `need`, or has done less than `share` of its steps.
        """
        if not self.trainable:
            raise Unchecked(f"{self.config['variant']} does not train")
        if len(self.rows) < need:
            raise Unchecked(ROWS.format(n=len(self.rows), need=need))
        if self.done < share:
            raise Unchecked(f"{self.done:.0%} of the steps are done, this takes {share:.0%}")
        return self.rows

    def late(self, name: str, otherwise: float | None = None) -> float:
        """The median of a number over the last tenth of the log, three rows at least.

        Raises:
            Unchecked: if the log does not have it, and there is no number to take `otherwise`.
        """
        rows = self.rows[-max(3, len(self.rows) // 10) :]
        if not rows:
            raise Unchecked(ROWS.format(n=0, need=1))
        return median(number(row, name, otherwise) for row in rows)


def number(row: dict[str, Any], name: str, otherwise: float | None = None) -> float:
    """A number of a row: "fvu", "vitals.power", or "loss", the sum of its terms.

    Raises:
        Unchecked: if it is not there, nor a number to take `otherwise`.
    """
    if name == "loss":
        return sum(row["terms"].values())
    for part in name.split("."):
        if part not in row and otherwise is not None:
            return otherwise
        if part not in row:
            raise Unchecked(f"the log has no {name}: it was written by an earlier version")
        row = row[part]
    return row


def smooth(values: list[float], reach: int = 2) -> list[float]:
    """The running median over `reach` neighbours on either side."""
    return [median(values[max(0, i - reach) : i + reach + 1]) for i in range(len(values))]
