"""Data sets: where they lie and how they get there, read, split, and handed out in batches.

What imports torch is imported when it is first asked for: `dlops data list` answers at once.
Nothing here knows networks, losses or results.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dlops.data.layouts import COUNTS, locate, present, root

if TYPE_CHECKING:
    from dlops.data.batches import Batches, Split, class_batches
    from dlops.data.readers import DataSet, load

__all__ = ["COUNTS", "Batches", "DataSet", "Split", "class_batches", "load"]
__all__ += ["locate", "present", "root"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "readers" if name in ("DataSet", "load") else "batches"
    return getattr(import_module(f"{__name__}.{home}"), name)
