"""What a data set's files must hold: labels in range, classes of the published size, no repeats."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from dlops.data.layouts import AGAIN
from dlops.settings import DlopsError

# So many images in a row that were there before are no photographs, but a download that stopped.
REPEATS = 16
_PROVEN: set[tuple[int, ...]] = set()


def stamp(path: Path) -> tuple[int, ...]:
    """What changes when the file does."""
    stat = path.stat()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def prove(path: Path, *checks: Callable[[], None]) -> None:
    """Runs the checks of a file's content, once a process while the file stays the same."""
    if stamp(path) not in _PROVEN:
        for check in checks:
            check()
        _PROVEN.add(stamp(path))


def check_labels(path: Path, labels: np.ndarray, classes: int, each: int, first: int = 0) -> None:
    """labels: [N], from `first`; DlopsError unless all are in range, `each` images a class."""
    wrong = np.flatnonzero((labels < first) | (labels >= first + classes))
    if len(wrong):
        raise DlopsError(
            f"{path}: image {wrong[0]} has the label {labels[wrong[0]]}, but labels are {first} to"
            f" {first + classes - 1}: {AGAIN}."
        )
    counts = np.bincount(labels - first, minlength=classes)
    wrong = np.flatnonzero(counts != each)
    if len(wrong):
        raise DlopsError(
            f"{path} has {counts[wrong[0]]} images of class {wrong[0] + first}, but must have"
            f" {each}: {AGAIN}."
        )


def check_images(path: Path, images: Iterable[np.ndarray]) -> None:
    """images: contiguous, one after the other; DlopsError where a block of them repeats others."""
    seen: set[int] = set()
    run = 0
    for number, image in enumerate(images):
        value = zlib.crc32(image.data)
        run = run + 1 if value in seen else 0
        seen.add(value)
        if run == REPEATS:
            raise DlopsError(
                f"{path}: images {number - run + 1} to {number}, and perhaps more, are the same as"
                f" others; the file is incomplete or damaged: {AGAIN}."
            )
