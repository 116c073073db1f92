"""Depthwise convolutions whose bfloat16 gradients are quick on a CPU."""

from __future__ import annotations

from typing import Any, cast

import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.padding import pad_same
from torch import Tensor, nn
from torch.nn import functional as F


def use_quick_depthwise(network: nn.Module) -> int:
    """Give every depthwise convolution of a network quick gradients, in place.

    Parameters, names and results stay the same, the results up to rounding. What is not a depthwise convolution with an
    odd square kernel of 3 or more and no dilation stays as it is.

    Returns:
        Number of convolutions that were changed.
    """
    found = 0
    for module in network.modules():
        if type(module) in _QUICK and _fits(cast(nn.Conv2d, module)):
            module.__class__ = _QUICK[type(module)]
            found += 1
    return found


def _fits(convolution: nn.Conv2d) -> bool:
    height, width = convolution.kernel_size
    across, down = convolution.stride
    return (
        convolution.groups == convolution.in_channels == convolution.out_channels > 1
        and height == width >= 3
        and height % 2 == 1
        and across == down
        and convolution.dilation == (1, 1)
        and convolution.padding_mode == "zeros"
        and not isinstance(convolution.padding, str)
        and convolution.padding[0] == convolution.padding[1]
    )


class QuickDepthwise(nn.Conv2d):
    """A depthwise convolution that takes `DepthwiseConvolution` where that pays: a bfloat16 training step on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        """`[B, C, H, W]` to `[B, C, H', W']`."""
        if not _pays(self, input):
            return super().forward(input)
        return _convolve(self, input, cast(int, self.padding[0]))


class QuickDepthwiseSame(Conv2dSame):
    """The same with TensorFlow's "same" padding, as timm's `tf_` networks have it."""

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` to `[B, C, H', W']`."""
        if not _pays(self, x):
            return cast(Tensor, super().forward(x))  # type: ignore[no-untyped-call]
        return _convolve(self, pad_same(x, list(self.kernel_size), list(self.stride), list(self.dilation)), 0)


_QUICK: dict[type[nn.Module], type[nn.Module]] = {nn.Conv2d: QuickDepthwise, Conv2dSame: QuickDepthwiseSame}


def _pays(module: nn.Module, image: Tensor) -> bool:
    half = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    return (
        module.training
        and torch.is_grad_enabled()
        and image.device.type == "cpu"
        and (half or image.dtype == torch.bfloat16)
        and not torch.compiler.is_compiling()
    )


def _convolve(module: nn.Conv2d, image: Tensor, padding: int) -> Tensor:
    kernel = module.weight.to(torch.bfloat16)
    answer = cast(Tensor, DepthwiseConvolution.apply(image.to(torch.bfloat16), kernel, module.stride[0], padding))
    return answer if module.bias is None else answer + module.bias.to(answer.dtype)[:, None, None]


class DepthwiseConvolution(torch.autograd.Function):
    """A depthwise convolution with gradients made of the operations that oneDNN has quick bfloat16 kernels for.

    Of torch 2.14's own gradients two are 10 to 100 times slower in bfloat16 than in float32: that of the input with a
    stride of 2, which here is a convolution of the gradient with zeros put between its pixels, and that of kernels
    larger than 3 x 3, which here is made of those of overlapping 3 x 3 parts.
    `benchmarks/depthwise.py` measures both.
    """

    @staticmethod
    def forward(ctx: Any, image: Tensor, kernel: Tensor, stride: int, padding: int) -> Tensor:
        """Convolve `[B, C, H, W]` with `[C, 1, k, k]`."""
        ctx.save_for_backward(image, kernel)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(image, kernel, None, stride, padding, groups=len(kernel))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        """Gradients of image and kernel."""
        image, kernel = ctx.saved_tensors
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        of_image = of_kernel = None
        if ctx.needs_input_grad[0]:
            of_image = _image_gradient(gradient, kernel, ctx.stride, ctx.padding, image.shape)
        if ctx.needs_input_grad[1]:
            of_kernel = _kernel_gradient(image, gradient, kernel.shape[2], ctx.stride, ctx.padding)
        return of_image, of_kernel, None, None


def _image_gradient(gradient: Tensor, kernel: Tensor, stride: int, padding: int, shape: torch.Size) -> Tensor:
    batch, channels, height, width = shape
    size = kernel.shape[2]
    if stride > 1:
        # as large as makes a convolution with the full kernel end at the image's size
        spread = gradient.new_zeros(batch, height + 2 * padding - size + 1, width + 2 * padding - size + 1, channels)
        spread = spread.permute(0, 3, 1, 2)
        spread[:, :, ::stride, ::stride] = gradient
        gradient = spread
    return F.conv2d(gradient, kernel.flip(2, 3), None, 1, size - 1 - padding, groups=channels)


def _kernel_gradient(image: Tensor, gradient: Tensor, size: int, stride: int, padding: int) -> Tensor:
    channels = image.shape[1]
    rows, columns = (stride * (side - 1) + 3 for side in gradient.shape[2:])
    if size > 3:
        around = (0, 0, padding, padding, padding, padding)
        image, padding = F.pad(image.permute(0, 2, 3, 1), around).permute(0, 3, 1, 2), 0
    starts = sorted({*range(0, size - 2, 3), size - 3})
    small = image.new_empty(channels, 1, 3, 3)
    whole = image.new_empty(channels, 1, size, size)
    for top in starts:
        for left in starts:
            part = image
            if size > 3:
                part = image[:, :, top : top + rows, left : left + columns]
                part = part.contiguous(memory_format=torch.channels_last)
            whole[:, :, top : top + 3, left : left + 3] = torch.ops.aten.convolution_backward(
                gradient, part, small, None, (stride, stride), (padding, padding), (1, 1), False, (0, 0), channels,
                (False, True, False),
            )[1]  # fmt: skip
    return whole
