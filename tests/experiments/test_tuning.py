"""Tuning: what a factor does to a method, how one is chosen, and that only validation images decide."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scenedistill.config import DataConfig, FitConfig, RunConfig, StudentConfig, StudentFitConfig
from scenedistill.experiments.grid.config import TuningConfig
from scenedistill.experiments.grid.tuning import Choice, choose, tuned, tuning_settings, tuning_student, write_choices
from scenedistill.losses.registry import resolve_weights


def weights(student: StudentConfig) -> dict[str, float]:
    return resolve_weights(student.method, student.losses)


def test_a_factor_scales_all_losses_that_ask_the_teacher_and_no_other() -> None:
    assert weights(tuned(StudentConfig(method="dkd"), 10)) == {"ce": 1, "da": 10, "ss": 10}
    assert weights(tuned(StudentConfig(method="kd"), 0.1)) == {"ce": 0.1, "kd": 0.09}, "to the digit"
    assert weights(tuned(StudentConfig(method="dkd", losses={"ss": 0.0}), 10)) == {"ce": 1, "da": 10}
    assert weights(tuned(StudentConfig(method="dkd", losses={"da": 0.3}), 0.1)) == {"ce": 1, "da": 0.03, "ss": 0.1}


def test_the_factor_one_is_the_method_itself_and_no_other_training() -> None:
    student = StudentConfig(method="kd")
    assert tuned(student, 1) == student and tuned(student, 1).losses == {}


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
    assert choose(scores) == chosen


def test_tuning_runs_leave_a_validation_part_out_and_change_nothing_else() -> None:
    base = RunConfig(seeds=[0, 1, 2], data=DataConfig(train_ratio=0.2))
    made = tuning_settings(base, TuningConfig(val_fraction=0.25, seed=7))
    assert (made.seeds, made.data.val_fraction, made.data.train_ratio) == ([7], 0.25, 0.2)
    assert made.teacher == base.teacher and made.views == base.views and base.data.val_fraction == 0

    student = StudentConfig(method="dkd", fit=StudentFitConfig(**vars(FitConfig(epochs=30))))
    assert tuning_student(student, 1, TuningConfig()).fit.epochs == 30
    short = tuning_student(student, 10, TuningConfig(epochs=4))
    assert short.fit.epochs == 4 and weights(short)["da"] == 10 and student.fit.epochs == 30


def test_all_scores_and_the_choice_are_kept(tmp_path: Path) -> None:
    choice = Choice("AID-20", "table1_resnet", "kd", {10.0: None, 0.1: 0.5, 1.0: 0.6250001}, 1.0, 5)
    write_choices([choice], TuningConfig(epochs=5), 30, tmp_path / "tuning.json")
    kept = json.loads((tmp_path / "tuning.json").read_text(encoding="utf-8"))
    assert (kept["epochs"], kept["val_fraction"], kept["factors"]) == (5, 0.2, [0.1, 1.0, 10.0])
    found = kept["chosen"]["AID-20"]["table1_resnet"]["kd"]
    assert found == {"factor": 1.0, "validation_oa": {"0.1": 0.5, "1": 0.625, "10": None}}


def test_separate_epochs_and_a_diverged_method_are_reported(tmp_path: Path) -> None:
    choices = [Choice("b", "n", "kd", {1.0: 0.5}, 1.0, 30), Choice("b", "n", "sp", {1.0: None}, None, 60)]
    write_choices(choices, TuningConfig(factors=[1.0]), 30, tmp_path / "tuning.json")
    kept = json.loads((tmp_path / "tuning.json").read_text(encoding="utf-8"))
    assert kept["epochs"] == 30 and "epochs" not in kept["chosen"]["b"]["n"]["kd"]
    assert kept["chosen"]["b"]["n"]["sp"] == {"factor": None, "validation_oa": {"1": None}, "epochs": 60}
