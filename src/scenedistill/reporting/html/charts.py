"""Line, bar and point charts as inline SVG in the page's colours, with a tooltip for each value."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

# written by hand: these charts follow the page's style sheet, show a tooltip for each value, and highlight a series by
# name. Matplotlib, which draws the figure files, writes fixed colours and no tooltips into an SVG: all of this would
# have to be added to its XML. Plotly, Bokeh and Altair bring megabytes of JavaScript into a page that is one file.
COLOURS = 8  # c0 ... c7 in the style sheet; further series repeat them with other dashes
WIDTH, HEIGHT = 480, 280  # of a chart in its own units; the page scales it
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 12, 42  # margins for the axes


@dataclass(frozen=True)
class Series:
    """One named line.

    Attributes:
        name: name in the legend.
        x: x values, in order.
        y: y values; those not finite are left out.
        colour: number of the colour and dash; several series may share one.
        notes: text added to the tooltip of each value.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 0
    notes: Sequence[str] = ()


def line_chart(
    lines: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    form: str = "{:.3g}",
    diagonal: bool = False,
    logarithmic: bool = False,
) -> Markup:
    """Draw lines over a common axis, with a tooltip at each value.

    Args:
        lines: series to draw; values that are not finite are left out.
        x_label: label of the x axis.
        y_label: label of the y axis.
        form: format of a value in its tooltip.
        diagonal: draw y = x too, and let both axes go from 0 to 1 instead of over the range of the values.
        logarithmic: a logarithmic y axis; values that are not above 0 are left out.
    """
    points = [
        [
            (x, y, f"{line.name}, {x_label} {x:.4g}: {form.format(y)}{note}")
            for x, y, note in zip(line.x, line.y, line.notes or [""] * len(line.x), strict=True)
            if math.isfinite(y) and (y > 0 or not logarithmic)
        ]
        for line in lines
    ]
    flat = [point for line in points for point in line]
    if not flat:
        return Markup('<p class="none">There are no values to draw.</p>')
    xs, ys = [x for x, _, _ in flat], [y for _, y, _ in flat]
    (first, last), (low, high) = ((0, 1), (0, 1)) if diagonal else ((min(xs), max(xs)), (min(ys), max(ys)))
    across = _Axis(first, last, LEFT, WIDTH - RIGHT)
    up = _Axis(low, high, HEIGHT - BOTTOM, TOP, logarithmic=logarithmic, roomy=not diagonal)
    body = [_axes(across, up, x_label, y_label)]
    if diagonal:
        body.append(Markup('<path class="guide" d="M{} {}L{} {}"/>').format(across(0), up(0), across(1), up(1)))
    for line, found in zip(lines, points, strict=True):
        path = "L".join(f"{across(x)} {up(y)}" for x, y, _ in found)
        body.append(Markup('<g class="s {}" data-series="{}">').format(colour_class(line.colour), line.name))
        body.append(Markup('<path class="line" d="M{}"/>').format(path))
        body += (_dot(across(x), up(y), tip) for x, y, tip in found)
        body.append(Markup("</g>"))
    return _svg(body, f"{y_label} over {x_label}: {', '.join(dict.fromkeys(line.name for line in lines))}")


def bar_chart(names: Sequence[str], values: Sequence[float], *, x_label: str, tips: Sequence[str]) -> Markup:
    """Draw horizontal bars from 0, one below the other, negative ones in another colour."""
    row, left = 19, 8 + 7 * min(26, max((len(name) for name in names), default=1))
    height = TOP + row * len(names) + BOTTOM
    room = 44 if min(values) < 0 else 0  # for the figure left of the longest bar
    across = _Axis(min(0.0, min(values)), max(0.0, max(values)), left + room, WIDTH - 50)
    body = [_grid_across(across, x_label, height)]
    for number, (name, value, tip) in enumerate(zip(names, values, tips, strict=True)):
        y, start, end = TOP + row * number, across(min(0.0, value)), across(max(0.0, value))
        body.append(
            Markup(
                '<text class="name" x="{}" y="{}">{}</text>'
                '<rect class="{}" x="{}" y="{}" width="{}" height="{}" rx="2" data-tip="{}"/>'
                '<text class="value{}" x="{}" y="{}">{}</text>'
            ).format(
                left - 6, y + 13, _short(name),
                "up" if value >= 0 else "down", start, y + 3, round(max(end - start, 1), 1), row - 6, tip,
                "" if value >= 0 else " left", round(end + 4 if value >= 0 else start - 4, 1), y + 13, f"{value:+.1f}",
            )
        )  # fmt: skip
    body.append(Markup('<path class="zero" d="M{} {}V{}"/>').format(across(0), TOP, height - BOTTOM))
    return _svg(body, f"{x_label} for each class", height)


def point_chart(
    x: Sequence[float], y: Sequence[float], groups: Sequence[int], names: Sequence[str], tips: Sequence[str]
) -> Markup:
    """Draw points coloured by group, without axes: only their relative positions have meaning."""
    side = 320
    across, up = _Axis(min(x), max(x), 8, side - 8), _Axis(min(y), max(y), side - 8, 8)
    body = [
        Markup('<circle class="p" style="--hue:{}" data-series="{}" cx="{}" cy="{}" r="3" data-tip="{}"/>').format(
            hue(group, len(names)), names[group], across(a), up(b), tip
        )
        for a, b, group, tip in zip(x, y, groups, tips, strict=True)
    ]
    return _svg(body, f"map of {len(x)} test images by embedding, coloured by true class", side, side)


def hue(group: int, groups: int) -> int:
    """Return a hue in degrees; consecutive groups have distant hues."""
    return round(360 * ((group * 0.618034) % 1)) if groups > COLOURS else round(360 * group / max(groups, 1))


def colour_class(number: int) -> str:
    """Return the CSS classes of a series' colour and dash."""
    return f"c{number % COLOURS} d{number // COLOURS % 4}"


class _Axis:
    """Map from values to coordinates in the drawing, rounded to one decimal."""

    def __init__(
        self, low: float, high: float, start: float, end: float, *, logarithmic: bool = False, roomy: bool = False
    ) -> None:
        self.logarithmic = logarithmic
        low, high = (math.log10(low), math.log10(high)) if logarithmic else (low, high)
        room = 0.04 * (high - low) if roomy else 0.0
        if high - low < 1e-12:
            room = max(abs(low) * 0.1, 0.5)
        self.low, self.high, self.start, self.end = low - room, high + room, start, end

    def __call__(self, value: float) -> float:
        value = math.log10(value) if self.logarithmic else value
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 1)

    def ticks(self) -> Iterator[tuple[float, str]]:
        """Yield coordinate and text of a few round values."""
        if self.logarithmic:
            factors = (1, 2, 5) if self.high - self.low < 2.5 else (1,)
            for power in range(math.floor(self.low), math.ceil(self.high)):
                for value in (factor * 10.0**power for factor in factors):
                    if self.low <= math.log10(value) <= self.high:
                        yield self(value), f"{value:g}"
            return
        step = 10 ** math.floor(math.log10((self.high - self.low) / 4))
        step *= next(factor for factor in (5, 2, 1) if (self.high - self.low) / (factor * step) >= 3 or factor == 1)
        for number in range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1):
            yield self(number * step), f"{number * step:.4g}" if number else "0"


def _axes(across: _Axis, up: _Axis, x_label: str, y_label: str) -> Markup:
    body = [_grid_across(across, x_label, HEIGHT)]
    for y, text in up.ticks():
        body.append(
            Markup('<path class="grid" d="M{} {}H{}"/><text class="name" x="{}" y="{}">{}</text>').format(
                LEFT, y, WIDTH - RIGHT, LEFT - 6, round(y + 4, 1), text
            )
        )
    middle = (HEIGHT - BOTTOM + TOP) / 2
    body.append(
        Markup('<text class="title" x="12" y="{}" transform="rotate(-90 12 {})">{}</text>').format(
            middle, middle, y_label
        )
    )
    return Markup("").join(body)


def _grid_across(across: _Axis, x_label: str, height: float) -> Markup:
    body = [
        Markup('<path class="grid" d="M{} {}V{}"/><text class="tick" x="{}" y="{}">{}</text>').format(
            x, TOP, height - BOTTOM, x, height - BOTTOM + 16, text
        )
        for x, text in across.ticks()
    ]
    body.append(
        Markup('<text class="title" x="{}" y="{}">{}</text>').format(
            (across.start + across.end) / 2, height - 6, x_label
        )
    )
    return Markup("").join(body)


def _dot(x: float, y: float, tip: str) -> Markup:
    return Markup('<circle cx="{}" cy="{}" r="3" data-tip="{}"/>').format(x, y, tip)


def _short(name: str) -> str:
    return name if len(name) <= 26 else f"{name[:25]}…"


def _svg(body: Sequence[Markup], label: str, height: float = HEIGHT, width: float = WIDTH) -> Markup:
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        width, height, escape(label), Markup("").join(body)
    )
