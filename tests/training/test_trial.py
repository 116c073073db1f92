"""One step of every network before anything long."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from scenedistill.config import (
    FitConfig,
    MachineConfig,
    RunConfig,
    StudentConfig,
    StudentFitConfig,
    TeacherConfig,
    TeacherFitConfig,
)
from scenedistill.core.errors import UserError
from scenedistill.losses.registry import METHODS
from scenedistill.models.table1 import STUDENTS
from scenedistill.training.trial import CPU_IMAGES, try_student, try_teacher

CPU = torch.device("cpu")


def config(**student: Any) -> RunConfig:
    fit = FitConfig(batch_size=8)
    return RunConfig(
        image_size=32,
        teacher=TeacherConfig(name="table1_printed", weights="none", fit=TeacherFitConfig(**vars(fit))),
        student=StudentConfig(**{"name": "table1_printed", "fit": StudentFitConfig(**vars(fit)), **student}),
        machine=MachineConfig(accelerator="cpu"),
    )


@pytest.mark.parametrize("method", METHODS)
def test_every_method_passes_the_trial_step(method: str) -> None:
    settings = config(method=method)
    try_student(settings, settings.student, CPU, "fp32")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_teacher_passes_the_trial_step_and_the_random_state_is_unchanged(precision: str) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    try_teacher(config(), CPU, precision)  # type: ignore[arg-type]
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_batch_of_one_is_refused_where_batch_norm_cannot_take_it() -> None:
    settings = config(fit=FitConfig(batch_size=1))
    with pytest.raises(
        UserError, match=r"student table1_printed .* batch of 1 at 32 pixels.*--student\.fit\.batch_size"
    ):
        try_student(settings, settings.student, CPU, "fp32")
    settings.teacher.fit.batch_size = 1
    with pytest.raises(
        UserError, match=r"teacher table1_printed .* batch of 1 at 32 pixels.*--teacher\.fit\.batch_size"
    ):
        try_teacher(settings, CPU, "fp32")


def test_a_backbone_that_reads_from_its_stages_is_refused_in_a_line() -> None:
    settings = config(name="coat_tiny")
    settings.image_size = 224
    for attention in (True, False):
        settings.student.dual_attention = attention
        with pytest.raises(UserError, match=r"CoaT does not call its stages .*Choose another backbone") as refused:
            try_student(settings, settings.student, CPU, "fp32")
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("size", [1, 4])
def test_images_that_leave_no_map_are_refused(size: int) -> None:
    settings = config()
    settings.image_size = size
    said = f"--image_size is {size}: .* has a single position at its finest stage"
    with pytest.raises(UserError, match=said):
        try_student(settings, settings.student, CPU, "fp32")
    with pytest.raises(UserError, match=said):
        try_teacher(settings, CPU, "fp32")
    settings.image_size = 8
    try_teacher(settings, CPU, "fp32")


def test_a_huge_batch_is_tried_on_a_cpu_with_as_many_images_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def watched(bands: int) -> torch.nn.Module:
        backbone = STUDENTS["table1_printed"](bands)
        backbone.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
        return backbone

    monkeypatch.setitem(STUDENTS, "watched", watched)
    settings = config(name="watched", fit=FitConfig(batch_size=10_000_000))
    try_student(settings, settings.student, CPU, "fp32")
    assert max(sizes) == CPU_IMAGES
