"""Backbones of timm by name, and the statistics with which they expect images to be normalised."""

from __future__ import annotations

import difflib
from typing import Any

import timm
from torch import nn

from scenedistill.core.errors import UserError
from scenedistill.models.network import Normalisation
from scenedistill.models.table1 import STUDENTS


def check_name(name: str) -> None:
    """Check that a name is one of `STUDENTS` or a timm model.

    Raises:
        UserError: it is neither; the message suggests similar names.
    """
    if name not in STUDENTS and not timm.is_model(name):
        near = difflib.get_close_matches(name, [*STUDENTS, *timm.list_models()], 3)
        hint = f" Did you mean {' or '.join(near)}?" if near else " timm.list_models() names all of them."
        raise UserError(f"'{name}' is neither a student of Table 1 nor a backbone that timm knows.{hint}")


def timm_backbone(name: str, *, bands: int = 3, image_size: int = 96, pretrained: bool = False) -> nn.Module:
    """Create a timm backbone without its classifier.

    Args:
        name: timm model name.
        bands: number of input bands.
        image_size: side of the images in pixels.
        pretrained: load the weights of timm's hub.

    Raises:
        UserError: the name is unknown, timm cannot build the model for this size, or the weights are not available.
    """
    check_name(name)
    settings: dict[str, Any] = {"pretrained": pretrained, "num_classes": 0, "in_chans": bands}
    try:
        try:
            return timm.create_model(name, img_size=image_size, **settings)
        except TypeError:  # most convolutional backbones take any size and have no such setting
            return timm.create_model(name, **settings)
    except (OSError, RuntimeError) as problem:
        if not pretrained:
            raise UserError(f"timm cannot build '{name}' for {image_size} pixels: {problem}") from problem
        raise UserError(
            f"The pretrained weights of '{name}' could not be downloaded from timm's hub ({type(problem).__name__}). "
            "Give a local .safetensors or .pth file instead, or 'none' to start from scratch."
        ) from problem


def band_statistics(backbone: nn.Module, bands: int) -> Normalisation:
    """Return mean and standard deviation of each band, for images in 0..1, as the backbone expects them.

    Additional bands get the average over the stated bands; if there are fewer bands than stated, all of them do.
    """
    config = getattr(backbone, "pretrained_cfg", None) or {}
    mean = tuple(config.get("mean", (0.485, 0.456, 0.406)))
    std = tuple(config.get("std", (0.229, 0.224, 0.225)))
    if bands != len(mean):
        average_mean, average_std = sum(mean) / len(mean), sum(std) / len(std)
        mean = tuple(mean[i] if bands > len(mean) and i < len(mean) else average_mean for i in range(bands))
        std = tuple(std[i] if bands > len(std) and i < len(std) else average_std for i in range(bands))
    return mean, std
