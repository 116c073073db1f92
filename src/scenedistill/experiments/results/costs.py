"""Record of the size, operations and latency of networks, and its table."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from scenedistill.core.text import NONE, markdown_table, plus_minus
from scenedistill.experiments.results.measurements import Measurement, machine_text
from scenedistill.metrics.cost import NetworkCost

KIND = "cost"


@dataclass(frozen=True)
class CostRow:
    """One network on one device at one batch size."""

    label: str  # how the network was trained: "teacher", "plain", "dkd", ...
    network: str
    parameters: int
    bytes: int  # every floating-point value as float32
    operations: int  # multiply-accumulates for one image
    oa: float | None  # mean over the seeds, 0..1
    oa_deviation: float | None  # sample standard deviation; None for one seed
    seeds: int
    device: str
    batch_size: int
    mean_ms: float  # for one image
    p50_ms: float
    p90_ms: float
    p99_ms: float
    passes: int


@dataclass(frozen=True)
class CostResult(Measurement):
    """One cost measurement; the first network is the reference to which the others are compared."""

    pixels: int
    threads: int  # PyTorch threads on the CPU
    precision: str
    rows: tuple[CostRow, ...]
    notes: str = ""
    kind: str = KIND


def cost_rows(label: str, network: str, cost: NetworkCost, oas: Sequence[float]) -> Iterator[CostRow]:
    """Yield a row for each device and batch size.

    Args:
        label: how the network was trained.
        network: name of the network.
        cost: measured cost.
        oas: overall accuracy of each seed, 0..1; may be empty.
    """
    for latency in cost.latencies:
        yield CostRow(
            label=label,
            network=network,
            parameters=cost.parameters,
            bytes=cost.bytes,
            operations=cost.operations,
            oa=statistics.fmean(oas) if oas else None,
            oa_deviation=statistics.stdev(oas) if len(oas) > 1 else None,
            seeds=len(oas),
            device=latency.device,
            batch_size=latency.batch_size,
            mean_ms=latency.mean,
            p50_ms=latency.p50,
            p90_ms=latency.p90,
            p99_ms=latency.p99,
            passes=latency.passes,
        )


def costs_table(result: CostResult) -> str:
    """Format a Markdown table with a line for each network; below it, lines on the conditions and on ratios.

    A time is the mean for one image, then the 50th, 90th and 99th percentile over the passes.
    """
    places = list(dict.fromkeys((row.device, row.batch_size) for row in result.rows))
    networks: dict[tuple[str, str], dict[tuple[str, int], CostRow]] = {}
    for row in result.rows:
        networks.setdefault((row.network, row.label), {})[row.device, row.batch_size] = row
    times = [f"ms per image, {_device(device)}, batch {count}" for device, count in places]
    head = ["network", "training", "parameters (M)", "MB", "operations (G)", "OA (%)", *times]
    table = []
    for (network, label), cells in networks.items():
        row = next(iter(cells.values()))
        oa = plus_minus(row.oa, row.oa_deviation, factor=100)
        sizes = [f"{row.parameters / 1e6:.2f}", f"{row.bytes / 1e6:.1f}", f"{row.operations / 1e9:.3f}", oa]
        table.append([network, label, *sizes, *(_time(cells.get(place)) for place in places)])
    passes = sorted({row.passes for row in result.rows})
    conditions = (
        f"{result.data}, {result.pixels} pixels, {result.precision}, CPU threads: {result.threads}; mean time (50th, "
        f"90th, 99th percentile) of {' or '.join(str(count) for count in passes)} passes after a warm-up, the networks "
        f"in turns; MB of float32 values, operations in multiply-accumulates; {machine_text(result.hardware)}; "
        f"{result.date}. {result.notes}"
    ).strip()
    ratios = _ratios(networks, places)
    return f"{markdown_table(head, table)}\n\n{conditions}" + (f"\n\n{ratios}" if ratios else "")


def _ratios(
    networks: Mapping[tuple[str, str], Mapping[tuple[str, int], CostRow]], places: Sequence[tuple[str, int]]
) -> str:
    """Describe how much less each architecture costs than the first one, in one sentence each."""
    (first, whole), *others = networks.items()
    said: dict[str, str] = {}
    for (name, _), cells in others:
        big, small = next(iter(whole.values())), next(iter(cells.values()))
        if name in said or name == first[0]:
            continue
        both = [place for place in places if place in whole and place in cells]
        faster = [
            f"{whole[device, count].p50_ms / cells[device, count].p50_ms:.1f} times faster on the {_device(device)} "
            f"at batch {count}"
            for device, count in both
        ]
        said[name] = (
            f"{name} has {big.parameters / small.parameters:.1f} times fewer parameters and "
            f"{big.operations / small.operations:.1f} times fewer operations than {first[0]}, and is "
            f"{', '.join(faster)} (by the medians)."
        )
    return " ".join(said.values())


def _device(device: str) -> str:
    return {"cpu": "CPU", "cuda": "GPU"}.get(device, device)


def _time(row: CostRow | None) -> str:
    if row is None:
        return NONE
    digits = 2 if row.mean_ms >= 1 else 3
    mean, p50, p90, p99 = (f"{value:.{digits}f}" for value in (row.mean_ms, row.p50_ms, row.p90_ms, row.p99_ms))
    return f"{mean} ({p50}, {p90}, {p99})"
