"""What a trained network makes of images: embeddings, scores, and the measures of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dlops import metrics as measure
from dlops.build import Network
from dlops.data import Batches

BATCH = 512
POINTS = 2000  # test images that t-SNE maps
KEPT = 500  # test images whose embeddings a result keeps


class Evaluation:
    """Embeddings, logits and labels of a split's images, un-augmented, in eval mode.

    normalize: whether the loss sees the embeddings on the unit sphere.
    """

    def __init__(
        self, network: Network, batches: Batches, autocast: torch.autocast, normalize: bool = False
    ) -> None:
        network.eval()
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        with torch.no_grad():
            for images, labels in batches.ordered(BATCH):
                with autocast:
                    embeddings, logits = network(images)
                parts.append((embeddings.float(), logits.float(), labels))
        network.train()
        self.embeddings, self.logits, self.labels = (torch.cat(x) for x in zip(*parts))
        self.normalize = normalize

    @property
    def points(self) -> Tensor:
        """Embeddings as the loss sees them: on the unit sphere if it normalises."""
        return nn.functional.normalize(self.embeddings) if self.normalize else self.embeddings

    def class_means(self, num_classes: int) -> Tensor:
        """[C, D] means of the points of each class; far away for a class without images."""
        sums = torch.zeros(num_classes, self.points.shape[1], device=self.points.device)
        sums.index_add_(0, self.labels, self.points)
        counts = torch.bincount(self.labels, minlength=num_classes)[:, None]
        return torch.where(counts > 0, sums / counts.clamp(min=1), torch.inf)

    def scores(self, means: Tensor | None) -> Tensor:
        """[N, C]: the logits, or minus the distance to each class mean."""
        if means is None:
            return self.logits
        exact = "donot_use_mm_for_euclid_dist"
        return -torch.cdist(self.points, means, compute_mode=exact).nan_to_num(nan=torch.inf)

    def held_out_scores(self, num_classes: int) -> Tensor:
        """[N, C]: minus the distance to each class mean; its own is made without the point."""
        means, own = self.class_means(num_classes), self.labels[:, None]
        count = torch.bincount(self.labels, minlength=num_classes)[own]
        others = (count * means[self.labels] - self.points) / (count - 1).clamp(min=1)
        distance = (self.points - others).norm(dim=1, keepdim=True)
        return self.scores(means).scatter(1, own, -torch.where(count > 1, distance, torch.inf))


def top(scores: Tensor, labels: Tensor, k: int) -> float:
    """Share of labels among the k best scores."""
    best = scores.topk(min(k, scores.shape[1]), dim=1).indices
    return (best == labels[:, None]).any(dim=1).double().mean().item()


def test_results(
    test: Evaluation, train: Evaluation | None, classes: int, arrays: bool
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The test metrics, and what a result keeps of the test set (nothing unless `arrays`).

    train: the training images, whose class means and neighbours classify where the loss has no
    logits; None where it has.
    """
    scores = test.scores(train.class_means(classes) if train else None)
    best = scores.topk(min(5, classes), dim=1).indices.cpu().numpy()
    labels, points = test.labels.cpu().numpy(), test.points.cpu().numpy()
    by_class = measure.class_accuracy(labels, best[:, 0], classes)
    means = test.class_means(classes)
    metrics: dict[str, Any] = {
        "test_top1": measure.topk_accuracy(best, labels, 1),
        "test_top5": measure.topk_accuracy(best, labels, best.shape[1]),
        "test_images": len(labels),
        "class_accuracy": [None if math.isnan(value) else float(value) for value in by_class],
        "within_class": (test.points - means[test.labels]).norm(dim=1).mean().item(),
        "between_class": torch.pdist(means[means.isfinite().all(dim=1)]).mean().item(),
    }
    if train:
        neighbours = train.points.cpu().numpy(), train.labels.cpu().numpy()
        metrics["knn_top1"] = measure.knn_accuracy(*neighbours, points, labels)
    if not arrays:
        return metrics, {}
    order = sample(len(labels))
    confidence = scores.softmax(dim=1).amax(dim=1).cpu().numpy()
    whole = np.uint8 if classes <= 256 else np.int32
    return metrics, {
        "predictions": best.astype(whole),
        "labels": labels.astype(whole),
        "confidence": confidence.astype(np.float32),
        "sample": order.astype(np.int32),
        "embeddings": compact(points[order[:KEPT]]),
        "tsne": measure.tsne(points[order], seed=0).astype(np.float32),
    }


def compact(values: np.ndarray) -> np.ndarray:
    """As float16, or as float32 where that would overflow."""
    fits = np.abs(values).max(initial=0) <= np.finfo(np.float16).max
    return values.astype(np.float16 if fits else np.float32)


def sample(images: int) -> np.ndarray:
    """Positions of the fixed sample of test images: the same for every run of a data set."""
    return np.random.default_rng(0).permutation(images)[:POINTS]
