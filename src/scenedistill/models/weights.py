"""Pretrained tensors into a backbone, with an account of which were taken."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from timm.models import adapt_input_conv
from torch import Tensor, nn

from scenedistill.errors import UserError

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
    """Copy every tensor that fits, by name and shape, from a file or from torchvision into a backbone.

    Names are timm's or torchvision's; the prefix that wrappers leave (`module.`, `model.backbone.`, ...) is
    looked through. Residual blocks that the file lacks stay the identity where their last batch norm starts at zero, as
    timm's ResNets do: a ResNet-101 started from a ResNet-50 computes what the ResNet-50 did.

    Args:
        backbone: its floats keep their own precision.
        source: path of a .safetensors, .pth or .pt file, or `torchvision`.
        model: torchvision's name of the model, for `torchvision`.

    Raises:
        UserError: no such file, not a file of tensors, or tensors of which next to none fit.
    """
    tensors, notes = _torchvision(model) if source == "torchvision" else _read(Path(source))
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
    label = "torchvision" if source == "torchvision" else Path(source).name
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


def _read(path: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors of a file, and what it says of itself."""
    if not path.is_file():
        raise UserError(
            f"No weights at {path}. Give a .safetensors, .pth or .pt file, 'timm', 'torchvision' or 'none'."
        )
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                notes = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            if "scenedistill" in notes:  # a network of ours: the stages are wrapped
                tensors = {key.replace(".stage.", "."): tensor for key, tensor in tensors.items()}
            return tensors, str(notes)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, EOFError, RuntimeError, ValueError, KeyError) as problem:
        reason = (str(problem) or "it is empty").splitlines()[0][:120]
        raise UserError(f"{path} cannot be read as weights: {reason}") from problem
    except Exception as problem:  # weights_only refuses with pickle's own error
        raise UserError(
            f"{path} is not a file of tensors alone: damaged, or loading would run its code. Give a state_dict."
        ) from problem
    for key in ("state_dict", "model", "model_state_dict", "net", "ema"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, dict) else {}
    if not tensors:
        raise UserError(f"{path} holds no named tensors (found {type(content).__name__}). Save a state_dict.")
    return tensors, ""


def _torchvision(model: str) -> tuple[dict[str, Tensor], str]:
    import torchvision

    try:
        # through the model, which renames the tensors of older files
        return torchvision.models.get_model(model, weights="DEFAULT").state_dict(), ""
    except ValueError as problem:
        raise UserError(f"torchvision has no weights for '{model}'.") from problem
    except OSError as problem:
        raise UserError(f"torchvision's weights of '{model}' could not be downloaded: {problem}") from problem


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
