"""Turns a large remote-sensing scene classifier into a small one that is nearly as good, and proves it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from scenedistill.config import RunConfig
    from scenedistill.errors import UserError
    from scenedistill.experiments.run import run
    from scenedistill.models.files import load_net
    from scenedistill.models.student import build_student
    from scenedistill.models.teacher import build_teacher

#: Public name to the module that holds it; loaded when first asked for, so that `scenedistill --help` is quick.
_HOMES = {
    "RunConfig": "scenedistill.config",
    "UserError": "scenedistill.errors",
    "run": "scenedistill.experiments.run",
    "load_net": "scenedistill.models.files",
    "build_student": "scenedistill.models.student",
    "build_teacher": "scenedistill.models.teacher",
}
__all__ = ["RunConfig", "UserError", "__version__", "build_student", "build_teacher", "load_net", "run"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'scenedistill' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
