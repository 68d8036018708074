"""The four data sets, read from their official layouts and split for training."""

from __future__ import annotations

import inspect
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from torch.nn import functional

from dlops.data.batches import Split
from dlops.data.fetch import Progress, need_space, root, where, writable
from dlops.settings import DATASETS, Data, DlopsError

# Images that the publishers' archives hold: training, test, unlabelled.
COUNTS = {
    "tiny-imagenet": (100_000, 10_000, 0),
    "cifar100": (50_000, 10_000, 0),
    "stl10": (5_000, 8_000, 100_000),
}


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


def _folder(name: str) -> Path:
    folder, info = where(name), DATASETS[name]
    if folder is None:
        raise DlopsError(
            f"{info.title} is not at {root() / info.folder}: fetch it with `dlops data fetch"
            f" {name}`, or set DLOPS_DATA to the folder that holds {info.folder}."
        )
    return folder


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split("\n")
    except OSError:
        raise DlopsError(f"{path} is missing: unpack the archive again.") from None


def _binary(path: Path, count: int, record: int) -> np.ndarray:
    """The file as a memory map uint8 [count, record]; copy on write, so that it stays as it is."""
    size = path.stat().st_size if path.exists() else 0
    if size != count * record:
        raise DlopsError(
            f"{path} has {size:,} bytes, but must have {count * record:,}:"
            " unpack the archive again."
        )
    return np.asarray(np.memmap(path, np.uint8, "c", shape=(count, record)))


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
    folder = _folder("cifar100")

    def read(name: str, count: int) -> tuple[Tensor, np.ndarray]:
        records = _binary(folder / name, count, 2 + 3 * 32 * 32)
        labels = records[:, int(data.labels == "fine")].astype(
            np.int64
        )  # coarse, fine, then pixels
        return torch.from_numpy(records[:, 2:].reshape(count, 3, 32, 32)), labels

    names = [line for line in _lines(folder / f"{data.labels}_label_names.txt") if line]
    train, test, _ = COUNTS["cifar100"]
    return _Raw(names, read("train.bin", train), read("test.bin", test))


def _stl10(data: Data, progress: Progress | None) -> _Raw:
    folder = _folder("stl10")

    def images(name: str, count: int) -> Tensor:
        pixels = _binary(folder / f"{name}_X.bin", count, 3 * 96 * 96)
        return torch.from_numpy(pixels.reshape(count, 3, 96, 96)).transpose(2, 3)

    def read(name: str, count: int) -> tuple[Tensor, np.ndarray]:
        labels = _binary(folder / f"{name}_y.bin", count, 1)[:, 0].astype(np.int64) - 1
        return images(name, count), labels

    names = [line for line in _lines(folder / "class_names.txt") if line]
    count, test, unlabelled = COUNTS["stl10"]
    train = read("train", count)
    if data.fold is not None:
        line = _lines(folder / "fold_indices.txt")[data.fold]
        rows = np.array(line.split(), dtype=np.int64)
        train = train[0][torch.from_numpy(rows)], train[1][rows]
    extra = images("unlabeled", unlabelled) if (folder / "unlabeled_X.bin").exists() else None
    return _Raw(names, train, read("test", test), extra)


def _tiny_imagenet(data: Data, progress: Progress | None) -> _Raw:
    """Its test images have no labels, so the published validation images are the test set."""
    info, folder = DATASETS["tiny-imagenet"], _folder("tiny-imagenet")
    wnids = [line for line in _lines(folder / "wnids.txt") if line]
    words = dict(line.split("\t", 1) for line in _lines(folder / "words.txt") if "\t" in line)
    names = [words.get(wnid, wnid).split(",")[0] for wnid in wnids]
    cache = root() / "cache" / f"{info.name}-{info.checksum.removeprefix('md5:')[:8]}"
    with writable(cache.parent), FileLock(f"{cache}.lock"):
        if not cache.is_dir():
            for left_over in cache.parent.glob(f"{cache.name}.*.tmp"):
                shutil.rmtree(left_over)
            scratch = Path(tempfile.mkdtemp(".tmp", f"{cache.name}.", cache.parent))
            try:
                _decode(folder, wnids, scratch, progress)
                os.replace(scratch, cache)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    try:
        images = torch.from_numpy(np.asarray(np.load(cache / "images.npy", mmap_mode="c")))
        labels = np.load(cache / "labels.npy")
    except (OSError, ValueError) as error:
        raise DlopsError(f"The cache {cache} is damaged ({error}): delete that folder.") from None
    train = COUNTS["tiny-imagenet"][0]
    return _Raw(names, (images[:train], labels[:train]), (images[train:], labels[train:]))


def _decode(folder: Path, wnids: list[str], cache: Path, progress: Progress | None) -> None:
    """Writes images.npy, uint8 [N, 3, 64, 64], and labels.npy: training, then validation."""
    index = {wnid: label for label, wnid in enumerate(wnids)}
    files: list[tuple[str, int]] = []
    for wnid, label in index.items():
        images = f"{folder}/train/{wnid}/images"
        found = sorted(os.listdir(images)) if os.path.isdir(images) else []
        if not found:
            raise DlopsError(f"{images} holds no images: unpack the archive again.")
        files += [(f"{images}/{name}", label) for name in found]
    train = len(files)
    for line in _lines(folder / "val" / "val_annotations.txt"):
        if line:
            name, wnid = line.split("\t")[:2]
            files.append((f"{folder}/val/images/{name}", index[wnid]))
    counts, expected = (train, len(files) - train), COUNTS["tiny-imagenet"][:2]
    if counts != expected:
        raise DlopsError(
            f"{folder} holds {counts[0]:,} training and {counts[1]:,} validation images, but must"
            f" hold {expected[0]:,} and {expected[1]:,}: unpack the archive again."
        )
    shape = (len(files), 3, 64, 64)
    need_space(cache, int(np.prod(shape)), f"The decoded form of {folder.name}")
    np.save(cache / "labels.npy", np.array([label for _, label in files], dtype=np.int64))
    with open(cache / "images.npy", "wb") as out:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(out, header)
        start = out.tell()
    program = f"{inspect.getsource(_decode_paths)}\n{_decode_paths.__name__}()"

    def decode(first: int) -> int:
        """In a process of its own, which loads nothing but Pillow and writes its own images."""
        block = files[first : first + 2500]
        with open(cache / "images.npy", "r+b") as out:
            out.seek(start + first * 3 * 64 * 64)
            paths = os.fsencode("\0".join(path for path, _ in block))
            command = [sys.executable, "-c", program]
            done = subprocess.run(command, input=paths, stdout=out, stderr=subprocess.PIPE)
        if done.returncode:
            raise DlopsError(done.stderr.decode(errors="replace").strip().split("\n")[-1])
        return first + len(block)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            for done in pool.map(decode, range(0, len(files), 2500)):
                if progress:
                    progress(done, len(files))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _decode_paths() -> None:
    """Paths on standard input, separated by NUL, to pixels [3, 64, 64] on standard output."""
    import os
    import sys

    from PIL import Image

    for path in sys.stdin.buffer.read().split(b"\0"):
        try:
            with Image.open(path, formats=["JPEG"]) as image:
                if image.size != (64, 64):
                    raise ValueError("it has {} x {}".format(*image.size))
                channels = image.convert("RGB").split()
        except (OSError, SyntaxError, ValueError) as error:
            sys.exit(
                f"{os.fsdecode(path)} is not a readable JPEG image of 64 x 64 pixels ({error}):"
                " unpack the archive again."
            )
        for channel in channels:
            sys.stdout.buffer.write(channel.tobytes())


_READERS: dict[str, Callable[[Data, Progress | None], _Raw]] = {
    "digits": _digits,
    "tiny-imagenet": _tiny_imagenet,
    "cifar100": _cifar100,
    "stl10": _stl10,
}
