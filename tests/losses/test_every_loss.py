"""What holds for every loss of the registry, whatever it computes; a new one is tested here once it is registered."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_structure, tree_unflatten

from scenedistill.losses.base import DistillationLoss, TeacherStatistics
from scenedistill.losses.registry import LOSSES
from scenedistill.models.output import FeatureDims, SceneOutput
from scenedistill.training.student import on_labelled

MakeOutput = Callable[..., SceneOutput]

# options that switch every part of a loss on
EVERYTHING = {"da": {"gates": 1.0}, "ss": {"distance": 1.0, "angle": 1.0}}

pytestmark = pytest.mark.parametrize("name", list(LOSSES))


@pytest.fixture
def loss(
    name: str, student_dims: FeatureDims, teacher_dims: FeatureDims, statistics: TeacherStatistics
) -> DistillationLoss:
    torch.manual_seed(0)
    built = LOSSES[name](student_dims, teacher_dims, **EVERYTHING.get(name, {}))
    built.prepare(statistics)
    return built


def with_gradients(output: SceneOutput) -> SceneOutput:
    return output.map(lambda tensor: tensor.clone().requires_grad_())


def tensors(output: SceneOutput) -> list[Tensor]:
    return tree_leaves(output)


def learn(loss: DistillationLoss, student: SceneOutput, teacher: SceneOutput, labels: Tensor) -> float:
    """The loss's value, after looking at it and at every gradient it gives."""
    student = with_gradients(student)
    value = loss(student, teacher, labels)
    assert value.shape == () and value.isfinite()
    value.backward()
    given = [tensor.grad for tensor in tensors(student) if tensor.grad is not None]
    assert given and all(gradient.isfinite().all() for gradient in given)
    assert all(p.grad is None or p.grad.isfinite().all() for p in loss.parameters())
    return float(value)


def test_the_gradient_equals_the_numerical_slope(
    loss: DistillationLoss, output: MakeOutput, student_dims: FeatureDims, teacher_dims: FeatureDims
) -> None:
    loss.double()
    student, teacher = output(student_dims, 4), output(teacher_dims, 4, seed=1)
    labels = torch.tensor([0, 1, 2, 1])

    def value(*inputs: Tensor) -> Tensor:
        found: Tensor = loss(tree_unflatten(inputs, tree_structure(student)), teacher, labels)
        return found

    assert torch.autograd.gradcheck(value, tensors(with_gradients(student)))


def test_the_parameters_of_a_loss_receive_gradients(
    loss: DistillationLoss, output: MakeOutput, student_dims: FeatureDims, teacher_dims: FeatureDims
) -> None:
    loss.double()
    student = with_gradients(output(student_dims))
    loss(student, output(teacher_dims, seed=1), torch.tensor([0, 1, 2, 1, 0])).backward()
    for name, parameter in loss.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_a_pickled_loss_is_the_same(
    loss: DistillationLoss, output: MakeOutput, student_dims: FeatureDims, teacher_dims: FeatureDims
) -> None:
    """As the processes of a training receive it. What is drawn next does not change."""
    before = torch.get_rng_state()
    loss.double()
    copied: DistillationLoss = pickle.loads(pickle.dumps(loss))
    assert torch.equal(torch.get_rng_state(), before)
    seen = output(student_dims), output(teacher_dims, seed=1), torch.tensor([0, 1, 2, 1, 0])
    assert torch.equal(copied(*seen), loss(*seen))


def test_without_a_labelled_image_every_parameter_has_a_gradient_of_zero(
    loss: DistillationLoss, output: MakeOutput, student_dims: FeatureDims, teacher_dims: FeatureDims
) -> None:
    """DDP stops at a parameter without one."""
    student = with_gradients(output(student_dims))
    value = on_labelled(loss, student, output(teacher_dims, seed=1), torch.full((5,), -1))
    torch.autograd.backward(value)
    assert value == 0 and student.logits.grad is not None and not student.logits.grad.any()
    assert all(p.grad is not None and not p.grad.any() for p in loss.parameters())


def test_no_gradient_reaches_the_teacher(
    loss: DistillationLoss, output: MakeOutput, student_dims: FeatureDims, teacher_dims: FeatureDims
) -> None:
    teacher = with_gradients(output(teacher_dims, seed=1, dtype=torch.float32))
    learn(loss, output(student_dims, dtype=torch.float32), teacher, torch.tensor([0, 1, 2, 1, 0]))
    assert all(tensor.grad is None for tensor in tensors(teacher))


def test_duplicates_give_a_finite_value_and_gradient(
    loss: DistillationLoss, output: MakeOutput, student_dims: FeatureDims, teacher_dims: FeatureDims
) -> None:
    pairs = torch.tensor([0, 0, 1, 1, 2, 0])
    student, teacher = (
        output(student_dims, 3, dtype=torch.float32),
        output(teacher_dims, 3, seed=1, dtype=torch.float32),
    )
    labels = torch.tensor([0, 1, 2])
    learn(loss, student.map(lambda t: t[pairs]), teacher.map(lambda t: t[pairs]), labels[pairs])
    same = torch.zeros(4, dtype=torch.long)  # nothing but one image
    learn(loss, student.map(lambda t: t[same]), teacher.map(lambda t: t[same]), labels[same])
    # a student that cannot tell apart what the teacher can
    learn(loss, student.map(lambda t: t[torch.zeros_like(pairs)]), teacher.map(lambda t: t[pairs]), labels[pairs])


def test_a_dead_student_gives_a_finite_value_and_gradient(
    loss: DistillationLoss, output: MakeOutput, student_dims: FeatureDims, teacher_dims: FeatureDims
) -> None:
    student = output(student_dims, dtype=torch.float32).map(torch.zeros_like)
    learn(loss, student, output(teacher_dims, seed=1, dtype=torch.float32), torch.tensor([0, 1, 2, 1, 0]))


@pytest.mark.parametrize("batch", [1, 2])
def test_the_smallest_batches_give_a_finite_value_and_gradient(
    loss: DistillationLoss, output: MakeOutput, student_dims: FeatureDims, teacher_dims: FeatureDims, batch: int
) -> None:
    student, teacher = output(student_dims, batch), output(teacher_dims, batch, seed=1)
    learn(loss.double(), student, teacher, torch.arange(batch))
    learn(loss.eval(), student, teacher, torch.arange(batch))


def test_the_loss_is_float32_under_autocast(
    loss: DistillationLoss, output: MakeOutput, student_dims: FeatureDims, teacher_dims: FeatureDims
) -> None:
    student, teacher = output(student_dims, dtype=torch.bfloat16), output(teacher_dims, seed=1, dtype=torch.bfloat16)
    labels = torch.tensor([0, 1, 2, 1, 0])
    exact = loss(student.map(lambda t: t.float()), teacher.map(lambda t: t.float()), labels)
    for precision in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=precision):
            mixed = loss(student, teacher, labels)
        assert mixed.dtype == torch.float32
        assert mixed == exact


def test_the_order_of_the_images_does_not_matter(
    loss: DistillationLoss, output: MakeOutput, student_dims: FeatureDims, teacher_dims: FeatureDims
) -> None:
    loss.double()
    student, teacher, labels = output(student_dims), output(teacher_dims, seed=1), torch.tensor([0, 1, 2, 1, 0])
    order = torch.tensor([3, 0, 4, 2, 1])
    turned = loss(student.map(lambda t: t[order]), teacher.map(lambda t: t[order]), labels[order])
    torch.testing.assert_close(turned, loss(student, teacher, labels))


@pytest.mark.parametrize(("student_sizes", "teacher_sizes"), [((4, 2), (8, 4)), ((7, 4), (3, 3)), ((6, 1), (1, 5))])
def test_maps_of_different_sizes_give_a_finite_value_and_gradient(
    loss: DistillationLoss,
    output: MakeOutput,
    student_dims: FeatureDims,
    teacher_dims: FeatureDims,
    student_sizes: tuple[int, ...],
    teacher_sizes: tuple[int, ...],
) -> None:
    student, teacher = output(student_dims, sizes=student_sizes), output(teacher_dims, sizes=teacher_sizes, seed=1)
    learn(loss.double(), student, teacher, torch.tensor([0, 1, 2, 1, 0]))


@pytest.mark.parametrize(("student_stages", "teacher_stages"), [((2, 4, 5), (3, 7)), ((2,), (3, 7, 9, 4))])
def test_networks_with_different_numbers_of_stages_give_a_finite_value(
    name: str, output: MakeOutput, student_stages: tuple[int, ...], teacher_stages: tuple[int, ...]
) -> None:
    ours, theirs = FeatureDims(3, 4, student_stages), FeatureDims(3, 6, teacher_stages)
    loss = LOSSES[name](ours, theirs, **EVERYTHING.get(name, {})).double()
    loss.prepare(
        TeacherStatistics(
            torch.zeros(6),
            tuple(torch.zeros(w) for w in teacher_stages),
            tuple(torch.ones(w) for w in teacher_stages),
            head=(torch.ones(3, 6), torch.zeros(3)),
        )
    )
    sizes = (8, 4, 2, 1)
    student = output(ours, sizes=sizes[: len(student_stages)])
    teacher = output(theirs, sizes=sizes[: len(teacher_stages)], seed=1)
    learn(loss, student, teacher, torch.tensor([0, 1, 2, 1, 0]))


@pytest.mark.usefixtures("two_threads")
def test_the_gradient_is_the_same_on_every_call(
    name: str, output: MakeOutput, statistics_of: Callable[[FeatureDims], TeacherStatistics]
) -> None:
    # as large as in training: torch does smaller work in one thread
    student_dims = FeatureDims(classes=12, embedding=512, stages=(16, 32))
    teacher_dims = FeatureDims(classes=12, embedding=512, stages=(32, 64))
    student, teacher = (
        output(dims, 64, sizes=(8, 4), seed=seed, dtype=torch.float32)
        for seed, dims in enumerate((student_dims, teacher_dims))
    )
    labels = torch.arange(64) % 12

    def gradients() -> list[Tensor]:
        torch.manual_seed(0)
        loss = LOSSES[name](student_dims, teacher_dims, **EVERYTHING.get(name, {}))
        loss.prepare(statistics_of(teacher_dims))
        inputs = with_gradients(student)
        loss(inputs, teacher, labels).backward()
        return [t.grad for t in [*tensors(inputs), *loss.parameters()] if t.grad is not None]

    first = gradients()
    for _ in range(4):
        assert all(torch.equal(one, other) for one, other in zip(first, gradients(), strict=True))
