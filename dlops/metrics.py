"""Numbers only: accuracies, intervals, tests, neighbours and t-SNE, on scikit-learn and scipy.

Every function checks what it is given once and raises a ValueError that says what does not fit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest, bootstrap, t

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def topk_correct(predictions: ArrayLike, labels: ArrayLike, k: int) -> NDArray[np.bool_]:
    """[N]: whether each of labels [N] is among the first k of predictions [N, K], best first.

    (scikit-learn's top_k_accuracy_score wants the scores of all classes, which none keeps.)
    """
    predictions, labels = _rows(predictions, labels)
    if not 1 <= k <= predictions.shape[1]:
        raise ValueError(f"k must lie between 1 and {predictions.shape[1]}, not be {k}")
    return (predictions[:, :k] == labels[:, None]).any(axis=1)


def topk_accuracy(predictions: ArrayLike, labels: ArrayLike, k: int) -> float:
    """Share of rows whose label is among the first k predictions; shapes as in topk_correct."""
    return float(topk_correct(predictions, labels, k).mean())


def confusion(labels: ArrayLike, predicted: ArrayLike, num_classes: int) -> Ints:
    """Counts [C, C]: a row per true class, a column per predicted class. labels, predicted: [N]."""
    from sklearn.metrics import confusion_matrix

    both = np.stack(_rows(labels, predicted))
    if both.min() < 0 or both.max() >= num_classes:
        found = f"{both.min()} and {both.max()}"
        raise ValueError(f"classes must lie between 0 and {num_classes - 1}, not {found}")
    return confusion_matrix(labels, predicted, labels=range(num_classes))


def class_accuracy(labels: ArrayLike, predicted: ArrayLike, num_classes: int) -> Floats:
    """Top-1 accuracy of each class, [C]; nan for a class without images."""
    matrix = confusion(labels, predicted, num_classes)
    with np.errstate(invalid="ignore"):
        return matrix.diagonal() / matrix.sum(axis=1)


def most_confused(
    matrix: ArrayLike, names: Sequence[str], n: int = 10
) -> list[tuple[str, str, int, float]]:
    """(true class, predicted class, count, share of the true class) of the n largest errors."""
    matrix = np.asarray(matrix)
    wrong = matrix - np.diag(matrix.diagonal())
    largest = np.argsort(-wrong, axis=None, kind="stable")[:n]
    pairs = [divmod(int(cell), len(matrix)) for cell in largest]
    return [
        (names[i], names[j], int(wrong[i, j]), float(wrong[i, j] / matrix[i].sum()))
        for i, j in pairs
        if wrong[i, j] > 0
    ]


def wilson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a proportion (Wilson 1927)."""
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} is no proportion")
    low, high = binomtest(successes, n).proportion_ci(level, method="wilson")
    return float(low), float(high)


def paired_bootstrap(
    correct_a: ArrayLike, correct_b: ArrayLike, *, seed: int = 0, level: float = 0.95
) -> tuple[float, float, float]:
    """Accuracy of A minus that of B on the same images, and its interval (Efron 1979).

    correct_a, correct_b: [N] booleans, N >= 2. Percentiles of 2,000 draws of images.
    """
    a, b = _rows(correct_a, correct_b)
    if len(a) < 2:
        raise ValueError(f"an interval takes two images or more, not {len(a)}")
    difference = a.astype(np.float64) - b
    low, high = bootstrap(
        (difference,),
        np.mean,
        n_resamples=2000,
        confidence_level=level,
        method="percentile",
        batch=max(1, 1_000_000 // len(a)),
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(difference.mean()), float(low), float(high)


def student_interval(values: ArrayLike, level: float = 0.95) -> tuple[float, float, float]:
    """Mean of values [N], and Student's t-interval for it; nan for its ends if N is 1."""
    values = np.asarray(values, np.float64)
    mean, n = float(values.mean()), len(values)
    if n < 2:
        return mean, math.nan, math.nan
    half = float(t.ppf((1 + level) / 2, n - 1) * values.std(ddof=1) / math.sqrt(n))
    return mean, mean - half, mean + half


def mcnemar(correct_a: ArrayLike, correct_b: ArrayLike) -> float:
    """Exact two-sided p-value of McNemar's test (1947): are A and B equally often right?

    [N] booleans on the same images, of which those count that they disagree on; 1 for none.
    """
    a, b = _rows(correct_a, correct_b)
    n = int((a != b).sum())
    return float(binomtest(int((a > b).sum()), n).pvalue) if n else 1.0


def holm(p: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p-values: they bound the risk of any false alarm (scipy has none)."""
    order = np.argsort(p, kind="stable")
    stepped = np.asarray(p, np.float64)[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(stepped))
    return adjusted.tolist()


def knn_accuracy(
    train_embeddings: ArrayLike,
    train_labels: ArrayLike,
    embeddings: ArrayLike,
    labels: ArrayLike,
    k: int = 20,
) -> float:
    """Top-1 accuracy of the vote of the k nearest of M training embeddings [M, D], of [N, D].

    A tied vote goes to the smallest label. Memory grows with M + N, not with M x N.
    """
    from sklearn.neighbors import KNeighborsClassifier

    train_embeddings, train_labels = _rows(train_embeddings, train_labels)
    embeddings, labels = _rows(embeddings, labels)
    centre = train_embeddings.mean(axis=0, dtype=np.float64)  # distances are rounded around zero
    voters = KNeighborsClassifier(min(k, len(train_labels)))
    voters.fit(train_embeddings - centre, train_labels)
    return float(voters.score(embeddings - centre, labels))


def tsne(embeddings: ArrayLike, seed: int, perplexity: float = 30) -> NDArray[np.float32]:
    """t-SNE [M, 2] of embeddings [M, D] after PCA to 50 dimensions (van der Maaten, Hinton 2008).

    perplexity: at most (M - 1) / 3. One thread: the result depends on how many there are.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    x = np.asarray(embeddings, np.float32)
    perplexity = min(perplexity, (len(x) - 1) / 3)
    with threadpool_limits(limits=1):
        if min(x.shape) > 50:
            x = PCA(50, random_state=seed).fit_transform(x)
        return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(x)


def _rows(a: ArrayLike, b: ArrayLike) -> tuple[NDArray, NDArray]:
    a, b = np.asarray(a), np.asarray(b)
    if len(a) != len(b) or not len(a):
        raise ValueError(f"takes as many rows of one as of the other, not {len(a)} and {len(b)}")
    return a, b
