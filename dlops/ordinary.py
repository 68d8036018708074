"""The script that one would write without this package, for `dlops.bench` to compare with.

A tutorial's: ImageFolder, a DataLoader with a worker a core, torchvision's ResNet18 in float32,
batches of 128, Adam at 0.001 with a cosine over the time that it has, crop and flip; torch's
cross-entropy, or the hardest triplets of pytorch-metric-learning. No result of ours uses it.
"""

from __future__ import annotations

import itertools
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from dlops.data import DataSet, Split

BATCH, LR = 128, 0.001


class Plain(nn.Module):
    """torchvision's network; it also returns the features that its classifier sees."""

    def __init__(self, body: Any) -> None:
        super().__init__()
        self.body, self.head, body.fc = body, body.fc, nn.Identity()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(images)
        return features, self.head(features)


def write_images(split: Split, folder: Path) -> None:
    """The images as ImageFolder reads them: PNGs without compression, faster to read than JPEGs."""
    images = split.images.permute(0, 2, 3, 1).numpy()
    for number, (pixels, label) in enumerate(zip(images, split.labels.tolist())):
        place = folder / f"{label:03d}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{number}.png", compress_level=0)


def ordinary_input(folder: Path, data: DataSet, triplet: bool) -> Iterable[Any]:
    """Batches over and over; for triplets of so many classes, 8 or more images of each."""
    from torchvision import datasets, transforms

    size = data.test.shape[-1]
    steps = [
        transforms.RandomCrop(size, padding=size // 8),
        *([transforms.RandomHorizontalFlip()] if data.name != "digits" else []),
        transforms.ToTensor(),
        transforms.Normalize(data.mean, data.std),
    ]
    images = datasets.ImageFolder(str(folder), transforms.Compose(steps))
    given: dict[str, Any] = {"shuffle": True}
    if triplet:
        from pytorch_metric_learning.samplers import MPerClassSampler

        each = next(k for k in (8, 16, 32, 64) if k * len(images.classes) >= BATCH)
        given = {"sampler": MPerClassSampler(images.targets, each, BATCH, len(images))}
    given |= {"num_workers": os.cpu_count(), "pin_memory": torch.cuda.is_available()}
    batches = torch.utils.data.DataLoader(images, BATCH, drop_last=True, **given)
    return itertools.chain.from_iterable(itertools.repeat(batches))


def ordinary_loss(triplet: bool) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """(features, logits, labels) -> loss, as libraries have it."""
    if not triplet:
        cross_entropy = nn.CrossEntropyLoss()
        return lambda features, logits, labels: cross_entropy(logits, labels)
    from pytorch_metric_learning.losses import TripletMarginLoss
    from pytorch_metric_learning.miners import BatchHardMiner

    miner, hardest = BatchHardMiner(), TripletMarginLoss(margin=0.2)
    return lambda features, logits, labels: hardest(features, labels, miner(features, labels))


class Ordinary:
    """Network, loss and optimizer of a tutorial, and its loop."""

    def __init__(self, classes: int, triplet: bool, device: torch.device) -> None:
        from torchvision.models import resnet18

        self.device, self.loss = device, ordinary_loss(triplet)
        self.network = Plain(resnet18(num_classes=classes)).to(device).train()
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=LR)
        self.losses: deque[float] = deque(maxlen=50)

    def train(self, batches: Iterable[Any], seconds: float) -> tuple[float, float]:
        """Train until the time is over; returns images a second, and the seconds it took."""
        seen, started = 0, time.perf_counter()
        for images, labels in batches:
            done = (time.perf_counter() - started) / seconds
            if done >= 1 and seen:
                break
            for group in self.optimizer.param_groups:
                group["lr"] = LR * 0.5 * (1 + math.cos(math.pi * min(1, done)))
            images, labels = images.to(self.device), labels.to(self.device)
            features, logits = self.network(images)
            loss = self.loss(features, logits, labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.losses.append(loss.item())
            seen += len(labels)
        taken = time.perf_counter() - started
        return seen / taken, taken
