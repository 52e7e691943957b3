"""Whether the process of a run lives and does its work, by status.json, and what the log has in words."""

import platform
import time

from .case import Case, Unchecked
from .checks import Complaint, check, lower_lr

STALE = {"running": 60.0, "starting": 900.0}  # seconds without a heartbeat; a model may be long in coming
TROUBLE = ("no checkpoint", "no snapshot", "not written", "damaged")  # in a note


@check("dead process")
def died(case: Case) -> Complaint:
    s = case.status
    if s["state"] != "lost":
        return None
    if "pid" not in s:
        return "critical", "status.json cannot be read: it was cut short", resume(case)
    age = time.time() - s["heartbeat"]
    if s["host"] != platform.node() and age < STALE["running"]:
        raise Unchecked(f"it runs on {s['host']}, whose processes are not to be seen from here; its heart beats")
    told = f"status.json: process {s['pid']} on {s['host']} is gone, at step {s['step']:,} of {s['steps']:,}; "
    return "critical", f"{told}its last heartbeat was {ago(age)} ago", resume(case)


@check("failure")
def failed(case: Case) -> Complaint:
    s = case.status
    if s["state"] != "failed":
        return None
    error = s.get("error") or case.run.errors[-300:].strip() or "no word of why"
    told = f"status.json: at step {s['step']:,} of {s['steps']:,}: {error}"
    if error.startswith("Diverged"):
        return "critical", told, f"{lower_lr(case)} Begin anew, in another folder: a run's config never changes."
    return "critical", told, f"Mend what it says. {resume(case)}"


@check("standstill")
def stalled(case: Case) -> Complaint:
    s = case.status
    if s["state"] not in STALE:
        return None
    age = time.time() - s["heartbeat"]
    step = case.config["train"]["batch"] / s["rate"] if s.get("rate") else 0.0
    if age < max(STALE[s["state"]], 20 * step):
        return None
    told = f"status.json: {s['state']} at step {s['step']:,} of {s['steps']:,}; process {s['pid']} lives, but its last "
    remedy = "Is anything still asking this training for its next step? A notebook's stands still when nothing does."
    if case.run.job:
        remedy = f"Look at the process and at stderr.txt. If it hangs, end it. {resume(case)}"
    return "warning", f"{told}heartbeat was {ago(age)} ago", remedy


@check("disk trouble")
def spoilt(case: Case) -> Complaint:
    bad = [note for note in case.run.notes if any(words in note for words in TROUBLE)]
    if not bad:
        return None
    told = f"log.jsonl: {bad[0]}" + (f"; and {len(bad) - 1} more like it" if bad[1:] else "")
    return "warning", told, "Make room on the disk, or have it looked at, before the next checkpoint is needed."


def ago(seconds: float) -> str:
    """A duration in the largest unit of which it has two."""
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"


def resume(case: Case) -> str:
    """How to go on."""
    steps = case.run.checkpoints.steps
    start = f"from the checkpoint at step {steps[0]:,}" if steps else "from the beginning, having no checkpoint"
    how = f"Run `sae-lab resume {case.run.folder}`" if case.run.job else "Start the same training on this folder again"
    return f"{how}; it goes on {start}."
