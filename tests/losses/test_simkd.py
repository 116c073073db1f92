"""SimKD: the folded head, and what is missing where it is used alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from scenedistill.core.errors import UserError
from scenedistill.losses import LOSSES, ReusedClassifier, TeacherStatistics
from scenedistill.losses.simkd import MOST_STEPS
from scenedistill.models.create import build_student
from scenedistill.models.freeze import freeze
from scenedistill.models.output import FeatureDims, SceneOutput

MakeOutput = Callable[..., SceneOutput]
LABELS = torch.tensor([0, 1, 2, 1, 0])


def test_the_loss_is_the_squared_difference_of_the_normalised_projection(
    output: MakeOutput, student_dims: FeatureDims, teacher_dims: FeatureDims, statistics: TeacherStatistics
) -> None:
    student, teacher = output(student_dims), output(teacher_dims, seed=1)
    loss = ReusedClassifier(student_dims, teacher_dims).double()
    loss.prepare(statistics)
    columns = []
    for j, row in enumerate(loss.layer.weight):
        column = torch.stack([(row * u).sum() for u in student.embedding])
        spread = ((column - column.mean()) ** 2).mean()
        columns.append((column - column.mean()) / (spread + 1e-5).sqrt() - teacher.embedding[:, j])
    wanted = torch.stack(columns).square().mean()
    assert loss(student, teacher, LABELS).item() == pytest.approx(wanted.item())


def test_the_students_head_is_the_projection_and_the_teachers_head() -> None:
    torch.manual_seed(0)
    teacher = build_student("table1_printed", 3, image_size=32).eval()
    student = build_student("table1_resnet", 3, image_size=32)
    loss = ReusedClassifier(student.dims, teacher.dims)
    images = torch.rand(6, 3, 32, 32)
    loss.prepare(TeacherStatistics.measure(teacher, [images]))
    optimiser = torch.optim.SGD([*student.parameters(), *loss.parameters()], lr=0.1)
    for _ in range(3):
        optimiser.zero_grad()
        with torch.no_grad():
            target = teacher(images)
        loss(student(images), target, torch.zeros(6, dtype=torch.long)).backward()
        optimiser.step()
        loss.after_step(student)
    student.eval()
    loss.eval()
    with torch.no_grad():
        found = student(images)
        projected = loss.norm(loss.layer(found.embedding)[:, :, None, None]).flatten(1)
        torch.testing.assert_close(found.logits, teacher.head(projected), rtol=1e-4, atol=1e-5)


def test_the_head_is_that_of_the_teacher_frozen_or_not() -> None:
    teacher = build_student("table1_printed", 3, image_size=32).eval()
    frozen = freeze(teacher, precision="fp32", device=torch.device("cpu"), image_size=32)
    images = torch.rand(6, 3, 32, 32)
    weight, bias = teacher.head.weight, teacher.head.bias
    for form in (teacher, frozen):
        found = TeacherStatistics.measure(form, [images]).head
        assert torch.equal(found[0], weight) and torch.equal(found[1], bias)


def test_a_loop_that_never_sets_the_head_is_stopped(
    output: MakeOutput, student_dims: FeatureDims, teacher_dims: FeatureDims, statistics: TeacherStatistics
) -> None:
    student, teacher = output(student_dims), output(teacher_dims, seed=1)
    loss = ReusedClassifier(student_dims, teacher_dims).double()
    loss.prepare(statistics)
    optimiser = torch.optim.SGD(loss.parameters(), lr=0.0)

    def steps(number: int) -> None:
        for _ in range(number):
            optimiser.zero_grad()
            loss(student, teacher, LABELS).backward()
            optimiser.step()

    steps(MOST_STEPS)
    with pytest.raises(UserError, match=r"call loss\.after_step\(student\) after each optimiser step"):
        steps(2)


def test_statistics_without_a_head_and_other_classes_are_refused(
    student_dims: FeatureDims, teacher_dims: FeatureDims, statistics: TeacherStatistics
) -> None:
    loss = ReusedClassifier(student_dims, teacher_dims)
    with pytest.raises(UserError, match="SimKD needs the teacher's head"):
        loss.prepare(statistics._replace(head=()))
    with pytest.raises(UserError, match="it has 4 classes, the student 3"):
        ReusedClassifier(student_dims, teacher_dims._replace(classes=4))


def test_a_head_without_a_bias_is_refused(student_dims: FeatureDims, teacher_dims: FeatureDims) -> None:
    student = build_student("table1_printed", 3, image_size=32)
    student.head = torch.nn.Linear(64, 3, bias=False)
    with pytest.raises(UserError, match="the student's head, which has no bias"):
        ReusedClassifier(student_dims, teacher_dims).after_step(student)


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"simkd"}))
def test_no_other_loss_changes_the_student(name: str, student_dims: FeatureDims, teacher_dims: FeatureDims) -> None:
    student = build_student("table1_printed", 3, image_size=32)
    before = {key: value.clone() for key, value in student.state_dict().items()}
    LOSSES[name](student_dims, teacher_dims).after_step(student)
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())
