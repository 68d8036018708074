"""Data sets as uint8 tensors with labels, their splits, and batches made on the device."""

from __future__ import annotations

import inspect
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from torch.nn import functional

from dlops.data.fetch import Progress, need_space, root, where, writable
from dlops.settings import DATASETS, Data, DlopsError

# Images that the publishers' archives hold: training, test, unlabelled.
COUNTS = {
    "tiny-imagenet": (100_000, 10_000, 0),
    "cifar100": (50_000, 10_000, 0),
    "stl10": (5_000, 8_000, 100_000),
}
IN_MEMORY = 512 * 2**20  # bytes: a larger split stays in its memory-mapped file


class Split:
    """Images and their labels: labels [N] int64 (-1: unlabelled), images uint8 [N, C, H, W].

    A large split is a memory-mapped file of which `take` reads a few images at a time;
    `images` reads them all into memory.
    """

    def __init__(
        self,
        source: Tensor,
        labels: Tensor,
        rows: Tensor | None = None,
        transform: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.source, self.labels, self.rows, self.transform = source, labels, rows, transform
        if (rows is not None or transform) and self.nbytes <= IN_MEMORY:
            self.source, self.rows, self.transform = self.images, None, None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, C, H, W)"""
        return (len(self), *self.take(torch.arange(min(1, len(self)))).shape[1:])

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape))

    @property
    def images(self) -> Tensor:
        """All images, in memory unless they are the mapped file as it is."""
        if self.rows is None and self.transform is None:
            return self.source
        images = torch.empty(self.shape, dtype=torch.uint8)
        for block in torch.arange(len(self)).split(1000):
            images[block[0] : block[-1] + 1] = self.take(block)
        return images

    def take(self, positions: Tensor) -> Tensor:
        """Images uint8 [n, C, H, W] at `positions` [n] of this split."""
        rows = positions if self.rows is None else self.rows[positions]
        images = self.source.index_select(0, rows)  # 3 times as fast as [rows] on STL-10's layout
        return (self.transform(images) if self.transform else images).contiguous()


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

    Subsets (per_class, test_per_class; at most so many a class) do not depend on the seed, and
    a smaller one is part of a larger one. `progress` hears (done, total) while images are
    decoded for the first time. Raises DlopsError if files are missing, damaged or incomplete.
    """
    info = DATASETS[data.name]
    raw = _READERS[data.name](data, progress)
    names = tuple(raw.class_names)[: data.classes]
    transform = _transform(data)

    def subset(labels: np.ndarray, per_class: int | None) -> np.ndarray:
        rows = _choose(labels, lambda sizes: per_class or sizes, seed=0)
        return rows[labels[rows] < len(names)]

    def split(part: tuple[Tensor, np.ndarray], rows: np.ndarray) -> Split:
        images, labels = part
        return Split(images, torch.from_numpy(labels[rows]), torch.from_numpy(rows), transform)

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

# Fetching -------------------------------------------------------------------------------------


# Batches --------------------------------------------------------------------------------------


class Batches:
    """Batches of a split, cropped, flipped and normalised on the device.

    Order and augmentation of an epoch derive from (seed, epoch) alone. With classes_per_batch (P)
    and images_per_class (K) a batch holds K images of each of P classes (a class with fewer
    repeats its own), and batch_size does not apply. indices: the positions of the split to use.
    drop_last leaves out the incomplete last batch of an epoch, unless it is the only one.
    normalise=False gives values in [0, 1].
    """

    def __init__(
        self,
        split: Split,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        batch_size: int,
        seed: int,
        augment: str = "none",
        device: str | torch.device = "cpu",
        shuffle: bool = True,
        drop_last: bool = True,
        classes_per_batch: int | None = None,
        images_per_class: int | None = None,
        indices: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
        normalise: bool = True,
    ) -> None:
        self.split, self.seed, self.augment, self.dtype = split, seed, augment, dtype
        self.device, self.shuffle, self.drop_last = torch.device(device), shuffle, drop_last
        # A CPU computes meanwhile, and a second thread that does makes it a tenth slower.
        self.prefetch = self.device.type != "cpu"
        self.whole = indices is None
        self.rows = torch.arange(len(split)) if indices is None else indices.cpu()
        labels = split.labels[self.rows]
        self.labels = labels.to(self.device)
        self.batch_size = batch_size
        self.grouping: tuple[int, int] | None = None
        if classes_per_batch and images_per_class:
            self.grouping = classes_per_batch, images_per_class
            self.batch_size = classes_per_batch * images_per_class
            classes = len(labels.unique())
            if classes_per_batch > classes:
                raise DlopsError(
                    f"classes_per_batch is {classes_per_batch}, but the images are of only"
                    f" {classes} classes."
                )
        mean = mean if normalise else [0.0] * len(mean)
        std = std if normalise else [1.0] * len(mean)
        self.mean = torch.tensor(mean, device=self.device)[:, None, None] * 255
        self.scale = 1 / (torch.tensor(std, device=self.device)[:, None, None] * 255)
        self.resident = self._resident()

    def __len__(self) -> int:
        """Steps an epoch."""
        if self.drop_last or self.grouping:
            return max(1, len(self.rows) // self.batch_size)
        return -(-len(self.rows) // self.batch_size)

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images float [B, C, H, W] (channels last) and labels int64 [B], on the device."""
        rng = np.random.default_rng([self.seed, epoch])
        order = torch.from_numpy(self._order(rng))
        blocks = order.split(self.batch_size)[: len(self)]
        if self.augment == "none":
            yield from self._batches(blocks)
            return
        pad = self.split.shape[-1] // 8
        shifts = rng.integers(-pad, pad + 1, (2, len(order)))
        flips = rng.integers(0, 2 if self.augment == "crop-flip" else 1, (1, len(order)))
        moves = torch.from_numpy(np.concatenate([shifts, flips])).to(self.device)
        yield from self._batches(blocks, moves.split(self.batch_size, dim=1))

    def ordered(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All images in order, not augmented: what `epoch` yields otherwise."""
        return self._batches(torch.arange(len(self.rows)).split(batch_size))

    def _order(self, rng: np.random.Generator) -> np.ndarray:
        """Positions of an epoch's images, batch after batch."""
        if self.grouping:
            return class_batches(self.labels.cpu().numpy(), *self.grouping, rng).reshape(-1)
        return rng.permutation(len(self.rows)) if self.shuffle else np.arange(len(self.rows))

    def _batches(
        self, blocks: Sequence[Tensor], moves: Sequence[Tensor] | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        for step, images in enumerate(self._images(blocks)):
            if moves:
                images = _shift(images, *moves[step])
            pixels = images.float().sub_(self.mean).mul_(self.scale)
            labels = self.labels[blocks[step].to(self.device)]
            yield pixels.to(self.dtype, memory_format=torch.channels_last), labels

    def _images(self, blocks: Sequence[Tensor]) -> Iterator[Tensor]:
        """uint8 [B, C, H, W] on the device; from a file, to a GPU, the next is read meanwhile."""
        if self.resident is not None:
            for block in blocks:
                yield self.resident[block.to(self.device)]
            return

        def read(block: Tensor) -> Tensor:
            images = self.split.take(self.rows[block])
            return images.pin_memory() if self.device.type == "cuda" else images

        if not self.prefetch:
            yield from map(read, blocks)
            return
        with ThreadPoolExecutor(1) as reader:
            coming = reader.submit(read, blocks[0])
            for step in range(len(blocks)):
                images = coming.result()
                if step + 1 < len(blocks):
                    coming = reader.submit(read, blocks[step + 1])
                yield images.to(self.device, non_blocking=True)

    def _resident(self) -> Tensor | None:
        """The images on the device, or None if they are too large for it."""
        limit = IN_MEMORY
        if self.device.type == "cuda":
            limit = torch.cuda.mem_get_info(self.device)[0] // 3
        if len(self.rows) * self.split.nbytes // max(1, len(self.split)) > limit:
            return None
        if self.whole and self.device.type == "cpu":
            return self.split.images
        return torch.cat([self.split.take(b).to(self.device) for b in self.rows.split(1000)])


def class_batches(labels: np.ndarray, p: int, k: int, rng: np.random.Generator) -> np.ndarray:
    """Positions of the images of P x K batches, [steps, p * k]: k images of each of p classes.

    labels: [N]. An epoch has N // (p * k) steps, at least one; the classes of a step are drawn
    without replacement, and a class's images in turn, those of a class with fewer than k repeated.
    """
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    p = min(p, len(members))
    steps = max(1, len(labels) // (p * k))
    classes = np.argsort(rng.random((steps, len(members))), axis=1)[:, :p]
    order = np.empty((steps, p, k), dtype=np.int64)
    for label, own in enumerate(members):
        wanted = classes == label
        each = max(1, len(own) // k)  # groups of k that a shuffled class gives
        rounds = range(-(-int(wanted.sum()) // each))
        groups = [np.resize(rng.permutation(own), (each, k)) for _ in rounds]
        if groups:
            order[wanted] = np.concatenate(groups)[: wanted.sum()]
    return order.reshape(steps, p * k)


def _shift(images: Tensor, down: Tensor, right: Tensor, flip: Tensor) -> Tensor:
    """Each image [C, H, W] moved by some pixels (reflected at the edges), then mirrored if flip.

    The same as a random crop of the reflect-padded image, in one gather.
    """
    batch, channels, height, width = images.shape
    y = _reflect(torch.arange(height, device=images.device) + down[:, None], height)
    x = _reflect(torch.arange(width, device=images.device) + right[:, None], width)
    x = torch.where(flip[:, None] > 0, x.flip(1), x)
    pixels = (y[:, :, None] * width + x[:, None, :]).reshape(batch, 1, -1)
    moved = images.flatten(2).gather(2, pixels.expand(-1, channels, -1))
    return moved.view_as(images)


def _reflect(index: Tensor, size: int) -> Tensor:
    return (size - 1) - ((size - 1) - index.abs()).abs()
