"""The comparison of methods with all others: the command, its record and figure, and the section of the report."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scenedistill.cli import main
from scenedistill.core.errors import UserError
from scenedistill.experiments.compare import compare
from scenedistill.experiments.results.comparisons import ComparisonResult, ComparisonRow, comparison_table
from scenedistill.experiments.results.measurements import read_record
from scenedistill.experiments.results.pairs import paired_gain
from scenedistill.metrics.outputs import OUTPUTS
from scenedistill.runs.run import Run


def test_a_method_is_compared_with_every_other_training_of_its_student(grid_folder: Path) -> None:
    result = compare(grid_folder, cell="tiny-50")
    assert [(row.method, row.other) for row in result.rows] == [
        ("dkd", "teacher"),
        ("dkd", "plain"),
        ("dkd", "kd_hot"),
    ]
    networks = {(n.label, n.seed): n for n in Run.open(grid_folder).cell("tiny-50").networks}
    _, plain, copy = result.rows
    ours, theirs = ({seed: 100 * networks[label, seed].tested["oa"] for seed in (0, 1)} for label in ("dkd", "plain"))
    gain = paired_gain(ours, theirs)
    assert gain is not None and (plain.points, plain.low, plain.high) == (gain.mean, gain.low, gain.high)
    right = [
        sum(int((o.predicted == o.labels).sum()) for seed in (0, 1) if (o := networks[label, seed].outputs))
        for label in ("dkd", "plain")
    ]
    assert plain.points == pytest.approx(100 * (right[0] - right[1]) / 64) and plain.images is not None
    assert copy.seeds == 1 and copy.points == 0 and copy.p is None and copy.image_p == 1 and not copy.clear


def test_the_command_prints_writes_and_draws(
    grid_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results, figure = tmp_path / "lead.json", tmp_path / "lead.png"
    given = ["compare", str(grid_folder), "--methods", "[kd_hot]", "--results", str(results), "--figure", str(figure)]
    assert main(given) == 0
    printed = capsys.readouterr().out
    assert "kd_hot" in printed and "not decided" in printed
    record = read_record(results, ComparisonResult, ComparisonRow)
    assert {row.other for row in record.rows} == {"teacher", "plain", "dkd"}
    assert comparison_table(record).splitlines()[2] in printed
    assert np.asarray(Image.open(figure).convert("L")).std() > 5
    assert json.loads(results.read_text(encoding="utf-8"))["kind"] == "comparison"


def test_without_outputs_the_comparison_over_seeds_is_left(copied: Path) -> None:
    for path in copied.rglob(OUTPUTS):
        path.unlink()
    (row,) = (row for row in compare(copied).rows if row.other == "plain")
    assert row.low is not None and row.p is not None and row.images is None and row.image_p is None


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"methods": ["dk"]}, "has no method dk. There are: dkd, kd_hot, plain"),
        ({"cell": "tiny-1"}, "has no cell tiny-1. There are: tiny-25, tiny-50"),
    ],
)
def test_a_wrong_name_is_answered_with_those_there_are(
    settings: dict[str, Any], reason: str, grid_folder: Path
) -> None:
    with pytest.raises(UserError, match=re.escape(reason)):
        compare(grid_folder, **settings)


def test_a_figure_of_another_kind_is_refused_before_the_work(
    grid_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(grid_folder), "--figure", "lead.gif"]) == 1
    assert "expected a .png, .svg or .pdf file" in capsys.readouterr().err


def test_the_verdict_needs_both_corrected_p_values() -> None:
    row = ComparisonRow("net", "dkd", "kd", 1.0, 3, 0.2, 1.8, 0.03, 100, 0.4, 1.6, 0.02)
    assert row.verdict == "ahead"
    assert dataclasses.replace(row, points=-1.0).verdict == "behind"
    for p, verdict in ((0.2, "no clear difference"), (None, "not decided")):
        for doubtful in (dataclasses.replace(row, p=p), dataclasses.replace(row, image_p=p)):
            assert doubtful.verdict == verdict


def test_the_report_has_the_comparison_and_its_picture(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    section = text[text.index('id="comparison"') :]
    assert "Comparison with all others" in section and "data:image/svg+xml;base64," in section
    assert "no clear difference" in section
