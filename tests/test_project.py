"""The project's own files: versions in agreement, imports declared, guards that hold."""

import ast
import importlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def distribution(requirement: str) -> str:
    """The normalised name in a requirement, as in PEP 503."""
    name = re.match(r"[\w.-]+", requirement)
    assert name, requirement
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def pins(text: str) -> dict[str, str]:
    """The exact pins `name==version` of a requirements file, or of a list in YAML."""
    found = re.findall(r"^[\s-]*([\w.-]+)==(\S+)$", text, re.MULTILINE)
    return {distribution(name): pin for name, pin in found}


RUNTIME = {distribution(requirement) for requirement in PROJECT["dependencies"]}
DIRECT = RUNTIME | {distribution(r) for r in PROJECT["optional-dependencies"]["dev"]}
CONSTRAINTS = pins((ROOT / "constraints.txt").read_text())
CONDA = (ROOT / "environment.yml").read_text()


def test_every_direct_dependency_is_pinned():
    assert DIRECT - set(CONSTRAINTS) == set()


def test_every_constraint_is_an_exact_public_version():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    entries = [line for line in lines if line and not line.startswith("#")]
    assert [e for e in entries if not re.fullmatch(r"[\w.-]+==[\w.]+", e)] == []
    assert len(entries) == len(CONSTRAINTS)


def test_conda_installs_the_same_versions():
    assert pins(CONDA) == {name: CONSTRAINTS[name] for name in DIRECT}


def test_conda_has_a_supported_python():
    found = re.search(r"- python=3\.(\d+)$", CONDA, re.MULTILINE)
    assert found and PROJECT["requires-python"] == ">=3.11" and int(found[1]) >= 11


@pytest.mark.parametrize("folder", ["dlops", "notebooks"])
def test_every_import_is_declared(folder):
    installed = packages_distributions()
    undeclared = set()
    for name in imported(ROOT / folder) - set(sys.stdlib_module_names) - {"dlops"}:
        providers = {distribution(d) for d in installed.get(name, [name])}
        undeclared |= set() if providers & RUNTIME else {name}
    assert undeclared == set()


def test_every_declared_package_is_used():
    used = {"jupyterlab"}  # which `make lab` starts
    installed = packages_distributions()
    for name in imported(ROOT / "dlops") | imported(ROOT / "notebooks"):
        used |= {distribution(d) for d in installed.get(name, [])}
    assert RUNTIME - used == set()


def imported(folder: Path) -> set[str]:
    """Top-level names that the modules and notebooks of a folder import absolutely."""
    texts = [path.read_text() for path in folder.rglob("*.py")]
    for path in folder.rglob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        code = [line for c in cells if c["cell_type"] == "code" for line in [*c["source"], "\n"]]
        texts.append("".join(line for line in code if line[:1] not in "%!"))
    names = set()
    for node in (node for text in texts for node in ast.walk(ast.parse(text))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.partition(".")[0])
    return names


def test_console_script_leads_to_a_function():
    module, _, name = PROJECT["scripts"]["dlops"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))


@pytest.mark.parametrize(
    "path", sorted((ROOT / "notebooks").rglob("*.ipynb")), ids=lambda p: p.stem
)
def test_notebooks_are_committed_without_outputs(path):
    cells = json.loads(path.read_text())["cells"]
    ran = [c for c in cells if c.get("outputs") or c.get("execution_count") is not None]
    assert not ran, f"clear the outputs of {path.name} before you commit it"


def make_with(python: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """`make reports` in a fresh folder; the shell script `python` stands in for Python."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    stand_in = folder / "stand-in-python"
    stand_in.write_text(f"#!/bin/sh\n{python}\n")
    stand_in.chmod(0o755)
    command = ["make", "--no-print-directory", "reports", "PYTHON=./stand-in-python"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


needs_make = pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")


@needs_make
@pytest.mark.parametrize(
    ("python", "sentence"),
    [
        ("exit 127", "dlops needs Python 3.11 or newer"),
        ('case "$2" in *ensurepip*) exit 1;; esac', "apt install python3-venv"),
    ],
    ids=["too old", "without venv"],
)
def test_make_says_what_python_lacks(python, sentence, tmp_path):
    made = make_with(python, tmp_path)
    said = [
        line for line in made.stderr.splitlines() if not re.match(r"make(\[\d+\])?: \*\*\*", line)
    ]
    assert made.returncode != 0
    assert len(said) == 1 and sentence in said[0]
    assert not (tmp_path / ".venv").exists()


@needs_make
def test_make_leaves_no_half_made_environment(tmp_path):
    made = make_with('case "$2" in venv) mkdir .venv; exit 1;; esac', tmp_path)
    assert made.returncode != 0
    assert not (tmp_path / ".venv").exists()


def test_tests_see_empty_stores():
    assert not any(Path(os.environ["DLOPS_STORE"]).iterdir())
    assert not any(Path(os.environ["DLOPS_DATA"]).iterdir())


def test_tests_cannot_reach_other_machines():
    with pytest.raises(pytest.fail.Exception), socket.socket() as outward:
        outward.connect(("192.0.2.1", 80))
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=5).close()
