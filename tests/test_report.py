"""Notebook parameters are checked, findings contradict no number, a dead kernel is a failed run."""

import os
import re
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from dlops import cli, export, report
from dlops.experiment import Experiment
from dlops.series import Report
from dlops.settings import DlopsError
from dlops.store import Store

# Parameters -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameter", "says"),
    [
        ({"epoch": 3}, "no parameter epoch; did you mean epochs?"),
        ({"learning_rate": None}, "no parameter learning_rate"),
        ({"lr": "0.1"}, "lr is '0.1', but must be a number"),
        ({"epochs": -1}, "at least 1"),
        ({"optimizer": "sdg"}, "one of adam, sgd"),
        ({"preset": "tset"}, "no preset 'tset'"),
        ({"momentum": 0.9}, "does not apply to optimizer adam"),
    ],
    ids=str,
)
def test_a_parameter_that_is_none_is_refused(parameter, says):
    with pytest.raises(DlopsError, match=re.escape(says)):
        report.experiment({"preset": "test", **parameter}, "q1.1")


def test_what_is_no_parameter_of_a_notebook_is_left_alone():
    namespace = {"__name__": "x", "_": 1, "In": ["a"], "Out": {}, "answer": object(), "np": np}
    namespace |= {"preset": "test", "optimizer": "sgd", "lr": None, "seed": 4}
    made = report.experiment(namespace, "q1.1")
    assert made == Experiment.from_preset("q1.1", "test", optimizer="sgd", seed=4)
    assert namespace["_parameters"] == {"optimizer": "sgd", "seed": 4}


def test_the_preset_comes_from_the_notebook_then_from_the_environment(monkeypatch):
    assert report.preset_of({"preset": None}) == "quick"
    monkeypatch.setenv("DLOPS_PRESET", "test")
    assert report.preset_of({"preset": None}) == "test"
    assert report.preset_of({"preset": "lite"}) == "lite"


# Findings -------------------------------------------------------------------------------------

NAMES = [f"class {letter}" for letter in "abcd"]


def made(val_loss, val_top1, train_loss=None, labels=(0, 1, 2, 3), predicted=None, **metrics):
    """A result of four classes with these curves and predictions."""
    labels = np.array(labels)
    best = np.array(labels if predicted is None else predicted)
    others = [[k for k in range(4) if k != first] for first in best]
    predictions = np.column_stack([best, np.array(others)])
    train_loss = train_loss or [1 / (i + 1) for i in range(len(val_loss))]
    history = [
        {"epoch": i + 1, "train_loss": t, "val_loss": v, "val_top1": top1}
        for i, (t, v, top1) in enumerate(zip(train_loss, val_loss, val_top1))
    ]
    shares = [
        float((best[labels == k] == k).mean()) if (labels == k).any() else None for k in range(4)
    ]
    top1 = float((best == labels).mean())
    given = {"train_top1": 0.9, "val_top1": val_top1[-1], "test_top1": top1, "test_top5": 1.0}
    given |= {"test_images": len(labels), "class_accuracy": shares, **metrics}
    experiment = Experiment.from_flat({"classes": 4, "epochs": len(history)})
    arrays = {"predictions": predictions, "labels": labels}
    return Store().save(
        experiment,
        metrics=given,
        history=history,
        provenance={"val_images": 400},
        arrays=arrays,
        weights={},
    )


def findings(*args, **changes):
    return " ".join(report.findings(made(*args, **changes), NAMES))


FLAT = [0.5, 0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("val_loss", "val_top1", "says", "never"),
    [
        ([2, 1.5, 1.2, 1.0], [0.2, 0.3, 0.4, 0.5], "rose by 10.0 points", "levelled|overfit"),
        ([4, 3, 2, 1], FLAT, "loss still fell by 50 %", "levelled|overfit|rose"),
        ([1, 0.6, 0.8, 0.9], FLAT, "lowest after epoch 2.*began to overfit", "levelled|converged"),
        ([1, 0.6, 0.8, 0.9], [0.2, 0.3, 0.4, 0.5], "began to overfit", "levelled|more epochs"),
        ([2, 1, 0.99, 0.98], FLAT, "levelled off: it changed by 1.0 %", "overfit|not converged"),
        ([2, 1], [0.1, 0.5], "say nothing about convergence", "levelled|overfit|not converged"),
    ],
    ids=["rising", "falling", "overfitting", "both", "flat", "two epochs"],
)
def test_what_is_said_of_convergence(val_loss, val_top1, says, never):
    text = findings(val_loss, val_top1)
    assert re.search(says, text) and not re.search(never, text)


def test_where_training_loss_rises_too_nothing_is_overfitted():
    text = findings([1, 0.6, 0.8, 0.9], FLAT, train_loss=[1, 0.5, 0.7, 0.8])
    assert "lowest after epoch 2 and rose after it, as did training loss" in text
    assert "overfit" not in text


@pytest.mark.parametrize(
    ("train", "val", "says"),
    [
        (0.95, 0.60, r"95\.0 % on training images and 60\.0 %.*gap of 35\.0 points"),
        (0.62, 0.60, "differ by less than 400 validation images can tell"),
        (0.50, 0.60, r"Validation top-1 \(60\.0 %\) lies above training top-1 \(50\.0 %\)"),
    ],
)
def test_what_is_said_of_generalisation(train, val, says):
    assert re.search(says, findings([2, 1], [0.1, val], train_top1=train))


def test_what_is_said_of_classes():
    """Class a is half right, b and c wholly, d is never predicted."""
    labels = [0, 0, 1, 1, 2, 2, 3, 3]
    text = findings([2, 1], [0.1, 0.5], labels=labels, predicted=[0, 1, 1, 1, 2, 2, 1, 1])
    assert "Easiest: class b, class c (100.0 %); hardest: class d (0.0 %)." in text
    assert "Never predicted: class d." in text
    assert "class d taken for class b (2 images, 100 % of that class)" in text


def test_nothing_is_made_up_when_every_image_is_right():
    text = findings([2, 1], [0.1, 0.5], labels=[0, 1, 2, 2], predicted=[0, 1, 2, 2])
    assert "All classes are equally hard: each has 100.0 %." in text
    assert "Never predicted: class d." in text
    assert "taken for" not in text and "Easiest" not in text


def test_saturation_is_said_of_few_classes_only():
    few = findings([2, 1], [0.1, 0.5], test_top5=0.995, test_top1=0.7)
    assert "top-5 saturates (99.5 %)" in few and "(70.0 %)" in few
    room = findings([2, 1], [0.1, 0.5], test_top5=0.9, test_top1=0.6)
    assert "75 % have their class among the next four" in room and "saturates" not in room


def test_an_accuracy_comes_with_its_interval():
    result = made([2, 1], [0.1, 0.5], test_top5=0.9, test_images=100)
    words = report.accuracy(result)
    value, low, high = map(float, re.findall(r"\d+\.\d", words))
    assert value == 90 and 80 < low < 90 < high < 97


def test_limitations_come_from_the_settings():
    digits = " ".join(report.limitations(made([2, 1], [0.1, 0.5])))
    assert "seed 0" in digits and "handwritten digits" in digits
    assert "Tiny ImageNet's test labels" not in digits


def test_a_figure_without_words_is_refused():
    from matplotlib.figure import Figure

    for words in (("", "alt"), ("caption", " ")):
        with pytest.raises(DlopsError, match="caption and an alt text"):
            report.show(Figure(), *words)


# The verdict ----------------------------------------------------------------------------------


def test_the_mark_at_the_end_carries_what_the_index_shows(monkeypatch):
    shown = []
    monkeypatch.setattr(report, "display", lambda data, **_: shown.append(data))
    namespace = {"preset": "test", "_parameters": {"lr": 0.1}}
    report.finish(namespace, "q1.1", made([2, 1], [0.1, 0.5], test_top5=0.987))
    payload = shown[0][export.SENTINEL]
    assert payload["headline"][0] == ["Test top-5", "98.7 %"]
    assert (payload["preset"], payload["parameters"]) == ("test", {"lr": 0.1})
    assert payload["assignment"] == "assignment1"


def test_a_killed_kernel_is_a_failed_report(tmp_path, monkeypatch, capsys):
    """papermill marks the cells of a dead kernel completed; the report says FAILED, exit code 2."""
    cells = [
        new_markdown_cell("# A question"),
        new_code_cell("preset = None", metadata={"tags": ["parameters"]}),
        new_code_cell("print('so far')"),
        new_code_cell("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"),
        new_code_cell("print('the end')"),
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    folder = tmp_path / "notebooks" / "assignment1"
    folder.mkdir(parents=True)
    nbformat.write(new_notebook(cells=cells, metadata=kernel), folder / "killed.ipynb")
    item = Report("q1.1", "assignment1/killed.ipynb", "Killed", lambda preset, **_: [])
    monkeypatch.setattr(cli, "project_root", lambda: tmp_path)
    monkeypatch.setattr(cli, "select", lambda *_: [item])
    monkeypatch.setattr(sys, "argv", ["dlops", "report", "q1.1", "--preset", "test"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    complaint = capsys.readouterr().err
    assert complaint.startswith("dlops: killed: The run did not reach its end")
    reports = Path(os.environ["DLOPS_REPORTS"])
    page = (reports / "test" / "killed.failed.html").read_text()
    assert "FAILED" in page and "so far" in page and "the end" not in page.split("so far")[1][:200]
    assert "killed" not in (reports / "test" / "index.html").read_text().lower()
