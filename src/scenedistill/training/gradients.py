"""Diagnostics of a student in training: gradient norms of the loss parts, attention gates, spread of the embeddings.

The measurements do not change the training: batch statistics and random state are restored afterwards."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scenedistill.models.network import SceneNet

#: Prefix of the log columns with the gradient norm of a loss part.
GRADIENT_PREFIX = "gradient_"
#: Prefix of the log columns with the share of an epoch's steps in which a parameter group's gradient was clipped; with
#: the suffix `SCALE`, the column holds the median of the clipping factors.
CLIPPED, SCALE = "clipped_", "_scale"
#: Prefixes of the log columns with gates and embedding spread.
DIAGNOSTIC_PREFIXES = ("gate_", "embedding_")
#: Embedding spread below which a network has collapsed: its outputs are the same for all images.
COLLAPSED = 1e-3
#: Fewest steps between two measurements. A measurement costs a forward pass and a backward pass for each part, so
#: that three parts take about 2 % of the training time.
STEPS_BETWEEN = 100


def due(epoch: int, epochs: int, steps: int) -> bool:
    """Return whether to measure in an epoch: in the last one and every n epochs before it, with n the smallest number
    for which the measurements are `STEPS_BETWEEN` steps apart.

    Args:
        epoch: epoch, counted from 0.
        epochs: number of epochs.
        steps: steps of an epoch.
    """
    every = max(1, math.ceil(STEPS_BETWEEN / max(1, steps)))
    return (epochs - 1 - epoch) % every == 0


def gradient_norms(module: nn.Module, net: nn.Module, parts: Callable[[], Mapping[str, Tensor]]) -> dict[str, float]:
    """Return the Euclidean norm of the gradient of each part of the loss with respect to the network's parameters.

    Batch statistics, random state and the parameters' `grad` are left as they were, so that training continues to the
    same bits. With several processes, the norms are those of this process's share of the batch.

    Args:
        module: module that trains; the buffers that the pass changes are restored.
        net: network whose parameters the gradients are taken for.
        parts: function that runs a forward pass and returns the weighted parts of the loss, each a scalar.
    """
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    device = parameters[0].device
    norms: dict[str, Tensor] = {}
    with _restored_state(module, device):
        for name, part in parts().items():
            found: tuple[Tensor | None, ...] = ()
            if part.requires_grad:
                found = torch.autograd.grad(part, parameters, retain_graph=True, allow_unused=True)
            single = [gradient.float().norm() for gradient in found if gradient is not None]
            norms[name] = torch.stack(single).norm() if single else torch.zeros((), device=device)
    return dict(zip(norms, torch.stack(list(norms.values())).tolist(), strict=True)) if norms else {}


def student_diagnostics(module: nn.Module, net: SceneNet, view: Tensor) -> dict[str, float]:
    """Return the mean attention gates of each stage, finest first, and the embedding spread on a batch of views.

    Args:
        module: module that trains; the buffers that the pass changes are restored.
        net: network to measure.
        view: views `[B, bands, H, W]`.

    Returns:
        `gate_channel_2`, `gate_spatial_2` and so on, in 0..1, where 1/2 is a neutral gate, and `embedding_spread`:
        1 minus the squared length of the mean of the unit-length embeddings, 0 (all equal) to 1.
    """
    with _restored_state(module, view.device), torch.no_grad():
        output = net.forward(view, attention=True)
    signs = {}
    for number, seen in enumerate(output.attention, 2):
        signs[f"gate_channel_{number}"] = float(seen.channel.float().mean())
        signs[f"gate_spatial_{number}"] = float(seen.spatial.float().mean())
    signs["embedding_spread"] = 1 - float(F.normalize(output.embedding.float(), dim=1).mean(0).square().sum())
    return signs


@contextmanager
def _restored_state(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Restore the module's buffers and the random state after the block."""
    kept = [buffer.clone() for buffer in module.buffers()]
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
    with torch.no_grad():
        for buffer, before in zip(module.buffers(), kept, strict=True):
            buffer.copy_(before)
    torch.clear_autocast_cache()  # it references the graph of this pass
