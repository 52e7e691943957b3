"""Where CI=true a skipped test fails the run, unless skips.txt names it with a reason."""

import os
from pathlib import Path


def allowed(file: Path) -> list[str]:
    """The test ids (or their beginnings) that may be skipped.

    Raises:
        ValueError: for a line without a reason.
    """
    lines = [line.split(maxsplit=1) for line in file.read_text().splitlines() if line.strip() and line[0] != "#"]
    bare = [line[0] for line in lines if len(line) < 2]
    if bare:
        raise ValueError(f"{file.name}: say why {bare[0]} may be skipped.")
    return [line[0] for line in lines]


class NoSilentSkips:
    """A pytest plugin: remembers the skipped tests and fails the session for those not on the list."""

    def __init__(self, file: Path):
        self.allowed, self.unlisted = allowed(file), []

    def note(self, name: str) -> None:
        if not any(name.startswith(prefix) for prefix in self.allowed):
            self.unlisted.append(name)

    def pytest_runtest_logreport(self, report):
        if report.skipped and not hasattr(report, "wasxfail"):
            self.note(report.nodeid)

    def pytest_collectreport(self, report):
        if report.skipped:
            self.note(report.nodeid)

    def pytest_sessionfinish(self, session):
        if self.unlisted and session.exitstatus == 0:
            session.exitstatus = 1

    def pytest_terminal_summary(self, terminalreporter):
        for name in self.unlisted:
            terminalreporter.write_line(f"skipped without leave (tests/skips.txt): {name}", red=True)


def pytest_configure(config):
    if os.environ.get("CI") == "true":
        config.pluginmanager.register(NoSilentSkips(Path(__file__).with_name("skips.txt")))
