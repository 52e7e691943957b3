"""What a user installs: the wheel's files, the conda environment, the README's promises about set-up."""

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def blocks(language: str) -> list[str]:
    """The README's code blocks in one language, in order."""
    found, on = [], False
    for line in (ROOT / "README.md").read_text().splitlines():
        if line.startswith("```"):
            on = line == f"```{language}"
            found += [""] if on else []
        elif on:
            found[-1] += line + "\n"
    return found


def test_the_wheel_holds_code_and_data(tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", str(ROOT), "-q", "--no-deps", "-w", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    want = [
        "cli/__init__.py",
        "report.css",
        "papers.bib",
        "sweeps/llama-scope.toml",
        "panels/faces/cloud.js",
        "panels/faces/cloud.css",
        "panels/faces/figures.js",
        "panels/faces/grid.js",
        "tiny/world/data/en.txt",
        "tiny/model/model.safetensors",
        "tiny/model/tokenizer.json",
    ]
    assert [w for w in want if f"sae_lab/{w}" not in names] == []
    assert not [n for n in names if n.split("/")[0] not in ("sae_lab",) and ".dist-info/" not in n]


def test_conda_installs_this_package_and_the_tested_torch():
    env = yaml.safe_load((ROOT / "environment.yml").read_text())
    (pip,) = (d["pip"] for d in env["dependencies"] if isinstance(d, dict))
    assert "python=3.11" in env["dependencies"]
    assert pip[-1] == "-e ."
    names = {r.split(">")[0].split("=")[0].split("[")[0] for r in PROJECT["dependencies"]}
    assert {p.split("==")[0] for p in pip[:-1]} <= names


def test_readme_and_conda_name_the_same_torch():
    env = (ROOT / "environment.yml").read_text()
    pins = {word for block in blocks("bash")[:2] for word in block.split() if word.startswith("torch==")}
    assert len(pins) == 1
    assert pins.pop() in env


def test_the_first_two_blocks_set_up_what_they_need():
    run, test = blocks("bash")[:2]
    for block in (run, test):
        assert "python3 -m venv .venv" in block
    assert ".venv/bin/sae-lab quickstart" in run
    assert '-e ".[test]"' in test
    assert ".venv/bin/pytest" in test


def test_the_test_extra_is_pinned():
    assert all("==" in requirement for requirement in PROJECT["optional-dependencies"]["test"])


@pytest.mark.parametrize("file", ["README.md", "CHANGELOG.md", "pyproject.toml", "environment.yml"])
def test_no_text_names_a_machine(file):
    text = (ROOT / file).read_text()
    assert not [word for word in ("/root", "/work/", "/tmp/", "localhost:") if word in text]


@pytest.mark.parametrize(("given", "spins"), [({}, "12000"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")])
def test_threads_that_wait_do_not_spin_for_long_unless_asked_to(given, spins):
    env = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    code = "import sys, sae_lab, os; assert 'torch' not in sys.modules; print(os.environ.get('GOMP_SPINCOUNT'))"
    done = subprocess.run([sys.executable, "-c", code], env=env | given, capture_output=True, text=True)
    assert done.stdout.strip() == spins
