"""A teacher's statistics, and what a loss says that has none, or not what it looks at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scenedistill.core.errors import UserError
from scenedistill.losses import LOSSES, DistillationLoss, DualAttentionLoss, SpatialStructureLoss, TeacherStatistics
from scenedistill.models.create import build_student
from scenedistill.models.network import SceneNet
from scenedistill.models.output import FeatureDims, SceneOutput

MakeOutput = Callable[..., SceneOutput]
LABELS = torch.tensor([0, 1, 2, 1, 0])


@pytest.fixture(scope="module")
def teacher() -> SceneNet:
    torch.manual_seed(0)
    return build_student("table1_printed", 3, image_size=32)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(7, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def as_tensors(part: Tensor) -> object:
    return part


def as_a_data_loader_has_them(part: Tensor) -> object:
    return [part, torch.zeros(len(part), dtype=torch.long)]


def as_torchgeo_has_them(part: Tensor) -> object:
    return {"label": torch.zeros(len(part), dtype=torch.long), "image": part}


@pytest.mark.parametrize("form", [as_tensors, as_a_data_loader_has_them, as_torchgeo_has_them])
def test_means_and_deviations_are_those_of_all_images(
    form: Callable[[Tensor], object], teacher: SceneNet, images: Tensor
) -> None:
    """Whatever the batches and the mode of the teacher, against a loop over single images and channels."""
    found = TeacherStatistics.measure(teacher.train(), map(form, torch.split(images, 3)))
    assert not teacher.training, "a teacher that teaches is in eval mode"
    with torch.no_grad():
        outputs = [teacher(image[None]) for image in images]
    for stage, (mean, std) in enumerate(zip(found.descriptor_mean, found.descriptor_std, strict=True)):
        for channel in range(0, len(mean), 17):
            values = [float(output.attention[stage].descriptor[0, channel]) for output in outputs]
            middle = sum(values) / 7
            assert float(mean[channel]) == pytest.approx(middle, rel=1e-4, abs=1e-6)
            spread = (sum((value - middle) ** 2 for value in values) / 6) ** 0.5
            assert float(std[channel]) == pytest.approx(spread, rel=1e-3, abs=1e-6)
    embeddings = torch.cat([output.embedding for output in outputs])
    torch.testing.assert_close(found.embeddings, embeddings, rtol=2e-3, atol=1e-4)
    torch.testing.assert_close(found.embedding_mean, embeddings.mean(0), rtol=1e-4, atol=1e-6)


def test_a_teacher_without_stages_has_the_statistics_of_its_embedding(images: Tensor) -> None:
    net = SceneNet.wrap(nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)), [])
    found = TeacherStatistics.measure(net, [images])
    assert found.descriptor_mean == () and found.embeddings.shape == (7, 4)


@pytest.mark.parametrize(
    ("loader", "reason"),
    [
        ([], "the loader gave no batch"),
        ([{"img": torch.rand(2, 3, 8, 8)}], "a dict without images; expected .* under 'image'"),
        ([(torch.zeros(2), torch.rand(2, 3, 8, 8))], "a tuple without images"),
        (["a.png"], "a str without images"),
    ],
)
def test_a_loader_without_images_is_refused(loader: list[object], reason: str, teacher: SceneNet) -> None:
    with pytest.raises(UserError, match=reason):
        TeacherStatistics.measure(teacher, loader)


@pytest.mark.parametrize("name", list(LOSSES))
def test_a_loss_needs_statistics_and_says_so_or_is_the_same_without(
    name: str,
    output: MakeOutput,
    student_dims: FeatureDims,
    teacher_dims: FeatureDims,
    statistics: TeacherStatistics,
) -> None:
    student, teacher = output(student_dims), output(teacher_dims, seed=1)
    values = []
    for given in (None, statistics):
        torch.manual_seed(0)
        loss = LOSSES[name](student_dims, teacher_dims).double()
        if given is not None:
            loss.prepare(given)
        elif loss.needs_statistics:
            with pytest.raises(UserError, match=rf"{type(loss).__name__} .*prepare\(TeacherStatistics\.measure\("):
                loss(student, teacher, LABELS)
            continue
        values.append(float(loss(student, teacher, LABELS)))
    assert len(set(values)) == 1


@pytest.mark.parametrize(
    ("kind", "options"),
    [(DualAttentionLoss, {"channel": 0, "gates": 1}), (SpatialStructureLoss, {"cosine": 0, "relation": 0, "angle": 1})],
)
def test_parts_that_need_no_statistics_work_without_them(
    kind: Callable[..., DistillationLoss],
    options: dict[str, float],
    output: MakeOutput,
    student_dims: FeatureDims,
    teacher_dims: FeatureDims,
) -> None:
    loss = kind(student_dims, teacher_dims, **options).double()
    assert float(loss(output(student_dims), output(teacher_dims, seed=1), LABELS)) > 0


@pytest.mark.parametrize("kind", [DualAttentionLoss, SpatialStructureLoss])
def test_statistics_are_kept_with_the_loss(
    kind: Callable[..., DistillationLoss],
    output: MakeOutput,
    student_dims: FeatureDims,
    teacher_dims: FeatureDims,
    statistics: TeacherStatistics,
) -> None:
    student, teacher = output(student_dims), output(teacher_dims, seed=1)
    first = kind(student_dims, teacher_dims).double()
    first.prepare(statistics)
    second = kind(student_dims, teacher_dims).double()
    second.load_state_dict(first.state_dict())
    assert float(second(student, teacher, LABELS)) == float(first(student, teacher, LABELS))


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if loss.needs_attention or loss.needs_features])
def test_an_output_without_what_the_loss_uses_is_refused(
    name: str,
    output: MakeOutput,
    student_dims: FeatureDims,
    teacher_dims: FeatureDims,
    statistics: TeacherStatistics,
) -> None:
    loss = LOSSES[name](student_dims, teacher_dims).double()
    loss.prepare(statistics)
    student, teacher = output(student_dims), output(teacher_dims, seed=1)
    what = "features" if loss.needs_features else "attention"
    nothing: dict[str, Any] = {what: ()}
    with pytest.raises(UserError, match=rf"the teacher's output does not hold\. Call the network with {what}=True"):
        loss(student, teacher._replace(**nothing), LABELS)
    with pytest.raises(UserError, match=r"the student's output"):
        loss(student._replace(**nothing), teacher, LABELS)
    with pytest.raises(UserError, match=r"compares stages, and the teacher has none.*stages=\[\.\.\.\]"):
        LOSSES[name](student_dims, teacher_dims._replace(stages=()))
