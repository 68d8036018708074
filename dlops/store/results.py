"""Results, one folder each, named by their experiment's identity; proven, or not there.

<store>/<id>/       a result; it appears, and is replaced, by one rename of the folder
    result.json     config, metrics, history, provenance, sizes and digests of the other files
    arrays.npz      predictions, embeddings of a fixed sample, ...; no pickle
    weights.npz     only where another run starts from them
<store>/<id>.run/   while it trains, or after a failure: checkpoint.pt, failed.json
<store>/<id>.old/   what is being replaced, until the rename
<store>/<id>.damaged-N   what was found not to be what was written
<store>/<id>.lock   held while a process trains it
"""

from __future__ import annotations

import io
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from dlops.experiment import KEEP, Experiment
from dlops.settings import DlopsError
from dlops.store.disk import Damaged, exchange, remove, set_aside, write_json
from dlops.store.result import FILES, Result, write

if TYPE_CHECKING:
    import numpy as np

CHECKOUT = Path(__file__).resolve().parents[2]


def project_root() -> Path:
    """The checkout that this module lies in, else the working directory."""
    return CHECKOUT if (CHECKOUT / "pyproject.toml").exists() else Path.cwd()


def reports_root() -> Path:
    """Where reports are written: $DLOPS_REPORTS, else reports/ of the project."""
    return Path(os.environ.get("DLOPS_REPORTS") or project_root() / "reports")


class Store:
    """The writable store, and the committed results that are read beside it.

    root: default $DLOPS_STORE, else .store/ in the project.
    """

    def __init__(self, root: Path | str | None = None) -> None:
        self.root = Path(root or os.environ.get("DLOPS_STORE") or project_root() / ".store")

    def folder(self, experiment: Experiment) -> Path:
        """Where this experiment's result is or will be."""
        return self.root / experiment.id

    def workplace(self, experiment: Experiment) -> Path:
        """Where what is not a result yet lies: its checkpoint, or why it failed."""
        return self.root / f"{experiment.id}.run"

    def _old(self, experiment: Experiment) -> Path:
        return self.root / f"{experiment.id}.old"

    def find(self, experiment: Experiment) -> Path | None:
        """The folder of a result whose record is proven, and the sizes of its files. See `get`."""
        result = self._look(experiment, prove=False)
        return result.folder if result else None

    def get(self, experiment: Experiment) -> Result | None:
        """The result that keeps enough, in the store or published, proven to the last byte.

        None if there is none. What is not what was written is set aside, with a warning, and
        counts as missing; a published one is refused with a DlopsError.
        """
        return self._look(experiment, prove=True)

    def _look(self, experiment: Experiment, prove: bool) -> Result | None:
        published = sorted(reports_root().glob(f"*/results/{experiment.id}"))
        for folder in (self.folder(experiment), self._old(experiment), *published):
            try:
                result = _open(folder, experiment, prove)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise DlopsError(
                    f"The result {folder} cannot be read now ({error.strerror})."
                ) from error
            except Damaged as error:
                if folder in published:
                    raise DlopsError(
                        f"The published result {folder} is not what was published: {error}."
                        " Restore it, or remove it and train again."
                    ) from error
                self._set_aside(folder, experiment, error)
                continue
            if result:
                return result
        return None

    def _set_aside(self, folder: Path, experiment: Experiment, reason: Exception) -> None:
        try:
            place = set_aside(folder, self.folder(experiment))
        except OSError as error:
            raise DlopsError(
                f"The result {folder} is damaged ({reason}) and cannot be moved away"
                f" ({error.strerror}); remove it, or set DLOPS_STORE to another folder."
            ) from error
        words = f"{reason}. It was set aside as {place} and counts as missing."
        warnings.warn(f"Result {experiment.id} is not what was stored: {words}", stacklevel=4)

    def status(self, experiment: Experiment) -> str:
        """missing, running, interrupted, complete or failed (also: a published one is refused)."""
        try:
            if self.find(experiment):
                return "complete"
        except DlopsError:
            return "failed"
        lock = self.root / f"{experiment.id}.lock"
        try:
            if lock.exists():
                with FileLock(lock, timeout=0):
                    pass
        except Timeout:
            return "running"
        if self.failure(experiment):
            return "failed"
        place = self.workplace(experiment)
        return "interrupted" if (place / "checkpoint.pt").exists() else "missing"

    def failure(self, experiment: Experiment) -> str | None:
        """Why the last try failed, or a published result is refused, or None."""
        path = self.workplace(experiment) / "failed.json"
        try:
            return json.loads(path.read_text(encoding="utf-8"))["error"]
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError) as error:
            return f"{path} cannot be read: {error}"
        try:
            self.find(experiment)
        except DlopsError as error:
            return str(error)
        return None

    @contextmanager
    def claim(self, experiment: Experiment) -> Iterator[Path]:
        """Hold the experiment, waiting for another process that trains it; yields its workplace.

        The operating system drops the claim when its process dies; what it left half done goes.
        """
        place = self.workplace(experiment)
        lock = FileLock(self.root / f"{experiment.id}.lock")
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock.acquire()
            self._tidy(experiment)
            place.mkdir(exist_ok=True)
        except OSError as error:
            lock.release()
            raise DlopsError(
                f"The store {self.root} cannot be written ({error.strerror});"
                " set DLOPS_STORE to a folder that can."
            ) from error
        try:
            yield place
        finally:
            with suppress(OSError):  # it is not empty, or not there
                place.rmdir()
            lock.release()

    def _tidy(self, experiment: Experiment) -> None:
        """Finish or undo what a killed process was at."""
        old, folder = self._old(experiment), self.folder(experiment)
        if old.exists() and not folder.exists():
            os.rename(old, folder)
        remove(old)
        for part in self.workplace(experiment).glob("*.part"):
            remove(part) if part.is_dir() else part.unlink()

    def save(
        self,
        experiment: Experiment,
        *,
        metrics: Mapping[str, Any],
        history: list[dict[str, Any]],
        provenance: Mapping[str, Any],
        arrays: Mapping[str, np.ndarray],
        weights: Mapping[str, np.ndarray],
    ) -> Result:
        """Write a complete result; one rename makes it seen, then the checkpoint goes."""
        import numpy as np

        files = {}
        for name in FILES[experiment.keep]:
            buffer = io.BytesIO()
            pack: Any = np.savez_compressed if name == "arrays.npz" else np.savez
            pack(buffer, **(arrays if name == "arrays.npz" else weights))
            files[name] = buffer.getvalue()
        record = {
            "id": experiment.id,
            "keep": experiment.keep,
            "config": experiment.to_json(),
            "metrics": dict(metrics),
            "history": history,
            "provenance": dict(provenance),
        }
        folder, place = self.folder(experiment), self.workplace(experiment)
        part = place / "result.part"
        try:
            write(part, record, files)
            Result(part)  # raises Damaged for what would not be believed later
            exchange(part, folder, self._old(experiment))
        except OSError as error:
            size = sum(map(len, files.values())) / 2**20
            raise DlopsError(
                f"Result {experiment.id} could not be written to {self.root} ({error.strerror});"
                f" it needs {size:.1f} MiB. Its checkpoint is kept: ask again."
            ) from error
        with suppress(OSError):  # the next claim tries again
            remove(place)
        return Result(folder)

    def fail(self, experiment: Experiment, error: str) -> None:
        """Note why a run failed; its checkpoint goes, for it would fail again."""
        place = self.workplace(experiment)
        with suppress(OSError):  # the failure itself is what is told
            write_json(place / "failed.json", {"error": error, "config": experiment.to_json()})
            (place / "checkpoint.pt").unlink(missing_ok=True)

    def forget(self, experiment: Experiment) -> None:
        """Remove the result, so that it is trained again."""
        for place in (self.folder, self._old, self.workplace):
            remove(place(experiment))


def _open(folder: Path, experiment: Experiment, prove: bool) -> Result | None:
    """The result in a folder, or None if it keeps too little for this experiment."""
    for last in (False, True):  # a second look, for another process may just have replaced it
        try:
            result = Result(folder)
            if result.id != experiment.id:
                raise Damaged(f"it is of {result.id}")
            if KEEP.index(result.keep) < KEEP.index(experiment.keep):
                return None
            if prove:
                result.prove()
            return result
        except Damaged:
            if last:
                raise
    return None


def publish(result: Result, preset: str) -> None:
    """Copy a result, without weights, to reports/<preset>/results/, whole or not at all."""
    target = reports_root() / preset / "results" / result.id
    if target == result.folder:
        return
    record = {**result.record, "keep": min(result.keep, "arrays", key=KEEP.index)}
    files = {name: result.content(name) for name in FILES[record["keep"]]}
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    write(part, record, files)
    exchange(part, target, part.with_suffix(".old"))
