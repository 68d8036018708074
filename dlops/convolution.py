"""3x3 convolutions that a CPU computes faster as matrix products.

The definition is not the shortest way to its sums: with many channels tiles take four times fewer
products, and on a map of at most 2x2 pixels most of the definition's are of padding. Where neither
helps, the gradient of the weights still can be had faster than the CPU's library computes it.
The values are those of `nn.Conv2d`, rounding aside: of float32's seven decimals tiles lose one.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

SMALL_SIDE = 2  # up to this side of the output, a product for each of its pixels is fastest
MANY_CHANNELS, MANY_TILES = 128, 32  # from here on, tiles pay for all of the convolution
LARGE_SIDE = 32  # from this side on, they pay for the gradient of the weights

# Numbers that a part of the batch becomes, to stay in the CPU's cache.
TILED_PART, COLUMNS_PART, GRADIENT_PART = 6_000_000, 2_500_000, 400_000

# F(4x4, 3x3) of Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks", with
# the points 0, 1, -1, 2 and -2. For a row: result @ ((taps @ kernel) * (pixels @ row)).
TILE, SEEN = 4, 6
PIXELS = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
TAPS = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
RESULT = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution with padding 1 and no bias, for batch normalisation follows.

    [B, in_channels, H, W] -> [B, out_channels, ceil(H / stride), ceil(W / stride)].
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, 3, stride, 1, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """The convolution, in the way that suits its size; torch's own on a GPU, in 16 bits, and
        of maps that are not square.
        """
        side, stride = images.shape[2], self.stride[0]
        suits = side == images.shape[3] and images.dtype.itemsize >= 4 and stride <= 2
        if images.device.type != "cpu" or torch.is_autocast_enabled("cpu") or not suits:
            return super().forward(images)
        if side <= SMALL_SIDE * stride:
            return _Small.apply(images, self.weight, stride)
        many = min(self.weight.shape[:2]) >= MANY_CHANNELS
        if stride == 1 and many and len(images) * _tiles(side) ** 2 >= MANY_TILES:
            learns = torch.is_grad_enabled() and self.weight.requires_grad
            return _Tiled.apply(images, self.weight, learns)
        if stride == 2 or side >= LARGE_SIDE:
            return _Direct.apply(images, self.weight, stride)
        return super().forward(images)


class _Tiled(torch.autograd.Function):
    """The convolution with stride 1 in tiles of 4x4 pixels, each from the 6x6 that it sees."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, learns: bool) -> Tensor:
        batch, in_channels, side, _ = images.shape
        kernels, tiled = _kernels(weight), []
        out = images.new_empty(batch, side, side, len(weight))
        for part in _parts(batch, _numbers(images, len(weight)), TILED_PART):
            windows = _windows(images[part])
            products = torch.bmm(windows, kernels.transpose(1, 2))
            _join(_both(RESULT, images) @ products.flatten(1), out[part])
            if learns:
                tiled.append(windows)
        ctx.save_for_backward(kernels, *tiled)
        ctx.shape = batch, side, side, in_channels
        return out.permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_twice()
        kernels, *tiled = ctx.saved_tensors
        back = gradient.new_empty(ctx.shape) if ctx.needs_input_grad[0] else None
        total = torch.zeros_like(kernels) if tiled else None
        parts = _parts(len(gradient), _numbers(gradient, ctx.shape[3]), TILED_PART)
        for i, part in enumerate(parts):
            products = _products(gradient[part])
            if total is not None:
                total.baddbmm_(products.transpose(1, 2), tiled[i])
            if back is not None:
                windows = torch.bmm(products, kernels).flatten(1)
                _overlay(_both(PIXELS, gradient).t() @ windows, back[part])
        return (
            None if back is None else back.permute(0, 3, 1, 2),
            None if total is None else _taps(total),
            None,
        )


class _Direct(torch.autograd.Function):
    """The convolution as torch computes it, with another way to the gradient of its weights."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(images, weight)
        ctx.stride = stride
        return functional.conv2d(images, weight, None, stride, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, weight = ctx.saved_tensors
        stride, back, total = ctx.stride, None, None
        if ctx.needs_input_grad[0]:
            shape = [stride] * 2, [1, 1], [1, 1], False, [0, 0], 1, [True, False, False]
            back = torch.ops.aten.convolution_backward(gradient, images, weight, None, *shape)[0]
        if ctx.needs_input_grad[1]:
            total = (_from_tiles if stride == 1 else _from_columns)(images, gradient)
        return back, total, None


def _from_tiles(images: Tensor, gradient: Tensor) -> Tensor:
    """The gradient of the weights, with stride 1."""
    total = images.new_zeros(SEEN**2, gradient.shape[1], images.shape[1])
    for part in _parts(len(images), _numbers(images, gradient.shape[1]), GRADIENT_PART):
        total.baddbmm_(_products(gradient[part]).transpose(1, 2), _windows(images[part]))
    return _taps(total)


def _from_columns(images: Tensor, gradient: Tensor) -> Tensor:
    """The gradient of the weights, with stride 2."""
    out_channels, width = gradient.shape[1], 9 * images.shape[1]
    total = images.new_zeros(out_channels, width)
    for part in _parts(len(images), width * gradient.shape[2] ** 2, COLUMNS_PART):
        padded = functional.pad(images[part].permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
        windows = padded.unfold(1, 3, 2).unfold(2, 3, 2).permute(0, 1, 2, 4, 5, 3)
        rows = gradient[part].permute(0, 2, 3, 1).reshape(-1, out_channels)
        total.addmm_(rows.t(), windows.reshape(-1, width))
    return total.view(out_channels, 3, 3, -1).permute(0, 3, 1, 2)


class _Small(torch.autograd.Function):
    """The convolution onto few pixels: a sum of matrix products, each of one row of what an output
    pixel sees with the weights for it, which lie side by side, channels last.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, stride: int) -> Tensor:
        rows, taps = _rows(images), _rows(weight).flatten(1)
        ctx.save_for_backward(rows, taps)
        ctx.shape, ctx.stride = images.permute(0, 2, 3, 1).shape, stride
        out_side = -(-images.shape[2] // stride)
        out = images.new_zeros(len(images), out_side, out_side, len(weight))
        for pixel, row, kernel in _seen(ctx.shape, stride):
            out[pixel].addmm_(rows[row], taps[kernel].t())
        return out.permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_twice()
        rows, taps = ctx.saved_tensors
        gradient = gradient.permute(0, 2, 3, 1)
        back = torch.zeros_like(rows) if ctx.needs_input_grad[0] else None
        total = torch.zeros_like(taps) if ctx.needs_input_grad[1] else None
        for pixel, row, kernel in _seen(ctx.shape, ctx.stride):
            if back is not None:
                back[row].addmm_(gradient[pixel], taps[kernel])
            if total is not None:
                total[kernel].addmm_(gradient[pixel].t(), rows[row])
        return (
            None if back is None else back.view(ctx.shape).permute(0, 3, 1, 2),
            None if total is None else total.view(len(taps), 3, 3, -1).permute(0, 3, 1, 2),
            None,
        )


def _rows(images: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, H, W x C]."""
    return images.permute(0, 2, 3, 1).flatten(2)


def _seen(shape: torch.Size, stride: int) -> Iterator[tuple[tuple[Any, ...], ...]]:
    """For each row that an output pixel sees of maps [B, H, W, C]: where the pixel is, where the
    row's numbers are, and where the weights for them.
    """
    side, channels = shape[2:]
    for y, x in product(range(0, side, stride), repeat=2):
        left, right = max(x - 1, 0), min(x + 2, side)
        for row in range(max(y - 1, 0), min(y + 2, side)):
            tap = 3 * (row - y + 1) + left - x + 1
            yield (
                (slice(None), y // stride, x // stride),
                (slice(None), row, slice(left * channels, right * channels)),
                (slice(None), slice(tap * channels, (tap + right - left) * channels)),
            )


def _refuse_twice() -> None:
    """Backward uses numbers made of the weights and images, through which no gradient flows."""
    if torch.is_grad_enabled():
        raise RuntimeError("Conv3x3 has no gradient of its gradient; leave out create_graph.")


def _parts(batch: int, numbers: int, limit: int) -> Iterator[slice]:
    """The batch in parts of at most about `limit` numbers, where an image becomes so many."""
    step = max(1, round(limit / numbers))
    return (slice(start, start + step) for start in range(0, batch, step))


def _numbers(images: Tensor, channels: int) -> int:
    """How many an image becomes in tiles, with the more of its and the result's channels."""
    return (_tiles(images.shape[2]) * SEEN) ** 2 * max(images.shape[1], channels)


def _tiles(side: int) -> int:
    return -(-side // TILE)


def _both(matrix: tuple[tuple[float, ...], ...], like: Tensor) -> Tensor:
    """The matrix applied to rows and to columns, as one."""
    once = torch.tensor(matrix, dtype=torch.float64, device="cpu")
    return torch.kron(once, once).to(like.dtype)


def _kernels(weight: Tensor) -> Tensor:
    """[out, in, 3, 3] -> [36, out, in]."""
    taps = weight.permute(2, 3, 0, 1).reshape(9, -1)
    return (_both(TAPS, weight) @ taps).view(-1, *weight.shape[:2])


def _taps(kernels: Tensor) -> Tensor:
    """The gradient of the kernels -> that of the weights: [36, out, in] -> [out, in, 3, 3]."""
    taps = _both(TAPS, kernels).t() @ kernels.flatten(1)
    return taps.view(3, 3, *kernels.shape[1:]).permute(2, 3, 0, 1)


def _windows(images: Tensor) -> Tensor:
    """What each tile sees, transformed: [B, C, side, side] -> [36, B x tiles, C]."""
    channels, side = images.shape[1:3]
    after = _tiles(side) * TILE - side + 1
    padded = functional.pad(images.permute(0, 2, 3, 1), (0, 0, 1, after, 1, after))
    windows = padded.unfold(1, SEEN, TILE).unfold(2, SEEN, TILE).permute(4, 5, 0, 1, 2, 3)
    return (_both(PIXELS, images) @ windows.reshape(SEEN**2, -1)).view(SEEN**2, -1, channels)


def _overlay(windows: Tensor, out: Tensor) -> None:
    """The sum of windows where they overlap: [36, B x tiles x C] into [B, side, side, C]."""
    batch, side, _, channels = out.shape
    tiles = _tiles(side)
    windows = windows.view(SEEN, SEEN, batch, tiles, tiles, channels).permute(2, 3, 0, 4, 1, 5)
    total = windows.new_empty(batch, tiles + 1, TILE, tiles + 1, TILE, channels)
    total[:, tiles] = 0
    total[:, :, :, tiles] = 0
    mine, shared = slice(0, TILE), slice(TILE, SEEN)  # a window ends on the next tile
    total[:, :tiles, :, :tiles] = windows[:, :, mine, :, mine]
    for y, x in ((0, 1), (1, 0), (1, 1)):
        part = windows[:, :, (mine, shared)[y], :, (mine, shared)[x]]
        total[:, y : y + tiles, : part.shape[2], x : x + tiles, : part.shape[4]] += part
    out.copy_(total.flatten(3, 4).flatten(1, 2)[:, 1 : side + 1, 1 : side + 1])


def _products(gradient: Tensor) -> Tensor:
    """The gradient of the products: that of the result [B, C, side, side] -> [36, B x tiles, C]."""
    channels, side = gradient.shape[1:3]
    after = _tiles(side) * TILE - side
    padded = functional.pad(gradient.permute(0, 2, 3, 1), (0, 0, 0, after, 0, after))
    tiles = padded.unflatten(1, (-1, TILE)).unflatten(3, (-1, TILE)).permute(2, 4, 0, 1, 3, 5)
    return (_both(RESULT, gradient).t() @ tiles.reshape(TILE**2, -1)).view(SEEN**2, -1, channels)


def _join(tiles: Tensor, out: Tensor) -> None:
    """[16, B x tiles x C] into [B, side, side, C]."""
    batch, side, _, channels = out.shape
    shape = TILE, TILE, batch, _tiles(side), _tiles(side), channels
    pixels = tiles.view(shape).permute(2, 3, 0, 4, 1, 5).flatten(3, 4).flatten(1, 2)
    out.copy_(pixels[:, :side, :side])
