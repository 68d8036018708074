"""ResNet18, losses and layer-wise pretraining from scratch, as a series of notebook reports."""

from __future__ import annotations

from typing import Any

from dlops.experiment import DlopsError, Experiment

__all__ = ["DlopsError", "Experiment", "run", "run_all"]


def __getattr__(name: str) -> Any:
    """`run` and `run_all` import torch, so they load on first use."""
    if name in ("run", "run_all"):
        from dlops import train

        return getattr(train, name)
    raise AttributeError(f"module 'dlops' has no attribute {name!r}")
