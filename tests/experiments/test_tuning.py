"""Tuning: what a candidate does to a method, which ones go on and which is chosen, and that only validation images
decide."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import math
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

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
from scenedistill.core.errors import UserError
from scenedistill.core.terminal import plain_console
from scenedistill.data.scenes import scan
from scenedistill.data.splits.draw import Split, make_split
from scenedistill.data.splits.files import read_split
from scenedistill.experiments.grid.board import Board
from scenedistill.experiments.grid.cells import Cell, dependencies, plan
from scenedistill.experiments.grid.config import GridConfig, MethodConfig
from scenedistill.experiments.grid.local import Ended, Order, attempt, open_log
from scenedistill.experiments.grid.run import dry_run, grid
from scenedistill.experiments.grid.scheduler import Scheduler
from scenedistill.experiments.grid.tuning.choices import Choice, tuned, tuning_settings, tuning_student, write_choices
from scenedistill.experiments.grid.tuning.config import TuningConfig
from scenedistill.experiments.grid.tuning.results import tuning_note, tuning_section
from scenedistill.experiments.grid.tuning.search import (
    Candidate,
    Course,
    Score,
    Search,
    choose,
    follow,
    outward,
    survivors,
)
from scenedistill.experiments.grid.work import DIVERGED
from scenedistill.experiments.stages.students import student_stage
from scenedistill.runs.run import Run

STUDENT = "table1_printed"
Make = Callable[[TuningConfig], GridConfig]


def test_a_factor_scales_all_losses_that_ask_the_teacher_and_no_other() -> None:
    assert tuned(StudentConfig(method="dkd"), Candidate(10)).loss_weights() == {"ce": 1, "da": 300, "ss": 10}
    pretrained = StudentConfig(method="dkd", weights="lite")
    assert tuned(pretrained, Candidate(10)).loss_weights() == {"ce": 1, "da": 10, "ss": 10}
    assert tuned(StudentConfig(method="kd"), Candidate(0.1)).loss_weights() == {"ce": 0.1, "kd": 0.09}, "to the digit"
    assert tuned(StudentConfig(method="dkd", losses={"ss": 0.0}), Candidate(10)).loss_weights() == {"ce": 1, "da": 300}
    assert tuned(StudentConfig(method="dkd", losses={"da": 0.3}), Candidate(0.1)).loss_weights() == {
        "ce": 1,
        "da": 0.03,
        "ss": 0.1,
    }


def test_the_factor_one_is_the_method_itself_and_no_other_training() -> None:
    student = StudentConfig(method="kd")
    assert tuned(student, Candidate(1)) == tuned(student, Candidate()) == student
    assert tuned(student, Candidate(1)).losses == {}


def test_a_learning_rate_replaces_that_of_the_method_alone() -> None:
    student = StudentConfig(method="dkd", fit=StudentFitConfig(epochs=3, batch_size=8))
    made = tuned(student, Candidate(10, 0.02))
    assert (made.schedule().lr, student.schedule().lr, made.fit.epochs) == (0.02, 0.1, 3)
    assert made.loss_weights() == {"ce": 1, "da": 300, "ss": 10}


@pytest.mark.parametrize(
    ("scores", "chosen"),
    [
        ({0.1: 0.5, 1.0: 0.6, 10.0: 0.7}, 10.0),
        ({0.1: 0.7, 1.0: 0.7, 10.0: 0.7}, 1.0),
        ({0.1: 0.7, 1.0: 0.6, 10.0: 0.7}, 0.1),
        ({0.1: 0.2, 1.0: None, 10.0: None}, 0.1),
        ({0.1: None}, None),
    ],
)
def test_the_best_is_chosen_and_of_equals_the_nearest(scores: dict[float, float | None], chosen: float | None) -> None:
    found = choose({Candidate(factor): score for factor, score in scores.items()})
    assert found == (None if chosen is None else Candidate(chosen))
    rates = {Candidate(None, 0.1): 0.5, Candidate(None, 0.01): 0.5}
    assert choose(rates) == Candidate(None, 0.01), "of equal ones the smaller learning rate"


def slow_halving(
    search: Search, score: Callable[[Candidate, int], float | None]
) -> tuple[list[set[Candidate]], object]:
    """The rounds and the best of the last one, counted out one by one."""
    there, rounds = list(search.candidates), list[set[Candidate]]()
    for number in range(search.rounds):
        rounds.append(set(there))
        if number == search.rounds - 1:
            break
        places = 0
        while places < search.keep * len(there) - 1e-9:
            places += 1
        there = [
            one
            for one in there
            if score(one, number) is not None
            and sum((score(other, number) or -1) > (score(one, number) or 0) for other in there) < max(places, 1)
        ]
    alive = [one for one in there if score(one, search.rounds - 1) is not None]
    return rounds, max(alive, key=lambda one: score(one, search.rounds - 1) or 0, default=None)


@pytest.mark.parametrize("seed", range(60))
def test_the_survivors_of_each_round_are_those_of_a_slow_count(seed: int) -> None:
    draw = random.Random(seed)
    search = Search(
        factors=tuple(10.0**k for k in range(draw.randint(0, 4))),
        learning_rates=tuple(0.01 * k for k in range(1, draw.randint(2, 5))),
        rounds=draw.randint(1, 4),
        keep=draw.choice([0.1, 1 / 3, 0.5, 0.9]),
    )
    values = itertools.count(1)  # no two are equal
    shuffled = {(one, number): next(values) for number in range(search.rounds) for one in search.candidates}
    known = list(shuffled.values())
    draw.shuffle(known)
    share = draw.choice([0, 0.2, 1])
    scores = {key: None if draw.random() < share else value / 1000 for key, value in zip(shuffled, known, strict=True)}
    course = follow(search, lambda one, number: Score(one, number, (scores[one, number],)))
    rounds, best = slow_halving(search, lambda one, number: scores[one, number])
    assert [set(entrants) for entrants in course.rounds] == rounds
    assert course.complete and course.chosen == best and not course.extensions
    for number, one in itertools.product(range(search.rounds), search.candidates):
        assert course.reaches(one, number) is (one in rounds[number])
    if not share:
        assert [len(entrants) for entrants in rounds] == search.sizes


def test_nobody_goes_on_before_a_round_is_complete() -> None:
    search = Search((1.0, 10.0, 100.0), rounds=2, keep=0.5)
    first, second, third = search.candidates
    scores = {first: 0.2, second: 0.4}

    def find(one: Candidate, number: int) -> Score | None:
        return Score(one, 1, (scores[one],)) if one in scores and not number else None

    course = follow(search, find)
    assert not course.complete and course.reaches(third, 0) and course.reaches(first, 1) is None
    scores[third] = 0.3
    course = follow(search, find)
    assert [course.reaches(one, 1) for one in (first, second, third)] == [False, True, True]
    assert not course.complete and course.chosen is None
    assert survivors({first: 0.5, second: None, third: None}, 0.9) == (first,), "what diverged never goes on"


def extended(factors: tuple[float, ...], extend: int, oa: Callable[[float], float | None]) -> Course:
    search = Search(factors, (0.01, 0.1), extend=extend)

    def find(one: Candidate, number: int) -> Score:
        score = oa(one.factor or 0)
        return Score(one, 1, (score if score is None or one.learning_rate == 0.1 else score / 2,))

    return follow(search, find)


@pytest.mark.parametrize(
    ("factors", "extend", "peak", "tried", "chosen"),
    [
        ((0.1, 1, 10), 3, 1, [], 1),  # inside
        ((0.1, 1, 10), 0, 10, [], 10),
        ((0.1, 1, 10), 3, 10, [100], 10),  # inside after one
        ((0.1, 1, 10), 3, 1000, [100, 1000, 10000], 1000),
        ((0.1, 1, 10), 2, 1e9, [100, 1000], 1000),  # the limit
        ((0.1, 1, 3), 1, 1e9, [9], 9),
        ((0.1, 1, 3), 3, 0.001, [0.01, 0.001, 0.0001], 0.001),
        ((1,), 2, 1, [10, 0.1], 1),
        ((1,), 3, 0.1, [10, 0.1, 0.01], 0.1),
    ],
)
def test_further_factors_are_tried_until_the_best_is_inside(
    factors: tuple[float, ...], extend: int, peak: float, tried: list[float], chosen: float
) -> None:
    course = extended(factors, extend, lambda factor: 0.9 - 0.01 * abs(math.log10(factor / peak)))
    assert course.extensions == tuple(Candidate(factor, 0.1) for factor in tried), "at the chosen learning rate"
    assert course.complete and course.chosen == Candidate(chosen, 0.1)
    assert [course.extends(number) for number in range(1, extend + 1)] == [
        n <= len(tried) for n in range(1, extend + 1)
    ]


def test_a_further_factor_that_diverges_ends_the_search() -> None:
    course = extended((1, 10), 3, lambda factor: None if factor > 10 else factor)
    assert course.extensions == (Candidate(100, 0.1),) and course.chosen == Candidate(10, 0.1)
    assert not extended((1, 10), 3, lambda factor: None).extensions, "nor is one tried where all diverged"
    assert outward([1e300, 1.0], 1e300) is None, "there is no larger number"


def test_tuning_runs_leave_a_validation_part_out_and_change_nothing_else() -> None:
    base = RunConfig(seeds=[0, 1, 2], data=DataConfig(train_ratio=0.2))
    made = tuning_settings(base, TuningConfig(val_fraction=0.25, seed=7))
    assert (made.seeds, made.data.val_fraction, made.data.train_ratio) == ([7], 0.25, 0.2)
    assert made.teacher == base.teacher and made.views == base.views and base.data.val_fraction == 0

    student = StudentConfig(method="dkd", fit=StudentFitConfig(**vars(FitConfig(epochs=30))))
    assert tuning_student(student, Candidate(1), None).fit.epochs == 30
    short = tuning_student(student, Candidate(10), 4)
    assert short.fit.epochs == 4 and short.loss_weights()["da"] == 300 and student.fit.epochs == 30


@pytest.mark.parametrize(("fraction", "folds"), [(0.2, 5), (0.25, 3), (0.5, 2), (0.1, 10)])
def test_folds_have_no_image_in_common_and_never_a_test_image(fraction: float, folds: int, tiny_scenes: Path) -> None:
    index = scan(tiny_scenes)
    whole = make_split(index, 0.7, 3)
    parts = list[Split]()
    for fold in range(folds):
        try:
            parts.append(make_split(index, 0.7, 3, fraction, fold))
        except UserError as problem:
            assert fold and f"validation fold {fold} needs more" in str(problem) and fraction == 0.1
            break
    assert len(parts) > 1 and parts[0].hash == make_split(index, 0.7, 3, fraction).hash
    seen = np.concatenate([part.val for part in parts])
    assert len(set(seen)) == len(seen)
    for part in parts:
        assert (part.test == whole.test).all() and set(part.train) | set(part.val) == set(whole.train)
        assert not set(part.train) & set(part.val)
        assert set(index.labels[part.train]) == set(index.labels[part.val]) == set(range(len(index.classes)))


def choice(label: str, scores: list[Score], chosen: Candidate | None) -> Choice:
    return Choice("AID-20", "net", label, tuple(scores), chosen, max(score.epochs for score in scores))


def scored(epochs: int, factor: float | None, rate: float | None, *folds: float | None) -> Score:
    return Score(Candidate(factor, rate), epochs, folds)


def kept(tmp_path: Path, choices: list[Choice], tuning: TuningConfig, epochs: int = 30) -> dict[str, Any]:
    write_choices(choices, tuning, epochs, tmp_path / "tuning.json")
    content: dict[str, Any] = json.loads((tmp_path / "tuning.json").read_text(encoding="utf-8"))
    return content


def test_all_scores_and_the_choice_are_kept(tmp_path: Path) -> None:
    scores = [scored(5, 0.1, None, 0.5), scored(5, 1.0, None, 0.6250001), scored(5, 10.0, None, None)]
    content = kept(tmp_path, [choice("kd", scores, Candidate(1.0))], TuningConfig(epochs=5))
    assert (content["epochs"], content["val_fraction"], content["factors"]) == (5, 0.2, [0.1, 1.0, 10.0])
    assert (content["learning_rates"], content["rounds"], content["folds"], content["extend"]) == ([], [], 1, 0)
    found = content["chosen"]["AID-20"]["net"]["kd"]
    assert found.pop("scores") == [
        {"epochs": 5, "factor": factor, "learning_rate": None, "validation_oa": oa}
        for factor, oa in ((0.1, 0.5), (1.0, 0.625), (10.0, None))
    ]
    assert found == {"factor": 1.0, "learning_rate": None, "trainings": 3, "trained_epochs": 15}


def test_the_budget_of_rounds_and_folds_is_kept_and_told(tmp_path: Path) -> None:
    tuning = TuningConfig([1.0, 10.0], [0.01, 0.1], rounds=[2], keep=0.25, extend=1, folds=2, epochs=6)
    first = [scored(2, factor, rate, 0.4, 0.2) for factor in (1.0, 10.0) for rate in (0.01, 0.1)]
    taught = [*first, scored(6, 10.0, 0.01, 0.5, 0.7), scored(6, 100.0, 0.01, 0.9, None)]
    alone = [scored(2, None, 0.01, 0.4, 0.2), scored(2, None, 0.1, 0.1, 0.1), scored(6, None, 0.01, 0.5, 0.7)]
    choices = [choice("kd", taught, Candidate(10.0, 0.01)), choice("plain", alone, Candidate(None, 0.01))]
    content = kept(tmp_path, choices, tuning)
    assert (content["rounds"], content["keep"], content["folds"], content["extend"]) == ([2], 0.25, 2, 1)
    found = content["chosen"]["AID-20"]["net"]
    kd, plain = found["kd"], found["plain"]
    assert (kd["factor"], kd["learning_rate"], plain["factor"], plain["learning_rate"]) == (10.0, 0.01, None, 0.01)
    assert (kd["trainings"], kd["trained_epochs"], plain["trainings"], plain["trained_epochs"]) == (12, 40, 6, 20)
    assert kd["scores"][0]["validation_oa"] == 0.3 and kd["scores"][0]["folds"] == [0.4, 0.2]
    assert kd["scores"][-1]["validation_oa"] is None and kd["scores"][-1]["folds"] == [0.9, None]

    config = GridConfig(seeds=[0], tuning=tuning)
    note = tuning_note(config, choices)
    assert note == (
        "Weights and learning rates chosen from 2 factors x 2 learning rates in rounds of 2 and 6 epochs, of which the "
        "best 25 % go on, with up to 1 further factor where the best is outermost, on 2 folds of validation images of "
        "seed 0: 6 to 12 trainings and 20 to 40 epochs for each method. At the edge of the learning rates, where more "
        "might be gained: kd, plain."
    )
    lines = tuning_section(choices)[2].splitlines()
    assert lines[0] == "| data | network | method | learning rate | x 10 | x 100 | no factor | chosen |"
    assert lines[2:] == [
        "| AID-20 | net | kd | 0.01 | 60.00 | diverged | - | 10 |",
        "| AID-20 | net | plain | 0.01 | - | - | 60.00 | yes |",
    ]


def test_the_note_names_a_choice_at_the_edge_of_the_factors() -> None:
    scores = [scored(5, factor, None, 0.1 * factor) for factor in (0.1, 1.0, 10.0)]
    choices = [choice("kd", scores, Candidate(10.0)), choice("dkd", scores, Candidate(1.0))]
    note = tuning_note(GridConfig(seeds=[0, 1], tuning=TuningConfig()), choices)
    assert note == (
        "Weights chosen from 3 factors, on validation images of seed 0: 3 trainings and 15 epochs for each method. "
        "Other seeds draw other splits, so that some of these images are test images there. At the edge of the "
        "factors, where more might be gained: kd."
    )


def test_separate_epochs_and_a_diverged_method_are_reported(tmp_path: Path) -> None:
    choices = [choice("kd", [scored(30, 1.0, None, 0.5)], Candidate(1.0))]
    choices.append(choice("sp", [scored(60, 1.0, None, None)], None))
    content = kept(tmp_path, choices, TuningConfig(factors=[1.0]))
    found = content["chosen"]["AID-20"]["net"]
    assert content["epochs"] == 30 and "epochs" not in found["kd"]
    sp = found["sp"]
    assert (sp["factor"], sp["learning_rate"], sp["epochs"]) == (None, None, 60)
    assert "| AID-20 | net | sp | diverged | none |" in tuning_section(choices)[2]


@pytest.fixture(scope="module")
def make(tiny_scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Makes a tiny grid of `plain` and `dkd` with a tuning."""
    cache = tmp_path_factory.mktemp("tuning-cache") / "40"

    def made(tuning: TuningConfig) -> GridConfig:
        fit = FitConfig(epochs=2, batch_size=16, lr=0.02, warmup_epochs=0.0)
        return GridConfig(
            name="tiny",
            datasets={"scenes": str(tiny_scenes)},
            ratios=[0.5],
            seeds=[0],
            students=[STUDENT],
            methods={"plain": MethodConfig(), "dkd": MethodConfig()},
            tuning=tuning,
            base=RunConfig(
                image_size=32,
                data=DataConfig(stored_size=40, cache_dir=cache),
                teacher=TeacherConfig(name=STUDENT, weights="none", min_oa=0.0, fit=TeacherFitConfig(**vars(fit))),
                student=StudentConfig(knowledge_views=1, fit=StudentFitConfig(**vars(fit))),
                machine=MachineConfig(accelerator="cpu", precision="fp32", threads=1),
            ),
        )

    return made


def test_a_grid_of_today_has_the_same_cells_folders_and_fingerprints(make: Make, tmp_path: Path) -> None:
    config = make(TuningConfig(factors=[0.1, 1, 10], val_fraction=0.25, epochs=3, seed=5))
    board, upper = Board(config, tmp_path, Console(quiet=True)), f"seed5/{STUDENT}/dkd@"
    cells = plan(config)
    assert [cell.name for cell in cells] == [
        "tuning/scenes-50/seed5/teacher",
        *(f"tuning/scenes-50/{upper}{factor}" for factor in ("0.1", "1", "10")),
        "scenes-50/seed0/teacher",
        f"scenes-50/seed0/{STUDENT}/plain",
        f"scenes-50/seed0/{STUDENT}/dkd",
    ]
    assert [board.needed(cell) for cell in cells] == [True] * 7
    context = board.context(cells[1])
    assert context.split.hash == make_split(context.experiment.images.cache.index, 0.5, 5, 0.25).hash
    teacher = board.stage(cells[0])
    base = dataclasses.replace(config.base.student, name=STUDENT, method="dkd", losses={}, loss_options={})
    base = dataclasses.replace(base, fit=dataclasses.replace(base.fit, epochs=3))
    for cell, losses in zip(cells[1:4], ({"da": 3.0, "ss": 0.1}, {}, {"da": 300.0, "ss": 10.0}), strict=True):
        stage = board.stage(cell)
        assert stage and stage.folder == tmp_path / cell.folder
        plain_way = student_stage(context, stage.folder, dataclasses.replace(base, losses=losses), teacher)
        assert stage.fingerprint == plain_way.fingerprint
    places = [cells[-1].place(Candidate(factor)).name for factor in (0.1, 1, 10)]
    assert places == ["dkd@0.1", "dkd", "dkd@10"]
    assert [cells[0].place(Candidate()), cells[-2].place(Candidate())] == [cells[0].folder, cells[-2].folder]


RICH = TuningConfig(
    [1.0, 10.0], [0.02, 0.01], rounds=[1], keep=0.5, extend=2, folds=2, val_fraction=0.25, epochs=2, seed=1
)


def test_every_round_fold_and_extension_is_planned_with_a_folder_of_its_own(make: Make) -> None:
    config = make(RICH)
    cells = plan(config)
    place = {cell: number for number, cell in enumerate(cells)}
    tuning = [cell for cell in cells if cell.tuning]
    assert len(tuning) == 2 + 2 * (2 + 2) + 2 * (4 + 4 + 2) and len({cell.folder for cell in cells}) == len(cells)
    for cell in cells:
        assert all(place[other] < place[cell] for other in dependencies(config, cell)), cell
    (final,) = [cell for cell in cells if cell.label == "plain" and not cell.tuning]
    assert [other.name for other in dependencies(config, final)] == [
        f"tuning/scenes-50/{fold}seed1/{STUDENT}/plain@lr{rate}{epochs}"
        for epochs in ("_1epochs", "")
        for rate in ("0.02", "0.01")
        for fold in ("", "fold1/")
    ], "no teacher, no factor and no extension"
    assert final.place(Candidate(None, 0.01)).name == "plain@lr0.01"
    last = Cell("scenes-50", 1, STUDENT, "dkd", tuning=True, extension=2, fold=1)
    assert last in place and last.place(Candidate(100, 0.01)).as_posix() == (
        f"tuning/scenes-50/fold1/seed1/{STUDENT}/dkd@100_lr0.01"
    )
    earlier = {other for other in dependencies(config, last) if other.extension}
    assert earlier == {dataclasses.replace(last, extension=1, fold=fold) for fold in (0, 1)}


class Pretend:
    """An engine that trains nothing: a student's validation OA is that of a function, and None diverges."""

    threads: int | None = None

    def __init__(self, board: Board, oa: Callable[[Candidate, Cell], float | None], slots: int = 1) -> None:
        self.board, self.oa, self.slots = board, oa, slots
        self.done: list[Cell] = []
        self._orders: list[Order] = []

    def start(self, order: Order) -> None:
        self._orders.append(order)

    def wait(self, seconds: float) -> list[tuple[Order, Ended]]:
        ended = []
        for order in self._orders:
            ((cell, candidate),) = order.work
            stage = self.board.stage(cell)
            assert stage and stage.folder == order.out / cell.place(candidate)
            oa = self.oa(candidate, cell) if cell.student else 0.9
            stage.folder.mkdir(parents=True)  # fails for what has been done already
            found = {DIVERGED: "it has"} if oa is None else {"last_epoch": {"val_oa": oa}}
            if oa != -1:
                stage.finish({"seconds": 1.0, **found})
            self.done.append(cell.trial(candidate))
            ended.append((order, Ended("it crashed" if oa == -1 else "")))
        self._orders = []
        return ended

    def close(self) -> None:
        pass


def by_rate(candidate: Candidate, cell: Cell) -> float | None:
    """Best at the smaller learning rate and at a factor of 100."""
    if candidate == Candidate(1, 0.01) and cell.epochs and cell.fold:
        return None
    away = abs(math.log10((candidate.factor or 100) / 100))
    return 0.8 - 0.1 * away - (candidate.learning_rate or 0) + 0.01 * cell.fold


@pytest.mark.parametrize("slots", [1, 5])
def test_the_scheduler_trains_who_goes_on_and_leaves_the_others_out(slots: int, make: Make, tmp_path: Path) -> None:
    config, said = make(RICH), io.StringIO()
    board = Board(config, tmp_path, Console(quiet=True))
    cells = [cell for cell in plan(config) if cell.tuning]
    before = {cell: board.chance(cell) for cell in cells}
    assert sum(before[cell] for cell in cells if cell.label == "dkd" and cell.epochs is None) == 2 * (2 + 1 + 0.5)
    board = Board(config, tmp_path, Console(quiet=True))
    engine = Pretend(board, by_rate, slots)
    scheduler = Scheduler(board, cells, engine, Console(file=said, width=300), tmp_path)
    assert not scheduler.run() and not scheduler.progress.left

    first = [Candidate(factor, rate) for factor in (1.0, 10.0) for rate in (0.02, 0.01)]
    wanted = {(one, 1) for one in first} | {(Candidate(10, rate), None) for rate in (0.02, 0.01)}
    wanted |= {(Candidate(factor, 0.01), None) for factor in (100, 1000)}
    for fold in (0, 1):
        found = [(cell.candidate, cell.epochs) for cell in engine.done if (cell.label, cell.fold) == ("dkd", fold)]
        assert len(found) == len(set(found)) and set(found) == wanted
        (alone,) = [
            cell.candidate for cell in engine.done if (cell.label, cell.fold, cell.epochs) == ("plain", fold, None)
        ]
        assert alone == Candidate(None, 0.01)
    final = Cell("scenes-50", 0, STUDENT, "dkd")
    assert board.candidate(final) == Candidate(100, 0.01)
    result = board.choice(final)
    assert result and result.last[Candidate(100, 0.01)] == pytest.approx(0.795), "the mean of the folds"
    left_out = [cell for cell in cells if board.needed(cell) is False]
    assert len(left_out) == len(cells) - len(engine.done) == 2 * 2 + 2 * 1
    assert {board.chance(cell) for cell in left_out} == {0.0}
    assert f"{len(cells)} of {len(cells)} done" in said.getvalue() and "failed" not in said.getvalue()
    count = len(engine.done)
    again = Scheduler(Board(config, tmp_path, Console(quiet=True)), cells, engine, Console(file=said), tmp_path)
    assert not again.run() and len(engine.done) == count, "nothing is trained again"
    kept = json.loads((tmp_path / "tuning.json").read_text(encoding="utf-8"))["chosen"]["scenes-50"][STUDENT]
    assert (kept["dkd"]["factor"], kept["dkd"]["trainings"]) == (100, 2 * 8)


def test_a_crashed_trial_fails_what_needs_it_and_no_more(make: Make, tmp_path: Path) -> None:
    def oa(candidate: Candidate, cell: Cell) -> float | None:
        return -1 if cell.label == "dkd" and candidate.factor == 10 and cell.epochs else by_rate(candidate, cell)

    config = make(RICH)
    board = Board(config, tmp_path, Console(quiet=True))
    cells = [cell for cell in plan(config) if cell.tuning]
    failures = Scheduler(board, cells, Pretend(board, oa), Console(quiet=True), tmp_path).run()
    reasons = set(failures.values())
    assert all("dkd" in name for name in failures) and "it crashed" in reasons
    assert all(re.match("it crashed|it needs tuning/.* which has failed", reason) for reason in reasons)


class Here:
    """An engine that does the cells in this process, and is killed after a number of them."""

    slots = 1
    threads: int | None = 1

    def __init__(self, most: int = 1000) -> None:
        self.left, self.done = most, list[str]()
        self._order: Order | None = None

    def start(self, order: Order) -> None:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        self._order = order

    def wait(self, seconds: float) -> list[tuple[Order, Ended]]:
        order, self._order = self._order, None
        if order is None:
            return []
        with open_log(order) as log:
            ended = attempt(order, plain_console(file=log, width=160))
        ((cell, candidate),) = order.work
        self.done.append(cell.place(candidate).as_posix())
        return [(order, ended)]

    def close(self) -> None:
        pass


@pytest.mark.slow
def test_a_killed_grid_goes_on_and_trains_with_what_was_chosen(make: Make, tiny_scenes: Path, tmp_path: Path) -> None:
    """A real search: two folds, two rounds, an extension, and its report."""
    tuning = TuningConfig(
        [1.0], [0.02, 0.01], rounds=[1], keep=0.5, extend=1, folds=2, val_fraction=0.25, epochs=2, seed=1
    )
    config, quiet, out = make(tuning), Console(quiet=True), tmp_path / "out"
    said = io.StringIO()
    seconds = dry_run(config, out, console=Console(file=said, width=300))
    assert seconds and said.getvalue().count("if reached") == 2 * 2 * 2 + 2 + 1 and not out.exists()

    first, second = Here(5), Here()
    with pytest.raises(KeyboardInterrupt):
        grid(config, out, engine=first, console=quiet)
    outcome = grid(config, out, engine=second, console=quiet)
    assert not outcome.failures and len(first.done) == 5 and not set(first.done) & set(second.done)
    # teachers; for each fold two candidates, one survivor and for dkd one extension; the final cells
    assert len(first.done + second.done) == 3 + 2 * (2 + 1) + 2 * (2 + 1 + 1) + 2

    index = scan(tiny_scenes)
    files = [out / "tuning" / "scenes-50" / fold / "seed1" / "split.csv" for fold in ("", "fold1")]
    splits = [read_split(file, index) for file in files]
    assert not set(splits[0].val) & set(splits[1].val) and (splits[0].test == splits[1].test).all()

    kept = json.loads((out / "tuning.json").read_text(encoding="utf-8"))["chosen"]["scenes-50"][STUDENT]
    for label, row in ((row.variant, row) for row in outcome.results["scenes-50"].rows if row.student):
        assert row.more.get("factor") == kept[label]["factor"] and row.more["lr"] == kept[label]["learning_rate"]
        factor, rate = kept[label]["factor"], kept[label]["learning_rate"]
        name = f"{label}@lr{rate:g}" if factor in (None, 1) else f"{label}@{factor:g}_lr{rate:g}"
        stage = json.loads((out / "scenes-50" / "seed0" / STUDENT / name / "stage.json").read_text(encoding="utf-8"))
        assert stage["settings"]["student"]["fit"]["lr"] == rate and stage["settings"]["student"]["fit"]["epochs"] == 2
    assert kept["plain"]["factor"] is None and (kept["dkd"]["trainings"], kept["plain"]["trainings"]) == (8, 6)
    assert {network.label for network in Run.open(out).cell().networks} == {"teacher", "plain", "dkd"}
    assert "on 2 folds of validation images of seed 1" in outcome.results["scenes-50"].notes
    assert dry_run(config, out, console=Console(file=said, width=300)) == 0
    assert said.getvalue().count("left out") == 2 * 2
