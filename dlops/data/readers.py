"""The four data sets, read from their official layouts and split for training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from dlops.data.batches import Split
from dlops.data.cache import decoded
from dlops.data.checks import check_images, check_labels, prove
from dlops.data.layouts import (
    AGAIN,
    CIFAR_RECORD,
    COUNTS,
    STL_IMAGE,
    Progress,
    cifar_names,
    lines,
    locate,
    stl_names,
    whole,
    words,
)
from dlops.settings import DATASETS, Data, DlopsError


@dataclass(frozen=True)
class DataSet:
    """A data set ready for training. mean, std: of training images, a channel, in 0-1 units.

    labelled: positions [L] of the training images whose labels supervised training may use
    (all of them, unless label_fraction is below 1).
    """

    name: str
    class_names: tuple[str, ...]
    checksum: str
    train: Split
    val: Split
    test: Split
    unlabelled: Split | None
    labelled: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class _Raw:
    """A data set as published: images uint8 [N, C, H, W], labels [N]."""

    class_names: Sequence[str]
    train: tuple[Tensor, np.ndarray]
    test: tuple[Tensor, np.ndarray]
    unlabelled: Tensor | None = None


def load(data: Data, seed: int, *, progress: Progress | None = None) -> DataSet:
    """The data set that `data` describes; `seed` draws the stratified validation split.

    Subsets (classes, per_class, test_per_class; at most so many a class) do not depend on the
    seed, and a smaller one is part of a larger one. `progress` hears (done, total) while images are
    decoded for the first time. Raises DlopsError if files are missing, damaged or incomplete.
    """
    info = DATASETS[data.name]
    raw = _READERS[data.name](data, progress)
    chosen = class_labels(data, len(raw.class_names))
    names = tuple(raw.class_names[label] for label in chosen)
    label_of = np.full(len(raw.class_names), -1)
    label_of[chosen] = np.arange(len(chosen))
    transform = _transform(data)

    def subset(labels: np.ndarray, per_class: int | None) -> np.ndarray:
        rows = _choose(labels, lambda sizes: per_class or sizes, seed=0)
        return rows[label_of[labels[rows]] >= 0]

    def split(part: tuple[Tensor, np.ndarray], rows: np.ndarray) -> Split:
        images, labels = part
        own = torch.from_numpy(label_of[labels[rows]])
        return Split(images, own, torch.from_numpy(rows), transform)

    rows = subset(raw.train[1], data.per_class)
    labels = raw.train[1][rows]
    held_out = np.zeros(len(rows), dtype=bool)
    held_out[_choose(labels, lambda n: np.clip(np.rint(n * data.val_fraction), 1, n - 1), seed)] = 1
    train = split(raw.train, rows[~held_out])
    share = data.label_fraction
    labelled = _choose(labels[~held_out], lambda n: np.maximum(np.rint(n * share), 1), seed)
    unlabelled = raw.unlabelled
    mean, std = _statistics(train)
    return DataSet(
        data.name,
        names,
        info.checksum,
        train,
        split(raw.train, rows[held_out]),
        split(raw.test, subset(raw.test[1], data.test_per_class)),
        None
        if unlabelled is None
        else Split(unlabelled, torch.full((len(unlabelled),), -1), None, transform),
        torch.from_numpy(labelled),
        mean,
        std,
    )


def class_labels(data: Data, total: int) -> np.ndarray:
    """Ascending labels of the classes that `data` takes of `total`: the first, or a draw."""
    if data.class_seed is None:
        return np.arange(data.classes or total)
    return np.sort(np.random.default_rng(data.class_seed).permutation(total)[: data.classes])


def _choose(labels: np.ndarray, quota: Callable[[np.ndarray], Any], seed: int) -> np.ndarray:
    """Ascending positions of the first quota(class sizes) of each class, in a random order."""
    order = np.random.default_rng(seed).permutation(len(labels))
    grouped = order[np.argsort(labels[order], kind="stable")]
    sizes = np.bincount(labels)
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    wanted = np.broadcast_to(quota(sizes), sizes.shape)
    return np.sort(grouped[rank < wanted[labels[grouped]]])


def _transform(data: Data) -> Callable[[Tensor], Tensor] | None:
    """uint8 [N, C, H, W] to uint8, or None where `data` leaves the images as they are."""
    size = None if data.image_size == DATASETS[data.name].image_size else data.image_size
    if not (data.grayscale or data.inverted or size):
        return None

    def transform(images: Tensor) -> Tensor:
        if data.grayscale:  # ITU-R 601 luma in integers, as Pillow's mode "L"
            red, green, blue = images.to(torch.int32).unbind(1)
            luma = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16
            images = luma.to(torch.uint8)[:, None]
        if size:
            images = functional.interpolate(
                images.contiguous(), size=(size, size), mode="bilinear", antialias=True
            )
        return 255 - images if data.inverted else images

    return transform


def _statistics(split: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation a channel, of at most 5,000 images; exact integer sums."""
    positions = torch.arange(0, len(split), -(-len(split) // 5000))
    pixels = 0
    total = square = torch.zeros((), dtype=torch.int64)
    for block in positions.split(500):
        images = split.take(block).to(torch.int32)
        total = total + images.sum((0, 2, 3))
        square = square + images.square().sum((0, 2, 3))
        pixels += images[:, 0].numel()
    mean = total.double() / pixels
    variance = square.double() / pixels - mean**2
    std = variance.clamp(min=1.0).sqrt()
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())


# The data sets, each from its official layout ------------------------------------------------


def _binary(path: Path, count: int, record: int) -> np.ndarray:
    """The file as a memory map uint8 [count, record]; copy on write, so that it stays as it is."""
    try:
        return np.asarray(np.memmap(path, np.uint8, "c", shape=(count, record)))
    except OSError as error:
        raise DlopsError(f"{path} cannot be read ({error.strerror}).") from None


def _digits(data: Data, progress: Progress | None) -> _Raw:
    from sklearn.datasets import load_digits

    digits = load_digits()
    small = torch.from_numpy(digits.images * (255 / 16)).float()[:, None]
    images = functional.interpolate(small, size=(16, 16), mode="bilinear")
    images = images.round().to(torch.uint8).repeat(1, 3, 1, 1)
    labels = digits.target.astype(np.int64)
    is_test = np.zeros(len(labels), dtype=bool)
    is_test[_choose(labels, lambda sizes: np.rint(sizes * 0.2), seed=0)] = True
    return _Raw(
        [str(digit) for digit in range(10)],
        (images[~is_test], labels[~is_test]),
        (images[is_test], labels[is_test]),
    )


def _cifar100(data: Data, progress: Progress | None) -> _Raw:
    folder = whole("cifar100", locate("cifar100"))
    names = {labels: cifar_names(folder, labels) for labels in ("coarse", "fine")}

    def read(name: str, count: int) -> tuple[Tensor, np.ndarray]:
        path = folder / name
        records = _binary(path, count, CIFAR_RECORD)  # coarse label, fine label, pixels
        prove(
            path,
            *(
                partial(check_labels, path, records[:, column], len(own), count // len(own))
                for column, own in enumerate(names.values())
            ),
            partial(check_images, path, records[:, 2:]),
        )
        labels = records[:, int(data.labels == "fine")].astype(np.int64)
        return torch.from_numpy(records[:, 2:].reshape(count, 3, 32, 32)), labels

    train, test, _ = COUNTS["cifar100"]
    return _Raw(names[data.labels], read("train.bin", train), read("test.bin", test))


def _stl10(data: Data, progress: Progress | None) -> _Raw:
    folder = whole("stl10", locate("stl10"))
    names = stl_names(folder)

    def images(name: str, count: int, used: bool = True) -> Tensor:
        path = folder / f"{name}_X.bin"
        pixels = _binary(path, count, STL_IMAGE)
        if used:
            prove(path, partial(check_images, path, pixels))
        return torch.from_numpy(pixels.reshape(count, 3, 96, 96)).transpose(2, 3)

    def read(name: str, count: int) -> tuple[Tensor, np.ndarray]:
        path = folder / f"{name}_y.bin"
        labels = _binary(path, count, 1)[:, 0]
        prove(path, partial(check_labels, path, labels, len(names), count // len(names), first=1))
        return images(name, count), labels.astype(np.int64) - 1

    count, test, unlabelled = COUNTS["stl10"]
    train = read("train", count)
    if data.fold is not None:
        rows = _fold(folder / "fold_indices.txt", data.fold, count)
        train = train[0][torch.from_numpy(rows)], train[1][rows]
    extra = None
    if (folder / "unlabeled_X.bin").exists():
        extra = images("unlabeled", unlabelled, data.unlabelled > 0)
    return _Raw(names, train, read("test", test), extra)


def _fold(path: Path, fold: int, count: int) -> np.ndarray:
    """Rows of the training images of a fold."""
    folds = list(lines(path))
    if len(folds) != 10:
        raise DlopsError(f"{path} has {len(folds)} folds, but must have 10: {AGAIN}.")
    number, line = folds[fold]
    rows = line.split()
    if not all(row.isdecimal() and int(row) < count for row in rows) or len({*rows}) < len(rows):
        raise DlopsError(f"{path}, line {number}: not different numbers below {count}: {AGAIN}.")
    return np.array(rows, dtype=np.int64)


def _tiny_imagenet(data: Data, progress: Progress | None) -> _Raw:
    """Its test images have no labels, so the published validation images are the test set."""
    folder = locate("tiny-imagenet")
    names = list(words(folder).values())
    pixels, labels = decoded(folder, progress)
    images, train = torch.from_numpy(pixels), COUNTS["tiny-imagenet"][0]
    return _Raw(names, (images[:train], labels[:train]), (images[train:], labels[train:]))


_READERS: dict[str, Callable[[Data, Progress | None], _Raw]] = {
    "digits": _digits,
    "tiny-imagenet": _tiny_imagenet,
    "cifar100": _cifar100,
    "stl10": _stl10,
}
