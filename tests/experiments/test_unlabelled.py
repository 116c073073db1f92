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
from scenedistill.experiments.checks import check_settings
from scenedistill.experiments.context import Experiment
from scenedistill.experiments.results.record import Row
from scenedistill.experiments.stages.students import student_stage
from scenedistill.experiments.stages.teacher import teacher_settings
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


def opened(data: Path, out: Path, **settings: Any) -> tuple[Experiment, io.StringIO]:
    said = io.StringIO()
    common = {"stored_size": 32, "train_ratio": 0.5, "cache_dir": out.parent / "cache", **settings}
    config = RunConfig(image_size=32, teacher=TeacherConfig(weights="none"), data=DataConfig(**common))
    check_settings(config)
    return Experiment.open(data, out, config, Console(file=said, width=400)), said


def fingerprints(experiment: Experiment) -> dict[str, str]:
    """Of the three stages of a seed."""
    context, out = experiment.of_seed(0), experiment.folder.path
    teacher = context.stage(out / "teacher", teacher_settings(context.config.teacher, len(context.split.train)))
    student = context.config.student
    return {
        "teacher": teacher.fingerprint,
        "plain": student_stage(context, out / "plain", student, None).fingerprint,
        "distilled": student_stage(context, out / "distilled", student, teacher).fingerprint,
    }


def test_the_distilled_students_alone_depend_on_them(tiny_scenes: Path, more: Path, tmp_path: Path) -> None:
    bare, _ = opened(tiny_scenes, tmp_path / "run")
    before = fingerprints(bare)
    assert bare.images.unlabelled(bare.of_seed(0).split) is None and not bare.images.notes
    seen = {before["distilled"]}
    changes: list[dict[str, Any]] = [
        {},
        {"unlabelled_share": 0.25},
        {"transductive": True},
        {"unlabelled": [more / "0.png"]},
    ]
    for change in changes:
        changed, _ = opened(tiny_scenes, tmp_path / "run", **{"unlabelled": [more], **change})
        now = fingerprints(changed)
        assert (now["teacher"], now["plain"]) == (before["teacher"], before["plain"])
        seen.add(now["distilled"])
    assert len(seen) == 5
    again, _ = opened(tiny_scenes, tmp_path / "run", unlabelled=[more])
    assert fingerprints(again)["distilled"] in seen
    # without such images, a share of them is no setting of the run
    assert fingerprints(opened(tiny_scenes, tmp_path / "run", unlabelled_share=0.3)[0]) == before


def test_the_pool_is_made_for_each_seed_and_reported_once(tiny_scenes: Path, more: Path, tmp_path: Path) -> None:
    experiment, said = opened(tiny_scenes, tmp_path / "run", unlabelled=[more])
    for seed in range(4):
        images, split = experiment.images, experiment.of_seed(seed).split
        pool = images.unlabelled(split)
        assert pool is not None and len(pool) == 5 and images.unlabelled(split) is pool
        names = [images.cache.index.paths[position] for position in split.test]
        kind = "held-out" if "river/03.png" in names else "training"
        assert said.getvalue().count(f"left out: 1 copy of a {kind} image") >= 1
    assert said.getvalue().count("images without labels, of 6 images from more") == 4


@pytest.mark.parametrize("transductive", [False, True])
def test_results_name_the_unlabelled_images(tiny_scenes: Path, more: Path, tmp_path: Path, transductive: bool) -> None:
    experiment, _ = opened(tiny_scenes, tmp_path / "run", unlabelled=[more], transductive=transductive)
    images, contexts = experiment.images, map(experiment.of_seed, range(20))
    held_out = (one for one in contexts if "river/03.png" in [images.cache.index.paths[i] for i in one.split.test])
    context = next(held_out)
    pool = images.unlabelled(context.split)
    assert pool is not None and len(pool) == 5 + transductive
    row = Row("dkd", "table1_resnet", "resnet101", context.seed, 0.5)
    summarise([context], [row], name="run", command="")
    notes = json.loads((experiment.folder.path / "summary.json").read_text())["notes"]
    assert notes.startswith(f"Distilled with {len(pool)} images without labels, 50 % of each batch.")
    assert ("Transductive" in notes) == transductive and notes in (experiment.folder.path / "summary.md").read_text()


def test_labelled_images_in_no_part_serve_as_unlabelled_ones(tiny_scenes: Path, tmp_path: Path) -> None:
    settings = {"train_ratio": 0.25, "test_ratio": 0.5, "unlabelled": [tiny_scenes]}
    experiment, said = opened(tiny_scenes, tmp_path / "run", **settings)
    context = experiment.of_seed(0)
    pool = experiment.images.unlabelled(context.split)
    assert (len(context.split.train), len(context.split.test), pool and len(pool)) == (16, 32, 15)
    # one of the 16 looks like an image of a part
    assert "15 images without labels, of 64 images" in said.getvalue()
    summarise([context], [Row("dkd", "table1_resnet", "resnet101", 0, 0.5)], name="run", command="")
    notes = json.loads((experiment.folder.path / "summary.json").read_text())["notes"]
    assert notes == "Tested on 50 % of each class. Distilled with 15 images without labels, 50 % of each batch."


def test_an_unreadable_image_is_named(tiny_scenes: Path, more: Path, tmp_path: Path) -> None:
    (more / "broken.png").write_bytes(b"\x89PNG")
    experiment, said = opened(tiny_scenes, tmp_path / "run", unlabelled=[more], on_bad="skip")
    assert experiment.images.unlabelled(experiment.of_seed(0).split) is not None
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
def test_wrong_settings_are_refused_before_training(change: dict[str, Any], words: str) -> None:
    config = RunConfig()
    with pytest.raises(UserError) as refused:
        check_settings(dataclasses.replace(config, data=dataclasses.replace(config.data, **change)))
    assert words in str(refused.value) and "\n" not in str(refused.value)
