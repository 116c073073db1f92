"""Measure what a shorter training of the teacher costs in accuracy: frozen first stages, and views that begin small.

    python benchmarks/teacher_time.py path/to/AID results/teacher_time.json --out runs/teachers [OPTIONS OF run ...]

trains the teacher of `configs/aid20.yaml` with each seed in every way; all else is equal.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from records.command import this_command
from scenedistill.cli import build_parser
from scenedistill.commands.parsing import build_config
from scenedistill.config import RunConfig
from scenedistill.experiments.results.pairs import paired_gain
from scenedistill.experiments.results.record import Row, write_result
from scenedistill.experiments.run import run

CONFIG = Path(__file__).parents[1] / "configs" / "aid20.yaml"
#: name of the way of training -> its options
WAYS = {
    "": [],
    "1 frozen stage": ["--teacher.frozen_stages", "1"],
    "2 frozen stages": ["--teacher.frozen_stages", "2"],
    "views from one half": ["--teacher.fit.first_size", "0.5"],
    "2 frozen stages, views from one half": ["--teacher.frozen_stages", "2", "--teacher.fit.first_size", "0.5"],
}


def main() -> None:
    """Train in every way and collect the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    given, more = parser.parse_known_args()
    rows: list[Row] = []
    notes = []
    for way, options in WAYS.items():
        words = ["run", str(given.data), "--config", str(CONFIG), "--seeds", "[0, 1, 2]", *options, *more]
        config = build_config(RunConfig, build_parser().parse_args(words).run)
        out = given.out / (way.replace(",", "").replace(" ", "_") or "whole")
        last = run(given.data, out, config, parts=("teacher",))
        if not way:
            whole = {row.seed: 100 * row.oa for row in last.rows}
        elif gain := paired_gain({row.seed: 100 * row.oa for row in last.rows}, whole):
            notes.append(f"{way}: {gain.text} points")
        rows += [replace(row, teacher=f"{row.teacher}, {way}" if way else row.teacher) for row in last.rows]
    seconds = sum(float(row.more[name] or 0) for row in rows for name in ("train_seconds", "test_seconds"))
    result = replace(
        last,
        experiment=given.results.stem,
        command=this_command(),
        epochs={"teacher": config.teacher.fit.epochs},
        wall_seconds=seconds,
        rows=tuple(rows),
        notes=f"OA against the whole training, paired by seed: {'; '.join(notes)}.",
    )
    print(write_result(result, given.results))


if __name__ == "__main__":
    main()
