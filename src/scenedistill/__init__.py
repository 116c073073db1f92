"""Turns a large remote-sensing scene classifier into a small one that is nearly as good, and proves it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scenedistill.core.lazy import attach

__version__ = "0.1.0"

if TYPE_CHECKING:
    from scenedistill import data, losses, models, training
    from scenedistill.config import RunConfig
    from scenedistill.core.errors import UserError
    from scenedistill.experiments.run import run
    from scenedistill.losses import TeacherStatistics
    from scenedistill.models import SceneNet, build_student, build_teacher, load_net

# loaded when first asked for, so that `scenedistill --help` is quick; the packages below offer the rest
__getattr__, __dir__ = attach(
    __name__,
    {
        "config": ("RunConfig",),
        "core.errors": ("UserError",),
        "data": (),
        "experiments.run": ("run",),
        "losses": ("TeacherStatistics",),
        "models": ("SceneNet", "build_student", "build_teacher", "load_net"),
        "training": (),
    },
)
__all__ = [
    "RunConfig", "SceneNet", "TeacherStatistics", "UserError", "__version__", "build_student", "build_teacher", "data",
    "load_net", "losses", "models", "run", "training",
]  # fmt: skip
