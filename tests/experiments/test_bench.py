"""The benchmark measures every loop, and its record becomes a table and a picture."""

from __future__ import annotations

import dataclasses
import io
import multiprocessing
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from scenedistill.config import BenchConfig
from scenedistill.core.errors import UserError
from scenedistill.experiments.bench.loops import Bench, Repeated
from scenedistill.experiments.bench.processes import LoopServer
from scenedistill.experiments.bench.run import COMPILABLE, LOOPS, Factory, bench, complete, in_own_process
from scenedistill.experiments.bench.speed import (
    NAIVE,
    ONLINE,
    PARTS,
    STORE,
    STUDENT,
    TEACHER,
    SpeedResult,
    SpeedRow,
    draw_speed,
    speed_table,
)
from scenedistill.experiments.results.measurements import kind_of, read_record, write_record
from tables import fill

TINY = BenchConfig(
    # of 64 images: they are taken more than once
    pixels=[32, 40], teacher="table1_printed", students=["table1_printed"], batch_size=[16], steps=1, repeats=2,
    precision="fp32",
)  # fmt: skip


class NotThere(Repeated):
    def __init__(self, bench: Bench) -> None:
        raise ImportError("no package of that name")


class Breaks(Repeated):
    def seconds(self) -> float:
        raise RuntimeError("out of memory")


class StartsProcesses(Repeated):
    def __init__(self, bench: Bench) -> None:
        raise RuntimeError(f"by {multiprocessing.get_start_method()}")


@pytest.fixture(scope="module")
def measured(tiny_scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[SpeedResult, str]:
    """A tiny measurement, and what it printed."""
    said = io.StringIO()
    more: dict[str, tuple[str, Factory]] = {
        "mine": ("as it is", lambda place: Repeated(place, lambda: None)),
        "theirs": ("", NotThere),
        "breaking": ("", lambda place: Breaks(place, lambda: None)),
        "no loop": ("", in_own_process(LoopServer(len))),  # type: ignore[arg-type]
        "starting": ("", in_own_process(LoopServer(StartsProcesses))),
    }
    kept = tmp_path_factory.mktemp("bench") / "speed.json"
    console = Console(file=said, width=200)
    result = bench(tiny_scenes, TINY, more=more, command="scenedistill bench", keep=kept, console=console)
    assert len(read_record(kept, SpeedResult, SpeedRow).rows) == len(result.rows)
    return result, said.getvalue()


@pytest.mark.slow
def test_every_loop_is_measured_at_every_size(measured: tuple[SpeedResult, str]) -> None:
    result, said = measured
    assert [(row.loop, row.pixels) for row in result.rows] == [
        (name, size) for size in TINY.pixels for name in (*LOOPS, "mine")
    ]
    assert "theirs: left out, no package of that name" in said
    assert said.count("breaking: left out, out of memory") == len(TINY.pixels), "in its first turn, and no more"
    assert "no loop: left out, TypeError: object of type 'Bench' has no len()" in said
    assert all(0 < row.min <= row.images_per_second <= row.max for row in result.rows)
    assert result.peak_gflops > 1
    assert complete(result, TINY, ["mine"]) and not complete(result, TINY, ["breaking"])


@pytest.mark.slow
def test_loops_start_processes_as_a_program_of_its_own_would(measured: tuple[SpeedResult, str]) -> None:
    default = multiprocessing.get_all_start_methods()[0]
    assert f"starting: left out, RuntimeError: by {default}" in measured[1]


@pytest.mark.slow
def test_shares_are_of_the_parts_measured_beside_it(measured: tuple[SpeedResult, str]) -> None:
    rows = {row.loop: row for row in measured[0].rows if row.pixels == 32}
    parts = 1 / (1 / rows[TEACHER].images_per_second + 1 / rows[STUDENT].images_per_second)
    for name in (ONLINE, NAIVE):
        assert rows[name].share_of_limit == pytest.approx(rows[name].images_per_second / parts)
    assert rows[STORE].share_of_limit == pytest.approx(rows[STORE].images_per_second / rows[STUDENT].images_per_second)
    assert all(rows[name].share_of_limit is None for name in PARTS)
    # three passes' worth for the student's step, one for the teacher, of the same network
    assert rows[STUDENT].gflops_per_image == pytest.approx(3 * (rows[TEACHER].gflops_per_image or 0))


@pytest.mark.slow
def test_the_record_is_kept_and_makes_table_and_picture(measured: tuple[SpeedResult, str], tmp_path: Path) -> None:
    result = measured[0]
    path = write_record(result, tmp_path / "results" / "speed.json")
    again = read_record(path, SpeedResult, SpeedRow)
    assert kind_of(path) == "speed" and again.rows[0].images_per_second == pytest.approx(
        result.rows[0].images_per_second
    )
    table = speed_table(again)
    assert table.splitlines()[0] == "| student | loop | settings | 32 px (images/s) | 40 px (images/s) |"
    assert len([line for line in table.splitlines() if line.startswith("| table1_printed |")]) == len(LOOPS) + 1
    assert "% of parts" in table and "% of peak" in table and "GFLOP for an image" in table
    page = fill("<!-- table:speed -->\n<!-- /table -->", tmp_path / "results", "page")
    assert table in page
    picture = Image.open(draw_speed(again, tmp_path / "speed.png"))
    assert picture.width > 600 and len(picture.convert("RGB").getcolors(1 << 24) or []) > 50


def test_our_loops_are_compared_with_the_fastest_of_the_others() -> None:
    speeds = {TEACHER: 100.0, STUDENT: 300.0, ONLINE: 60.0, f"{ONLINE}, compiled": 72.0, STORE: 240.0}
    speeds |= {"a-default": 20.0, "b-default": 30.0, "a-tuned": 60.0, "b-tuned": 50.0}
    rows = [
        SpeedRow(name, "", "light", 64, 8, speed, speed, speed, None, None, None, "cpu")
        for name, speed in speeds.items()
    ]
    result = SpeedResult("speed", "c", "2026-01-01", {}, {}, "AID", "large", 1, 8, "fp32", 1.0, 1.0, tuple(rows))
    ratios = speed_table(result).rpartition("| --- | --- | --- | ---: |\n")[2]
    assert ratios.splitlines() == [
        "| light | online | tuned | 1.20 |",
        "| light | the most its parts allow | tuned | 1.25 |",
        "| light | from the store | tuned | 4.00 |",
        "| light | online | default | 2.40 |",
        "| light | the most its parts allow | default | 2.50 |",
        "| light | from the store | default | 8.00 |",
    ]
    own = [row for row in rows if not row.loop.endswith(("-default", "-tuned"))]
    assert "divided by" not in speed_table(dataclasses.replace(result, rows=tuple(own)))


def test_a_loop_left_out_at_one_size_is_noticed() -> None:
    wanted = dataclasses.replace(TINY, also_compiled=True)
    rows = [
        SpeedRow(name, "", "table1_printed", size, 16, 1.0, 1.0, 1.0, None, None, None, "cpu")
        for size in wanted.pixels
        for name in (*LOOPS, *(f"{name}, compiled" for name in COMPILABLE))
    ]
    result = SpeedResult("speed", "c", "2026-01-01", {}, {}, "AID", "large", 1, 8, "fp32", 1.0, 1.0, tuple(rows))
    assert complete(result, wanted)
    assert not complete(dataclasses.replace(result, rows=result.rows[:-1]), wanted)


def test_a_file_that_is_no_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no result file"):
        read_record(tmp_path / "speed.json", SpeedResult, SpeedRow)
    (tmp_path / "speed.json").write_text('{"rows": [{"loop": "x"}]}')
    with pytest.raises(UserError, match="is no SpeedResult"):
        read_record(tmp_path / "speed.json", SpeedResult, SpeedRow)
    assert kind_of(tmp_path / "speed.json") is None and kind_of(tmp_path / "nowhere.json") is None


def test_too_few_images_are_refused(tiny_scenes: Path) -> None:
    large = dataclasses.replace(TINY, batch_size=[65])
    with pytest.raises(UserError, match=r"has 64 images, fewer than a batch\. Lower --batch_size\."):
        bench(tiny_scenes, large, console=Console(quiet=True))
