"""Students and teachers: networks by name, wrappers for other modules, and the `SceneOutput` that all return."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scenedistill.core.lazy import attach

if TYPE_CHECKING:
    from scenedistill.models.attention import DualAttention
    from scenedistill.models.create import build_network, build_student, build_teacher, build_with_head
    from scenedistill.models.files import NetCard, load_net, save_net
    from scenedistill.models.freeze import FrozenTeacher
    from scenedistill.models.network import SceneNet
    from scenedistill.models.output import FeatureDims, SceneOutput, StageAttention
    from scenedistill.models.table1 import STUDENTS, Table1Backbone
    from scenedistill.models.weights.take import WeightAccount

__getattr__, __dir__ = attach(
    __name__,
    {
        "attention": ("DualAttention",),
        "create": ("build_network", "build_student", "build_teacher", "build_with_head"),
        "files": ("NetCard", "load_net", "save_net"),
        "freeze": ("FrozenTeacher",),
        "network": ("SceneNet",),
        "output": ("FeatureDims", "SceneOutput", "StageAttention"),
        "table1": ("STUDENTS", "Table1Backbone"),
        "weights.take": ("WeightAccount",),
    },
)
__all__ = [
    "STUDENTS", "DualAttention", "FeatureDims", "FrozenTeacher", "NetCard", "SceneNet", "SceneOutput",
    "StageAttention", "Table1Backbone", "WeightAccount", "build_network", "build_student", "build_teacher",
    "build_with_head", "load_net", "save_net",
]  # fmt: skip
