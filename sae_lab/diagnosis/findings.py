"""What a diagnosis says: findings, each with its evidence and its remedy, and what was not looked at."""

from dataclasses import asdict, dataclass
from textwrap import fill
from typing import Any

import pandas as pd

SEVERITIES = ("critical", "warning", "note")  # worst first


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        severity: "critical" (the SAE or the run is of no use so), "warning" or "note".
        evidence: the numbers, and where they were read.
        remedy: which knob to turn, in which direction; or what to do.
    """

    name: str
    severity: str
    evidence: str
    remedy: str

    def __str__(self) -> str:
        lines = f"{self.severity}: {self.name}", f"  {self.evidence}", f"  Remedy: {self.remedy}"
        return "\n".join(fill(line, 110, subsequent_indent="  ") for line in lines)


@dataclass(frozen=True)
class Diagnosis:
    """What was found, the worst first.

    Attributes:
        passed: the checks that found nothing.
        unchecked: check -> why it could not be made.
    """

    run: str
    state: str
    findings: tuple[Finding, ...]
    passed: tuple[str, ...]
    unchecked: dict[str, str]

    @property
    def healthy(self) -> bool:
        """Whether nothing was found; `unchecked` says how much that means."""
        return not self.findings

    @property
    def table(self) -> pd.DataFrame:
        """One row per finding."""
        return pd.DataFrame([asdict(f) for f in self.findings], columns=["name", "severity", "evidence", "remedy"])

    def to_json(self) -> dict[str, Any]:
        lists = {"findings": [asdict(f) for f in self.findings], "passed": list(self.passed)}
        return asdict(self) | lists | {"healthy": self.healthy}

    def __repr__(self) -> str:
        parts = [f"{self.run}: {self.state}", *map(str, self.findings)]
        if self.healthy:
            parts.append(fill(f"Nothing wrong was found. Looked for: {', '.join(self.passed)}.", 110))
        if self.unchecked:
            reasons: dict[str, list[str]] = {}
            for name, why in self.unchecked.items():
                reasons.setdefault(why, []).append(name)
            told = [fill(f"  {', '.join(names)}: {why}", 110, subsequent_indent="  ") for why, names in reasons.items()]
            parts.append("\n".join(["Could not look for:", *told]))
        return "\n".join(parts)
