"""Time the gradients of depthwise convolutions on this CPU: torch's own in both precisions, and ours in bfloat16.

    python benchmarks/depthwise.py

prints, for the layers of EfficientNet-Lite0 at 96 pixels in batches of 64, milliseconds of the gradients of image and
kernel together, the least of several runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from scenedistill.core.memory import keep_memory
from scenedistill.models.depthwise import DepthwiseConvolution

BATCH, REPEATS = 64, 7
#: channels, side of the image, side of the kernel, stride
LAYERS = (
    (32, 48, 3, 1),
    (96, 48, 3, 2),
    (144, 24, 3, 1),
    (144, 24, 5, 2),
    (240, 12, 5, 1),
    (240, 12, 3, 2),
    (480, 6, 3, 1),
    (672, 6, 5, 1),
    (672, 6, 5, 2),
    (1152, 3, 5, 1),
)
Convolve = Callable[[Tensor, Tensor, int, int], Tensor]


def torchs(image: Tensor, kernel: Tensor, stride: int, padding: int) -> Tensor:
    """Apply torch's own convolution."""
    return F.conv2d(image, kernel, None, stride, padding, groups=len(kernel))


def ours(image: Tensor, kernel: Tensor, stride: int, padding: int) -> Tensor:
    """Apply our convolution with fast gradients."""
    answer: Tensor = DepthwiseConvolution.apply(image, kernel, stride, padding)
    return answer


def milliseconds(convolve: Convolve, layer: tuple[int, int, int, int], kind: torch.dtype) -> float:
    """Time one backward pass of a layer, the least of `REPEATS`."""
    channels, side, size, stride = layer
    image = torch.randn(BATCH, channels, side, side).to(kind).contiguous(memory_format=torch.channels_last)
    kernel = torch.randn(channels, 1, size, size).to(kind)
    given = (image.requires_grad_(), kernel.requires_grad_())
    found = []
    for _ in range(REPEATS):
        answer = convolve(*given, stride, size // 2)
        slope = torch.ones_like(answer)
        started = time.perf_counter()
        torch.autograd.grad(answer, given, slope)
        found.append(1e3 * (time.perf_counter() - started))
    return min(found)


def main() -> None:
    """Print the table."""
    keep_memory()
    table = Table("channels", "side", "kernel", "stride", "float32", "bfloat16", "bfloat16, ours")
    total = [0.0, 0.0, 0.0]
    for layer in LAYERS:
        ways = ((torchs, torch.float32), (torchs, torch.bfloat16), (ours, torch.bfloat16))
        row = [milliseconds(convolve, layer, kind) for convolve, kind in ways]
        total = [sum(pair) for pair in zip(total, row, strict=True)]
        table.add_row(*map(str, layer), *(f"{value:.1f}" for value in row))
    table.add_row("all", "", "", "", *(f"{value:.1f}" for value in total))
    Console().print(table)


if __name__ == "__main__":
    main()
