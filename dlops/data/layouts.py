"""Where data sets lie, and what their official layouts promise; neither NumPy nor torch."""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from pathlib import Path

from platformdirs import user_cache_path

from dlops.settings import DATASETS, DlopsError

Progress = Callable[[int, int], None]  # (done, total): images decoded, or bytes fetched
Files = list[tuple[str, int]]  # image files with their labels

# Images that the publishers' archives hold: training, test, unlabelled; of each class equally many.
COUNTS = {
    "tiny-imagenet": (100_000, 10_000, 0),
    "cifar100": (50_000, 10_000, 0),
    "stl10": (5_000, 8_000, 100_000),
}
CIFAR_RECORD, STL_IMAGE = 2 + 3 * 32 * 32, 3 * 96 * 96  # bytes


def root() -> Path:
    """DLOPS_DATA, else the user's cache directory."""
    chosen = os.environ.get("DLOPS_DATA")
    return Path(chosen).expanduser().absolute() if chosen else user_cache_path("dlops") / "data"


@contextmanager
def writable(folder: Path) -> Iterator[Path]:
    """The folder, made if need be; an operating system's refusal becomes one sentence."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
    except OSError as error:
        raise DlopsError(
            f"{folder} cannot be written ({error.strerror or error}): set DLOPS_DATA to a folder"
            " that can."
        ) from error


def need_space(folder: Path, size: int, what: str) -> None:
    """DlopsError unless `folder`'s disk has `size` bytes free for `what`."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise DlopsError(
            f"{what} needs {size / 1e9:.1f} GB, but {folder} has only {free / 1e9:.1f} GB free:"
            " make room, or set DLOPS_DATA to a larger disk."
        )


@contextmanager
def readable() -> Iterator[None]:
    """What cannot be read becomes one sentence, with its file."""
    try:
        yield
    except FileNotFoundError as error:
        raise damaged(f"{error.filename} is missing") from None
    except OSError as error:
        raise DlopsError(f"{error.filename} cannot be read ({error.strerror}).") from None


def damaged(what: str) -> DlopsError:
    """What is not as published, as an error that says what helps."""
    return DlopsError(f"{what}: unpack the archive again.")


# What is here ---------------------------------------------------------------------------------


def present(name: str) -> tuple[bool, str]:
    """Whether a data set can be read, and its folder, or the sentence that says what is missing.

    Judged by what reads it: names, files and their sizes, but not the pixels.
    """
    if not DATASETS[name].url:
        return True, "comes with scikit-learn"
    try:
        return True, str(whole(name, locate(name)))
    except DlopsError as error:
        return False, str(error)


@readable()
def locate(name: str) -> Path:
    """The folder of a data set under DLOPS_DATA, also one nested in itself; or DlopsError."""
    info = DATASETS[name]
    outer = root() / info.folder
    inner = outer / info.folder
    folder = inner if inner.is_dir() else outer
    if folder.is_dir() and any(folder.iterdir()):
        return folder
    raise DlopsError(
        f"{info.title} is not at {outer}: fetch it with `dlops data fetch {name}`, or set"
        f" DLOPS_DATA to the folder that holds {info.folder}."
    )


@readable()
def whole(name: str, folder: Path) -> Path:
    """The folder, if it holds all that is published; else DlopsError names what is wrong."""
    train, test, unlabelled = COUNTS[name]
    sizes: dict[str, int] = {}
    if name == "tiny-imagenet":
        image_files(folder)
    elif name == "cifar100":
        cifar_names(folder)
        sizes = {"train.bin": train * CIFAR_RECORD, "test.bin": test * CIFAR_RECORD}
    else:
        stl_names(folder)
        sizes = {"train_X.bin": train * STL_IMAGE, "train_y.bin": train}
        sizes |= {"test_X.bin": test * STL_IMAGE, "test_y.bin": test}
        if (folder / "unlabeled_X.bin").exists():
            sizes["unlabeled_X.bin"] = unlabelled * STL_IMAGE
    for file, size in sizes.items():
        path = folder / file
        found = path.stat().st_size if path.exists() else 0
        if found != size:
            raise damaged(f"{path} has {found:,} bytes, but must have {size:,}")
    return folder


# Text files -----------------------------------------------------------------------------------


def lines(path: Path) -> Iterator[tuple[str, str]]:
    """The lines of a UTF-8 file that are not empty, each after its place, "FILE, line 3"."""
    content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    for number, line in enumerate(content.split(b"\n"), 1):
        place = f"{path}, line {number}"
        try:
            if line.strip():
                yield place, line.decode().rstrip("\r")
        except UnicodeDecodeError:
            raise damaged(f"{place}: not UTF-8") from None


def _names(path: Path, count: int) -> list[str]:
    """One name of a class a line, all different."""
    found: list[str] = []
    for place, line in lines(path):
        if line in found:
            raise damaged(f"{place}: {line!r} stands there twice")
        found.append(line)
    if len(found) != count:
        raise damaged(f"{path} names {len(found)} classes, but must name {count}")
    return found


def cifar_names(folder: Path) -> dict[str, list[str]]:
    """Of the coarse and of the fine classes, in the order of a record's labels."""
    fine = DATASETS["cifar100"].num_classes
    counts = {"coarse": fine // 5, "fine": fine}
    return {kind: _names(folder / f"{kind}_label_names.txt", n) for kind, n in counts.items()}


def stl_names(folder: Path) -> list[str]:
    return _names(folder / "class_names.txt", DATASETS["stl10"].num_classes)


def words(folder: Path) -> dict[str, str]:
    """Tiny ImageNet's classes in the order of their labels: WordNet id and first word."""
    meanings: dict[str, str] = {}
    for place, line in lines(folder / "words.txt"):
        wnid, tab, meaning = line.partition("\t")
        if not tab:
            raise damaged(f"{place}: {line!r} has no tab")
        meanings[wnid] = meaning.split(",")[0]
    wnids = _names(folder / "wnids.txt", DATASETS["tiny-imagenet"].num_classes)
    for wnid in wnids:
        if not re.fullmatch(r"n\d+", wnid) or wnid not in meanings:
            raise damaged(f"{folder / 'wnids.txt'}: words.txt does not know {wnid!r}")
    return {wnid: meanings[wnid] for wnid in wnids}


# Tiny ImageNet's images -----------------------------------------------------------------------


def image_files(folder: Path) -> tuple[Files, Files]:
    """Training and validation images with their labels, in the official order.

    Read are the official layout and what tutorials make of it: train/<wnid>/ and val/<wnid>/
    with the images in them or in a folder images below. Hidden files and others than JPEG do
    not count. Raises DlopsError with file and line where labels or numbers are not as published.
    """
    label_of = {wnid: label for label, wnid in enumerate(words(folder))}
    train, test, _ = COUNTS["tiny-imagenet"]
    training = [(path, x) for w, x in label_of.items() for path in _jpegs(folder / "train" / w)]
    validation = _validation(folder / "val", label_of)
    for part, files, count in (("train", training, train), ("val", validation, test)):
        _only(folder / part, {*label_of, "images"})
        found, each = Counter(label for _, label in files), count // len(label_of)
        for wnid, label in label_of.items():
            if found[label] != each:
                raise damaged(
                    f"{folder / part} holds {found[label]} images of {wnid}, but must hold {each}"
                )
    return training, validation


def _validation(folder: Path, label_of: dict[str, int]) -> Files:
    """Labels from the annotations, which must agree with the folders, or from these alone."""
    lies_in = {os.path.basename(path): (path, "") for path in _jpegs(folder)}
    for wnid in label_of:
        lies_in |= {os.path.basename(path): (path, wnid) for path in _jpegs(folder / wnid)}
    annotations = folder / "val_annotations.txt"
    if not annotations.exists() and all(wnid for _, wnid in lies_in.values()):
        official = sorted(lies_in, key=lambda name: (len(name), name))  # val_9 before val_10
        return [(path, label_of[wnid]) for path, wnid in map(lies_in.__getitem__, official)]
    files: dict[str, tuple[str, int]] = {}
    for place, line in lines(annotations):
        name, tab, rest = line.partition("\t")
        wnid = rest.partition("\t")[0]
        path, own = lies_in.get(name, ("", ""))
        for wrong, what in (
            (not tab, f"{line!r} has no tab"),
            (wnid not in label_of, f"there is no class {wnid!r}"),
            (not path, f"there is no image {name!r}"),
            (name in files, f"{name} stands there twice"),
            (own not in ("", wnid), f"{name} is of class {wnid}, but lies in {own}"),
        ):
            if wrong:
                raise damaged(f"{place}: {what}")
        files[name] = path, label_of[wnid]
    if left_out := lies_in.keys() - files.keys():
        raise damaged(f"{annotations} has no line for {min(left_out)}")
    return list(files.values())


def _jpegs(folder: Path) -> list[str]:
    """JPEG files of a folder and of the folder images in it, by name."""
    found: dict[str, str] = {}
    for place in filter(os.path.isdir, (f"{folder}/images", str(folder))):
        for name in os.listdir(place):
            if name.lower().endswith((".jpeg", ".jpg")) and not name.startswith("."):
                found[name] = f"{place}/{name}"
    return [found[name] for name in sorted(found)]


def _only(folder: Path, known: Container[str]) -> None:
    """DlopsError if there is a folder of an unknown class; what systems leave does not count."""
    for entry in os.scandir(folder) if folder.is_dir() else ():
        junk = entry.name.startswith((".", "__"))
        if entry.is_dir() and not junk and entry.name not in known:
            raise damaged(f"{entry.path} is of no class in wnids.txt")
