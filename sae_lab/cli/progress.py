"""A progress line for people: bar, rate, time left, and the numbers that matter. Silent where nobody looks."""

from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ..sparse import compiling
from ..training import Step

CONSOLE = Console(stderr=True, highlight=False)  # whatever sys.stderr is at the time of printing


def watched(steps: Iterable[Step], what: str) -> Iterator[Step]:
    """The same steps, drawn on stderr as they pass: a bar in a terminal, a line now and then in a log."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[shown]}"), TimeRemainingColumn())
    bar = Progress(*columns, console=CONSOLE, transient=True, disable=not CONSOLE.is_terminal)
    with bar as progress, compiling(lambda: note("compiling kernels, once on this machine: some 20 seconds")):
        task, quarter = progress.add_task(what, total=None, shown=""), 0
        for step in steps:
            progress.update(task, completed=step.index, total=step.steps, shown=line(step))
            if step.note:
                progress.console.print(f"{what}: {step.note}")
            if not CONSOLE.is_terminal and 4 * step.index // max(step.steps, 1) > quarter:
                quarter = 4 * step.index // step.steps
                CONSOLE.print(f"{what}: {step.index}/{step.steps} steps, {line(step)}", soft_wrap=True)
            yield step


def line(step: Step) -> str:
    return f"{step.rate:,.0f} tokens/s  fvu {step.fvu:.3f}  l0 {step.l0:.1f}  dead {step.dead}"


def note(text: str) -> None:
    """One line for people, on stderr so that --json stays clean."""
    CONSOLE.print(text, soft_wrap=True)
