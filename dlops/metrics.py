"""Numbers only: accuracies, intervals, paired tests, neighbours and t-SNE, from NumPy arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def topk_accuracy(predictions: ArrayLike, labels: ArrayLike, k: int) -> float:
    """Share of rows whose label is among the first k predictions.

    predictions: [N, K] classes, best first; labels: [N]. ValueError if k > K.
    """
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    if not 1 <= k <= predictions.shape[1]:
        raise ValueError(f"k must lie between 1 and {predictions.shape[1]}, not be {k}")
    return float((predictions[:, :k] == labels[:, None]).any(axis=1).mean())


def confusion(labels: ArrayLike, predicted: ArrayLike, num_classes: int) -> Ints:
    """Counts [C, C]: a row per true class, a column per predicted class. labels, predicted: [N]."""
    cells = np.asarray(labels, np.int64) * num_classes + np.asarray(predicted, np.int64)
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


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


def wilson(successes: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval for a proportion (Wilson 1927); z = 1.96 is 95 %."""
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} is no proportion")
    share, spread = successes / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap_interval(
    values: ArrayLike, *, seed: int = 0, draws: int = 2000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval for the mean of values [N] (Efron 1979)."""
    values = np.asarray(values, np.float64)
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(draws)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_bootstrap(
    correct_a: ArrayLike, correct_b: ArrayLike, *, seed: int = 0, draws: int = 2000
) -> tuple[float, float, float]:
    """Accuracy of A minus that of B on the same images, and its 95 % interval.

    correct_a, correct_b: [N] booleans. Images are resampled together. Returns (difference, low,
    high), each between -1 and 1.
    """
    difference = _paired(correct_a, correct_b)
    return float(difference.mean()), *bootstrap_interval(difference, seed=seed, draws=draws)


def student_interval(values: ArrayLike, level: float = 0.95) -> tuple[float, float, float]:
    """Mean of a few values [N], such as differences by seed, and Student's t-interval for it.

    One value has no interval: low and high are nan.
    """
    from scipy.stats import t

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
    difference = _paired(correct_a, correct_b)
    n = int(np.count_nonzero(difference))
    fewer = min(int((difference > 0).sum()), int((difference < 0).sum()))
    ways = tail = 1
    for i in range(fewer):
        ways = ways * (n - i) // (i + 1)
        tail += ways
    return min(1.0, 2 * tail / 2**n)


def _paired(correct_a: ArrayLike, correct_b: ArrayLike) -> Floats:
    a, b = np.asarray(correct_a, np.float64), np.asarray(correct_b, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"a paired test needs the same images, not {len(a)} and {len(b)}")
    return a - b


def nearest_class_mean(
    train_embeddings: ArrayLike, train_labels: ArrayLike, embeddings: ArrayLike, k: int = 5
) -> Ints:
    """The k classes whose training mean is nearest (Euclidean), nearest first.

    train_embeddings: [M, D]; train_labels: [M]; embeddings: [N, D]. Returns [N, min(k, C)] class
    labels, of the C classes that occur in train_labels.
    """
    train_embeddings, train_labels = np.asarray(train_embeddings), np.asarray(train_labels)
    classes = np.unique(train_labels)
    means = [train_embeddings[train_labels == c].mean(axis=0, dtype=np.float64) for c in classes]
    return np.concatenate([classes[i] for i in _nearest(embeddings, np.stack(means), k)])


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
    classes, train_classes = np.unique(np.asarray(train_labels), return_inverse=True)
    winners = []
    for neighbours in _nearest(embeddings, np.asarray(train_embeddings), k):
        rows = np.arange(len(neighbours))[:, None] * len(classes)
        cells = (rows + train_classes[neighbours]).ravel()
        votes = np.bincount(cells, minlength=len(neighbours) * len(classes))
        winners.append(classes[votes.reshape(-1, len(classes)).argmax(axis=1)])
    return float((np.concatenate(winners) == np.asarray(labels)).mean())


def _nearest(queries: ArrayLike, points: NDArray, k: int):
    """Yield, for blocks of queries [B, D], the indices [B, min(k, M)] of the nearest of points
    [M, D], nearest first.

    The expanded square |q|^2 - 2qp + |p|^2, in float64 around the mean of the points, proposes a
    few more candidates than needed; plain differences rank them.
    """
    queries = np.asarray(queries)
    points = points.astype(np.float64)
    centre = points.mean(axis=0)
    points -= centre
    squares = np.einsum("md,md->m", points, points)
    k, candidates = min(k, len(points)), min(k + 8, len(points))
    block = max(1, min(1024, 4_000_000 // len(points)))
    for start in range(0, len(queries), block):
        x = queries[start : start + block].astype(np.float64) - centre
        approximate = squares - 2 * (x @ points.T)
        near = np.argpartition(approximate, candidates - 1, axis=1)[:, :candidates]
        near.sort(axis=1)
        distance = np.square(x[:, None] - points[near]).sum(axis=2)
        order = np.argsort(distance, axis=1, kind="stable")[:, :k]
        yield np.take_along_axis(near, order, axis=1)


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
