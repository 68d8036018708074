"""Every notebook keeps the house's form; one runs by itself, with a stock kernel and papermill."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from dlops.export import SENTINEL, verdict
from dlops.series import SERIES
from dlops.settings import PARAMETERS

ROOT = Path(__file__).parent.parent / "notebooks"
PATHS = sorted(path for path in ROOT.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
TAGS = {"parameters", "hide", "hide-input", "fold", "interactive"}
SECTIONS = ["Why", "Data", "Method", "Training", "Test results", "Embeddings", "Try it yourself"]
SECTIONS += ["Limitations", "Settings and log", "References", "Provenance"]

every_notebook = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def cells(path, kind=None):
    read = nbformat.read(path, as_version=4).cells
    return [cell for cell in read if kind in (None, cell.cell_type)]


def tags(cell):
    return set(cell.metadata.get("tags", ()))


def test_every_notebook_is_in_the_series():
    assert {str(path.relative_to(ROOT)) for path in PATHS} == {item.notebook for item in SERIES}


@every_notebook
def test_a_notebook_is_valid_and_for_a_stock_kernel(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert all(tags(cell) <= TAGS for cell in notebook.cells)


@every_notebook
def test_lines_of_code_fit_the_page(path):
    lines = [line for cell in cells(path, "code") for line in cell.source.splitlines()]
    assert [line for line in lines if len(line) > 78] == []


@every_notebook
def test_each_parameter_is_none_until_set_and_explained(path):
    found = [cell for cell in cells(path, "code") if "parameters" in tags(cell)]
    assert len(found) == 1
    for line in found[0].source.splitlines():
        name = re.fullmatch(r"(\w+) = None  # (type: \w+  )?\S.*", line)
        assert name, f"{line!r} is not NAME = None  # what it means"
        assert name[1] in (*PARAMETERS, "preset")


@every_notebook
def test_sections_come_in_the_house_order(path):
    text = "\n".join(cell.source for cell in cells(path, "markdown"))
    assert len(re.findall(r"^# ", text, re.MULTILINE)) == 1
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    short = {"Training", "Test results", "Embeddings", "Try it yourself"}
    house = [name for name in SECTIONS if path.stem != "speed" or name not in short]
    assert [heading for heading in headings if heading in SECTIONS] == house


@every_notebook
def test_a_sentence_comes_before_each_visible_code_cell(path):
    before = None
    for cell in cells(path):
        if cell.cell_type == "code" and not tags(cell):
            assert before is not None and before.cell_type == "markdown", cell.source
        if "hide" not in tags(cell):
            before = cell


@every_notebook
def test_the_last_cell_leaves_the_mark(path):
    last = cells(path, "code")[-1]
    assert "report.finish(" in last.source and "hide" in tags(last)


def test_run_all_with_a_stock_kernel(monkeypatch):
    """As JupyterLab's Run All, headless; the parameters cell is as it is committed."""
    from nbclient import NotebookClient

    monkeypatch.setenv("DLOPS_PRESET", "test")
    path = ROOT / "assignment1" / "q1_1_cross_entropy.ipynb"
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=300, resources=resources).execute()
    assert verdict(notebook) is None
    figures = re.findall(r'<figure id="fig-(\w+)" class="dlops">', text_of(notebook, "text/html"))
    assert {"answer", "network", "loss", "curves", "classes", "confusion", "tsne"} <= set(figures)
    assert len(set(figures)) == len(figures)


def test_run_all_twice_in_one_kernel(monkeypatch):
    """The second time with another value, and with what a reader may have left in the kernel."""
    from nbclient import NotebookClient

    monkeypatch.setenv("DLOPS_PRESET", "test")
    path = ROOT / "assignment1" / "q1_1_cross_entropy.ipynb"
    notebook = nbformat.read(path, as_version=4)
    first, scratch, again = (
        [*notebook.cells],
        nbformat.v4.new_code_cell("k = 3\nlearning_rate = 0.1"),
        [cell.copy() for cell in notebook.cells],
    )
    for cell in again:
        if "parameters" in tags(cell):
            cell.source = cell.source.replace("epochs = None", "epochs = 1")
    notebook.cells = [*first, scratch, *again]
    NotebookClient(notebook, timeout=300).execute()
    assert verdict(notebook) is None
    payloads = [
        output.data[SENTINEL]
        for cell in cells_with_outputs(notebook)
        for output in cell.outputs
        if SENTINEL in data(output)
    ]
    assert [payload["parameters"] for payload in payloads] == [{}, {"epochs": 1}]


def cells_with_outputs(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def data(output):
    return output.get("data", {})


def text_of(notebook, mime):
    outputs = [output for cell in cells_with_outputs(notebook) for output in cell.outputs]
    return "".join(data(output).get(mime, "") for output in outputs)


def test_plain_papermill_sets_parameters(tmp_path):
    path = ROOT / "assignment1" / "q1_1_cross_entropy.ipynb"
    output = tmp_path / "out.ipynb"
    command = [sys.executable, "-m", "papermill", str(path), str(output), "--no-progress-bar"]
    for name, value in (("optimizer", "sgd"), ("preset", "test"), ("epochs", "1")):
        command += ["-p", name, value]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    executed = nbformat.read(output, as_version=4)
    assert verdict(executed) is None
    assert "cross-entropy, SGD" in text_of(executed, "text/markdown")
    payload = data(cells_with_outputs(executed)[-1].outputs[-1])[SENTINEL]
    assert payload["parameters"] == {"optimizer": "sgd", "epochs": 1}


def test_papermill_tells_the_parameters_types():
    path = ROOT / "assignment1" / "q1_1_cross_entropy.ipynb"
    command = [sys.executable, "-m", "papermill", "--help-notebook", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert re.search(r"lr: float \(default None\)\s+the \(largest\) learning rate", done.stdout)


def test_plain_papermill_refuses_an_unknown_parameter_before_anything_trains(tmp_path):
    """papermill itself would only warn."""
    path = ROOT / "assignment1" / "q1_1_cross_entropy.ipynb"
    output = tmp_path / "out.ipynb"
    command = [sys.executable, "-m", "papermill", str(path), str(output), "--no-progress-bar"]
    done = subprocess.run([*command, "-p", "epoch", "1"], capture_output=True, text=True)
    assert done.returncode != 0
    assert "There is no parameter epoch; did you mean epochs?" in done.stderr
    assert "There is no parameter epoch" in verdict(output)
    assert not any(Path(os.environ["DLOPS_STORE"]).iterdir())
