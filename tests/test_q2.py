"""What Question 2's page says of its runs is in their numbers."""

import math

import numpy as np
import pandas as pd
import pytest

from dlops import run_all
from dlops.experiment import Experiment
from dlops.report import drawings, output, q2
from dlops.series import PUBLISHED
from dlops.series.questions import LABELS, STARTS, ablation, sources, stack

SMALL = {"sizes": (24, 20, 16, 12), "per_class": 8, "test_per_class": 5, "epochs": 1}


class Invented:
    """As much of a result as the page looks at."""

    def __init__(self, start="layerwise", seed=0, preset="quick", **found):
        self.experiment = stack(preset, start, seed=seed)
        self.metrics = {"test_top1": 0.5, "test_images": 360, **found}
        self.provenance = {"seconds": 1.5, "commit": "abc1234"}


def invented(gains, seeds=3, **found):
    """Results whose top-1 is 0.5 + 0.01 a seed, and gains[start, share] more."""
    return {
        (start, share, seed): Invented(
            start, seed, test_top1=0.5 + 0.01 * seed + gains.get((start, share), 0), **found
        )
        for start in STARTS
        for share in LABELS
        for seed in range(seeds)
    }


@pytest.fixture(scope="module")
def trained():
    """The whole plan of a small page, trained."""
    plan = {**ablation("test", **SMALL)}
    encoders = sources(plan)
    results = run_all([*plan.values(), *encoders.values()])
    return dict(zip(plan, results)), dict(zip(encoders, results[len(plan) :]))


def test_gains_are_over_random_weights_of_the_same_seed_and_labels():
    frame = q2.frame(invented({("layerwise", 0.1): 0.07, ("end-to-end", 1.0): -0.03}))
    assert len(frame) == len(STARTS) * len(LABELS) * 3
    expected = {("layerwise", 0.1): 0.07, ("end-to-end", 1.0): -0.03}
    for (start, share), rows in frame.groupby(["start", "labels"]):
        assert list(rows.seed) == [0, 1, 2]
        np.testing.assert_allclose(rows.gain, expected.get((start, share), 0), atol=1e-12)


def test_the_original_mistake_is_no_start_of_the_ablation(trained):
    runs, _ = trained
    assert ("original", 1.0, 0) in runs
    assert set(q2.frame(runs).start) == set(STARTS)
    assert len(q2.group(runs, "original")) == 1 and q2.group(runs, "original", 0.1) == []


@pytest.mark.parametrize("width", [3.6, 7.0])
def test_the_ablation_shows_each_seed_its_mean_and_what_one_seed_cannot_say(width):
    for seeds in (1, 3):
        frame = q2.frame(invented({("layerwise", 0.1): 0.1}, seeds))
        with output.style(width):
            left, right = q2.ablation(frame, chance=0.1, title="T")().axes
        drawn = [line for line in right.lines if len(line.get_xdata()) == seeds > 1]
        assert len(drawn) == (2 * len(LABELS) if seeds > 1 else 0)
        assert 1.0 in left.get_xlim() or left.get_xlim()[1] > 1
        assert left.get_ylim()[0] == 0


def test_units_tell_how_many_of_each_layer_are_dead():
    runs = {
        ("layerwise", seed): Invented(seed=seed, dead_units=[0.0, 0.25, 0.5, 0.75, 1.0])
        for seed in (0, 1)
    }
    frame = q2.units(runs)
    assert list(frame.layer.unique()) == [f"X[{k}]" for k in range(5)]
    assert list(frame.units[:5]) == list(stack("quick").model.sizes)
    assert frame.groupby("layer").dead.mean().to_dict() == {f"X[{k}]": 0.25 * k for k in range(5)}


def test_half_of_a_filters_weight():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(48, 1, 32, 32)).astype(np.float16)
    assert q2.concentration(noise) == pytest.approx(q2.NOISE_HALF, abs=0.01)
    assert pytest.approx(0.239, abs=0.001) == q2.NOISE_HALF
    stroke = np.zeros((5, 1, 10, 10))
    stroke[:, :, 4, :] = -1
    assert q2.concentration(stroke) == pytest.approx(0.05)
    assert q2.concentration(np.ones((2, 1, 10, 10))) == pytest.approx(0.5)


def test_the_title_says_what_was_trained():
    assert q2.title(Experiment.from_preset("q2", "lite", sizes="even")) == (
        "Question 2: 6 hidden layers (1024-1000-500-256-128-64) pretrained layer by layer,"
        " CIFAR-100 (10 coarse classes)"
    )
    assert "(9-8)" in q2.title(stack("quick", sizes=(9, 8)))


def test_points_are_signed_but_zero_is_not():
    assert [q2.points(x) for x in (0.1234, -0.002, 0.0004, -0.0004)] == [
        "+12.3",
        "−0.2",
        "0.0",
        "0.0",
    ]


def test_tables(trained, monkeypatch):
    runs, encoders = trained
    tables = []
    monkeypatch.setattr(q2, "table", lambda frame, caption, **_: tables.append((frame, caption)))
    q2.beside_published(runs, 0)
    q2.layer_table(encoders["layerwise", 0], encoders["end-to-end", 0])
    (published, caption), (layers, errors) = tables
    theirs = published.iloc[0]
    assert theirs["test top-1"] == f"{100 * PUBLISHED['q2']['top1']:.1f} %" == "26.5 %"
    assert theirs["top-5"] == "70.5 %" and theirs["never right"] == "2 of 10"
    assert theirs.data == "STL-10" and set(published.data[1:]) == {
        "scikit-learn's handwritten digits"
    }
    ours = runs["layerwise", 1.0, 0].metrics["test_top1"]
    row = published.set_index("classifier").loc["here, layer by layer"]
    assert row["test top-1"] == f"{100 * ours:.1f} %"
    assert list(layers.layer) == [
        "X[0], 24 units",
        "X[1], 20 units",
        "X[2], 16 units",
        "X[3], 12 units",
        "end to end",
    ]
    found = encoders["layerwise", 0].metrics
    assert list(layers["and after"][:4]) == found["val_loss"]
    assert f"{found['mean_image_error']:.3g}" in errors and "1,000 test images" in caption


def test_limitations_follow_the_data_and_the_seeds():
    small, real = invented({}), {("layerwise", 1.0, 0): Invented(preset="lite")}
    said, one = " ".join(q2.limitations(small)), " ".join(q2.limitations(real))
    assert "narrower" in said and "3 seeds settle" in said and "stands in for STL-10" in said
    assert "narrower" not in one and "settle" not in one and "CIFAR-100 stands in" in one
    own = {("layerwise", 1.0, 0): Invented(preset="original")}
    assert "stands in" not in " ".join(q2.limitations(own))


def test_provenance_counts_the_runs():
    assert q2.provenance(list(invented({}).values())) == (
        "The page stands on 27 runs of 40 s in all, of commit abc1234."
    )


@pytest.mark.parametrize("width", [3.6, 7.0])
def test_the_drawing_names_every_layer(width):
    with output.style(width):
        figure = drawings.greedy(256, (128, 150, 91, 64, 16), 10)()
        figure.draw_without_rendering()
    words = [text.get_text() for text in figure.axes[0].texts]
    assert [w for w in words if w.startswith("encoder[") and "k" not in w[:9]] == [
        f"encoder[{k}]\n{n}" for k, n in enumerate((128, 150, 91, 64, 16))
    ]
    assert {"pixels\n256", "head\n10", "codes", "restored"} <= set(words)


def test_a_single_seed_has_no_interval():
    frame = q2.frame(invented({}, seeds=1))
    assert isinstance(frame, pd.DataFrame) and math.isclose(frame.gain.abs().max(), 0)
