"""A grid on tiny scenes: every cell done once, failures named and passed by, killed and continued, its time told."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console

from scenedistill.commands.grid import command, grid_config, parser
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
from scenedistill.core.disk import disk_full, read_json, write_json
from scenedistill.core.errors import UserError
from scenedistill.data.scenes import scan
from scenedistill.data.splits.draw import assemble
from scenedistill.data.splits.files import read_split, write_split
from scenedistill.experiments.grid.board import Board
from scenedistill.experiments.grid.cells import Cell, dependencies, plan
from scenedistill.experiments.grid.config import (
    GridConfig,
    MethodConfig,
    check_grid,
    grid_text,
    grid_words,
    student_of,
)
from scenedistill.experiments.grid.local import Ended, Order, reason, share
from scenedistill.experiments.grid.results import finish
from scenedistill.experiments.grid.run import GridOutcome, dry_run, grid
from scenedistill.experiments.grid.scheduler import stored_outputs
from scenedistill.experiments.grid.table import Display, Progress, epochs_of, progress_table, summary_line
from scenedistill.experiments.grid.tuning.config import TuningConfig
from scenedistill.experiments.grid.tuning.search import Candidate
from scenedistill.experiments.grid.work import can_share_teacher_pass, do_cells
from scenedistill.experiments.results.record import read_result
from scenedistill.experiments.run import run
from scenedistill.experiments.stages.teaching import distillation_inputs
from scenedistill.runs.curves import read_curves

ROOT = Path(__file__).resolve().parents[2]
STUDENT = "table1_printed"
METHODS = {
    "plain_no_da": MethodConfig(method="plain", dual_attention=False),
    "plain": MethodConfig(),
    "da": MethodConfig(method="dkd", losses={"ss": 0.0}),
    "dkd": MethodConfig(),
}
WILD = MethodConfig(method="dkd", losses={"da": 1e39})

Make = Callable[..., GridConfig]


@dataclasses.dataclass
class Done:
    outcome: GridOutcome
    said: str


def do(config: GridConfig, out: Path, **more: Any) -> Done:
    said = io.StringIO()
    outcome = grid(config, out, console=Console(file=said, width=300), **more)
    return Done(outcome, said.getvalue())


def trained(out: Path) -> int:
    """Epochs that the cells' logs tell of."""
    return sum(log.read_text(encoding="utf-8").count("  epoch ") for log in out.glob("logs/**/*.log"))


@pytest.fixture(scope="session")
def make(tiny_scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Makes a tiny grid: one data set, one ratio, one epoch each."""
    cache = tmp_path_factory.mktemp("grid-cache") / "40"

    def made(**changes: Any) -> GridConfig:
        fit = FitConfig(epochs=1, batch_size=16, lr=0.02, warmup_epochs=0.0)
        base = RunConfig(
            image_size=32,
            data=DataConfig(stored_size=40, cache_dir=cache),
            teacher=TeacherConfig(name=STUDENT, weights="none", min_oa=0.0, fit=TeacherFitConfig(**vars(fit))),
            student=StudentConfig(knowledge_views=1, fit=StudentFitConfig(**vars(fit))),
            machine=MachineConfig(accelerator="cpu", precision="fp32", threads=1),
        )
        config = GridConfig(
            name="tiny",
            datasets={"scenes": str(tiny_scenes)},
            ratios=[0.5],
            seeds=[0, 1],
            students=[STUDENT],
            methods=deepcopy(METHODS),
            base=base,
        )
        return dataclasses.replace(config, **changes)

    return made


@pytest.fixture(scope="module")
def finished(make: Make, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    """A finished grid. Read only: copy the folder to go on in it."""
    out = tmp_path_factory.mktemp("grids") / "tiny"
    return out, do(make(), out, command="scenedistill grid tiny.yaml")


@pytest.fixture
def copy(finished: tuple[Path, Done], tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished[0], tmp_path / "tiny"))


def test_every_cell_has_its_place_its_row_and_its_log(finished: tuple[Path, Done]) -> None:
    out, done = finished
    assert not done.outcome.failures, done.said
    names = [f"seed{seed}/{STUDENT}/{label}" for seed in (0, 1) for label in METHODS]
    for name in [*names, "seed0/teacher", "seed1/teacher"]:
        assert (out / "scenes-50" / name / "weights.safetensors").is_file(), name
        assert (out / "scenes-50" / name / "evaluation" / "outputs.npz").is_file(), name
        assert "  epoch 1/1" in (out / "logs" / "scenes-50" / f"{name}.log").read_text(encoding="utf-8")
    rows = {(row.variant, row.student, row.teacher, row.seed) for row in done.outcome.results["scenes-50"].rows}
    wanted = {("teacher", None, STUDENT), ("plain", STUDENT, None), ("plain_no_da", STUDENT, None)}
    wanted |= {("da", STUDENT, STUDENT), ("dkd", STUDENT, STUDENT)}
    assert rows == {(*row, seed) for row in wanted for seed in (0, 1)}
    assert trained(out) == 10


def test_results_and_summary_say_what_came_out(finished: tuple[Path, Done], tmp_path: Path) -> None:
    out, done = finished
    shutil.copy(out / "results.json", tmp_path / "tiny.json")
    result = read_result(tmp_path / "tiny.json")
    assert (result.experiment, result.command, result.pixels) == ("tiny", "scenedistill grid tiny.yaml", 32)
    assert result.train_ratio == 0.5 and set(result.split_hash) == {"0", "1"}
    text = (out / "summary.md").read_text(encoding="utf-8")
    assert "## scenes-50: scenes" in text and text.count("(n = 2)") == 3 and "## Failed" not in text
    assert not (out / "failures.json").exists()
    assert "scenes-50/seed1/table1_printed/dkd: OA " in done.said and "10 of 10 done" in done.said
    assert "about " in done.said, "the time left is told as soon as a like cell is done"


def test_the_resolved_grid_is_kept_and_can_be_given_again(finished: tuple[Path, Done], make: Make) -> None:
    settings = parser().parse_args([str(finished[0] / "grid.yaml")])
    assert grid_text(grid_config(settings)) == grid_text(make())


def test_the_second_call_does_nothing_and_another_seed_is_added(copy: Path, make: Make) -> None:
    again = do(make(), copy)
    assert trained(copy) == 10 and "10 of 10 cells were done before" in again.said
    more = do(make(seeds=[0, 1, 2]), copy, only=["plain"])
    assert trained(copy) == 11
    assert len(more.outcome.results["scenes-50"].rows) == 11, "what was done of other methods is told too"
    assert not (copy / "scenes-50" / "seed2" / "teacher").exists(), "plain needs no teacher"


def test_stages_trained_by_run_are_reused(make: Make, tiny_scenes: Path, tmp_path: Path) -> None:
    """And the other way round: the grid makes its cells of the same stages."""
    config = make(seeds=[0], methods={"plain": MethodConfig(), "dkd": MethodConfig()})
    base = dataclasses.replace(config.base, seeds=[0], data=dataclasses.replace(config.base.data, train_ratio=0.5))
    base.student.name = STUDENT
    quiet = Console(quiet=True)
    theirs = run(tiny_scenes, tmp_path / "grid" / "scenes-50", base, console=quiet)
    done = do(config, tmp_path / "grid")
    assert trained(tmp_path / "grid") == 0 and "3 of 3 cells were done before" in done.said
    assert done.outcome.results["scenes-50"].rows == theirs.rows


def test_a_dry_run_lists_and_estimates_and_leaves_no_trace(make: Make, copy: Path, tmp_path: Path) -> None:
    said = io.StringIO()
    seconds = dry_run(make(seeds=[0]), tmp_path / "new", console=Console(file=said, width=300))
    assert not (tmp_path / "new").exists() and seconds and seconds > 0
    for name in ("seed0/teacher", f"seed0/{STUDENT}/plain_no_da", f"seed0/{STUDENT}/dkd"):
        assert re.search(rf"scenes-50/{name} .* to do ", said.getvalue()), said.getvalue()
    assert "0 of 5 done, about" in said.getvalue()
    assert "from finished cells of the same kind for 0 cells, from 3 short measurements for 5" in said.getvalue()

    before = sorted(path for path in copy.rglob("*"))
    said = io.StringIO()
    assert dry_run(make(), copy, console=Console(file=said, width=300)) == 0
    assert "10 of 10 done" in said.getvalue()
    more = dry_run(make(seeds=[0, 1, 2]), copy, jobs=2, console=Console(file=said, width=300))
    assert more and "same kind for 5 cells, from 0 short measurements for 0" in said.getvalue()
    assert sorted(path for path in copy.rglob("*")) == before


def test_a_dry_run_measures_the_images_of_a_manifest(make: Make, tiny_scenes: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"  # no class folders beside the manifest
    flat.mkdir()
    lines = ["path,label"]
    for number, path in enumerate(sorted(tiny_scenes.glob("*/*"))):
        shutil.copy(path, flat / f"{number}{path.suffix}")
        lines.append(f"{number}{path.suffix},{path.parent.name}")
    (flat / "list.csv").write_text("\n".join(lines), encoding="utf-8")
    config = make(seeds=[0], datasets={"flat": str(flat / "list.csv")}, methods={"plain": MethodConfig()})
    config.base.data.cache_dir = tmp_path / "cache"
    assert dry_run(config, tmp_path / "new", console=Console(quiet=True))


def test_cells_read_the_same_stored_outputs_if_teacher_and_inputs_are_the_same(make: Make, tmp_path: Path) -> None:
    own = MethodConfig("kd", mixup=0.5)
    config = make(methods={"kd": MethodConfig(), "dkd": MethodConfig(), "mixed": own, "plain": MethodConfig()})
    board = Board(config, tmp_path, Console(quiet=True))
    kd, dkd, mixed, plain = (stored_outputs(board, Cell("scenes-50", 0, STUDENT, label)) for label in config.methods)
    assert kd == dkd and kd is not None and plain is None
    assert mixed not in (None, kd), "its views are mixed, so the teacher has other outputs for them"


def test_the_best_epoch_of_each_cell_is_reported_on_request(make: Make, tmp_path: Path) -> None:
    config, said = make(seeds=[0], methods={"plain": MethodConfig()}), io.StringIO()
    config.base.best_epoch, config.base.data.val_fraction = True, 0.25
    assert dry_run(config, tmp_path / "new", console=Console(file=said, width=300)) is not None
    done = do(config, tmp_path / "new")
    (row,) = (row for row in done.outcome.results["scenes-50"].rows if row.variant == "plain")
    assert row.more["best_epoch"] == 1 and row.more["best_epoch_oa"] == row.oa
    epochs = trained(tmp_path / "new")
    again = do(config, tmp_path / "new")
    assert trained(tmp_path / "new") == epochs and again.outcome.results["scenes-50"].rows == (
        done.outcome.results["scenes-50"].rows
    )


def test_a_failing_cell_is_named_and_the_others_continue(make: Make, tmp_path: Path) -> None:
    config = make(seeds=[0], methods={"plain": MethodConfig(), "wild": WILD, "dkd": MethodConfig()})
    config.base.teacher.min_oa = 0.0
    out = tmp_path / "out"
    done = do(config, out)
    name = f"scenes-50/seed0/{STUDENT}/wild"
    assert list(done.outcome.failures) == [name]
    reason = done.outcome.failures[name]
    assert reason.startswith("The loss is not a finite number at step 1 (epoch 1)") and "fit.lr is 0.02" in reason
    assert json.loads((out / "failures.json").read_text(encoding="utf-8")) == {name: reason}
    assert f"- `{name}`: {reason}" in (out / "summary.md").read_text(encoding="utf-8")
    assert {row.variant for row in done.outcome.results["scenes-50"].rows} == {"teacher", "plain", "dkd"}

    other = do(config, out, only=["dkd"])
    assert list(other.outcome.failures) == [name], "what was not tried again is still failed"
    config.methods["wild"] = MethodConfig(method="kd")
    assert not do(config, out).outcome.failures and not (out / "failures.json").exists()


@pytest.mark.parametrize("way", ["unreadable", "empty", "one class"])
def test_a_data_set_that_cannot_be_used_leaves_the_others_alone(
    way: str, make: Make, tiny_scenes: Path, tmp_path: Path
) -> None:
    bad = Path(shutil.copytree(tiny_scenes, tmp_path / "bad"))
    reason = {"unreadable": "1 of 64 images in ", "empty": "1 class folder in ", "one class": "has only one class"}[way]
    if way == "unreadable":
        (bad / "river" / "00.png").write_bytes(b"no image")
    elif way == "empty":
        (bad / "empty").mkdir()
    else:
        for folder in sorted(bad.iterdir())[1:]:
            shutil.rmtree(folder)
    both = {"bad": str(bad), "scenes": str(tiny_scenes)}
    config = make(datasets=both, seeds=[0], methods={"plain": MethodConfig()})
    config.base.data.cache_dir = tmp_path / "cache"
    done = do(config, tmp_path / "out")
    assert list(done.outcome.results) == ["scenes-50"] and trained(tmp_path / "out") == 1
    (failure,) = done.outcome.failures.values()
    assert reason in failure and "\n" not in failure
    assert done.said.count("bad-50 is left out: ") == 1
    assert dry_run(config, tmp_path / "out", console=Console(quiet=True)) == 0
    with pytest.raises(UserError, match=re.escape(reason)):
        do(dataclasses.replace(config, datasets={"bad": str(bad)}), tmp_path / "only")


def in_parts(scenes: Path, out: Path) -> Path:
    """The images in a folder for training and one for the test."""
    for number, file in enumerate(sorted(scenes.glob("*/*"))):
        copied = out / ("test", "train")[number % 2] / file.parent.name / file.name
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copied)
    return out


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"ratios": [0.2, 0.5]}, "its folder has a training part of its own. Give one ratio."),
        (
            {"tuning": TuningConfig(factors=[1.0, 2.0])},
            "tuning needs validation images, and its folder has no part val.",
        ),
    ],
)
def test_parts_that_do_not_suit_the_grid_are_refused_before_anything_is_trained(
    changes: dict[str, Any], reason: str, make: Make, tiny_scenes: Path, tmp_path: Path
) -> None:
    folder = in_parts(tiny_scenes, tmp_path / "parts")
    config = make(
        datasets={"parts": str(folder)}, seeds=[0], methods={"dkd": MethodConfig()}, baseline="dkd", **changes
    )
    config.base.data.cache_dir = tmp_path / "cache"
    with pytest.raises(UserError, match=re.escape(reason)):
        do(config, tmp_path / "out")
    assert trained(tmp_path / "out") == 0


def test_a_cell_that_began_from_other_weights_under_the_same_name_is_not_reused(
    finished: tuple[Path, Done], make: Make, tmp_path: Path
) -> None:
    start = tmp_path / "weights.safetensors"
    for seed in (0, 1):
        shutil.copy(finished[0] / "scenes-50" / f"seed{seed}" / STUDENT / "plain" / "weights.safetensors", start)
        config = make(seeds=[0], methods={"plain": MethodConfig(weights=str(start))})
        if not seed:
            assert do(config, tmp_path / "out").outcome.results
            continue
        with pytest.raises(UserError, match=r"was started from another file than .*weights\.safetensors"):
            do(config, tmp_path / "out")


def test_a_student_of_another_teacher_is_trained_again(copy: Path, make: Make) -> None:
    """As after a damaged teacher that was trained again on another machine, and differs."""
    before, path = trained(copy), copy / "scenes-50" / "seed0" / STUDENT / "dkd" / "stage.json"
    stage = read_json(path)
    real, stage["record"]["teacher_hash"] = stage["record"]["teacher_hash"], "of another"
    write_json(path, stage, checksum=True)
    assert not do(make(), copy).outcome.failures
    assert trained(copy) == before + 1 and read_json(path)["record"]["teacher_hash"] == real


def test_a_damaged_teacher_is_trained_again_and_its_students_stay(copy: Path, make: Make) -> None:
    weights = copy / "scenes-50" / "seed0" / "teacher" / "weights.safetensors"
    whole, before = weights.read_bytes(), trained(copy)
    weights.write_bytes(whole[:-40] + bytes(40))
    done = do(make(), copy)
    assert not done.outcome.failures and weights.read_bytes() == whole
    assert trained(copy) == before + 1


def test_what_needs_a_failed_teacher_fails_with_that_reason(make: Make, tmp_path: Path) -> None:
    config = make(seeds=[0])
    config.base.teacher.fit.lr = 1e30
    config.base.teacher.fit.clip_norm = 0.0
    done = do(config, tmp_path / "out")
    assert len(done.outcome.failures) == 3
    assert "diverged" in done.outcome.failures["scenes-50/seed0/teacher"]
    needy = done.outcome.failures[f"scenes-50/seed0/{STUDENT}/da"]
    assert needy == "it needs scenes-50/seed0/teacher, which has failed"
    assert {row.variant for row in done.outcome.results["scenes-50"].rows} == {"plain", "plain_no_da"}


def test_tuning_has_one_budget_and_never_sees_the_test_part(make: Make, tiny_scenes: Path, tmp_path: Path) -> None:
    tuning = TuningConfig(factors=[0.1, 1, 1e40], val_fraction=0.25, seed=5)
    config = make(seeds=[0], tuning=tuning, methods={name: METHODS[name] for name in ("plain", "dkd")})
    out = tmp_path / "out"
    done = do(config, out, jobs=2)
    assert not done.outcome.failures, done.said

    folder = out / "tuning" / "scenes-50" / "seed5"
    stages = {path.parent.relative_to(folder).as_posix() for path in folder.rglob("stage.json")}
    assert stages == {"teacher", *(f"{STUDENT}/dkd@{factor}" for factor in ("0.1", "1", "1e+40"))}, "nothing is tested"
    index = scan(tiny_scenes)
    final, tuned = (read_split(path / "split.csv", index) for path in (out / "scenes-50" / "seed0", folder))
    assert len(tuned.val) == 8 and len(tuned.train) == 24 and len(tuned.test) == len(final.test) == 32
    record = json.loads((folder / "teacher" / "stage.json").read_text(encoding="utf-8"))
    assert record["settings"]["data"]["split"] == tuned.hash, "its teacher has not seen the validation part"

    kept = json.loads((out / "tuning.json").read_text(encoding="utf-8"))["chosen"]["scenes-50"][STUDENT]
    assert list(kept) == ["dkd"] and [score["factor"] for score in kept["dkd"]["scores"]] == [0.1, 1, 1e40]
    assert [score["validation_oa"] is None for score in kept["dkd"]["scores"]] == [False, False, True], "diverged"
    row = next(row for row in done.outcome.results["scenes-50"].rows if row.variant == "dkd")
    assert row.more["factor"] == kept["dkd"]["factor"] in (0.1, 1)
    place = "dkd" if row.more["factor"] == 1 else "dkd@0.1"
    settings = json.loads((out / "scenes-50" / "seed0" / STUDENT / place / "stage.json").read_text(encoding="utf-8"))
    weights = settings["settings"]["student"]["losses"]
    assert weights == ({} if row.more["factor"] == 1 else {"da": 0.1, "ss": 0.1})
    assert "| scenes-50 | table1_printed | dkd |" in (out / "summary.md").read_text(encoding="utf-8")

    count = trained(out)
    assert "7 of 7 cells were done before" in do(config, out).said, "nor is a diverged run tried again"
    assert trained(out) == count


def test_scores_are_kept_where_every_factor_diverges(make: Make, tmp_path: Path) -> None:
    wild, out = TuningConfig(factors=[1e39, 1e40], val_fraction=0.25, epochs=1), tmp_path / "out"
    config = make(seeds=[0], tuning=wild, methods={"plain": MethodConfig(), "da": METHODS["da"]})
    done = do(config, out)
    name = f"scenes-50/seed0/{STUDENT}/da"
    assert done.outcome.failures == {name: "its loss diverged with all settings that were tried in tuning"}
    kept = json.loads((out / "tuning.json").read_text(encoding="utf-8"))["chosen"]["scenes-50"][STUDENT]["da"]
    assert (kept["factor"], kept["learning_rate"]) == (None, None)
    assert [(score["factor"], score["validation_oa"]) for score in kept["scores"]] == [(1e39, None), (1e40, None)]
    text = (out / "summary.md").read_text(encoding="utf-8")
    assert "| scenes-50 | table1_printed | da | diverged | diverged | none |" in text


@pytest.mark.slow
def test_two_grids_share_a_folder_and_their_common_cells(copy: Path, make: Make) -> None:
    """A tuned method has a place of its own beside the untuned one, and a grid its own files."""
    before = {file: (copy / file).read_bytes() for file in ("grid.yaml", "results.json", "summary.md")}
    tuning = TuningConfig(factors=[0.5], val_fraction=0.25)
    methods = {"plain": MethodConfig(), "dkd": MethodConfig(), "cc": MethodConfig(), "sp": MethodConfig(epochs=2)}
    config = make(name="rivals", seeds=[0], tuning=tuning, methods=methods)
    done = do(config, copy)
    assert not done.outcome.failures and "2 of 9 cells were done before" in done.said, "the teacher and plain"
    assert {file: (copy / file).read_bytes() for file in before} == before
    folder = copy / "scenes-50" / "seed0" / STUDENT
    assert (folder / "dkd@0.5" / "evaluation" / "stage.json").is_file()
    assert not list(folder.glob("*.previous-*")) and not (copy / "tuning.json").exists()
    own = copy / "rivals"
    assert {path.name for path in own.iterdir()} == {"grid.yaml", "results.json", "summary.md", "tuning.json"}
    assert f"are in {own}" in done.said

    rows = {row.variant: row for row in done.outcome.results["scenes-50"].rows}
    assert rows["sp"].more["epochs"] == 2 and "epochs" not in rows["dkd"].more, "those that differ"
    chosen = json.loads((own / "tuning.json").read_text(encoding="utf-8"))["chosen"]["scenes-50"][STUDENT]
    assert chosen["sp"]["epochs"] == 2 and "epochs" not in chosen["dkd"]
    notes = done.outcome.results["scenes-50"].notes
    assert "Not as in their papers: cc (no linear layer" in notes
    assert "Fresh views in every epoch, for they need what cannot be kept: sp." in notes
    assert notes in (own / "summary.md").read_text("utf-8")
    assert "Not as in" not in json.loads(before["results.json"]).get("notes", "")

    assert "10 of 10 cells were done before" in do(make(), copy).said
    with pytest.raises(UserError, match=r"holds the grid 'tiny'.* Give another --name or another --out"):
        do(dataclasses.replace(config, name="scenes-50"), copy)


def test_published_accuracies_are_in_the_summary(make: Make, tiny_scenes: Path, tmp_path: Path) -> None:
    board = Board(make(seeds=[0], ratios=[0.2], methods={"plain": MethodConfig()}), tmp_path, Console(quiet=True))
    cell = Cell("scenes-20", 0, STUDENT, "plain")
    do_cells(board.config, tmp_path, [(cell, Candidate())], 1, Console(quiet=True))
    board.experiment(cell).images.name = "AID"  # as it is when its classes are recognised
    finish(board, tmp_path, {}, "", Console(quiet=True))
    assert "Published by others: AID, 20 % training" in (tmp_path / "summary.md").read_text(encoding="utf-8")


def when(path: Path, then: Callable[[str], object]) -> threading.Thread:
    """Do something with what a file holds as soon as it is there."""

    def watch() -> None:
        for _ in range(12000):
            try:
                text = path.read_text(encoding="utf-8")
            except OSError:
                text = ""
            if text:
                then(text)
                return
            time.sleep(0.01)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def pid_in(holder: str) -> int:
    found = re.match(r"process (\d+) on ", holder)
    assert found, holder
    return int(found[1])


@pytest.mark.slow
def test_a_killed_cell_is_named_and_resumes_with_the_next_call(make: Make, tmp_path: Path) -> None:
    config = make(seeds=[0], methods={"plain": MethodConfig(), "plain_no_da": METHODS["plain_no_da"]})
    config.base.student.fit.epochs = 40
    out = tmp_path / "out"
    folder = out / "scenes-50" / "seed0" / STUDENT
    checkpoint = folder / "plain" / "checkpoints" / "last.ckpt"

    def kill(holder: str) -> None:
        while not checkpoint.exists():
            time.sleep(0.005)
        os.kill(pid_in(holder), signal.SIGKILL)

    config.methods["plain_no_da"] = dataclasses.replace(config.methods["plain_no_da"], epochs=1)
    watcher = when(folder / ".plain.holder", kill)
    done = do(config, out)
    watcher.join(5)
    (reason,) = done.outcome.failures.values()
    assert reason == "its process was ended from outside (signal 9, as for want of memory)"
    assert [row.variant for row in done.outcome.results["scenes-50"].rows] == ["plain_no_da"]
    before = len(re.findall("  epoch ", (out / "logs/scenes-50/seed0" / STUDENT / "plain.log").read_text()))
    assert 0 < before < 40
    assert not do(config, out).outcome.failures
    assert 40 <= trained(out) - 1 <= 41, "it went on from its last epoch"


@pytest.mark.slow
def test_a_killed_grid_ends_its_cells_and_resumes(make: Make, commands: Any, tmp_path: Path) -> None:
    config = make(seeds=[0], methods={"plain": MethodConfig()})
    config.base.student.fit.epochs = 40
    out, file = tmp_path / "out", tmp_path / "grid.yaml"
    file.write_text(grid_text(config), encoding="utf-8")
    folder = out / "scenes-50" / "seed0" / STUDENT
    found: list[int] = []
    with commands.start("grid", file, "--out", out) as running:  # and killed at the end
        when(folder / ".plain.holder", lambda text: found.append(pid_in(text))).join(120)
        end = time.monotonic() + 120
        while not (folder / "plain" / "checkpoints" / "last.ckpt").exists():
            assert time.monotonic() < end, running.out() + running.err()
            time.sleep(0.01)
    assert running.wait().code == -signal.SIGKILL
    for _ in range(1000):
        try:
            os.kill(found[0], 0)
        except ProcessLookupError:
            break
        time.sleep(0.01)
    else:
        pytest.fail("the cell outlived its grid")
    assert not do(config, out).outcome.failures
    assert 40 <= trained(out) <= 42


def fresh(methods: dict[str, MethodConfig], make: Make, **changes: Any) -> GridConfig:
    """A grid that keeps no knowledge: its students ask the teacher about fresh views in every step."""
    config = make(seeds=[0], methods=methods, **changes)
    config.base.student.knowledge_views = 0
    return config


@pytest.mark.slow
def test_one_teacher_pass_serves_the_students_of_an_ablation(make: Make, tmp_path: Path) -> None:
    alone, together = (fresh(dict(METHODS), make) for _ in range(2))
    alone.base.side_by_side = False
    results = [do(config, tmp_path / str(number)) for number, config in enumerate((alone, together))]
    for number, count in ((0, 1), (1, 2)):  # of the students that ask the teacher, da and dkd
        for label in METHODS:
            stage = tmp_path / str(number) / "scenes-50" / "seed0" / STUDENT / label / "stage.json"
            record = json.loads(stage.read_text(encoding="utf-8"))["record"]
            assert record["together"] == (count if label in ("da", "dkd") else 1), label
    first, second = (
        {row.variant: row.oa for row in each.outcome.results["scenes-50"].rows if row.student} for each in results
    )
    assert first == pytest.approx(second) and first.keys() == METHODS.keys()
    logs = tmp_path / "1" / "logs" / "scenes-50" / "seed0" / STUDENT
    assert "side by side with scenes-50/seed0/table1_printed/da" in (logs / "dkd.log").read_text(encoding="utf-8")
    curves = read_curves(tmp_path / "1" / "scenes-50" / "seed0" / STUDENT / "da")
    assert "da" in curves.parts and "ss" not in curves.parts  # its own, out of the log of both


@pytest.mark.slow
def test_cells_that_fail_side_by_side_are_trained_alone(make: Make, tmp_path: Path) -> None:
    done = do(fresh({"dkd": MethodConfig(), "kd": MethodConfig(), "wild": WILD}, make, baseline="kd"), tmp_path / "out")
    assert "3 side by side: " in done.said and "Now each alone." in done.said
    assert {row.variant for row in done.outcome.results["scenes-50"].rows} == {"teacher", "dkd", "kd"}
    assert [name.rpartition("/")[2] for name in done.outcome.failures] == ["wild"]


def test_only_cells_with_the_same_teacher_and_schedule_share_a_teacher_pass(make: Make) -> None:
    config = fresh({**METHODS, "long": MethodConfig("dkd", epochs=2)}, make)
    da, dkd, plain, long = (Cell("scenes-50", 0, STUDENT, label) for label in ("da", "dkd", "plain", "long"))
    same = Candidate()
    assert can_share_teacher_pass(config, (da, same), (dkd, same))
    assert can_share_teacher_pass(config, (da, same), (dkd, Candidate(10))), "a weight changes no schedule"
    assert not can_share_teacher_pass(config, (da, same), (dkd, Candidate(1, 0.5))), "a learning rate does"
    for other in (da, plain, long, da.teacher, dataclasses.replace(dkd, seed=1)):
        assert not can_share_teacher_pass(config, (da, same), (other, same)), other
    maps = fresh({"sp": MethodConfig(knowledge_views=3), "dkd": MethodConfig()}, make)
    sp = dataclasses.replace(dkd, label="sp")
    assert can_share_teacher_pass(maps, (sp, same), (dkd, same)), "nothing is stored for feature maps"
    kept = make()
    assert not can_share_teacher_pass(kept, (da, same), (dkd, same)), "what the teacher says is kept: asked once anyway"
    config.base.side_by_side = False
    assert not can_share_teacher_pass(config, (da, same), (dkd, same))


class Full:
    """An engine whose first cell finds the disk full."""

    slots, threads = 1, 1

    def __init__(self) -> None:
        self.closed = False
        self.order: Order | None = None

    def start(self, order: Order) -> None:
        self.order = order

    def wait(self, seconds: float) -> list[tuple[Order, Ended]]:
        assert self.order
        return [(self.order, Ended("the disk is full", full=True))]

    def close(self) -> None:
        self.closed = True


def test_a_full_disk_stops_all_and_loses_nothing(copy: Path, make: Make) -> None:
    engine = Full()
    with pytest.raises(OSError) as stopped:
        do(make(seeds=[0, 1, 2]), copy, engine=engine)
    assert stopped.value.errno == errno.ENOSPC and engine.closed
    assert "10 of 10 cells were done before" in do(make(), copy).said


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
def test_a_cell_reports_a_full_disk(copy: Path, make: Make) -> None:
    part = copy / "scenes-50" / "seed2" / STUDENT / "plain" / "checkpoints" / "last.ckpt.part"
    part.parent.mkdir(parents=True)
    part.symlink_to("/dev/full")
    (part.parents[1] / "stage.json").unlink(missing_ok=True)
    config = make(seeds=[2], methods={"plain": MethodConfig()})
    board = Board(config, copy, Console(quiet=True))
    stage = board.stage(Cell("scenes-50", 2, STUDENT, "plain"))
    assert stage
    stage.reopen()  # as an earlier try has left it
    with pytest.raises(OSError) as stopped:
        do(config, copy)
    assert stopped.value.errno == errno.ENOSPC
    assert not part.exists()
    assert not do(config, copy).outcome.failures


def test_a_class_missing_from_the_test_part_is_no_failure(make: Make, tiny_scenes: Path, tmp_path: Path) -> None:
    index = scan(tiny_scenes)
    part = np.array([0 if label == 0 or number % 2 else 2 for number, label in enumerate(index.labels)], np.int8)
    split = assemble(index, part, None, None)
    write_split(split, index, tmp_path / "split.csv")
    config = make(seeds=[0], methods={"plain": MethodConfig()})
    config.base.data.split_file = tmp_path / "split.csv"
    done = do(config, tmp_path / "out")
    (row,) = done.outcome.results["scenes-50"].rows
    assert not done.outcome.failures and row.oa == row.aa, "each of the classes that are there has as many images"
    folder = tmp_path / "out" / "scenes-50" / "seed0" / STUDENT / "plain" / "evaluation"
    seen = json.loads((folder / "stage.json").read_text(encoding="utf-8"))["record"]
    assert list(seen["per_class"]) == list(index.classes[1:]) and seen["images"] == 24


def test_the_command_writes_the_result_and_reports_failures(copy: Path, make: Make, tmp_path: Path) -> None:
    said = io.StringIO()
    results = tmp_path / "results" / "mine.json"
    words = [str(copy / "grid.yaml"), "--out", str(copy)]
    settings = parser().parse_args([*words, "--results", str(results)])
    assert command(settings, Console(file=said, width=300), "scenedistill grid") == 0
    assert read_result(results).experiment == "mine" and "Result written to" in said.getvalue()
    config = make(methods={"plain": MethodConfig(), "wild": WILD}, seeds=[0])
    (tmp_path / "wild.yaml").write_text(grid_text(config), encoding="utf-8")
    settings = parser().parse_args([str(tmp_path / "wild.yaml"), "--out", str(copy)])
    assert command(settings, Console(file=said, width=300), "scenedistill grid") == 1
    assert "1 cells failed" in said.getvalue()
    settings = parser().parse_args([str(tmp_path / "wild.yaml"), "--out", str(tmp_path / "new"), "--dry_run", "true"])
    assert command(settings, Console(file=said, width=300), "scenedistill grid") == 0
    assert re.search(r"/wild .* to do .* \? ", said.getvalue()), "what cannot be measured is not known"
    assert dry_run(config, tmp_path / "new", only=["wild"], console=Console(quiet=True)) is None


def test_a_failure_is_reported_in_reason() -> None:
    assert reason(UserError("Two\nlines.")) == "Two lines."
    assert reason(ValueError("a\nb")) == "ValueError: a"
    assert reason(KeyError()) == "KeyError"
    wrapped = RuntimeError("x")
    wrapped.__cause__ = OSError(errno.ENOSPC, "full")
    assert disk_full(wrapped) and not disk_full(OSError(errno.EACCES, "no"))
    assert (share(None, 1), share(8, 1), share(8, 3), share(1, 4)) == (None, 8, 2, 1)


def test_the_plan_puts_before_each_cell_what_it_needs(make: Make) -> None:
    config = make(ratios=[0.2, 0.5], tuning=TuningConfig(factors=[0.5, 2]))
    cells = plan(config)
    place = {cell: number for number, cell in enumerate(cells)}
    assert len(place) == len(cells) == 2 * (1 + 2 * 2) + 2 * 2 * (1 + 4)
    for cell in cells:
        assert all(place[other] < place[cell] for other in dependencies(config, cell)), cell
    dkd = Cell("scenes-20", 1, STUDENT, "dkd")
    assert [other.name for other in dependencies(config, dkd)] == [
        "scenes-20/seed1/teacher",
        f"tuning/scenes-20/seed0/{STUDENT}/dkd@0.5",
        f"tuning/scenes-20/seed0/{STUDENT}/dkd@2",
    ]
    assert dependencies(config, dataclasses.replace(dkd, label="plain_no_da")) == []
    assert {cell.label for cell in plan(config, ["plain"])} == {"plain"}


def test_several_blocks_have_a_result_each(make: Make, tmp_path: Path) -> None:
    config = make(seeds=[0], ratios=[0.25, 0.5], methods={"plain": MethodConfig()})
    done = do(config, tmp_path / "out", jobs=2)
    assert set(done.outcome.results) == {"scenes-25", "scenes-50"}
    for block, ratio in (("scenes-25", 0.25), ("scenes-50", 0.5)):
        shutil.copy(tmp_path / "out" / block / "results.json", tmp_path / f"tiny_{block}.json")
        assert read_result(tmp_path / f"tiny_{block}.json").train_ratio == ratio


def given_teacher(config: GridConfig) -> None:
    config.tuning = TuningConfig()
    config.base.teacher.checkpoint = Path("x")


def two_learning_rates(config: GridConfig) -> None:
    config.tuning = TuningConfig(learning_rates=[0.1])
    config.methods["da"].fit["lr"] = 0.2


def unknown_length(config: GridConfig) -> None:
    config.tuning = TuningConfig(rounds=[1])
    config.base.student.fit.epochs = None


CHANGES: dict[str, tuple[Callable[[GridConfig], object], str]] = {
    "no data": (lambda c: c.datasets.clear(), "datasets is empty; expected {AID: path/to/AID}"),
    "data that are not there": (lambda c: c.datasets.update(x="nowhere"), "datasets.x: there is no nowhere"),
    "a label with a slash": (lambda c: c.methods.update({"a/b": MethodConfig()}), "labelled 'a/b'"),
    "the teacher's label": (lambda c: c.methods.update(teacher=MethodConfig()), "and none of teacher, evaluation"),
    "a ratio": (lambda c: c.ratios.append(20), "ratios holds 20"),
    "a ratio twice": (lambda c: c.ratios.append(0.5), "one value twice"),
    "a seed twice": (lambda c: c.seeds.append(0), "each once"),
    "no such baseline": (lambda c: setattr(c, "baseline", "plane"), "no method is called 'plane'. Did you mean plain?"),
    "no such method": (lambda c: c.methods.update(kdd=MethodConfig()), "methods.kdd: no method is called 'kdd'"),
    "no such loss": (
        lambda c: c.methods.update(dkd=MethodConfig(losses={"zz": 1})),
        "methods.dkd: No loss is called zz",
    ),
    "no such loss beside plain": (
        lambda c: c.methods.update(kdd=MethodConfig("plain", {"kdd": 1})),
        "methods.kdd: No loss is called kdd",
    ),
    "a misspelt loss left out": (
        lambda c: c.methods.update(dkd=MethodConfig(losses={"SS": 0})),
        "methods.dkd: No loss is called SS",
    ),
    "options of a loss that is not there": (
        lambda c: c.methods.update(kd=MethodConfig(loss_options={"KD": {"temperature": 8}})),
        "methods.kd: Options are given for KD",
    ),
    "no such option": (
        lambda c: c.methods.update(kd=MethodConfig(loss_options={"kd": {"heat": 1}})),
        "methods.kd: Loss 'kd'",
    ),
    "losses of the base": (lambda c: c.base.student.losses.update(da=1), "give them below methods"),
    "no epochs": (lambda c: c.methods.update(kd=MethodConfig(epochs=0)), "methods.kd.epochs is 0"),
    "an average of nothing": (
        lambda c: c.methods.update(kd=MethodConfig(fit={"ema_decay": 1.0})),
        "methods.kd: --student.fit.ema_decay is 1.0",
    ),
    "mixed with more than all": (
        lambda c: c.methods.update(kd=MethodConfig(mixup=2.0)),
        "methods.kd: --student.mixup is 2.0",
    ),
    "views larger than the images": (
        lambda c: c.methods.update(kd=MethodConfig(ask_size=41)),
        "methods.kd: --student.ask_size is 41",
    ),
    "plain that asks": (lambda c: c.methods.update(plain=MethodConfig(method="dkd")), "methods.plain uses the teacher"),
    "a factor of 0": (lambda c: setattr(c, "tuning", TuningConfig(factors=[0, 1])), "tuning.factors is [0, 1]"),
    "factors whose folders would be one": (
        lambda c: setattr(c, "tuning", TuningConfig(factors=[1, 1.0000001])),
        "tuning.factors holds 1.0000001; expected six digits at most",
    ),
    "all validation": (lambda c: setattr(c, "tuning", TuningConfig(val_fraction=1)), "tuning.val_fraction is 1"),
    "a learning rate of 0": (
        lambda c: setattr(c, "tuning", TuningConfig(learning_rates=[0.1, 0])),
        "tuning.learning_rates is [0.1, 0]",
    ),
    "two learning rates of a method": (
        two_learning_rates,
        "methods.da.fit.lr and tuning.learning_rates: leave one of the two out",
    ),
    "rounds out of order": (
        lambda c: setattr(c, "tuning", TuningConfig(rounds=[3, 2], epochs=9)),
        "tuning.rounds is [3, 2]; expected epochs of 1 or more in ascending order",
    ),
    "a round as long as the last": (
        lambda c: setattr(c, "tuning", TuningConfig(rounds=[2, 4], epochs=4)),
        "expected fewer epochs than the 4 of the last round (da)",
    ),
    "a round as long as a full training": (
        lambda c: setattr(c, "tuning", TuningConfig(rounds=[1])),
        "expected fewer epochs than the 1 of the last round (da)",
    ),
    "rounds before one of unknown length": (
        unknown_length,
        "tuning.rounds needs tuning.epochs",
    ),
    "none is kept": (lambda c: setattr(c, "tuning", TuningConfig(keep=0)), "tuning.keep is 0"),
    "all are kept": (lambda c: setattr(c, "tuning", TuningConfig(keep=1)), "tuning.keep is 1"),
    "fewer than no extension": (lambda c: setattr(c, "tuning", TuningConfig(extend=-1)), "tuning.extend is -1"),
    "no fold": (lambda c: setattr(c, "tuning", TuningConfig(folds=0)), "tuning.folds is 0"),
    "more folds than images": (
        lambda c: setattr(c, "tuning", TuningConfig(folds=3, val_fraction=0.34)),
        "tuning.folds is 3 and tuning.val_fraction 0.34; expected",
    ),
    "a given teacher": (
        given_teacher,
        "Tuning needs a teacher that has not seen the validation images",
    ),
    "the cluster": (lambda c: setattr(c.cluster, "cpus", 0), "cluster.cpus is 0"),
    "an unknown student": (lambda c: c.students.append("table1_resent"), "Did you mean table1_resnet"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_wrong_settings_are_refused_before_anything_is_done(change: str, make: Make, tmp_path: Path) -> None:
    config = make()
    CHANGES[change][0](config)
    with pytest.raises(UserError) as refused:
        do(config, tmp_path / "out")
    assert CHANGES[change][1] in str(refused.value) and "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_messages_name_options_as_the_grid_file_does() -> None:
    said = grid_words("Give --data.stored_size 64, --image_size 64 or --seeds; see --datasets.AID and --best_epoch.")
    assert said == (
        "Give --base.data.stored_size 64, --base.image_size 64 or --seeds; see --datasets.AID and --base.best_epoch."
    )
    known = parser()
    known.parse_args(["--name", "x"])  # fills it
    assert {word.removeprefix("--") for word in re.findall(r"--[\w.]*\w", said)} - {"datasets.AID"} <= set(known.keys())


def test_an_unknown_label_is_refused_before_anything_is_done(make: Make, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--only: no method is called 'plane'\. Did you mean plain\?"):
        do(make(), tmp_path / "out", only=["plane"])
    with pytest.raises(UserError, match="--jobs is 0"):
        do(make(), tmp_path / "out", jobs=0)
    assert not (tmp_path / "out").exists()


def test_a_file_and_options_make_a_grid(tmp_path: Path) -> None:
    file = tmp_path / "g.yaml"
    file.write_text(
        "name: mine\ndatasets: {AID: here}\nmethods:\n  plain:\n  da: {method: dkd, losses: {ss: 0}}\n"
        "tuning: {epochs: 3}\nbase: {image_size: 64, student: {fit: {epochs: 9}}}\n",
        encoding="utf-8",
    )
    options = ["--datasets.AID", "there", "--seeds", "[4]", "--base.student.fit.lr", "0.5", "--only", "da", "plain"]
    settings = parser().parse_args([str(file), *options, "--jobs", "2"])
    config = grid_config(settings)
    assert (config.name, config.seeds, config.datasets) == ("mine", [4], {"AID": "there"})
    assert config.methods == {"plain": MethodConfig(), "da": MethodConfig("dkd", {"ss": 0.0})}
    assert config.tuning == TuningConfig(epochs=3)
    assert (config.base.image_size, config.base.student.fit.epochs, config.base.student.fit.lr) == (64, 9, 0.5)
    assert (settings.only, settings.jobs, settings.dry_run) == (["da", "plain"], 2, False)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("methods: {da: {metod: dkd}}", "methods.da has no setting 'metod'. Did you mean method?"),
        ("tuning: {factor: [1]}", "tuning has no setting 'factor'. Did you mean factors?"),
        ("dataset: {}", "There is no setting 'dataset'. Did you mean datasets?"),
        ("base: {student: {fit: {epoch: 3}}}", "base.student.fit has no setting 'epoch'. Did you mean epochs?"),
        ("methods: {da: {losses: {ss: x}}}", "expected a number"),
        ("seeds: 3", "seeds: found '3', expected a list such as [0, 1]"),
        ("just text", "holds no settings"),
        ("a: [", "is not valid YAML"),
    ],
)
def test_a_wrong_name_in_the_file_gets_a_hint(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "g.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit) as left:
        parser().parse_args([str(tmp_path / "g.yaml")])
    assert left.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", ["table2_aid20", "table4_aid20", "dkd_plus_search"])
def test_the_grids_of_the_repository_are_valid(name: str) -> None:
    config = grid_config(parser().parse_args([str(ROOT / "configs" / f"{name}.yaml")]))
    wanted = {
        "table2_aid20": ["plain_no_da", "plain", "da", "ss", "dkd"],
        "table4_aid20": [
            "plain_no_da",
            "plain",
            "kd",
            "fitnet",
            "at",
            "sp",
            "cc",
            "rkd",
            "crd",
            "decoupled",
            "dist",
            "logit_std",
            "srd",
            "reviewkd",
            "kd_no_da",
            "dkd",
            "dkd_plus",
        ],
        "dkd_plus_search": [
            "plain",
            "da_decoupled",
            "ten_decoupled",
            "plus_decoupled",
            "ten",
            "ten_kd",
            "ss_decoupled",
            "ten_std",
            "plus_kd",
        ],
    }[name]
    assert list(config.methods) == wanted and config.blocks() == {"AID-20": ("AID", 0.2)}
    measured = {  # as in the results, which are older than the present weights of our methods
        "table2_aid20": ("dkd", True, {"ce": 1, "da": 1, "ss": 1}),
        "table4_aid20": ("dkd_plus", False, {"ce": 1, "kd": 0.1, "da": 3, "ss": 3}),
        "dkd_plus_search": ("plus_kd", False, {"ce": 1, "kd": 0.1, "da": 3, "ss": 3}),
    }
    label, attention, weights = measured[name]
    student = student_of(config, "table1_resnet", label)
    assert student.dual_attention == attention and student.loss_weights() == weights
    assert (config.base.image_size, config.base.data.stored_size, config.base.teacher.name) == (64, 80, "densenet169")


def test_a_method_may_be_taught_and_trained_in_its_own_way(make: Make) -> None:
    own = MethodConfig("kd", mixup=0.5, ask_size=40, symmetries=True, also=["b/{seed}"], unlabelled=False,
                       fit={"ema_decay": 0.9, "first_size": 0.5})  # fmt: skip
    config = make(methods={"plain": MethodConfig(), "kd": MethodConfig(), "kd_own": own})
    base, made = (student_of(config, config.students[0], label) for label in ("kd", "kd_own"))
    assert (made.mixup, made.ask_size, made.symmetries, made.also, made.unlabelled) == (
        0.5,
        40,
        True,
        ["b/{seed}"],
        False,
    )
    assert (made.fit.ema_decay, made.fit.first_size) == (0.9, 0.5) and made.fit.lr == base.fit.lr
    assert (base.mixup, base.ask_size, base.fit.ema_decay) == (0.0, None, 0.0), "the others stay as they are"
    assert distillation_inputs(made) != distillation_inputs(base), "no pass of the teacher serves both"
    config.methods["kd_own"].fit["epoch"] = 3
    with pytest.raises(UserError, match=r"methods.kd_own.fit: epoch is none of lr, "):
        check_grid(config)
    config.methods["kd_own"].fit = {"epochs": 3}
    with pytest.raises(UserError, match=r"fit: epochs is none of .* Write it as methods\.kd_own\.epochs\.$"):
        check_grid(config)


def test_the_remaining_time_counts_only_the_remaining_cells() -> None:
    cells = [Cell("a", seed, "net", "plain") for seed in range(4)]
    progress = Progress(cells, slots=2, expected={cell: 100.0 for cell in cells})
    assert progress.seconds_left(0.0) == 200
    progress.oa[cells[0]] = 0.5
    progress.running = {cells[1]: 0.0, cells[2]: 0.0}
    progress.epochs[cells[1]] = (3, 4)
    assert progress.seconds_left(50.0) == 100, "the last one alone takes as long"
    progress.slots = 1
    assert progress.seconds_left(50.0) == pytest.approx(25 + 50 + 100)
    progress.slots = 2
    assert summary_line(progress, 50.0) == "1 of 4 done, 2 running, about 2 min left"
    progress.expected[cells[3]] = None
    assert summary_line(progress, 50.0) == "1 of 4 done, 2 running, time left not known yet"
    progress.failed = {cells[3]: "why"}
    assert summary_line(progress, 50.0) == "1 of 4 done, 2 running, 1 failed, about 50 s left"


def test_the_live_table_shows_every_method_with_what_runs() -> None:
    cells = [
        Cell("AID-20", seed, student, label) for seed in (0, 1) for student, label in ((None, "teacher"), ("n", "kd"))
    ]
    cells.append(Cell("AID-20", 0, "n", "kd", Candidate(0.1), tuning=True))
    progress = Progress(cells, oa={cells[0]: 0.8, cells[2]: 0.9}, running={cells[1]: 0.0}, failed={cells[4]: "why"})
    progress.epochs[cells[1]] = (7, 30)
    said = io.StringIO()
    Console(file=said, width=120).print(progress_table(progress, 1.0))
    assert re.search(r"AID-20 .*teacher .* 2/2 .* 85\.00 ± 7\.07 ", said.getvalue())
    assert re.search(r"AID-20 .* n .* kd .* 0/2 .* seed 0: epoch 7/30", said.getvalue())
    assert re.search(r"AID-20 tuning .* kd .* 0/1 .* x 0\.1 failed", said.getvalue())
    assert "2 of 5 done, 1 running, 1 failed" in said.getvalue()

    screen = io.StringIO()
    with Display(progress, Console(file=screen, width=120, force_terminal=True)) as display:
        progress.oa[cells[1]] = 0.7
        display.ended(cells[1], 3.0)
    assert "3 of 5 done" in screen.getvalue()


def test_the_last_epoch_is_read_from_the_end_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    assert epochs_of(log, 0) is None
    log.write_text("  n plain  epoch 9/9  ce 1.0\n", encoding="utf-8")
    start = log.stat().st_size
    assert epochs_of(log, start) is None, "that was an earlier try"
    with log.open("a", encoding="utf-8") as file:
        file.write("  n plain  epoch 2/30  ce 1.0\n  n plain  epoch 3/30  ce 0.9\n")
    assert epochs_of(log, start) == (3, 30)


def test_the_grid_file_of_the_documentation_is_valid(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.S)
    (tmp_path / "g.yaml").write_text(block, encoding="utf-8")
    config = grid_config(parser().parse_args([str(tmp_path / "g.yaml")]))
    assert set(yaml.safe_load(block)["methods"]) == set(config.methods)
