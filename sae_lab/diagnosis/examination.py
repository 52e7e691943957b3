"""`doctor(run)`: all checks on one run."""

from pathlib import Path
from typing import Any

import torch

from ..models import LM
from ..reading import held_out, home, own_text, walk
from ..runs import Damaged, Run
from ..saes import SAE
from . import checks, life, weights  # noqa: F401  (they add their checks)
from .case import Case, Measured, Unchecked
from .checks import CHECKS
from .findings import SEVERITIES, Diagnosis, Finding


def doctor(run: str | Path | Run, lm: LM | None = None, *, tokens: int = 20_000, **options: Any) -> Diagnosis:
    """What is wrong with a run, running or done: with the evidence, and what to do about it.

    Reads the run's folder alone. Given the model it was trained on, `lm`, it also measures the final SAE on `tokens`
    held-out ones; `options` (text=, split=) are as in evaluate().

    Raises:
        FileNotFoundError: if the folder holds no run.
    """
    run = run if isinstance(run, Run) else Run(run)
    if not run.exists:
        raise FileNotFoundError(f"No run in {str(run.folder)!r}. Train with run={run.name!r}.")
    case = Case(run, inference(run.sae, lm, tokens, **options) if lm is not None and run.trained else None)
    findings, passed, unchecked = [], [], {}
    for name, look in CHECKS.items():
        try:
            found = look(case)
        except Unchecked as why:
            unchecked[name] = str(why)
        except Damaged as damage:
            unchecked[name] = "a file is damaged"
            broken = Finding(
                "damaged file", "critical", str(damage), "Copy it again, or go back to a checkpoint or snapshot."
            )
            findings += [] if broken in findings else [broken]
        else:
            findings += [Finding(name, *found)] if found else []
            passed += [] if found else [name]
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    return Diagnosis(str(run.folder), case.status["state"], tuple(findings), tuple(passed), unchecked)


@torch.no_grad()
def inference(sae: SAE, lm: LM, tokens: int, text: Any = None, split: str = "validation", **options: Any) -> Measured:
    """L0 and FVU of an SAE on held-out text."""
    site = home(sae, None)
    text, options = own_text(sae, text, options)
    sae = sae.to(lm.device)
    n, total, square, error, fired = 0, 0, 0.0, 0.0, 0.0
    for page in walk(lm, held_out(lm, text, split, 0, **options), [site, site.target], tokens, sae):
        x, y = page.acts[site], page.acts[site.target].double()
        z = sae.encode(x)
        n, total, square = n + len(y), total + y.sum(0), square + float(y.square().sum())
        error += float((sae.reconstruct(z, x) - y).square().sum())
        fired += float(z.l0) * len(x)
    return Measured(f"{split} text", n, fired / n, error / (square - float(total.square().sum()) / n))
