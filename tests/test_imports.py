"""Imports run one way: the layers of pyproject.toml, and what a student came for on torch alone."""

import ast
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).parent.parent


def test_imports_run_one_way(capsys):
    code = lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True)
    assert code == 0, capsys.readouterr().out


@pytest.mark.parametrize("name", ["resnet", "losses", "autoencoder", "optimizers"])
def test_what_is_from_scratch_imports_torch_alone(name):
    tree = ast.parse((ROOT / "dlops" / f"{name}.py").read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "dlops").split(".")[0])
    assert found - {"collections", "itertools", "math", "typing", "__future__"} == {"torch"}


def test_files_and_functions_stay_small():
    for path in (ROOT / "dlops").rglob("*.py"):
        text = path.read_text()
        assert len(text.splitlines()) <= 450, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                length = node.end_lineno - node.lineno + 1
                assert length <= 75, f"{path.name}: {node.name} has {length} lines"
