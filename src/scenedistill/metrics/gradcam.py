"""Class-activation maps (Grad-CAM), and the agreement between the maps of two networks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from scenedistill.core.errors import UserError
from scenedistill.data.batches import ScenePart
from scenedistill.data.views import evaluation_view
from scenedistill.models.attention import AttendedStage
from scenedistill.models.network import SceneNet
from scenedistill.models.wrap import evaluating

#: Name of what `agreement` computes, for reports.
AGREEMENT = "Pearson correlation of Grad-CAM maps"


def class_activation(net: SceneNet, images: Tensor, *, size: int, classes: Tensor | None = None) -> Tensor:
    """Compute Grad-CAM of the last stage's gated feature (Selvaraju et al., ICCV 2017) with the package `grad-cam`.

    Each map is resized bilinearly to the view and scaled to 0..1; it is 0 everywhere if the image has no positive
    evidence for the class. The modes and values of the network are preserved, the `grad` of its parameters is not.
    Hooks are registered on the network during the call: two threads must not call this with the same network.

    Args:
        net: network of K classes, in float32; the images are moved to its device.
        images: uint8 `[B, H, W, bands]`, as `data.images.read_scene` returns them.
        size: side of the evaluation view in pixels: the network's `image_size`.
        classes: classes to explain, int64 `[B]`; the predicted ones when not given.

    Returns:
        float32 `[B, size, size]` in 0..1, on the CPU.

    Raises:
        UserError: the library is not installed.
    """
    try:
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    except ImportError as problem:
        raise UserError(
            f"Class-activation maps need the package grad-cam ({problem}).\n"
            "Install it: pip install 'scenedistill[report]'"
        ) from problem
    if not len(images):
        return torch.zeros(0, size, size)
    stage = _watched_stage(net)
    learning = [parameter for parameter in net.parameters() if parameter.requires_grad]
    with torch.inference_mode(False), torch.enable_grad(), evaluating(net):
        # the gradient stops at the stage: the layers before it run without recording a graph
        start = stage.register_forward_hook(lambda module, given, feature: feature.detach().requires_grad_())
        net.requires_grad_(False)
        try:
            view = evaluation_view(images.to(next(net.parameters()).device), size=size)
            targets = None if classes is None else [ClassifierOutputTarget(int(k)) for k in classes]
            with GradCAM(_Logits(net), [stage], reshape_transform=lambda feature: _as_map(stage, feature)) as camera:
                maps: np.ndarray = camera(view, targets)
        finally:
            start.remove()
            for parameter in learning:
                parameter.requires_grad_()
    return torch.from_numpy(maps)


def agreement(a: Tensor, b: Tensor) -> Tensor:
    """Compute Pearson's correlation of two maps of each image, float32 `[B]` in -1..1; 0 where a map is constant.

    This is the saliency metric "CC" of Bylinskii et al. (IEEE TPAMI 2019): symmetric, and invariant to the scale and
    the offset of a map, which Grad-CAM does not define.

    Args:
        a: maps, float `[B, H, W]`.
        b: maps of the same shape.
    """
    if a.shape != b.shape or a.ndim != 3:
        raise ValueError(f"maps of {list(a.shape)} and {list(b.shape)}; expected [B, H, W] of one shape")
    x, y = (maps.double().flatten(1) for maps in (a, b))
    x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
    both = x.norm(dim=1) * y.norm(dim=1)
    return torch.where(both > 1e-9, (x * y).sum(1) / both.clamp(min=1e-9), 0.0).clamp(-1, 1).float()


def agreement_with_teacher(
    teacher: SceneNet,
    students: Mapping[str, SceneNet],
    part: ScenePart,
    *,
    size: int,
    device: torch.device | None = None,
    batch_size: int = 64,
) -> dict[str, np.ndarray]:
    """Compute the agreement of each student's map of the true class with the teacher's, on every image.

    Takes about as long as one forward pass of each network.

    Args:
        teacher: teacher; moved to the device.
        students: students by name; moved to the device.
        part: N images.
        size: side of the evaluation view in pixels.
        device: device of the computation; the teacher's when not given.
        batch_size: images of one pass.

    Returns:
        float32 `[N]` for each student, in the order of the part.
    """
    device = device or next(teacher.parameters()).device
    for net in (teacher, *students.values()):
        net.to(device)
    found: dict[str, list[Tensor]] = {name: [] for name in students}
    for batch in part.batches(batch_size):
        theirs = class_activation(teacher, batch.images, size=size, classes=batch.labels)
        for name, net in students.items():
            own = class_activation(net, batch.images, size=size, classes=batch.labels)
            found[name].append(agreement(theirs, own))
    return {name: torch.cat(scores).numpy() if scores else np.zeros(0, np.float32) for name, scores in found.items()}


class _Logits(nn.Module):
    """Wrap a network for the library: images in, logits out."""

    def __init__(self, net: SceneNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.net(images, attention=False).logits)


def _watched_stage(net: SceneNet) -> AttendedStage:
    """Return the last stage whose positions affect the logits: the last but one where a transformer reads only the
    class token after its last block, because the other tokens of that block are not used."""
    by_token = getattr(net.backbone, "global_pool", "") == "token" and getattr(net.backbone, "num_prefix_tokens", 0)
    return net.stages[-2 if by_token else -1]


def _as_map(stage: AttendedStage, feature: Tensor) -> Tensor:
    """Convert a stage's feature, or its gradient, from any layout to `[B, C, H, W]`."""
    if feature.ndim == 4:
        return feature.permute(0, 3, 1, 2) if stage.channels_last else feature
    tokens = feature.shape[1]
    side = math.isqrt(tokens - stage.prefix_tokens)
    first = stage.prefix_tokens if side**2 == tokens - stage.prefix_tokens else 0  # as AttendedStage reads them
    side = math.isqrt(tokens - first)
    return feature[:, first:].transpose(1, 2).reshape(len(feature), -1, side, side)
