"""Numbers only: accuracies, intervals, tests, neighbours and t-SNE, on scikit-learn and scipy.

Every function checks what it is given once and raises a ValueError that says what does not fit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import cdist
from scipy.stats import binomtest, bootstrap, t

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def topk_correct(predictions: ArrayLike, labels: ArrayLike, k: int) -> NDArray[np.bool_]:
    """Whether each row's label is among its first k predictions, [N].

    predictions: [N, K] classes, best first; labels: [N]. (scikit-learn's top_k_accuracy_score
    wants the scores of all classes, which results do not keep.)
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

    labels, predicted = _rows(labels, predicted)
    both = np.concatenate([labels, predicted])
    if both.min() < 0 or both.max() >= num_classes:
        raise ValueError(
            f"classes must lie between 0 and {num_classes - 1}, not {both.min()} and {both.max()}"
        )
    return confusion_matrix(labels, predicted, labels=range(num_classes))


def class_accuracy(labels: ArrayLike, predicted: ArrayLike, num_classes: int) -> Floats:
    """Top-1 accuracy of each class, [C]; nan for a class without images."""
    matrix = confusion(labels, predicted, num_classes)
    total = matrix.sum(axis=1)
    return np.where(total > 0, matrix.diagonal() / np.maximum(total, 1), np.nan)


def most_confused(
    matrix: ArrayLike, names: Sequence[str], n: int = 10
) -> list[tuple[str, str, int, float]]:
    """The n largest off-diagonal cells of a confusion matrix [C, C], largest first.

    Each is (true class, predicted class, count, share of the true class); empty cells are left out.
    """
    matrix = np.asarray(matrix)
    wrong = matrix - np.diag(matrix.diagonal())
    order = np.argsort(-wrong, axis=None, kind="stable")[:n]
    pairs = [divmod(int(cell), len(matrix)) for cell in order]
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


def bootstrap_interval(
    values: ArrayLike, *, seed: int = 0, draws: int = 2000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval for the mean of two or more values [N] (Efron 1979)."""
    values = np.asarray(values, np.float64)
    if len(values) < 2:
        raise ValueError(f"an interval takes two values or more, not {len(values)}")
    low, high = bootstrap(
        (values,),
        np.mean,
        n_resamples=draws,
        confidence_level=level,
        method="percentile",
        batch=max(1, 1_000_000 // len(values)),
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(low), float(high)


def paired_bootstrap(
    correct_a: ArrayLike, correct_b: ArrayLike, *, seed: int = 0, level: float = 0.95
) -> tuple[float, float, float]:
    """Accuracy of A minus that of B on the same images, and its interval.

    correct_a, correct_b: [N] booleans. Images are resampled together. Returns (difference, low,
    high), each between -1 and 1.
    """
    a, b = _rows(correct_a, correct_b)
    difference = a.astype(np.float64) - b
    return float(difference.mean()), *bootstrap_interval(difference, seed=seed, level=level)


def student_interval(values: ArrayLike, level: float = 0.95) -> tuple[float, float, float]:
    """Mean of a few values [N], such as differences by seed, and Student's t-interval for it.

    One value has no interval: low and high are nan.
    """
    values = np.asarray(values, np.float64)
    mean, n = float(values.mean()), len(values)
    if n < 2:
        return mean, math.nan, math.nan
    half = float(t.ppf((1 + level) / 2, n - 1) * values.std(ddof=1) / math.sqrt(n))
    return mean, mean - half, mean + half


def mcnemar(correct_a: ArrayLike, correct_b: ArrayLike) -> float:
    """Exact two-sided p-value of McNemar's test: are A and B equally often right?

    correct_a, correct_b: [N] booleans on the same images. Only the images on which they disagree
    count, under Binomial(n, 1/2) (McNemar 1947); 1 if they never disagree.
    """
    a, b = _rows(correct_a, correct_b)
    n = int((a != b).sum())
    return float(binomtest(int((a > b).sum()), n).pvalue) if n else 1.0


def holm(p: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p-values: they bound the risk of any false alarm.

    Here because scipy has only false discovery rates.
    """
    order = np.argsort(p, kind="stable")
    stepped = np.asarray(p, np.float64)[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(stepped))
    return adjusted.tolist()


def nearest_class_mean(
    train_embeddings: ArrayLike, train_labels: ArrayLike, embeddings: ArrayLike, k: int = 5
) -> Ints:
    """The k classes whose training mean is nearest (Euclidean), nearest first.

    train_embeddings: [M, D]; train_labels: [M]; embeddings: [N, D]. Returns [N, min(k, C)] class
    labels, of the C classes that occur in train_labels. (scikit-learn's NearestCentroid tells
    the first class alone, and refuses an embedding that has collapsed.)
    """
    train_embeddings, train_labels = _rows(train_embeddings, train_labels)
    classes = np.unique(train_labels)
    means = [train_embeddings[train_labels == c].mean(axis=0, dtype=np.float64) for c in classes]
    distance = cdist(np.asarray(embeddings), np.stack(means), "sqeuclidean")
    return classes[np.argsort(distance, axis=1, kind="stable")[:, :k]]


def knn_accuracy(
    train_embeddings: ArrayLike,
    train_labels: ArrayLike,
    embeddings: ArrayLike,
    labels: ArrayLike,
    k: int = 20,
) -> float:
    """Top-1 accuracy of the vote of the k nearest training embeddings (Euclidean).

    train_embeddings: [M, D]; train_labels: [M]; embeddings: [N, D]; labels: [N]. A tied vote goes
    to the smallest label. Memory grows with M + N, not with M x N.
    """
    from sklearn.neighbors import KNeighborsClassifier

    train_embeddings, train_labels = _rows(train_embeddings, train_labels)
    embeddings, labels = _rows(embeddings, labels)
    centre = train_embeddings.mean(axis=0, dtype=np.float64)  # distances are rounded around zero
    voters = KNeighborsClassifier(min(k, len(train_labels)))
    return float(
        voters.fit(train_embeddings - centre, train_labels).score(embeddings - centre, labels)
    )


def tsne(embeddings: ArrayLike, seed: int, perplexity: float = 30) -> NDArray[np.float32]:
    """t-SNE [M, 2] of embeddings [M, D] after PCA to 50 dimensions (van der Maaten, Hinton 2008).

    With few rows the perplexity is lowered to (M - 1) / 3. One thread: on a shared machine more
    are many times slower, and the result would depend on their number.
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
