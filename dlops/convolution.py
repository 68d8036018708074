"""3x3 convolutions of small maps, which a CPU computes faster as matrix products.

Deep in a ResNet18 a map has few pixels. There the CPU's library computes the gradient of the
weights at a fraction of a matrix product's speed, and a map of at most 2x2 pixels spends most of
its operations on padding. The values are those of `nn.Conv2d`, rounding aside, on every device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

DENSE_SIDE = 2  # up to this side of the input, every output pixel sees every input pixel
SMALL_SIDE = 4  # up to this side of the output, the gradient of the weights is one product


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution with padding 1 and no bias, for batch normalisation follows.

    [B, in_channels, H, W] -> [B, out_channels, ceil(H / stride), ceil(W / stride)].
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, 3, stride, 1, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """The convolution, in the way that suits the map's size; on CUDA and under autocast, and of
        maps that are not square, torch's own.
        """
        side, stride = max(images.shape[2:]), self.stride[0]
        square = images.shape[2] == images.shape[3]
        if images.is_cuda or not square or torch.is_autocast_enabled(images.device.type):
            return super().forward(images)
        if side <= DENSE_SIDE:
            return _Dense.apply(images, self.weight, stride)
        if -(-side // stride) <= SMALL_SIDE:
            return _Small.apply(images, self.weight, stride)
        return super().forward(images)


class _Small(torch.autograd.Function):
    """The convolution, with the gradient of its weights as one matrix product."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(images, weight)
        ctx.stride = stride
        return functional.conv2d(images, weight, None, stride, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, weight = ctx.saved_tensors
        stride, (out_channels, in_channels) = ctx.stride, weight.shape[:2]
        back = None
        if ctx.needs_input_grad[0]:
            shape = [stride] * 2, [1, 1], [1, 1], False, [0, 0], 1, [True, False, False]
            back = torch.ops.aten.convolution_backward(gradient, images, weight, None, *shape)[0]
        if not ctx.needs_input_grad[1]:
            return back, None, None
        padded = functional.pad(images.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
        windows = padded.unfold(1, 3, stride).unfold(2, 3, stride)  # [B, H', W', C, 3, 3]
        columns = windows.permute(0, 1, 2, 4, 5, 3).reshape(-1, 9 * in_channels)
        product = gradient.permute(0, 2, 3, 1).reshape(-1, out_channels).t() @ columns
        return back, product.view(out_channels, 3, 3, in_channels).permute(0, 3, 1, 2), None


class _Dense(torch.autograd.Function):
    """The convolution of a map of at most 2x2 pixels, as the linear layer that it is."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, stride: int) -> Tensor:
        batch, side = len(images), images.shape[2]
        pixels = images.permute(0, 2, 3, 1).flatten(1)
        taps = weight.permute(0, 2, 3, 1)
        matrix = torch.cat([taps[:, y, x].flatten(1) for y, x in _seen(side, stride)])
        ctx.save_for_backward(pixels, matrix)
        ctx.shape, ctx.stride = (batch, side, *weight.shape[:2]), stride
        out = -(-side // stride)
        return (pixels @ matrix.t()).view(batch, out, out, len(weight)).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        pixels, matrix = ctx.saved_tensors
        batch, side, out_channels, in_channels = ctx.shape
        gradient = gradient.permute(0, 2, 3, 1).flatten(1)
        back = None
        if ctx.needs_input_grad[0]:
            back = (gradient @ matrix).view(batch, side, side, in_channels).permute(0, 3, 1, 2)
        if not ctx.needs_input_grad[1]:
            return back, None, None
        total = pixels.new_zeros(out_channels, 3, 3, in_channels)
        parts = (gradient.t() @ pixels).split(out_channels)
        for (y, x), part in zip(_seen(side, ctx.stride), parts):
            total[:, y, x] += part.view(out_channels, side, side, in_channels)
        return back, total.permute(0, 3, 1, 2), None


def _seen(side: int, stride: int) -> list[tuple[slice, slice]]:
    """The rows and columns of the kernel that lie on the map, for each output pixel."""
    rows = [slice(1 - y, 1 - y + side) for y in range(0, side, stride)]
    return [(y, x) for y in rows for x in rows]
