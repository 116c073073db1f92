"""Losses on class scores against loops and hand-computed numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor

from scenedistill.losses.logits import Decoupled, SoftLogits, StandardisedLogits, StrongerTeacher
from scenedistill.models.output import FeatureDims, SceneOutput

MakeOutput = Callable[..., SceneOutput]
LABELS = torch.tensor([0, 1, 2, 1, 0])


def softmax(scores: list[float], temperature: float = 1.0) -> list[float]:
    powers = [math.exp(score / temperature) for score in scores]
    return [power / sum(powers) for power in powers]


def divergence(theirs: list[float], ours: list[float]) -> float:
    return sum(t * math.log(t / s) for t, s in zip(theirs, ours, strict=True))


def pearson(ours: list[float], theirs: list[float]) -> float:
    mean_s, mean_t = sum(ours) / len(ours), sum(theirs) / len(theirs)
    together = sum((s - mean_s) * (t - mean_t) for s, t in zip(ours, theirs, strict=True))
    return together / math.sqrt(sum((s - mean_s) ** 2 for s in ours) * sum((t - mean_t) ** 2 for t in theirs))


def only_logits(logits: Tensor) -> SceneOutput:
    return SceneOutput(logits, torch.zeros(len(logits), 1), ())


def dims(classes: int) -> FeatureDims:
    return FeatureDims(classes, 1, ())


def of_module(tensor: Tensor) -> dict[str, dict[str, Tensor]]:
    """How torchdistill hands a network's output to its losses."""
    return {"net": {"output": tensor}}


PATHS = {
    "student_module_path": "net",
    "student_module_io": "output",
    "teacher_module_path": "net",
    "teacher_module_io": "output",
}


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_soft_logits_equal_a_loop(
    output: MakeOutput, student_dims: FeatureDims, teacher_dims: FeatureDims, temperature: float
) -> None:
    student, teacher = output(student_dims), output(teacher_dims, seed=1)
    expected = 0.0
    for ours, theirs in zip(student.logits.tolist(), teacher.logits.tolist(), strict=True):
        s, t = ([math.exp(value / temperature) for value in values] for values in (ours, theirs))
        for a, b in zip(s, t, strict=True):
            a, b = a / sum(s), b / sum(t)
            expected += b * math.log(b / a) * temperature**2 / len(LABELS)
    loss = SoftLogits(student_dims, teacher_dims, temperature=temperature)
    assert loss(student, teacher, LABELS).item() == pytest.approx(expected, rel=1e-9)


def test_soft_logits_equal_a_value_computed_by_hand() -> None:
    ours, theirs = only_logits(torch.tensor([[0.0, 0.0]])), only_logits(torch.tensor([[2 * math.log(3), 0.0]]))
    # at T = 2 the teacher says 3/4 and 1/4, the student 1/2 and 1/2: 4 (3/4 log 3/2 + 1/4 log 1/2)
    expected = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    found = SoftLogits(dims(2), dims(2), temperature=2.0)(ours, theirs, LABELS[:1])
    assert found.item() == pytest.approx(expected, rel=1e-6)
    assert SoftLogits(dims(2), dims(2))(ours, ours, LABELS[:1]).item() == 0


def test_soft_logits_equal_torchdistill(
    output: MakeOutput, student_dims: FeatureDims, teacher_dims: FeatureDims, mid_level: ModuleType
) -> None:
    theirs = mid_level.KDLoss(**PATHS, temperature=3.0, alpha=0.0)
    student, teacher = output(student_dims), output(teacher_dims, seed=1)
    found = SoftLogits(student_dims, teacher_dims, temperature=3.0)(student, teacher, LABELS)
    # with alpha 0, theirs leaves out the factor T^2
    expected = 9 * theirs(of_module(student.logits), of_module(teacher.logits), LABELS)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_decoupled_equals_a_loop(
    output: MakeOutput, student_dims: FeatureDims, teacher_dims: FeatureDims, temperature: float
) -> None:
    student, teacher = output(student_dims), output(teacher_dims, seed=1)
    expected = 0.0
    for ours, theirs, label in zip(student.logits.tolist(), teacher.logits.tolist(), LABELS.tolist(), strict=True):
        s, t = softmax(ours, temperature), softmax(theirs, temperature)
        target = divergence([t[label], 1 - t[label]], [s[label], 1 - s[label]])
        # the other classes' probabilities over their sum
        s, t = ([p / (1 - all_[label]) for k, p in enumerate(all_) if k != label] for all_ in (s, t))
        expected += temperature**2 * (0.7 * target + 3.0 * divergence(t, s)) / len(LABELS)
    loss = Decoupled(student_dims, teacher_dims, temperature=temperature, target=0.7, rest=3.0)
    assert loss(student, teacher, LABELS).item() == pytest.approx(expected, rel=1e-9)


def test_decoupled_equals_a_value_computed_by_hand() -> None:
    loss = Decoupled(dims(3), dims(3), temperature=1.0, target=1.0, rest=10.0)
    student = only_logits(torch.zeros(1, 3))
    # the teacher's other classes are as even as the student's; 1/2 and 1/2 against 1/3 and 2/3 remains
    surer = only_logits(torch.tensor([[2.0, 1.0, 1.0]]).log())
    assert loss(student, surer, LABELS[:1]).item() == pytest.approx(
        0.5 * math.log(1.5) + 0.5 * math.log(0.75), rel=1e-5
    )
    # as sure as the student; 3/4 and 1/4 against 1/2 and 1/2 among the others remains
    uneven = only_logits(torch.tensor([[2.0, 3.0, 1.0]]).log())
    expected = 10 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert loss(student, uneven, LABELS[:1]).item() == pytest.approx(expected, rel=1e-5)


def test_decoupled_warms_up_linearly(output: MakeOutput, student_dims: FeatureDims, teacher_dims: FeatureDims) -> None:
    student, teacher = output(student_dims), output(teacher_dims, seed=1)
    loss = Decoupled(student_dims, teacher_dims)
    whole = loss(student, teacher, LABELS).item()
    for epoch, share in ((1, 0.25), (2, 0.5), (4, 1.0), (48, 1.0)):
        loss.progress = epoch / 48
        assert loss(student, teacher, LABELS).item() == pytest.approx(share * whole)


def test_decoupled_with_coupled_weights_equals_plain_distillation(
    output: MakeOutput, student_dims: FeatureDims, teacher_dims: FeatureDims
) -> None:
    student, teacher = output(student_dims, 1), output(teacher_dims, 1, seed=1)
    unsure = 1 - float((teacher.logits / 4).softmax(1)[0, 2])
    coupled = Decoupled(student_dims, teacher_dims, temperature=4.0, rest=unsure)(student, teacher, LABELS[2:3])
    torch.testing.assert_close(coupled, SoftLogits(student_dims, teacher_dims)(student, teacher, LABELS[2:3]))


def test_decoupled_stays_finite_for_two_classes_and_a_certain_teacher() -> None:
    pair = Decoupled(dims(2), dims(2), target=0.0)(
        only_logits(torch.tensor([[1.0, 2.0]])), only_logits(torch.tensor([[2.0, 1.0]])), LABELS[:1]
    )
    assert pair.item() == 0  # there is one other class, and it has all of the rest
    logits = torch.zeros(1, 3, requires_grad=True)
    loss = Decoupled(dims(3), dims(3))(only_logits(logits), only_logits(torch.tensor([[900.0, 0.0, 0.0]])), LABELS[:1])
    loss.backward()
    assert loss.isfinite() and logits.grad is not None and logits.grad.isfinite().all()


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_stronger_teacher_equals_a_loop(
    output: MakeOutput, student_dims: FeatureDims, teacher_dims: FeatureDims, temperature: float
) -> None:
    student, teacher = output(student_dims), output(teacher_dims, seed=1)
    s, t = ([softmax(row, temperature) for row in net.logits.tolist()] for net in (student, teacher))
    inter = sum(1 - pearson(a, b) for a, b in zip(s, t, strict=True)) / 5
    columns = zip(zip(*s, strict=True), zip(*t, strict=True), strict=True)
    intra = sum(1 - pearson(list(a), list(b)) for a, b in columns) / 3
    loss = StrongerTeacher(student_dims, teacher_dims, temperature=temperature, inter=0.7, intra=0.4)
    expected = temperature**2 * (0.7 * inter + 0.4 * intra)
    assert loss(student, teacher, LABELS).item() == pytest.approx(expected, rel=1e-9)
    assert loss.relational


def test_stronger_teacher_equals_a_value_computed_by_hand() -> None:
    # over the classes: one image agrees (r = 1), one is the other way round (r = -1); over the images all agree
    student = only_logits(2 * torch.tensor([[0.8, 0.2], [0.7, 0.3]]).log())
    teacher = only_logits(2 * torch.tensor([[0.6, 0.4], [0.1, 0.9]]).log())
    loss = StrongerTeacher(dims(2), dims(2), temperature=2.0, inter=1.0, intra=100.0)
    assert loss(student, teacher, LABELS[:2]).item() == pytest.approx(4 * 1.0, abs=1e-3)


def test_stronger_teacher_equals_torchdistill(
    output: MakeOutput, student_dims: FeatureDims, teacher_dims: FeatureDims, mid_level: ModuleType
) -> None:
    theirs = mid_level.DISTLoss(**PATHS, beta=0.7, gamma=0.4, tau=3.0)
    student, teacher = output(student_dims), output(teacher_dims, seed=1)
    loss = StrongerTeacher(student_dims, teacher_dims, temperature=3.0, inter=0.7, intra=0.4)
    expected = theirs(of_module(student.logits), of_module(teacher.logits))
    torch.testing.assert_close(loss(student, teacher, LABELS), expected)


def test_stronger_teacher_stays_finite_for_flat_and_impossible_classes() -> None:
    teacher = only_logits(torch.tensor([[5.0, 1.0, 0.0], [0.0, 4.0, 1.0]]))
    loss = StrongerTeacher(dims(3), dims(3), temperature=1.0)
    flat = torch.zeros(2, 3, requires_grad=True)
    impossible = torch.tensor([[50.0, 0.0, -200.0], [0.0, 50.0, -200.0]], requires_grad=True)
    for logits in (flat, impossible):
        value = loss(only_logits(logits), teacher, LABELS[:2])
        (gradient,) = torch.autograd.grad(value, logits)
        assert 0 <= value <= 4
        assert gradient.abs().max() < 1000


def test_standardised_logits_equal_a_loop(
    output: MakeOutput, student_dims: FeatureDims, teacher_dims: FeatureDims
) -> None:
    def scores(row: list[float]) -> list[float]:
        mean = sum(row) / len(row)
        deviation = math.sqrt(sum((value - mean) ** 2 for value in row) / len(row))
        return [(value - mean) / deviation for value in row]

    student, teacher = output(student_dims), output(teacher_dims, seed=1)
    rows = zip(student.logits.tolist(), teacher.logits.tolist(), strict=True)
    expected = sum(1.5**2 * divergence(softmax(scores(t), 1.5), softmax(scores(s), 1.5)) for s, t in rows) / 5
    loss = StandardisedLogits(student_dims, teacher_dims, temperature=1.5)
    assert loss(student, teacher, LABELS).item() == pytest.approx(expected, rel=1e-9)
    larger = student._replace(logits=7 * student.logits + 100)  # another size and shift say the same
    assert loss(larger, teacher, LABELS).item() == pytest.approx(expected, rel=1e-9)


def test_standardised_logits_equal_a_value_computed_by_hand() -> None:
    # of two classes the scores are 1 and -1; the student's the other way round: T^2 (2 / T) tanh(1 / T)
    ours, theirs = only_logits(torch.tensor([[3.0, 8.0]])), only_logits(torch.tensor([[0.9, 0.2]]))
    found = StandardisedLogits(dims(2), dims(2), temperature=2.0)(ours, theirs, LABELS[:1])
    assert found.item() == pytest.approx(2 * 2 * math.tanh(1 / 2), rel=1e-5)


def test_standardised_logits_equal_torchdistill(
    output: MakeOutput, student_dims: FeatureDims, teacher_dims: FeatureDims, mid_level: ModuleType
) -> None:
    student, teacher = output(student_dims), output(teacher_dims, seed=1)
    found = StandardisedLogits(student_dims, teacher_dims, temperature=2.0)(student, teacher, LABELS)
    # theirs divides the deviation by K - 1, which is this one at another temperature, and leaves out T^2
    theirs = mid_level.LogitStdKDLoss(**PATHS, temperature=2.0 * math.sqrt(2 / 3), alpha=0.0, eps=0.0)
    expected = 4 * theirs(of_module(student.logits), of_module(teacher.logits), LABELS)
    torch.testing.assert_close(found, expected)
