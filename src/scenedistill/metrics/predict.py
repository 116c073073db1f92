"""Predictions of a network for every image of a part, from the evaluation view."""

from __future__ import annotations

import numpy as np
import torch

from scenedistill.core.precision import autocast
from scenedistill.data.batches import ScenePart
from scenedistill.data.views import evaluation_view
from scenedistill.models.network import SceneNet
from scenedistill.training.distributed import gather_rows, share_of_rows


def predict(
    net: SceneNet, part: ScenePart, *, image_size: int, device: torch.device, precision: str, batch_size: int = 100
) -> np.ndarray:
    """Predict the class of each image, int64 `[N]`, in the order of the part; see `predict_logits`."""
    scores = predict_logits(net, part, image_size=image_size, device=device, precision=precision, batch_size=batch_size)
    named: np.ndarray = scores.argmax(1)
    return named


def predict_logits(
    net: SceneNet, part: ScenePart, *, image_size: int, device: torch.device, precision: str, batch_size: int = 100
) -> np.ndarray:
    """Compute the logits of each image, in the order of the part.

    The processes of a distributed training divide the images: all of them must call this, and each gets all logits.

    Args:
        net: network of K classes; set to eval mode and moved to the device.
        part: N images.
        image_size: side of the evaluation view in pixels.
        device: device of the computation.
        precision: `bf16`, `fp16` or `fp32`.
        batch_size: images of one pass.

    Returns:
        float32 `[N, K]`.
    """
    net.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    found = []
    with torch.inference_mode(), autocast(device, precision):
        for batch in part.batches(batch_size, share_of_rows(len(part))):
            view = evaluation_view(batch.images.to(device), size=image_size)
            found.append(net(view, attention=False).logits.float())
    if not found:
        return np.zeros((0, net.dims.classes), dtype=np.float32)
    return gather_rows(torch.cat(found), len(part)).cpu().numpy()
