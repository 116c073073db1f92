"""Turns a large remote-sensing scene classifier into a small one that is nearly as good, and proves it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scenedistill.core.lazy import attach

__version__ = "0.1.0"

if TYPE_CHECKING:
    from scenedistill import data, losses, models, training
    from scenedistill.config import RunConfig
    from scenedistill.core.errors import UserError
    from scenedistill.data import ViewConfig, evaluation_view, training_view
    from scenedistill.experiments.run import run
    from scenedistill.losses import (
        METHODS,
        AttentionTransfer,
        ContrastiveRepresentation,
        CorrelationCongruence,
        CrossEntropy,
        Decoupled,
        DistillationLoss,
        DualAttentionLoss,
        Hint,
        KnowledgeReview,
        PooledHint,
        PooledSimilarity,
        RelationalKnowledge,
        SimilarityPreserving,
        SimpleRecipe,
        SoftLogits,
        SpatialStructureLoss,
        StandardisedLogits,
        StrongerTeacher,
        TeacherStatistics,
        build_losses,
        triplet_loss,
    )
    from scenedistill.models import (
        DualAttention,
        FeatureDims,
        NetCard,
        SceneNet,
        SceneOutput,
        StageAttention,
        build_student,
        build_teacher,
        load_net,
        save_net,
    )

# loaded when first asked for, so that `scenedistill --help` is quick
__getattr__, __dir__ = attach(
    __name__,
    {
        "config": ("RunConfig",),
        "data": ("ViewConfig", "evaluation_view", "training_view"),
        "core.errors": ("UserError",),
        "experiments.run": ("run",),
        "losses": (
            "METHODS",
            "AttentionTransfer",
            "ContrastiveRepresentation",
            "CorrelationCongruence",
            "CrossEntropy",
            "Decoupled",
            "DistillationLoss",
            "DualAttentionLoss",
            "Hint",
            "KnowledgeReview",
            "PooledHint",
            "PooledSimilarity",
            "RelationalKnowledge",
            "SimilarityPreserving",
            "SimpleRecipe",
            "SoftLogits",
            "SpatialStructureLoss",
            "StandardisedLogits",
            "StrongerTeacher",
            "TeacherStatistics",
            "build_losses",
            "triplet_loss",
        ),
        "models": (
            "DualAttention",
            "FeatureDims",
            "NetCard",
            "SceneNet",
            "SceneOutput",
            "StageAttention",
            "build_student",
            "build_teacher",
            "load_net",
            "save_net",
        ),
        "training": (),
    },
)
__all__ = [
    "METHODS", "AttentionTransfer", "ContrastiveRepresentation", "CorrelationCongruence", "CrossEntropy", "Decoupled",
    "DistillationLoss", "DualAttention", "DualAttentionLoss", "FeatureDims", "Hint", "KnowledgeReview", "NetCard",
    "PooledHint", "PooledSimilarity", "RelationalKnowledge", "RunConfig", "SceneNet", "SceneOutput",
    "SimilarityPreserving", "SimpleRecipe", "SoftLogits", "SpatialStructureLoss", "StageAttention",
    "StandardisedLogits", "StrongerTeacher", "TeacherStatistics", "UserError", "ViewConfig", "__version__",
    "build_losses", "build_student", "build_teacher", "data", "evaluation_view", "load_net", "losses", "models", "run",
    "save_net", "training", "training_view", "triplet_loss",
]  # fmt: skip
