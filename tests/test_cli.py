"""The command line: what every command does, and what is said to the mistakes that people make."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from scenedistill.cli import COMMANDS, build_parser, main, once_interrupted
from scenedistill.commands.parsing import repeatable
from scenedistill.config import (
    DataConfig,
    FitConfig,
    MachineConfig,
    RunConfig,
    StudentConfig,
    StudentFitConfig,
    TeacherConfig,
    TeacherFitConfig,
)
from scenedistill.data.known.catalogue import CATALOG
from scenedistill.experiments import quickstart as quick
from scenedistill.experiments.results.record import read_result

SOURCE = Path(__file__).resolve().parents[1] / "src"
WEIGHTS = "weights.safetensors"
Said = tuple[int, str, str]
Say = Callable[..., Said]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Say:
    """Runs a command in this process, in a folder of its own: its exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SCENEDISTILL_CACHE", str(tmp_path / "cache"))

    def run(*arguments: object) -> Said:
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else 1
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def scenes(tiny_scenes: Path, tmp_path: Path) -> Path:
    """A small data set to spoil: 4 classes x 8 images."""
    for folder in tiny_scenes.iterdir():
        (tmp_path / "scenes" / folder.name).mkdir(parents=True)
        for image in sorted(folder.iterdir())[:8]:
            shutil.copy(image, tmp_path / "scenes" / folder.name)
    return tmp_path / "scenes"


def complaint(said: Said, code: int = 1) -> str:
    """The one message of a command that failed."""
    assert said[0] == code, said
    assert "Traceback" not in said[1] + said[2]
    assert said[2].count("scenedistill: ") == 1, said[2]
    return " ".join(said[2][said[2].index("scenedistill: ") :].split())


# What the commands do.


def test_run_with_a_result_under_its_name(
    say: Say, tiny_scenes: Path, tiny_run: Path, tiny_options: tuple[str, ...], tmp_path: Path
) -> None:
    shutil.copytree(tiny_run, tmp_path / "runs" / tiny_scenes.name)
    code, out, _ = say("run", tiny_scenes, *tiny_options, "--results", "results/tiny3.json")
    assert code == 0
    assert out.count("done before") == 3, "the run's folder is called like the data when none is given"
    assert f"Everything lies in runs/{tiny_scenes.name}" in out
    result = read_result(tmp_path / "results" / "tiny3.json")
    assert result.command.startswith(f"scenedistill run {tiny_scenes.name} --image_size 32")
    assert str(tmp_path) not in (tmp_path / "results" / "tiny3.json").read_text(encoding="utf-8")
    table = next(line for line in out.splitlines() if "table1_printed" in line and "plain" in line)
    assert "…" not in table, "figures are readable in a pipe"


def test_teacher_followed_by_distill_gives_one_summary(
    say: Say, tiny_scenes: Path, tiny_run: Path, tiny_options: tuple[str, ...], tmp_path: Path
) -> None:
    options = (*tiny_options, "--out", "halves", "--teacher.fit.epochs", "1", "--student.fit.epochs", "1")
    code, out, _ = say("teacher", tiny_scenes, *options)
    assert code == 0 and out.count("  epoch ") == 1
    summary = json.loads((tmp_path / "halves" / "summary.json").read_text(encoding="utf-8"))
    assert [row["variant"] for row in summary["rows"]] == ["teacher"]
    code, out, _ = say("distill", tiny_scenes, *options)
    assert code == 0 and out.count("  epoch ") == 1 and "seed3/teacher: done before" in out
    summary = json.loads((tmp_path / "halves" / "summary.json").read_text(encoding="utf-8"))
    assert [row["variant"] for row in summary["rows"]] == ["teacher", "dkd"]
    given = ("--teacher.checkpoint", tiny_run / "seed3" / "teacher" / WEIGHTS)
    code, out, _ = say("distill", tiny_scenes, *options, "--out", "given", *given)
    assert code == 0 and out.count("  epoch ") == 1
    summary = json.loads((tmp_path / "given" / "summary.json").read_text(encoding="utf-8"))
    assert f"--teacher.checkpoint {WEIGHTS}" in summary["command"]


def test_evaluate_reports_the_accuracy_that_the_run_recorded(
    say: Say, tiny_scenes: Path, tiny_run: Path, tmp_path: Path
) -> None:
    seed = tiny_run / "seed3"
    split = ("--split", seed / "split.csv", "--precision", "fp32")
    code, out, _ = say("evaluate", seed / "teacher" / WEIGHTS, tiny_scenes, *split)
    assert code == 0 and out.startswith("table1_printed on 32 images: oa ")
    found = json.loads((tmp_path / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
    stage = json.loads((seed / "teacher" / "evaluation" / "stage.json").read_text(encoding="utf-8"))
    assert found["oa"] == stage["record"]["oa"]
    assert say("evaluate", seed / "teacher" / WEIGHTS, tiny_scenes)[1].startswith("table1_printed on 64 images")


def test_split_writes_a_csv_of_the_given_ratio(say: Say, tiny_scenes: Path, tmp_path: Path) -> None:
    code, out, _ = say("split", tiny_scenes, "split.csv", "--train_ratio", "0.25", "--seed", "4")
    assert code == 0 and out.startswith("16 train, 0 val, 48 test; split ")
    lines = (tmp_path / "split.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "path,label,split" and len(lines) == 65
    assert sum(line.endswith(",train") for line in lines) == 16


def test_data_list_shows_the_catalogue_and_data_check_compares_with_it(say: Say, tiny_scenes: Path) -> None:
    code, out, _ = say("data", "list")
    assert code == 0 and "resisc45" in out and "31,500" in out and "10%, 20%" in out
    code, out, _ = say("data", "check", tiny_scenes)
    assert code == 0 and "fine if it is your own" in out
    code, out, err = say("data", "check", tiny_scenes, "--name", "UC Merced")
    assert code == 1 and "64 of 2,100 images" in out and not err


def test_data_check_fails_for_an_incomplete_or_other_data_set(say: Say, tmp_path: Path) -> None:
    for name, count in CATALOG["whu-rs19"].counts.items():
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(count):
            (tmp_path / "set" / name / f"{number}.jpg").write_bytes(b"not looked at")
    code, out, _ = say("data", "check", "set", "--decode", "false")
    assert code == 0 and "complete: 1,005 images" in out
    assert say("data", "check", "set", "--name", "aid", "--decode", "false")[0] == 1, "it is another one"
    next((tmp_path / "set").glob("*/0.jpg")).unlink()
    code, out, err = say("data", "check", "set", "--decode", "false")
    assert code == 1 and "1,004 of 1,005 images" in out and not err


def test_quickstart_trains_on_generated_scenes_and_writes_the_result(
    say: Say, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fit = FitConfig(epochs=1, batch_size=16, lr=0.02)
    small = RunConfig(
        image_size=32,
        data=DataConfig(train_ratio=0.5, stored_size=32),
        teacher=TeacherConfig(name="table1_printed", weights="none", min_oa=0.0, fit=TeacherFitConfig(**vars(fit))),
        student=StudentConfig(name="table1_printed", fit=StudentFitConfig(**vars(fit))),
        machine=MachineConfig(accelerator="cpu"),
    )
    # its own settings take minutes, and no option makes them small
    monkeypatch.setattr(quick, "PER_CLASS", 8)
    monkeypatch.setattr(quick, "SIZE", 32)
    monkeypatch.setattr(quick, "settings", lambda *arguments, **more: small)
    code, out, err = say("quickstart", "--folder", "first", "--results", "results/quick.json")
    assert code == 0, err
    assert "the plain student is right on" in out and "scenedistill run path/to/images" in out
    result = read_result(tmp_path / "results" / "quick.json")
    assert result.command == "scenedistill quickstart --folder first --results results/quick.json"
    assert len(list((tmp_path / "first" / "scenes").glob("*/*.*"))) == 96


# Settings from files and options.


def test_printed_settings_given_back_are_the_same_run(
    say: Say, tiny_scenes: Path, tiny_run: Path, tiny_options: tuple[str, ...], tmp_path: Path
) -> None:
    code, printed, _ = say("run", tiny_scenes, *tiny_options, "--print_config")
    assert code == 0
    (tmp_path / "printed.yaml").write_text(printed, encoding="utf-8")
    assert say("run", tiny_scenes, "--config", "printed.yaml", "--print_config")[1] == printed
    out = shutil.copytree(tiny_run, tmp_path / "again")
    for settings in (tmp_path / "printed.yaml", tiny_run / "settings.yaml"):
        code, said, _ = say("run", tiny_scenes, "--out", out, "--config", settings)
        assert code == 0 and said.count("done before with the same settings") == 3
        assert "  epoch " not in said


def test_options_replace_the_values_of_a_file_wherever_they_stand(say: Say, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("student: {fit: {epochs: 3, lr: 0.5}}\nseeds: [1, 2]\n", encoding="utf-8")
    option, file = ("--student.fit.epochs", "7"), ("--config", "a.yaml")
    for order in ((*option, *file), (*file, *option), (*option, "--config=a.yaml")):
        found = yaml.safe_load(say("run", "x", *order, "--print_config")[1])
        assert found["student"]["fit"]["epochs"] == 7 and found["student"]["fit"]["lr"] == 0.5
        assert found["seeds"] == [1, 2]
        assert found["teacher"]["fit"]["epochs"] == TeacherConfig().fit.epochs


def test_every_setting_is_an_option_with_its_meaning(say: Say) -> None:
    code, out, _ = say("run", "--help")
    assert code == 0
    assert "--student.knowledge_views" in out and "number of distinct views" in " ".join(out.split())
    assert set(build_parser().keys()) >= {"teacher.fit.lr", "data.on_bad", "views.scale", "machine.devices", "split"}


def test_calling_without_a_command_shows_the_help(say: Say) -> None:
    code, out, _ = say()
    assert code == 0 and "quickstart" in out and "distill" in out


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (["run", "AID", "--out", "runs/aid"], "scenedistill run AID --out runs/aid"),
        (["run", "/elsewhere/me/AID", "--out=/elsewhere/x/aid20"], "scenedistill run AID --out=aid20"),
        (["run", "../data/AID", "--config", "configs/a.yaml"], "scenedistill run AID --config configs/a.yaml"),
        (["run", "/elsewhere/me/my images/", "--seeds", "[0, 1]"], "scenedistill run 'my images' --seeds '[0, 1]'"),
        (["run", "~/AID"], "scenedistill run AID"),
        (
            ["run", "x", "--teacher", "{checkpoint: /elsewhere/me/net.pth, margin: 1}"],
            "{checkpoint: net.pth, margin: 1}'",
        ),
        (["run", "x", "--teacher", "{checkpoint: ../a/net.pth}"], "{checkpoint: net.pth}'"),
        (["split", "a/b", "c/d.csv"], "scenedistill split a/b c/d.csv"),
    ],
)
def test_a_recorded_command_holds_no_path_of_a_machine(given: list[str], kept: str) -> None:
    assert repeatable(given).endswith(kept)
    assert "elsewhere" not in repeatable(given) and ".." not in repeatable(given)


# Mistakes in the command.

# Most of these say in plain words what jsonargparse says in its own: a new wording there fails here.
MISTAKES: dict[str, tuple[list[str], str]] = {
    "an option": (
        ["run", "x", "--student.fitt.epochs", "3"],
        "no option student.fitt.epochs. Did you mean student.fit",
    ),
    "an abbreviation": (["run", "x", "--student.fit.epoch", "3"], "Did you mean student.fit.epochs?"),
    "a short name": (["run", "x", "--epochs", "3"], "Did you mean teacher.fit.epochs or student.fit.epochs?"),
    "nothing like it": (["run", "x", "--zzz", "3"], "There is no option zzz."),
    "a key": (["run", "x", "--config", "fitt.yaml"], "no option student.fitt.epochs. Did you mean student.fit.epochs?"),
    "a group": (["run", "x", "--config", "studnet.yaml"], "Did you mean student.fit.epochs?"),
    "a value for a group": (["run", "x", "--config", "group.yaml"], "teacher: found 3, expected settings by name"),
    "an empty setting": (["run", "x", "--config", "empty-key.yaml"], "image_size is empty: give it a value"),
    "a command": (["runn", "x"], "found 'runn', expected one of"),
    "a command, hint": (["runn", "x"], "Did you mean run?"),
    "an action": (["data", "chek", "x"], "Did you mean check?"),
    "no action": (["data"], "{list,check,download,stored}"),
    "a number": (["run", "x", "--image_size", "big"], "image_size: found 'big', expected a whole number."),
    "a perhaps number": (["run", "x", "--teacher.min_oa", "abc"], "teacher.min_oa: found 'abc', expected a number."),
    "a list": (["run", "x", "--seeds", "3"], "seeds: found '3', expected a list such as [0, 1]."),
    "a choice": (["run", "x", "--student.fit.optimizer", "adam"], "found 'adam', expected one of 'sgd', 'adamw'."),
    "a choice, hint": (["run", "x", "--student.fit.optimizer", "adam"], "'adamw'. Did you mean adamw?"),
    "weights": (["run", "x", "--student.losses", "3"], "found '3', expected names with values such as {da: 0.5}."),
    "a weight": (["run", "x", "--student.losses", "{da: x}"], "student.losses: found 'x', expected a number."),
    "a switch": (["run", "x", "--student.dual_attention", "5"], "dual_attention: found '5', expected true or false."),
    "no folder": (["run"], "folder must be given."),
    "too many words": (["run", "x", "y"], "It is not clear what is meant by: y"),
    "no YAML": (["run", "x", "--config", "broken.yaml"], "The file given with --config is not valid YAML"),
    "no settings": (["run", "x", "--config", "list.yaml"], "holds no settings: expected `name: value` lines."),
    "no text": (["run", "x", "--config", "binary.yaml"], "is not UTF-8 text"),
    "no file": (["run", "x", "--config", "nowhere.yaml"], "--config: File does not exist"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_command_exits_with_2_and_a_hint(mistake: str, say: Say, tmp_path: Path) -> None:
    for name, content in {
        "fitt": "student: {fitt: {epochs: 3}}",
        "studnet": "studnet: {fit: {epochs: 3}}",
        "group": "teacher: 3",
        "empty-key": "seeds: [0]\nimage_size:",
        "broken": "student: {fit: [",
        "list": "- 1\n- 2",
    }.items():
        (tmp_path / f"{name}.yaml").write_text(content, encoding="utf-8")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x81")
    arguments, words = MISTAKES[mistake]
    code = 1 if mistake in ("a value for a group", "an empty setting") else 2
    said = complaint(say(*arguments), code)
    assert words in said
    assert not re.search("Parser key|[Ss]ubtypes|Subcommand|<class|typing|invalid choice|[Uu]nrecogni|[Vv]alidat", said)
    assert not (tmp_path / "runs").exists()


# Mistakes in what is given.

NAMES = {
    "a teacher": (["--teacher.name", "resnet110"], "Did you mean resnet10t or resnet101"),
    "a student": (["--student.name", "table1_resent"], "Did you mean table1_resnet"),
    "a loss": (["--student.losses", "{sss: 1}"], "No loss is called sss. There are: ce, da, ss, at, "),
    "a method": (["--student.method", "ddk"], "No method is called 'ddk'. There are: plain, dkd, dkd_plus, at, "),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_name_is_found_before_anything_is_trained(
    name: str, say: Say, scenes: Path, tiny_options: tuple[str, ...], tmp_path: Path
) -> None:
    options, words = NAMES[name]
    assert words in complaint(say("run", scenes, *tiny_options, *options))
    assert not (tmp_path / "runs").exists()


def test_a_wrong_data_set_name_gets_a_suggestion(say: Say, scenes: Path) -> None:
    assert "Did you mean 'aid'?" in complaint(say("data", "download", "AIDD"))
    assert "Did you mean 'ucmerced'?" in complaint(say("data", "check", scenes, "--name", "ucmercd"))


def test_a_wrong_path_is_named_with_a_suggestion(say: Say, scenes: Path, tiny_options: tuple[str, ...]) -> None:
    for command in ("run", "teacher"):
        assert complaint(say(command, "scene", *tiny_options)) == (
            "scenedistill: scene does not exist. Did you mean scenes?"
        )
    assert "No network at none" in complaint(say("evaluate", "none", scenes))
    assert "nowhere.csv does not exist" in complaint(
        say("run", scenes, *tiny_options, "--data.split_file", "nowhere.csv")
    )
    assert "No network at none" in complaint(say("run", scenes, *tiny_options, "--teacher.checkpoint", "none"))
    assert "No weights at none.pth" in complaint(say("run", scenes, *tiny_options, "--teacher.weights", "none.pth"))


def test_an_empty_class_folder_is_refused(say: Say, scenes: Path, tiny_options: tuple[str, ...]) -> None:
    (scenes / "desert").mkdir()
    assert "without any image (.jpeg, .jpg, .png, .tif, .tiff, .webp): desert. Fill or remove it." in complaint(
        say("run", scenes, *tiny_options)
    )


@pytest.mark.parametrize("kind", ["truncated", "empty"])
def test_an_unreadable_image_stops_the_run_or_is_skipped_on_request(
    kind: str, say: Say, scenes: Path, tiny_options: tuple[str, ...], tmp_path: Path
) -> None:
    bad = scenes / "river" / "bad.jpg"
    Image.open(scenes / "river" / "00.png").save(bad, quality=95)
    bad.write_bytes(bad.read_bytes()[: bad.stat().st_size // 2] if kind == "truncated" else b"")
    words = complaint(say("teacher", scenes, *tiny_options))
    assert f"1 of 33 images in {scenes} cannot be read: river/bad.jpg:" in words
    assert kind in words and words.endswith("Mend or remove them, or leave them out with --data.on_bad skip.")
    code, out, _ = say("teacher", scenes, *tiny_options, "--data.on_bad", "skip")
    assert code == 0
    assert "left out river/bad.jpg:" in out and "16 training, 0 validation, 16 test images" in out
    assert "bad.jpg" not in (tmp_path / "runs" / "scenes" / "seed3" / "split.csv").read_text(encoding="utf-8")


def test_images_without_class_folders_are_refused(say: Say, tiny_scenes: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_scenes / "river", tmp_path / "loose")
    words = complaint(say("run", "loose"))
    assert "has no class folders: its 16 images lie loose. Expected one sub-folder per class" in words


def test_a_run_takes_16_bit_images_of_four_bands(say: Say, tiny_options: tuple[str, ...], tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for level, name in enumerate(("dry land", "Wüste", "水")):
        (tmp_path / "deep" / name).mkdir(parents=True)
        for number in range(8):
            pixels = draw.integers(500, 1500 + 1500 * level, (40, 40, 4)).astype(np.uint16)
            tifffile.imwrite(
                tmp_path / "deep" / name / f"{number}.tif", pixels, photometric="minisblack", planarconfig="contig"
            )
    options = (*tiny_options, "--teacher.fit.epochs", "1", "--student.fit.epochs", "1")
    code, out, err = say("run", "deep", *options, "--data.bands", "4")
    assert code == 0, err
    assert out.count("on 12 test images") == 3
    metrics = json.loads(
        (tmp_path / "runs" / "deep" / "seed3" / "teacher" / "evaluation" / "stage.json").read_text(encoding="utf-8")
    )
    assert set(metrics["record"]["per_class"]) == {"dry land", "Wüste", "水"}
    words = complaint(say("run", "deep", *options, "--data.bands", "5", "--out", "five"))
    assert "24 of 24 images" in words and "has 4 bands" in words


def test_a_split_may_name_images_that_are_left_out(say: Say, scenes: Path, tiny_options: tuple[str, ...]) -> None:
    assert say("split", scenes, "split.csv", "--train_ratio", "0.5")[0] == 0
    image = sorted((scenes / "river").iterdir())[0]
    image.write_bytes(image.read_bytes()[:200])
    given = ("--data.split_file", "split.csv", "--data.on_bad", "skip")
    code, out, err = say("teacher", scenes, *tiny_options, *given)
    assert code == 0, err
    assert f"left out river/{image.name}" in out


def test_a_run_inside_the_folder_of_its_images_is_refused(
    say: Say, scenes: Path, tiny_options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next command would take it for a class."""
    monkeypatch.chdir(scenes)
    words = complaint(say("run", ".", *tiny_options))
    assert "runs/scenes lies inside the folder of the images" in words and "--out" in words
    assert not (scenes / "runs").exists()


def test_unlabelled_images_are_looked_at_before_a_teacher_is_trained(
    say: Say, scenes: Path, tiny_options: tuple[str, ...]
) -> None:
    words = complaint(say("run", scenes, *tiny_options, "--data.unlabelled", f"[{scenes}]", "--out", "copies"))
    assert "Nothing is left to train with" in words
    assert not list(Path("copies").rglob("weights.safetensors"))


def test_images_of_another_folder_in_the_cache_are_not_taken_for_those_of_a_run(
    say: Say, scenes: Path, tiny_options: tuple[str, ...]
) -> None:
    other = shutil.copytree(scenes, scenes.with_name("other"))
    for folder, out in ((scenes, "first"), (other, "second")):
        assert say("teacher", folder, *tiny_options, "--data.cache_dir", "kept", "--out", out)[0] == 0
    first, second = (next(Path(out).glob("seed*/teacher")) for out in ("first", "second"))
    code, _, err = say("export", second, "--out", "fine", "--formats", "[safetensors]")
    assert code == 0, err
    words = complaint(say("export", first, "--out", "wrong", "--formats", "[safetensors]"))
    assert "are no longer among the decoded ones" in words and "--data" in words


def test_a_class_with_one_image_is_refused(say: Say, scenes: Path, tiny_options: tuple[str, ...]) -> None:
    for image in sorted((scenes / "river").iterdir())[1:]:
        image.unlink()
    words = complaint(say("run", scenes, *tiny_options))
    assert "Class 'river'" in words and "has 1 image; a split needs at least one for training and one" in words


def test_a_batch_larger_than_the_training_part_is_lowered_or_refused(
    say: Say, scenes: Path, tiny_options: tuple[str, ...]
) -> None:
    code, out, _ = say("teacher", scenes, *tiny_options, "--teacher.fit.batch_size", "1000")
    assert code == 0 and "teacher: all 16 training images make one batch" in out
    words = complaint(say("teacher", scenes, *tiny_options, "--data.train_ratio", "0.1", "--out", "few"))
    assert "Too few training images (4) for 1 device" in words and "lower --teacher.images_per_class" in words


def test_an_output_path_that_cannot_be_written_is_refused(
    say: Say, scenes: Path, tiny_options: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    teacher = ("teacher", scenes, *tiny_options)
    assert complaint(say(*teacher, "--out", "file")) == (
        "scenedistill: file cannot be the run's folder: it is a file. Give another with --out."
    )
    for out in ("file/run", "/proc/run"):
        assert f"{out} cannot be the run's folder" in complaint(say(*teacher, "--out", out))
    assert "must end in .json" in complaint(say(*teacher, "--results", "results/name"))
    assert "cannot be written" in complaint(say(*teacher, "--results", "file/name.json"))
    assert "cannot be written" in complaint(say("split", scenes, "file/split.csv"))
    assert "file cannot be written: it is a file" in complaint(say("quickstart", "--folder", "file"))
    assert "Cannot write the image cache" in complaint(say(*teacher, "--data.cache_dir", "file"))
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_write_permission_is_refused(
    say: Say, scenes: Path, tiny_options: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "locked").mkdir(mode=0o555)
    assert "cannot be the run's folder: Permission denied" in complaint(
        say("teacher", scenes, *tiny_options, "--out", "locked/run")
    )


def test_a_mistyped_setting_is_refused_before_training(
    say: Say, tiny_scenes: Path, tiny_run: Path, tiny_options: tuple[str, ...], tmp_path: Path
) -> None:
    out = shutil.copytree(tiny_run, tmp_path / "run")
    command = ("run", tiny_scenes, *tiny_options, "--out", out)
    assert "No weights at" in complaint(say(*command, "--teacher.weights", "nowhere.safetensors"))
    code, said, _ = say(*command)
    assert code == 0 and "  epoch " not in said, "the finished teacher is taken back"


# Real processes.


@pytest.mark.parametrize(
    ("event", "path"),
    [("open", "teacher/checkpoints/last.ckpt.part"), ("rename", "seed3/table1_printed/plain/evaluation/stage.json")],
    ids=["while a network trains", "while nothing trains"],
)
def test_ctrl_c_ends_with_one_line_and_the_same_command_resumes(
    event: str,
    path: str,
    tiny_scenes: Path,
    tiny_run: Path,
    tiny_options: tuple[str, ...],
    commands: Any,
    tmp_path: Path,
) -> None:
    command = ("run", tiny_scenes, "--out", tmp_path / "out", *tiny_options)
    ended = commands(*command, stop={"event": event, "path": path, "count": 2, "how": "interrupt"})
    assert ended.code == 130, ended.out + ended.err
    line = "scenedistill: stopped. The same command goes on from where it was."
    assert [part for part in ended.err.splitlines() if part.strip()][-1] == line
    assert "Traceback" not in ended.err and "Detected" not in ended.err + ended.out
    ended = commands(*command)
    assert ended.code == 0
    for network in ("teacher", "table1_printed/plain", "table1_printed/dkd"):
        ours, theirs = (
            json.loads((folder / "seed3" / network / "stage.json").read_text(encoding="utf-8"))["record"]
            for folder in (tmp_path / "out", tiny_run)
        )
        assert ours["weights_hash"] == theirs["weights_hash"], network


def test_commands_that_train_nothing_do_not_load_what_trains(tiny_scenes: Path, tmp_path: Path) -> None:
    commands = [
        ["--help"],
        ["--version"],
        [],
        ["data", "list"],
        ["data", "check", str(tiny_scenes)],
        ["split", str(tiny_scenes), "split.csv"],
        ["split", "--help"],
        ["data", "chek"],
    ]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    script = Path(__file__).with_name("loaded_modules.py")
    words = [sys.executable, str(script), "torch,lightning,timm,torchvision", "commands", json.dumps(commands)]
    ended = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "split.csv").is_file() and "Did you mean check?" in ended.stderr


def test_the_module_runs_as_a_program(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "-m", "scenedistill.cli", "data", "chek"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert "Did you mean check?" in ended.stderr and "Traceback" not in ended.stderr


@pytest.fixture
def training(commands: Any, tiny_scenes: Path, tiny_options: tuple[str, ...], tmp_path: Path) -> Iterator[Any]:
    """`scenedistill run` in a process of its own, in the second of its teacher's thousand epochs."""
    words = ("run", tiny_scenes, "--out", tmp_path / "out", *tiny_options, "--teacher.fit.epochs", "1000")
    with commands.start(*words, whole=True) as program:
        program.wait_for("epoch 2/1000")
        yield program


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
def test_ctrl_c_ends_a_real_process_with_130_and_leaves_a_checkpoint(training: Any, tmp_path: Path) -> None:
    os.kill(training.pid, signal.SIGINT)
    ended = training.wait()
    assert ended.code == 130
    assert ended.err.strip().splitlines()[-1].startswith("scenedistill: stopped.")
    assert (tmp_path / "out" / "seed3" / "teacher" / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
@pytest.mark.parametrize("gap", [0.02, 0.3])
def test_a_second_ctrl_c_right_after_the_first_changes_nothing(gap: float, training: Any) -> None:
    for _ in range(3):
        os.kill(training.pid, signal.SIGINT)
        time.sleep(gap)
    ended = training.wait()
    assert ended.code == 130
    assert "Traceback" not in ended.err and "Exception ignored" not in ended.err
    assert ended.err.strip().splitlines()[-1].startswith("scenedistill: stopped.")


def test_the_previous_ctrl_c_handler_is_restored() -> None:
    before = signal.getsignal(signal.SIGINT)
    with once_interrupted(leaving=False):
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # one and the same
    assert signal.getsignal(signal.SIGINT) is before


def test_a_folder_named_like_markup_is_printed_literally(
    say: Say, tiny_scenes: Path, tiny_options: tuple[str, ...], tmp_path: Path
) -> None:
    name = "weird [/x] [v2] :car: #1"
    code, out, err = say("teacher", tiny_scenes, "--out", name, "--results", "[b].json", *tiny_options)
    assert code == 0, err
    assert f"Everything lies in {name}: " in out and "Result written to [b].json" in out
    lost = complaint(say("report", "no [/such] :car:"))
    assert "no [/such] :car: is not a folder" in lost


def test_names_that_are_not_utf8_are_refused_with_one_line(
    say: Say, scenes: Path, tiny_options: tuple[str, ...], tmp_path: Path
) -> None:
    odd = scenes / "river" / os.fsdecode(b"M\xfcller.png")
    shutil.copy(scenes / "river" / "00.png", odd)
    for command in (("run", scenes, *tiny_options), ("split", scenes, "split.csv"), ("data", "check", scenes)):
        words = complaint(say(*command))
        assert "1 name in " in words and "is not UTF-8: river/M\\xfcller.png. Rename them" in words
    odd.unlink()
    (scenes / "river").rename(scenes / os.fsdecode(b"fl\xfcsse"))
    assert "9 names in" in (words := complaint(say("split", scenes, "split.csv"))) and "fl\\xfcsse" in words
    shutil.copytree(scenes, tmp_path / os.fsdecode(b"\xfc"))
    assert "Traceback" not in say("split", tmp_path / os.fsdecode(b"\xfc"), "split.csv")[2]


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        (
            "--teacher.fit.batch_size",
            "13",
            "--teacher.fit.batch_size 13 cannot be made of --teacher.images_per_class 4",
        ),
        ("--teacher.images_per_class", "1", "--teacher.images_per_class is 1; a triplet needs 2 or more"),
        ("--student.fit.batch_size", "1", "Choose another --student.fit.batch_size"),
        ("--student.name", "coat_tiny", "CoaT does not call its stages"),
        ("--teacher.checkpoint", "net.pth", "give them with --teacher.weights"),
        ("--teacher.checkpoint", "timm.safetensors", "give them with --teacher.weights"),
    ],
)
def test_settings_that_no_training_accepts_are_refused_before_images_are_decoded(
    option: str, value: str, words: str, say: Say, scenes: Path, tiny_options: tuple[str, ...], tmp_path: Path
) -> None:
    torch.save({"a": torch.zeros(3)}, tmp_path / "net.pth")
    save_file({"a": torch.zeros(3)}, tmp_path / "timm.safetensors")
    assert words in complaint(say("run", scenes, *tiny_options, option, value))
    assert not (tmp_path / "cache").exists() and not (tmp_path / "runs").exists()


def test_a_full_disk_is_reported_in_one_line_even_inside_another_error(
    say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as problem:
            raise RuntimeError("[enforce fail at inline_container.cc] unexpected pos 64 vs 0") from problem

    build, _ = COMMANDS["data"]
    monkeypatch.setitem(COMMANDS, "data", (build, full))
    assert "the disk is full" in complaint(say("data", "list"))


def test_a_file_that_may_not_be_opened_is_not_said_to_be_written(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", "scenes")

    build, _ = COMMANDS["data"]
    monkeypatch.setitem(COMMANDS, "data", (build, denied))
    assert "scenes cannot be read or written: Permission denied." in complaint(say("data", "list"))


def test_settings_that_stand_for_billions_of_values_are_refused_at_once(say: Say, scenes: Path, tmp_path: Path) -> None:
    lines = [
        "a0: &a0 [x, x, x, x]",
        *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}, *a{n - 1}]" for n in range(1, 30)),
    ]
    (tmp_path / "laughs.yaml").write_text("\n".join(lines), encoding="utf-8")
    assert "stands for more than 100,000 values" in complaint(say("run", scenes, "--config", "laughs.yaml"))
    (tmp_path / "tag.yaml").write_text("teacher: !!python/object/apply:os.getcwd []", encoding="utf-8")
    assert say("run", scenes, "--config", "tag.yaml")[0] == 2


def test_data_check_names_unreadable_images_and_copies(say: Say, scenes: Path) -> None:
    assert "no image is a copy of another" in say("data", "check", scenes)[1]
    shutil.copy(scenes / "river" / "00.png", scenes / "river" / "copy.png")
    shutil.copy(scenes / "river" / "01.png", scenes / "fields" / "stray.png")
    code, out, _ = say("data", "check", scenes)
    assert code == 0 and "2 of 34 images are copies of others" in out
    assert "lie under more than one class: fields/stray.png = river/01.png" in out
    (scenes / "river" / "02.png").write_bytes(b"no image")
    code, out, _ = say("data", "check", scenes)
    assert code == 1 and "cannot be read: river/02.png" in out
