"""What the packages offer to who imports them, and that the import itself is quick."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

from scenedistill.core.lazy import attach
from scenedistill.losses.base import DistillationLoss
from scenedistill.losses.registry import LOSSES

SOURCE = Path(__file__).resolve().parents[1] / "src"
PACKAGES = ("scenedistill", "scenedistill.losses", "scenedistill.models", "scenedistill.data", "scenedistill.training")


def typed_names(package: str) -> set[str]:
    """Names that a type checker finds in a package: those imported under TYPE_CHECKING."""
    path = SOURCE.joinpath(*package.split(".")) / "__init__.py"
    (block,) = (node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.If))
    return {alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}


@pytest.mark.parametrize("name", PACKAGES)
def test_every_exported_name_exists_at_run_time_and_for_type_checkers(name: str) -> None:
    package = importlib.import_module(name)
    assert all(getattr(package, each) is not None for each in package.__all__)
    assert set(package.__all__) - {"__version__"} == typed_names(name)
    assert set(package.__all__) - {"__version__"} <= set(dir(package))
    with pytest.raises(AttributeError, match=f"module '{name}' has no attribute 'no_such_name'"):
        package.no_such_name  # noqa: B018


def test_every_loss_is_exported() -> None:
    from scenedistill import losses

    kinds: list[type[DistillationLoss]] = [DistillationLoss, *LOSSES.values()]
    for kind in kinds:
        assert getattr(losses, kind.__name__) is kind


@pytest.mark.parametrize("room", ["models.attention", "models.network", "models.table1", "models.output"])
def test_every_public_model_class_is_exported(room: str) -> None:
    from scenedistill import models

    module = importlib.import_module(f"scenedistill.{room}")
    inner = {"SigmoidAttention", "NoAttention", "AttendedStage", "ResidualBlock"}  # parts of a network
    public = {
        name
        for name, kind in vars(module).items()
        if inspect.isclass(kind) and kind.__module__ == module.__name__ and not name.startswith("_")
        if issubclass(kind, nn.Module) or room == "models.output"
    }
    assert public - inner <= set(models.__all__)


def test_importing_the_losses_loads_no_training_library_and_the_package_no_torch() -> None:
    packages = ("scenedistill", "scenedistill.data", "scenedistill.models")
    losses = [
        f"scenedistill.losses:{name}" for name in ("DualAttentionLoss", "SpatialStructureLoss", "TeacherStatistics")
    ]
    unwanted = "timm,lightning,pytorch_metric_learning,scipy,torchvision"
    for words in (("torch,timm,lightning,numpy", "import", *packages), (unwanted, "import", *packages, *losses)):
        ended = subprocess.run(
            [sys.executable, Path(__file__).with_name("loaded_modules.py"), *words],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(SOURCE)},
            check=False,
        )
        assert ended.returncode == 0, ended.stderr


def test_a_name_that_is_also_a_module_is_refused() -> None:
    with pytest.raises(AssertionError, match="offers a name that is one of its modules"):
        attach("scenedistill.models", {"freeze": ("freeze",)})
