"""How a student fares, measured beside its training and leaving no trace in it: how hard each part of the loss pulls,
how open its gates are, how much its embeddings differ."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scenedistill.models.network import SceneNet

#: Begins the name of the column of a log that holds a part's gradient norm.
GRADIENT_PREFIX = "gradient_"
#: Begins the name of a column of a log that tells in which share of an epoch's steps a part of the gradient was
#: clipped; with `SCALE` behind the name, of one that holds the median of what that part was multiplied with.
CLIPPED, SCALE = "clipped_", "_scale"
#: Begin the names of the columns of a log that hold gates and spread.
VITAL_SIGNS = ("gate_", "embedding_")
#: Below this spread of its embeddings a network has collapsed: it says the same of every image.
COLLAPSED = 1e-3
#: Fewest steps between two measurements. One costs a forward pass and a backward pass for each part, so that three
#: parts take about a fiftieth of the time of the steps.
STEPS_BETWEEN = 100


def due(epoch: int, epochs: int, steps: int) -> bool:
    """Whether to measure in an epoch of so many steps: in the last one, and before it every few."""
    every = max(1, math.ceil(STEPS_BETWEEN / max(1, steps)))
    return (epochs - 1 - epoch) % every == 0


def gradient_norms(module: nn.Module, net: nn.Module, parts: Callable[[], Mapping[str, Tensor]]) -> dict[str, float]:
    """Euclidean norm of the gradient of each part of the loss with respect to the network's parameters.

    Batch statistics, the random state and the parameters' `grad` are afterwards what they were before; the training
    goes on to the same bits. With several processes, of this process's share of the batch.

    Args:
        module: what trains, whose buffers the pass may write to.
        net: the network whose parameters are meant.
        parts: makes a forward pass and gives the weighted parts of the loss, each a scalar.
    """
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    device = parameters[0].device
    norms: dict[str, Tensor] = {}
    with _no_trace(module, device):
        for name, part in parts().items():
            found: tuple[Tensor | None, ...] = ()
            if part.requires_grad:
                found = torch.autograd.grad(part, parameters, retain_graph=True, allow_unused=True)
            single = [gradient.float().norm() for gradient in found if gradient is not None]
            norms[name] = torch.stack(single).norm() if single else torch.zeros((), device=device)
    return dict(zip(norms, torch.stack(list(norms.values())).tolist(), strict=True)) if norms else {}


def vital_signs(module: nn.Module, net: SceneNet, view: Tensor) -> dict[str, float]:
    """Mean gates of each stage of a network, finest first, and the spread of its embeddings, on a batch of views.

    Returns:
        `gate_channel_2`, `gate_spatial_2` and so on, in 0..1 with 1/2 for an open gate, and `embedding_spread`:
        1 - the squared length of the mean of the embeddings at unit length, 0 (all alike) to 1.
    """
    with _no_trace(module, view.device), torch.no_grad():
        output = net.forward(view, attention=True)
    signs = {}
    for number, seen in enumerate(output.attention, 2):
        signs[f"gate_channel_{number}"] = float(seen.channel.float().mean())
        signs[f"gate_spatial_{number}"] = float(seen.spatial.float().mean())
    signs["embedding_spread"] = 1 - float(F.normalize(output.embedding.float(), dim=1).mean(0).square().sum())
    return signs


@contextmanager
def _no_trace(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Leave batch statistics and the random state as they were."""
    kept = [buffer.clone() for buffer in module.buffers()]
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
    with torch.no_grad():
        for buffer, before in zip(module.buffers(), kept, strict=True):
            buffer.copy_(before)
    torch.clear_autocast_cache()  # it holds on to the graph of this pass
