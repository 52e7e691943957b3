"""What the README shows runs: its python blocks in one namespace, its command lines one after another."""

import ast
import inspect
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from ipywidgets import Widget
from test_package import blocks

import sae_lab as sl

PYTHON = [b for b in blocks("python") if not b.startswith("# needs the hub")]
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("readme")


def test_python_blocks_run_in_order(place, monkeypatch):
    monkeypatch.chdir(place)
    namespace: dict = {}
    try:
        for i, block in enumerate(PYTHON):
            exec(compile(block, f"README python block {i + 1}", "exec"), namespace)
    finally:
        Widget.close_all()  # panels look at their runs until they are closed
    assert abs(namespace["evaluation"].l0.value - 24) < 2
    assert abs(namespace["run"].eval["l0"]["value"] - 16) < 2
    assert namespace["evaluation"].ce_recovered.value > 0.5


def test_blocks_that_need_the_hub_name_what_exists():
    """They cannot run here, but every `sl.name` in them is there and takes the arguments it is given."""
    calls = 0
    for block in set(blocks("python")) - set(PYTHON):
        for call in (node for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Call)):
            if isinstance(call.func, ast.Attribute) and getattr(call.func.value, "id", "") == "sl":
                names = {word.arg: None for word in call.keywords}
                inspect.signature(getattr(sl, call.func.attr)).bind(*call.args, **names)
                calls += 1
    assert calls >= 4


def test_command_lines_run_in_order(place):
    env = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    lines = [line for block in blocks("console") for line in block.splitlines()]
    assert len(lines) >= 5
    for line in lines:
        done = subprocess.run(shlex.split(line), cwd=place, env=env, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        assert done.stdout.strip(), line
