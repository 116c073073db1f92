"""L_DA against loops written from its definition, and against numbers computed by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from scenedistill.losses.base import TeacherStatistics
from scenedistill.losses.dual_attention import DualAttentionLoss, gate_distance, map_distance
from scenedistill.models.output import FeatureDims, SceneOutput, StageAttention

MakeOutput = Callable[..., SceneOutput]
LABELS = torch.tensor([0, 1, 2, 1, 0])


def loop_map_distance(ours: Tensor, theirs: Tensor) -> float:
    """Mean over images of |a / |a| - b / |b||^2."""
    total = 0.0
    for one, other in zip(ours, theirs, strict=True):
        a, b = one.flatten().tolist(), other.flatten().tolist()
        long_a, long_b = math.sqrt(sum(x * x for x in a)), math.sqrt(sum(x * x for x in b))
        total += sum((x / long_a - y / long_b) ** 2 for x, y in zip(a, b, strict=True))
    return total / len(ours)


def loop_gate_distance(ours: Tensor, theirs: Tensor) -> float:
    """Mean over images and positions of the squared difference of standardised gates."""

    def standardised(gates: list[float]) -> list[float]:
        mean = sum(gates) / len(gates)
        spread = math.sqrt(sum((g - mean) ** 2 for g in gates) / len(gates) + 1e-6)
        return [(g - mean) / spread for g in gates]

    total, count = 0.0, 0
    for one, other in zip(ours, theirs, strict=True):
        pairs = zip(standardised(one.flatten().tolist()), standardised(other.flatten().tolist()), strict=True)
        for a, b in pairs:
            total, count = total + (a - b) ** 2, count + 1
    return total / count


def loop_channel_distance(
    ours: Tensor, theirs: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, std: Tensor
) -> float:
    """Mean over images and the teacher's channels of (W a + b - (t - mean) / std)^2."""
    total = 0.0
    for a, t in zip(ours, theirs, strict=True):
        for c in range(len(t)):
            carried = sum(float(weight[c, k] * a[k]) for k in range(len(a))) + float(bias[c])
            total += (carried - float((t[c] - mean[c]) / std[c])) ** 2
    return total / theirs.numel()


@pytest.fixture
def loss(student_dims: FeatureDims, teacher_dims: FeatureDims, statistics: TeacherStatistics) -> DualAttentionLoss:
    torch.manual_seed(0)
    built = DualAttentionLoss(student_dims, teacher_dims, energy=0.7, channel=0.4, gates=0.2).double()
    built.prepare(statistics)
    return built


def test_the_loss_is_the_sum_of_its_parts_computed_by_loops(
    loss: DualAttentionLoss,
    output: MakeOutput,
    student_dims: FeatureDims,
    teacher_dims: FeatureDims,
    statistics: TeacherStatistics,
) -> None:
    student, teacher = output(student_dims), output(teacher_dims, seed=1)
    expected = 0.0
    for stage, (ours, theirs) in enumerate(zip(student.attention, teacher.attention, strict=True)):
        expected += 0.7 * loop_map_distance(ours.energy, theirs.energy)
        expected += 0.4 * loop_channel_distance(
            ours.descriptor,
            theirs.descriptor,
            loss.carry[stage].get_parameter("weight").detach(),
            loss.carry[stage].get_parameter("bias").detach(),
            statistics.descriptor_mean[stage].double(),
            statistics.descriptor_std[stage].double(),
        )
        expected += 0.2 * loop_gate_distance(ours.spatial, theirs.spatial)
    assert loss(student, teacher, LABELS).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("part", ["energy", "channel", "gates"])
def test_each_weight_switches_its_part(
    part: str,
    output: MakeOutput,
    student_dims: FeatureDims,
    teacher_dims: FeatureDims,
    statistics: TeacherStatistics,
) -> None:
    weights = dict.fromkeys(("energy", "channel", "gates"), 0.0)
    student, teacher = output(student_dims), output(teacher_dims, seed=1)
    torch.manual_seed(0)
    assert float(DualAttentionLoss(student_dims, teacher_dims, **weights).double()(student, teacher, LABELS)) == 0
    student = student.map(lambda tensor: tensor.requires_grad_())
    loss = DualAttentionLoss(student_dims, teacher_dims, **{**weights, part: 1.0}).double()
    loss.prepare(statistics)
    loss(student, teacher, LABELS).backward()
    touched = {name for name in StageAttention._fields if getattr(student.attention[0], name).grad is not None}
    assert all(parameter.grad is not None for parameter in loss.parameters())  # nothing idle: DDP would stop
    assert touched == {{"energy": "energy", "channel": "descriptor", "gates": "spatial"}[part]}


def test_map_distance_equals_a_value_computed_by_hand() -> None:
    # (3, 4) / 5 = (0.6, 0.8) and (4, 3) / 5 = (0.8, 0.6): 0.2^2 + 0.2^2; the second image agrees but for its size
    ours = torch.tensor([[[3.0, 4.0]], [[1.0, 2.0]]])
    theirs = torch.tensor([[[4.0, 3.0]], [[10.0, 20.0]]])
    assert float(map_distance(ours, theirs)) == pytest.approx(0.08 / 2)
    # nothing in common: the largest that maps of energies, never negative, can differ
    assert float(map_distance(torch.tensor([[[0.0, 5.0]]]), torch.tensor([[[3.0, 0.0]]]))) == pytest.approx(2)


def test_maps_of_another_size_are_averaged_down() -> None:
    ours = torch.tensor([[[3.0, 4.0]]])
    fine = torch.tensor([[[5.0, 3.0, 4.0, 2.0], [5.0, 3.0, 2.0, 4.0]]])  # means of 2 x 2: 4 and 3
    assert float(map_distance(ours, fine)) == pytest.approx(0.08)
    assert float(map_distance(fine, ours)) == pytest.approx(0.08)


def test_gate_distance_equals_a_value_computed_by_hand() -> None:
    # standardised, both are -1 and 1, one the other way round: (1 - -1)^2, whatever the gates' own range
    ours, theirs = torch.tensor([[[0.2, 0.4]]]), torch.tensor([[[0.9, 0.1]]])
    assert float(gate_distance(ours, theirs)) == pytest.approx(4, rel=1e-4)
    assert float(gate_distance(ours, 0.5 + 0.1 * ours)) == pytest.approx(0, abs=1e-3)
    # a flat map counts as zeros
    assert float(gate_distance(torch.full((1, 2, 2), 0.5), theirs.expand(1, 2, 2))) == pytest.approx(1, rel=1e-4)


def test_channel_distance_equals_a_value_computed_by_hand() -> None:
    dims = FeatureDims(2, 2, (2,))
    loss = DualAttentionLoss(dims, dims, energy=0, channel=1)
    loss.prepare(TeacherStatistics(torch.zeros(2), (torch.tensor([1.0, 0.0]),), (torch.tensor([2.0, 1.0]),)))
    with torch.no_grad():
        loss.carry[0].get_parameter("weight").copy_(torch.eye(2))
        loss.carry[0].get_parameter("bias").zero_()

    def output(descriptor: list[float]) -> SceneOutput:
        stage = StageAttention(
            torch.zeros(1, 2), torch.zeros(1, 1, 2, 2), torch.ones(1, 2, 2), torch.tensor([descriptor])
        )
        return SceneOutput(torch.zeros(1, 2), torch.zeros(1, 2), (stage,))

    # the teacher's (3, 0) is standardised to (1, 0): ((1 - 1)^2 + (2 - 0)^2) / 2
    assert loss(output([1.0, 2.0]), output([3.0, 0.0]), LABELS[:1]).item() == pytest.approx(2)


def test_the_coarsest_stages_are_compared(output: MakeOutput) -> None:
    ours, theirs = FeatureDims(3, 4, (2, 4, 5)), FeatureDims(3, 6, (7,))
    student, teacher = output(ours, sizes=(8, 4, 2)), output(theirs, sizes=(2,), seed=1)
    loss = DualAttentionLoss(ours, theirs, channel=0)
    expected = loop_map_distance(student.attention[2].energy, teacher.attention[0].energy)
    assert float(loss(student, teacher, LABELS)) == pytest.approx(expected)
    # the statistics are those of the same stages
    loss = DualAttentionLoss(theirs, ours)
    mean, std = (tuple(torch.full((w,), v) for w in ours.stages) for v in (3.0, 2.0))
    loss.prepare(TeacherStatistics(torch.zeros(4), mean, std))
    assert torch.equal(loss.get_buffer("mean_0"), torch.full((5,), 3.0))
    assert torch.equal(loss.get_buffer("std_0"), torch.full((5,), 2.0))


def test_a_channel_that_never_varies_stays_finite(output: MakeOutput) -> None:
    dims = FeatureDims(3, 4, (2,))
    loss = DualAttentionLoss(dims, dims).double()
    loss.prepare(TeacherStatistics(torch.zeros(4), (torch.zeros(2),), (torch.zeros(2),)))
    assert loss(output(dims, sizes=(2,)), output(dims, sizes=(2,), seed=1).map(lambda t: t * 0), LABELS).isfinite()


def test_nearly_constant_channels_do_not_dominate_the_others() -> None:
    dims = FeatureDims(2, 2, (3,))
    loss = DualAttentionLoss(dims, dims)
    loss.prepare(TeacherStatistics(torch.zeros(2), (torch.zeros(3),), (torch.tensor([2.0, 1.0, 1e-9]),)))
    assert torch.allclose(loss.get_buffer("std_0"), torch.tensor([2.0, 1.0, 0.05]))  # 5 % of the mean, which is 1
