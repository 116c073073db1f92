"""Measure what the number of kept views costs in accuracy, and what more epochs bring.

    python benchmarks/knowledge_views.py path/to/AID results/knowledge_views.json --out runs/views [OPTIONS OF run ...]

trains the student of `configs/aid20.yaml` for seed 0 in several ways, all with one teacher and one store:
`EPOCHS:VIEWS`. VIEWS equal to EPOCHS is the same as running the teacher in every epoch; 0 is the plain student.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from records.command import this_command
from scenedistill.cli import build_parser
from scenedistill.commands.parsing import build_config
from scenedistill.config import RunConfig
from scenedistill.experiments.results.record import Row, write_result
from scenedistill.experiments.run import run

WAYS = "30:0,30:8,30:16,30:30,120:0,120:40"
CONFIG = Path(__file__).parents[1] / "configs" / "aid20.yaml"


def main() -> None:
    """Train in every way and collect the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ways", default=WAYS, help="EPOCHS:VIEWS, with commas between")
    given, more = parser.parse_known_args()
    rows: dict[tuple[str, str, str, int], Row] = {}
    for way in given.ways.split(","):
        epochs, views = map(int, way.split(":"))
        words = ["run", str(given.data), "--config", str(CONFIG), "--seeds", "[0]", "--also_students", "[]"]
        words += ["--student.fit.epochs", str(epochs), "--student.knowledge_views", str(views), *more]
        config = build_config(RunConfig, build_parser().parse_args(words).run)
        parts = ("teacher", "distilled") if views else ("plain",)
        last = run(given.data, given.out, config, parts=parts)
        for row in last.rows:
            if row.variant != "teacher":
                kept = "" if not views else ", fresh views" if views >= epochs else f", {views} views"
                row = replace(row, variant=f"{row.variant}, {epochs} epochs{kept}")
            rows[row.key] = row
    whole = replace(
        last,
        experiment=given.results.stem,
        command=this_command(),
        epochs={"teacher": config.teacher.fit.epochs},
        wall_seconds=sum(
            float(row.more[name] or 0) for row in rows.values() for name in ("train_seconds", "test_seconds")
        ),
        rows=tuple(rows.values()),
    )
    print(write_result(whole, given.results))


if __name__ == "__main__":
    main()
