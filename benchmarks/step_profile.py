"""Measure where the time of a student's step goes, by kind of operation.

    python benchmarks/step_profile.py path/to/AID results/step_profile.json

The step is the one that `scenedistill bench` calls the student's step alone. Let nothing else run meanwhile.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import profile

from records.command import this_command
from records.step_profile import StepProfile, StepShare, kind_of_operation, profile_table
from scenedistill.core.memory import keep_memory
from scenedistill.core.precision import compute_device, resolve_precision
from scenedistill.experiments.bench.loops import Bench, Repeated, student_step
from scenedistill.experiments.results.environment import measured_here
from scenedistill.experiments.results.measurements import write_record
from scenedistill.models.table1 import STUDENTS

STEPS = 8


def main() -> None:
    """Profile every student at every size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--pixels", type=int, nargs="+", default=[64, 112, 224])
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[64, 32, 16], help="one for each size")
    parser.add_argument("--teacher", default="resnet101", help="whose width the loss has to know")
    given = parser.parse_args()
    keep_memory()
    device = compute_device("auto")
    precision = resolve_precision("auto", device)
    rows: list[StepShare] = []
    with tempfile.TemporaryDirectory() as scratch:
        for pixels, batch in zip(given.pixels, given.batch_sizes, strict=True):
            for student in STUDENTS:
                place = Bench(
                    given.data, pixels, given.teacher, student, batch, STEPS, device, precision, False, Path(scratch)
                )
                loop = student_step(place)
                assert isinstance(loop, Repeated)
                with profile() as seen:
                    loop.seconds()
                spent = spent_by_kind(seen.key_averages(), device)
                if not spent.total():
                    sys.exit(f"The profiler saw no work on {device}; it may have no access to the GPU.")
                rows += [StepShare(student, pixels, batch, kind, own / spent.total()) for kind, own in spent.items()]
    found = StepProfile(
        experiment=given.results.stem,
        command=this_command(),
        **measured_here(),
        data=given.data.resolve().name,
        precision=precision,
        rows=tuple(rows),
    )
    print(profile_table(found), write_record(found, given.results), sep="\n")


def spent_by_kind(events: Iterable[Any], device: torch.device) -> Counter[str]:
    """Sum the profiler's averages to the time on the device by kind of operation."""
    spent: Counter[str] = Counter()
    for event in events:
        if device.type != "cuda":
            spent[kind_of_operation(event.key)] += event.self_cpu_time_total
        elif event.device_type.name == "CPU":
            # the time of a kernel is that of the operation that launched it; kernels are listed a second time by name
            spent[kind_of_operation(event.key)] += event.self_device_time_total
    return spent


if __name__ == "__main__":
    main()
