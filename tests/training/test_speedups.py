"""What makes training fast does not change what is learnt."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from scenedistill.config import FitConfig, MachineConfig, StudentConfig, StudentFitConfig
from scenedistill.core.precision import Precision
from scenedistill.data.batches import ScenePart
from scenedistill.data.views import ViewConfig
from scenedistill.metrics.predict import predict
from scenedistill.models.create import build_student
from scenedistill.training.student import StudentTraining
from scenedistill.training.teacher_outputs.knowledge import Knowledge
from scenedistill.training.teacher_outputs.teachers import Teachers

FIT = FitConfig(epochs=12, batch_size=16, lr=0.02, warmup_epochs=2)
DKD = {"ce": 1.0, "da": 1.0, "ss": 1.0}
CPU = torch.device("cpu")


class SlowTeachers(Teachers):
    """The plain teacher in fp32, run on every view, without any of our speedups."""

    def __call__(self, view: torch.Tensor, *_: bool) -> Any:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            return self.nets[0](view)


Learn = Callable[..., tuple[list[dict[str, float]], float]]


@pytest.fixture
def learn(all_images: ScenePart, mild: ViewConfig, train: Any, tmp_path: Path) -> Learn:
    """Trains the same student by the same teacher; gives the parts of the loss of every epoch, and the OA."""
    torch.manual_seed(7)
    teacher = build_student("table1_resnet", 4, image_size=32)
    with torch.no_grad():
        for batch in all_images.batches(32):
            teacher(batch.images.permute(0, 3, 1, 2) / 255)

    def learnt(
        folder: str, kind: type[Teachers] = Teachers, views: int = 0, precision: Precision = "fp32", **machine: Any
    ) -> tuple[list[dict[str, float]], float]:
        teachers = kind([teacher], precision=precision, image_size=32)
        knowledge = Knowledge(teachers, all_images, views=views, config=mild, seed=0, root=tmp_path)
        torch.manual_seed(0)
        net = build_student("table1_printed", 4, image_size=32)
        knowledge.statistics(CPU)
        module = StudentTraining(
            net,
            StudentConfig(fit=StudentFitConfig(**vars(FIT))),
            DKD,
            mild,
            image_size=32,
            seed=0,
            knowledge=knowledge,
        )
        train(module, folder=folder, machine=MachineConfig(accelerator="cpu", precision=precision, **machine))
        with (tmp_path / folder / "logs" / "attempt_0" / "metrics.csv").open() as file:
            losses = [{name: float(row[name]) for name in DKD} for row in csv.DictReader(file) if row["ce"]]
        found = predict(net, all_images, image_size=32, device=CPU, precision="fp32")
        return losses, float((found == all_images.labels).mean())

    return learnt


def check(
    fast: tuple[list[dict[str, float]], float], slow: tuple[list[dict[str, float]], float], tolerance: float
) -> None:
    """A training multiplies the smallest rounding: the first epoch tells whether it is rounding or something else."""
    for name in DKD:
        assert fast[0][0][name] == pytest.approx(slow[0][0][name], rel=tolerance), name
        assert fast[0][-1][name] == pytest.approx(slow[0][-1][name], rel=0.3), name
    assert slow[1] > 0.9 and fast[1] == pytest.approx(slow[1], abs=0.05)


@pytest.mark.slow
def test_fast_and_slow_learn_the_same(learn: Learn) -> None:
    slow = learn("slow", SlowTeachers)
    check(learn("online"), slow, 0.001)
    check(learn("stored", views=FIT.epochs), slow, 0.001)  # as many views as epochs: the same views


@pytest.mark.slow
def test_half_precision_learns_the_same(learn: Learn) -> None:
    slow = learn("slow", SlowTeachers)
    check(learn("online", precision="bf16"), slow, 0.02)
    check(learn("stored", views=FIT.epochs, precision="bf16"), slow, 0.02)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_networks_learn_the_same(learn: Learn) -> None:
    check(learn("compiled", precision="bf16", compile=True), learn("slow", SlowTeachers), 0.02)
