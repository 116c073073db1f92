"""Pretrained tensors into a backbone, with an account of which were taken."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn

from scenedistill.errors import UserError
from scenedistill.models.weight_files import read_weights

#: Below this share of a backbone's parameters, what fits is taken for an accident.
LEAST_SHARE = 0.05


@dataclass(frozen=True)
class WeightAccount:
    """Which tensors of a file went into a backbone.

    Attributes:
        source: file name, or where the tensors came from.
        taken: names of the backbone's tensors that were set.
        fresh: names of the backbone's parameters that kept their own start.
        unused: names of the file's tensors that fit nowhere.
        mismatched: names with another shape in the file, with both shapes.
        share: of the backbone's parameters that were set, 0..1.
        stride_in_first_convolution: the file says its ResNet blocks carry the stride in the first 1x1 convolution.
    """

    source: str
    taken: tuple[str, ...]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]
    mismatched: tuple[str, ...]
    share: float
    stride_in_first_convolution: bool = False

    def __str__(self) -> str:
        lines = [f"{self.source}: {len(self.taken)} tensors taken, {self.share:.0%} of the backbone's parameters"]
        for word, names in (("fresh", self.fresh), ("not used", self.unused), ("other shape", self.mismatched)):
            if names:
                lines.append(f"  {len(names)} {word}: {', '.join(_grouped(names))}")
        return "\n".join(lines)


def load_weights(backbone: nn.Module, source: str, *, model: str = "") -> WeightAccount:
    """Copy every tensor that fits, by name and shape, into a backbone.

    Names are timm's or torchvision's; the prefix that wrappers leave (`module.`, `model.backbone.`, ...) is
    looked through. Residual blocks that the file lacks stay the identity where their last batch norm starts at zero, as
    timm's ResNets do: a ResNet-101 started from a ResNet-50 computes what the ResNet-50 did.

    Args:
        backbone: its floats keep their own precision.
        source: path of a .safetensors, .pth or .pt file, `torchvision` or `lite`.
        model: name of the model, for `torchvision` and `lite`.

    Raises:
        UserError: no such file, not a file of tensors, or tensors of which next to none fit.
    """
    label, tensors, notes = read_weights(source, model)
    wanted = backbone.state_dict()
    tensors = _best_prefix(tensors, wanted)
    tensors = _adapt_bands(tensors, wanted)
    taken = [name for name, tensor in tensors.items() if name in wanted and wanted[name].shape == tensor.shape]
    mismatched = [
        f"{name} {list(tensors[name].shape)} for {list(wanted[name].shape)}"
        for name in tensors
        if name in wanted and name not in taken
    ]
    parameters = dict(backbone.named_parameters())
    share = sum(parameters[name].numel() for name in taken if name in parameters) / max(
        1, sum(p.numel() for p in parameters.values())
    )
    if share < LEAST_SHARE:
        raise UserError(
            f"{label}: {len(taken)} of its {len(tensors)} tensors fit {type(backbone).__name__} ({share:.1%} of its "
            f"parameters). It holds {', '.join(_grouped(tuple(tensors))[:4])}; expected "
            f"{', '.join(_grouped(tuple(wanted))[:4])}. Give weights of the same architecture."
        )
    with torch.no_grad():
        for name in taken:
            wanted[name].copy_(tensors[name])
    return WeightAccount(
        source=label,
        taken=tuple(taken),
        fresh=tuple(name for name in parameters if name not in taken),
        unused=tuple(name for name in tensors if name not in wanted),
        mismatched=tuple(mismatched),
        share=share,
        stride_in_first_convolution="stride in the first 1x1" in notes,
    )


def _best_prefix(tensors: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without the prefix that, taken off, makes the most names fit."""
    found = Counter(
        name[:cut]
        for name in tensors
        for cut in (0, *(dot.end() for dot in re.finditer(r"\.", name)))
        if name[cut:] in wanted
    )
    prefix = found.most_common(1)[0][0] if found else ""
    fitting = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)} | fitting


def _adapt_bands(tensors: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """First convolutions for another number of bands, as timm does it: for one band the sum of the file's three, else
    the file's bands in turn, scaled so that the response keeps its size."""
    adapted = dict(tensors)
    for name, tensor in tensors.items():
        goal = wanted.get(name)
        if goal is None or tensor.ndim != 4 or tensor.shape == goal.shape or tensor.shape[1] != 3:
            continue
        if tensor.shape[0] == goal.shape[0] and tensor.shape[2:] == goal.shape[2:]:
            adapted[name] = adapt_input_conv(goal.shape[1], tensor.float())
    return adapted


def _grouped(names: tuple[str, ...]) -> list[str]:
    """Names cut after their second part, each once, in order, ten at most."""
    groups = list(dict.fromkeys(re.sub(r"^([^.]+(?:\.[^.]+)?).*", r"\1", name) for name in names))
    return groups[:10] + ([f"... ({len(groups) - 10} more)"] if len(groups) > 10 else [])
