"""Images without labels in a run: which of its stages depend on them, and what the results say."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from scenedistill.config import DataConfig, RunConfig, TeacherConfig
from scenedistill.core.errors import UserError
from scenedistill.experiments.lab import Lab
from scenedistill.experiments.results.record import Row
from scenedistill.experiments.run import check_settings
from scenedistill.experiments.stages import teacher_settings
from scenedistill.experiments.students import student_stage
from scenedistill.experiments.summary import summarise


@pytest.fixture
def more(tmp_path: Path, tiny_scenes: Path) -> Path:
    """Five images of noise, and one of the labelled ones as another file."""
    folder = tmp_path / "more"
    folder.mkdir()
    for number in range(5):
        noise = np.random.default_rng(number).integers(0, 256, (48, 48, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
    Image.open(tiny_scenes / "river" / "03.png").rotate(90).save(folder / "river.tif")
    return folder


def open_lab(data: Path, out: Path, **settings: Any) -> tuple[Lab, io.StringIO]:
    said = io.StringIO()
    common = {"stored_size": 32, "train_ratio": 0.5, "cache_dir": out.parent / "cache", **settings}
    config = RunConfig(image_size=32, teacher=TeacherConfig(weights="none"), data=DataConfig(**common))
    check_settings(config)
    return Lab(data, out, config, Console(file=said, width=400)), said


def fingerprints(lab: Lab) -> dict[str, str]:
    """Of the three stages of a seed."""
    split = lab.split(0)
    teacher = lab.stage(lab.out / "teacher", 0, split, teacher_settings(lab.config.teacher, len(split.train)))
    student = lab.config.student
    return {
        "teacher": teacher.fingerprint,
        "plain": student_stage(lab, 0, split, lab.out / "plain", student, None).fingerprint,
        "distilled": student_stage(lab, 0, split, lab.out / "distilled", student, teacher).fingerprint,
    }


def test_the_distilled_students_alone_depend_on_them(tiny_scenes: Path, more: Path, tmp_path: Path) -> None:
    bare, _ = open_lab(tiny_scenes, tmp_path / "run")
    before = fingerprints(bare)
    assert bare.unlabelled(bare.split(0)) is None and not bare.notes
    seen = {before["distilled"]}
    changes: list[dict[str, Any]] = [
        {},
        {"unlabelled_share": 0.25},
        {"transductive": True},
        {"unlabelled": [more / "0.png"]},
    ]
    for change in changes:
        lab, _ = open_lab(tiny_scenes, tmp_path / "run", **{"unlabelled": [more], **change})
        now = fingerprints(lab)
        assert (now["teacher"], now["plain"]) == (before["teacher"], before["plain"])
        seen.add(now["distilled"])
    assert len(seen) == 5
    again, _ = open_lab(tiny_scenes, tmp_path / "run", unlabelled=[more])
    assert fingerprints(again)["distilled"] in seen
    # without such images, a share of them is no setting of the run
    assert fingerprints(open_lab(tiny_scenes, tmp_path / "run", unlabelled_share=0.3)[0]) == before


def test_the_pool_is_made_for_each_seed_and_told_once(tiny_scenes: Path, more: Path, tmp_path: Path) -> None:
    lab, said = open_lab(tiny_scenes, tmp_path / "run", unlabelled=[more])
    for seed in range(4):
        split = lab.split(seed)
        pool = lab.unlabelled(split)
        assert pool is not None and len(pool) == 5 and lab.unlabelled(split) is pool
        names = [lab.cache.index.paths[position] for position in split.test]
        kind = "held-out" if "river/03.png" in names else "training"
        assert said.getvalue().count(f"left out: 1 copy of a {kind} image") >= 1
    assert said.getvalue().count("images without labels, of 6 images from more") == 4


@pytest.mark.parametrize("transductive", [False, True])
def test_results_say_so(tiny_scenes: Path, more: Path, tmp_path: Path, transductive: bool) -> None:
    lab, _ = open_lab(tiny_scenes, tmp_path / "run", unlabelled=[more], transductive=transductive)
    seed = next(
        seed for seed in range(20) if "river/03.png" in [lab.cache.index.paths[i] for i in lab.split(seed).test]
    )
    pool = lab.unlabelled(lab.split(seed))
    assert pool is not None and len(pool) == 5 + transductive
    row = Row("dkd", "table1_resnet", "resnet101", seed, 0.5)
    summarise(lab, [row], name="run", command="", splits={str(seed): "a"})
    notes = json.loads((lab.out / "summary.json").read_text())["notes"]
    assert notes.startswith(f"Distilled with {len(pool)} images without labels, 50 % of each batch.")
    assert ("Transductive" in notes) == transductive and notes in (lab.out / "summary.md").read_text()


def test_an_unreadable_image_is_named(tiny_scenes: Path, more: Path, tmp_path: Path) -> None:
    (more / "broken.png").write_bytes(b"\x89PNG")
    lab, said = open_lab(tiny_scenes, tmp_path / "run", unlabelled=[more], on_bad="skip")
    assert lab.unlabelled(lab.split(0)) is not None
    assert "more: broken.png: " in said.getvalue() and "1 unreadable one" in said.getvalue()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"unlabelled_share": 1.0}, "--data.unlabelled_share is 1.0; expected a share of the batch between 0 and 1"),
        ({"unlabelled_tile": 0}, "--data.unlabelled_tile is 0; expected a number of pixels"),
        ({"unlabelled_tile": 64}, "--data.unlabelled_tile does nothing without images"),
        ({"transductive": True}, "--data.transductive does nothing without images"),
        ({"unlabelled": [Path("nowhere")]}, "does not exist."),
    ],
)
def test_what_is_wrong_is_said_first(change: dict[str, Any], words: str) -> None:
    config = RunConfig()
    with pytest.raises(UserError) as refused:
        check_settings(dataclasses.replace(config, data=dataclasses.replace(config.data, **change)))
    assert words in str(refused.value) and "\n" not in str(refused.value)
