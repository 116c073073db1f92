"""Tables of the report: figures against those worked out here, order, what is left out."""

from __future__ import annotations

import math
import statistics
from typing import Any, cast

import pytest

from scenedistill.reporting.html.config import ReportConfig
from scenedistill.reporting.html.focus import choose
from scenedistill.reporting.html.tables import (
    Entry,
    class_table,
    cost_table,
    mean_entry,
    number_entry,
    published_tables,
    results_table,
    seeds_table,
    text_entry,
)
from scenedistill.reporting.html.tuning_table import tuning_table
from scenedistill.runs.run import Run


def test_a_mean_entry_holds_mean_spread_and_number_of_known_values() -> None:
    both = mean_entry([0.5, 0.6], factor=100)
    assert both == Entry("55.00 ± 7.07", 55.0, both.spread) and both.spread == pytest.approx(7.0710678)
    assert mean_entry([0.5, None, 0.6], factor=100).text == "55.00 ± 7.07 (n=2)"
    assert mean_entry([0.5], factor=100) == Entry("50.00", 50.0)
    assert mean_entry([None]).text == number_entry(None).text == "-" and number_entry(math.nan).text == "-"
    assert mean_entry([-1.0, 1.0], "{:+.1f}").text == "+0.0 ± 1.4"


def test_results_hold_the_paired_gain(made: Any) -> None:
    (cell,) = Run.open(made.run).cells
    table = results_table(cell, "plain")
    rows = {row[1].text: dict(zip(table.head, row, strict=True)) for row in table.rows}
    oa = {(n.label, n.seed): 100 * n.tested["oa"] for n in cell.networks}
    gains = [oa["dkd", seed] - oa["plain", seed] for seed in (0, 1)]
    middle, half = statistics.fmean(gains), 12.706 * statistics.stdev(gains) / math.sqrt(2)  # t of one degree
    assert rows["dkd"]["gain (points)"].text == f"{middle:+.2f}"
    low, high = rows["dkd"]["95 % interval of the gain"].text.split(" to ")
    assert float(low) == pytest.approx(middle - half, abs=0.02) and float(high) == pytest.approx(
        middle + half, abs=0.02
    )
    assert rows["plain"]["gain (points)"].text == rows["teacher"]["gain (points)"].text == "-"
    assert rows["dkd"]["OA (%)"].sort == pytest.approx(statistics.fmean([oa["dkd", 0], oa["dkd", 1]]))
    assert rows["dkd"]["OA (%)"].spread == pytest.approx(statistics.stdev([oa["dkd", 0], oa["dkd", 1]]))
    assert table.figures == [False, False, *[True] * 7]
    one = seeds_table(cell)
    assert one.head[2:] == ("seed 0", "seed 1") and one.rows[-1][2].text == f"{oa['dkd', 0]:.2f}"


def test_cost_and_class_tables_hold_the_recorded_values(made: Any) -> None:
    data = Run.open(made.run)
    costs = cost_table(data.cells[0])
    assert len(costs.rows) == 3 and all(len(row) == len(costs.head) for row in costs.rows)
    assert costs.rows[0][3].sort == data.cells[0].networks[0].tested["cost"]["parameters"] / 1e6
    focus = choose(data, ReportConfig())
    classes = class_table(focus.cell, focus.groups)
    assert [row[0].text for row in classes.rows] == list(focus.cell.classes)
    before, after = classes.rows[0][2].sort, classes.rows[0][3].sort
    assert before is not None and after is not None and classes.rows[0][4].sort == pytest.approx(after - before)


def test_tuning_shows_every_trial() -> None:
    found = {"factor": 0.1, "validation_oa": {"0.1": 0.5, "1": None}}
    tuning = {
        "factors": [0.1, 1],
        "val_fraction": 0.2,
        "seed": 0,
        "epochs": 3,
        "chosen": {"AID-20": {"net": {"kd": found}}},
    }
    table = tuning_table(tuning)
    assert table.head[3:] == ("OA (%) at 0.1", "OA (%) at 1", "chosen factor")
    assert [entry.text for entry in table.rows[0]] == ["AID-20", "net", "kd", "50.00", "-", "0.1"]
    assert "20 % of the training part" in table.note


def test_tuning_with_learning_rates_shows_the_last_round() -> None:
    def score(epochs: int, factor: float | None, rate: float, oa: float | None) -> dict[str, object]:
        return {"epochs": epochs, "factor": factor, "learning_rate": rate, "validation_oa": oa}

    spent = {"trainings": 5, "trained_epochs": 11}
    first = [score(1, factor, rate, 0.4) for factor in (0.1, 1) for rate in (0.01, 0.1)]
    kd = {
        "factor": 10,
        "learning_rate": 0.1,
        "scores": [*first, score(4, 1, 0.1, 0.5), score(4, 10, 0.1, 0.6)],
        **spent,
    }
    plain = {"factor": None, "learning_rate": 0.01, "scores": [score(4, None, 0.01, 0.7), score(4, None, 0.1, None)]}
    wild = {"factor": None, "learning_rate": None, "scores": [score(1, 1, 0.1, None)]}
    tuning = {
        "factors": [0.1, 1], "val_fraction": 0.2, "seed": 0, "epochs": 4, "rounds": [1], "keep": 0.25, "folds": 2,
        "chosen": {"AID-20": {"net": {"kd": kd, "plain": {**plain, **spent}, "wild": {**wild, **spent}}}},
    }  # fmt: skip
    table = tuning_table(tuning)
    heads = ("learning rate", "OA (%) at 0.1", "OA (%) at 1", "OA (%) at 10", "OA (%) without a factor")
    assert table.head[3:] == (*heads, "chosen factor")
    assert [[entry.text for entry in row[2:]] for row in table.rows] == [
        ["kd", "0.1", "-", "50.00", "60.00", "-", "10"],
        ["plain", "0.01", "-", "-", "-", "70.00", "chosen"],
        ["plain", "0.1", "-", "-", "-", "-", "-"],
        ["wild", "0.1", "-", "-", "-", "-", "-"],
    ]
    assert "2 parts, each of 20 %" in table.note and "5 trainings and 11 epochs for every method" in table.note
    assert "rounds of 1 epochs, of which the best 25 % went on" in table.note


def test_published_accuracies_have_a_table_of_their_own() -> None:
    pytest.importorskip("scenedistill.experiments.results.published")
    (table,) = published_tables([("AID", 0.2), ("AID", 0.2), ("my own images", 0.2)])
    assert table.caption.startswith("Published by others: AID, 20 % training")
    assert all(row[-1].link.startswith("https://") for row in table.rows)
    figures = cast(list[float], [row[table.head.index("OA (%)")].sort for row in table.rows])
    assert figures == sorted(figures, reverse=True) and all(50 < figure < 100 for figure in figures if figure)


def test_a_text_entry_is_sorted_as_text() -> None:
    assert text_entry(3) == Entry("3")
