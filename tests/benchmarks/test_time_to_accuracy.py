"""The race to a fixed OA is run by real loops, and its record becomes a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from records.race import Race, RaceRow
from scenedistill.data.scenes import scan
from scenedistill.data.splits.draw import make_split
from scenedistill.data.splits.files import write_split
from scenedistill.experiments.results.measurements import read_record
from scenedistill.models.create import build_student
from scenedistill.models.files import NetCard, save_net
from tables import table_of

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "time_to_accuracy.py"


@pytest.mark.slow
def test_loops_race_on_equal_terms_and_a_failed_one_does_not_stop_them(
    tiny_scenes: Path, commands: Any, tmp_path: Path
) -> None:
    index = scan(tiny_scenes)
    split = make_split(index, 0.5, 0, 0.0)
    (file,) = write_split(split, index, tmp_path / "split.csv")
    torch.manual_seed(0)
    teacher = build_student("table1_printed", len(index.classes), image_size=32)
    save_net(teacher, NetCard("table1_printed", index.classes, 3, 32, stored_size=32), tmp_path / "teacher.safetensors")
    results = tmp_path / "race.json"
    loops = ["scenedistill, from the store", "textbook-default"]
    options = ["--student", "table1_printed", "--epochs", "2", "--batch_size", "8", "--target", "0.01"]
    given = (tiny_scenes, tmp_path / "teacher.safetensors", results, "--split", file)
    ended = commands(*given, *options, "--loops", "no such loop", *loops, script=SCRIPT)
    assert ended.code == 1 and "no such loop: left out" in ended.err, ended.out + ended.err
    race = read_record(results, Race, RaceRow)
    assert [row.loop for row in race.rows] == loops
    for row in race.rows:
        assert 0 <= row.final_oa <= 1
        if row.seconds_to_target is not None:
            assert 0 < row.seconds_to_target <= row.seconds and row.epochs_to_target in (1, 2)
    table = table_of(results)
    assert "seconds to 1% OA" in table and "| textbook-default | default: fp32" in table
