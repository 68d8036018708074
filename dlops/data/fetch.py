"""Data sets from their publishers: resumable, verified, safely unpacked under DLOPS_DATA."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import stat
import tarfile
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock
from platformdirs import user_cache_path

from dlops.settings import DATASETS, DataSetInfo, DlopsError

Progress = Callable[[int, int], None]  # (done, total): images decoded, or bytes fetched


def _info(name: str) -> DataSetInfo:
    if name not in DATASETS:
        raise DlopsError(f"There is no data set {name!r}, only {', '.join(DATASETS)}.")
    return DATASETS[name]


def root() -> Path:
    """DLOPS_DATA, else the user's cache directory."""
    chosen = os.environ.get("DLOPS_DATA")
    return Path(chosen).expanduser() if chosen else user_cache_path("dlops") / "data"


def where(name: str) -> Path | None:
    """The folder of a data set's unpacked files under DLOPS_DATA, or None."""
    folder = _info(name).folder
    return root() / folder if folder and (root() / folder).is_dir() else None


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


def fetch(name: str, *, progress: Progress | None = None) -> Path:
    """Downloads, verifies and unpacks a data set; returns its folder under DLOPS_DATA.

    A download that was cut off continues where it stopped. An archive whose checksum differs
    is set aside as `.bad`. Raises DlopsError.
    """
    info = _info(name)
    if not info.url:
        raise DlopsError(f"{info.title} come with scikit-learn: there is nothing to fetch.")
    with writable(root()) as folder, FileLock(folder / f".{name}.lock"):
        target = folder / info.folder
        if target.is_dir():
            return target
        archive = folder / info.url.rsplit("/", 1)[1]
        part = archive.with_name(archive.name + ".part")
        if not archive.exists():
            _download(info, part, progress)
            os.replace(part, archive)
        _verify(info, archive)
        scratch = Path(tempfile.mkdtemp(".tmp", f".{name}.", folder))
        try:
            _unpack(archive, scratch)
            if not (scratch / info.folder).is_dir():
                raise DlopsError(f"{archive} does not hold a folder {info.folder}.")
            os.replace(scratch / info.folder, target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        archive.unlink()
        return target


def fetch_file(info: DataSetInfo, folder: Path, *, progress: Progress | None = None) -> Path:
    """A single published file in `folder`, verified; downloaded if it is not there.

    A file whose checksum differs is set aside as `.bad`. Raises DlopsError.
    """
    target = folder / info.url.rsplit("/", 1)[1]
    if target.exists():
        _verify(info, target)
        return target
    with writable(folder), FileLock(folder / f".{info.name}.lock"):
        part = target.with_name(target.name + ".part")
        if not target.exists():
            _download(info, part, progress)
            _verify(info, part)
            os.replace(part, target)
        return target


def _download(info: DataSetInfo, part: Path, progress: Progress | None) -> None:
    """Continues `part` until it is whole; gives up when an attempt does not bring it further."""
    best = -1
    while True:
        start = part.stat().st_size if part.exists() else 0
        try:
            with _open(info.url, start) as response:
                start = start if response.status == 206 else 0
                total = start + int(response.headers.get("Content-Length") or info.size or 0)
                need_space(part.parent, 3 * total - start, f"{info.title} (archive and files)")
                with open(part, "ab" if start else "wb") as out:
                    while block := response.read(1 << 20):
                        out.write(block)
                        if progress:
                            progress(out.tell(), total)
                    if out.tell() >= total:
                        return
            reason = "the connection was cut"
        except urllib.error.HTTPError as error:
            if error.code == 416:  # nothing is left to send: the checksum decides
                return
            reason = f"the server answered {error.code} {error.reason}"
        except (OSError, http.client.HTTPException) as error:
            reason = str(getattr(error, "reason", error))
        have = part.stat().st_size if part.exists() else 0
        if have <= best or not have:
            raise DlopsError(
                f"{info.url} could not be fetched ({reason}; {have:,} bytes are kept):"
                " run the same command again to go on."
            )
        best = have


def _open(url: str, start: int) -> Any:
    _check_address(url)
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    return urllib.request.build_opener(_Redirects).open(request, timeout=60)


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str):
        _check_address(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_address(url: str) -> None:
    address = urllib.parse.urlsplit(url)
    if address.scheme == "http" and address.hostname in ("localhost", "127.0.0.1", "::1"):
        return
    if address.scheme != "https":
        raise DlopsError(f"{url} is refused: data come over https only.")


def _verify(info: DataSetInfo, archive: Path) -> None:
    kind, expected = info.checksum.split(":")  # md5, or the first digits of a sha256
    with open(archive, "rb") as file:
        hasher = partial(hashlib.new, kind, usedforsecurity=False)
        found = hashlib.file_digest(file, hasher).hexdigest()[: len(expected)]
    if found != expected:
        bad = archive.with_name(archive.name.removesuffix(".part") + ".bad")
        os.replace(archive, bad)
        raise DlopsError(
            f"{info.url} has the {kind.upper()} checksum {found}, but must have {expected}; the"
            f" file was set aside as {bad}: fetch again, and if that repeats, the server's file has"
            " changed."
        )


def _unpack(archive: Path, folder: Path) -> None:
    """Files and folders of a zip or tar archive; anything that leads outside is refused first."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as zipped:
            for entry in zipped.infolist():
                _check_member(archive, entry.filename, not stat.S_ISLNK(entry.external_attr >> 16))
            zipped.extractall(folder)
    else:
        with tarfile.open(archive) as tar:
            # In Python since 3.11.4; what leads outside, and links, are refused below anyway.
            tar.extraction_filter = getattr(tarfile, "data_filter", lambda member, path: member)
            for member in tar:
                _check_member(archive, member.name, member.isfile() or member.isdir())
                tar.extract(member, folder)


def _check_member(archive: Path, name: str, plain: bool) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    if not plain or path.is_absolute() or ".." in path.parts or ":" in name:
        raise DlopsError(f"{archive} holds {name!r}, which is a link or leads outside: refused.")
