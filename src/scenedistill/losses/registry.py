"""Registry of losses and methods by name; a new loss needs one entry in `LOSSES`."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping

from torch import nn

from scenedistill.core.errors import UserError
from scenedistill.losses.base import CrossEntropy, DistillationLoss
from scenedistill.losses.dual_attention import DualAttentionLoss
from scenedistill.losses.features import AttentionTransfer, Hint, PooledHint, SimpleRecipe
from scenedistill.losses.libraries import LightlyQueue, TimmFeatures, TimmLogits
from scenedistill.losses.logits import Decoupled, SoftLogits, StandardisedLogits, StrongerTeacher
from scenedistill.losses.projected import OrthogonalProjection, ProjectorEnsemble, SelfSupervised
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
from scenedistill.models.output import FeatureDims

LOSSES: dict[str, type[DistillationLoss]] = {
    "ce": CrossEntropy,
    "da": DualAttentionLoss,
    "ss": SpatialStructureLoss,
    # other methods
    "at": AttentionTransfer,
    "cc": CorrelationCongruence,
    "crd": ContrastiveRepresentation,
    "decoupled": Decoupled,
    "dist": StrongerTeacher,
    "fitnet": Hint,
    "fitnet_pooled": PooledHint,
    "kd": SoftLogits,
    "lightly": LightlyQueue,
    "logit_std": StandardisedLogits,
    "pefd": ProjectorEnsemble,
    "pkt": ProbabilisticTransfer,
    "reviewkd": KnowledgeReview,
    "rkd": RelationalKnowledge,
    "seed": SelfSupervised,
    "simkd": ReusedClassifier,
    "sp": SimilarityPreserving,
    "sp_pooled": PooledSimilarity,
    "srd": SimpleRecipe,
    "timm_feature": TimmFeatures,
    "timm_logit": TimmLogits,
    "vkd": OrthogonalProjection,
}

#: Weights of the losses of each method. `dkd` is L_HTL = CE + alpha L_DA + beta L_SS, equation (15), with weights
#: chosen on validation images of AID; `dkd_plus`, ours, adds soft logits (docs/method.md). The weights of the other
#: methods are those of their authors' code or of widely used codebases, except `cc`, `fitnet` and `vkd`, whose weights
#: are ours. The pooled variants and `crd` (without its memory) use the weights of the original methods, not tuned for
#: them.
METHODS: dict[str, dict[str, float]] = {
    "plain": {"ce": 1.0},
    "dkd": {"ce": 1.0, "da": 30.0, "ss": 1.0},
    "dkd_plus": {"ce": 0.1, "kd": 0.9, "da": 30.0, "ss": 1.0},
    # other methods
    "at": {"ce": 1.0, "at": 1000.0},
    "cc": {"ce": 1.0, "cc": 100.0},
    "crd": {"ce": 1.0, "crd": 0.8},
    "decoupled": {"ce": 1.0, "decoupled": 1.0},
    "dist": {"ce": 1.0, "dist": 2.0},
    "fitnet": {"ce": 1.0, "fitnet": 10.0},
    "fitnet_pooled": {"ce": 1.0, "fitnet_pooled": 10.0},
    "kd": {"ce": 0.1, "kd": 0.9},
    "lightly": {"ce": 1.0, "lightly": 1.0},
    "logit_std": {"ce": 0.1, "logit_std": 9.0},
    "pefd": {"ce": 1.0, "pefd": 25.0},
    "pkt": {"ce": 1.0, "pkt": 30000.0},
    "reviewkd": {"ce": 1.0, "reviewkd": 1.0},
    "rkd": {"ce": 1.0, "rkd": 1.0},
    "seed": {"ce": 1.0, "seed": 1.0},
    "simkd": {"simkd": 1.0},
    "sp": {"ce": 1.0, "sp": 3000.0},
    "sp_pooled": {"ce": 1.0, "sp_pooled": 3000.0},
    "srd": {"ce": 1.0, "srd": 1.0},
    "timm_feature": {"ce": 1.0, "timm_feature": 1.0},
    "timm_logit": {"ce": 1.0, "timm_logit": 1.0},
    "vkd": {"ce": 1.0, "vkd": 1.0},
}

#: Weights that differ for a student that starts from pretrained weights, chosen on validation images of AID
#: (configs/lite_weights.yaml).
FINE_TUNING_METHODS: dict[str, dict[str, float]] = {"dkd": {"da": 1.0}, "dkd_plus": {"da": 1.0}}

#: Revision of methods and losses whose definition has changed under the same name. Students trained with an older
#: revision are trained again.
REVISIONS: dict[str, int] = {
    "crd": 2, "decoupled": 2, "fitnet": 2, "fitnet_pooled": 2, "logit_std": 2, "reviewkd": 3, "srd": 2,
}  # fmt: skip


def build_losses(
    names: Mapping[str, float],
    student: FeatureDims,
    teacher: FeatureDims,
    options: Mapping[str, Mapping[str, float]] | None = None,
) -> nn.ModuleDict:
    """Build a new module for each named loss.

    Args:
        names: keys of `LOSSES`, such as an entry of `METHODS`; the weights are ignored.
        student: widths of the student.
        teacher: widths of the teacher.
        options: keyword arguments of single losses, by name of the loss.

    Returns:
        The losses by name.

    Raises:
        UserError: a name or an option is unknown, an option is out of range, or options are given for a loss that is
            not in `names`.

    Examples:
        >>> from scenedistill.losses.registry import build_losses
        >>> from scenedistill.models.output import FeatureDims
        >>> student, teacher = FeatureDims(3, 16, stages=(8, 16)), FeatureDims(3, 64, stages=(32, 64))
        >>> list(build_losses({"ce": 1.0, "ss": 1.0}, student, teacher, options={"ss": {"temperature": 0.2}}))
        ['ce', 'ss']
    """
    _check_names(names)
    unused = [name for name in options or {} if name not in names]
    if unused:
        raise UserError(f"Options are given for {', '.join(unused)}, but the losses are {', '.join(names)}.")
    built = {}
    for name in names:
        try:
            built[name] = LOSSES[name](student, teacher, **dict((options or {}).get(name, {})))
        except TypeError as problem:
            known = list(inspect.signature(LOSSES[name]).parameters)[2:]
            raise UserError(f"Loss '{name}': {problem}. Its options: {', '.join(known) or 'none'}.") from problem
        except ValueError as problem:
            raise UserError(f"Loss '{name}': {problem}.") from problem
    return nn.ModuleDict(built)


def resolve_weights(method: str, changes: Mapping[str, float]) -> dict[str, float]:
    """Return the weights of a method with changes applied; losses of weight 0 are removed.

    Args:
        method: key of `METHODS`.
        changes: weights by name of the loss, which replace those of the method or are added to them.

    Raises:
        UserError: the method or a loss is unknown, or a weight is negative or not finite.

    Examples:
        >>> from scenedistill.losses.registry import resolve_weights
        >>> resolve_weights("dkd", {"ss": 2.0, "da": 0.0})
        {'ce': 1.0, 'ss': 2.0}
    """
    if method not in METHODS:
        raise UserError(f"No method is called '{method}'. There are: {', '.join(METHODS)}.")
    _check_names(changes)  # also those of weight 0: a misspelt `SS: 0` would not remove `ss`
    weights = {**METHODS[method], **changes}
    for name, weight in weights.items():
        if not 0 <= weight < math.inf:
            raise UserError(f"The weight of {name} is {weight:g}; weights are numbers of 0 or more.")
    return {name: weight for name, weight in weights.items() if weight > 0}


def _check_names(names: Iterable[str]) -> None:
    unknown = [name for name in names if name not in LOSSES]
    if unknown:
        raise UserError(f"No loss is called {', '.join(unknown)}. There are: {', '.join(LOSSES)}.")
