"""The comparison of the losses: the other optimizer is only looked up; drawings; who confuses what.

The tests of networks, seeds and classes stand in the notebook; they are run as it has them.
"""

import ast
import math
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from dlops import metrics
from dlops.data import Split
from dlops.report import q1_comparison
from dlops.series.questions import by_loss
from dlops.store import Store

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "assignment1" / "q1_comparison.ipynb"
IMAGES, CLASSES = 400, 10
LABELS = np.arange(IMAGES) % CLASSES


class One:
    """A result: its predictions, wrong at first guess on some images and at all on others."""

    def __init__(self, wrong_first=(), wrong_all=()):
        best = (LABELS[:, None] + np.arange(5)) % CLASSES
        best[list(wrong_first)] = np.roll(best[list(wrong_first)], 1, axis=1)
        best[list(wrong_all)] = (LABELS[list(wrong_all), None] + np.arange(1, 6)) % CLASSES
        self.predictions, self.labels = best, LABELS
        self.metrics = {f"test_top{k}": metrics.topk_accuracy(best, LABELS, k) for k in (1, 5)}
        self.metrics["class_accuracy"] = list(metrics.class_accuracy(LABELS, best[:, 0], CLASSES))
        points = np.random.default_rng(0).standard_normal((50, 2))
        self.arrays = {"tsne": points, "sample": np.arange(50)}


@pytest.fixture(scope="module")
def notebook():
    """The functions of the notebook's cells, by name."""
    known = {"np": np, "math": math, "stats": stats, "metrics": metrics}
    known |= {"images": DATA, "num_classes": CLASSES}
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        if cell.cell_type == "code":
            functions = [n for n in ast.parse(cell.source).body if isinstance(n, ast.FunctionDef)]
            exec(compile(ast.Module(functions, []), "cell", "exec"), known)
    return known


SPLIT = Split(torch.zeros(IMAGES, 1, 8, 8, dtype=torch.uint8), torch.from_numpy(LABELS))
DATA = SimpleNamespace(test=SPLIT, class_names=tuple(f"class {c}" for c in range(CLASSES)))


def test_mcnemar_counts_the_images_that_one_alone_has_right(notebook):
    one, other = One(range(10)), One(range(6, 30))
    assert notebook["mcnemar"](one, other, 1) == (
        20,
        6,
        metrics.mcnemar([1] * 20 + [0] * 6, [0] * 20 + [1] * 6),
    )
    assert notebook["mcnemar"](one, other, 5) == (0, 0, 1)


def test_seeds_are_compared_in_pairs(notebook):
    one, other = [One(range(n)) for n in (4, 9, 2)], [One(range(n)) for n in (10, 13, 12)]
    mean, error, p = notebook["over_seeds"](one, other, 1)
    expected = stats.ttest_rel(*([r.metrics["test_top1"] for r in g] for g in (one, other)))
    assert mean == pytest.approx(20 / 3 / IMAGES)
    assert (mean / error, p) == pytest.approx((expected.statistic, expected.pvalue))
    assert np.isnan(notebook["over_seeds"](one[:1], other[:1], 1)[1:]).all()


def test_seeds_that_agree_to_the_image_prove_nothing(notebook):
    one, other = [One(range(4))] * 3, [One(range(5))] * 3
    assert 0.05 < notebook["over_seeds"](one, other, 1)[2] < 1
    assert notebook["over_seeds"](one, one, 1)[2] == 1


@pytest.mark.parametrize("n", [1, 3])
def test_of_equal_classes_none_is_certain_and_a_spoilt_one_is(notebook, n):
    rng = np.random.default_rng(0)

    def group(spoilt):
        return [One({*rng.choice(IMAGES, 30, replace=False), *spoilt}) for _ in range(n)]

    gains, p = notebook["class_gains"](group(()), group(np.flatnonzero(LABELS == 3)[:25]))
    certain = np.array(metrics.holm(p)) < 0.05
    assert np.flatnonzero(certain).tolist() == [3] and gains[3] > 0.4
    gains, p = notebook["class_gains"](group(()), group(()))
    assert min(metrics.holm(p)) > 0.05 and np.shape(gains) == (CLASSES,)


def test_equal_networks_differ_in_no_class(notebook):
    for n in (1, 3):
        gains, p = notebook["class_gains"]([One()] * n, [One()] * n)
        assert not gains.any() and list(p) == [1] * CLASSES


def stored(loss, **parameters):
    """Put a result of the loss into the store, as if it had been trained."""
    e = by_loss("test", **parameters)[loss][0]
    one = One()
    return Store().save(
        e,
        metrics={"test_top1": 1.0, "test_top5": 1.0, "test_images": IMAGES},
        history=[{"epoch": 1, "val_top5": 1.0}],
        provenance={},
        arrays={"predictions": one.predictions, "labels": LABELS},
        weights={},
    )


def test_the_other_optimizer_is_looked_up_and_never_trained():
    assert q1_comparison.other_optimizer("test") == {}
    stored("center loss", optimizer="sgd")
    stored("triplet loss", optimizer="adam")
    for given, loss in (({}, "center loss"), ({"optimizer": "sgd"}, "triplet loss")):
        found = q1_comparison.other_optimizer("test", **given)
        assert list(found) == [loss] and len(found[loss]) == 1
    assert q1_comparison.other_optimizer("test", epochs=1) == {}
    assert q1_comparison.other_optimizer("test", lr=0.001) == {}
    assert q1_comparison.other_optimizer("test", optimizer="rmsprop") == {}


def test_of_many_classes_both_ends_are_drawn_and_the_certain_filled():
    frame = pd.DataFrame({"name": [f"c{i}" for i in range(60)], "gain": np.arange(60) / 100})
    frame["certain"] = frame.gain > 0.565
    figure = q1_comparison.class_gains({"center loss": frame}, title="t")()
    (axes,) = figure.axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert len(names) == 30 and (names[0], names[-1]) == ("c59", "c0")
    filled, hollow = (line.get_xdata() for line in axes.lines[:2])
    assert filled.tolist() == pytest.approx([59, 58, 57]) and len(hollow) == 27


def test_maps_name_the_marked_classes():
    figure = q1_comparison.maps({"a": One(), "b": One()}, DATA.class_names, [2, 5], title="t")()
    assert [text.get_text() for text in figure.legends[0].texts] == ["class 2", "class 5"]
    figure = q1_comparison.maps({"a": One()}, DATA.class_names, range(10), title="t")()
    assert {text.get_text() for text in figure.axes[0].texts} == set(DATA.class_names)


def test_confused_images_are_those_of_either_network(monkeypatch, capsys):
    said = []
    monkeypatch.setattr(q1_comparison, "show", lambda _, caption, alt, key: said.append(alt))
    three = np.flatnonzero(LABELS == 3)
    one, other = One(), One(wrong_all=three[1:6])  # 3 is taken for 4
    one.predictions[three[:3], 0] = 4
    q1_comparison.confused({"one": one, "other": other}, DATA, 3, 4)
    assert "class 3 and class 4" in said[0]
    assert {"1 by one alone", "2 by both", "3 by other alone."} <= {
        part.split(": ")[-1] for part in said[0].split(", ")
    }
    q1_comparison.confused({"one": one, "other": other}, DATA, 4, 4)
    assert len(said) == 1 and "none" in capsys.readouterr().out
