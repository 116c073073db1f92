"""Cost of a model: parameters, bytes, operations and latency per image."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from scenedistill.models.network import SceneNet
from scenedistill.models.wrap import evaluating


@dataclass(frozen=True)
class ModelCost:
    """The cost of one model at one input size on one device."""

    parameters: int  # learnable values, frozen ones too
    bytes: int  # size of the state with floating-point values as float32, batch-norm statistics included
    operations: int  # multiply-accumulates for one image: convolutions, matrix products, attention
    milliseconds: float  # for one image: median over the repeats
    milliseconds_low: float  # lower quartile
    milliseconds_high: float  # upper quartile
    batch_size: int  # images in each timed pass; times are pass times divided by it
    threads: int  # PyTorch threads on the CPU
    device: str  # "cpu" or "cuda"; its name is in environment.hardware()
    repeats: int


@dataclass(frozen=True)
class Latency:
    """Latency per image in milliseconds over the timed passes: the time of a pass divided by its batch size."""

    device: str  # "cpu" or "cuda"
    batch_size: int  # images in each pass
    mean: float
    p50: float  # median
    p90: float
    p99: float  # close to the maximum for fewer than 100 passes
    passes: int


@dataclass(frozen=True)
class NetworkCost:
    """Size, operations and latencies of one network."""

    parameters: int
    bytes: int  # see ModelCost
    operations: int  # multiply-accumulates for one image
    latencies: tuple[Latency, ...]  # one for each device and batch size


def cost_table(
    networks: Mapping[str, SceneNet],
    size: int,
    bands: int = 3,
    *,
    batch_sizes: Sequence[int] = (1, 64),
    devices: Sequence[str] | None = None,
    repeats: int = 100,
    warm_up: int = 10,
) -> dict[str, NetworkCost]:
    """Measure the cost of networks at inference: float32, eval mode, logits only, channels-last.

    The networks take turns pass by pass, so that other load on the machine affects all of them equally. The input is
    random, as latency depends only on its shape. Copies are measured; the given networks stay as they are.

    Args:
        networks: networks by name.
        size: side of the input in pixels.
        bands: number of bands of the input.
        batch_sizes: numbers of images in a pass; each is timed.
        devices: `cpu`, `cuda`; the CPU, and the GPU where there is one, when not given.
        repeats: timed passes of each network, batch size and device, >= 1.
        warm_up: untimed passes before them, >= 0.
    """
    if repeats < 1 or warm_up < 0 or not batch_sizes or min(batch_sizes) < 1:
        raise ValueError(f"repeats {repeats}, warm_up {warm_up}, batch_sizes {batch_sizes}: expected >= 1, >= 0, >= 1")
    used = {name: _LogitsOnly(copy.deepcopy(net).cpu().float()).eval() for name, net in networks.items()}
    image = torch.rand(1, bands, size, size, generator=torch.Generator().manual_seed(0))
    operations = {name: count_operations(net, image) for name, net in used.items()}
    latencies: dict[str, list[Latency]] = {name: [] for name in used}
    for device in devices or (["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]):
        for net in used.values():
            net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        for count in batch_sizes:
            images = image.repeat(count, 1, 1, 1).to(device, memory_format=torch.channels_last)
            for net in used.values():
                time_passes(net, images, 0, warm_up)
            seconds: dict[str, list[float]] = {name: [] for name in used}
            for _ in range(repeats):
                for name, net in used.items():
                    seconds[name] += time_passes(net, images, 1, 0)
            for name, found in seconds.items():
                latencies[name].append(_latency(device, count, found))
    return {
        name: NetworkCost(
            parameters=sum(value.numel() for value in net.parameters()),
            bytes=stored_bytes(net),
            operations=operations[name],
            latencies=tuple(latencies[name]),
        )
        for name, net in used.items()
    }


class _LogitsOnly(nn.Module):
    """Wrap a network to return its logits only, without the attention output that only training uses."""

    def __init__(self, net: SceneNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.net(images, attention=False).logits
        return logits


def _latency(device: str, batch_size: int, seconds: Sequence[float]) -> Latency:
    each = np.array(seconds) * 1000 / batch_size
    p50, p90, p99 = np.percentile(each, [50, 90, 99]).tolist()
    return Latency(torch.device(device).type, batch_size, float(each.mean()), p50, p90, p99, len(seconds))


def model_cost(
    model: nn.Module, size: int, bands: int = 3, batch_size: int = 1, *, repeats: int = 30, warm_up: int = 5
) -> ModelCost:
    """Measure a model on its current device, on random images in 0..1 of its dtype, [batch_size, bands, size, size].

    The model runs in eval mode without gradients. The mode of every sub-module, the model's values and the random state
    are preserved. On CUDA each pass is timed until the device has finished. Normalisations, activations and pooling are
    not counted as operations.
    """
    if repeats < 1 or batch_size < 1 or warm_up < 0:
        raise ValueError(f"repeats {repeats}, batch_size {batch_size}, warm_up {warm_up}: expected >= 1, >= 1, >= 0")
    like = next((value for value in model.parameters() if value.is_floating_point()), torch.empty(0))
    generator = torch.Generator().manual_seed(0)  # leaves the global random state unchanged
    images = torch.rand(batch_size, bands, size, size, generator=generator).to(like.device, like.dtype)
    with evaluating(model):
        operations = count_operations(model, images[:1])
        seconds = time_passes(model, images, repeats, warm_up)
    low, median, high = np.percentile(seconds, [25, 50, 75]) * 1000 / batch_size
    return ModelCost(
        parameters=sum(value.numel() for value in model.parameters()),
        bytes=stored_bytes(model),
        operations=operations,
        milliseconds=float(median),
        milliseconds_low=float(low),
        milliseconds_high=float(high),
        batch_size=batch_size,
        threads=torch.get_num_threads(),
        device=images.device.type,
        repeats=repeats,
    )


def count_operations(model: nn.Module, image: torch.Tensor) -> int:
    """Count the multiply-accumulates of one pass over image [1, bands, size, size]; the model is in eval mode."""
    plain = getattr(model, "_orig_mod", model)  # operations inside a torch.compile'd graph cannot be seen
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        plain(image)
    return int(counter.get_total_flops()) // 2  # PyTorch counts a multiply-accumulate as two


def time_passes(model: nn.Module, images: torch.Tensor, repeats: int, warm_up: int) -> list[float]:
    """Return the seconds of each of `repeats` passes, after `warm_up` untimed passes."""
    seconds = []
    with torch.inference_mode():
        for turn in range(warm_up + repeats):
            wait_for(images.device)
            start = time.perf_counter()
            model(images)
            wait_for(images.device)
            if turn >= warm_up:
                seconds.append(time.perf_counter() - start)
    return seconds


def wait_for(device: torch.device) -> None:
    """Wait until the device has finished all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def stored_bytes(model: nn.Module) -> int:
    """Return the bytes of the model's state with floating-point values as float32 and others as they are."""
    state = model.state_dict().values()
    return sum(value.numel() * (4 if value.is_floating_point() else value.element_size()) for value in state)
