"""Paired gains against numbers from a table of Student's t."""

from __future__ import annotations

import pytest

from scenedistill.experiments.results.pairs import Gain, own_methods, paired_gain, pairs_lines
from scenedistill.experiments.results.record import Result, Row
from scenedistill.experiments.results.table import cells


def test_the_interval_is_that_of_students_t() -> None:
    gain = paired_gain({0: 82.0, 1: 84.0, 2: 86.0, 9: 1.0}, {0: 81.0, 1: 82.0, 2: 83.0, 8: 99.0})
    assert gain and gain.n == 3 and gain.mean == pytest.approx(2.0)
    # differences 1, 2, 3: standard deviation 1; t of 2 degrees of freedom at 97.5 % is 4.303
    assert gain.high == pytest.approx(2 + 4.3027 / 3**0.5, abs=1e-3)
    assert gain.low == pytest.approx(2 - 4.3027 / 3**0.5, abs=1e-3)
    assert not gain.clear


def test_one_seed_has_no_interval_and_none_no_gain() -> None:
    assert paired_gain({0: 82.0}, {0: 81.0}) == Gain(1.0, None, None, 1)
    assert paired_gain({0: 82.0}, {1: 81.0}) is None
    assert not Gain(1.0, None, None, 1).clear


def test_an_interval_without_zero_is_clear() -> None:
    assert paired_gain({0: 2.0, 1: 2.1, 2: 1.9}, {0: 1.0, 1: 1.0, 2: 1.0}) is not None
    gain = paired_gain({0: 2.0, 1: 2.1, 2: 1.9}, {0: 1.0, 1: 1.0, 2: 1.0})
    assert gain and gain.clear


def test_each_method_has_a_line_on_the_seeds_it_has() -> None:
    def row(variant: str, seed: int, oa: float, teacher: str | None = None) -> Row:
        student = None if variant == "teacher" else "net"
        return Row(variant, student, teacher, seed, oa, aa=oa, kappa=oa)

    rows = [row("teacher", 0, 0.9, "big"), row("plain", 0, 0.80), row("plain", 1, 0.82)]
    rows += [row("kd", 0, 0.81, "big"), row("kd", 1, 0.84, "big"), row("dkd", 1, 0.85, "big")]
    result = Result("x", "c", "2026-01-01", {}, {}, "AID", 64, 0.2, "h", 1, 0.0, tuple(rows))
    head, lines = pairs_lines(result, ["plain", "kd", "dkd", "never"], "plain")
    assert head[6:] == ["gain over plain (points)", "95 % interval", "dkd minus it (points)"]
    assert [line[:4] for line in lines] == [
        ["big", "teacher", "1", "90.00"],
        ["net", "plain", "2", "81.00 ± 1.41"],
        ["net", "kd", "2", "82.50 ± 2.12"],
        ["net", "dkd", "1", "85.00"],
    ]
    assert [line[6:] for line in lines][1:] == [
        ["-", "-", "-"],
        ["+1.50", "-4.85 to +7.85 (n = 2)", "+1.00"],
        ["+3.00", "none (n = 1)", "-"],
    ]


def test_our_methods_are_compared_with_every_other_one() -> None:
    def rows(variant: str, *oas: float) -> list[Row]:
        return [Row(variant, "net", None if variant == "plain" else "big", seed, oa) for seed, oa in enumerate(oas)]

    found = [*rows("plain", 0.5, 0.5, 0.5), *rows("kd", 0.60, 0.60, 0.60), *rows("dkd", 0.61, 0.62, 0.63)]
    result = Result("x", "c", "2026-01-01", {}, {}, "AID", 64, 0.2, "h", 1, 0.0, tuple(found))
    _, lines = pairs_lines(result, ["plain", "kd", "dkd"], "plain")
    # differences 1, 2, 3 as above
    assert [line[-1] for line in lines] == ["-", "+2.00 [-0.48, +4.48]", "-"]
    head, lines = cells(result)
    assert [line[head.index("dkd minus it (points)")] for line in lines] == ["-", "-", "+2.00 [-0.48, +4.48]"]
    assert "dkd_plus minus it (points)" not in head  # nobody trained it
    assert own_methods(["plain", "dkd"], "plain") == []  # the gain says it already
    assert own_methods(["plain", "dkd_plus", "dkd"], "plain") == ["dkd", "dkd_plus"]
