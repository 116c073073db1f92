"""Images: folder scans, splits, the decoded cache, batches and views."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scenedistill.core.lazy import attach

if TYPE_CHECKING:
    from scenedistill.data.batches import SceneBatch, ScenePart
    from scenedistill.data.cache.build import build_cache
    from scenedistill.data.cache.scenes import SceneCache
    from scenedistill.data.module import SceneDataModule
    from scenedistill.data.scenes import SceneIndex, scan
    from scenedistill.data.splits.draw import Split, make_split
    from scenedistill.data.synthetic.demo import generate
    from scenedistill.data.training_part import TrainingPart
    from scenedistill.data.views import ViewConfig, evaluation_view, training_view

# lazy: a command that only scans folders does not import torch
__getattr__, __dir__ = attach(
    __name__,
    {
        "batches": ("SceneBatch", "ScenePart"),
        "cache.build": ("build_cache",),
        "synthetic.demo": ("generate",),
        "module": ("SceneDataModule",),
        "cache.scenes": ("SceneCache",),
        "scenes": ("SceneIndex", "scan"),
        "splits.draw": ("Split", "make_split"),
        "training_part": ("TrainingPart",),
        "views": ("ViewConfig", "evaluation_view", "training_view"),
    },
)
__all__ = [
    "SceneBatch", "SceneCache", "SceneDataModule", "SceneIndex", "ScenePart", "Split", "TrainingPart", "ViewConfig",
    "build_cache", "evaluation_view", "generate", "make_split", "scan", "training_view",
]  # fmt: skip
