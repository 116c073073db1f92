"""The whole experiment on tiny scenes: what it leaves, that each stage is done once, and what it refuses."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import os
import re
import shlex
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
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
from scenedistill.data.batches import ScenePart
from scenedistill.data.scenes import scan
from scenedistill.data.splits.draw import make_split
from scenedistill.data.splits.files import read_split, write_split
from scenedistill.experiments.context import Experiment, SeedContext
from scenedistill.experiments.evaluate import evaluate
from scenedistill.experiments.results.record import Result, read_result
from scenedistill.experiments.results.table import result_table
from scenedistill.experiments.stages.students import plain_student, student_settings, train_students
from scenedistill.experiments.stages.teacher import teacher_settings, train_teacher
from scenedistill.experiments.stages.testing import test as look
from scenedistill.metrics.outputs import OUTPUTS, load_outputs
from scenedistill.metrics.predict import predict_logits
from scenedistill.models.create import build_teacher
from scenedistill.models.files import NetCard, save_net, weights_hash
from scenedistill.training.runs import Stage

STUDENTS = ["table1_printed", "lcnet_035"]
SEEDS = [0, 1]
WEIGHTS = "weights.safetensors"

Config = Callable[..., RunConfig]


@dataclasses.dataclass
class Done:
    """A finished run: its result and what it printed."""

    result: Result
    said: str

    @property
    def trained(self) -> int:
        """Number of epochs it trained."""
        return self.said.count("  epoch ")


def do(data: Path, out: Path, config: RunConfig, **more: Any) -> Done:
    said = io.StringIO()
    result = run(data, out, config, console=Console(file=said, width=300), **more)
    return Done(result, said.getvalue())


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Makes the settings of a tiny run with two seeds and two students, one epoch each."""
    cache = tmp_path_factory.mktemp("run-cache") / "40"

    def make(**changes: Any) -> RunConfig:
        fit = FitConfig(epochs=1, batch_size=16, lr=0.02, warmup_epochs=0)
        settings = RunConfig(
            image_size=32,
            seeds=SEEDS,
            students=STUDENTS,
            data=DataConfig(train_ratio=0.5, stored_size=40, cache_dir=cache),
            teacher=TeacherConfig(name="table1_printed", weights="none", min_oa=0.0, fit=TeacherFitConfig(**vars(fit))),
            student=StudentConfig(knowledge_views=0, fit=StudentFitConfig(**vars(fit))),
            machine=MachineConfig(accelerator="cpu", precision="fp32"),
        )
        return dataclasses.replace(settings, **changes)

    return make


@pytest.fixture(scope="module")
def finished(tiny_scenes: Path, config: Config, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    """A finished run: its folder and what it told. Read only: copy the folder to go on in it."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    return out, do(tiny_scenes, out, config(), command="scenedistill run scenes")


@pytest.fixture
def copy(finished: tuple[Path, Done], tmp_path: Path) -> Path:
    """A copy of the finished run's folder."""
    return Path(shutil.copytree(finished[0], tmp_path / "tiny"))


def named(student: StudentConfig, name: str = STUDENTS[0]) -> StudentConfig:
    return dataclasses.replace(student, name=name)


def stages(out: Path) -> list[Path]:
    return [out / f"seed{seed}" / part for seed in SEEDS for part in ("teacher", *(f"{s}/plain" for s in STUDENTS))] + [
        out / f"seed{seed}" / student / "dkd" for seed in SEEDS for student in STUDENTS
    ]


def test_every_network_has_a_row_and_a_folder(finished: tuple[Path, Done]) -> None:
    out, done = finished
    rows = [(row.variant, row.student, row.teacher, row.seed) for row in done.result.rows]
    assert sorted(rows, key=str) == sorted(
        (
            row
            for seed in SEEDS
            for row in (
                ("teacher", None, "table1_printed", seed),
                *(("plain", student, None, seed) for student in STUDENTS),
                *(("dkd", student, "table1_printed", seed) for student in STUDENTS),
            )
        ),
        key=str,
    )
    assert done.trained == 8  # two distilled students side by side
    assert all((folder / WEIGHTS).is_file() for folder in stages(out))
    logged = [folder for folder in stages(out) if folder.name != "dkd"] + list(out.glob("seed*/together-*"))
    assert len(logged) == 8
    for folder in logged:
        assert (folder / "logs" / "attempt_0" / "metrics.csv").stat().st_size > 0
        assert list((folder / "tensorboard").glob("events.*"))
        assert not list((folder / "checkpoints").glob("*")), "the optimiser's state is of no more use"


def test_the_folder_says_how_to_repeat_the_run(finished: tuple[Path, Done], tiny_scenes: Path) -> None:
    out, done = finished
    settings = yaml.safe_load((out / "settings.yaml").read_text(encoding="utf-8"))
    assert settings["students"] == STUDENTS and settings["student"]["fit"]["lr"] == 0.02
    index = scan(tiny_scenes)
    for seed in SEEDS:
        split = read_split(out / f"seed{seed}" / "split.csv", index)
        assert split.hash == make_split(index, 0.5, seed).hash == done.result.split_hash[str(seed)]  # type: ignore[index]
    stage = json.loads((out / "seed0" / "teacher" / "stage.json").read_text(encoding="utf-8"))
    assert stage["record"].pop("images")["root"] == str(tiny_scenes.resolve()), "for those who open the run later"
    assert str(tiny_scenes) not in json.dumps(stage) + (out / "summary.json").read_text(encoding="utf-8")


def test_the_test_split_is_seen_once_and_kept(finished: tuple[Path, Done]) -> None:
    out, done = finished
    oa = {(row.variant, row.student, row.seed): row.oa for row in done.result.rows}
    for seed in SEEDS:
        folder = out / f"seed{seed}" / STUDENTS[0] / "dkd" / "evaluation"
        with (folder / "test_confusion.csv").open(encoding="utf-8", newline="") as file:
            table = list(csv.reader(file))
        counts = [[int(cell) for cell in row[1:]] for row in table[1:]]
        assert [row[0] for row in table[1:]] == ["car park", "fields", "forêt", "river"]
        assert [sum(row) for row in counts] == [8] * 4
        assert sum(counts[i][i] for i in range(4)) / 32 == oa["dkd", STUDENTS[0], seed]
        assert (folder / "test_confusion.png").read_bytes().startswith(b"\x89PNG")


def test_the_summary_is_a_result_under_its_name(finished: tuple[Path, Done], tiny_scenes: Path, tmp_path: Path) -> None:
    out, done = finished
    shutil.copy(out / "summary.json", tmp_path / "tiny.json")
    result = read_result(tmp_path / "tiny.json")
    assert result.command == "scenedistill run scenes"
    assert (result.data, result.pixels, result.train_ratio) == (tiny_scenes.name, 32, 0.5)
    assert result.epochs == {"teacher": 1, "student": 1}
    assert len(result.rows) == len(done.result.rows) == 10
    assert all(row.parameters and row.milliseconds and row.more["train_seconds"] is not None for row in result.rows)
    summary = (out / "summary.md").read_text(encoding="utf-8")
    assert summary.startswith("# tiny") and all(student in summary for student in STUDENTS)


def test_a_second_call_trains_nothing(
    copy: Path, finished: tuple[Path, Done], tiny_scenes: Path, config: Config
) -> None:
    before = {path: path.stat().st_mtime_ns for path in copy.rglob(f"seed*/**/{WEIGHTS}")}
    again = do(tiny_scenes, copy, config(), command="scenedistill run scenes")
    assert again.trained == 0
    assert again.said.count("done before with the same settings") == 10
    assert again.result.rows == finished[1].result.rows
    assert {path: path.stat().st_mtime_ns for path in copy.rglob(f"seed*/**/{WEIGHTS}")} == before


def test_another_seed_is_added_to_a_finished_run(copy: Path, tiny_scenes: Path, config: Config) -> None:
    more = do(tiny_scenes, copy, config(seeds=[0, 1, 2], students=STUDENTS[:1]))
    assert more.trained == 3
    assert len(more.result.rows) == 9


def test_a_students_setting_redoes_the_students_alone_and_comes_back(
    copy: Path, tiny_scenes: Path, config: Config
) -> None:
    changed = config(seeds=[0])
    changed.student.fit.lr = 0.05
    other = do(tiny_scenes, copy, changed)
    assert other.trained == 3  # the two distilled ones side by side
    assert other.said.count("done before") == 1 and "seed0/teacher: done before" in other.said
    assert "seed0/table1_printed/dkd: other settings than before; the old one is now dkd.previous-1" in other.said
    back = do(tiny_scenes, copy, config(seeds=[0]))
    assert back.trained == 0, "what was moved aside is taken back"


def test_a_teachers_setting_redoes_the_distilled_students_too(copy: Path, tiny_scenes: Path, config: Config) -> None:
    changed = config(seeds=[0], students=STUDENTS[:1])
    changed.teacher.margin = 0.2
    other = do(tiny_scenes, copy, changed)
    assert other.trained == 2
    assert "table1_printed/plain: done before" in other.said


def test_changed_loss_weights_leave_the_plain_student(copy: Path, tiny_scenes: Path, config: Config) -> None:
    changed = config(seeds=[0], students=STUDENTS[:1])
    changed.student.losses = {"da": 0.5}
    assert do(tiny_scenes, copy, changed).trained == 1


def test_a_given_teacher_is_used_without_training(
    finished: tuple[Path, Done], tiny_scenes: Path, config: Config, tmp_path: Path
) -> None:
    theirs = finished[0] / "seed0" / "teacher" / WEIGHTS
    given = config(seeds=[0], students=STUDENTS[:1])
    given.teacher = TeacherConfig(checkpoint=theirs, min_oa=0.0)
    done = do(tiny_scenes, tmp_path / "given", given, parts=("teacher", "distilled"))
    assert done.trained == 1
    net, card = load_net(tmp_path / "given" / "seed0" / "teacher" / WEIGHTS)
    assert weights_hash(net) == weights_hash(load_net(theirs)[0])
    assert card.name == "table1_printed"
    assert {row.teacher for row in done.result.rows} == {"table1_printed"}, "its own name, not the settings' default"
    ours, whole = (
        {row.variant: row.oa for row in result.rows if row.seed == 0 and row.student in (None, STUDENTS[0])}
        for result in (done.result, finished[1].result)
    )
    assert ours == {"teacher": whole["teacher"], "dkd": whole["dkd"]}, "the same teacher teaches the same"

    # another file of the same name is not taken for the first
    given.teacher = TeacherConfig(checkpoint=finished[0] / "seed1" / "teacher" / WEIGHTS, min_oa=0.0)
    with pytest.raises(UserError, match="was taken from another file"):
        do(tiny_scenes, tmp_path / "given", given)


def test_a_teacher_of_other_classes_or_bands_is_refused(
    finished: tuple[Path, Done], tiny_scenes: Path, config: Config, tmp_path: Path
) -> None:
    given = config(seeds=[0])
    given.teacher.checkpoint = finished[0] / "seed0" / "teacher" / WEIGHTS
    few = tmp_path / "few"
    shutil.copytree(tiny_scenes, few)
    (few / "river").rename(few / "lake")
    given.data.cache_dir = tmp_path / "cache"
    with pytest.raises(UserError, match="Only one of them has: lake, river"):
        do(few, tmp_path / "out", given)
    given.data = DataConfig(train_ratio=0.5, stored_size=32, cache_dir=tmp_path / "cache1", bands=1)
    with pytest.raises(UserError, match=r"takes 3 bands and --data\.bands is 1"):
        do(tiny_scenes, tmp_path / "out", given)


def test_a_teacher_of_another_image_size_is_reported_and_used(
    finished: tuple[Path, Done], tiny_scenes: Path, config: Config, tmp_path: Path
) -> None:
    given = config(seeds=[0], students=STUDENTS[:1], image_size=40)
    given.teacher.checkpoint = finished[0] / "seed0" / "teacher" / WEIGHTS
    done = do(tiny_scenes, tmp_path / "out", given, parts=("teacher", "distilled"))
    assert done.trained == 1
    note = "trained on images stored at 40 pixels and seen at 32; here they are stored at 40 and seen at 40"
    assert done.said.count(note) == 1
    folder = tmp_path / "out" / "seed0" / "teacher"
    kept, (net, _) = load_outputs(folder / "evaluation" / OUTPUTS), load_net(folder / WEIGHTS)
    experiment = Experiment.open(tiny_scenes, tmp_path / "out", given, Console(quiet=True))
    part = ScenePart(experiment.images.cache, kept.rows)
    seen = predict_logits(net, part, image_size=40, device=torch.device("cpu"), precision="fp32")
    assert np.abs(seen - kept.logits).max() < 0.02, "it was tested at the size at which it teaches"
    again = do(tiny_scenes, tmp_path / "same", config(seeds=[0], teacher=given.teacher), parts=("teacher",))
    assert "seen at" not in again.said, "nothing to tell where the sizes are the same"


def test_a_teacher_of_one_size_is_refused_at_another(tiny_scenes: Path, config: Config, tmp_path: Path) -> None:
    name, classes = "vit_tiny_patch16_224", scan(tiny_scenes).classes
    net = build_teacher(name, len(classes), image_size=48, dual_attention=False)
    save_net(net, NetCard(name, classes, 3, 48, dual_attention=False), tmp_path / "vit.safetensors")
    given = config(seeds=[0])
    given.teacher.checkpoint = tmp_path / "vit.safetensors"
    with pytest.raises(UserError, match="takes images of 48 pixels alone, and --image_size is 32") as refused:
        do(tiny_scenes, tmp_path / "out", given, parts=("teacher",))
    assert "\n" not in str(refused.value)


def test_another_file_to_start_from_under_the_same_name_is_noticed(
    finished: tuple[Path, Done], tiny_scenes: Path, config: Config, tmp_path: Path
) -> None:
    file, out = tmp_path / "start.safetensors", tmp_path / "out"
    shutil.copy(finished[0] / "seed0" / "teacher" / WEIGHTS, file)
    settings = config(seeds=[0])
    settings.teacher.weights = str(file)
    assert do(tiny_scenes, out, settings, parts=("teacher",)).trained == 1
    assert do(tiny_scenes, out, settings, parts=("teacher",)).trained == 0
    shutil.copy(finished[0] / "seed1" / "teacher" / WEIGHTS, file)
    with pytest.raises(UserError, match=r"was started from another file than .*start\.safetensors, and what follows"):
        do(tiny_scenes, out, settings, parts=("teacher",))

    # a record of a time when no hash was kept, and a file that is there no more, say nothing
    record = json.loads((out / "seed0" / "teacher" / "stage.json").read_text(encoding="utf-8"))
    assert len(record["record"].pop("weights_file_hash")) == 16 and record.pop("checksum")
    (out / "seed0" / "teacher" / "stage.json").write_text(json.dumps(record), encoding="utf-8")
    assert do(tiny_scenes, out, settings, parts=("teacher",)).trained == 0
    file.unlink()
    assert do(tiny_scenes, out, settings, parts=("teacher",)).trained == 0


def test_side_by_side_or_from_kept_knowledge_a_student_is_the_same(
    copy: Path, finished: tuple[Path, Done], tiny_scenes: Path, config: Config, tmp_path: Path
) -> None:
    """The finished run asked its teacher once for both students of a seed."""
    out, done = finished
    assert done.said.count("2 students  epoch 1/1") == len(SEEDS)
    together = [json.loads((out / "seed0" / s / "dkd" / "stage.json").read_text())["record"] for s in STUDENTS]
    assert [record["together"] for record in together] == [2, 2]
    assert set(together[0]["last_epoch"]) == {"ce", "da", "ss", "train_oa"}
    assert not list(out.rglob("last.ckpt"))

    shutil.rmtree(copy / "seed0" / STUDENTS[0] / "dkd")
    again = do(tiny_scenes, copy, config())
    assert again.trained == 1, "the other student is done"
    record = json.loads((copy / "seed0" / STUDENTS[0] / "dkd" / "stage.json").read_text())["record"]
    assert record["weights_hash"] == together[0]["weights_hash"] and record["together"] == 1

    kept = config(seeds=[0], students=STUDENTS[:1])
    kept.student.knowledge_views = 3
    first = do(tiny_scenes, copy, kept)
    assert "knowledge of 1 views x 32 images" in first.said and first.trained == 1
    kept.student.losses = {"da": 0.5}
    second = do(tiny_scenes, copy, kept)
    assert "1 of them kept before" in second.said and second.trained == 1
    kept.student.losses = {"da": 0.25}
    third = do(tiny_scenes, copy, kept, clear_knowledge=True)
    assert re.search(r"knowledge [0-9a-f]{16} deleted", third.said)
    kept.student.losses = {"da": 0.125}
    assert "0 of them kept before" in do(tiny_scenes, copy, kept).said


def test_two_runs_do_not_work_on_the_same_stage(tiny_scenes: Path, config: Config, tmp_path: Path) -> None:
    settings, out = config(students=STUDENTS[:1]), tmp_path / "out"
    with Stage(out / "seed0" / STUDENTS[0] / "plain", {"of": "another run"}).locked():
        with pytest.raises(UserError, match=rf"plain is being worked on by another process \(process {os.getpid()} on"):
            do(tiny_scenes, out, settings, parts=("plain",))
        assert not (out / "seed0" / STUDENTS[0] / "plain").exists()
        assert do(tiny_scenes, out, dataclasses.replace(settings, seeds=[1]), parts=("plain",)).trained == 1
    assert do(tiny_scenes, out, settings, parts=("plain",)).trained == 1

    # nor is a stage tested while another run has it
    shutil.rmtree(out / "seed0" / STUDENTS[0] / "plain" / "evaluation")
    split = make_split(scan(tiny_scenes), 0.5, 0)
    context = SeedContext(Experiment.open(tiny_scenes, out, settings, Console(quiet=True)), 0, split)
    wanted = (out / "seed0" / STUDENTS[0] / "plain", plain_student(named(settings.student)))
    (stage,) = train_students(context, [wanted], None)
    with stage.locked(), pytest.raises(UserError, match="being worked on"):
        look(context, stage, "plain")


def test_a_teacher_that_another_run_has_replaced_does_not_teach(
    copy: Path, tiny_scenes: Path, config: Config, tmp_path: Path
) -> None:
    context = Experiment.open(tiny_scenes, copy, config(seeds=[0]), Console(quiet=True)).of_seed(0)
    teacher = train_teacher(context, copy / "seed0" / "teacher")
    assert Stage(teacher.folder, {"of": "another run"}).begin() is not None
    with pytest.raises(UserError, match="teacher is no longer this run's teacher"):
        train_students(context, [(copy / "seed0" / "new" / "dkd", named(context.config.student))], teacher)


def test_a_teacher_below_the_minimum_accuracy_is_refused_with_the_reason(
    copy: Path, tiny_scenes: Path, config: Config, tmp_path: Path
) -> None:
    strict = config(seeds=[0], students=STUDENTS[:1])
    strict.teacher.min_oa = 1.0
    strict.student.losses = {"da": 0.1}  # a student that is not there yet
    strict.teacher = dataclasses.replace(strict.teacher, checkpoint=copy / "seed0" / "teacher" / WEIGHTS)
    with pytest.raises(UserError) as refused:
        do(tiny_scenes, tmp_path / "strict", strict)
    words = str(refused.value)
    assert "of 32 training images (chance is 25.0%), and needs 100.0% to teach" in words
    assert "--teacher.min_oa" in words


def test_a_changed_minimum_accuracy_does_not_train_the_teacher_again(
    copy: Path, tiny_scenes: Path, config: Config
) -> None:
    strict = config(seeds=[0], students=STUDENTS[:1])
    strict.teacher.min_oa = 1.0
    strict.student.losses = {"da": 0.1}
    with pytest.raises(UserError, match=r"needs 100\.0% to teach"):
        do(tiny_scenes, copy, strict)
    strict.teacher.min_oa = 0.0
    done = do(tiny_scenes, copy, strict)
    assert "teacher: done before with the same settings" in done.said


def test_images_that_have_changed_are_noticed(copy: Path, tiny_scenes: Path, config: Config, tmp_path: Path) -> None:
    other = tmp_path / tiny_scenes.name
    shutil.copytree(tiny_scenes, other)
    settings = config(students=STUDENTS[:1])
    settings.data.cache_dir = tmp_path / "cache"
    assert "not the images" not in do(other, copy, settings, parts=("plain",)).said
    image = sorted(other.glob("*/*"))[0]
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(image)
    done = do(other, copy, settings, parts=("plain",))
    assert f"these are not the images that {copy / 'seed0'} was begun with" in done.said
    assert "plain: done before with the same settings" in done.said


def test_the_minimum_accuracy_of_a_teacher_is_half_way_from_chance_to_one_half(
    tiny_scenes: Path, config: Config, tmp_path: Path
) -> None:
    validated = config(seeds=[0], students=STUDENTS[:1])
    validated.data = dataclasses.replace(validated.data, val_fraction=0.25)
    validated.teacher.min_oa = None
    validated.teacher.fit.lr = 1e-9  # learns nothing
    with pytest.raises(UserError, match=r"of 8 validation images \(chance is 25\.0%\), and needs 37\.5% to teach"):
        do(tiny_scenes, tmp_path / "out", validated)


def test_evaluating_again_gives_the_same_result(finished: tuple[Path, Done], tiny_scenes: Path, tmp_path: Path) -> None:
    out, done = finished
    said = io.StringIO()
    metrics = evaluate(
        out / "seed1" / STUDENTS[0] / "dkd" / WEIGHTS,
        tiny_scenes,
        tmp_path / "figures",
        split=out / "seed1" / "split.csv",
        precision="fp32",
        console=Console(file=said, width=300),
    )
    row = next(row for row in done.result.rows if row.key[:2] == (STUDENTS[0], "2dkd") and row.seed == 1)
    assert metrics.oa == row.oa and metrics.kappa == pytest.approx(row.kappa)
    assert f"table1_printed on 32 images: oa {row.oa:.4f}" in said.getvalue()
    assert {path.name for path in (tmp_path / "figures").iterdir()} >= {"metrics.json", "test_confusion.csv"}


def test_evaluating_a_run_names_its_students_and_the_commands(
    finished: tuple[Path, Done], tiny_scenes: Path, tmp_path: Path
) -> None:
    out, quiet = finished[0], Console(quiet=True)
    with pytest.raises(UserError, match="is a run's folder and evaluate tests one network") as refused:
        evaluate(out, tiny_scenes, tmp_path / "figures", console=quiet)
    student = out / "seed0" / STUDENTS[1] / "dkd"
    assert shlex.join(["scenedistill", "evaluate", str(student), str(tiny_scenes)]) in str(refused.value)
    assert str(refused.value).count("\n") == len(SEEDS) * len(STUDENTS) * 2
    with pytest.raises(UserError, match="holds no trained student"):
        evaluate(tiny_scenes, tiny_scenes, tmp_path / "figures", console=quiet)
    by_folder = evaluate(student, tiny_scenes, tmp_path / "figures", console=quiet)
    assert by_folder.oa == evaluate(student / WEIGHTS, tiny_scenes, tmp_path / "figures", console=quiet).oa


def test_evaluating_takes_a_subset_of_the_classes_and_refuses_others(
    finished: tuple[Path, Done], tiny_scenes: Path, tmp_path: Path
) -> None:
    weights = finished[0] / "seed0" / "teacher" / WEIGHTS
    for name in ("fields", "river"):
        shutil.copytree(tiny_scenes / name, tmp_path / "two" / name)
    metrics = evaluate(weights, tmp_path / "two", tmp_path / "figures", console=Console(quiet=True))
    assert metrics.confusion.shape == (4, 4)
    assert metrics.confusion.sum(1).tolist() == [0, 16, 0, 16]
    (tmp_path / "two" / "river").rename(tmp_path / "two" / "lake")
    with pytest.raises(UserError, match="does not know lake; it knows car park, fields, forêt, river"):
        evaluate(weights, tmp_path / "two", tmp_path / "figures", console=Console(quiet=True))


@pytest.mark.slow
def test_the_best_epoch_is_reported_beside_the_last(tiny_scenes: Path, config: Config, tmp_path: Path) -> None:
    """Two students side by side, and one of them alone: the same best epoch, by the validation images alone."""
    wanted, out = config(seeds=[0], best_epoch=True), tmp_path / "out"
    wanted.data = dataclasses.replace(wanted.data, val_fraction=0.25)
    wanted.student.fit = dataclasses.replace(wanted.student.fit, epochs=4, lr=0.1)
    done = do(tiny_scenes, out, wanted)
    assert done.said.count("its best epoch on the validation images was ") == 4
    assert "OA of the best epoch (%)" in result_table(done.result)
    (log,) = out.glob("seed0/together-*/logs/attempt_0/metrics.csv")
    with log.open() as file:
        epochs = [row for row in csv.DictReader(file) if row[f"{STUDENTS[0]} dkd val_oa"]]
    earlier = 0
    for student in STUDENTS:
        folder = out / "seed0" / student / "dkd"
        best = json.loads((folder / "stage.json").read_text())["record"]["best"]
        found = [float(row[f"{student} dkd val_oa"]) for row in epochs]
        assert len(found) == 4
        assert best == {"epoch": found.index(max(found)) + 1, "val_oa": pytest.approx(max(found), abs=1e-5)}
        (row,) = (row for row in done.result.rows if row.student == student and row.variant == "dkd")
        assert row.more["best_epoch"] == best["epoch"]
        tested = {
            part: evaluate(
                folder / "best.safetensors",
                tiny_scenes,
                tmp_path / student,
                split=out / "seed0" / "split.csv",
                part=part,
                precision="fp32",
                console=Console(quiet=True),
            ).oa
            for part in ("val", "test")
        }
        assert tested == {"val": pytest.approx(best["val_oa"]), "test": pytest.approx(row.more["best_epoch_oa"])}
        nets = [load_net(folder / name)[0] for name in ("best.safetensors", WEIGHTS)]
        assert (weights_hash(nets[0]) == weights_hash(nets[1])) == (best["epoch"] == 4)
        earlier += best["epoch"] < 4
    assert earlier, "the last epoch must not be the best of all students here"
    assert not list(out.rglob("best"))
    alone = dataclasses.replace(wanted, students=STUDENTS[:1], side_by_side=False)
    again = do(tiny_scenes, tmp_path / "alone", alone)
    told, before = (
        {(row.student, row.variant): (row.oa, row.more.get("best_epoch_oa")) for row in each.result.rows}
        for each in (again, done)
    )
    assert told.items() <= before.items()
    with pytest.raises(UserError, match=r"--best_epoch true needs validation images\. Give --data\.val_fraction"):
        do(tiny_scenes, tmp_path / "none", config(best_epoch=True))


def test_a_loss_on_feature_maps_runs_the_teacher_and_stores_nothing(
    copy: Path, tiny_scenes: Path, config: Config
) -> None:
    settings = config(seeds=[0])
    settings.student.method, settings.student.knowledge_views = "reviewkd", 3
    done = do(tiny_scenes, copy, settings)
    assert "knowledge" not in done.said and "2 students  epoch 1/1" in done.said
    assert [row.variant for row in done.result.rows].count("reviewkd") == 2


def test_a_split_from_a_file_is_used_for_every_seed(tiny_scenes: Path, config: Config, tmp_path: Path) -> None:
    index = scan(tiny_scenes)
    split = make_split(index, 0.25, seed=9)
    write_split(split, index, tmp_path / "split.csv")
    read = config(students=STUDENTS[:1])
    read.data = dataclasses.replace(read.data, split_file=tmp_path / "split.csv")
    done = do(tiny_scenes, tmp_path / "out", read, parts=("plain",))
    assert done.result.train_ratio is None
    assert done.result.split_hash == {"0": split.hash, "1": split.hash}
    assert "16 training, 0 validation, 48 test images" in done.said
    assert [row.variant for row in done.result.rows] == ["plain", "plain"]
    assert done.trained == 2


def test_a_data_folder_may_have_any_name(tiny_scenes: Path, config: Config, tmp_path: Path) -> None:
    odd = tmp_path / "[red] mes scènes"
    shutil.copytree(tiny_scenes, odd)
    settings = config(seeds=[0], students=STUDENTS[:1])
    settings.data.cache_dir = tmp_path / "cache"
    done = do(odd, tmp_path / "[bold]out", settings, parts=("plain",))
    assert "[red] mes scènes: 64 images" in done.said
    assert done.result.data == odd.name
    assert (tmp_path / "[bold]out" / "summary.md").is_file()


CHANGES: dict[str, tuple[Callable[[RunConfig], object], str]] = {
    "no seed": (lambda c: c.seeds.clear(), "--seeds is []; expected one or more"),
    "a negative seed": (lambda c: c.seeds.append(-1), "each once"),
    "a seed twice": (lambda c: c.seeds.append(0), "each once"),
    "no pixels": (lambda c: setattr(c, "image_size", 0), "--image_size is 0"),
    "no epochs": (lambda c: setattr(c.student.fit, "epochs", 0), "--student.fit.epochs is 0; expected more than 0"),
    "no batch": (lambda c: setattr(c.teacher.fit, "batch_size", 0), "--teacher.fit.batch_size is 0"),
    "an average of nothing": (lambda c: setattr(c.student.fit, "ema_decay", 1.0), "--student.fit.ema_decay is 1.0"),
    "views of nothing": (lambda c: setattr(c.teacher.fit, "first_size", 0.0), "--teacher.fit.first_size is 0.0"),
    "a norm below zero": (lambda c: setattr(c.student.fit, "clip_norm", -1.0), "--student.fit.clip_norm is -1.0"),
    "a decay below zero": (lambda c: setattr(c.teacher.fit, "weight_decay", -1.0), "--teacher.fit.weight_decay is -1"),
    "too smooth labels": (lambda c: setattr(c.teacher.fit, "label_smoothing", 2.0), "--teacher.fit.label_smoothing is"),
    "an accuracy in percent": (lambda c: setattr(c.teacher, "min_oa", 60.0), "--teacher.min_oa is 60.0; expected"),
    "random weights frozen": (lambda c: setattr(c.teacher, "frozen_stages", 1), "is 1 and --teacher.weights none"),
    "no bands": (lambda c: setattr(c.data, "bands", 0), "--data.bands is 0; expected 1 or more"),
    "fewer workers than none": (lambda c: setattr(c.data, "workers", -1), "--data.workers is -1"),
    "fewer threads than none": (lambda c: setattr(c.machine, "threads", -1), "--machine.threads is -1"),
    "no rate": (lambda c: setattr(c.student.fit, "lr", 0.0), "--student.fit.lr is 0.0"),
    "a crop of more than all": (lambda c: setattr(c.views, "scale", (0.5, 1.5)), "--views.scale"),
    "a shape that is none": (lambda c: setattr(c.views, "ratio", (0.0, 1.0)), "--views.ratio is width : height"),
    "too much colour": (lambda c: setattr(c.views, "contrast", 1.5), "--views.contrast is 1.5; expected 0 to 1"),
    "fewer views than none": (lambda c: setattr(c.student, "knowledge_views", -1), "--student.knowledge_views is -1"),
    "labels of a student": (lambda c: setattr(c.student.fit, "label_smoothing", 0.1), "of a teacher's cross-entropy"),
    "a temperature of zero": (
        lambda c: c.student.loss_options.update(ss={"temperature": 0.0}),
        "Loss 'ss': temperature is 0; expected more than 0.",
    ),
    "the plain method": (lambda c: setattr(c.student, "method", "plain"), "always trained for comparison"),
    "an unknown method": (lambda c: setattr(c.student, "method", "dkdd"), "No method is called 'dkdd'"),
    "an unknown loss": (lambda c: c.student.losses.update(dda=1.0), "No loss is called dda. There are: ce, da, ss, at"),
    "a negative weight": (
        lambda c: c.student.losses.update(da=-1.0),
        "The weight of da is -1; weights are numbers of",
    ),
    "an unknown option": (lambda c: c.student.loss_options.update(ss={"heat": 1.0}), "Its options: cosine"),
    "an unknown student": (lambda c: c.students.append("table1_resent"), "Did you mean table1_resnet"),
    "an unknown teacher": (lambda c: setattr(c.teacher, "name", "resnet1001"), "Did you mean resnet101"),
    "an uneven batch": (lambda c: setattr(c.machine, "devices", 3), "batch_size 16 cannot be shared evenly by 3"),
    "stored too small": (lambda c: setattr(c.data, "stored_size", 16), "stored at 16 pixels and wanted at 32"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_wrong_settings_are_refused_before_anything_is_written(
    change: str, tiny_scenes: Path, config: Config, tmp_path: Path
) -> None:
    settings = config(seeds=[0], students=STUDENTS[:1])
    CHANGES[change][0](settings)
    with pytest.raises(UserError) as refused:
        do(tiny_scenes, tmp_path / "out", settings)
    assert CHANGES[change][1] in str(refused.value)
    assert str(refused.value).count("\n") <= 1
    assert not (tmp_path / "out").exists()


def test_a_network_that_has_a_stage_is_not_tried_again(
    tiny_scenes: Path, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where epochs, and so the number of stored views, follow from the number of images."""
    settings = config(seeds=[0], students=STUDENTS[:1])
    settings.student.fit.epochs = settings.student.fit.batch_size = settings.student.knowledge_views = None
    trained = {
        "teacher": teacher_settings(settings.teacher, 2000),
        f"{STUDENTS[0]}/dkd": {"student": student_settings(named(settings.student), 2000)},
    }
    for name, own in trained.items():
        Stage(tmp_path / "out" / "seed0" / name, {"image_size": settings.image_size, **own}).begin()

    class ReachedError(Exception):
        pass

    def reached(*_: Any, **__: Any) -> None:
        raise ReachedError

    for name in ("try_student", "try_teacher"):
        monkeypatch.setattr(f"scenedistill.experiments.run.{name}", lambda *_: pytest.fail("tried"))
    monkeypatch.setattr(Experiment, "open", reached)
    with pytest.raises(ReachedError):
        do(tiny_scenes, tmp_path / "out", settings)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: setattr(c.data, "train_ratio", 1.5), "The train ratio is 1.5"),
        (lambda c: setattr(c.data, "train_ratio", 0.05), r"Too few training images \(4\) for 1 device and 4 images of"),
        (lambda c: setattr(c.teacher, "weights", "no/such.pth"), "No weights at no/such.pth"),
        (lambda c: setattr(c, "best_epoch", True), "--best_epoch true needs validation images"),
    ],
)
def test_problems_of_the_image_list_are_reported_before_decoding(
    change: Callable[[RunConfig], object], said: str, tiny_scenes: Path, config: Config, tmp_path: Path
) -> None:
    settings = config(seeds=[0], students=STUDENTS[:1])
    settings.data.cache_dir = tmp_path / "cache"
    change(settings)
    with pytest.raises(UserError, match=said):
        do(tiny_scenes, tmp_path / "out", settings)
    assert not list(tmp_path.iterdir())


def test_a_run_takes_a_few_lines_of_python(tiny_scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCENEDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    config = RunConfig(image_size=32, seeds=[0])
    config.data.train_ratio = 0.5
    config.teacher.name, config.teacher.weights, config.teacher.min_oa = "table1_printed", "none", 0
    config.teacher.fit.epochs = config.student.fit.epochs = 1
    config.machine.accelerator = "cpu"
    result = run(str(tiny_scenes), "tiny", config)
    assert [row.variant for row in result.rows] == ["teacher", "plain", "dkd"]
    assert (tmp_path / "tiny" / "summary.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("part", ["teacher", "distill", "distill without ce, best epoch"])
def test_two_processes_end_with_the_weights_of_one(
    part: str, tiny_scenes: Path, tiny_run: Path, tiny_options: tuple[str, ...], commands: Any, tmp_path: Path
) -> None:
    part, _, more = part.partition(" ")
    network = {"teacher": "teacher", "distill": "table1_printed/dkd"}[part]
    options = [*tiny_options, f"--{'teacher' if part == 'teacher' else 'student'}.fit.epochs", "1"]
    if part == "teacher":
        # AdamW makes whole steps of gradients that are all but 0
        options += ["--teacher.fit.optimizer", "sgd", "--teacher.fit.lr", "0.02"]
    if more:
        options += ["--student.losses", "{ce: 0}"]  # the head then has nothing to learn from
        options += ["--best_epoch", "true", "--data.val_fraction", "0.25"]
    if part == "distill":
        options += ["--teacher.checkpoint", str(tiny_run / "seed3" / "teacher" / WEIGHTS)]
    for devices in (1, 2):
        out = tmp_path / f"{devices}"
        ended = commands(part, tiny_scenes, "--out", out, *options, "--machine.devices", devices)
        assert ended.code == 0, ended.out + ended.err
        assert "Warning" not in ended.err and ended.out.count("  epoch 1/1  ") == 1, ended.out + ended.err
    one, two = (load_net(tmp_path / name / "seed3" / network / WEIGHTS)[0].state_dict() for name in "12")
    for name, tensor in one.items():
        assert torch.allclose(tensor.float(), two[name].float(), rtol=1e-3, atol=1e-4), name
    if more:
        best = [json.loads((tmp_path / name / "seed3" / network / "stage.json").read_text())["record"] for name in "12"]
        assert best[0]["best"] == best[1]["best"] and best[0]["best"]["epoch"] == 1
        assert (tmp_path / "2" / "seed3" / network / "best.safetensors").is_file()
    start = load_net(tiny_run / "seed3" / network / WEIGHTS)[0].state_dict()
    learnt = "backbone.stem.0.weight"
    assert not torch.allclose(one[learnt], start[learnt], atol=1e-4), "an epoch is not three"


def as_torchrun_has_it(rank: int, world: int) -> dict[str, str]:
    """What `torchrun --standalone --nproc_per_node WORLD` tells each process of its place."""
    return {
        "TORCHELASTIC_RUN_ID": "tiny",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
    }


@pytest.mark.slow
def test_processes_that_run_the_whole_program_test_together(
    tiny_scenes: Path, tiny_options: tuple[str, ...], commands: Any, tmp_path: Path
) -> None:
    two = ("--machine.devices", "2", "--machine.strategy", "ddp", "--data.train_ratio", "0.7")
    out = tmp_path / "out"
    command = ("teacher", tiny_scenes, "--out", out, *tiny_options, *two)
    with socket.create_server(("127.0.0.1", 0)) as free:
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    with contextlib.ExitStack() as running:
        programs = [
            running.enter_context(commands.start(*command, environment={**meeting, **as_torchrun_has_it(rank, 2)}))
            for rank in range(2)
        ]
        ended = [program.wait() for program in programs]
    assert not any(program.code for program in ended), "".join(program.out + program.err for program in ended)
    record = json.loads((out / "seed3" / "teacher" / "evaluation" / "stage.json").read_text(encoding="utf-8"))["record"]
    index, silent = scan(tiny_scenes), Console(quiet=True)
    split = read_split(out / "seed3" / "split.csv", index)
    assert record["images"] == len(split.test)
    alone = evaluate(
        out / "seed3" / "teacher" / WEIGHTS,
        tiny_scenes,
        tmp_path / "alone",
        split=out / "seed3" / "split.csv",
        precision="fp32",
        console=silent,
    )
    assert (record["oa"], record["kappa"]) == (alone.oa, alone.kappa)
