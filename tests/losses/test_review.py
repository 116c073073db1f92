"""The loss on whole feature maps against a loop, hand-computed numbers and another implementation."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from types import ModuleType

import pytest
import torch
from torch import Tensor

from scenedistill.losses.base import TeacherStatistics
from scenedistill.losses.review import Fusion, KnowledgeReview, context_distance
from scenedistill.models.output import FeatureDims, SceneOutput

MakeOutput = Callable[..., SceneOutput]
LABELS = torch.tensor([0, 1, 2, 1, 0])


def unchanged(dims: FeatureDims) -> TeacherStatistics:
    """Statistics of a teacher whose features are standardised already."""
    zeros, ones = ([make(width) for width in dims.stages] for make in (torch.zeros, torch.ones))
    return TeacherStatistics(torch.zeros(dims.embedding), tuple(zeros), tuple(ones))


def test_the_loss_equals_torchdistill(
    output: MakeOutput, student_dims: FeatureDims, teacher_dims: FeatureDims, mid_level: ModuleType
) -> None:
    wrapper = import_module("torchdistill.models.wrapper")
    torch.manual_seed(0)
    loss = KnowledgeReview(student_dims, teacher_dims, middle=3).double()
    loss.prepare(unchanged(teacher_dims))
    student, teacher = output(student_dims), output(teacher_dims, seed=1)
    ours = [*student.features, student.embedding[:, :, None, None]]
    theirs = [*teacher.features, teacher.embedding[:, :, None, None]]
    coarser, expected = None, torch.zeros((), dtype=torch.float64)
    for level in (2, 1, 0):
        fusion = loss.fusions[level]
        assert isinstance(fusion, Fusion)
        other = wrapper.AttentionBasedFusion(ours[level].shape[1], 3, theirs[level].shape[1], level < 2).double()
        names = {"reduce": "conv1", "guide": "conv2", "gates": "attention_conv.0"}
        other.load_state_dict(
            {names[name.split(".")[0]] + name[name.index(".") :]: value for name, value in fusion.state_dict().items()}
        )
        guided, coarser = other(ours[level], coarser, ours[level].shape[2])
        compare = mid_level.HierarchicalContextLoss("net", "output", "net", "output")
        expected = expected + compare({"net": {"output": (guided, coarser)}}, {"net": {"output": theirs[level]}})
    torch.testing.assert_close(loss(student, teacher, LABELS), expected)
    assert loss.needs_features and not loss.needs_attention and not loss.relational


def test_distance_equals_a_loop() -> None:
    draw = torch.Generator().manual_seed(0)
    ours, theirs = (torch.randn(2, 3, 8, 8, generator=draw, dtype=torch.float64) for _ in range(2))

    def squared(side: int) -> float:
        """Mean over images, channels and cells of a grid of the squared difference of the cells' means."""
        cell, total = 8 // side, 0.0
        gap = ours - theirs
        for y in range(side):
            for x in range(side):
                part = gap[:, :, y * cell : (y + 1) * cell, x * cell : (x + 1) * cell]
                total += part.mean((2, 3)).square().sum().item()
        return total / (2 * 3 * side * side)

    expected = (squared(8) + squared(4) / 2 + squared(2) / 4 + squared(1) / 8) / (1 + 1 / 2 + 1 / 4 + 1 / 8)
    assert context_distance(ours, theirs).item() == pytest.approx(expected, rel=1e-9)


def test_distance_equals_a_value_computed_by_hand() -> None:
    def of(*values: float) -> Tensor:
        return torch.tensor(values).reshape(1, 1, 2, -1)

    # at full size 1 in each pixel; in the mean over all 0, which counts half as much
    assert context_distance(of(1.0, -1.0, 1.0, -1.0), of(0.0, 0.0, 0.0, 0.0)).item() == pytest.approx(1 / 1.5)
    assert context_distance(torch.full((1, 1, 1, 1), 3.0), torch.zeros(1, 1, 1, 1)).item() == pytest.approx(9.0)


def test_a_coarser_level_influences_the_finer_ones(output: MakeOutput, student_dims: FeatureDims) -> None:
    torch.manual_seed(0)
    loss = KnowledgeReview(student_dims, student_dims).double()
    loss.prepare(unchanged(student_dims))
    student = output(student_dims)
    student.embedding.requires_grad_()
    size = student.features[0].shape[-2:]
    _, coarsest = loss.fusions[2](student.embedding[:, :, None, None], None, torch.Size((1, 1)))
    _, coarser = loss.fusions[1](student.features[1], coarsest, student.features[1].shape[-2:])
    guided, fused = loss.fusions[0](student.features[0], coarser, size)
    assert guided.shape == student.features[0].shape and fused.shape == (5, 4, *size)
    guided.square().sum().backward()
    assert student.embedding.grad is not None and student.embedding.grad.abs().sum() > 0


def test_the_width_must_be_positive_and_sets_the_parameters(
    student_dims: FeatureDims, teacher_dims: FeatureDims
) -> None:
    with pytest.raises(ValueError, match="middle is 0; expected 1 or more"):
        KnowledgeReview(student_dims, teacher_dims, middle=0)
    narrow = KnowledgeReview(student_dims, teacher_dims, middle=2)
    assert sum(p.numel() for p in narrow.parameters()) < sum(
        p.numel() for p in KnowledgeReview(student_dims, teacher_dims).parameters()
    )
