"""Pretrained tensors into a backbone, with an account of which were taken."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn

from scenedistill.core.errors import UserError
from scenedistill.models.weights.files import read_weights

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


def load_weights(backbone: nn.Module, source: str, *, model: str = "", partial: bool = False) -> WeightAccount:
    """Copy tensors into a backbone, by name and shape; see `take_weights`, which also gives what is left over."""
    return take_weights(backbone, source, model=model, partial=partial)[0]


def take_weights(
    backbone: nn.Module, source: str, *, model: str = "", partial: bool = False
) -> tuple[WeightAccount, dict[str, Tensor]]:
    """Copy tensors into a backbone, by name and shape.

    Names are timm's or torchvision's, or those of an original release that timm's own conversion knows
    (`checkpoint_filter_fn`: also position embeddings and Swin's tables of another size); the prefix that wrappers leave
    (`module.`, `model.backbone.`, ...) is looked through. Of several networks in a file that fit as well, averaged
    weights come first. Residual blocks that the file lacks stay the identity where their last batch norm starts at
    zero, as timm's ResNets do: a ResNet-101 started from a ResNet-50 computes what the ResNet-50 did.

    Args:
        backbone: its floats keep their own precision.
        source: path of a .safetensors, .pth, .pt or .ckpt file, `torchvision` or `lite`.
        model: name of the model, for `torchvision`, `lite` and timm's conversion.
        partial: take what fits where tensors of another shape, or of further blocks, say that the file is of another
            architecture.

    Returns:
        The account, and the tensors of the file that fit nowhere, such as those of its head.

    Raises:
        UserError: no such file, not a file of tensors, tensors of which next to none fit, or ones of another shape
            (the first convolution may have another number of bands, and the head is not asked).
    """
    label, places, notes = read_weights(source, model)
    wanted, parameters = backbone.state_dict(), dict(backbone.named_parameters())
    size = max(1, sum(parameter.numel() for parameter in parameters.values()))

    def fits(tensors: Mapping[str, Tensor]) -> list[str]:
        return [name for name, tensor in tensors.items() if name in wanted and wanted[name].shape == tensor.shape]

    def share(tensors: Mapping[str, Tensor]) -> float:
        return sum(parameters[name].numel() for name in fits(tensors) if name in parameters) / size

    found = {place: _matched(tensors, backbone, model) for place, tensors in places.items()}
    place = max(found, key=lambda place: share(found[place]))
    tensors, taken = found[place], fits(found[place])
    if place:
        label = f"{label}, {place}"
    other = {
        name: f"{name} {list(tensors[name].shape)} for {list(wanted[name].shape)}"
        for name in tensors
        if name in wanted and name not in taken
    }
    account = WeightAccount(
        source=label,
        taken=tuple(taken),
        fresh=tuple(name for name in parameters if name not in taken),
        unused=tuple(name for name in tensors if name not in wanted),
        mismatched=tuple(other.values()),
        share=share(tensors),
        stride_in_first_convolution="stride in the first 1x1" in notes,
    )
    few = account.share < LEAST_SHARE
    if not partial and (not few or 2 * len(taken) + 2 * len(other) > len(tensors)):  # the names are right, at least
        _check_same(account, [text for name, text in other.items() if not _of_bands(name, tensors[name], backbone)])
    if few:
        raise UserError(
            f"{label}: {len(taken)} of its {len(tensors)} tensors fit {type(backbone).__name__} "
            f"({account.share:.1%} of its parameters). It holds {', '.join(_grouped(tuple(tensors))[:4])}; expected "
            f"{', '.join(_grouped(tuple(wanted))[:4])}. Give weights of the same architecture."
        )
    with torch.no_grad():
        for name in taken:
            wanted[name].copy_(tensors[name])
    return account, {name: tensors[name] for name in account.unused}


def _matched(tensors: dict[str, Tensor], backbone: nn.Module, model: str) -> dict[str, Tensor]:
    """The tensors under the backbone's names: as they are, or, where these do not fit, as timm converts them."""
    wanted = backbone.state_dict()
    named = _best_prefix(tensors, wanted)
    plain = _adapt_bands(named, wanted)
    if all(name in plain and plain[name].shape == tensor.shape for name, tensor in wanted.items()):
        return plain
    converted = timm_conversion(model, named, backbone)
    if converted is None:
        return plain

    def fitting(tensors: Mapping[str, Tensor]) -> int:
        return sum(name in tensors and tensors[name].shape == tensor.shape for name, tensor in wanted.items())

    converted = _adapt_bands(converted, wanted)
    return converted if fitting(converted) > fitting(plain) else plain


def timm_conversion(model: str, tensors: dict[str, Tensor], backbone: nn.Module) -> dict[str, Tensor] | None:
    """The tensors as timm itself converts those of original releases and other sizes; None where it knows no way."""
    if not timm.is_model(model):
        return None
    convert = getattr(sys.modules[timm.model_entrypoint(model).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return None
    try:
        converted = convert(dict(tensors), backbone)
    except Exception:  # it is made for its own files, and any other may make it fail in any way
        return None
    return {name: tensor for name, tensor in converted.items() if isinstance(tensor, Tensor)}


def _check_same(account: WeightAccount, other_shape: list[str]) -> None:
    """Refuse a file of another architecture: one with tensors of another shape, or with further blocks."""
    if other_shape:
        more = f" and {len(other_shape) - 3} more" if len(other_shape) > 3 else ""
        raise UserError(
            f"{account.source}: tensors of another shape: {', '.join(other_shape[:3])}{more}. Give weights of the same "
            "architecture, or set partial to true to take what fits."
        )
    roots = {name.split(".")[0] for name in (*account.taken, *account.fresh)}
    blocks = tuple(n for n in account.unused if n.split(".")[0] in roots and re.search(r"\.\d+\.", n))
    if blocks:
        raise UserError(
            f"{account.source}: of another architecture: it also holds {', '.join(_grouped(blocks)[:4])}. Give weights "
            "of the same one, or set partial to true to take what fits."
        )


def _of_bands(name: str, tensor: Tensor, backbone: nn.Module) -> bool:
    """Whether a tensor is that of the first convolution, for another number of bands."""
    config: dict[str, Any] = getattr(backbone, "pretrained_cfg", None) or {}
    firsts = config.get("first_conv") or next(iter(backbone.state_dict())).removesuffix(".weight")
    goal = backbone.state_dict()[name]
    named = name.removesuffix(".weight") in ((firsts,) if isinstance(firsts, str) else firsts)
    return named and tensor.ndim == 4 and (tensor.shape[0], tensor.shape[2:]) == (goal.shape[0], goal.shape[2:])


def _best_prefix(tensors: dict[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
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
