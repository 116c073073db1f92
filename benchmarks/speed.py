"""The speed benchmark: `scenedistill bench` with the loops of other packages in the same run.

    python benchmarks/speed.py --data path/to/AID --results results/speed.json --picture docs/pictures/speed.png

takes the options of `scenedistill bench`, and `--rivals NAME...` for these loops of other packages instead of all. A
loop whose package is not installed is left out with a message.
"""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial
from pathlib import Path

from rich.console import Console

from records.command import this_command
from rivals import RIVALS, LogitsOnly, LoopSettings
from scenedistill.cli import build_parser
from scenedistill.commands.parsing import build_config, result_file
from scenedistill.config import BenchConfig
from scenedistill.experiments.bench.loops import WARM_UP, Bench
from scenedistill.experiments.bench.processes import LoopServer, TunedLoopServer
from scenedistill.experiments.bench.run import bench, complete, in_own_process
from scenedistill.experiments.bench.speed import draw_speed, speed_table
from scenedistill.metrics.cost import wait_for


class RivalLoop:
    """Adapter by which the benchmark times a rival like its own loops; worker processes live for one turn at a time."""

    def __init__(self, name: str, place: Bench) -> None:
        self.place = place
        settings = LoopSettings(
            data=place.data,
            pixels=place.pixels,
            batch_size=place.batch_size,
            teacher=LogitsOnly(place.new_teacher()),
            student=LogitsOnly(place.new_student()),
            device=place.device,
        )
        notes = {"notes": place.scratch / "rivals"} if name.endswith("-tuned") else {}
        self.rival = RIVALS[name](settings, **notes)
        self.description = f"{self.rival.settings}: {self.rival.description}"
        self.steps = place.steps if name.endswith("-tuned") else place.slow_steps

    def seconds(self) -> float:
        """See `scenedistill.experiments.bench.loops.Loop`."""
        walk = self.rival.steps()
        for _ in range(WARM_UP):
            next(walk)
        wait_for(self.place.device)
        started = time.perf_counter()
        for _ in range(self.steps):
            next(walk)
        wait_for(self.place.device)
        taken = time.perf_counter() - started
        self.rival.close()
        return taken / self.steps

    def close(self) -> None:
        """See `scenedistill.experiments.bench.loops.Loop`."""
        self.rival.close()


def main() -> None:
    """Measure, print, write, draw; the exit status is 1 if one of our loops, or a named rival, was left out."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--rivals", nargs="+", choices=RIVALS, default=[])
    given, words = parser.parse_known_args()
    settings = build_parser().parse_args(["bench", *words]).bench
    more = {
        name: (
            "",
            in_own_process((TunedLoopServer if name.endswith("-tuned") else LoopServer)(partial(RivalLoop, name))),
        )
        for name in given.rivals or RIVALS
    }
    console = Console(width=160, soft_wrap=True)
    results = result_file(settings.results)
    data = Path(settings.data) if settings.data else None
    config = build_config(BenchConfig, settings)
    result = bench(data, config, more=more, command=this_command(), keep=results, console=console)
    console.print(speed_table(result), markup=False)
    if settings.picture:
        draw_speed(result, Path(settings.picture))
    sys.exit(not complete(result, config, given.rivals))


if __name__ == "__main__":
    main()
