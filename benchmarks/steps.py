"""Time the training step of networks that people use as students, on this CPU.

    python benchmarks/steps.py results/steps.json

Each network is timed in a process of its own, its ways in turns: forward, cross-entropy, backward and update.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from records.command import this_command
from records.steps import WAYS, Steps, StepSpeed
from scenedistill.config import FitConfig
from scenedistill.core.memory import keep_memory
from scenedistill.core.precision import autocast, flush_denormals
from scenedistill.experiments.bench.run import machine_peak
from scenedistill.experiments.results.environment import measured_here
from scenedistill.experiments.results.measurements import write_record
from scenedistill.metrics.cost import count_operations
from scenedistill.models.create import build_student
from scenedistill.models.depthwise import use_quick_depthwise
from scenedistill.training.base import parameter_groups

CPU, CLASSES = torch.device("cpu"), 30
STUDENTS = (
    "table1_resnet", "resnet18", "mobilenetv2_100", "mobilenetv3_small_100", "mobilenetv3_large_100",
    "tf_efficientnet_lite0", "efficientnet_b0", "mnasnet_100", "regnety_004", "convnext_atto",
)  # fmt: skip


def training_step(student: str, way: str, pixels: int, batch_size: int) -> Callable[[], None]:
    """Build the network without DA modules and return one training step on a batch in memory."""
    torch.manual_seed(0)
    net = build_student(student, CLASSES, image_size=pixels, dual_attention=False)
    net = net.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    if way == WAYS[-1]:
        use_quick_depthwise(net)
    view = torch.rand(batch_size, 3, pixels, pixels).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(CLASSES, (batch_size,))
    optimizer = torch.optim.SGD(parameter_groups(net, FitConfig()), lr=0.01, momentum=0.9, nesterov=True, fused=True)

    def step() -> None:
        with autocast(CPU, way.partition(",")[0]):
            logits = net(view, attention=False).logits
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits.float(), labels).backward()
        optimizer.step()

    return step


def measure(student: str, pixels: int, batch_size: int, turns: int, steps: int, peaks: dict[str, float]) -> None:
    """Time the ways in turns and print a line of JSON."""
    keep_memory()
    flush_denormals()
    ways = {way: training_step(student, way, pixels, batch_size) for way in WAYS}
    speeds: dict[str, list[float]] = {way: [] for way in WAYS}
    for turn in range(turns + 1):
        for way, step in ways.items():
            started = time.perf_counter()
            for _ in range(steps):
                step()
            if turn:  # the first is a warm-up
                speeds[way].append(steps * batch_size / (time.perf_counter() - started))
    net = build_student(student, CLASSES, image_size=pixels, dual_attention=False).eval()
    macs = count_operations(net, torch.zeros(1, 3, pixels, pixels))
    rows = []
    for way, found in speeds.items():
        median = statistics.median(found)
        share = 6 * macs * median / (1e9 * peaks[way.partition(",")[0]])
        rows.append(StepSpeed(student, way, median, min(found), max(found), share, macs))
    print(json.dumps([asdict(row) for row in rows]))


def main() -> int:
    """Time every student and write the record; return 1 if a student could not be timed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="JSON file to write")
    parser.add_argument("--students", nargs="+", default=list(STUDENTS))
    parser.add_argument("--pixels", type=int, default=96)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="of a turn")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # peaks, in the process of one student
    given = parser.parse_args()
    sizes = (given.pixels, given.batch_size, given.turns, given.steps)
    if given.one:
        measure(given.students[0], *sizes, json.loads(given.one))
        return 0
    peaks = {"fp32": round(machine_peak(CPU, "fp32") / 1e9, 1), "bf16": round(machine_peak(CPU, "bf16") / 1e9, 1)}
    rows, failed = list[StepSpeed](), list[str]()
    for student in given.students:
        words = [*sys.argv, "--one", json.dumps(peaks), "--students", student]
        ended = subprocess.run([sys.executable, *words], stdout=subprocess.PIPE, text=True)
        if ended.returncode:
            failed.append(student)
            continue
        rows += [StepSpeed(**row) for row in json.loads(ended.stdout.splitlines()[-1])]
        told = ", ".join(f"{row.way}: {row.images_per_second:.0f} images/s" for row in rows[-len(WAYS) :])
        print(f"{student}: {told}", flush=True)
    steps = Steps(
        experiment=given.results.stem,
        command=this_command(),
        **measured_here(),
        data="random images",
        pixels=given.pixels,
        batch_size=given.batch_size,
        peaks=peaks,
        rows=tuple(rows),
    )
    write_record(steps, given.results)
    if failed:
        print(f"could not be timed: {', '.join(failed)}")
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())
