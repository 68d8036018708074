"""Auto-encoders that a stacked classifier starts from, and what is seen in the stack's layers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dlops.autoencoder import (
    StackedClassifier,
    all_codes,
    make_decoders,
    pretrain_layerwise,
    reconstruct,
    train_part,
)
from dlops.build import Network
from dlops.data import DataSet, Split
from dlops.divergence import Diverged, suspects, wild
from dlops.experiment import Experiment
from dlops.metrics import tsne
from dlops.settings import DlopsError, Optimizer, Schedule
from dlops.store.checkpoint import Checkpoint, fitting
from dlops.store.result import finite
from dlops.train import Outcome

HEADLINE = 3  # X[3], zero-based: the layer that the question asks about
FIRST = 500  # test images of each class in the headline layer's t-SNE
OTHERS = 100  # and in those of the other layers
PICTURES = 10  # test images that are kept with their reconstructions
FILTERS = 48


def train(
    experiment: Experiment,
    data: DataSet,
    device: torch.device,
    checkpoint: Checkpoint,
    interrupt: threading.Event,
    progress: Callable[[dict[str, Any]], None],
) -> Outcome:
    """Pretrain a stack as the experiment says, on the training images without their labels.

    History: layer (from 1; 0 means all at once), epoch (0 is before any training), train_loss,
    val_loss (mean squared errors), seconds. A run that stops goes on after the epoch it was in.
    Raises Diverged, KeyboardInterrupt, or DlopsError for an optimizer that it does not have.
    """
    model, schedule, optimizer = experiment.model, experiment.schedule, experiment.optimizer
    plain = Optimizer(lr=optimizer.lr), Schedule(schedule.epochs, schedule.batch_size)
    if (optimizer, schedule) != plain:
        raise DlopsError(
            "An auto-encoder is trained by plain Adam with a constant learning rate; set nothing"
            " but epochs, batch_size and lr of its optimizer and schedule."
        )
    torch.manual_seed(experiment.seed)
    body = Network(experiment, data.train.shape[1:]).body.to(device)
    images, val = gather(data, experiment.data.unlabelled, device), data.val.images.to(device)
    layerwise = model.pretraining == "layerwise"
    hidden = "linear" if layerwise else model.activation
    decoders = make_decoders(body, tied=model.tied, hidden=hidden)
    history: list[dict[str, Any]] = []
    start_layer, start = 0, {}
    if (state := checkpoint.load()) is not None:
        with fitting():
            body.load_state_dict(state["body"])
            decoders.load_state_dict(state["decoders"])
            history, start_layer, start = state["history"], state["layer"], state["start"]
    last = time.perf_counter()

    def on_epoch(
        layer: int, epoch: int, train_loss: float, val_loss: float, adam: torch.optim.Optimizer
    ) -> None:
        nonlocal last
        row: dict[str, Any] = {"layer": layer + 1 if layerwise else 0, "epoch": epoch}
        now = time.perf_counter()
        row |= {"train_loss": train_loss, "val_loss": val_loss, "seconds": now - last}
        last = now
        history.append(row)
        check(experiment, history)
        if epoch:
            done, total = layer * schedule.epochs + epoch, schedule.epochs
            total *= len(body.encoder) if layerwise else 1
            progress({"epoch": done, "epochs": total, "row": row})
        if interrupt.is_set() or checkpoint.due:
            after = {"first_epoch": epoch + 1, "optimizer_state": adam.state_dict()}
            parts = {"body": body.state_dict(), "decoders": decoders.state_dict()}
            checkpoint.save({**parts, "history": history, "layer": layer, "start": after})
        if interrupt.is_set():
            raise KeyboardInterrupt

    settings: dict[str, Any] = {
        "val_images": val,
        "epochs": schedule.epochs,
        "batch_size": schedule.batch_size,
        "lr": optimizer.lr,
        "seed": experiment.seed,
        "noise": model.noise,
        "on_epoch": on_epoch,
    }
    if layerwise:
        pretrain_layerwise(body, images, decoders, start_layer=start_layer, start=start, **settings)
    else:
        train_part(body, decoders, slice(None), images, **settings, **start)
    return outcome(body, decoders, (images, val, data.test), history, layerwise)


def outcome(
    body: StackedClassifier,
    decoders: nn.ModuleList,
    images: tuple[Tensor, Tensor, Split],
    history: list[dict[str, Any]],
    layerwise: bool,
) -> Outcome:
    """Reconstruction errors, dead units, pictures and filters of what was pretrained.

    images: training [N, C, H, W] and validation, uint8, and the test split.
    """
    train_images, val, test = images
    depths = range(1, len(body.encoder) + 1) if layerwise else [len(body.encoder)]
    last = history[-1]["epoch"]
    truth = val.float() / 255
    mean_image = train_images[:5000].float().mean(0) / 255
    metrics = {
        "train_loss": [r["train_loss"] for r in history if r["epoch"] == last],
        "val_loss": [r["val_loss"] for r in history if r["epoch"] == last],
        "depths": list(depths),
        "val_error": [error(reconstruct(body, decoders, val, k), truth) for k in depths],
        "mean_image_error": error(mean_image, truth),
        "dead_units": [
            (all_codes(body, val, k + 1) == 0).all(0).double().mean().item()  # 0 for every image
            for k in range(len(body.encoder))
        ],
        "pretraining_images": len(train_images),
        "parameters": sum(p.numel() for p in (*body.encoder.parameters(), *decoders.parameters())),
    }
    chosen = torch.from_numpy(first_of_each_class(test.labels.numpy(), 1)[:PICTURES])
    pictures = test.take(chosen)
    back = [reconstruct(body, decoders, pictures.to(val.device), k) for k in depths]
    first: Any = body.encoder[0]
    weight = first.weight.detach()
    strongest = weight.norm(dim=1).argsort(descending=True, stable=True)[:FILTERS]
    arrays = {
        "pictures": pictures.numpy(),
        "reconstructions": (torch.stack(back) * 255).round().to(torch.uint8).cpu().numpy(),
        "filters": weight[strongest].view(-1, *pictures.shape[1:]).half().cpu().numpy(),
    }
    names = {f"body.{name}": value.cpu().numpy() for name, value in body.state_dict().items()}
    weights = {name: value for name, value in names.items() if not name.startswith("body.head.")}
    return Outcome(metrics, history, arrays, weights, sum(row["seconds"] for row in history))


def check(experiment: Experiment, history: list[dict[str, Any]]) -> None:
    """Raise Diverged if the last row's loss is not finite, or has left for good."""
    row = history[-1]
    losses = [r["train_loss"] for r in history if r["layer"] == row["layer"]]
    last = row["epoch"] == experiment.schedule.epochs
    if not finite(row) or wild(losses, losses[0], last):
        where = f"epoch {row['epoch']}" + (f" of layer {row['layer']}" if row["layer"] else "")
        raise Diverged(
            f"The reconstruction loss was {row['train_loss']:.3g} in {where}, and"
            f" {losses[0]:.3g} before any training; a loss that is not finite, or does not come"
            f" back, is a run that diverged. Try {suspects(experiment)}."
        )


def gather(data: DataSet, unlabelled: int, device: torch.device) -> Tensor:
    """Training images and so many unlabelled ones, uint8 [N, C, H, W], read a block at a time."""
    if not unlabelled:
        return data.train.images.to(device)
    found = len(data.unlabelled or ())
    if data.unlabelled is None or found < unlabelled:
        raise DlopsError(f"unlabelled is {unlabelled}, but {data.name} has {found} of them here.")
    n = len(data.train)
    images = torch.empty((n + unlabelled, *data.train.shape[1:]), dtype=torch.uint8, device=device)
    for split, first, count in ((data.train, 0, n), (data.unlabelled, n, unlabelled)):
        for block in torch.arange(count).split(1000):
            images[first + block[0] : first + block[-1] + 1] = split.take(block).to(device)
    return images


def error(images: Tensor, truth: Tensor) -> float:
    """The mean squared error."""
    return (images - truth).square().mean().item()


def first_of_each_class(labels: np.ndarray, count: int) -> np.ndarray:
    """Ascending positions of the first `count` of each class in labels [N]."""
    rows = [np.flatnonzero(labels == c)[:count] for c in np.unique(labels)]
    return np.sort(np.concatenate(rows))


@torch.no_grad()
def views(body: StackedClassifier, data: DataSet, device: torch.device) -> dict[str, np.ndarray]:
    """t-SNE of every hidden layer's codes, after the activation, of the first test images.

    layer_tsne_K [M, 2] and layer_labels_K [M] for K from 0: 500 images of each class for layer
    HEADLINE, 100 for the others, or all where a class has fewer; layer_spread [layers, 2]: mean
    distance to the own class mean, and between class means. Nothing for a stack with
    relu_logits, of which only the predictions matter.
    """
    if body.relu_logits:
        return {}
    body.eval()
    arrays: dict[str, np.ndarray] = {}
    spread = []
    labels = data.test.labels.numpy()
    for k in range(len(body.encoder)):
        headline = k == min(HEADLINE, len(body.encoder) - 1)
        rows = first_of_each_class(labels, FIRST if headline else OTHERS)
        images = data.test.take(torch.from_numpy(rows)).to(device)
        codes, own = all_codes(body, images, k + 1).cpu().numpy(), labels[rows]
        means = np.stack([codes[own == c].mean(0) for c in np.unique(own)])
        each = means[np.unique(own, return_inverse=True)[1]]
        pairs = np.linalg.norm(means[:, None] - means[None], axis=2)
        between = pairs[np.triu_indices(len(means), 1)].mean()
        spread.append((np.linalg.norm(codes - each, axis=1).mean(), between))
        arrays[f"layer_tsne_{k}"] = tsne(codes, seed=0).astype(np.float32)
        arrays[f"layer_labels_{k}"] = own.astype(np.uint8)
    arrays["layer_spread"] = np.array(spread, np.float32)
    return arrays
