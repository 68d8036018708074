"""Data sets from their publishers: resumable, verified, safely unpacked under DLOPS_DATA."""

from __future__ import annotations

import gzip
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
import zlib
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock

from dlops.data.layouts import Progress, locate, need_space, root, whole, writable
from dlops.settings import DATASETS, DataSetInfo, DlopsError

# The largest archive, STL-10's, holds 3 GB; the one of most files, Tiny ImageNet's, 120,609.
LARGEST, MOST = 8 * 10**9, 500_000
DAMAGED = (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError)


def fetch(name: str, *, progress: Progress | None = None) -> Path:
    """Downloads, verifies and unpacks a data set; returns its folder under DLOPS_DATA.

    What is there already is read, and never changed: the folder, or the user's own archive. A
    download that was cut off continues where it stopped; one whose checksum differs is set aside
    as `.bad`. Raises DlopsError.
    """
    if name not in DATASETS:
        raise DlopsError(f"There is no data set {name!r}, only {', '.join(DATASETS)}.")
    info = DATASETS[name]
    if not info.url:
        raise DlopsError(f"{info.title} come with scikit-learn: there is nothing to fetch.")
    target = root() / info.folder
    if not _filled(target):
        with writable(root()) as folder, FileLock(folder / f".{name}.lock"):
            if not _filled(target):  # by another process meanwhile
                _fill(target, info, progress)
    try:
        return whole(name, locate(name))
    except DlopsError as error:
        raise DlopsError(f"{error} (Or move {target} away, and fetch it again.)") from None


def _filled(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _fill(target: Path, info: DataSetInfo, progress: Progress | None) -> None:
    folder = target.parent
    for left_over in folder.glob(f".{info.name}.*.tmp"):  # of a killed process
        shutil.rmtree(left_over)
    archive = _had(info, folder, progress)
    with tempfile.TemporaryDirectory(".tmp", f".{info.name}.", folder) as scratch:
        _unpack(archive, scratch)
        unpacked = Path(scratch, info.folder)
        if not unpacked.is_dir():
            raise DlopsError(f"{archive} does not hold a folder {info.folder}.")
        os.replace(whole(info.name, unpacked), target)
    if archive.suffix == ".part":
        archive.unlink()


def fetch_file(info: DataSetInfo, folder: Path, *, progress: Progress | None = None) -> Path:
    """A single published file in `folder`, verified; downloaded if it is not there.

    Raises DlopsError, also if a file of this name is not the published one.
    """
    target = folder / Path(info.url).name
    if target.exists():
        return _verified(info, target)
    with writable(folder), FileLock(folder / f".{info.name}.lock"):
        return _had(info, folder, progress).replace(target)


def _had(info: DataSetInfo, folder: Path, progress: Progress | None) -> Path:
    """The published file in `folder`, verified: the user's own, else downloaded, a `.part`."""
    own = folder / Path(info.url).name
    if own.exists():
        return _verified(info, own)
    part = own.with_name(own.name + ".part")
    _download(info, part, progress)
    return _verified(info, part)


def _download(info: DataSetInfo, part: Path, progress: Progress | None) -> None:
    """Continues `part` until it is whole; gives up when an attempt does not bring it further."""
    _check_address(info.url)
    opener, best = urllib.request.build_opener(_Redirects), -1
    while (have := part.stat().st_size if part.exists() else 0) > best:
        best, reason = have, "the connection was cut"
        headers = {"Range": f"bytes={have}-"} if have else {}
        try:
            request = urllib.request.Request(info.url, headers=headers)
            with opener.open(request, timeout=60) as response:
                start = have if response.status == 206 else 0
                total = start + int(response.headers.get("Content-Length") or info.size or 0)
                need_space(part.parent, 3 * total - start, f"{info.title} (archive and files)")
                with open(part, "ab" if start else "wb") as out:
                    while block := response.read(1 << 20):
                        out.write(block)
                        if progress:
                            progress(out.tell(), total)
                    if out.tell() >= total:
                        return
        except urllib.error.HTTPError as error:
            if error.code == 416:  # nothing is left to send: the checksum decides
                return
            reason = f"the server answered {error.code} {error.reason}"
        except (OSError, http.client.HTTPException) as error:
            reason = str(getattr(error, "reason", error))
    raise DlopsError(
        f"{info.url} could not be fetched ({reason}; {have:,} bytes are kept): run the same"
        " command again to go on, or, without a connection, put that file from elsewhere at"
        f" {part.with_suffix('')}."
    )


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str):
        _check_address(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_address(url: str) -> None:
    address = urllib.parse.urlsplit(url)
    own = address.scheme == "http" and address.hostname in ("localhost", "127.0.0.1", "::1")
    if address.scheme != "https" and not own:
        raise DlopsError(f"{url} is refused: data come over https only.")


def _verified(info: DataSetInfo, path: Path) -> Path:
    """The file, if its checksum is the published one; only a download of ours is set aside."""
    kind, expected = info.checksum.split(":")
    with open(path, "rb") as file:
        hasher = partial(hashlib.new, kind, usedforsecurity=False)
        found = hashlib.file_digest(file, hasher).hexdigest()
    if found == expected:
        return path
    differs = f"has the {kind.upper()} checksum {found}, but must have {expected}"
    if path.suffix != ".part":
        raise DlopsError(
            f"{path} {differs}: it is damaged, or not what {info.url} publishes. Move it away,"
            " and it is fetched."
        )
    bad = path.replace(path.with_suffix(".bad"))
    raise DlopsError(
        f"What {info.url} sent {differs}; it was set aside as {bad}: fetch again, and if that"
        " repeats, the server's file has changed."
    )


def _unpack(archive: Path, folder: str) -> None:
    """Files and folders of a zip or tar archive; what is larger, or leads outside, is refused."""
    count = size = 0

    def check(name: str, more: int, plain: bool) -> None:
        nonlocal count, size
        count, size = count + 1, size + more
        if count > MOST or size > LARGEST:
            most = f"{MOST:,} files or {LARGEST / 1e9:.0f} GB"
            raise DlopsError(f"{archive} unpacks to more than {most}: refused.")
        path = PurePosixPath(name.replace("\\", "/"))
        if not plain or path.is_absolute() or ".." in path.parts or ":" in name:
            what = f"{name!r}, which is a link or leads outside"
            raise DlopsError(f"{archive} holds {what}: refused.")

    try:
        if ".zip" in archive.suffixes:
            with zipfile.ZipFile(archive) as zipped:
                for entry in zipped.infolist():
                    link = stat.S_ISLNK(entry.external_attr >> 16)
                    check(entry.filename, entry.file_size, not link)
                zipped.extractall(folder)
            return
        with tarfile.open(archive, "r:gz") as tar:
            # In Python since 3.11.4; what leads outside, and links, are refused anyway.
            tar.extraction_filter = getattr(tarfile, "data_filter", None)
            for member in tar:
                check(member.name, member.size, member.isfile() or member.isdir())
                tar.extract(member, folder)
    except (*DAMAGED, RuntimeError) as error:  # zipfile's RuntimeError: encrypted
        raise DlopsError(f"{archive} cannot be unpacked ({error}): get it again.") from error
