"""The machine that trains: devices, precision, memory, and what the provenance says of it."""

from __future__ import annotations

import os
import platform
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
import torch

from dlops.settings import DlopsError
from dlops.store import project_root

PROCESS = Path("/proc/self")


def choose_device(name: str | None = None) -> torch.device:
    """The device to train on: `name`, else $DLOPS_DEVICE, else CUDA if there, else the CPU."""
    name = name or os.environ.get("DLOPS_DEVICE") or None
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    available, kind = {"cpu": True, "cuda": cuda, "mps": mps}, name.split(":")[0]
    if kind not in available:
        raise DlopsError(f"There is no device {name!r}; choose cpu, cuda or mps.")
    if not available[kind]:
        raise DlopsError(
            f"Device {name} was asked for, but torch {torch.__version__} sees none here;"
            " leave the device out to train on the CPU, or install a driver and a torch that fit."
        )
    return torch.device(name)


def precision(wanted: str, device: torch.device) -> str:
    """ "float32" or "bfloat16": what is wanted, or for "auto" what the device has natively."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        native = device.type == "cpu" and (
            torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        )
    return "bfloat16" if native else "float32"


def reset_peak(device: torch.device) -> None:
    """From here on `peak` counts anew, as far as the system can."""
    with suppress(OSError):
        (PROCESS / "clear_refs").write_text("5")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak(device: torch.device) -> dict[str, float]:
    """Peak resident memory of this process (where the system tells), and of the GPU, in MiB."""
    found = {}
    try:
        status = (PROCESS / "status").read_text()
        found["peak_rss_mib"] = int(status.split("VmHWM:")[1].split()[0]) / 1024
    except (OSError, IndexError):
        with suppress(ImportError):  # Windows
            import resource

            unit = 1 if platform.system() == "Darwin" else 1024
            usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            found["peak_rss_mib"] = usage * unit / 2**20
    if device.type == "cuda":
        found["peak_gpu_mib"] = torch.cuda.max_memory_allocated(device) / 2**20
    return found


def git_state() -> dict[str, Any]:
    """The commit, and whether the tree differed from it; nothing outside a checkout."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(project_root()), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "dlops", "notebooks", "pyproject.toml")
        return {"commit": git("rev-parse", "--short=12", "HEAD"), "dirty": bool(changed)}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": "unknown", "dirty": True}


def processor() -> str:
    """The processor's name, as the system tells it."""
    with suppress(OSError, IndexError):
        return Path("/proc/cpuinfo").read_text().split("model name")[1].split("\n")[0].strip("\t: ")
    return platform.processor() or platform.machine()


def describe(device: torch.device) -> dict[str, Any]:
    """Hardware and versions, for the provenance."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scikit-learn": sklearn.__version__,
        "platform": platform.system(),
    }
