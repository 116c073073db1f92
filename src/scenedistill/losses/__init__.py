"""Distillation losses: modules that map two `SceneOutput`s and the labels to a scalar, for any training loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scenedistill.core.lazy import attach

if TYPE_CHECKING:
    from scenedistill.losses.base import CrossEntropy, DistillationLoss, TeacherStatistics
    from scenedistill.losses.dual_attention import DualAttentionLoss
    from scenedistill.losses.features import AttentionTransfer, Hint, PooledHint, SimpleRecipe
    from scenedistill.losses.libraries import LightlyQueue, TimmFeatures, TimmLogits
    from scenedistill.losses.logits import Decoupled, SoftLogits, StandardisedLogits, StrongerTeacher
    from scenedistill.losses.projected import OrthogonalProjection, ProjectorEnsemble, SelfSupervised
    from scenedistill.losses.registry import FINE_TUNING_METHODS, LOSSES, METHODS, build_losses, resolve_weights
    from scenedistill.losses.relations import (
        ContrastiveRepresentation,
        CorrelationCongruence,
        PooledSimilarity,
        ProbabilisticTransfer,
        RelationalKnowledge,
        SimilarityPreserving,
    )
    from scenedistill.losses.review import KnowledgeReview
    from scenedistill.losses.simkd import ReusedClassifier
    from scenedistill.losses.spatial_structure import SpatialStructureLoss
    from scenedistill.losses.triplet import triplet_loss

# lazy, because triplet_loss imports a library that takes seconds to load
__getattr__, __dir__ = attach(
    __name__,
    {
        "base": ("CrossEntropy", "DistillationLoss", "TeacherStatistics"),
        "dual_attention": ("DualAttentionLoss",),
        "features": ("AttentionTransfer", "Hint", "PooledHint", "SimpleRecipe"),
        "libraries": ("LightlyQueue", "TimmFeatures", "TimmLogits"),
        "logits": ("Decoupled", "SoftLogits", "StandardisedLogits", "StrongerTeacher"),
        "projected": ("OrthogonalProjection", "ProjectorEnsemble", "SelfSupervised"),
        "registry": ("FINE_TUNING_METHODS", "LOSSES", "METHODS", "build_losses", "resolve_weights"),
        "relations": (
            "ContrastiveRepresentation",
            "CorrelationCongruence",
            "PooledSimilarity",
            "ProbabilisticTransfer",
            "RelationalKnowledge",
            "SimilarityPreserving",
        ),
        "review": ("KnowledgeReview",),
        "simkd": ("ReusedClassifier",),
        "spatial_structure": ("SpatialStructureLoss",),
        "triplet": ("triplet_loss",),
    },
)
__all__ = [
    "FINE_TUNING_METHODS", "LOSSES", "METHODS", "AttentionTransfer", "ContrastiveRepresentation",
    "CorrelationCongruence", "CrossEntropy", "Decoupled", "DistillationLoss", "DualAttentionLoss", "Hint",
    "KnowledgeReview", "LightlyQueue", "OrthogonalProjection", "PooledHint", "PooledSimilarity",
    "ProbabilisticTransfer", "ProjectorEnsemble", "RelationalKnowledge", "ReusedClassifier", "SelfSupervised",
    "SimilarityPreserving", "SimpleRecipe", "SoftLogits", "SpatialStructureLoss", "StandardisedLogits",
    "StrongerTeacher", "TeacherStatistics", "TimmFeatures", "TimmLogits", "build_losses", "resolve_weights",
    "triplet_loss",
]  # fmt: skip
