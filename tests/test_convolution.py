"""Convolutions of small maps against torch's own, forward and backward."""

import pytest
import torch
from torch.nn import functional

from dlops import convolution
from dlops.convolution import Conv3x3

SIDES = [1, 2, 3, 4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("many", [1, 99], ids=["many channels", "few channels"])
def test_values_and_both_gradients_are_torchs(monkeypatch, side, stride, layout, many):
    monkeypatch.setattr(convolution, "MANY_CHANNELS", many)
    monkeypatch.setattr(convolution, "MANY_TILES", 3)
    monkeypatch.setattr(convolution, "LARGE_SIDE", 7)
    for part in ("TILED_PART", "COLUMNS_PART", "GRADIENT_PART"):
        monkeypatch.setattr(convolution, part, 1500)  # parts of one image up to all three
    generator = torch.Generator().manual_seed(side)
    conv = Conv3x3(5, 7, stride).double().to(memory_format=layout)
    images = torch.randn(3, 5, side, side, generator=generator, dtype=torch.float64)
    images = images.to(memory_format=layout).requires_grad_()
    out = conv(images)
    theirs = functional.conv2d(images, conv.weight, None, stride, 1)
    assert out.shape == theirs.shape
    torch.testing.assert_close(out, theirs)
    upstream = torch.randn(out.shape, generator=generator, dtype=torch.float64)
    wanted = torch.autograd.grad(theirs, (images, conv.weight), upstream)
    given = torch.autograd.grad(out, (images, conv.weight), upstream)
    torch.testing.assert_close(given, wanted)


@pytest.mark.parametrize(("side", "stride"), [(1, 1), (2, 1), (2, 2), (4, 1), (8, 2)])
def test_gradcheck(side, stride):
    conv = Conv3x3(2, 3, stride).double()
    images = torch.randn(2, 2, side, side, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: _with(conv, w)(x), (images, conv.weight.detach()))


def _with(conv, weight):
    return lambda x: torch.func.functional_call(conv, {"weight": weight}, (x,))


@pytest.mark.parametrize(
    "shape", [(2, 3, 1, 2), (2, 3, 2, 4), (2, 3, 4, 1), (0, 3, 2, 2), (0, 3, 4, 4)]
)
def test_maps_that_are_not_square_and_empty_batches(shape):
    conv, images = Conv3x3(3, 4), torch.ones(shape)
    torch.testing.assert_close(conv(images), functional.conv2d(images, conv.weight, None, 1, 1))


@pytest.mark.parametrize("side", [2, 4])
def test_input_that_needs_no_gradient_gets_none(side):
    conv, images = Conv3x3(3, 4), torch.randn(2, 3, side, side)
    conv(images).square().sum().backward()
    assert images.grad is None
    assert conv.weight.grad is not None


@pytest.mark.parametrize("side", [2, 4])
def test_frozen_weights_let_the_gradient_through(side):
    conv, images = Conv3x3(3, 4).requires_grad_(False), torch.randn(2, 3, side, side)
    conv(images.requires_grad_()).square().sum().backward()
    assert images.grad is not None and conv.weight.grad is None


@pytest.mark.parametrize("side", [2, 4, 8])
def test_autocast_computes_in_bfloat16(side):
    conv, images = Conv3x3(3, 4), torch.randn(2, 3, side, side)
    with torch.autocast("cpu", torch.bfloat16):
        out = conv(images)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert conv.weight.grad.dtype == torch.float32


@pytest.mark.parametrize(("channels", "side", "stride"), [(3, 2, 1), (128, 24, 1), (3, 4, 2)])
def test_a_gradient_of_the_gradient_is_refused(channels, side, stride):
    conv = Conv3x3(channels, channels, stride)
    images = torch.randn(1, channels, side, side, requires_grad=True)
    (gradient,) = torch.autograd.grad(conv(images).square().sum(), images, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
