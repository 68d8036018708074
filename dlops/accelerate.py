"""Faster 3x3 convolutions, for training in float32 on a processor with AVX2 and no more.

The definition is not the shortest way to its sums: with many channels tiles take four times fewer
products, and on a map of at most 2x2 pixels most of the definition's are of padding. The values
are those of `nn.Conv2d`, rounding aside: of float32's seven decimals tiles lose one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

SMALL_SIDE = 2  # up to this side of the output, a product for each of its pixels is fastest
MANY_CHANNELS = 128  # from here on, tiles pay
PART = 6_000_000  # numbers that a part of the batch becomes, to stay in the CPU's cache


def accelerate(network: nn.Module) -> bool:
    """Let the network's 3x3 convolutions compute faster, where they can here; whether any does.

    In place, by their class: parameters, names and copies are as before. For training alone:
    what is to be scripted, traced or exported is left as it is. DLOPS_ACCELERATE=0 forbids it.
    """
    if torch.backends.cpu.get_cpu_capability() != "AVX2" or os.getenv("DLOPS_ACCELERATE") == "0":
        return False
    found = [module for module in network.modules() if _fits(module)]
    for module in found:
        module.__class__ = Conv3x3
    return bool(found)


def _fits(m: nn.Module) -> bool:
    return (
        type(m) is nn.Conv2d
        and (m.kernel_size, m.padding, m.dilation, m.groups) == ((3, 3), (1, 1), (1, 1), 1)
        and (m.stride in ((1, 1), (2, 2)) and m.padding_mode == "zeros" and m.bias is None)
        and (m.weight.device.type, m.weight.dtype) == ("cpu", torch.float32)
    )


class Conv3x3(nn.Conv2d):
    """In the way that suits its size; torch's own on a GPU, in 16 bits, and of oblong maps."""

    def forward(self, images: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, out_channels, ceil(H / stride), ceil(W / stride)]."""
        side, stride = images.shape[2], self.stride[0]
        suits = side == images.shape[3] and images.dtype.itemsize >= 4
        if images.device.type != "cpu" or torch.is_autocast_enabled("cpu") or not suits:
            return super().forward(images)
        if side <= SMALL_SIDE * stride:
            return _Small.apply(images, self.weight, stride)
        if stride == 1 and min(self.weight.shape[:2]) >= MANY_CHANNELS:
            learns = torch.is_grad_enabled() and self.weight.requires_grad
            return _Tiled.apply(images, self.weight, learns)
        return super().forward(images)


class _Small(torch.autograd.Function):
    """The convolution onto few pixels: a product of each row that one sees with its weights."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, stride: int) -> Tensor:
        pixels, taps = (x.permute(0, 2, 3, 1).contiguous() for x in (images, weight))
        ctx.save_for_backward(pixels, taps)
        ctx.stride, side = stride, -(-images.shape[2] // stride)
        out = images.new_zeros(len(images), side, side, len(weight))
        for pixel, row, kernel in _seen(pixels, taps, stride):
            out[pixel].addmm_(row, kernel.t())
        return out.permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_twice()
        pixels, taps = ctx.saved_tensors
        back, total = torch.zeros_like(pixels), torch.zeros_like(taps)
        gradient = gradient.permute(0, 2, 3, 1)
        both = zip(_seen(pixels, taps, ctx.stride), _seen(back, total, ctx.stride))
        for (pixel, row, kernel), (_, row_sum, kernel_sum) in both:
            if ctx.needs_input_grad[0]:
                row_sum.addmm_(gradient[pixel], kernel)
            if ctx.needs_input_grad[1]:
                kernel_sum.addmm_(gradient[pixel].t(), row)
        return back.permute(0, 3, 1, 2), total.permute(0, 3, 1, 2), None


def _seen(pixels: Tensor, taps: Tensor, stride: int) -> Iterator[tuple[Any, Tensor, Tensor]]:
    """For each row that an output pixel sees: where the pixel is, the row and its weights, flat."""
    side = pixels.shape[1]
    for y, x in product(range(0, side, stride), repeat=2):
        left, right = max(x - 1, 0), min(x + 2, side)
        for row in range(max(y - 1, 0), min(y + 2, side)):
            kernel = taps[:, row - y + 1, left - x + 1 : right - x + 1].flatten(1)
            place = slice(None), y // stride, x // stride
            yield place, pixels[:, row, left:right].flatten(1), kernel


# F(4x4, 3x3) of Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks": pixels
# and taps as polynomials, multiplied by their values at five points and at infinity. For a row:
# result @ ((taps @ kernel) * (pixels @ row)). Here each matrix is applied to rows and columns.
TILE, SEEN, POINTS = 4, 6, (0, 1, -1, 2, -2)


def _matrices() -> list[Tensor]:
    values, infinity = np.vander(POINTS, SEEN, increasing=True), np.eye(SEEN)[::-1]
    zeros = [np.poly(np.delete(POINTS, i))[::-1] for i in range(len(POINTS))]  # at all but one
    scale = (values[:, :-1] * zeros).sum(1, keepdims=True)
    pixels = np.vstack([np.pad(zeros, ((0, 0), (0, 1))), np.poly(POINTS)[::-1]])
    taps = np.vstack([values[:, :3] / scale, infinity[0, -3:]])
    result = np.vstack([values[:, :TILE], infinity[0, -TILE:]]).T
    return [torch.from_numpy(np.kron(m, m)) for m in (pixels, taps, result)]


PIXELS, TAPS, RESULT = _matrices()


class _Tiled(torch.autograd.Function):
    """The convolution with stride 1 in tiles of 4x4 pixels, each from the 6x6 that it sees."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, learns: bool) -> Tensor:
        out, windows = _convolve(images, _kernels(weight, TAPS).transpose(1, 2), learns)
        ctx.save_for_backward(weight, *windows)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_twice()
        weight, *windows = ctx.saved_tensors
        back = total = None
        if ctx.needs_input_grad[0]:
            back = _convolve(gradient, _kernels(weight, TAPS.flip(1)), False)[0]
        if windows:
            total = gradient.new_zeros(SEEN**2, *weight.shape[:2])
            for part, seen in zip(_parts(gradient, weight.shape[1]), windows):
                total.baddbmm_(_products(gradient[part]).transpose(1, 2), seen)
            total = (TAPS.t().to(total) @ total.flatten(1)).view(3, 3, *weight.shape[:2])
            total = total.permute(2, 3, 0, 1)
        return back, total, None


def _refuse_twice() -> None:
    """Backward uses numbers made of the weights and images, through which no gradient flows."""
    if torch.is_grad_enabled():
        raise RuntimeError("Conv3x3 has no gradient of its gradient; leave out create_graph.")


def _kernels(weight: Tensor, taps: Tensor) -> Tensor:
    """[out, in, 3, 3] -> [36, out, in]."""
    kernels = taps.to(weight) @ weight.permute(2, 3, 0, 1).reshape(9, -1)
    return kernels.view(-1, *weight.shape[:2])


def _convolve(images: Tensor, kernels: Tensor, keep: bool) -> tuple[Tensor, list[Tensor]]:
    """Images [B, in, side, side] and kernels [36, in, out] -> [B, out, side, side], and what the
    tiles saw, if it is to be kept.
    """
    channels, side, kept = kernels.shape[2], images.shape[2], []
    out = images.new_empty(len(images), side, side, channels)
    for part in _parts(images, channels):
        windows = _windows(images[part])
        tiles = RESULT.to(images) @ torch.bmm(windows, kernels).flatten(1)
        count = -(-side // TILE)
        tiles = tiles.view(TILE, TILE, -1, count, count, channels).permute(2, 3, 0, 4, 1, 5)
        out[part] = tiles.flatten(3, 4).flatten(1, 2)[:, :side, :side]
        if keep:
            kept.append(windows)
    return out.permute(0, 3, 1, 2), kept


def _parts(images: Tensor, channels: int) -> list[slice]:
    """The batch in parts of about PART numbers as windows; `channels` are the other side's."""
    tiles = -(-images.shape[2] // TILE)
    step = max(1, round(PART / (tiles * SEEN) ** 2 / max(images.shape[1], channels)))
    return [slice(start, start + step) for start in range(0, len(images), step)]


def _windows(images: Tensor) -> Tensor:
    """What each tile sees, transformed: [B, C, side, side] -> [36, B x tiles, C]."""
    channels, side = images.shape[1:3]
    after = -side % TILE + 1
    padded = functional.pad(images.permute(0, 2, 3, 1), (0, 0, 1, after, 1, after))
    windows = padded.unfold(1, SEEN, TILE).unfold(2, SEEN, TILE).permute(4, 5, 0, 1, 2, 3)
    return (PIXELS.to(images) @ windows.reshape(SEEN**2, -1)).view(SEEN**2, -1, channels)


def _products(gradient: Tensor) -> Tensor:
    """The gradient of the products: that of the result [B, C, side, side] -> [36, B x tiles, C]."""
    channels, after = gradient.shape[1], -gradient.shape[2] % TILE
    padded = functional.pad(gradient.permute(0, 2, 3, 1), (0, 0, 0, after, 0, after))
    tiles = padded.unflatten(1, (-1, TILE)).unflatten(3, (-1, TILE)).permute(2, 4, 0, 1, 3, 5)
    return (RESULT.t().to(gradient) @ tiles.reshape(TILE**2, -1)).view(SEEN**2, -1, channels)
