"""Quick gradients of depthwise convolutions against torch's own."""

from __future__ import annotations

import copy
import pickle
from typing import cast

import pytest
import timm
import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn

from scenedistill.models.depthwise import DepthwiseConvolution, QuickDepthwise, use_quick_depthwise


@pytest.mark.parametrize("size", [3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("side", [(9, 12), (8, 7)])
@pytest.mark.parametrize("padding", ["half", "none"])
def test_gradients_are_those_of_torch(size: int, stride: int, side: tuple[int, int], padding: str) -> None:
    draw = torch.Generator().manual_seed(0)
    around = size // 2 if padding == "half" else 0
    image = torch.randn(2, 6, *side, generator=draw, dtype=torch.float64, requires_grad=True)
    kernel = torch.randn(6, 1, size, size, generator=draw, dtype=torch.float64, requires_grad=True)
    expected = nn.functional.conv2d(image, kernel, None, stride, around, groups=6)
    found = DepthwiseConvolution.apply(image, kernel, stride, around)
    torch.testing.assert_close(found, expected)
    slope = torch.randn(expected.shape, generator=draw, dtype=torch.float64)
    ours = torch.autograd.grad(found, (image, kernel), slope)
    theirs = torch.autograd.grad(expected, (image, kernel), slope)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "mobilenetv2_050"])
def test_a_network_trains_alike_in_bfloat16(name: str) -> None:
    torch.manual_seed(0)
    plain = timm.create_model(name, num_classes=5).train()
    quick = copy.deepcopy(plain)
    assert use_quick_depthwise(quick) >= 16
    assert list(quick.state_dict()) == list(plain.state_dict())
    images, labels = torch.rand(8, 3, 64, 64), torch.arange(8) % 5
    gradients = []
    for net in (plain, quick):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16):
            scores = net(images)
        torch.autograd.backward(nn.functional.cross_entropy(scores.float(), labels))
        gradients.append(torch.cat([cast(Tensor, parameter.grad).flatten() for parameter in net.parameters()]))
    assert (gradients[1] - gradients[0]).norm() < 0.1 * gradients[0].norm()  # two roundings to 8 bits


def test_other_convolutions_and_other_uses_are_left_alone() -> None:
    net = nn.Sequential(
        nn.Conv2d(4, 4, 3, groups=4, dilation=2),
        nn.Conv2d(4, 8, 3, groups=4),
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 1, groups=4),
        nn.Conv2d(4, 4, (3, 5), groups=4),
        nn.Conv2d(4, 4, 3, groups=4, padding_mode="reflect"),
        nn.Conv2d(4, 4, 3, groups=4, padding=3),
    )
    assert use_quick_depthwise(net) == 0
    depthwise = nn.Sequential(
        nn.Conv2d(4, 4, 3, groups=4, bias=False), Conv2dSame(4, 4, 3, stride=2, groups=4, bias=False)
    )
    assert use_quick_depthwise(depthwise) == 2
    image = torch.rand(1, 4, 9, 9, requires_grad=True)
    assert "DepthwiseConvolution" not in str(depthwise[0](image).grad_fn), "in float32 torch's own is quick enough"
    with torch.autocast("cpu", torch.bfloat16):
        assert "DepthwiseConvolution" in str(depthwise[0](image).grad_fn)
        with torch.no_grad():
            assert depthwise[0](image).dtype == torch.bfloat16
    again = pickle.loads(pickle.dumps(depthwise))
    assert isinstance(again[0], QuickDepthwise)
