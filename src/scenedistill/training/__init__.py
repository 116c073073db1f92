"""Training with Lightning: modules for its Trainer, and the teacher's outputs for the training views."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scenedistill.core.lazy import attach

if TYPE_CHECKING:
    from scenedistill.training.student import StudentTraining
    from scenedistill.training.teacher import TeacherTraining
    from scenedistill.training.teacher_outputs.knowledge import Knowledge
    from scenedistill.training.teacher_outputs.teachers import Teachers

__getattr__, __dir__ = attach(
    __name__,
    {
        "teacher_outputs.knowledge": ("Knowledge",),
        "teacher_outputs.teachers": ("Teachers",),
        "student": ("StudentTraining",),
        "teacher": ("TeacherTraining",),
    },
)
__all__ = ["Knowledge", "StudentTraining", "TeacherTraining", "Teachers"]
