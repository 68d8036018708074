"""A result as it lies in its folder, and how the folder proves that it is what was written."""

from __future__ import annotations

import io
import json
import math
import zipfile
import zlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlops.experiment import Experiment
from dlops.settings import DlopsError
from dlops.store.disk import Damaged, digest, json_digest, remove, written

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

FILES: dict[str, tuple[str, ...]] = {  # of each kind of `keep`, beside result.json
    "metrics": (),
    "arrays": ("arrays.npz",),
    "weights": ("arrays.npz", "weights.npz"),
}


class Result:
    """A complete result. Arrays and the history are read on first use.

    Raises Damaged where its record is not what was written, FileNotFoundError where there is none.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            record = json.loads((folder / "result.json").read_text(encoding="utf-8"))
            self.id: str = record["id"]
            self.keep: str = record["keep"]
            self.config: dict[str, Any] = record["config"]
            self.metrics: dict[str, Any] = record["metrics"]
            self.provenance: dict[str, Any] = record["provenance"]
            self._history: list[dict[str, Any]] = record["history"]
            self.digest: str | None = record.pop("digest", None)
            self.record = record
            problem = self._problem()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Damaged("result.json cannot be understood") from error
        if problem:
            raise Damaged(problem)

    def _problem(self) -> str | None:
        """How the record shows that it is not what was written, or None.

        One of before records had digests is proven by its settings, which give its identity.
        """
        files = self.record.get("files", {})
        if self.digest != (json_digest(self.record) if self.digest or files else None):
            return "result.json is not what was written"
        try:
            identity = self.experiment.id
        except DlopsError:  # a later version's settings
            identity = self.id if self.digest else ""
        if identity != self.id:
            return f"its settings are not those of {self.id}"
        if not (self._history and finite([self.metrics, self._history])):
            return "its history is empty, or a value of it is not finite"
        for name in FILES[self.keep]:
            path = self.folder / name
            size = path.stat().st_size if path.exists() else None
            if size is None or (self.digest and size != files[name]["size"]):
                return f"{name} is missing or cut off"
        return None

    def prove(self) -> None:
        """Raise Damaged unless every file is what was written."""
        for name in FILES[self.keep]:
            content = self.content(name)
            if not self.digest:  # before there were any: the arrays give the recorded accuracy
                arrays = _unpack(content)
                if name == "arrays.npz" and "predictions" in arrays:
                    top1 = (arrays["predictions"][:, 0] == arrays["labels"]).mean()
                    if not math.isclose(top1, self.metrics["test_top1"], abs_tol=1e-9):
                        raise Damaged("arrays.npz is of another run: it gives another accuracy")

    def content(self, name: str) -> bytes:
        """A file's content. Raises Damaged unless it is what was written."""
        content = (self.folder / name).read_bytes()
        if self.digest and digest(content) != self.record["files"][name]["sha256"]:
            raise Damaged(f"{name} is not what was written")
        return content

    @cached_property
    def experiment(self) -> Experiment:
        """The experiment that this is the result of."""
        try:
            found = Experiment.from_json(self.config)
            if found.id == self.id:
                return found
        except DlopsError:
            if self.digest:
                raise
        return Experiment.from_json(_of_before(self.config))

    @cached_property
    def history(self) -> pd.DataFrame:
        """A row an epoch: epoch, train_loss, val_loss, train_top1, ..., lr, seconds."""
        import pandas as pd

        return pd.DataFrame(self._history)

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """Everything in arrays.npz; empty for a result that keeps metrics only."""
        return self._read("arrays.npz")

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
        return self._read("weights.npz")

    def _read(self, name: str) -> dict[str, np.ndarray]:
        if name not in FILES[self.keep]:
            return {}
        try:
            return _unpack(self.content(name))
        except (OSError, Damaged) as error:
            raise DlopsError(
                f"{self.folder / name} is no longer what was found there ({error});"
                " ask for the result again."
            ) from error


def _of_before(config: dict[str, Any]) -> dict[str, Any]:
    """Settings of before results had digests: `precision` was float32 where it is now auto."""
    parent = {"parent": _of_before(config["parent"])} if "parent" in config else {}
    drop = {"precision"} if config.get("precision") == "float32" else set()
    return {**{name: value for name, value in config.items() if name not in drop}, **parent}


def finite(value: Any) -> bool:
    """Whether all numbers in a JSON value are."""
    if isinstance(value, Mapping):
        return all(map(finite, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _unpack(content: bytes) -> dict[str, np.ndarray]:
    import numpy as np

    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise Damaged("its arrays cannot be unpacked") from error


def write(folder: Path, record: dict[str, Any], files: Mapping[str, bytes]) -> None:
    """A result's files, in a folder that is not yet seen; the record names and proves them."""
    remove(folder)
    folder.mkdir(parents=True)
    for name, content in files.items():
        with written(folder / name) as file:
            file.write(content)
    manifest = {name: {"size": len(x), "sha256": digest(x)} for name, x in files.items()}
    record = json.loads(json.dumps({**record, "files": manifest}, allow_nan=False))
    text = json.dumps({**record, "digest": json_digest(record)}, indent=1) + "\n"
    with written(folder / "result.json") as file:
        file.write(text.encode())
