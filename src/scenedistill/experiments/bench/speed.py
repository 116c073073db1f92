"""The record of a speed measurement, its table and its picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from scenedistill.core.text import markdown_table
from scenedistill.experiments.results.measurements import Measurement, machine_text

KIND = "speed"
TEACHER, STUDENT, DATA = "frozen teacher alone", "student step alone", "data alone"
PARTS = (TEACHER, STUDENT, DATA)
NAIVE, ONLINE, STORE = "naive loop", "scenedistill, online", "scenedistill, from the store"
COMPILED = ", compiled"  # suffix of a loop's name
DEFAULT, TUNED = "-default", "-tuned"  # suffix of the name of another package's loop


def slow_steps(steps: int) -> int:
    """Return the steps per turn of a loop that is many times slower than ours, from the steps of ours."""
    return max(2, steps // 3)


@dataclass(frozen=True)
class SpeedRow:
    """One loop with one student at one size."""

    loop: str
    settings: str  # enabled options
    student: str
    pixels: int
    batch_size: int
    images_per_second: float  # median over the repeats
    min: float
    max: float
    share_of_limit: float | None  # of the speed of its parts in sequence at their best; None for the parts
    share_of_peak: float | None  # of the operations per second of a matrix product
    gflops_per_image: float | None
    device: str


@dataclass(frozen=True)
class SpeedResult(Measurement):
    """One run of the benchmark."""

    teacher: str
    repeats: int
    steps: int
    precision: str
    peak_gflops: float
    wall_seconds: float
    rows: tuple[SpeedRow, ...]
    kind: str = KIND


def speed_table(result: SpeedResult) -> str:
    """Format a Markdown table of every loop and student, with a column for each size and a line on data and machine.

    Where loops of other packages were measured too, a table of how many times as fast ours are follows.

    A cell has the median images/s (smallest to largest), the share of the speed of the loop's parts in sequence where
    it has parts, and the share of the machine's peak operations per second.
    """
    sizes = sorted({row.pixels for row in result.rows})
    lines: dict[tuple[str, str, str], dict[int, SpeedRow]] = {}
    for row in result.rows:
        lines.setdefault((row.student, row.loop, row.settings), {})[row.pixels] = row
    head = ["student", "loop", "settings", *(f"{size} px (images/s)" for size in sizes)]
    table = []
    for (student, loop, settings), cells in lines.items():
        table.append([student, loop, settings, *(_cell(cells.get(size)) for size in sizes)])
    text = markdown_table(head, table, words=range(3))
    batches = " and ".join(
        f"{batch} at {size}" for size, batch in sorted({(r.pixels, r.batch_size) for r in result.rows})
    )
    ratios = _ratios(result)
    return (
        f"{text}\n\n{result.data}, teacher {result.teacher}, batches of {batches}; median of "
        f"{result.repeats} turns of {result.steps} steps, {slow_steps(result.steps)} of the naive loop and of those at "
        "default settings (smallest to largest); then the share of the sum of the loop's parts, and of the "
        f"{result.peak_gflops:,.0f} GFLOP/s that a matrix product gets in {result.precision}. {_operations(result)}"
        f"{machine_text(result.hardware)}; {result.date}." + f"\n\n{ratios}" * bool(ratios)
    )


def _ratios(result: SpeedResult) -> str:
    """Format a Markdown table of our loops, and of the limit set by their parts, against the fastest of the others."""
    sizes = sorted({row.pixels for row in result.rows})
    lines = []
    for student in dict.fromkeys(row.student for row in result.rows):

        def best(size: int, start: str = "", end: str = "", student: str = student) -> float:
            own = [row for row in result.rows if (row.student, row.pixels) == (student, size)]
            named = [row for row in own if row.loop.startswith(start) and row.loop.endswith(end)]
            return max((row.images_per_second for row in named), default=0.0)

        for others, end in (("tuned", TUNED), ("default", DEFAULT)):
            theirs = [best(size, end=end) for size in sizes]
            parts = [(best(size, TEACHER), best(size, STUDENT)) for size in sizes]
            ours = {
                "online": [best(size, ONLINE) for size in sizes],
                "the most its parts allow": [1 / (1 / a + 1 / b) if a and b else 0.0 for a, b in parts],
                "from the store": [best(size, STORE) for size in sizes],
            }
            if all(theirs):
                lines += [
                    [student, name, others, *(f"{a / b:.2f}" for a, b in zip(speeds, theirs, strict=True))]
                    for name, speeds in ours.items()
                ]
    if not lines:
        return ""
    head = ["student", "ours", "divided by the fastest of the others", *(f"{size} px" for size in sizes)]
    return markdown_table(head, lines, words=range(3))


def _operations(result: SpeedResult) -> str:
    """Describe the operations of each network for an image, in one sentence."""
    costs: dict[str, dict[int, float]] = {}
    for row in result.rows:
        network = {TEACHER: result.teacher, STUDENT: f"a step of {row.student}"}.get(row.loop)
        if network and row.gflops_per_image:
            costs.setdefault(network, {})[row.pixels] = row.gflops_per_image
    told = [f"{name} {', '.join(f'{cost[size]:.2f}' for size in sorted(cost))}" for name, cost in costs.items()]
    return f"GFLOP for an image, at each size: {'; '.join(told)}. " if told else ""


def _cell(row: SpeedRow | None) -> str:
    if row is None:
        return "-"
    shares = [(row.share_of_limit, "parts"), (row.share_of_peak, "peak")]
    told = ", ".join(f"{100 * share:.0f} % of {what}" for share, what in shares if share is not None)
    return f"{row.images_per_second:.1f} ({row.min:.1f} to {row.max:.1f})" + f"; {told}" * bool(told)


def draw_speed(result: SpeedResult, path: Path) -> Path:
    """Draw bars of images/s, one panel for each student and size: other loops grey, ours green, the parts light grey.
    The data loop is left out, as it is much faster than the rest."""
    from matplotlib.figure import Figure

    students = list(dict.fromkeys(row.student for row in result.rows))
    sizes = sorted({row.pixels for row in result.rows})
    loops = sorted({row.loop for row in result.rows if row.loop != DATA}, key=_rank)
    figure = Figure(figsize=(2.5 + 3.5 * len(sizes), (0.25 * len(loops) + 1) * len(students)), layout="constrained")
    axes = figure.subplots(len(students), len(sizes), squeeze=False, sharey="row")
    for line, student in zip(axes, students, strict=True):
        for axis, size in zip(line, sizes, strict=True):
            own = {row.loop: row for row in result.rows if (row.student, row.pixels) == (student, size)}
            chosen = [own[loop] for loop in loops if loop in own]
            speeds = [row.images_per_second for row in chosen]
            spread = [(r.images_per_second - r.min, r.max - r.images_per_second) for r in chosen]
            colours = [("tab:gray", "tab:green", "lightgray")[_rank(row.loop)[0] // 3] for row in chosen]
            names = [row.loop for row in chosen]
            axis.barh(names, speeds, xerr=list(zip(*spread, strict=True)), color=colours)
            for row in chosen:
                axis.text(row.max, row.loop, f" {row.images_per_second:.3g}", va="center", fontsize=7)
            axis.set_xlim(0, 1.15 * max(row.max for row in chosen))
            axis.set_title(f"{student}, {size} pixels", fontsize=9)
            axis.tick_params(labelsize=7)
            axis.set_xlabel("images/s", fontsize=8)
        line[0].invert_yaxis()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path


def _rank(loop: str) -> tuple[int, str]:
    """Return the position of a loop in the figure: other loops from naive to tuned, then ours, then the parts."""
    kind = loop.removesuffix(COMPILED)
    if kind in (ONLINE, STORE):
        return (3 if kind == ONLINE else 4), loop
    if kind in PARTS:
        return 6, loop
    return (0 if kind == NAIVE else 2 if kind.endswith(TUNED) else 1), loop
