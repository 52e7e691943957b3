"""What the README shows runs: its python blocks in one namespace, its command lines one after another."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from test_package import blocks

PYTHON = [b for b in blocks("python") if not b.startswith("# needs the hub")]
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("readme")


def test_python_blocks_run_in_order(place, monkeypatch):
    monkeypatch.chdir(place)
    namespace: dict = {}
    for i, block in enumerate(PYTHON):
        exec(compile(block, f"README python block {i + 1}", "exec"), namespace)
    assert abs(namespace["evaluation"].l0.value - 24) < 2
    assert abs(namespace["run"].eval["l0"]["value"] - 16) < 2
    assert namespace["evaluation"].ce_recovered.value > 0.5


def test_blocks_that_need_the_hub_are_valid_python():
    for block in set(blocks("python")) - set(PYTHON):
        compile(block, "README", "exec")


def test_command_lines_run_in_order(place):
    env = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    lines = [line for block in blocks("console") for line in block.splitlines()]
    assert len(lines) >= 5
    for line in lines:
        done = subprocess.run(shlex.split(line), cwd=place, env=env, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        assert done.stdout.strip(), line
