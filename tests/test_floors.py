"""Who may import whom: a file sees the floors below it, never across or up. And which room may touch the world."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

FLOORS = [
    {"shapes", "knobs", "sites", "workload"},
    {"sources", "sparse", "plots", "tiny", "peers", "arithmetic"},
    {"toys", "saes", "metrics", "directions", "intervals", "probes", "recovery", "matching", "models", "tokens"},
    {"harvest", "reading", "runs", "labels", "families"},
    {"labelled", "pretrained", "caching"},
    {
        *("training", "evaluation", "concepts", "windows", "steering", "explanation", "comparison"),
        *("bench", "citing", "diagnosis", "attribution", "splitting", "geometry", "absorption"),
        *("probing", "verification"),
    },
    {"launcher", "library", "report", "meaning", "validity", "neuronpedia"},
    {"sweeps", "costs", "planning"},
    {"suites", "clusters"},
    {"panels", "cli"},
]
ONLY = {  # a library and the rooms that may import it
    "nnsight": {"models"},
    "ipywidgets": {"panels"},
    "anywidget": {"panels"},
    "plotly": {"plots", "panels"},
    "tyro": {"cli", "tiny"},
    "numba": {"sparse", "tiny"},
    "ray": {"clusters"},
}
SHARED = {"base", "select", "losses"}  # all that a variant may take from its own folder
WRITERS = {"runs", "pretrained", "caching", "report", "tiny", "peers"}
ROOT = Path(__file__).parents[1] / "sae_lab"
FILES = sorted(p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py")
VARIANTS = sorted(p for p in (ROOT / "saes").glob("*.py") if p.stem not in SHARED | {"__init__"})


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def floor(name: str) -> int:
    found = [i for i, names in enumerate(FLOORS) if name in names]
    assert found, f"the house has no room {name!r}: give it a floor here and in the design"
    return found[0]


def imports(path: Path) -> list[tuple[str, str]]:
    """(outside | room | sibling, first name) of each import, also those inside functions."""
    depth, found = len(path.relative_to(ROOT).parts), []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [("outside", alias.name.split(".")[0]) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            first, *rest = node.module.split(".")
            found.append(("room", rest[0]) if first == "sae_lab" and rest else ("outside", first))
        elif isinstance(node, ast.ImportFrom) and node.level == depth:
            names = [node.module] if node.module else [alias.name for alias in node.names]
            found += [("room", name.split(".")[0]) for name in names]
        elif isinstance(node, ast.ImportFrom):
            found.append(("sibling", (node.module or node.names[0].name).split(".")[0]))
    return found


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=short)
def test_a_file_imports_only_from_below(path):
    here = room(path)
    for kind, name in imports(path):
        if kind == "outside":
            assert here in ONLY.get(name, {here}), f"only {ONLY[name]} may import {name}"
        elif kind == "room" and name != here:
            assert floor(name) < floor(here), f"{here} must not look up or across at {name}"


@pytest.mark.parametrize("path", VARIANTS, ids=short)
def test_variants_do_not_know_each_other(path):
    assert {name for kind, name in imports(path) if kind == "sibling"} <= SHARED


WRITES = {
    "write_text",
    "write_bytes",
    "mkdir",
    "rename",
    "unlink",
    "rmtree",
    "savez",
    "save_file",
    "to_csv",
    "touch",
    "write_html",
}


@pytest.mark.parametrize("path", [p for p in FILES if room(p) not in WRITERS], ids=short)
def test_only_the_stores_write_to_disk(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and not any(k.arg == "columns" for k in node.keywords):  # pandas renames too
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            modes = [
                a.value
                for a in [*node.args[1:2], *(k.value for k in node.keywords if k.arg == "mode")]
                if isinstance(a, ast.Constant)
            ]
            opens = name == "open" and any(isinstance(m, str) and set(m) & set("wax+") for m in modes)
            assert name not in WRITES and not opens, f"{short(path)}:{node.lineno} writes to disk ({name})"


@pytest.mark.parametrize("path", FILES, ids=short)
def test_a_file_is_one_idea(path):
    text = path.read_text()
    assert text.count("\n") <= 400, "over 400 lines: two ideas?"
    assert not text or ast.get_docstring(ast.parse(text)), "its first line says which idea it is"


@pytest.mark.parametrize("path", FILES, ids=short)
def test_a_function_fits_on_a_screen(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 50, f"{node.name}: {node.end_lineno - node.lineno + 1} lines"


def test_the_package_stays_thin():
    """The embedded world is a data set with its generator: counted apart. Formats are twelve small files."""
    lines = {p: p.read_text().count("\n") for p in FILES}
    assert sum(n for p, n in lines.items() if room(p) != "tiny") < 34_000
    assert sum(n for p, n in lines.items() if room(p) == "tiny") < 5500


def test_importing_the_package_loads_no_library():
    code = "import sys, sae_lab; print({'torch', 'nnsight', 'plotly', 'numba', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
