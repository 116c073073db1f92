"""How hard each part of the loss pulls at the student: measured beside its training, leaving no trace in it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

#: Begins the name of the column of a log that holds a part's gradient norm.
PULL = "gradient_"
#: Begins the name of a column of a log that tells in which share of an epoch's steps a part of the gradient was
#: clipped; with `SCALE` behind the name, of one that holds the median of what that part was multiplied with.
CLIPPED, SCALE = "clipped_", "_scale"
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
    kept = [buffer.clone() for buffer in module.buffers()]
    device = parameters[0].device
    norms: dict[str, Tensor] = {}
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        for name, part in parts().items():
            found: tuple[Tensor | None, ...] = ()
            if part.requires_grad:
                found = torch.autograd.grad(part, parameters, retain_graph=True, allow_unused=True)
            single = [gradient.float().norm() for gradient in found if gradient is not None]
            norms[name] = torch.stack(single).norm() if single else torch.zeros((), device=device)
    with torch.no_grad():
        for buffer, before in zip(module.buffers(), kept, strict=True):
            buffer.copy_(before)
    torch.clear_autocast_cache()  # it holds on to the graph of this pass
    return dict(zip(norms, torch.stack(list(norms.values())).tolist(), strict=True)) if norms else {}
