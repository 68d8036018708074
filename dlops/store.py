"""Results, one folder each, named by their experiment's identity; complete or not there.

<store>/<id>/result.json   config, metrics, history, provenance; written last
             arrays.npz    predictions, embeddings of a fixed sample, ...; no pickle
             weights.npz   only where another run starts from them
             checkpoint.pt, failed.json   while training, or after a failure
<store>/<id>.lock          held while a process trains it
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from dlops.experiment import KEEP, DlopsError, Experiment

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

HERE = Path(__file__).resolve().parent


def project_root() -> Path:
    """The checkout that this module lies in, else the working directory."""
    return HERE.parent if (HERE.parent / "pyproject.toml").exists() else Path.cwd()


def reports_root() -> Path:
    """Where reports are written: $DLOPS_REPORTS, else reports/ of the project."""
    return Path(os.environ.get("DLOPS_REPORTS") or project_root() / "reports")


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    temporary.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


@cache
def code_hash(model: str) -> str:
    """A hash of the code that trains `model`: its syntax without docstrings and comments."""
    network = (
        ("resnet.py", "convolution.py")
        if model == "resnet18"
        else ("autoencoder.py", "pretraining.py")
    )
    digest = hashlib.sha256()
    for name in (
        "data/readers.py",
        "data/batches.py",
        "data/cache.py",
        "losses.py",
        "train.py",
        *network,
    ):
        tree = ast.parse((HERE / name).read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
                if isinstance(body[0].value, ast.Constant) and isinstance(body[0].value.value, str):
                    body[0].value.value = ""
        digest.update(ast.dump(tree).encode())
    return digest.hexdigest()[:12]


class Result:
    """A complete result. Arrays and the history are read on first use."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        record = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        self.id: str = record["id"]
        self.config: dict[str, Any] = record["config"]
        self.metrics: dict[str, Any] = record["metrics"]
        self.provenance: dict[str, Any] = record["provenance"]
        self.keep: str = record["keep"]
        self._history: list[dict[str, Any]] = record["history"]

    @cached_property
    def experiment(self) -> Experiment:
        """The experiment that this is the result of."""
        return Experiment.from_json(self.config)

    @cached_property
    def history(self) -> pd.DataFrame:
        """A row an epoch: epoch, train_loss, val_loss, train_top1, ..., lr, seconds."""
        import pandas as pd

        return pd.DataFrame(self._history)

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """Everything in arrays.npz; empty for a result that keeps metrics only."""
        return _read_arrays(self.folder / "arrays.npz")

    @property
    def predictions(self) -> np.ndarray:
        """[N, 5] classes of each test image, likeliest first."""
        return self._array("predictions")

    @property
    def labels(self) -> np.ndarray:
        """[N] true classes of the test images."""
        return self._array("labels")

    @property
    def embeddings(self) -> np.ndarray:
        """[M, D] embeddings of the fixed sample of test images, arrays["sample"]."""
        return self._array("embeddings")

    def _array(self, name: str) -> np.ndarray:
        if name not in self.arrays:
            raise DlopsError(f"Result {self.id} keeps no {name}: it was stored with metrics only.")
        return self.arrays[name]

    @property
    def weights(self) -> dict[str, np.ndarray]:
        """The final state_dict as arrays, where another run starts from this one."""
        return _read_arrays(self.folder / "weights.npz")

    @property
    def stale(self) -> bool:
        """Whether the training code has changed since (docstrings and comments aside)."""
        return self.provenance.get("code") != code_hash(self.config["model"])


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    import numpy as np

    if not path.exists():
        return {}
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DlopsError(f"{path} is damaged; remove that folder and train again.") from error


def _write_arrays(path: Path, arrays: Mapping[str, np.ndarray], compress: bool) -> None:
    import numpy as np

    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    with open(temporary, "wb") as file:
        save: Any = np.savez_compressed if compress else np.savez
        save(file, **arrays)
    os.replace(temporary, path)


class Store:
    """The writable store, and the committed results that are read beside it.

    root: default $DLOPS_STORE, else .store/ in the project.
    """

    def __init__(self, root: Path | str | None = None) -> None:
        self.root = Path(root or os.environ.get("DLOPS_STORE") or project_root() / ".store")

    def folder(self, experiment: Experiment) -> Path:
        """Where this experiment's result is or will be written."""
        return self.root / experiment.id

    def find(self, experiment: Experiment) -> Path | None:
        """The folder of a complete result that keeps enough: in the store, or a published one."""
        published = reports_root().glob(f"*/results/{experiment.id}")
        for folder in (self.folder(experiment), *sorted(published)):
            try:
                keep = json.loads((folder / "result.json").read_text(encoding="utf-8"))["keep"]
            except (FileNotFoundError, NotADirectoryError):
                continue
            except (ValueError, KeyError, TypeError) as error:
                raise DlopsError(
                    f"{folder / 'result.json'} is damaged; remove that folder and train again."
                ) from error
            if KEEP.index(keep) >= KEEP.index(experiment.keep):
                return folder
        return None

    def get(self, experiment: Experiment) -> Result | None:
        """The result, or None."""
        folder = self.find(experiment)
        return Result(folder) if folder else None

    def status(self, experiment: Experiment) -> str:
        """missing, running, interrupted, complete, failed or stale."""
        if result := self.get(experiment):
            return "stale" if result.stale else "complete"
        folder = self.folder(experiment)
        if self._locked(experiment):
            return "running"
        if (folder / "failed.json").exists():
            return "failed"
        return "interrupted" if (folder / "checkpoint.pt").exists() else "missing"

    def failure(self, experiment: Experiment) -> str | None:
        """Why the last try failed, or None."""
        path = self.folder(experiment) / "failed.json"
        return json.loads(path.read_text(encoding="utf-8"))["error"] if path.exists() else None

    def _locked(self, experiment: Experiment) -> bool:
        path = self.root / f"{experiment.id}.lock"
        if not path.exists():
            return False
        try:
            with FileLock(path, timeout=0):
                return False
        except Timeout:
            return True

    @contextmanager
    def claim(self, experiment: Experiment) -> Iterator[Path]:
        """Hold the experiment, waiting for another process that trains it; yields its folder.

        The operating system drops the claim when its process dies.
        """
        folder = self.folder(experiment)
        lock = FileLock(self.root / f"{experiment.id}.lock")
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except OSError as error:
            raise DlopsError(
                f"The store {self.root} cannot be written ({error.strerror});"
                " set DLOPS_STORE to a folder that can."
            ) from error
        try:
            folder.mkdir(exist_ok=True)
            yield folder
        finally:
            if folder.exists() and not any(folder.iterdir()):
                folder.rmdir()
            lock.release()

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
        """Write a complete result; result.json comes last, then the checkpoint goes."""
        folder = self.folder(experiment)
        folder.mkdir(parents=True, exist_ok=True)
        if experiment.keep != "metrics":
            _write_arrays(folder / "arrays.npz", arrays, compress=True)
        if experiment.keep == "weights":
            _write_arrays(folder / "weights.npz", weights, compress=False)
        record = {
            "id": experiment.id,
            "keep": experiment.keep,
            "config": experiment.to_json(),
            "metrics": dict(metrics),
            "history": history,
            "provenance": {**provenance, "code": code_hash(experiment.model.name)},
        }
        write_json(folder / "result.json", record)
        leftovers = {"checkpoint.pt", "failed.json"}
        if experiment.keep != "weights":  # of an older result that kept more
            leftovers.add("weights.npz")
        if experiment.keep == "metrics":
            leftovers.add("arrays.npz")
        for leftover in leftovers:
            (folder / leftover).unlink(missing_ok=True)
        return Result(folder)

    def fail(self, experiment: Experiment, error: str) -> None:
        """Note why a run failed; its checkpoint goes, for it would fail again."""
        folder = self.folder(experiment)
        write_json(folder / "failed.json", {"error": error, "config": experiment.to_json()})
        (folder / "checkpoint.pt").unlink(missing_ok=True)

    def forget(self, experiment: Experiment) -> None:
        """Remove the result, so that it is trained again."""
        shutil.rmtree(self.folder(experiment), ignore_errors=True)


def publish(result: Result, preset: str) -> None:
    """Copy a result, without weights, to reports/<preset>/results/, whole or not at all."""
    target = reports_root() / preset / "results" / result.id
    if target == result.folder:
        return
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    temporary.mkdir(parents=True)
    for name in ("arrays.npz", "result.json"):
        if (result.folder / name).exists():
            shutil.copy(result.folder / name, temporary / name)
    record = json.loads((temporary / "result.json").read_text(encoding="utf-8"))
    if record["keep"] == "weights":
        write_json(temporary / "result.json", {**record, "keep": "arrays"})
    older = temporary.with_suffix(".old")
    if target.exists():  # trained again since
        os.replace(target, older)
    os.replace(temporary, target)
    shutil.rmtree(older, ignore_errors=True)
