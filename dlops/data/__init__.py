"""Data sets: where they lie and how they get there, read, split, and handed out in batches.

What imports torch is imported when it is first asked for: `dlops data list` answers at once.
Nothing here knows networks, losses or results.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dlops.data.batches import Batches, Split, class_batches
    from dlops.data.readers import DataSet, load

from dlops.data.layouts import COUNTS, locate, present, root

__all__ = [
    "COUNTS",
    "Batches",
    "DataSet",
    "Split",
    "class_batches",
    "load",
    "locate",
    "present",
    "root",
]
_HOMES = {"Batches": "batches", "Split": "batches", "class_batches": "batches"}
_HOMES |= {"DataSet": "readers", "load": "readers"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
