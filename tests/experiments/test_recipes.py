"""The settings files that users start from are what was measured."""

from __future__ import annotations

from pathlib import Path

import pytest
from jsonargparse import ArgumentParser

from scenedistill.commands.grid import grid_config
from scenedistill.commands.grid import parser as grid_parser
from scenedistill.commands.parsing import build_config
from scenedistill.config import RunConfig
from scenedistill.experiments.checks import check_settings
from scenedistill.experiments.grid.config import student_of
from scenedistill.losses.registry import METHODS

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def read_run(name: str) -> RunConfig:
    parser = ArgumentParser()
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(RunConfig)
    return build_config(RunConfig, parser.parse_args(["--config", str(CONFIGS / f"{name}.yaml")]))


@pytest.mark.parametrize(
    ("recipe", "grid", "label"),
    [("pretrained", "lite_aid20", "dkd_plus"), ("from_scratch", "paper_aid20", "dkd_plus")],
)
def test_a_recipe_equals_the_student_of_its_grid(recipe: str, grid: str, label: str) -> None:
    config = read_run(recipe)
    check_settings(config)
    measured = grid_config(grid_parser().parse_args([str(CONFIGS / f"{grid}.yaml")]))
    student = student_of(measured, config.student.name, label)
    assert config.student.loss_weights() == student.loss_weights()
    assert config.student.weights == student.weights and not config.student.dual_attention
    assert config.student.schedule(2000).ema_decay == student.schedule(2000).ema_decay


@pytest.mark.parametrize(
    ("search", "label", "method"),
    [("table1_search", "dkd30_att", "dkd"), ("table1_search", "da30_ss1_kd", "dkd_plus")],
)
def test_the_weights_of_our_methods_are_those_of_the_search(search: str, label: str, method: str) -> None:
    config = grid_config(grid_parser().parse_args([str(CONFIGS / f"{search}.yaml")]))
    found = student_of(config, "table1_resnet", label)
    assert found.loss_weights() == METHODS[method]


def test_the_search_file_contains_the_chosen_settings() -> None:
    search = grid_config(grid_parser().parse_args([str(CONFIGS / "lite_search.yaml")]))
    chosen = student_of(search, "tf_efficientnet_lite0", "kd_da_ss_ema")
    recipe = read_run("pretrained").student
    assert chosen.loss_weights() == recipe.loss_weights()
    assert chosen.fit.ema_decay == recipe.fit.ema_decay
