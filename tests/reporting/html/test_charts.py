"""Charts: every value in its place and its tip, names escaped, nothing drawn of what is not there."""

from __future__ import annotations

import itertools
import math
import re
from xml.etree import ElementTree

from scenedistill.reporting.html.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Series,
    bar_chart,
    hue,
    line_chart,
    point_chart,
)


def circles(svg: str) -> list[tuple[float, float, str]]:
    tree = ElementTree.fromstring(svg)
    return [(float(c.get("cx")), float(c.get("cy")), c.get("data-tip", "")) for c in tree.iter("circle")]  # type: ignore[arg-type]


def test_a_line_has_a_point_for_each_value() -> None:
    svg = line_chart([Series("a", [1, 2, 3], [10, math.nan, 30])], x_label="epoch", y_label="OA", form="{:.1f} %")
    (x1, y1, tip1), (x2, y2, tip2) = circles(svg)
    assert x1 < x2 and y1 > y2, "higher values are further up"
    assert (tip1, tip2) == ("a, epoch 1: 10.0 %", "a, epoch 3: 30.0 %")


def test_a_logarithmic_axis_is_even_in_factors() -> None:
    svg = line_chart([Series("a", [0, 1, 2, 3], [1, 10, 100, 0])], x_label="x", y_label="y", logarithmic=True)
    heights = [y for _, y, _ in circles(svg)]
    assert len(heights) == 3 and abs((heights[0] - heights[1]) - (heights[1] - heights[2])) < 0.2
    ticks = {text for text in re.findall(r'class="name"[^>]*>([^<]+)<', svg)}
    assert {"1", "10", "100"} <= ticks


def test_a_diagonal_goes_from_corner_to_corner_of_axes_from_0_to_1() -> None:
    svg = line_chart([Series("a", [0.5], [0.5])], x_label="confidence", y_label="OA", diagonal=True)
    ((x, y, _),) = circles(svg)
    x0, y0, x1, y1 = map(float, re.findall(r'class="guide" d="M([\d.]+) ([\d.]+)L([\d.]+) ([\d.]+)"', svg)[0])
    assert (x0, y0, x1, y1) == (LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, TOP)
    assert abs(2 * x - x0 - x1) < 0.2 and abs(2 * y - y0 - y1) < 0.2


def test_equal_values_and_a_single_value_can_be_drawn() -> None:
    assert len(circles(line_chart([Series("a", [1, 2], [5, 5])], x_label="x", y_label="y"))) == 2
    assert len(circles(line_chart([Series("a", [1], [5])], x_label="x", y_label="y"))) == 1
    assert "no values" in line_chart([Series("a", [1], [math.nan])], x_label="x", y_label="y")


def test_names_are_escaped_in_the_svg() -> None:
    name = '</svg><script>"&'
    for svg in (
        line_chart([Series(name, [0], [0], notes=[name])], x_label=name, y_label=name),
        bar_chart([name], [1.0], x_label=name, tips=[name]),
        point_chart([0, 1], [0, 1], [0, 0], [name], [name, name]),
    ):
        assert "<script" not in svg
        tree = ElementTree.fromstring(svg)
        assert any(name in str(value) for element in tree.iter() for value in (*element.attrib.values(), element.text))


def test_bars_start_at_zero() -> None:
    svg = bar_chart(["up", "down"], [2.0, -1.0], x_label="points", tips=["+2", "-1"])
    up, down = [element.attrib for element in ElementTree.fromstring(svg).iter("rect")]
    assert up["class"] == "up" and down["class"] == "down"
    assert abs(float(up["x"]) - (float(down["x"]) + float(down["width"]))) < 0.3
    assert abs(float(up["width"]) - 2 * float(down["width"])) < 0.3


def test_few_groups_have_clearly_different_colours() -> None:
    for groups in (2, 8, 12):
        hues = sorted(hue(i, groups) for i in range(groups))
        assert min(b - a for a, b in itertools.pairwise(hues)) >= 180 / groups
