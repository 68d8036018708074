"""The state of a run that was interrupted, with what proves that it is this run's and whole."""

from __future__ import annotations

import io
import json
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from dlops.settings import DlopsError
from dlops.store.disk import Damaged, digest, replaced, set_aside


class Misfit(Exception):
    """A checkpoint that is whole and of this run, and yet does not fit it (of other code)."""


class Checkpoint:
    """One file: a line of JSON (identity, digest), then the state as torch writes it.

    identity: the experiment's, of which its recipe is part. replaces: the digest of the result
    that is trained again, None if there is none; a checkpoint of before that result is outdated.
    The one before stays until the next is whole and on the disk.
    """

    def __init__(self, path: Path, identity: str, replaces: str | None = None) -> None:
        self.path, self.identity, self.replaces = path, identity, replaces
        self.pause = float(os.environ.get("DLOPS_CHECKPOINT_SECONDS", "30"))
        self.last = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether the last one is so old that the next is worth its time."""
        return time.monotonic() - self.last >= self.pause

    def save(self, state: dict[str, Any]) -> None:
        """Write the state; where that cannot be done, training goes on and a warning says so."""
        self.last = time.monotonic()
        try:
            buffer = io.BytesIO()
            torch.save(state, buffer)
            content = buffer.getbuffer()
            about = {"id": self.identity, "replaces": self.replaces}
            proof = {**about, "sha256": digest(content)}
            with replaced(self.path) as file:
                file.write(json.dumps(proof).encode() + b"\n")
                file.write(content)
        except (OSError, MemoryError) as error:
            warnings.warn(
                f"The checkpoint {self.path} could not be written ({_reason(error)}); training"
                " goes on, and the one before is kept if there was one.",
                stacklevel=2,
            )

    def load(self) -> dict[str, Any] | None:
        """The state, or None if there is none that is this run's and whole.

        One that is not is set aside. Raises DlopsError where it cannot be read now; it stays.
        """
        if self.path.is_dir():
            self.set_aside("it is a folder")
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except (OSError, MemoryError) as error:
            raise self._unreadable(error) from error
        end = content.find(b"\n") + 1
        state = memoryview(content)[end:]
        try:
            proof = json.loads(content[:end])
            identity, replaces, sha256 = (proof[name] for name in ("id", "replaces", "sha256"))
            if digest(state) != sha256:
                raise Damaged("its content is not what was written")
            if identity != self.identity:
                raise Damaged(f"it is of experiment {identity}, or of an older recipe")
        except Damaged as error:
            self.set_aside(str(error))
            return None
        except (ValueError, TypeError, KeyError):
            self.set_aside("it does not say what it is a checkpoint of")
            return None
        if self.replaces not in (None, replaces):  # of the run that made this result
            self.path.unlink()
            return None
        try:
            return torch.load(io.BytesIO(state), map_location="cpu", weights_only=True)
        except Exception as error:  # its content is proven, so it is not to blame
            raise self._unreadable(error) from error

    def set_aside(self, reason: str) -> None:
        """Move it out of the way, under another name, and say why."""
        place = set_aside(self.path, self.path.parent.parent / self.identity)
        warnings.warn(
            f"The checkpoint of {self.identity} was set aside as {place}, for {reason}; the run"
            " starts at its beginning.",
            stacklevel=3,
        )

    def _unreadable(self, error: BaseException) -> DlopsError:
        return DlopsError(
            f"The checkpoint {self.path} cannot be read now ({_reason(error)}); it is kept: ask"
            " again, or remove it to train from the beginning."
        )


@contextmanager
def fitting() -> Iterator[None]:
    """What goes wrong in here, where a state is taken over, is a Misfit."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise Misfit((str(error).splitlines() or [type(error).__name__])[0]) from error


def _reason(error: BaseException) -> str:
    words = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return words.splitlines()[0]
