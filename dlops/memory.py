"""What training asks of the machine's memory, and how freed memory is reused."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

PROCESS = Path("/proc/self")
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4  # glibc's malloc.h


@contextmanager
def reused() -> Iterator[None]:
    """Let the C library keep freed memory for the next step, where it is glibc.

    Otherwise it gives every tensor of more than 32 MiB back to the system and gets it again a page
    at a time. What is free at the end goes back. Not to be nested.
    """
    library: Any = ctypes.CDLL(None) if platform.system() == "Linux" else None
    if not hasattr(library, "mallopt") or not hasattr(library, "malloc_trim"):
        yield
        return
    library.mallopt(MMAP_MAX, 0)
    library.mallopt(TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:  # what glibc's own adjustment comes to with large tensors
        library.mallopt(MMAP_MAX, 65536)
        library.mallopt(MMAP_THRESHOLD, 2**25)
        library.mallopt(TRIM_THRESHOLD, 2**26)
        library.malloc_trim(0)


def reset_peak(device: torch.device) -> None:
    """From here on `peak` counts anew, as far as the system can."""
    try:
        (PROCESS / "clear_refs").write_text("5")
    except OSError:
        pass
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak(device: torch.device) -> dict[str, float]:
    """Peak resident memory of this process (where the system tells), and of the GPU, in MiB."""
    found = {}
    try:
        status = (PROCESS / "status").read_text()
        found["peak_rss_mib"] = int(status.split("VmHWM:")[1].split()[0]) / 1024
    except (OSError, IndexError):
        try:
            import resource
        except ImportError:  # Windows
            pass
        else:
            unit = 1 if platform.system() == "Darwin" else 1024
            usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            found["peak_rss_mib"] = usage * unit / 2**20
    if device.type == "cuda":
        found["peak_gpu_mib"] = torch.cuda.max_memory_allocated(device) / 2**20
    return found
