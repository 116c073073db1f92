"""Tables, deviations and durations as people read them."""

from __future__ import annotations

from scenedistill.core.text import duration, markdown_table, plus_minus, spread


def test_a_table_sets_words_left_and_figures_right() -> None:
    assert markdown_table(["network", "OA (%)"], [["a|b", 81.5], [r"c\|d", "-"]], words=(0,)).splitlines() == [
        "| network | OA (%) |",
        "| --- | ---: |",
        r"| a\|b | 81.5 |",
        r"| c\|d | - |",
    ]


def test_a_deviation_follows_its_mean() -> None:
    assert plus_minus(0.5, 0.01, factor=100) == "50.00 ± 1.00"
    assert (plus_minus(1.0, None), plus_minus(None, None)) == ("1.00", "-")


def test_a_spread_is_the_sample_standard_deviation() -> None:
    assert (spread([]), spread([1.0]), spread([1.0, 3.0], "{:+.1f}")) == ("-", "1.00", "+2.0 ± 1.4")


def test_missing_seeds_are_counted() -> None:
    assert spread([1.0, 3.0], "{:.1f}", wanted=3) == "2.0 ± 1.4 (n=2)"
    assert spread([1.0, 3.0], "{:.1f}", wanted=2) == "2.0 ± 1.4"


def test_durations_are_written_in_readable_units() -> None:
    found = [duration(seconds) for seconds in (None, 3, 600, 3660 * 3, 86400 * 3)]
    assert found == ["?", "3 s", "10 min", "3 h 03 min", "3.0 days"]
