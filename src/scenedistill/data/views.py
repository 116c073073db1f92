"""Random views of a whole batch at once, on any device, each a pure function of (seed, epoch, image)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

# not with torchvision, which draws the same change for all images of a batch, nor with Kornia, which draws from torch's
# global generator, so that an image's view would depend on the batch


@dataclass
class ViewConfig:
    """How a training view is made from a stored image.

    Attributes:
        scale: smallest and largest share of the image's area that a crop covers, in (0, 1].
        ratio: smallest and largest width : height of a crop; the largest is the inverse of the smallest as a rule. A
            crop so large that it would not fit the image is nearer to a square.
        turns: flip and turn by quarters at random (an aerial image has no up).
        brightness: factor drawn from 1 +- this, 0..1.
        contrast: factor drawn from 1 +- this, 0..1.
        saturation: factor drawn from 1 +- this, 0..1 (three-band images only).
        erasing: probability that a rectangle of 2 % to 25 % of the view is replaced by the image's mean, 0..1.
    """

    scale: tuple[float, float] = (0.25, 1.0)
    ratio: tuple[float, float] = (0.75, 4 / 3)
    turns: bool = True
    brightness: float = 0.3
    contrast: float = 0.3
    saturation: float = 0.3
    erasing: float = 0.0


def training_view(images: Tensor, ids: Tensor, *, seed: int, epoch: int, size: int, config: ViewConfig) -> Tensor:
    """Draw a random view of each image: crop, flip and quarter turn in a single resampling, then colour, then erasing.

    The view depends on (seed, epoch, id) alone: not on the batch, its size, the process or the device.

    Args:
        images: uint8 `[B, H, W, bands]`.
        ids: int64 `[B]`, identifier of each image.
        seed: seed of the run.
        epoch: epoch, or number, of the view.
        size: side of the view in pixels.
        config: kinds and ranges of the random changes.

    Returns:
        float32 `[B, bands, size, size]` in 0..1, channels-last in memory.

    Examples:
        >>> import torch
        >>> from scenedistill.data.views import ViewConfig, training_view
        >>> images, ids = torch.randint(256, (2, 48, 48, 3), dtype=torch.uint8), torch.tensor([5, 7])
        >>> view = training_view(images, ids, seed=0, epoch=3, size=32, config=ViewConfig())
        >>> view.shape, view.dtype
        (torch.Size([2, 3, 32, 32]), torch.float32)
        >>> alone = training_view(images[1:], ids[1:], seed=0, epoch=3, size=32, config=ViewConfig())
        >>> torch.allclose(view[1:], alone)
        True
    """
    draw = uniform(seed, epoch, ids, 14)  # [B, 14] in [0, 1)
    theta = _crop(draw[:, 0:4], config)
    if config.turns:
        theta = _turn(theta, draw[:, 4])
    pixels = images.permute(0, 3, 1, 2).float()
    view = F.grid_sample(pixels, _grid(theta, size), mode="bilinear", padding_mode="reflection", align_corners=False)
    view = _colour(view, draw[:, 5:8], config)
    if config.erasing > 0:
        view = _erase(view, draw[:, 8:13], config.erasing)
    return view.contiguous(memory_format=torch.channels_last)


def view_number(epoch: int, views: int) -> int:
    """Return the number of the view of an epoch: epochs cycle through `views` views; with 0 each has a new one.

    Examples:
        >>> from scenedistill.data.views import view_number
        >>> [view_number(epoch, views=2) for epoch in range(5)]
        [0, 1, 0, 1, 0]
        >>> [view_number(epoch, views=0) for epoch in range(5)]
        [0, 1, 2, 3, 4]
    """
    return epoch % views if views else epoch


def evaluation_view(images: Tensor, *, size: int) -> Tensor:
    """Resize the whole image: uint8 `[B, H, W, bands]` to float32 `[B, bands, size, size]` in 0..1.

    Examples:
        >>> import torch
        >>> from scenedistill.data.views import evaluation_view
        >>> view = evaluation_view(torch.full((2, 48, 48, 3), 51, dtype=torch.uint8), size=32)
        >>> view.shape, round(view.mean().item(), 3)
        (torch.Size([2, 3, 32, 32]), 0.2)
    """
    return resized(images.permute(0, 3, 1, 2).float() / 255, size)


def resized(view: Tensor, size: int) -> Tensor:
    """Resize views with antialiasing: float32 `[B, bands, H, W]` to `[B, bands, size, size]`.

    Examples:
        >>> import torch
        >>> from scenedistill.data.views import resized
        >>> resized(torch.rand(2, 3, 64, 64), 32).shape
        torch.Size([2, 3, 32, 32])
    """
    if view.shape[-2:] != (size, size):
        view = F.interpolate(view, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return view.contiguous(memory_format=torch.channels_last)


def uniform(seed: int, epoch: int, ids: Tensor, count: int) -> Tensor:
    """Draw `count` numbers in [0, 1) for each image, float32 `[B, count]`, the same on every device.

    A counter-based generator: the finaliser of SplitMix64 (Steele et al., OOPSLA 2014) over (seed, epoch, id, column),
    in 64-bit integers that wrap; their top 24 bits are exact as a float.

    Examples:
        >>> import torch
        >>> from scenedistill.data.views import uniform
        >>> uniform(seed=0, epoch=0, ids=torch.tensor([5, 7]), count=3)
        tensor([[0.4691, 0.1935, 0.3130],
                [0.7297, 0.2350, 0.9247]])
    """
    # seed and epoch are mixed on the host: the host would have to wait while a constant is copied to a GPU
    key = int(_mix(_mix(torch.tensor(_wrapped(seed))) + epoch))
    bits = _mix(_mix(ids + key)[:, None] + torch.arange(count, device=ids.device))
    return ((bits >> 40) & 0xFFFFFF).float() / 2**24


def _wrapped(number: int) -> int:
    """Wrap an integer to the range of a signed 64-bit integer."""
    return (number + 2**63) % 2**64 - 2**63


def _mix(number: Tensor) -> Tensor:
    number = number * -0x61C8864680B583EB - 0x61C8864680B583EB  # + and * the golden gamma, modulo 2**64
    number = (number ^ _shift(number, 30)) * -0x40A7B892E31B1A47
    number = (number ^ _shift(number, 27)) * -0x6B2FB644ECCEEE15
    return number ^ _shift(number, 31)


def _shift(number: Tensor, bits: int) -> Tensor:
    """Logical shift to the right; torch's own on int64 copies the sign."""
    return (number >> bits) & ((1 << (64 - bits)) - 1)


def _crop(draw: Tensor, config: ViewConfig) -> Tensor:
    """Affine maps `[B, 2, 3]` from the view to a random rectangle of the image, both in -1..1."""
    area = config.scale[0] + (config.scale[1] - config.scale[0]) * draw[:, 0]
    low, high = math.log(config.ratio[0]), math.log(config.ratio[1])
    ratio = torch.exp(low + (high - low) * draw[:, 1]).clamp(min=area, max=1 / area)  # no side longer than the image
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    left, top = (1 - width) * (2 * draw[:, 2] - 1), (1 - height) * (2 * draw[:, 3] - 1)
    zero = torch.zeros_like(width)
    return torch.stack((torch.stack((width, zero, left), 1), torch.stack((zero, height, top), 1)), 1)


def _turn(theta: Tensor, draw: Tensor) -> Tensor:
    """Compose each map with one of the eight symmetries of the square, which is applied first."""
    chosen = _symmetries(theta.device)[(draw * 8).long()]
    # a sum of products written out: a batched matrix product may round otherwise on another device or batch size
    linear = (theta[:, :, :2, None] * chosen[:, None]).sum(2)
    return torch.cat((linear, theta[:, :, 2:]), 2)


def _grid(theta: Tensor, size: int) -> Tensor:
    """Return the position in the image of each pixel of a view, `[B, size, size, 2]` in -1..1.

    Equals torch's `affine_grid` up to rounding, in a fraction of its time on a CPU.
    """
    middles = (2 * torch.arange(size, device=theta.device) + 1) / size - 1
    across = theta[:, :, 0, None, None] * middles + theta[:, :, 2, None, None]  # [B, 2, 1, size]
    return torch.stack((across + theta[:, :, 1, None, None] * middles[:, None]).unbind(1), 3)


@lru_cache
def _symmetries(device: torch.device) -> Tensor:
    """Quarter turns, then the same after a flip, `[8, 2, 2]`."""
    identity = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    quarter = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    flip = torch.tensor([[-1.0, 0.0], [0.0, 1.0]])
    turns = [identity, quarter, quarter @ quarter, quarter @ quarter @ quarter]
    return torch.stack(turns + [turn @ flip for turn in turns]).to(device)


@lru_cache
def _luma(device: torch.device) -> Tensor:
    """Return the weights of red, green and blue in luma, `[3, 1, 1]` (ITU-R BT.601)."""
    return torch.tensor([0.299, 0.587, 0.114], device=device)[:, None, None]


def _colour(view: Tensor, draw: Tensor, config: ViewConfig) -> Tensor:
    """Change saturation, contrast and brightness, an affine map of each image's colours, from 0..255 to 0..1."""
    amounts = (config.brightness, config.contrast, config.saturation)
    factors = (1 + amount * (2 * draw[:, i, None, None, None] - 1) for i, amount in enumerate(amounts))
    brightness, contrast, saturation = factors
    if view.shape[1] == 3 and config.saturation > 0:
        grey = (view * _luma(view.device)).sum(1, keepdim=True)
        view = grey.lerp(view, saturation)
    mean = view.mean((1, 2, 3), keepdim=True)
    return mean.lerp(view, contrast).mul_(brightness / 255).clamp_(0, 1)


def _erase(view: Tensor, draw: Tensor, probability: float) -> Tensor:
    size = view.shape[-1]
    area, ratio = 0.02 + 0.23 * draw[:, 1], torch.exp(2.4 * draw[:, 2] - 1.2)
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    left, top = (1 - width) * draw[:, 3], (1 - height) * draw[:, 4]
    position = (torch.arange(size, device=view.device) + 0.5) / size
    across = (position >= left[:, None]) & (position < (left + width)[:, None])
    down = (position >= top[:, None]) & (position < (top + height)[:, None])
    hole = across[:, None, None, :] & down[:, None, :, None] & (draw[:, 0] < probability)[:, None, None, None]
    return torch.where(hole, view.mean((2, 3), keepdim=True), view)
