"""The guard against silent skips, tried on a small test file of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from skipped import allowed

HERE = Path(__file__).parent


def run(folder: Path, leave: str, ci: str) -> subprocess.CompletedProcess:
    (folder / "skipped.py").write_text((HERE / "skipped.py").read_text())
    (folder / "conftest.py").write_text("from skipped import pytest_configure\n")
    (folder / "skips.txt").write_text(leave)
    (folder / "test_it.py").write_text(
        "import pytest\ndef test_no(): pytest.skip('why not')\ndef test_yes(): assert True\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)]
    return subprocess.run(command, cwd=folder, env={**os.environ, "CI": ci}, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("leave", "ci", "code"),
    [("# none\n", "true", 1), ("test_it.py::test_no  no screen here\n", "true", 0), ("# none\n", "", 0)],
    ids=["unlisted in CI", "listed in CI", "unlisted at home"],
)
def test_a_skip_that_is_not_listed_fails_ci(tmp_path, leave, ci, code):
    done = run(tmp_path, leave, ci)
    assert done.returncode == code, done.stdout
    assert ("without leave" in done.stdout) == bool(code)


def test_a_listed_skip_needs_a_reason(tmp_path):
    (tmp_path / "skips.txt").write_text("test_it.py::test_no\n")
    with pytest.raises(ValueError, match="say why"):
        allowed(tmp_path / "skips.txt")
