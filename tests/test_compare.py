"""Several results side by side: tests in pairs, corrected; sentences that follow the numbers."""

import numpy as np
import pytest

from dlops import Experiment, compare, metrics
from dlops.series.questions import LOSSES
from dlops.settings import DlopsError
from dlops.store import Store

IMAGES, CLASSES = 400, 10
LABELS = np.arange(IMAGES) % CLASSES
NAMES = [f"class {c}" for c in range(CLASSES)]


def guesses(wrong_first, wrong_all=()):
    """[N, 5] predictions: right at once but for `wrong_first`, not at all for `wrong_all`."""
    best = (LABELS[:, None] + np.arange(5)) % CLASSES
    for image in wrong_first:
        best[image] = np.roll(best[image], 1)
    for image in wrong_all:
        best[image] = (LABELS[image] + np.arange(1, 6)) % CLASSES
    return best


def fake(experiment, wrong_first=(), wrong_all=(), *, ratio=2.0, rates=(100, 100), labels=LABELS):
    """A stored result with these mistakes, as if it had been trained."""
    best = guesses(wrong_first, wrong_all)
    rng = np.random.default_rng(experiment.seed)
    points = np.eye(CLASSES)[labels[:50]] + 0.1 * rng.standard_normal((50, CLASSES))
    top1, top5 = (metrics.topk_accuracy(best, labels, k) for k in (1, 5))
    return Store().save(
        experiment,
        metrics={
            **{"test_top1": top1, "test_top5": top5, "test_images": IMAGES},
            **{"val_top1": top1, "val_top5": top5, "parameters": 1000},
            **{"between_class": ratio, "within_class": 1.0},
            **({"knn_top1": top1} if experiment.loss.name == "triplet" else {}),
        },
        history=[
            {
                **{"epoch": i + 1, "train_top5": 1.0, "val_top5": top5, "val_top1": top1},
                "images_per_second": float(rate),
            }
            for i, rate in enumerate(rates)
        ],
        provenance={"device": "cpu", "threads": 1, "train_seconds": 5.0},
        arrays={
            **{"predictions": best, "labels": labels, "sample": np.arange(50)},
            **{"embeddings": points, "tsne": points[:, :2]},
        },
        weights={},
    )


def store_losses(optimizer="adam", losses=LOSSES, *, seed=0, **mistakes):
    """Results of the quick preset; mistakes: loss -> keywords of `fake`, by first word."""
    for name in losses:
        question, own = LOSSES[name]
        e = Experiment.from_preset(question, "quick", optimizer=optimizer, seed=seed, **own)
        if Store().get(e) is None:
            fake(e, **mistakes.get(e.loss.name.split("-")[0], {}))


@pytest.fixture
def never_train(monkeypatch):
    monkeypatch.setenv("DLOPS_TRAIN", "never")


pytestmark = pytest.mark.usefixtures("never_train")


def rows(**parameters):
    return compare.losses("quick", **parameters)


def test_holm_is_the_textbooks():
    assert compare.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert compare.holm([0.5, 0.9, 0.6]) == [1.0, 1.0, 1.0]
    assert compare.holm([]) == []


def test_lambda_zero_has_a_row_but_no_results_of_its_own():
    store_losses()
    found = rows()
    assert list(found) == [f"{name} (Adam)" for name in LOSSES]
    zero, plain = found["center, λ = 0 (Adam)"], found["cross-entropy (Adam)"]
    assert zero[0].id == plain[0].id
    assert list(compare.distinct(found)) == [n for n in found if "λ" not in n]
    said = " ".join(compare.findings(found, compare.paired(found), NAMES))
    assert f"identity {plain[0].id}" in said


def test_a_missing_loss_is_an_error_and_a_missing_optimizer_is_not():
    store_losses()
    store_losses("sgd", ["triplet loss"])
    assert [name for name in rows() if "SGD" in name] == ["triplet loss (SGD)"]
    with pytest.raises(DlopsError, match="dlops train"):
        rows(optimizer="sgd")


def test_the_other_optimizer_stays_away_from_a_learning_rate_that_is_not_its_own():
    store_losses("sgd")
    for name, (question, own) in LOSSES.items():
        e = Experiment.from_preset(question, "quick", lr=0.005, **own)
        if name != "center, λ = 0":
            fake(e)
    assert all("Adam" in name for name in rows(lr=0.005))


def test_pairs_differ_in_one_thing_and_are_each_tested_once():
    store_losses()
    store_losses("sgd")
    pairs = compare.paired(rows())
    together = {frozenset((pair.first, pair.second)) for pair in pairs}
    assert len(together) == 3 + 3 + 3 and len(pairs) == 2 * len(together)
    for pair in pairs:
        (loss, optimizer), (other, another) = map(compare.split, (pair.first, pair.second))
        assert (loss == other) != (optimizer == another)


def test_a_paired_test_is_of_the_same_images():
    """40 against 60 mistakes: on the same images no chance, on different ones undecided."""
    store_losses(cross={"wrong_first": range(60)}, triplet={"wrong_first": range(40)})
    found = rows()
    (pair,) = [
        p
        for p in compare.paired(found)
        if p.metric == compare.TOP1
        and {"cross-entropy (Adam)", "triplet loss (Adam)"} == {p.first, p.second}
    ]
    assert pair.difference == pytest.approx(-20 / IMAGES)
    assert pair.p == pytest.approx(2 / 2**20)
    assert pair.low < -20 / IMAGES < pair.high < 0
    assert pair.certain


def test_findings_follow_the_numbers():
    store_losses(cross={"wrong_all": range(30)}, triplet={"wrong_all": range(31)})
    store_losses("sgd", cross={"wrong_all": range(90)}, triplet={"wrong_all": range(20)})
    found = rows()
    pairs = compare.paired(found)
    said = "\n".join(compare.findings(found, pairs, NAMES))
    assert "The lead of center loss (Adam) is more than chance over" in said
    assert "Cross-entropy (Adam) is 0.2 points in top-5 above triplet loss (Adam), no more" in said
    assert "Triplet loss (SGD) beats cross-entropy (SGD) by 17.5 points in top-5" in said
    assert "saturates" not in said


def test_saturated_top5_leaves_the_decision_to_top1():
    store_losses(cross={"wrong_first": range(30)})
    found = rows()
    assert compare.deciding(found) == compare.TOP1
    said = "\n".join(compare.findings(found, compare.paired(found), NAMES))
    assert "saturates" in said and "Center loss (Adam) beats cross-entropy (Adam)" in said


def test_equal_models_are_called_equal():
    store_losses()
    found = rows()
    pairs = compare.paired(found)
    assert not any(pair.certain for pair in pairs)
    said = "\n".join(compare.findings(found, pairs, NAMES))
    assert "All have the same top-1." in said
    assert "equal in top-1" in said and "beats" not in said


def test_times_that_vary_within_a_run_say_little_of_losses():
    store_losses(cross={"rates": (100, 70)}, triplet={"rates": (90, 88)})
    noisy = "\n".join(compare.findings(rows(), [], NAMES))
    assert "10 % less; but epochs of one and the same run differ by up to 30 %" in noisy


def test_class_differences_are_of_the_same_images():
    store_losses(cross={"wrong_first": np.flatnonzero(LABELS == 3)[:10]})
    found = rows()
    first, second = compare.against(found, "triplet loss")
    value, limits = compare.by_class(found[first][0], found[second][0], CLASSES)
    assert value.tolist() == [0, 0, 0, 0.25, 0, 0, 0, 0, 0, 0]
    assert limits[3, 0] > 0 and (limits[:, 0] <= value).all() and (value <= limits[:, 1]).all()


def test_nearest_same_equals_a_loop():
    store_losses()
    result = rows()["triplet loss (Adam)"][0]
    points, labels = result.embeddings, result.labels[result.arrays["sample"]]
    hits = 0
    for i, point in enumerate(points):
        distance = np.linalg.norm(points - point, axis=1)
        distance[i] = np.inf
        hits += labels[distance.argmin()] == labels[i]
    assert compare.nearest_same(result) == pytest.approx(hits / len(points))


def test_different_test_images_are_refused():
    store_losses(losses=["cross-entropy", "center loss"])
    e = Experiment.from_preset("q1.2", "quick")
    fake(e, labels=LABELS[::-1].copy())
    with pytest.raises(DlopsError, match="different test images"):
        rows()


def test_seeds_are_averaged_and_their_spread_is_told(monkeypatch):
    monkeypatch.setitem(compare.by_loss.__globals__["COMPARISON_SEEDS"], "quick", (0, 1))
    store_losses(triplet={"wrong_first": range(8)})
    store_losses(seed=1, triplet={"wrong_first": range(16)})
    found = rows()
    assert compare.mean(found["triplet loss (Adam)"], compare.TOP1) == pytest.approx(0.97)
    pairs = compare.paired(found)
    last = next(p for p in pairs if p.metric == compare.TOP1 and "triplet" in p.second)
    assert last.per_seed == pytest.approx((0.02, 0.04))
    assert "another seed" not in " ".join(compare.limitations(found))


@pytest.mark.parametrize(
    "view", ["settings", "curves", "accuracy", "geometry", "cost"], ids=lambda view: view
)
def test_views_show_every_model(view, monkeypatch):
    shown = []
    monkeypatch.setattr(compare, "show", lambda figure, caption, alt: shown.append(alt))
    monkeypatch.setattr(
        compare, "table", lambda frame, caption, **_: shown.append(frame.to_string())
    )
    store_losses()
    getattr(compare, view)(rows())
    for name in compare.distinct(rows()):
        assert name in shown[0]


def test_headline_is_of_the_reports_own_optimizer():
    store_losses(triplet={"wrong_first": range(40)})
    store_losses("sgd")
    assert compare.headline(rows())["Triplet loss"] == "100.0 % / 90.0 %"
    assert compare.headline(rows(optimizer="sgd"))["Triplet loss"] == "100.0 % / 100.0 %"
