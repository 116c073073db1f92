"""What makes training fast does not change what is learnt."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from scenedistill.config import FitConfig, MachineConfig, StudentConfig, StudentFitConfig
from scenedistill.core.precision import Precision
from scenedistill.data.batches import ScenePart
from scenedistill.data.views import ViewConfig
from scenedistill.metrics.predict import predict
from scenedistill.models.attention import NoAttention
from scenedistill.models.create import build_student
from scenedistill.models.network import SceneNet
from scenedistill.training.student import StudentTraining
from scenedistill.training.teacher_outputs.knowledge import Knowledge
from scenedistill.training.teacher_outputs.teachers import Teachers

FIT = FitConfig(epochs=12, batch_size=16, lr=0.02, warmup_epochs=2)
DKD = {"ce": 1.0, "da": 1.0, "ss": 1.0}
CPU = torch.device("cpu")
Learnt = tuple[list[dict[str, float]], float]  # the parts of the loss of every epoch, and the OA


class SlowTeachers(Teachers):
    """The plain teacher in fp32, run on every view, without any of our speedups."""

    def __call__(self, view: torch.Tensor, *_: bool) -> Any:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            return self.nets[0](view)


class Short(nn.Module):
    """Two convolutions with batch norms: the least that can be compiled and learns."""

    num_features = 64
    feature_info = (
        {"module": "first", "num_chs": 32, "reduction": 4},
        {"module": "second", "num_chs": 64, "reduction": 8},
    )

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.first = self.convolution(3, 32, kernel, stride=4)
        self.second = self.convolution(32, 64, 3, stride=2)

    def convolution(self, inputs: int, outputs: int, kernel: int, stride: int) -> nn.Module:
        convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(images)).float().mean((2, 3))  # type: ignore[no-any-return]


def short(kernel: int) -> SceneNet:
    """With one DA module, which shows as much as two."""
    net = SceneNet(Short(kernel), 4, normalisation=((0.5,) * 3, (0.2,) * 3), image_size=32)
    net.stages[0].attention = NoAttention()
    return net


class Learning:
    """Trains the same student by the same teacher.

    Args:
        teacher: makes the teacher, whose norms then see all images.
        student: makes the student.
    """

    def __init__(
        self,
        teacher: Callable[[], SceneNet],
        student: Callable[[], SceneNet],
        *,
        images: ScenePart,
        views: ViewConfig,
        train_in: Any,
        root: Path,
    ) -> None:
        self.student, self.images, self.views, self.train_in, self.root = student, images, views, train_in, root
        torch.manual_seed(7)
        self.teacher = teacher()
        with torch.no_grad():
            for batch in images.batches(32):
                self.teacher(batch.images.permute(0, 3, 1, 2) / 255)

    def __call__(
        self,
        folder: str,
        kind: type[Teachers] = Teachers,
        views: int = 0,
        precision: Precision = "fp32",
        **machine: Any,
    ) -> Learnt:
        teachers = kind([self.teacher], precision=precision, image_size=32)
        knowledge = Knowledge(teachers, self.images, views=views, config=self.views, seed=0, root=self.root)
        torch.manual_seed(0)
        net = self.student()
        knowledge.statistics(CPU)
        module = StudentTraining(
            net,
            StudentConfig(fit=StudentFitConfig(**vars(FIT))),
            DKD,
            self.views,
            image_size=32,
            seed=0,
            knowledge=knowledge,
        )
        settings = MachineConfig(accelerator="cpu", precision=precision, **machine)
        self.train_in(self.root / folder, module, machine=settings)
        with (self.root / folder / "logs" / "attempt_0" / "metrics.csv").open() as file:
            losses = [{name: float(row[name]) for name in DKD} for row in csv.DictReader(file) if row["ce"]]
        found = predict(net, self.images, image_size=32, device=CPU, precision="fp32")
        return losses, float((found == self.images.labels).mean())


@pytest.fixture(scope="module")
def learn(all_images: ScenePart, mild: ViewConfig, train_in: Any, tmp_path_factory: pytest.TempPathFactory) -> Learning:
    return Learning(
        lambda: build_student("table1_resnet", 4, image_size=32),
        lambda: build_student("table1_printed", 4, image_size=32),
        images=all_images,
        views=mild,
        train_in=train_in,
        root=tmp_path_factory.mktemp("learnt"),
    )


@pytest.fixture(scope="module")
def slow(learn: Learning) -> Learnt:
    """What is learnt without any of our speedups."""
    return learn("slow", SlowTeachers)


def check(fast: Learnt, slow: Learnt, tolerance: float) -> None:
    """A training multiplies the smallest rounding: the first epoch tells whether it is rounding or something else."""
    for name in DKD:
        assert fast[0][0][name] == pytest.approx(slow[0][0][name], rel=tolerance), name
        assert fast[0][-1][name] == pytest.approx(slow[0][-1][name], rel=0.3), name
    assert slow[1] > 0.9 and fast[1] == pytest.approx(slow[1], abs=0.05)


@pytest.mark.slow
def test_fast_and_slow_learn_the_same(learn: Learning, slow: Learnt) -> None:
    check(learn("online"), slow, 0.001)
    check(learn("stored", views=FIT.epochs), slow, 0.001)  # as many views as epochs: the same views


@pytest.mark.slow
def test_half_precision_learns_the_same(learn: Learning, slow: Learnt) -> None:
    check(learn("online in half precision", precision="bf16"), slow, 0.02)
    check(learn("stored in half precision", views=FIT.epochs, precision="bf16"), slow, 0.02)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_networks_learn_the_same(
    all_images: ScenePart, mild: ViewConfig, train_in: Any, tmp_path: Path
) -> None:
    learn = Learning(
        lambda: short(9), lambda: short(7), images=all_images, views=mild, train_in=train_in, root=tmp_path
    )
    check(learn("compiled", precision="bf16", compile=True), learn("slow", SlowTeachers), 0.02)
