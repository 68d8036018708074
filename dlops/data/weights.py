"""torchvision's published ImageNet weights of ResNet18, for our ResNet18."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import torch

from dlops.data.fetch import Progress, fetch_file, root
from dlops.settings import DataSetInfo, DlopsError

# torchvision names the file by the first eight digits of its SHA-256, and checks no more either.
IMAGENET = DataSetInfo(
    "imagenet-weights",
    "ResNet18's ImageNet weights",
    "sha256:f37072fd",
    1000,
    224,
    3,
    "weights",
    "https://download.pytorch.org/models/resnet18-f37072fd.pth",
    46_830_571,
)


def fetch_imagenet(*, progress: Progress | None = None) -> Path:
    """The weights' file under DLOPS_DATA/weights, verified; fetched if it is not there.

    Raises DlopsError if it cannot be had, or is not the published one (then it is set aside).
    """
    return fetch_file(IMAGENET, root() / IMAGENET.folder, progress=progress)


def imagenet_weights() -> dict[str, np.ndarray]:
    """Weights named as a Network's: "body." and torchvision's name; no code in them is run.

    Raises DlopsError as `fetch_imagenet` does, or if the file holds something else.
    """
    path = fetch_imagenet()
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        weights = {f"body.{name}": value.numpy() for name, value in state.items()}
    except (pickle.UnpicklingError, RuntimeError, AttributeError, EOFError) as error:
        raise DlopsError(f"{path} does not hold weights: remove it, and run again.") from error
    for name in [name for name in weights if name.endswith("running_var")]:
        counter = name.replace("running_var", "num_batches_tracked")
        weights.setdefault(counter, np.array(0))  # files of old versions leave these out
    return weights
