"""Documents are filled with the tables of result files, checked against them, and refused where markers do not fit."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from scenedistill.core.errors import UserError
from scenedistill.experiments.results.record import Result, Row, Scalar, read_result, write_result
from tables import END, fill, main, names_in

DOCUMENT = f"# Title\n\nInline `<!-- table:aid20 -->` stays.\n\n<!-- table:aid20 -->\nold\n{END}\n\nEnd"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    result = Result(
        experiment="aid20",
        command="scenedistill run AID",
        date="2026-01-31",
        hardware={},
        versions={},
        data="AID",
        pixels=128,
        train_ratio=0.2,
        split_hash="a" * 16,
        epochs=45,
        wall_seconds=60.0,
        rows=(Row("plain", "light", None, 0, oa=0.70), Row("plain", "light", None, 1, oa=0.72)),
    )
    write_result(result, tmp_path / "results" / "aid20.json")
    return tmp_path / "results"


def test_fill_replaces_only_the_text_between_markers(results: Path) -> None:
    filled = fill(DOCUMENT, results, "README.md")
    before, _, rest = filled.partition("\n\n| network")
    assert before == "# Title\n\nInline `<!-- table:aid20 -->` stays.\n\n<!-- table:aid20 -->"
    assert rest.endswith(f"over seeds.\n\n{END}\n\nEnd")  # no newline at the end is added
    assert "old" not in filled
    assert fill(filled, results, "README.md") == filled


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- table:aid20 -->\n", "line 1: table:aid20 has no end"),
        (f"x\n<!-- table:aid20 -->\n<!-- table:b -->\n{END}\n", "line 2: table:aid20 has no end before line 3"),
        (f"x\n{END}\n", "line 2: .* without a"),
        (f"<!-- table:none -->\n{END}\n", "no result file .*none.json"),
    ],
)
def test_unmatched_markers_are_refused_with_their_line(results: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        fill(text, results, "README.md")


def test_the_command_fills_then_agrees(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document, plain = tmp_path / "README.md", tmp_path / "other.md"
    document.write_text(DOCUMENT, encoding="utf-8")
    plain.write_text("nothing to fill", encoding="utf-8")
    arguments = [str(document), str(plain), "--results", str(results)]
    assert main([*arguments, "--check"]) == 1
    assert "README.md: a table differs" in capsys.readouterr().err
    assert document.read_text(encoding="utf-8") == DOCUMENT  # checking changes nothing
    assert main(arguments) == 0
    assert "tables updated (aid20)" in capsys.readouterr().out
    assert main([*arguments, "--check"]) == 0
    assert capsys.readouterr() == ("", "")
    assert plain.read_text(encoding="utf-8") == "nothing to fill"


def test_the_command_reports_missing_files_and_unmatched_markers(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "absent.md")]) == 1
    assert "There is no file" in capsys.readouterr().err
    (tmp_path / "a.md").write_text(f"{END}\n", encoding="utf-8")
    assert main([str(tmp_path / "a.md"), "--results", str(results), "--check"]) == 1
    assert "without a" in capsys.readouterr().err


def test_the_short_table_equals_values_computed_by_hand(results: Path) -> None:
    more: dict[str, Scalar] = {"bytes": 2_500_000, "train_seconds": 90.0}
    rows = []
    for seed, (teacher, plain, dkd) in enumerate([(0.80, 0.70, 0.78), (0.82, 0.70, 0.80)]):
        rows += [
            Row("teacher", None, "large", seed, oa=teacher, milliseconds=30.0),
            Row("plain", "light", None, seed, oa=plain, parameters=5, milliseconds=4.0 + seed, more=more),
            Row("dkd", "light", "large", seed, oa=dkd, parameters=5, milliseconds=6.0 + seed, more=more),
            Row("other", "light", "large", seed, oa=plain, parameters=9, milliseconds=9.0),  # with DA modules, say
        ]
    write_result(dataclasses.replace(read_result(results / "aid20.json"), rows=tuple(rows)), results / "aid20.json")
    text = f"<!-- table:aid20 short -->\n{END}"
    lines = fill(text, results, "README.md").splitlines()[2:8]
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert table[0][2:] == [
        "OA (%)", "ahead of plain (points)", "ahead of its teacher (points)", "size (MB)", "ms per image",
        "training (min)",
    ]  # fmt: skip
    assert table[2] == ["large", "teacher", "81.00 ± 1.41", "-", "-", "-", "30.00", "-"]
    # a difference of 10 and 12 points: half the interval is 12.706, the quantile of one degree of freedom, times 1
    assert table[3] == ["light", "plain", "70.00 ± 0.00", "-", "-11.00 [-23.71, +1.71]", "2.50", "5.50", "1.50"]
    assert table[4][2:] == ["79.00 ± 1.41", "+9.00 [-3.71, +21.71]", "-2.00 [-2.00, -2.00]", "2.50", "5.50", "1.50"]
    assert table[5][6] == "9.00"
    assert names_in(text) == ["aid20 short"]
