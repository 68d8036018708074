import math
import tracemalloc

import numpy as np
import pytest
from scipy.stats import ttest_1samp
from sklearn.metrics import top_k_accuracy_score

from dlops import metrics


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_topk_accuracy_equals_sklearn(rng, k):
    scores, labels = rng.normal(size=(500, 12)), rng.integers(12, size=500)
    predictions = np.argsort(-scores, axis=1)[:, :5]
    expected = top_k_accuracy_score(labels, scores, k=k, labels=np.arange(12))
    assert metrics.topk_accuracy(predictions, labels, k) == pytest.approx(expected, abs=1e-15)


def test_topk_beyond_the_stored_predictions_is_refused():
    with pytest.raises(ValueError, match="between 1 and 5, not be 6"):
        metrics.topk_accuracy(np.zeros((3, 5), int), np.zeros(3, int), 6)


def test_confusion_counts_and_gives_class_accuracy(rng):
    labels, predicted = rng.integers(6, size=300), rng.integers(7, size=300)
    matrix = metrics.confusion(labels, predicted, 7)
    expected = np.bincount(labels * 7 + predicted, minlength=49).reshape(7, 7)
    np.testing.assert_array_equal(matrix, expected)
    accuracy = metrics.class_accuracy(labels, predicted, 7)
    for c in range(6):
        assert accuracy[c] == np.mean(predicted[labels == c] == c)
    assert np.isnan(accuracy[6])


@pytest.mark.parametrize(("labels", "predicted"), [([0, 1, 1], [3, 1, 2]), ([-1, 1], [0, 1])])
def test_a_class_that_is_none_is_refused(labels, predicted):
    for measure in (metrics.confusion, metrics.class_accuracy):
        with pytest.raises(ValueError, match="classes must lie between 0 and 2, not"):
            measure(labels, predicted, 3)


def test_rows_that_do_not_match_are_refused(rng):
    x, y, ones = rng.normal(size=(6, 2)), np.arange(6), np.ones((6, 2), int)
    calls = [
        lambda n: metrics.topk_accuracy(ones, y[:n], 1),
        lambda n: metrics.confusion(y, y[:n], 6),
        lambda n: metrics.paired_bootstrap(y > 0, y[:n] > 0),
        lambda n: metrics.mcnemar(y > 0, y[:n] > 0),
        lambda n: metrics.knn_accuracy(x, y[:n], x, y),
        lambda n: metrics.knn_accuracy(x, y, x, y[:n]),
    ]
    for call in calls:
        call(6)
        for n in (0, 1, 5):  # one row would broadcast
            with pytest.raises(ValueError, match=f"not 6 and {n}"):
                call(n)
    with pytest.raises(ValueError, match="not 0 and 0"):
        metrics.topk_accuracy(ones[:0], y[:0], 1)


def test_most_confused_lists_off_diagonal_cells_with_shares():
    matrix = [[8, 2, 0], [5, 0, 5], [0, 1, 9]]
    assert metrics.most_confused(matrix, ["cat", "dog", "fox"], 3) == [
        ("dog", "cat", 5, 0.5),
        ("dog", "fox", 5, 0.5),
        ("cat", "dog", 2, 0.2),
    ]
    assert metrics.most_confused(np.eye(3, dtype=int), ["cat", "dog", "fox"]) == []


def test_wilson_equals_published_values():
    """Newcombe 1998, Statistics in Medicine 17, table I, method 3."""
    published = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0000, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for (successes, n), expected in published.items():
        assert metrics.wilson(successes, n) == pytest.approx(expected, abs=5e-5)
    assert metrics.wilson(20, 20) == pytest.approx((0.8389, 1), abs=5e-5)
    with pytest.raises(ValueError, match="21 successes of 20"):
        metrics.wilson(21, 20)


def test_wilson_equals_its_formula():
    z, n, share = 1.959963984540054, 500, 412 / 500
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2) / (1 + z * z / n)
    assert metrics.wilson(412, 500) == pytest.approx((centre - half, centre + half), abs=1e-12)
    assert metrics.wilson(412, 500, 0.9)[0] > metrics.wilson(412, 500)[0]


@pytest.mark.parametrize("n", [2, 50, 2000])
def test_the_bootstrap_equals_the_plain_loop(rng, n):
    values = rng.random(n) < 0.7
    draw = np.random.default_rng(3)
    means = [values[draw.integers(n, size=n)].mean() for _ in range(2000)]
    expected = tuple(np.quantile(means, [0.025, 0.975]))
    found = metrics.paired_bootstrap(values, np.zeros(n, bool), seed=3)
    assert found == pytest.approx((values.mean(), *expected), abs=1e-12)
    with pytest.raises(ValueError, match="two images or more, not 1"):
        metrics.paired_bootstrap(values[:1], values[:1])


def test_student_interval_equals_scipy(rng):
    values = rng.normal(size=5)
    mean, low, high = metrics.student_interval(values)
    assert mean == values.mean()
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    assert (low, high) == pytest.approx(tuple(expected), abs=1e-12)
    assert metrics.student_interval([0.5, 0.5]) == (0.5, 0.5, 0.5)
    assert np.isnan(metrics.student_interval([0.5])).tolist() == [False, True, True]


def test_holm_equals_values_made_by_hand():
    """0.01 x 4, then 0.013 x 3 = 0.039, held up to 0.04, then 0.02 x 2 = 0.04 and 0.06 x 1."""
    assert metrics.holm([0.02, 0.01, 0.06, 0.013]) == pytest.approx([0.04, 0.04, 0.06, 0.04])
    assert metrics.holm([0.9, 0.6]) == [1.0, 1.0]
    assert metrics.holm([]) == []


def test_paired_bootstrap_uses_that_images_are_the_same(rng):
    b = rng.random(1000) < 0.7
    a = b.copy()
    a[np.flatnonzero(~b)[:30]] = True
    difference, low, high = metrics.paired_bootstrap(a, b)
    assert difference == pytest.approx(0.03)
    assert 0.015 < low < 0.03 < high < 0.045  # unpaired, it would be 0.03 +- 0.04
    assert metrics.paired_bootstrap(b, a)[0] == -difference


@pytest.mark.parametrize(("only_a", "only_b"), [(10, 3), (0, 6), (7, 7), (5, 4), (1300, 1180)])
def test_mcnemar_equals_the_exact_binomial_test(only_a, only_b):
    a = np.array([1] * only_a + [0] * only_b + [1] * 50 + [0] * 9, bool)
    b = np.array([0] * only_a + [1] * only_b + [1] * 50 + [0] * 9, bool)
    n = only_a + only_b
    tail = sum(math.comb(n, i) for i in range(min(only_a, only_b) + 1))
    expected = min(1.0, 2 * tail / 2**n)
    assert metrics.mcnemar(a, b) == pytest.approx(expected, abs=1e-12)
    assert metrics.mcnemar(b, a) == metrics.mcnemar(a, b)


def test_networks_that_never_disagree_are_equal():
    assert metrics.mcnemar([True, False], [True, False]) == 1.0


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_knn_equals_explicit_distances(rng, dtype):
    centers = rng.normal(size=(5, 8))
    train_labels, labels = rng.integers(5, size=700), rng.integers(5, size=300)
    train = (centers[train_labels] + rng.normal(size=(700, 8))).astype(dtype)
    test = (centers[labels] + rng.normal(size=(300, 8))).astype(dtype)
    names = np.array([3, 10, 11, 40, 77])  # labels need not be 0..C-1
    for k in (1, 2, 20):
        distance = np.square(test.astype(float)[:, None] - train.astype(float)).sum(axis=2)
        votes = train_labels[np.argsort(distance, axis=1, kind="stable")[:, :k]]
        winners = [np.bincount(row, minlength=5).argmax() for row in votes]  # the smallest of a tie
        expected = np.mean(winners == labels)
        assert 0.4 < expected < 1
        found = metrics.knn_accuracy(train, names[train_labels], test, names[labels], k)
        assert found == pytest.approx(expected, abs=1e-15)


def test_neighbours_stay_exact_far_from_the_origin():
    """Expanding |x - y|^2 around zero would lose these differences even in float64."""
    labels = np.repeat(np.arange(50), 2)
    train = np.arange(100)[:, None] * 1e-3 + 1e8
    assert metrics.knn_accuracy(train, labels, train, labels, k=1) == 1.0


def test_neighbours_never_hold_the_whole_distance_matrix(rng):
    train = rng.normal(size=(60_000, 2)).astype(np.float32)
    test = rng.normal(size=(1500, 2)).astype(np.float32)
    tracemalloc.start()
    metrics.knn_accuracy(train, train[:, 0] > 0, test, test[:, 0] > 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60_000 * 1500 * 4 / 2  # half of the matrix in float32


def test_tsne_separates_clusters_repeatably(rng):
    labels = np.repeat(np.arange(3), 30)
    x = (20 * rng.normal(size=(3, 80))[labels] + rng.normal(size=(90, 80))).astype(np.float16)
    points = metrics.tsne(x, seed=0)
    assert points.shape == (90, 2)
    assert metrics.knn_accuracy(points, labels, points, labels, k=5) == 1.0
    np.testing.assert_array_equal(points, metrics.tsne(x, seed=0))
    assert metrics.tsne(x[:8], seed=0).shape == (8, 2)  # fewer rows than the perplexity
