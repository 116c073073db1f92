"""The table of trained networks against figures worked out by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from scenedistill.experiments.results.record import Result, Row
from scenedistill.experiments.results.table import result_table


def example(rows: tuple[Row, ...] | None = None) -> Result:
    made = (
        Row("teacher", None, "resnet101", 0, oa=0.92, aa=0.91, kappa=0.9, macro_f1=0.905, parameters=42_600_000),
        Row(
            "plain",
            "light",
            None,
            0,
            oa=0.70,
            aa=0.69,
            kappa=0.68,
            macro_f1=0.69,
            parameters=1_100_000,
            milliseconds=3.0,
        ),
        Row(
            "plain",
            "light",
            None,
            1,
            oa=0.72,
            aa=0.71,
            kappa=0.70,
            macro_f1=0.71,
            parameters=1_100_000,
            milliseconds=5.0,
        ),
        Row("dkd", "light", "resnet101", 0, oa=0.80, aa=0.79, kappa=0.78, macro_f1=0.79, parameters=1_100_000),
        Row("dkd", "light", "resnet101", 1, oa=0.80, aa=0.79, kappa=0.78, macro_f1=0.79, parameters=1_100_000),
    )
    return Result(
        experiment="aid20",
        command="scenedistill run AID",
        date="2026-01-31",
        hardware={"cpu": "Some CPU", "cores": 2, "memory_gib": 16.0, "gpu": None},
        versions={"python": "3.11.7"},
        data="AID",
        pixels=128,
        train_ratio=0.2,
        split_hash="a" * 16,
        epochs={"student": 45, "teacher": 25},
        wall_seconds=3 * 3600 + 600,
        rows=made if rows is None else rows,
    )


def table_rows(table: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines() if line.startswith("|")
    ]


def test_the_table_equals_values_computed_by_hand() -> None:
    table = result_table(example())
    head, _, teacher, plain, dkd = table_rows(table)
    assert head == [
        *("network", "training", "seeds", "OA (%)", "gain (points)", "95 % interval of the gain"),
        *("AA (%)", "kappa", "macro F1 (%)", "parameters (M)", "ms per image"),
    ]
    assert teacher == ["resnet101", "teacher", "1", "92.00", "-", "-", "91.00", "0.900", "90.50", "42.60", "-"]
    # 70 and 72: mean 71, sample deviation sqrt(2); gains 10 and 8: mean 9, sample deviation sqrt(2), paired by seed;
    # Student's t of one degree of freedom is 12.71, its standard error 1
    spread = "1.41"
    assert plain == [
        *(
            "light",
            "plain",
            "2",
            f"71.00 ± {spread}",
            "-",
            "-",
            f"70.00 ± {spread}",
            "0.690 ± 0.014",
            f"70.00 ± {spread}",
        ),
        *("1.10", "4.00"),
    ]
    assert dkd == [
        *("light", "dkd, from resnet101", "2", "80.00 ± 0.00", f"+9.00 ± {spread}", "-3.71 to +21.71", "79.00 ± 0.00"),
        *("0.780 ± 0.000", "79.00 ± 0.00", "1.10", "-"),
    ]
    assert table.splitlines()[-1] == (
        "AID, 20 % training, 128 pixels, 45 epochs (student), 25 epochs (teacher); 3 h 10 min on Some CPU, 2 cores; "
        "2026-01-31. ± is the sample standard deviation over seeds."
    )


def test_the_gain_pairs_seeds_and_says_how_many() -> None:
    rows = (
        Row("plain", "light", None, 1, oa=0.72),
        Row("plain", "light", None, 5, oa=0.10),  # no partner
        Row("plain", "other", None, 0, oa=0.99),  # another student
        Row("dkd", "light", "t", 0, oa=0.80),
        Row("dkd", "light", "t", 1, oa=0.70),
        Row("dkd", "third", "t", 1, oa=0.70),  # no plain student at all
    )
    lines = {(line[0], line[1]): line for line in table_rows(result_table(example(rows)))}
    assert lines["light", "dkd, from t"][4] == "-2.00 (n=1)"
    assert lines["third", "dkd, from t"][4] == "-"
    assert lines["light", "plain"][2] == "2"


def test_epochs_are_shown_where_they_differ_from_the_usual_ones() -> None:
    rows = (
        Row("plain", "light", None, 0, oa=0.7),
        Row("plain", "pretrained", None, 0, oa=0.8, more={"epochs": 16}),
        Row("plain", "pretrained", None, 1, oa=0.8, more={"epochs": 16}),
    )
    head, _, *lines = table_rows(result_table(example(rows)))
    assert [line[head.index("other epochs")] for line in lines] == ["-", "16"]


def test_columns_without_figures_are_left_out_and_pipes_escaped() -> None:
    table = result_table(example((Row("plain", "a|b", None, 0, oa=0.5),)))
    assert table.splitlines()[0] == "| network | training | seeds | OA (%) |"
    assert "a\\|b" in table
    assert "±" not in table


def test_rows_of_different_teachers_and_methods_are_not_mixed() -> None:
    rows = (
        Row("dkd", "s", "big", 0, oa=0.8),
        Row("dkd", "s", "huge", 0, oa=0.9),
        Row("kd", "s", "big", 0, oa=0.7),
        Row("plain", "s", None, 0, oa=0.6),
        Row("teacher", None, "huge", 0, oa=0.95),
        Row("teacher", None, "big", 0, oa=0.94),
    )
    lines = table_rows(result_table(example(rows)))[2:]
    assert [line[:2] for line in lines] == [
        ["big", "teacher"],
        ["huge", "teacher"],
        ["s", "plain"],
        ["s", "dkd, from big"],
        ["s", "dkd, from huge"],
        ["s", "kd, from big"],
    ]
    assert [line[4] for line in lines] == ["-", "-", "-", "+20.00", "+30.00", "+10.00"]


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"epochs": 30, "wall_seconds": 20.0}, "30 epochs; 20 s on"),
        ({"hardware": {"gpu": "Some GPU", "cpu": "Some CPU", "cores": 16}}, "on Some GPU, Some CPU, 16 cores;"),
        (
            {"train_ratio": None, "wall_seconds": 119.0},
            "AID, 128 pixels, 45 epochs (student), 25 epochs (teacher); 2 min",
        ),
        ({"notes": "One reading."}, "2026-01-31. One reading."),
    ],
)
def test_the_line_below_the_table_names_data_settings_time_and_machine(change: dict[str, Any], part: str) -> None:
    assert part in result_table(dataclasses.replace(example(), **change))
