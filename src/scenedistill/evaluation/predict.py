"""A network's class for every image of a part, from the evaluation view."""

from __future__ import annotations

import numpy as np
import torch

from scenedistill.data.module import ScenePart
from scenedistill.data.views import evaluation_view
from scenedistill.models.network import SceneNet
from scenedistill.precision import autocast


def predict(
    net: SceneNet, part: ScenePart, *, image_size: int, device: torch.device, precision: str, batch_size: int = 100
) -> np.ndarray:
    """Predicted class of each image, in the order of the part.

    Args:
        net: put into eval mode, and onto the device.
        part: N images.
        image_size: side of the evaluation view in pixels.
        device: to compute on.
        precision: `bf16`, `fp16` or `fp32`.
        batch_size: images of one pass.

    Returns:
        int64 `[N]`.
    """
    net.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    classes = []
    with torch.inference_mode(), autocast(device, precision):
        for batch in part.batches(batch_size):
            view = evaluation_view(batch.images.to(device), size=image_size)
            classes.append(net(view, attention=False).logits.argmax(1))
    return torch.cat(classes).cpu().numpy() if classes else np.zeros(0, dtype=np.int64)
