"""Splits of images with their labels, and batches of them made on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from dlops.settings import DlopsError

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


class Batches:
    """Batches of a split, cropped, flipped and normalised on the device.

    Order and augmentation of an epoch derive from (seed, epoch) alone; its incomplete last batch
    is left out, unless it is the only one. groups: (P, K), for batches of K images of each of P
    classes instead of batch_size (a class with fewer repeats its own). indices: the positions of
    the split to use.
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
        groups: tuple[int, int] | None = None,
        indices: Tensor | None = None,
    ) -> None:
        self.split, self.seed, self.augment, self.groups = split, seed, augment, groups
        self.device = torch.device(device)
        # A CPU computes meanwhile, and a second thread that does makes it a tenth slower.
        self.prefetch = self.device.type != "cpu"
        self.rows = torch.arange(len(split)) if indices is None else indices.cpu()
        self.labels = split.labels[self.rows].to(self.device)
        self.batch_size = batch_size
        if groups:
            self.batch_size = groups[0] * groups[1]
            _enough(split.labels[self.rows].numpy(), groups[0])
        self.mean = torch.tensor(mean, device=self.device)[:, None, None] * 255
        self.scale = 1 / (torch.tensor(std, device=self.device)[:, None, None] * 255)
        self.resident: Tensor | None = None
        cuda = self.device.type == "cuda"
        limit = torch.cuda.mem_get_info(self.device)[0] // 3 if cuda else IN_MEMORY
        if len(self.rows) * split.nbytes // max(1, len(split)) <= limit:
            if indices is None and self.device.type == "cpu":
                self.resident = split.images
            else:
                parts = [split.take(block).to(self.device) for block in self.rows.split(1000)]
                self.resident = torch.cat(parts)

    def __len__(self) -> int:
        """Steps an epoch."""
        return max(1, len(self.rows) // self.batch_size)

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images float32 [B, C, H, W] (channels last) and labels int64 [B], on the device."""
        rng = np.random.default_rng([self.seed, epoch])
        if self.groups:
            order = class_batches(self.labels.cpu().numpy(), *self.groups, rng).reshape(-1)
        else:
            order = rng.permutation(len(self.rows))
        blocks = torch.from_numpy(order).split(self.batch_size)[: len(self)]
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

    def _batches(
        self, blocks: Sequence[Tensor], moves: Sequence[Tensor] | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        for step, images in enumerate(self._images(blocks)):
            if moves:
                images = _shift(images, *moves[step])
            pixels = images.float().sub_(self.mean).mul_(self.scale)
            labels = self.labels[blocks[step].to(self.device)]
            yield pixels.to(torch.float32, memory_format=torch.channels_last), labels

    def _images(self, blocks: Sequence[Tensor]) -> Iterator[Tensor]:
        """uint8 [B, C, H, W] on the device; from a file, to a GPU, the next is read meanwhile."""

        def read(block: Tensor) -> Tensor:
            images = self.split.take(self.rows[block])
            return images.pin_memory() if self.device.type == "cuda" else images

        if self.resident is not None:
            yield from (self.resident[block.to(self.device)] for block in blocks)
        elif not self.prefetch:
            yield from map(read, blocks)
        else:
            with ThreadPoolExecutor(1) as reader:
                coming = reader.submit(read, blocks[0])
                for following in [*blocks[1:], None]:
                    images = coming.result()
                    if following is not None:
                        coming = reader.submit(read, following)
                    yield images.to(self.device, non_blocking=True)


def _enough(labels: np.ndarray, wanted: int) -> None:
    """DlopsError unless there are so many classes, and two images of each, to make pairs of."""
    classes, counts = np.unique(labels, return_counts=True)
    if wanted > len(classes):
        raise DlopsError(
            f"classes_per_batch is {wanted}, but the training images are of only {len(classes)}"
            f" classes: set it to {len(classes)} or less, or raise classes."
        )
    if counts.min() < 2:
        raise DlopsError(
            "A triplet needs two labelled training images of a class, but class"
            f" {classes[counts.argmin()]} has one beside those held out for validation: raise"
            " per_class (3 or more) or label_fraction."
        )


def class_batches(labels: np.ndarray, p: int, k: int, rng: np.random.Generator) -> np.ndarray:
    """Positions of the images of P x K batches, [steps, p * k]: k images of each of p classes.

    labels: [N]. An epoch has N // (p * k) steps, at least one; the classes of a step are drawn
    without replacement, and a class's images in turn, those of a class with fewer than k repeated.
    A class of one image has no positive pair and is left out; without any other, there is no step.
    """
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    members = [own for own in members if len(own) > 1]
    if not members:
        return np.empty((0, p * k), dtype=np.int64)
    p = min(p, len(members))
    steps = max(1, len(labels) // (p * k))
    classes = np.argsort(rng.random((steps, len(members))), axis=1)[:, :p]
    order = np.empty((steps, p, k), dtype=np.int64)
    for label, own in enumerate(members):
        wanted = classes == label
        each = max(1, len(own) // k)  # groups of k that a shuffled class gives
        rounds = -(-int(wanted.sum()) // each)
        groups = [np.resize(rng.permutation(own), (each, k)) for _ in range(rounds)]
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
