"""3x3 convolutions against torch's own, forward and backward, each way that they can go."""

import weakref

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


WAYS = {  # channels, side, stride that take each
    "torch": (3, 8, 1),
    "small": (3, 2, 1),
    "tiled": (128, 24, 1),
    "tiles for the weights": (3, 32, 1),
    "columns for the weights": (3, 6, 2),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("linear", [True, False])
def test_a_gradient_of_the_gradient_is_right_or_refused(way, linear):
    channels, side, stride = WAYS[way]
    conv = Conv3x3(channels, channels, stride).double()
    images = torch.randn(1, channels, side, side, dtype=torch.float64, requires_grad=True)

    def second(out):
        out = out.sum() if linear else out.square().sum()
        (gradient,) = torch.autograd.grad(out, images, create_graph=True)
        return torch.autograd.grad(
            gradient.square().sum() + conv.weight.square().sum(), conv.weight
        )

    if way in ("small", "tiled"):
        with pytest.raises(RuntimeError, match="create_graph"):
            second(conv(images))
        return
    theirs = functional.conv2d(images, conv.weight, None, stride, 1)
    torch.testing.assert_close(second(conv(images)), second(theirs))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("learns", [(True, False), (False, True)], ids=["images", "weights"])
def test_only_what_learns_gets_a_gradient(way, learns):
    channels, side, stride = WAYS[way]
    conv, images = Conv3x3(channels, channels, stride), torch.randn(2, channels, side, side)
    images.requires_grad_(learns[0])
    conv.requires_grad_(learns[1])
    conv(images).square().sum().backward()
    assert (images.grad is not None, conv.weight.grad is not None) == learns


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("batch", [0, 1])
def test_16_bits_other_strides_and_empty_batches_are_torchs(way, batch):
    channels, side, stride = WAYS[way]
    images = torch.randn(batch, channels, side, side)
    for conv, x in [
        (Conv3x3(channels, 4, stride), images[:0]),
        (Conv3x3(channels, 4, 3), images),
        (Conv3x3(channels, channels, stride).bfloat16(), images.bfloat16()),
    ]:
        wanted = functional.conv2d(x, conv.weight, None, conv.stride, 1)
        torch.testing.assert_close(conv(x), wanted, rtol=0, atol=0)
        conv(x).sum().backward()


@pytest.mark.parametrize("way", WAYS)
def test_autocast_computes_in_bfloat16(way):
    channels, side, stride = WAYS[way]
    conv, images = Conv3x3(channels, channels, stride), torch.randn(2, channels, side, side)
    with torch.autocast("cpu", torch.bfloat16):
        out = conv(images)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert conv.weight.grad.dtype == torch.float32


def test_tracing_leaves_no_fake_numbers_behind():
    conv, images = Conv3x3(128, 128), torch.randn(2, 128, 16, 16)
    wanted = conv(images)
    torch.export.export(conv, (images,))
    torch.testing.assert_close(conv(images), wanted)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_nothing_is_kept_for_them(monkeypatch, mode):
    monkeypatch.setattr(convolution, "TILED_PART", 1)
    alive, spread = [], convolution._windows

    def windows(images):
        found = spread(images)
        alive.append(weakref.ref(found))
        return found

    monkeypatch.setattr(convolution, "_windows", windows)
    join = convolution._join
    most = []
    monkeypatch.setattr(
        convolution,
        "_join",
        lambda *a: (most.append(sum(r() is not None for r in alive)), join(*a)),
    )
    with mode():
        Conv3x3(128, 128)(torch.randn(4, 128, 16, 16))
    assert most == [1, 1, 1, 1]
