"""Distillation losses: each a function of two `SceneOutput`s and the labels, usable in any training loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scenedistill.core.lazy import attach

if TYPE_CHECKING:
    from scenedistill.losses.base import CrossEntropy, DistillationLoss, TeacherStatistics
    from scenedistill.losses.dual_attention import DualAttentionLoss
    from scenedistill.losses.features import AttentionTransfer, Hint, PooledHint, SimpleRecipe
    from scenedistill.losses.logits import Decoupled, SoftLogits, StandardisedLogits, StrongerTeacher
    from scenedistill.losses.projected import OrthogonalProjection, ProjectorEnsemble, SelfSupervised
    from scenedistill.losses.registry import LOSSES, METHODS, build_losses, resolve_weights
    from scenedistill.losses.relations import (
        ContrastiveRepresentation,
        CorrelationCongruence,
        PooledSimilarity,
        ProbabilisticTransfer,
        RelationalKnowledge,
        SimilarityPreserving,
    )
    from scenedistill.losses.review import KnowledgeReview
    from scenedistill.losses.spatial_structure import SpatialStructureLoss
    from scenedistill.losses.triplet import triplet_loss

# triplet_loss imports a library that takes seconds
__getattr__, __dir__ = attach(
    __name__,
    {
        "base": ("CrossEntropy", "DistillationLoss", "TeacherStatistics"),
        "dual_attention": ("DualAttentionLoss",),
        "features": ("AttentionTransfer", "Hint", "PooledHint", "SimpleRecipe"),
        "logits": ("Decoupled", "SoftLogits", "StandardisedLogits", "StrongerTeacher"),
        "projected": ("OrthogonalProjection", "ProjectorEnsemble", "SelfSupervised"),
        "registry": ("LOSSES", "METHODS", "build_losses", "resolve_weights"),
        "relations": (
            "ContrastiveRepresentation",
            "CorrelationCongruence",
            "PooledSimilarity",
            "ProbabilisticTransfer",
            "RelationalKnowledge",
            "SimilarityPreserving",
        ),
        "review": ("KnowledgeReview",),
        "spatial_structure": ("SpatialStructureLoss",),
        "triplet": ("triplet_loss",),
    },
)
__all__ = [
    "LOSSES", "METHODS", "AttentionTransfer", "ContrastiveRepresentation", "CorrelationCongruence", "CrossEntropy",
    "Decoupled", "DistillationLoss", "DualAttentionLoss", "Hint", "KnowledgeReview", "OrthogonalProjection",
    "PooledHint", "PooledSimilarity", "ProbabilisticTransfer", "ProjectorEnsemble", "RelationalKnowledge",
    "SelfSupervised", "SimilarityPreserving", "SimpleRecipe", "SoftLogits", "SpatialStructureLoss",
    "StandardisedLogits", "StrongerTeacher", "TeacherStatistics", "build_losses", "resolve_weights", "triplet_loss",
]  # fmt: skip
