"""Depthwise convolutions with fast bfloat16 gradients on a CPU."""

from __future__ import annotations

from typing import Any, cast

import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.padding import pad_same
from torch import Tensor, nn
from torch.nn import functional as F


def use_quick_depthwise(network: nn.Module) -> int:
    """Replace the gradients of depthwise convolutions of a network by faster ones, in place.

    Parameters, names and, up to rounding, results stay the same. Only depthwise convolutions with an odd square kernel
    of at least 3 x 3 and without dilation are changed.

    Returns:
        Number of changed convolutions.
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
        and convolution.padding[0] == convolution.padding[1] < height
    )


class QuickDepthwise(nn.Conv2d):
    """Depthwise convolution that uses `DepthwiseConvolution` in bfloat16 training steps on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        """Convolve `[B, C, H, W]` to `[B, C, H', W']`."""
        if not _is_faster(self, input):
            return super().forward(input)
        return _convolve(self, input, cast(int, self.padding[0]))


class QuickDepthwiseSame(Conv2dSame):
    """`QuickDepthwise` with TensorFlow's "same" padding, as in timm's `tf_` networks."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve `[B, C, H, W]` to `[B, C, H', W']`."""
        if not _is_faster(self, x):
            return cast(Tensor, super().forward(x))  # type: ignore[no-untyped-call]
        return _convolve(self, pad_same(x, list(self.kernel_size), list(self.stride), list(self.dilation)), 0)


_QUICK: dict[type[nn.Module], type[nn.Module]] = {nn.Conv2d: QuickDepthwise, Conv2dSame: QuickDepthwiseSame}


def _is_faster(module: nn.Module, image: Tensor) -> bool:
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
    output = cast(Tensor, DepthwiseConvolution.apply(image.to(torch.bfloat16), kernel, module.stride[0], padding))
    return output if module.bias is None else output + module.bias.to(output.dtype)[:, None, None]


class DepthwiseConvolution(torch.autograd.Function):
    """Depthwise convolution whose gradients use operations with fast bfloat16 kernels in oneDNN.

    Two gradients of torch 2.14 are 10 to 100 times slower in bfloat16 than in float32: that of the input at a stride of
    2, and that of kernels larger than 3 x 3. Here the former is a convolution of the gradient with zeros inserted
    between its pixels, and the latter is assembled from the gradients of 3 x 3 parts, which may overlap.
    `benchmarks/depthwise.py` measures both.
    """

    @staticmethod
    def forward(ctx: Any, image: Tensor, kernel: Tensor, stride: int, padding: int) -> Tensor:
        """Convolve an image `[B, C, H, W]` with a kernel `[C, 1, k, k]`."""
        ctx.save_for_backward(image, kernel)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(image, kernel, None, stride, padding, groups=len(kernel))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        """Return the gradients of image and kernel."""
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
        # this size makes the convolution below return the size of the image
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
