"""Views that begin small are the same views scaled down, and the teacher's answers stay those of the full ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from PIL import Image
from torch import Tensor

from scenedistill.config import FitConfig, RunConfig, StudentConfig, StudentFitConfig, TeacherConfig, TeacherFitConfig
from scenedistill.core.errors import UserError
from scenedistill.data.batches import ScenePart
from scenedistill.data.cache.build import SceneCache
from scenedistill.data.scenes import PARTS
from scenedistill.data.splits.draw import Split, assemble
from scenedistill.data.views import ViewConfig, training_view
from scenedistill.experiments.checks import check_settings
from scenedistill.models.create import build_student
from scenedistill.models.files import weights_hash
from scenedistill.models.network import SceneNet
from scenedistill.models.output import SceneOutput
from scenedistill.training.base import SceneTraining, view_size
from scenedistill.training.multi_student import MultiStudentTraining
from scenedistill.training.student import StudentTraining
from scenedistill.training.teacher import TeacherTraining
from scenedistill.training.teacher_outputs.knowledge import Knowledge
from scenedistill.training.teacher_outputs.teachers import Teachers

SIZE, EPOCHS = 64, 6
_FIT = FitConfig(epochs=EPOCHS, batch_size=16, lr=0.02, warmup_epochs=0, first_size=0.5)
FIT, TEACHING = StudentFitConfig(**vars(_FIT)), TeacherFitConfig(**vars(_FIT))
SIDES = [32, 48, 48, 64, 64, 64]  # of 0.5, 0.625, 0.75 and 0.875 of 64, to the next multiple of 16


def test_the_side_grows_to_the_full_one_which_the_last_third_has() -> None:
    assert [view_size(epoch, EPOCHS, SIZE, 0.5) for epoch in range(EPOCHS)] == SIDES
    assert [view_size(epoch, 30, 224, 0.5) for epoch in (0, 4, 10, 15, 19, 20, 29)] == [
        128,
        128,
        160,
        192,
        224,
        224,
        224,
    ]
    assert [view_size(epoch, 12, 100, 0.6) for epoch in range(12)] == [64, 64, 64, 80, 80, 80, 96, 96, *[100] * 4]
    assert {view_size(epoch, 30, 224, 1.0) for epoch in range(30)} == {224}, "off"
    assert [view_size(0, epochs, 224, 0.5) for epochs in (1, 2)] == [224, 128], "a single epoch is the last one"
    assert view_size(0, 9, 64, 0.1) == 32 and view_size(0, 9, 24, 0.1) == 24, "no less than networks can take"


class WatchedTeachers(Teachers):
    """Writes down the side of the views of every question."""

    def __init__(self, nets: Sequence[SceneNet], **settings: Any) -> None:
        super().__init__(nets, **settings)
        self.asked: list[int] = []

    def __call__(self, view: Tensor, attention: bool = True, features: bool = False) -> SceneOutput:
        self.asked.append(view.shape[-1])
        return super().__call__(view, attention, features)


@pytest.fixture
def half(tiny_cache: SceneCache) -> Split:
    """Every other image trains."""
    return assemble(tiny_cache.index, np.array([0, PARTS.index("test")] * 32, np.int8), None, None)


@pytest.fixture
def teachers() -> WatchedTeachers:
    torch.manual_seed(7)
    return WatchedTeachers([build_student("table1_printed", 4, image_size=SIZE)], precision="fp32", image_size=SIZE)


@pytest.fixture
def knowledge(teachers: Teachers, half: Split, tiny_cache: SceneCache, mild: ViewConfig) -> Knowledge:
    return Knowledge(teachers, ScenePart(tiny_cache, half.train), views=0, config=mild, seed=0)


def recording(kind: type[SceneTraining]) -> Any:
    """A kind of training that needs no Trainer, in an epoch that can be set."""

    class Recording(kind):  # type: ignore[valid-type, misc]
        current_epoch = 0

        def report(self, *_: Any, **__: Any) -> None:
            pass

    return Recording


def student(
    views: ViewConfig,
    knowledge: Knowledge | None = None,
    name: str = "table1_printed",
    kind: type[StudentTraining] = StudentTraining,
) -> StudentTraining:
    torch.manual_seed(0)
    weights = {"ce": 1.0} if knowledge is None else {"ce": 1.0, "da": 1.0, "at": 10.0, "sp": 1.0, "reviewkd": 1.0}
    if knowledge:
        knowledge.statistics(torch.device("cpu"))
    return kind(
        build_student(name, 4, image_size=SIZE), StudentConfig(fit=FIT), weights, views, image_size=SIZE, seed=0,
        knowledge=knowledge,
    )  # fmt: skip


def slow(view: Tensor, side: int) -> Tensor:
    """A view scaled down by another library, band by band."""
    bands = [
        np.asarray(Image.fromarray(band.numpy(), mode="F").resize((side, side), Image.Resampling.BILINEAR))
        for band in view
    ]
    return torch.from_numpy(np.stack(bands))


def test_the_network_sees_the_same_view_at_its_size(all_images: ScenePart, mild: ViewConfig) -> None:
    batch = all_images.fetch([0, 20, 40])
    net = build_student("table1_printed", 4, image_size=SIZE)
    teaching = recording(TeacherTraining)(net, TeacherConfig(fit=TEACHING), mild, image_size=SIZE, seed=0)
    for module in (student(mild, kind=recording(StudentTraining)), teaching):
        seen: list[Tensor] = []
        module.net.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0]))
        for epoch, side in enumerate(SIDES):
            type(module).current_epoch = epoch  # type: ignore[method-assign]
            module.training_step(batch, 0)
            full = training_view(batch.images, batch.ids, seed=0, epoch=epoch, size=SIZE, config=mild)
            for ours, theirs in zip(seen[-1], full, strict=True):
                torch.testing.assert_close(ours, slow(theirs, side), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_the_student_trains_on_small_views_and_the_teacher_sees_full_ones(
    knowledge: Knowledge, teachers: WatchedTeachers, half: Split, mild: ViewConfig, train: Any
) -> None:
    alone = {}
    for name in ("table1_printed", "test_resnet"):
        module = student(mild, knowledge, name)
        train(module, folder=name, split=half)
        alone[name] = weights_hash(module.net)
    together = MultiStudentTraining({name: student(mild, knowledge, name) for name in alone})
    teachers.asked.clear()
    seen: list[int] = []
    together.students[0].net.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[-1]))  # type: ignore[union-attr]
    train(together, folder="together", split=half)
    assert set(teachers.asked) == {SIZE}
    assert [side for side, before in zip(seen, [0, *seen], strict=False) if side != before] == [32, 48, 64]
    students = [cast(StudentTraining, one) for one in together.students]
    assert {name: weights_hash(one.net) for name, one in zip(alone, students, strict=True)} == alone


class KilledInTheThirdEpoch(Callback):
    def on_train_epoch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.current_epoch == 2:
            raise InterruptedError


def test_a_killed_training_resumes_with_the_view_size_of_its_epoch(half: Split, mild: ViewConfig, train: Any) -> None:
    whole, killed, again = student(mild), student(mild), student(mild)
    train(whole, folder="whole", split=half)
    with pytest.raises(InterruptedError):
        train(killed, folder="killed", split=half, callbacks=[KilledInTheThirdEpoch()])
    train(again, folder="killed", split=half)
    assert weights_hash(again.net) == weights_hash(whole.net)


def test_a_network_of_fixed_size_is_refused() -> None:
    config = RunConfig(image_size=64)
    config.machine.accelerator = "cpu"
    config.teacher.name = "resnet18"
    config.teacher.weights = "none"
    config.student.name = "vit_tiny_patch16_224"
    config.student.fit.first_size = 0.5
    with pytest.raises(UserError, match=r"--student.fit.first_size 0.5: the student does not take views of 32 pixels"):
        check_settings(config)
    config.student.name, config.student.fit.first_size = "table1_printed", 1.0
    config.teacher.name, config.teacher.fit.first_size = "vit_tiny_patch16_224", 0.5
    with pytest.raises(UserError, match=r"--teacher.fit.first_size 0.5: the teacher does not take views of 32 pixels"):
        check_settings(config)
