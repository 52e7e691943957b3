"""Whether the process of a run lives and does its work, by status.json, and what the log has in words."""

import platform
import time

from .case import Case, Unchecked
from .checks import Complaint, check, lower_lr

STALE = 60.0  # seconds without a heartbeat; it comes every half second, or with every step if those are slower


@check("its process is gone")
def died(case: Case) -> Complaint:
    s = case.status
    if s["state"] != "lost":
        return None
    age = quiet(case)
    if s.get("host") not in (None, platform.node()) and age < STALE:
        raise Unchecked(f"it runs on {s['host']}, whose processes are not to be seen from here; its heart beats")
    told = f"status.json: process {s.get('pid', '?')} on {s.get('host', '?')} is gone at step {s['step']:,} of "
    told += f"{s['steps']:,}; the last heartbeat was {ago(age)} ago" if age < float("inf") else f"{s['steps']:,}"
    return "critical", told, resume(case)


@check("it failed")
def failed(case: Case) -> Complaint:
    s = case.status
    if s["state"] != "failed":
        return None
    error = s.get("error") or case.run.errors[-300:].strip() or "no word of why"
    told = f"status.json: at step {s['step']:,} of {s['steps']:,}: {error}"
    if "FloatingPointError" in error:
        return "critical", told, f"{lower_lr(case)} Start over, in another folder: a run's config never changes."
    return "critical", told, f"Mend what it says; then: {resume(case)}"


@check("it stands still")
def stalled(case: Case) -> Complaint:
    s = case.status
    if s["state"] not in ("starting", "running"):
        return None
    age = quiet(case)
    step = case.config["train"]["batch"] / s["rate"] if s.get("rate") else 0.0
    if age < max(STALE, 20 * step):
        return None
    told = (
        f"status.json: {s['state']} at step {s['step']:,} of {s['steps']:,}, process {s['pid']} lives, but its heart "
    )
    remedy = (
        "Look at the process, and at stderr.txt."
        if case.run.job
        else ("A training in a notebook goes on when its next step is asked for: is anything still iterating?")
    )
    return "warning", told + f"has not beaten for {ago(age)}", remedy


@check("something could not be written or read")
def spoilt(case: Case) -> Complaint:
    bad = [n for n in case.run.notes if any(w in n for w in ("no checkpoint", "no snapshot", "not written", "damaged"))]
    if not bad:
        return None
    told = f"log.jsonl: {bad[0]}" + (f"; and {len(bad) - 1} more like it" if bad[1:] else "")
    return "warning", told, "Make room on the disk, or look at it, before the next checkpoint is needed."


def quiet(case: Case) -> float:
    """Seconds since the last heartbeat."""
    return time.time() - case.status.get("heartbeat", float("-inf"))


def ago(seconds: float) -> str:
    """A duration in the largest unit that it fills."""
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"


def resume(case: Case) -> str:
    """How to go on."""
    steps = case.run.checkpoints.steps
    start = f"from the checkpoint at step {steps[0]:,}" if steps else "from the beginning: it has no checkpoint"
    how = f"sae-lab resume {case.run.folder}" if case.run.job else "start the same training on the same folder again"
    return f"{how[0].upper()}{how[1:]}; it goes on {start}." if not case.run.job else f"{how} goes on {start}."
