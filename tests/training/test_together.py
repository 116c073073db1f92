"""Students side by side end as they would have ended alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest
import torch

from scenedistill.config import FitConfig, StudentConfig, StudentFitConfig
from scenedistill.data.batches import ScenePart
from scenedistill.data.splits.draw import assemble
from scenedistill.data.views import ViewConfig
from scenedistill.models.create import build_student
from scenedistill.models.files import weights_hash
from scenedistill.models.network import SceneNet
from scenedistill.models.output import SceneOutput
from scenedistill.training.multi_student import MultiStudentTraining
from scenedistill.training.student import StudentTraining
from scenedistill.training.teacher_outputs.knowledge import Knowledge
from scenedistill.training.teacher_outputs.teachers import Teachers

METHODS = {
    "dkd": ("table1_printed", {"ce": 1.0, "da": 1.0, "ss": 1.0}),
    "da": ("table1_printed", {"ce": 1.0, "da": 1.0}),
    "other.net": ("table1_resnet", {"ce": 1.0, "ss": 1.0}),
}
#: so small a norm that every gradient is clipped: clipped together they would be shorter
FIT = FitConfig(epochs=2, batch_size=16, lr=0.02, warmup_epochs=1, clip_norm=0.5)


class WatchedTeachers(Teachers):
    """Writes down the number of views of every question."""

    def __init__(self, nets: Sequence[SceneNet], **settings: Any) -> None:
        super().__init__(nets, **settings)
        self.asked: list[int] = []

    def __call__(self, view: torch.Tensor, attention: bool = True, features: bool = False) -> SceneOutput:
        self.asked.append(len(view))
        return super().__call__(view, attention, features)


@pytest.fixture
def knowledge(all_images: ScenePart, mild: ViewConfig) -> Knowledge:
    torch.manual_seed(7)
    teacher = build_student("table1_printed", 4, image_size=32)
    return Knowledge(
        WatchedTeachers([teacher], precision="fp32", image_size=32), all_images, views=0, config=mild, seed=0
    )


def student(method: str, knowledge: Knowledge, views: ViewConfig, fit: FitConfig = FIT) -> StudentTraining:
    torch.manual_seed(0)
    name, weights = METHODS[method]
    net: SceneNet = build_student(name, 4, image_size=32)
    knowledge.statistics(torch.device("cpu"))
    return StudentTraining(
        net, StudentConfig(fit=StudentFitConfig(**vars(fit))), weights, views, image_size=32, seed=0,
        knowledge=knowledge,
    )  # fmt: skip


def test_students_trained_side_by_side_equal_those_trained_alone_with_one_teacher_pass(
    knowledge: Knowledge, mild: ViewConfig, train: Any
) -> None:
    alone = {}
    for method in METHODS:
        module = student(method, knowledge, mild)
        train(module, folder=method)
        alone[method] = weights_hash(module.net)
    together = MultiStudentTraining({method: student(method, knowledge, mild) for method in METHODS})
    assert isinstance(knowledge.teachers, WatchedTeachers)
    knowledge.teachers.asked.clear()
    record = train(together, folder="together")
    for name, trained in zip(METHODS, together.students, strict=True):
        assert weights_hash(cast(StudentTraining, trained).net) == alone[name], name
    assert sum(knowledge.teachers.asked) == 2 * 64, "each view was shown to the teacher once"
    expected = {f"{method} {part}" for method, (_, parts) in METHODS.items() for part in (*parts, "train_oa")}
    assert set(record["last_epoch"]) == expected


def test_each_student_has_a_validation_oa(
    knowledge: Knowledge, mild: ViewConfig, train: Any, all_images: ScenePart
) -> None:
    parts = torch.arange(64).remainder(4).eq(3).to(torch.int8).numpy()  # every fourth image validates
    split = assemble(all_images.cache.index, parts, None, None)
    assert len(split.val) == 16
    module = MultiStudentTraining({method: student(method, knowledge, mild) for method in ("dkd", "da")})
    record = train(module, split=split)
    assert {"dkd val_oa", "da val_oa"} <= set(record["last_epoch"])


def test_students_that_differ_in_schedule_or_teacher_are_refused(
    knowledge: Knowledge, mild: ViewConfig, all_images: ScenePart
) -> None:
    longer = FitConfig(**{**vars(FIT), "epochs": 3})
    with pytest.raises(ValueError, match="'da' cannot train beside"):
        MultiStudentTraining({"dkd": student("dkd", knowledge, mild), "da": student("da", knowledge, mild, longer)})
    other = Knowledge(
        Teachers([knowledge.teacher], precision="fp32", image_size=32), all_images, views=0, config=mild, seed=0
    )
    with pytest.raises(ValueError, match="'da' cannot train beside"):
        MultiStudentTraining({"dkd": student("dkd", knowledge, mild), "da": student("da", other, mild)})
