"""Class folders spelt in another Unicode form, with a blank in front, or in folders of parts: the same data set."""

from __future__ import annotations

import json
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import pytest

WEIGHTS = "weights.safetensors"


@pytest.fixture(scope="module")
def decomposed(tiny_scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny scenes with all names decomposed."""
    root = tmp_path_factory.mktemp("decomposed")
    for folder in tiny_scenes.iterdir():
        shutil.copytree(folder, root / unicodedata.normalize("NFD", folder.name))
    return root


def test_a_network_matches_its_classes_in_either_unicode_form(
    commands: Any, tiny_run: Path, decomposed: Path, tiny_options: tuple[str, ...], tmp_path: Path
) -> None:
    seed = tiny_run / "seed3"
    tested = json.loads((seed / "teacher" / "evaluation" / "stage.json").read_text(encoding="utf-8"))["record"]
    split = ("--split", seed / "split.csv", "--precision", "fp32", "--out", tmp_path / "tested")
    ended = commands("evaluate", seed / "teacher" / WEIGHTS, decomposed, *split)
    assert ended.code == 0, ended.err
    assert json.loads((tmp_path / "tested" / "metrics.json").read_text(encoding="utf-8"))["oa"] == tested["oa"]

    given = ("--teacher.checkpoint", seed / "teacher" / WEIGHTS, "--out", tmp_path / "given")
    ended = commands("distill", decomposed, *tiny_options, *given)
    assert ended.code == 0, ended.err
    ours, theirs = (
        json.loads((folder / "stage.json").read_text(encoding="utf-8"))["record"]["weights_hash"]
        for folder in (tmp_path / "given" / "seed3" / "table1_printed" / "dkd", seed / "table1_printed" / "dkd")
    )
    assert ours == theirs


def test_a_run_resumes_after_names_were_decomposed(
    commands: Any, tiny_run: Path, decomposed: Path, tiny_options: tuple[str, ...], tmp_path: Path
) -> None:
    pytest.importorskip("pytorch_grad_cam", reason="needs grad-cam: pip install -e '.[report]'")
    shutil.copytree(tiny_run, tmp_path / "run")
    ended = commands("run", decomposed, *tiny_options, "--out", tmp_path / "run")
    assert ended.code == 0 and ended.out.count("done before with the same settings") == 3, ended.out
    ended = commands(
        "explain",
        tmp_path / "run",
        next(decomposed.glob("for*/00.png")),
        "--of",
        unicodedata.normalize("NFD", "forêt"),
        "--out",
        tmp_path / "explained",
    )
    assert ended.code == 0, ended.err
    assert "(in the folder forêt)" in (tmp_path / "explained" / "explained.txt").read_text(encoding="utf-8")


def test_a_leading_blank_stays_from_the_folder_to_the_export(
    commands: Any, tiny_scenes: Path, tiny_options: tuple[str, ...], tmp_path: Path
) -> None:
    scenes = tmp_path / "scenes"
    shutil.copytree(tiny_scenes, scenes)
    (scenes / "fields").rename(scenes / " fields")
    (scenes / "river").rename(scenes / "-river")
    ended = commands("run", scenes, *tiny_options, "--out", tmp_path / "run")
    assert ended.code == 0, ended.err
    ended = commands(
        "export", tmp_path / "run", "--out", tmp_path / "student", "--formats", "[safetensors]", "--repeats", "0"
    )
    assert ended.code == 0, ended.err
    card = json.loads((tmp_path / "student" / "model.json").read_text(encoding="utf-8"))
    assert card["classes"] == [" fields", "-river", "car park", "forêt"]


def test_folders_of_parts_define_training_and_test_images(
    commands: Any, tiny_scenes: Path, tiny_run: Path, tiny_options: tuple[str, ...], tmp_path: Path
) -> None:
    for part, numbers in (("train", range(10)), ("test", range(10, 16))):
        for folder in tiny_scenes.iterdir():
            (tmp_path / "set" / part / folder.name).mkdir(parents=True)
            for number in numbers:
                shutil.copy(folder / f"{number:02d}.png", tmp_path / "set" / part / folder.name)
    ended = commands("teacher", tmp_path / "set", *tiny_options, "--out", tmp_path / "run")
    assert ended.code == 0, ended.err
    assert "40 training, 0 validation, 24 test images" in ended.out
    assert "The folders are a split: 40 in train, 24 in test." in ended.out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))
    assert summary["train_ratio"] is None, "none was drawn"
    assert summary["data"] == "set"

    weights = tmp_path / "run" / "seed3" / "teacher" / WEIGHTS
    ended = commands("evaluate", weights, tmp_path / "set", "--precision", "fp32", "--out", tmp_path / "tested")
    assert ended.code == 0 and "table1_printed on 24 images" in ended.out, ended.out
    ended = commands("split", tmp_path / "set", tmp_path / "a.csv")
    assert "40 train, 0 val, 24 test" in ended.out
    ended = commands("data", "check", tmp_path / "set")
    assert ended.code == 0 and "The folders are a split" in ended.out
