"""Published weights of a ResNet18, from whatever file they are in; no code in it is run."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dlops.data.fetch import fetch_file
from dlops.data.layouts import Progress, root
from dlops.settings import DataSetInfo, DlopsError


def _published(sha256: str, size: int) -> DataSetInfo:
    title, url = "ResNet18's ImageNet weights", "https://download.pytorch.org/models/resnet18-"
    url += f"{sha256[:8]}.pth"
    return DataSetInfo(
        "imagenet-weights", title, f"sha256:{sha256}", 1000, 224, 3, "weights", url, size
    )


IMAGENET = _published(
    "f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec", 46_830_571
)
OLD_NAME = _published(  # what torchvision called the file until 2021
    "5c106cde386e87d4033832f2996f5493238eda96ccf559d1d62760c4de0613f8", 46_827_520
)
# The vector-quantised weights of Stock et al. 2020, unpacked: the digest of their tensors.
IMAGENET_VQ = "fcf84222247b703d02c30e4bf6991227270fa8a30decae66b84269e6e0c6903f"


def fetch_imagenet(*, progress: Progress | None = None) -> Path:
    """torchvision's file under DLOPS_DATA/weights, verified; fetched if it is not there.

    Raises DlopsError if it cannot be had, or is not the published one.
    """
    folder = root() / IMAGENET.folder
    here = [info for info in (IMAGENET, OLD_NAME) if (folder / Path(info.url).name).exists()]
    return fetch_file([*here, IMAGENET][0], folder, progress=progress)


def source_weights(source: str) -> tuple[dict[str, Tensor], str]:
    """Weights under torchvision's names, and their digest.

    source: "imagenet", "imagenet-vq" (DLOPS_DATA/weights/resnet18-imagenet-vq.pth), or a path.
    Raises DlopsError if they cannot be had, or are not what the source promises.
    """
    ours = root() / IMAGENET.folder / "resnet18-imagenet-vq.pth"
    path = ours if source == "imagenet-vq" else Path(source).expanduser()
    path = fetch_imagenet() if source == "imagenet" else path
    weights = read_weights(path)
    found = digest(weights)
    if source == "imagenet-vq" and found != IMAGENET_VQ:
        wrong = f"{path} has tensors of the digest {found}, but must have {IMAGENET_VQ}"
        raise DlopsError(f"{wrong}: unpack it again.")
    return weights, found


def read_weights(path: Path) -> dict[str, Tensor]:
    """A state_dict, bare or in a checkpoint; DataParallel's and torch.compile's prefixes go.

    Files of old versions lack num_batches_tracked: it is 0 then. Raises DlopsError.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DlopsError(f"The weights {path} cannot be read ({error.strerror}).") from error
    try:
        state: Any = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds for what is no weights
        raise DlopsError(
            f"{path} does not hold weights that can be read without running code in it, or is"
            " damaged: save a network's state_dict() with torch.save."
        ) from error
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not state:
        raise DlopsError(f"{path} holds no state_dict, but a {type(state).__name__}.")
    weights: dict[str, Tensor] = {}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise DlopsError(f"{path} holds no state_dict: {name!r} is a {type(value).__name__}.")
        if value.is_floating_point() and not value.isfinite().all():
            raise DlopsError(f"{path} holds values that are not finite, in {name!r}.")
        weights[re.sub(r"^((module|_orig_mod)\.)+", "", str(name))] = value.detach()
    for name in [name for name in weights if name.endswith("running_var")]:
        weights.setdefault(name.replace("running_var", "num_batches_tracked"), torch.tensor(0))
    return weights


def digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names and bytes of all tensors, by name."""
    found = hashlib.sha256()
    for name, value in sorted(weights.items()):
        found.update(name.encode())
        found.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def matching(
    weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor], source: str
) -> dict[str, Tensor]:
    """Those of the weights that `wanted` names; what else there is, as a head, is left out.

    Raises DlopsError with the first name that is missing, or has another shape.
    """
    for name, ours in wanted.items():
        there = tuple(weights[name].shape) if name in weights else "none"
        if there != tuple(ours.shape):
            what = f"{name}: {there} there, {tuple(ours.shape)} here"
            raise DlopsError(
                f"The weights of {source} do not fit this network at {what}. Choose the source's"
                " stem, sizes, channels and image size."
            )
    return {name: weights[name] for name in wanted}
