"""Tiny ImageNet decoded, once: a folder with a manifest that proves what lies in it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from platformdirs import user_cache_path

from dlops.data import decoder, layouts
from dlops.data.layouts import COUNTS, Files, Progress, damaged, root, writable
from dlops.settings import DATASETS, DlopsError

# So many images in a row that were there before are no photographs, but a download that stopped.
REPEATS = 16


def decoded(folder: Path, progress: Progress | None) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, 3, 64, 64], mapped, and labels int64 [N]: training, then validation.

    They lie beside the data, or with the user's other caches where that folder takes no file. A
    cache that is not what was once decoded is set aside, with a warning, and made again.
    """
    title = f"tiny-imagenet-{DATASETS['tiny-imagenet'].checksum.removeprefix('md5:')[:8]}"
    places = [root() / "cache" / title, user_cache_path("dlops") / "data" / "cache" / title]
    cache = next((place for place in places if not _damage(place)), None)
    if cache is None:
        cache = places[0] if _takes_files(places[0].parent) else places[1]
        with writable(cache.parent), FileLock(f"{cache}.lock"):
            if damage := _damage(cache):  # another process may have made it meanwhile
                _set_aside(cache, damage)
                _make(folder, cache, progress)
    # Copy on write: a caller's changes do not reach the file.
    images = np.asarray(np.load(cache / "images.npy", mmap_mode="c"))
    return images, np.load(cache / "labels.npy")


def _takes_files(folder: Path) -> bool:
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        return True
    return False


def _set_aside(cache: Path, damage: str) -> None:
    if cache.is_dir():
        aside = cache.with_name(f"{cache.name}.bad")
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(cache, aside)
        warnings.warn(
            f"The cache {cache} is damaged ({damage}): it was set aside as {aside.name}, and the"
            " images are decoded again.",
            stacklevel=2,
        )


def _damage(cache: Path) -> str:
    """What is wrong with a cache, or nothing."""
    try:
        told = json.loads((cache / "manifest.json").read_text(encoding="utf-8"))
        found = _manifest(cache)
    except (OSError, ValueError) as error:
        return str(error)
    wrong = [key for key in found if not isinstance(told, dict) or told.get(key) != found[key]]
    return f"its {wrong[0]} is not what the manifest says" if wrong else ""


def _manifest(cache: Path) -> dict[str, Any]:
    """What proves a cache; ValueError if it holds no images of this size and number."""
    images = np.load(cache / "images.npy", mmap_mode="r")
    if images.shape != _shape() or images.dtype != np.uint8:
        raise ValueError(f"it holds {images.dtype} {images.shape}")
    files = [cache / "images.npy", cache / "labels.npy"]
    return {
        "source": DATASETS["tiny-imagenet"].checksum,
        "count": len(images),
        "shape": list(images.shape),
        "dtype": "uint8",
        "sha256": {file.name: _digest(file, file.stat().st_mtime_ns) for file in files},
    }


@lru_cache
def _digest(path: Path, changed: int) -> str:
    """SHA-256 of a file, once a process while it stays the same: 1.2 s for the whole cache."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _shape() -> tuple[int, ...]:
    return (sum(COUNTS["tiny-imagenet"]), 3, 64, 64)


def _make(folder: Path, cache: Path, progress: Progress | None) -> None:
    """A cache appears whole, by one rename; what a killed process left is cleared away."""
    for left_over in cache.parent.glob(f"{cache.name}.*.tmp"):
        shutil.rmtree(left_over)
    with tempfile.TemporaryDirectory(".tmp", f"{cache.name}.", cache.parent) as place:
        scratch = Path(place, "whole")
        scratch.mkdir()
        training, validation = layouts.image_files(folder)
        _decode([*training, *validation], scratch, progress)
        check_images(folder, np.load(scratch / "images.npy", mmap_mode="r"))
        manifest = json.dumps(_manifest(scratch), indent=1)
        (scratch / "manifest.json").write_text(manifest, encoding="utf-8")
        os.replace(scratch, cache)


def _decode(files: Files, cache: Path, progress: Progress | None) -> None:
    """Writes images.npy and labels.npy, with all cores."""
    layouts.need_space(cache, int(np.prod(_shape())), "Decoded Tiny ImageNet")
    np.save(cache / "labels.npy", np.array([label for _, label in files], dtype=np.int64))

    def decode(block: Files) -> bytes:
        command = [sys.executable, "-P", decoder.__file__]
        paths = os.fsencode("\0".join(path for path, _ in block))
        done = subprocess.run(command, input=paths, capture_output=True)
        if done.returncode:
            raise DlopsError(done.stderr.decode(errors="replace").strip().split("\n")[-1])
        return done.stdout

    blocks = [files[first : first + 2500] for first in range(0, len(files), 2500)]
    with open(cache / "images.npy", "wb") as out, ThreadPoolExecutor(os.cpu_count()) as pool:
        header = {"descr": "|u1", "fortran_order": False, "shape": _shape()}
        np.lib.format.write_array_header_1_0(out, header)
        for number, pixels in enumerate(pool.map(decode, blocks), 1):
            out.write(pixels)
            if progress:
                progress(min(2500 * number, len(files)), len(files))


def check_images(path: Path, images: Iterable[np.ndarray]) -> None:
    """images: contiguous, one after the other; DlopsError where a block of them repeats others."""
    seen: set[int] = set()
    run = 0
    for number, image in enumerate(images):
        value = zlib.crc32(image.data)
        run = run + 1 if value in seen else 0
        seen.add(value)
        if run == REPEATS:
            raise damaged(
                f"{path}: images {number - run + 1} to {number}, and perhaps more, are the same as"
                " others; the file is incomplete or damaged"
            )
