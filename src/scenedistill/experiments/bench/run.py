"""Speed of a distillation, and its share of the machine's limits: all loops in turns, in one run."""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from scenedistill.config import BenchConfig
from scenedistill.core.errors import UserError
from scenedistill.core.precision import TYPES, Precision, compute_device, resolve_precision
from scenedistill.data.scenes import scan
from scenedistill.data.synthetic.demo import generate
from scenedistill.experiments.bench.loops import (
    Bench,
    Loop,
    Naive,
    data_only,
    student_step,
    teacher_forward,
)
from scenedistill.experiments.bench.ours import DistillationServer
from scenedistill.experiments.bench.processes import LoopProcess, LoopServer, Serve, TunedLoopServer
from scenedistill.experiments.bench.speed import (
    COMPILED,
    DATA,
    NAIVE,
    ONLINE,
    PARTS,
    STORE,
    STUDENT,
    TEACHER,
    SpeedResult,
    SpeedRow,
)
from scenedistill.experiments.results.environment import measured_here
from scenedistill.experiments.results.measurements import write_record
from scenedistill.metrics.cost import count_operations, wait_for
from scenedistill.models.backbones import check_name

Factory = Callable[[Bench], Loop]


def in_own_process(serve: Serve) -> Factory:
    """Return the factory of a loop in a process of its own."""
    return lambda bench: LoopProcess(bench, serve)


COMPILABLE = (TEACHER, STUDENT, ONLINE, STORE)
GENERATED = 1200  # images, where no data are given
#: Our own loops by their name in the results.
LOOPS: dict[str, Factory] = {
    TEACHER: in_own_process(TunedLoopServer(teacher_forward)),
    STUDENT: in_own_process(TunedLoopServer(student_step)),
    DATA: in_own_process(TunedLoopServer(data_only)),
    NAIVE: in_own_process(LoopServer(Naive)),
    ONLINE: in_own_process(DistillationServer(views=0)),
    STORE: in_own_process(DistillationServer(views=1)),
}


def bench(
    data: Path | None,
    config: BenchConfig,
    *,
    more: Mapping[str, tuple[str, Factory]] | None = None,
    command: str = "",
    keep: Path | None = None,
    console: Console,
) -> SpeedResult:
    """Measure every loop at every size: warmed up, then in turns, so that other load on the machine affects all alike.

    Args:
        data: folder with one sub-folder for each class; generated scenes when not given.
        config: settings of the measurement.
        more: further loops, such as those of other packages: name -> (settings, factory).
        command: command that repeats the measurement, for the record.
        keep: file for the result, written again after each size and student, so that an interrupted measurement leaves
            its rows.
        console: console for the messages.

    Raises:
        UserError: too few images.
    """
    _check(config, data)
    if config.threads:
        torch.set_num_threads(config.threads)
    started = time.monotonic()
    device = compute_device("auto")
    precision = resolve_precision(config.precision, device)
    compiled = config.compile
    loops = _own_loops(config, precision) | dict(more or {})
    rows: list[SpeedRow] = []
    with tempfile.TemporaryDirectory() as scratch:
        if data is None:
            data = Path(scratch) / "scenes"
            generate(data, per_class=GENERATED // 12, size=max(64, min(150, max(config.pixels))))
        peak = machine_peak(device, precision)
        console.print(
            f"The machine computes {peak / 1e9:,.0f} GFLOP/s in {precision} at its best, with a matrix product"
        )
        sizes = zip(config.pixels, _batch_sizes(config), strict=True)
        for (pixels, batch_size), student in itertools.product(sizes, config.students):
            place = Bench(
                data,
                pixels,
                config.teacher,
                student,
                batch_size,
                config.steps,
                device,
                precision,
                compiled,
                Path(scratch),
                config.repeats,
                config.threads,
            )
            rows += _measure(place, loops, peak, console)
            result = SpeedResult(
                experiment=keep.stem if keep else "speed",
                command=command,
                **measured_here(),
                data=data.resolve().name,
                teacher=config.teacher,
                repeats=config.repeats,
                steps=config.steps,
                precision=precision,
                peak_gflops=round(peak / 1e9, 1),
                wall_seconds=round(time.monotonic() - started, 1),
                rows=tuple(rows),
            )
            if keep:
                write_record(result, keep)
    return result


def _compiled(make: Factory) -> Factory:
    return lambda bench: make(replace(bench, compiled=True))


def complete(result: SpeedResult, config: BenchConfig, more: Collection[str] = ()) -> bool:
    """Return whether no loop was left out, at any size with any student.

    Args:
        result: the measurement.
        config: its settings.
        more: names of its further loops.
    """
    wanted = itertools.product(config.students, config.pixels, [*_own_loops(config, "fp32"), *more])
    return set(wanted) <= {(row.student, row.pixels, row.loop) for row in result.rows}


def _own_loops(config: BenchConfig, precision: Precision) -> dict[str, tuple[str, Factory]]:
    """Return our own loops by name, each with its settings."""
    loops = {name: (f"{precision}{COMPILED if config.compile else ''}", make) for name, make in LOOPS.items()}
    if config.also_compiled and not config.compile:
        loops |= {f"{name}{COMPILED}": (f"{precision}{COMPILED}", _compiled(LOOPS[name])) for name in COMPILABLE}
    return loops


def _check(config: BenchConfig, data: Path | None) -> None:
    """Raise a UserError for invalid settings, before anything is measured."""
    for name in ("steps", "repeats"):
        if getattr(config, name) < 1:
            raise UserError(f"--{name} is {getattr(config, name)}; expected 1 or more.")
    if min(config.batch_size, default=0) < 1 or len(config.batch_size) not in (1, len(config.pixels)):
        raise UserError(
            f"--batch_size is {config.batch_size}; expected one number, 1 or more, or one for each of the "
            f"{len(config.pixels)} sizes."
        )
    if not config.pixels or min(config.pixels) < 1 or not config.students:
        raise UserError("--pixels and --students need one entry or more, and sizes are 1 or more.")
    check_name(config.teacher)
    for name in config.students:
        check_name(name)
    count = len(scan(data)) if data else GENERATED
    if count < max(config.batch_size):
        raise UserError(f"{data or 'Generated data'} has {count} images, fewer than a batch. Lower --batch_size.")


def _batch_sizes(config: BenchConfig) -> list[int]:
    """Return the batch size of each image size."""
    return config.batch_size * len(config.pixels) if len(config.batch_size) == 1 else config.batch_size


def _measure(bench: Bench, loops: Mapping[str, tuple[str, Factory]], peak: float, console: Console) -> list[SpeedRow]:
    """Measure every loop in turns, for one size and student."""
    console.print(f"{bench.teacher} teaches {bench.student} at {bench.pixels} pixels, batches of {bench.batch_size}")
    made: dict[str, Loop] = {}
    speeds: dict[str, list[float]] = {}
    try:
        for name, (_, make) in loops.items():
            try:
                made[name], speeds[name] = make(bench), []
            except (ImportError, RuntimeError) as problem:
                console.print(f"  {name}: left out, {problem}", markup=False)
        for _, (name, loop) in itertools.product(range(bench.repeats), list(made.items())):
            if name in speeds:
                try:
                    speeds[name].append(bench.batch_size / loop.seconds())
                except RuntimeError as problem:
                    console.print(f"  {name}: left out, {problem}", markup=False)
                    del speeds[name]
    finally:
        for loop in made.values():
            loop.close()
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    operations = _operations(bench)
    # limits from the parts at their best, on data in memory; that of the stored loop has no teacher pass
    teacher, student = (max(medians.get(part, 0.0), medians.get(part + COMPILED, 0.0)) for part in (TEACHER, STUDENT))
    online = 1 / (1 / teacher + 1 / student) if teacher and student else 0.0
    rows = []
    for name, values in speeds.items():
        kind = name.removesuffix(COMPILED)
        work = operations.get(kind, operations[ONLINE])
        limit = 0.0 if kind in PARTS else student if kind == STORE else online
        row = SpeedRow(
            loop=name,
            settings=getattr(made[name], "description", "") or loops[name][0],
            student=bench.student,
            pixels=bench.pixels,
            images_per_second=medians[name],
            min=min(values),
            max=max(values),
            batch_size=bench.batch_size,
            share_of_limit=medians[name] / limit if limit else None,
            share_of_peak=work * medians[name] / peak if work else None,
            gflops_per_image=work / 1e9 if work else None,
            device=bench.device.type,
        )
        rows.append(row)
        said = f"  {row.share_of_limit:.0%} of the sum of its parts" if row.share_of_limit else ""
        console.print(f"  {name:32} {row.images_per_second:8.1f} images/s  ({row.min:.1f} to {row.max:.1f}){said}")
    return rows


def _operations(bench: Bench) -> dict[str, float]:
    """Count the floating-point operations of each loop for one image; a backward pass costs two forward passes."""
    image = torch.zeros(1, 3, bench.pixels, bench.pixels)
    teacher = 2.0 * count_operations(bench.new_teacher(), image)
    student = 3 * 2.0 * count_operations(bench.new_student().eval(), image)
    return {TEACHER: teacher, STUDENT: student, DATA: 0.0, STORE: student, ONLINE: teacher + student}


def machine_peak(device: torch.device, precision: Precision, seconds: float = 1.0) -> float:
    """Measure the operations per second of a large matrix product: the upper limit for networks on the machine."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=TYPES.get(precision, torch.float32)) for _ in range(2))
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        wait_for(device)
        started = time.perf_counter()
        a @ b
        wait_for(device)
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best
