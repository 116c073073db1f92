"""Copying of pretrained tensors into a backbone, with an account of the tensors used."""

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

#: Minimum share of a backbone's parameters that must fit; smaller shares fit by coincidence.
LEAST_SHARE = 0.05


@dataclass(frozen=True)
class WeightAccount:
    """Account of the tensors of a file that were copied into a backbone.

    Attributes:
        source: file name, or name of another source.
        taken: names of the backbone's tensors that were set.
        fresh: names of the backbone's parameters that kept their initial values.
        unused: names of the file's tensors that the backbone does not have.
        mismatched: names of tensors with different shapes in file and backbone, with both shapes.
        share: share of the backbone's parameters that were set, 0..1.
        stride_in_first_convolution: whether the file states that its ResNet blocks have their stride in the first 1x1
            convolution.
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
    """Copy tensors into a backbone by name and shape; see `take_weights`, which also returns the unused tensors."""
    return take_weights(backbone, source, model=model, partial=partial)[0]


def take_weights(
    backbone: nn.Module, source: str, *, model: str = "", partial: bool = False
) -> tuple[WeightAccount, dict[str, Tensor]]:
    """Copy tensors into a backbone, by name and shape.

    The names are those of timm or torchvision, or of an original release that timm's conversion supports
    (`checkpoint_filter_fn`, which also resizes position embeddings and Swin's tables). Prefixes of wrappers
    (`module.`, `model.backbone.`, ...) are removed. If several networks in a file fit equally well, averaged weights
    are preferred. Residual blocks that are missing in the file remain the identity if their last batch norm starts at
    0, as in timm's ResNets: a ResNet-101 initialised from a ResNet-50 computes the same features as the ResNet-50.

    Args:
        backbone: network whose tensors are set; they keep their precision.
        source: path of a .safetensors, .pth, .pt or .ckpt file, `torchvision` or `lite`.
        model: name of the model, for `torchvision`, `lite` and timm's conversion.
        partial: use the tensors that fit if the file belongs to another architecture (tensors of another shape or of
            further blocks), instead of raising an error.

    Returns:
        The account, and the tensors of the file that the backbone does not have, such as those of the head.

    Raises:
        UserError: the file does not exist or holds no tensors, hardly any of its tensors fit, or it belongs to another
            architecture. A different number of bands in the first convolution and the head are not errors.
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
    if not partial and (not few or 2 * len(taken) + 2 * len(other) > len(tensors)):  # most names fit
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
    """Return the tensors under the backbone's names; converted by timm if more of them fit after the conversion."""
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
    """Return the tensors as timm converts them for original releases and other sizes; None if timm cannot."""
    if not timm.is_model(model):
        return None
    convert = getattr(sys.modules[timm.model_entrypoint(model).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return None
    try:
        converted = convert(dict(tensors), backbone)
    except Exception:  # the conversion may fail in any way on other files
        return None
    return {name: tensor for name, tensor in converted.items() if isinstance(tensor, Tensor)}


def _check_same(account: WeightAccount, other_shape: list[str]) -> None:
    """Raise a UserError for a file of another architecture: tensors of another shape or further blocks."""
    if other_shape:
        more = f" and {len(other_shape) - 3} more" if len(other_shape) > 3 else ""
        raise UserError(
            f"{account.source}: tensors of another shape: {', '.join(other_shape[:3])}{more}. Give weights of the same "
            "architecture, or set partial to true to take what fits."
        )
    roots = {name.split(".")[0] for name in (*account.taken, *account.fresh)}
    blocks = tuple(
        n
        for n in account.unused
        if n.split(".")[0] in roots and re.search(r"\.\d+\.", n) and ".attention." not in n  # a SceneNet's DA modules
    )
    if blocks:
        raise UserError(
            f"{account.source}: of another architecture: it also holds {', '.join(_grouped(blocks)[:4])}. Give weights "
            "of the same one, or set partial to true to take what fits."
        )


def _of_bands(name: str, tensor: Tensor, backbone: nn.Module) -> bool:
    """Return whether a tensor is the weight of the first convolution for another number of bands."""
    config: dict[str, Any] = getattr(backbone, "pretrained_cfg", None) or {}
    firsts = config.get("first_conv") or next(iter(backbone.state_dict())).removesuffix(".weight")
    goal = backbone.state_dict()[name]
    named = name.removesuffix(".weight") in ((firsts,) if isinstance(firsts, str) else firsts)
    return named and tensor.ndim == 4 and (tensor.shape[0], tensor.shape[2:]) == (goal.shape[0], goal.shape[2:])


def _best_prefix(tensors: dict[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors without the prefix whose removal makes the most names fit."""
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
    """Convert first convolutions from three to another number of bands, as timm does.

    For one band the weights of the three bands are summed; otherwise they are repeated and scaled to keep the response.
    """
    adapted = dict(tensors)
    for name, tensor in tensors.items():
        goal = wanted.get(name)
        if goal is None or tensor.ndim != 4 or tensor.shape == goal.shape or tensor.shape[1] != 3:
            continue
        if tensor.shape[0] == goal.shape[0] and tensor.shape[2:] == goal.shape[2:]:
            adapted[name] = adapt_input_conv(goal.shape[1], tensor.float())
    return adapted


def _grouped(names: tuple[str, ...]) -> list[str]:
    """Return the names, cut after their second part, without repetitions, at most ten of them."""
    groups = list(dict.fromkeys(re.sub(r"^([^.]+(?:\.[^.]+)?).*", r"\1", name) for name in names))
    return groups[:10] + ([f"... ({len(groups) - 10} more)"] if len(groups) > 10 else [])
