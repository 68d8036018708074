"""Files that are whole or not there, also after a power cut, and what proves their content."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import IO, Any


class Damaged(ValueError):
    """What lies on disk is not what was written there; the message says how that shows."""


def digest(content: bytes | memoryview) -> str:
    """SHA-256, in hex."""
    return hashlib.sha256(content).hexdigest()


def json_digest(value: Any) -> str:
    """The digest of a JSON value, however its text is laid out."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return digest(text.encode())


def sync_folder(folder: Path) -> None:
    """The folder's names, too, are on the disk when this returns."""
    if os.name == "nt":  # where a folder cannot be opened
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


@contextmanager
def written(path: Path) -> Iterator[IO[bytes]]:
    """A new file that is on the disk when the block ends; for a folder that is not yet seen."""
    with open(path, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def replaced(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` when the block ends well: whole, and on the disk."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with written(part) as file:
            yield file
        os.replace(part, path)
        sync_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all."""
    text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as file:
        file.write(text.encode())


def exchange(new: Path, place: Path, old: Path) -> None:
    """The folder `new`, written to disk, becomes `place` by one rename.

    What was there is `old` until then, and gone afterwards: who finds no `place` looks there.
    """
    sync_folder(new)
    if place.exists():
        remove(old)
        os.rename(place, old)
    os.rename(new, place)
    sync_folder(place.parent)
    with suppress(OSError):  # the new one counts, with or without the old one beside it
        remove(old)


def remove(folder: Path) -> None:
    """Remove a folder; without its record, which goes first, it is no result any more."""
    if folder.exists():
        (folder / "result.json").unlink(missing_ok=True)
        shutil.rmtree(folder)


def set_aside(path: Path, beside: Path) -> Path:
    """Move what is damaged to `beside`.damaged-N, with the first N that is free; returns where."""
    names = (beside.with_name(f"{beside.name}.damaged-{n}{path.suffix}") for n in count(1))
    place = next(name for name in names if not os.path.lexists(name))
    os.rename(path, place)
    return place
