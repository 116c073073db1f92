"""The benchmark of shorter trainings of a teacher, small: every way trains, and frozen stages stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from scenedistill.experiments.results.record import read_result

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "teacher_time.py"


@pytest.mark.slow
def test_every_way_is_trained_from_the_same_weights(
    tiny_run: Path, tiny_scenes: Path, tiny_options: tuple[str, ...], commands: Any, tmp_path: Path
) -> None:
    start = tiny_run / "seed3" / "teacher" / "weights.safetensors"
    options = [*tiny_options, "--teacher.weights", start, "--image_size", "64", "--data.stored_size", "64"]
    results = tmp_path / "teacher_time.json"
    ended = commands(tiny_scenes, results, "--out", tmp_path / "out", *options, script=SCRIPT)
    assert ended.code == 0, ended.out + ended.err
    result = read_result(results)
    assert len({row.teacher for row in result.rows}) == len(result.rows) == 5
    assert "2 frozen stages" in result.notes
    before = load_file(start)
    after = load_file(tmp_path / "out" / "2_frozen_stages" / "seed3" / "teacher" / "weights.safetensors")
    same = {name for name in before if name.startswith("backbone.") and torch.equal(before[name], after[name])}
    assert same and same < {name for name in before if name.startswith("backbone.")}
