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

from dlops.settings import DATASETS, DataSetInfo, DlopsError

Progress = Callable[[int, int], None]  # (done, total): images decoded, or bytes fetched
Files = list[tuple[str, int]]  # image files with their labels

# Images that the publishers' archives hold: training, test, unlabelled; of each class equally many.
COUNTS = {
    "tiny-imagenet": (100_000, 10_000, 0),
    "cifar100": (50_000, 10_000, 0),
    "stl10": (5_000, 8_000, 100_000),
}
CIFAR_RECORD, STL_IMAGE = 2 + 3 * 32 * 32, 3 * 96 * 96  # bytes
AGAIN = "unpack the archive again"


def info_of(name: str) -> DataSetInfo:
    if name not in DATASETS:
        raise DlopsError(f"There is no data set {name!r}, only {', '.join(DATASETS)}.")
    return DATASETS[name]


def root() -> Path:
    """DLOPS_DATA, else the user's cache directory."""
    chosen = os.environ.get("DLOPS_DATA")
    return Path(chosen).expanduser().absolute() if chosen else user_cache_path("dlops") / "data"


def caches() -> list[Path]:
    """Where decoded images may lie: beside the data, else with the user's other caches."""
    return list(dict.fromkeys([root() / "cache", user_cache_path("dlops") / "data" / "cache"]))


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


# What is here ---------------------------------------------------------------------------------


def present(name: str) -> tuple[bool, str]:
    """Whether a data set can be read, and its folder, or the sentence that says what is missing.

    Judged by what reads it: names, files and their sizes, but not the pixels.
    """
    if not info_of(name).url:
        return True, "comes with scikit-learn"
    try:
        return True, str(whole(name, locate(name)))
    except DlopsError as error:
        return False, str(error)


def locate(name: str) -> Path:
    """The folder of a data set under DLOPS_DATA, also one nested in itself; or DlopsError."""
    info = info_of(name)
    outer = root() / info.folder
    mark = {"tiny-imagenet": "wnids.txt", "cifar100": "train.bin", "stl10": "train_X.bin"}[name]
    for folder in (outer, outer / info.folder):
        if (folder / mark).exists():
            return folder
    if outer.is_dir() and any(outer.iterdir()):
        raise DlopsError(f"{outer / mark} is missing: {AGAIN}.")
    raise DlopsError(
        f"{info.title} is not at {outer}: fetch it with `dlops data fetch {name}`, or set"
        f" DLOPS_DATA to the folder that holds {info.folder}."
    )


def whole(name: str, folder: Path) -> Path:
    """The folder, if it holds all that is published; else DlopsError names what is wrong."""
    if name == "tiny-imagenet":
        image_files(folder)
        return folder
    train, test, unlabelled = COUNTS[name]
    if name == "cifar100":
        for labels in ("fine", "coarse"):
            cifar_names(folder, labels)
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
            raise DlopsError(f"{path} has {found:,} bytes, but must have {size:,}: {AGAIN}.")
    return folder


# Text files -----------------------------------------------------------------------------------


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file that are not empty, and their numbers from 1."""
    try:
        content = path.read_bytes()
        text = content.decode("utf-8-sig")
    except FileNotFoundError:
        raise DlopsError(f"{path} is missing: {AGAIN}.") from None
    except OSError as error:
        raise DlopsError(f"{path} cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise DlopsError(f"{path}, line {number}: not UTF-8: {AGAIN}.") from None
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line.rstrip("\r")


def _names(path: Path, count: int) -> list[str]:
    """One name of a class a line, all different."""
    found: list[str] = []
    for number, line in lines(path):
        if line in found:
            raise DlopsError(f"{path}, line {number}: {line!r} stands there twice: {AGAIN}.")
        found.append(line)
    if len(found) != count:
        raise DlopsError(f"{path} names {len(found)} classes, but must name {count}: {AGAIN}.")
    return found


def cifar_names(folder: Path, labels: str) -> list[str]:
    """labels: "fine", or "coarse", of which each holds five of the fine classes."""
    classes = DATASETS["cifar100"].num_classes
    return _names(folder / f"{labels}_label_names.txt", classes // (5 if labels == "coarse" else 1))


def stl_names(folder: Path) -> list[str]:
    return _names(folder / "class_names.txt", DATASETS["stl10"].num_classes)


def words(folder: Path) -> dict[str, str]:
    """Tiny ImageNet's classes in the order of their labels: WordNet id and first word."""
    wnids = _names(folder / "wnids.txt", DATASETS["tiny-imagenet"].num_classes)
    meanings: dict[str, str] = {}
    for number, line in lines(folder / "words.txt"):
        wnid, tab, meaning = line.partition("\t")
        if not tab:
            raise DlopsError(
                f"{folder / 'words.txt'}, line {number}: {line!r} has no tab: {AGAIN}."
            )
        meanings[wnid] = meaning.split(",")[0]
    for wnid in wnids:
        if not re.fullmatch(r"n\d+", wnid) or wnid not in meanings:
            raise DlopsError(f"{folder / 'wnids.txt'}: words.txt does not know {wnid!r}: {AGAIN}.")
    return {wnid: meanings[wnid] for wnid in wnids}


# Tiny ImageNet's images -----------------------------------------------------------------------


def image_files(folder: Path) -> tuple[Files, Files]:
    """Training and validation images with their labels, in the official order.

    Read are the official layout and what tutorials make of it: train/<wnid>/ and val/<wnid>/
    with the images in them or in a folder images below. Hidden files and others than JPEG do
    not count. Raises DlopsError with file and line where labels or numbers are not as published.
    """
    classes = {wnid: label for label, wnid in enumerate(words(folder))}
    train, test, _ = COUNTS["tiny-imagenet"]
    training: Files = []
    for wnid, label in classes.items():
        training += [(path, label) for path in _jpegs(folder / "train" / wnid)]
    _only(folder / "train", classes.keys())
    validation = _validation(folder / "val", classes)
    for part, files, count in (("train", training, train), ("val", validation, test)):
        found, each = Counter(label for _, label in files), count // len(classes)
        for wnid, label in classes.items():
            if found[label] != each:
                raise DlopsError(
                    f"{folder / part} holds {found[label]} images of {wnid}, but must hold {each}:"
                    f" {AGAIN}."
                )
    return training, validation


def _validation(folder: Path, classes: dict[str, int]) -> Files:
    """Labels from the annotations, which must agree with the folders, or from these alone."""
    place = {os.path.basename(path): (path, "") for path in _jpegs(folder)}
    for wnid in classes:
        for path in _jpegs(folder / wnid):
            name = os.path.basename(path)
            if place.get(name, ("", ""))[1]:
                raise DlopsError(f"{path} also lies in {place[name][1]}: {AGAIN}.")
            place[name] = path, wnid
    _only(folder, {*classes, "images"})
    annotations = folder / "val_annotations.txt"
    if not annotations.exists() and all(wnid for _, wnid in place.values()):
        official = sorted(place, key=lambda name: (len(name), name))  # val_9 before val_10
        return [(place[name][0], classes[place[name][1]]) for name in official]
    files: dict[str, tuple[str, int]] = {}
    for number, line in lines(annotations):
        name, tab, rest = line.partition("\t")
        wnid = rest.partition("\t")[0]
        path, own = place.get(name, ("", ""))
        for wrong, what in (
            (not tab, f"{line!r} has no tab"),
            (wnid not in classes, f"there is no class {wnid!r}"),
            (not path, f"there is no image {name!r}"),
            (name in files, f"{name} stands there twice"),
            (own not in ("", wnid), f"{name} is of class {wnid}, but lies in {own}"),
        ):
            if wrong:
                raise DlopsError(f"{annotations}, line {number}: {what}: {AGAIN}.")
        files[name] = path, classes[wnid]
    for name in sorted(place.keys() - files.keys()):
        raise DlopsError(f"{annotations} has no line for {name}: {AGAIN}.")
    return list(files.values())


def _jpegs(folder: Path) -> list[str]:
    """JPEG files of a folder and of the folder images in it, by name."""
    found: dict[str, str] = {}
    for place in (f"{folder}/images", str(folder)):
        try:
            names = os.listdir(place)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise DlopsError(f"{place} cannot be read ({error.strerror}).") from None
        for name in names:
            if name.lower().endswith((".jpeg", ".jpg")) and not name.startswith("."):
                found[name] = f"{place}/{name}"
    return [found[name] for name in sorted(found)]


def _only(folder: Path, known: Container[str]) -> None:
    """DlopsError if there is a folder of an unknown class; what systems leave does not count."""
    for entry in os.scandir(folder) if folder.is_dir() else ():
        junk = entry.name.startswith((".", "__"))
        if entry.is_dir() and not junk and entry.name not in known:
            raise DlopsError(f"{entry.path} is of no class in wnids.txt: {AGAIN}.")
