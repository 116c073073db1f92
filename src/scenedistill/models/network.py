"""A scene classifier: any backbone with dual attention at its stages and a linear head."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, cast

import timm
import torch
from timm.layers.adaptive_avgmax_pool import SelectAdaptivePool2d
from torch import Tensor, nn

from scenedistill.errors import UserError
from scenedistill.models.attention import AttendedStage, DualAttention, NoAttention
from scenedistill.models.output import FeatureDims, SceneOutput
from scenedistill.precision import at_least_float32, no_autocast
from scenedistill.terminal import counted

STRIDES = (4, 8, 16, 32)


class SceneNet(nn.Module):
    """A backbone that maps images to a pooled embedding, with a DA module after each of its stages and a linear head.

    Args:
        backbone: maps `[B, bands, H, W]` to an embedding `[B, D]`; has timm's `feature_info` (a list of dicts with
            `module`, `num_chs`, `reduction`) and `num_features`. Its stage modules are wrapped in place.
        classes: number of scene classes K.
        mean: mean of each band of the images the backbone expects, in 0..1.
        std: standard deviation of each band, in 0..1.
        dual_attention: put DA modules after the stages; without, the stages are only watched.
        image_size: side in pixels at which the embedding's width is probed.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        classes: int,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        dual_attention: bool = True,
        image_size: int = 96,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self._stage_names = []
        widths = []
        for name, width in _stages(backbone):
            attention = DualAttention(width) if dual_attention else NoAttention()
            backbone.set_submodule(name, _attended(backbone, name, attention))
            self._stage_names.append(name)
            widths.append(width)
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)
        try:
            width = _embedding_width(backbone, len(mean), image_size)
        except UserError as problem:
            raise self._refusal(problem, len(mean), image_size) from problem
        self.head = nn.Linear(width, classes)
        self.dims = FeatureDims(classes, width, tuple(widths))

    def _refusal(self, problem: UserError, bands: int, image_size: int) -> UserError:
        """Why the backbone computes nothing: `problem`, unless it does as soon as its stages are no longer wrapped."""
        for name in self._stage_names:  # one by one: several stages may be called alike, and are wrapped in each other
            self.backbone.set_submodule(name, cast(AttendedStage, self.backbone.get_submodule(name)).stage)
        try:
            _embedding_width(self.backbone, bands, image_size)
        except UserError:
            return problem
        names = ", ".join(dict.fromkeys(self._stage_names))
        return UserError(
            f"{type(self.backbone).__name__} does not call its stages ({names}) as modules of one feature map, so "
            "none can be watched or have a DA module behind it, whatever dual_attention is. Choose another backbone."
        )

    def set_head(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Put in another head.

        Args:
            weight: `[K, D]`.
            bias: `[K]`; zeros when not given.
        """
        self.head = nn.Linear(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            self.head.weight.copy_(weight)
            self.head.bias.copy_(torch.zeros(len(weight)) if bias is None else bias)
        self.dims = self.dims._replace(classes=len(weight))

    def set_normalisation(self, mean: Tensor, std: Tensor) -> None:
        """Normalise images with other statistics than the backbone's own, which is kept with the weights.

        Args:
            mean: of each band of images in 0..1, `[bands]`.
            std: standard deviation of each band, `[bands]`.
        """
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, values.detach().clone().float().reshape(-1, 1, 1), persistent=True)

    @property
    def stages(self) -> list[AttendedStage]:
        """The wrapped stages, finest first."""
        return [cast(AttendedStage, self.backbone.get_submodule(name)) for name in self._stage_names]

    def forward(self, images: Tensor, attention: bool = True, features: bool = False) -> SceneOutput:
        """Classify a batch.

        Args:
            images: `[B, bands, H, W]`, values in 0..1; normalised here with the backbone's own statistics.
            attention: report the attention of each stage; without, that part of the output is empty and cheaper.
            features: report the feature map of each stage.

        Returns:
            Logits `[B, K]` and embedding `[B, D]`, in float32 whatever the autocast, and what else was asked for of
            each stage.
        """
        stages = self.stages
        for stage in stages:
            stage.watched, stage.kept = attention, features
        normal = (images - self.mean) / self.std
        # a frozen teacher's backbone is in half precision, its head is not
        embedding = self.backbone(normal.to(next(self.backbone.parameters()).dtype)).to(self.head.weight.dtype)
        # nor under autocast: in 16 bits the two best logits of some images in a hundred would be the same number
        with no_autocast(embedding.device):
            logits = self.head(embedding)
        seen = tuple(stage.collect() for stage in stages) if attention else ()
        maps = tuple(stage.collect_feature() for stage in stages) if features else ()
        return SceneOutput(logits, embedding, seen, maps)


def _stages(backbone: nn.Module) -> list[tuple[str, int]]:
    """Name and width of the four stages: the last feature at each of the strides 4, 8, 16 and 32, where the backbone
    has them, else (a plain transformer) four features evenly spread over its depth."""
    info = [dict(entry) for entry in backbone.feature_info]  # type: ignore[union-attr]
    by_stride = {entry["reduction"]: entry for entry in info}
    chosen = [by_stride[stride] for stride in STRIDES if stride in by_stride]
    if len(chosen) < 2:
        if len(info) < 4:
            raise UserError(
                f"{type(backbone).__name__} describes {counted(len(info), 'stage')}, and dual attention needs at least "
                f"two strides of {STRIDES} or four blocks. Choose another backbone."
            )
        chosen = [info[(len(info) * (i + 1)) // 4 - 1] for i in range(4)]
    return [(str(entry["module"]), int(entry["num_chs"])) for entry in chosen]


def _attended(backbone: nn.Module, name: str, attention: nn.Module) -> AttendedStage:
    try:
        stage = backbone.get_submodule(name)
    except AttributeError as problem:
        raise UserError(
            f"{type(backbone).__name__} has no single module for its stage '{name}' to put dual attention behind. "
            "Choose another backbone."
        ) from problem
    layout = getattr(backbone, "output_fmt", "NCHW")
    return AttendedStage(
        stage,
        attention,
        channels_last=getattr(layout, "value", layout) == "NHWC",  # timm's Format enumeration
        prefix_tokens=getattr(backbone, "num_prefix_tokens", 0),
    )


def _embedding_width(backbone: nn.Module, bands: int, size: int) -> int:
    """Width of the embedding, found by one forward pass: what timm states differs from it for some backbones. A pooling
    whose output is the embedding computes in float32 from now on; what else may follow one in half precision takes
    nothing wider."""
    was_training = backbone.training
    backbone.eval()
    pooled: dict[SelectAdaptivePool2d, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda module, _, output: pooled.update({module: output}))
        for module in backbone.modules()
        if isinstance(module, SelectAdaptivePool2d)
    ]
    try:
        with torch.no_grad():
            embedding = backbone(torch.rand(1, bands, size, size, generator=torch.Generator().manual_seed(0)))
    except Exception as problem:  # of whatever a backbone does, such as reading from the stages that are wrapped here
        reason = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
        raise UserError(
            f"{type(backbone).__name__} does not take images of {size} x {size} pixels ({reason}). Choose another "
            "image_size or backbone."
        ) from problem
    for hook in hooks:
        hook.remove()
    backbone.train(was_training)
    if embedding.ndim != 2:
        raise UserError(f"{type(backbone).__name__} gives {tuple(embedding.shape)}, not a pooled embedding [B, D].")
    for module, output in pooled.items():
        if torch.equal(output.flatten(1), embedding):
            module.register_forward_pre_hook(_widen)
    return int(embedding.shape[1])


def _widen(_: nn.Module, given: tuple[Tensor]) -> tuple[Tensor]:
    return (at_least_float32(given[0]),)


def check_name(name: str, others: Iterable[str] = ()) -> None:
    """Raise a UserError, with the names it may have been meant for, unless timm or one of the `others` is called so."""
    if name not in others and not timm.is_model(name):
        near = difflib.get_close_matches(name, [*others, *timm.list_models()], 3)
        hint = f" Did you mean {' or '.join(near)}?" if near else " timm.list_models() names all of them."
        raise UserError(f"'{name}' is neither a student of Table 1 nor a backbone that timm knows.{hint}")


def timm_backbone(
    name: str, *, bands: int = 3, image_size: int = 96, pretrained: bool = False, others: Iterable[str] = ()
) -> nn.Module:
    """A timm backbone without its classifier, at an image size in pixels; `pretrained` takes timm's hub weights, and
    `others` are further names that a wrong one may have been meant for."""
    check_name(name, others)
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
            f"The pretrained weights of '{name}' could not be had from timm's hub ({type(problem).__name__}). "
            "Give a local .safetensors or .pth file instead, or 'none' to start from scratch."
        ) from problem


def band_statistics(backbone: nn.Module, bands: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation (0..1) of each band as the backbone expects them; bands beyond the ones it states get
    the average of those."""
    config = getattr(backbone, "pretrained_cfg", None) or {}
    mean = tuple(config.get("mean", (0.485, 0.456, 0.406)))
    std = tuple(config.get("std", (0.229, 0.224, 0.225)))
    if bands != len(mean):
        average_mean, average_std = sum(mean) / len(mean), sum(std) / len(std)
        mean = tuple(mean[i] if bands > len(mean) and i < len(mean) else average_mean for i in range(bands))
        std = tuple(std[i] if bands > len(std) and i < len(std) else average_std for i in range(bands))
    return mean, std
