"""Tiny ImageNet decoded, once: a folder with a manifest that proves what lies in it."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from dlops.data.checks import check_images, stamp
from dlops.data.layouts import COUNTS, Files, Progress, caches, image_files, need_space, writable
from dlops.settings import DATASETS, DlopsError

_DIGESTS: dict[tuple[int, ...], str] = {}


def decoded(folder: Path, progress: Progress | None) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, 3, 64, 64], mapped, and labels int64 [N]: training, then validation.

    A cache that is not what was once decoded is set aside, with a warning, and made again.
    """
    info = DATASETS["tiny-imagenet"]
    title = f"{info.name}-{info.checksum.removeprefix('md5:')[:8]}"
    for place in caches():
        if (place / title).is_dir() and not _damage(place / title):
            return _opened(place / title)
    cache = _place() / title
    with writable(cache.parent), FileLock(f"{cache}.lock"):
        if cache.is_dir() and (damage := _damage(cache)):
            aside = cache.with_name(f"{title}.bad")
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(cache, aside)
            warnings.warn(
                f"The cache {cache} is damaged ({damage}): it was set aside as {aside.name}, and"
                " the images are decoded again.",
                stacklevel=2,
            )
        if not cache.is_dir():
            _make(folder, cache, progress)
    return _opened(cache)


def _opened(cache: Path) -> tuple[np.ndarray, np.ndarray]:
    """Copy on write: a caller's changes do not reach the file."""
    images = np.asarray(np.load(cache / "images.npy", mmap_mode="c"))
    return images, np.load(cache / "labels.npy")


def _place() -> Path:
    """The first folder for caches that takes a file; the first of all, if none does."""
    for place in caches():
        try:
            place.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=place):
                return place
        except OSError:
            continue
    return caches()[0]


def _shape() -> tuple[int, ...]:
    return (sum(COUNTS["tiny-imagenet"]), 3, 64, 64)


def _manifest(cache: Path) -> dict[str, Any]:
    images = np.load(cache / "images.npy", mmap_mode="r")
    return {
        "source": DATASETS["tiny-imagenet"].checksum,
        "count": len(images),
        "shape": list(images.shape),
        "dtype": str(images.dtype),
        "sha256": {name: _digest(cache / name) for name in ("images.npy", "labels.npy")},
    }


def _digest(path: Path) -> str:
    """SHA-256 of the file, once a process while it stays the same: 1.2 s for the whole cache."""
    key = stamp(path)
    if key not in _DIGESTS:
        with open(path, "rb") as file:
            _DIGESTS[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _DIGESTS[key]


def _damage(cache: Path) -> str:
    """What is wrong with a cache, or nothing."""
    try:
        told = json.loads((cache / "manifest.json").read_text(encoding="utf-8"))
        found = _manifest(cache)
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError) as error:
        return str(error)
    if found["shape"] != list(_shape()) or found["dtype"] != "uint8":
        return f"it holds {found['dtype']} {found['shape']}"
    wrong = [key for key in found if not isinstance(told, dict) or told.get(key) != found[key]]
    return f"its {wrong[0]} is not what the manifest says" if wrong else ""


def _make(folder: Path, cache: Path, progress: Progress | None) -> None:
    """A cache appears whole, by one rename; what a killed process left is cleared away."""
    for left_over in cache.parent.glob(f"{cache.name}.*.tmp"):
        shutil.rmtree(left_over)
    scratch = Path(tempfile.mkdtemp(".tmp", f"{cache.name}.", cache.parent))
    try:
        training, validation = image_files(folder)
        _decode([*training, *validation], scratch, progress)
        check_images(folder, np.load(scratch / "images.npy", mmap_mode="r"))
        manifest = json.dumps(_manifest(scratch), indent=1)
        (scratch / "manifest.json").write_text(manifest, encoding="utf-8")
        os.replace(scratch, cache)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _decode(files: Files, cache: Path, progress: Progress | None) -> None:
    """Writes images.npy and labels.npy."""
    shape = _shape()
    need_space(cache, int(np.prod(shape)), "Decoded Tiny ImageNet")
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
            command = [sys.executable, "-P", "-c", program]
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
