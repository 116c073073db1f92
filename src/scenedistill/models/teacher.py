"""The teacher's network, by name."""

from __future__ import annotations

from scenedistill.models.create import build_network
from scenedistill.models.network import SceneNet
from scenedistill.models.weights import WeightAccount


def build_teacher(
    name: str = "resnet101",
    classes: int = 30,
    *,
    bands: int = 3,
    image_size: int = 96,
    weights: str = "none",
    dual_attention: bool = True,
    stride_in_first_convolution: bool = False,
) -> tuple[SceneNet, WeightAccount | None]:
    """A teacher, the paper's by default; arguments and outcome are those of `build_network`."""
    return build_network(
        name,
        classes,
        bands=bands,
        image_size=image_size,
        weights=weights,
        dual_attention=dual_attention,
        stride_in_first_convolution=stride_in_first_convolution,
    )
