"""Runs with images without labels, mixed images, finer views, symmetries and several teachers."""

from __future__ import annotations

import io
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from scenedistill import RunConfig, load_net, run
from scenedistill.config import (
    DataConfig,
    FitConfig,
    MachineConfig,
    StudentConfig,
    StudentFitConfig,
    TeacherConfig,
    TeacherFitConfig,
)
from scenedistill.core.errors import UserError
from scenedistill.models.files import weights_hash

FIT = FitConfig(epochs=2, batch_size=16, lr=0.02, warmup_epochs=0)


def settings(cache: Path, **changes: Any) -> RunConfig:
    config = RunConfig(
        image_size=32,
        data=DataConfig(train_ratio=0.5, stored_size=40, cache_dir=cache),
        teacher=TeacherConfig(name="table1_printed", weights="none", min_oa=0.0, fit=TeacherFitConfig(**vars(FIT))),
        student=StudentConfig(name="table1_printed", knowledge_views=2, fit=StudentFitConfig(**vars(FIT))),
        machine=MachineConfig(accelerator="cpu", precision="fp32"),
    )
    for name, value in changes.items():
        section, _, field = name.partition("__")
        setattr(getattr(config, section), field, value)
    return config


def do(data: Path, out: Path, config: RunConfig, **more: Any) -> str:
    said = io.StringIO()
    run(data, out, config, console=Console(file=said, width=300), **more)
    return said.getvalue()


@pytest.fixture(scope="module")
def others(tiny_scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 20 images nobody has labelled, and copies of three labelled ones under another format."""
    folder = tmp_path_factory.mktemp("unlabelled") / "2024"
    folder.mkdir()
    draw = np.random.default_rng(0)
    for number in range(20):
        coarse = draw.integers(0, 255, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((48, 48), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=95)
    for number, path in enumerate(sorted(tiny_scenes.glob("*/*"))[:3]):
        Image.open(path).convert("RGB").save(folder / f"copy{number}.png")
    return folder


def student_of(out: Path, method: str = "dkd") -> torch.nn.Module:
    return load_net(out / "seed0" / "table1_printed" / method / "weights.safetensors")[0]


@pytest.mark.slow
def test_a_student_learns_from_all_sources_and_a_killed_run_resumes(
    tiny_scenes: Path, others: Path, tmp_path: Path
) -> None:
    config = settings(
        tmp_path / "cache",
        data__unlabelled=[others],
        data__unlabelled_share=0.5,
        student__mixup=0.5,
        student__ask_size=40,
        student__symmetries=True,
    )
    said = do(tiny_scenes, tmp_path / "whole", config)
    assert "copies" in said or "copy" in said
    assert "images without labels" in (tmp_path / "whole" / "summary.md").read_text(encoding="utf-8")
    plain = settings(tmp_path / "cache")
    do(tiny_scenes, tmp_path / "plain", plain)
    assert weights_hash(student_of(tmp_path / "whole")) != weights_hash(student_of(tmp_path / "plain"))
    for method in ("teacher", "table1_printed/plain"):  # teacher and plain student are not touched by it
        one, other = (
            load_net(tmp_path / name / "seed0" / method / "weights.safetensors")[0] for name in ("whole", "plain")
        )
        assert weights_hash(one) == weights_hash(other)

    again = tmp_path / "again"
    shutil.copytree(tmp_path / "whole" / "seed0" / "teacher", again / "seed0" / "teacher")
    do(tiny_scenes, again, config)
    assert weights_hash(student_of(again)) == weights_hash(student_of(tmp_path / "whole"))


@pytest.mark.slow
def test_a_student_of_two_teachers_differs_from_those_of_each(tiny_scenes: Path, tmp_path: Path) -> None:
    kd: dict[str, Any] = {"student__method": "kd"}
    do(tiny_scenes, tmp_path / "a", settings(tmp_path / "cache", **kd))
    do(tiny_scenes, tmp_path / "b", settings(tmp_path / "cache", teacher__name="table1_resnet", **kd))
    second = str(tmp_path / "b" / "seed{seed}" / "teacher" / "weights.safetensors")
    both = settings(tmp_path / "cache", student__also=[second], **kd)
    shutil.copytree(tmp_path / "a" / "seed0" / "teacher", tmp_path / "both" / "seed0" / "teacher")
    said = do(tiny_scenes, tmp_path / "both", both)
    assert "teacher: done before" in said.replace("seed0/", "")
    hashes = {weights_hash(student_of(tmp_path / name, "kd")) for name in ("a", "b", "both")}
    assert len(hashes) == 3
    with pytest.raises(UserError, match="no network at nowhere/0"):
        do(tiny_scenes, tmp_path / "both", settings(tmp_path / "cache", student__also=["nowhere/{seed}.safetensors"]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"student__mixup": 1.5}, "--student.mixup is 1.5; expected a share"),
        ({"student__ask_size": 41}, "--student.ask_size is 41; expected up to the 40 pixels"),
    ],
)
def test_settings_out_of_range_are_refused_at_once(
    change: dict[str, Any], said: str, tiny_scenes: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        do(tiny_scenes, tmp_path / "out", settings(tmp_path / "cache", **change))
