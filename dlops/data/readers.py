"""The four data sets, read from their official layouts and split for training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from dlops.data import layouts
from dlops.data.batches import Split
from dlops.data.cache import check_images, decoded
from dlops.data.layouts import CIFAR_RECORD, COUNTS, STL_IMAGE, Progress, damaged, locate, readable
from dlops.settings import DATASETS, Data


@dataclass(frozen=True)
class DataSet:
    """A data set ready for training. mean, std: of training images, a channel, in 0-1 units.

    labelled: positions [L] of the training images whose labels supervised training may use
    (all of them, unless label_fraction is below 1).
    """

    name: str
    class_names: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    unlabelled: Split | None
    labelled: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]


Part = tuple[Tensor, np.ndarray]  # images uint8 [N, C, H, W], labels [N]
# A data set as published: the names of its classes, training, test, and images without labels.
Published = tuple[Sequence[str], Part, Part, Tensor | None]


@readable()
def load(data: Data, seed: int, *, progress: Progress | None = None) -> DataSet:
    """The data set that `data` describes; `seed` draws the stratified validation split.

    Subsets (classes, per_class, test_per_class; at most so many a class) do not depend on the
    seed, and a smaller one is part of a larger one. `progress` hears (done, total) while images are
    decoded for the first time. Raises DlopsError if files are missing, damaged or incomplete.
    """
    names, training, testing, more = _READERS[data.name](data, progress)
    chosen = class_labels(data, len(names))
    label_of = np.full(len(names), -1)
    label_of[chosen] = np.arange(len(chosen))
    transform = _transform(data)

    def subset(labels: np.ndarray, per_class: int | None) -> np.ndarray:
        rows = _choose(labels, lambda sizes: per_class or sizes, seed=0)
        return rows[label_of[labels[rows]] >= 0]

    def split(part: Part, rows: np.ndarray) -> Split:
        images, labels = part
        own = torch.from_numpy(label_of[labels[rows]])
        return Split(images, own, torch.from_numpy(rows), transform)

    rows = subset(training[1], data.per_class)
    labels = training[1][rows]
    held_out = np.zeros(len(rows), dtype=bool)
    held_out[_choose(labels, lambda n: np.clip(np.rint(n * data.val_fraction), 1, n - 1), seed)] = 1
    train, share = split(training, rows[~held_out]), data.label_fraction
    labelled = _choose(labels[~held_out], lambda n: np.maximum(np.rint(n * share), 1), seed)
    unlabelled = None
    if more is not None:
        unlabelled = Split(more, torch.full((len(more),), -1), None, transform)
    mean, std = _statistics(train)
    return DataSet(
        name=data.name,
        class_names=tuple(names[label] for label in chosen),
        train=train,
        val=split(training, rows[held_out]),
        test=split(testing, subset(testing[1], data.test_per_class)),
        unlabelled=unlabelled,
        labelled=torch.from_numpy(labelled),
        mean=mean,
        std=std,
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
    return np.asarray(np.memmap(path, np.uint8, "c", shape=(count, record)))


def _check_labels(path: Path, labels: np.ndarray, classes: int, first: int = 0) -> None:
    """labels: [N], from `first`; DlopsError unless all are in range, equally many a class."""
    wrong = np.flatnonzero((labels < first) | (labels >= first + classes))
    if len(wrong):
        raise damaged(
            f"{path}: image {wrong[0]} has the label {labels[wrong[0]]}, but labels are {first} to"
            f" {first + classes - 1}"
        )
    counts, each = np.bincount(labels - first, minlength=classes), len(labels) // classes
    wrong = np.flatnonzero(counts != each)
    if len(wrong):
        number, label = counts[wrong[0]], wrong[0] + first
        raise damaged(f"{path} has {number} images of class {label}, but must have {each}")


def _digits(data: Data, progress: Progress | None) -> Published:
    from sklearn.datasets import load_digits

    digits = load_digits()
    small = torch.from_numpy(digits.images * (255 / 16)).float()[:, None]
    images = functional.interpolate(small, size=(16, 16), mode="bilinear")
    images = images.round().to(torch.uint8).repeat(1, 3, 1, 1)
    labels = digits.target.astype(np.int64)
    is_test = np.zeros(len(labels), dtype=bool)
    is_test[_choose(labels, lambda sizes: np.rint(sizes * 0.2), seed=0)] = True
    train, test = ((images[part], labels[part]) for part in (~is_test, is_test))
    return [str(digit) for digit in range(10)], train, test, None


def _cifar100(data: Data, progress: Progress | None) -> Published:
    folder = layouts.whole("cifar100", locate("cifar100"))
    names = layouts.cifar_names(folder)

    def read(name: str, count: int) -> Part:
        path = folder / name
        records = _binary(path, count, CIFAR_RECORD)  # coarse label, fine label, pixels
        coarse, fine, pixels = records[:, 0], records[:, 1], records[:, 2:]
        _check_labels(path, coarse, len(names["coarse"]))
        _check_labels(path, fine, len(names["fine"]))
        check_images(path, pixels)
        labels = (fine if data.labels == "fine" else coarse).astype(np.int64)
        return torch.from_numpy(pixels.reshape(count, 3, 32, 32)), labels

    train, test, _ = COUNTS["cifar100"]
    return names[data.labels], read("train.bin", train), read("test.bin", test), None


def _stl10(data: Data, progress: Progress | None) -> Published:
    folder = layouts.whole("stl10", locate("stl10"))
    names = layouts.stl_names(folder)
    train, test, unlabelled = COUNTS["stl10"]

    def images(name: str, count: int, used: bool = True) -> Tensor:
        path = folder / f"{name}_X.bin"
        pixels = _binary(path, count, STL_IMAGE)
        if used:
            check_images(path, pixels)
        return torch.from_numpy(pixels.reshape(count, 3, 96, 96)).transpose(2, 3)

    def read(name: str, count: int) -> Part:
        path = folder / f"{name}_y.bin"
        labels = _binary(path, count, 1)[:, 0]
        _check_labels(path, labels, len(names), first=1)
        return images(name, count), labels.astype(np.int64) - 1

    training, more = read("train", train), None
    if data.fold is not None:
        rows = _fold(folder / "fold_indices.txt", data.fold, train)
        training = training[0][torch.from_numpy(rows)], training[1][rows]
    if (folder / "unlabeled_X.bin").exists():
        more = images("unlabeled", unlabelled, data.unlabelled > 0)
    return names, training, read("test", test), more


def _fold(path: Path, fold: int, count: int) -> np.ndarray:
    """Rows of the training images of a fold."""
    folds = list(layouts.lines(path))
    if len(folds) != 10:
        raise damaged(f"{path} has {len(folds)} folds, but must have 10")
    place, line = folds[fold]
    rows = line.split()
    if not all(row.isdecimal() and int(row) < count for row in rows) or len({*rows}) < len(rows):
        raise damaged(f"{place}: not different numbers below {count}")
    return np.array(rows, dtype=np.int64)


def _tiny_imagenet(data: Data, progress: Progress | None) -> Published:
    """Its test images have no labels, so the published validation images are the test set."""
    folder = locate("tiny-imagenet")
    names = list(layouts.words(folder).values())
    pixels, labels = decoded(folder, progress)
    images, train = torch.from_numpy(pixels), COUNTS["tiny-imagenet"][0]
    return names, (images[:train], labels[:train]), (images[train:], labels[train:]), None


_READERS = {"digits": _digits, "cifar100": _cifar100, "stl10": _stl10}
_READERS["tiny-imagenet"] = _tiny_imagenet
