"""Made-up outputs of two networks, for every test of a loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
import torch

from scenedistill.losses.base import TeacherStatistics
from scenedistill.models.output import FeatureDims, SceneOutput, StageAttention

MakeOutput = Callable[..., SceneOutput]


def make_output(
    dims: FeatureDims,
    batch: int = 5,
    *,
    sizes: tuple[int, ...] = (4, 2),
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> SceneOutput:
    """Random numbers of the right shapes and ranges; the maps are `sizes` pixels wide, one for each stage."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype)

    attention = tuple(
        StageAttention(
            channel=normal(batch, width).sigmoid(),
            spatial=normal(batch, 1, size, size).sigmoid(),
            energy=normal(batch, size, size).square(),
            descriptor=normal(batch, width),
        )
        for width, size in zip(dims.stages, sizes, strict=True)
    )
    features = tuple(normal(batch, width, size, size) for width, size in zip(dims.stages, sizes, strict=True))
    return SceneOutput(normal(batch, dims.classes), normal(batch, dims.embedding), attention, features)


@pytest.fixture
def student_dims() -> FeatureDims:
    return FeatureDims(classes=3, embedding=4, stages=(2, 5))


@pytest.fixture
def teacher_dims() -> FeatureDims:
    return FeatureDims(classes=3, embedding=6, stages=(3, 7))


@pytest.fixture
def output() -> MakeOutput:
    return make_output


def make_statistics(dims: FeatureDims) -> TeacherStatistics:
    """Random statistics of a teacher of these dimensions."""
    draw = torch.Generator().manual_seed(99)
    return TeacherStatistics(
        torch.randn(dims.embedding, generator=draw),
        tuple(torch.randn(width, generator=draw) for width in dims.stages),
        tuple(torch.rand(width, generator=draw) + 0.5 for width in dims.stages),
        head=(
            torch.randn(dims.classes, dims.embedding, generator=draw),
            torch.randn(dims.classes, generator=draw),
        ),
    )


@pytest.fixture
def statistics_of() -> Callable[[FeatureDims], TeacherStatistics]:
    return make_statistics


@pytest.fixture
def statistics(teacher_dims: FeatureDims) -> TeacherStatistics:
    return make_statistics(teacher_dims)


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Two threads for torch, whatever the number that the tests run with."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def mid_level() -> ModuleType:
    """The losses of torchdistill, to compare ours with."""
    module: ModuleType = pytest.importorskip(
        "torchdistill.losses.mid_level", reason="needs torchdistill: pip install -e '.[compare]'"
    )
    return module
