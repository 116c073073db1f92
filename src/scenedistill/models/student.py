"""The student's network, by name."""

from __future__ import annotations

from scenedistill.models.create import build_network
from scenedistill.models.network import SceneNet


def build_student(
    name: str,
    classes: int,
    *,
    bands: int = 3,
    image_size: int = 96,
    weights: str = "none",
    partial: bool = False,
    dual_attention: bool = True,
    normalise: bool = True,
) -> SceneNet:
    """A student; the arguments are those of `build_network`, which also says which weights were taken."""
    net, _ = build_network(
        name,
        classes,
        bands=bands,
        image_size=image_size,
        weights=weights,
        partial=partial,
        dual_attention=dual_attention,
        normalise=normalise,
    )
    return net
