"""A classifier whose layers are pretrained greedily, by auto-encoders.

Layer k learns to reproduce the codes of layers 1 to k - 1 from its own, as an
auto-encoder with one hidden layer (Bengio et al. 2007; with `noise`, Vincent
et al. 2008). Then the stack gets an output layer and learns from labels.
"""

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "sigmoid": torch.sigmoid,  # of pixels only
    "linear": lambda x: x,
}
BLOCK = 1000  # images that are encoded or evaluated at once
SAMPLE = 5000  # training images on which the loss is reported

OnEpoch = Callable[[int, int, float, float, torch.optim.Optimizer], None]


class StackedClassifier(nn.Module):
    """Fully connected layers on pixels, and a linear output layer.

    Images are uint8, or floats in [0, 1], of any shape with input_size
    values each.

    sizes: units of the hidden layers
    activation: "relu", "tanh" or "gelu", after each hidden layer
    dropout: share of each hidden layer's units dropped while training
    relu_logits: a ReLU after the output layer. A mistake, kept for study: a
        class whose logit is negative for every image gets no gradient, and
        is never predicted.
    """

    def __init__(
        self,
        sizes: Iterable[int],
        num_classes: int,
        *,
        input_size: int,
        activation: str = "relu",
        dropout: float = 0.0,
        relu_logits: bool = False,
    ):
        super().__init__()
        widths = [input_size, *sizes]
        layers = [nn.Linear(n, units) for n, units in pairwise(widths)]
        self.encoder = nn.ModuleList(layers)
        self.head = nn.Linear(widths[-1], num_classes)
        self.activation = activation
        self.dropout = nn.Dropout(dropout)
        self.relu_logits = relu_logits
        for layer in layers:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    def pixels(self, images: Tensor) -> Tensor:
        """Images [B, ...] -> floats in [0, 1], [B, input_size]."""
        x = images.flatten(1).to(self.head.weight)
        return x / 255 if images.dtype == torch.uint8 else x

    def encode(self, x: Tensor, part: slice) -> Tensor:
        """Through a part of the hidden layers: [B, inputs] -> [B, units]."""
        for layer in list(self.encoder)[part]:
            x = self.dropout(ACTIVATIONS[self.activation](layer(x)))
        return x

    def codes(self, images: Tensor, layers: int | None = None) -> Tensor:
        """Images [B, ...] -> activations [B, units] after so many layers.

        None means all of them; 0 gives the inputs of the first.
        """
        return self.encode(self.pixels(images), slice(layers))

    def features(self, images: Tensor) -> Tensor:
        """Images [B, ...] -> codes of the last layer [B, sizes[-1]]."""
        return self.codes(images)

    def classify(self, features: Tensor) -> Tensor:
        """Features [B, sizes[-1]] -> logits [B, num_classes]."""
        logits = self.head(features)
        return F.relu(logits) if self.relu_logits else logits

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, ...] -> logits [B, num_classes]."""
        return self.classify(self.features(images))


class Decoder(nn.Module):
    """The way back through one layer: its codes [B, units] -> [B, inputs].

    Its weight starts as the layer's, transposed, which leaves far fewer
    units dead than an independent start; with tied=True it remains that.
    """

    def __init__(self, layer: nn.Linear, output: str, tied: bool):
        super().__init__()
        weight = layer.weight.detach()
        self.weight = None if tied else nn.Parameter(weight.T.clone())
        self.bias = nn.Parameter(weight.new_zeros(layer.in_features))
        self.output = output

    def forward(self, codes: Tensor, layer: nn.Linear) -> Tensor:
        weight = layer.weight.T if self.weight is None else self.weight
        return ACTIVATIONS[self.output](F.linear(codes, weight, self.bias))


def make_decoders(
    model: StackedClassifier,
    tied: bool = False,
    hidden: str = "linear",
) -> nn.ModuleList:
    """A decoder for each layer, from the model's weights as they are now.

    The first gives pixels, through a sigmoid. hidden: the others' output. A
    ReLU, though codes are positive, would leave many outputs at 0 for every
    image, without a gradient.
    """
    layers: Any = model.encoder
    outputs = ["sigmoid"] + [hidden] * (len(layers) - 1)
    pairs = zip(layers, outputs, strict=True)
    return nn.ModuleList(Decoder(layer, name, tied) for layer, name in pairs)


def pretrain_layerwise(
    model: StackedClassifier,
    images: Tensor,
    decoders: nn.ModuleList | None = None,
    *,
    start_layer: int = 0,
    start: dict[str, Any] | None = None,
    **training: Any,
) -> nn.ModuleList:
    """Train layer after layer; the earlier ones stay as they are.

    images: [N, ...], uint8 or floats in [0, 1]; on any device, or
        memory-mapped
    decoders: what `make_decoders` gives, which is the default
    start_layer, start: of an interrupted run, the layer (from 0) at which to
        go on, and its first_epoch and optimizer_state
    training: val_images, epochs (for each layer), batch_size, lr, seed,
        noise, on_epoch; see `train_part`

    Returns the decoders. Leaves the model in eval mode.
    """
    decoders = make_decoders(model) if decoders is None else decoders
    for k in range(start_layer, len(model.encoder)):
        own = {**training, **(start or {})} if k == start_layer else training
        train_part(model, decoders, slice(k, k + 1), images, **own)
    return decoders


def train_part(
    model: StackedClassifier,
    decoders: nn.ModuleList,
    part: slice,
    images: Tensor,
    *,
    val_images: Tensor,
    epochs: int,
    batch_size: int,
    lr: float,
    seed: int,
    noise: float = 0.0,
    on_epoch: OnEpoch | None = None,
    first_epoch: int = 0,
    optimizer_state: dict[str, Any] | None = None,
) -> None:
    """Train a part of the layers to reproduce the codes of those below it.

    Mean squared error and Adam. The codes are computed once. Order and noise
    depend on (seed, layer, epoch) alone.

    noise: share of its inputs that the part sees as 0 while it trains
    on_epoch: called with layer (the part's first, from 0), epoch (0 before
        any training), the loss, without noise, on training images (at most
        5,000 of them) and on validation images, and the optimizer
    first_epoch, optimizer_state: where an interrupted run goes on
    """
    model.eval()
    device = model.head.weight.device
    first = part.start or 0
    inputs = all_codes(model, images, first) if first else images
    val_inputs = all_codes(model, val_images, first) if first else val_images
    sample = inputs[:: -(-len(inputs) // SAMPLE)]

    def prepare(batch: Tensor) -> Tensor:
        batch = batch.to(device)
        return batch if first else model.pixels(batch)

    def error(x: Tensor, seen: Tensor) -> Tensor:
        codes = model.encode(seen, part)
        return F.mse_loss(decode(model, decoders, codes, part), x)

    @torch.no_grad()
    def evaluate(inputs: Tensor) -> float:
        total = torch.zeros((), device=device)
        for block in inputs.split(BLOCK):
            x = prepare(block)
            total += len(x) * error(x, x)
        return total.item() / len(inputs)

    trained = nn.ModuleList([*model.encoder[part], *decoders[part]])
    optimizer = torch.optim.Adam(trained.parameters(), lr=lr, fused=True)
    if optimizer_state:
        optimizer.load_state_dict(optimizer_state)

    def train_epoch(number: int) -> None:
        shuffle = torch.Generator().manual_seed(number)
        masks = torch.Generator(device).manual_seed(number)
        order = torch.randperm(len(inputs), generator=shuffle)
        for index in order.to(inputs.device).split(batch_size):
            x = seen = prepare(inputs[index])
            if noise:
                draw = torch.rand(x.shape, generator=masks, device=device)
                seen = x * (draw >= noise)
            loss = error(x, seen)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    for epoch in range(first_epoch, epochs + 1):
        if epoch > 0:
            train_epoch((seed * 1000 + first) * 100_000 + epoch)
        if on_epoch is not None:
            losses = evaluate(sample), evaluate(val_inputs)
            on_epoch(first, epoch, *losses, optimizer)


def decode(
    model: StackedClassifier,
    decoders: nn.ModuleList,
    codes: Tensor,
    part: slice,
) -> Tensor:
    """Back through a part of the layers: [B, units] -> [B, inputs]."""
    for k in reversed(range(len(decoders))[part]):
        codes = decoders[k](codes, model.encoder[k])
    return codes


@torch.no_grad()
def all_codes(model: StackedClassifier, images: Tensor, k: int) -> Tensor:
    """Codes after k layers of images [N, ...], on the model's device."""
    device = model.head.weight.device
    blocks = images.split(BLOCK)
    return torch.cat([model.codes(block.to(device), k) for block in blocks])


@torch.no_grad()
def reconstruct(
    model: StackedClassifier,
    decoders: nn.ModuleList,
    images: Tensor,
    layers: int | None = None,
) -> Tensor:
    """Images [B, ...] through so many layers and back, floats in [0, 1].

    Without dropout only in eval mode; layers=None means all of them.
    """
    codes = model.codes(images, layers)
    x = decode(model, decoders, codes, slice(layers))
    return x.clamp(0, 1).view(images.shape)
