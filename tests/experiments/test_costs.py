"""A record of costs is kept and makes Table 3."""

from __future__ import annotations

from pathlib import Path

import pytest

from scenedistill.experiments.results.costs import CostResult, CostRow, cost_rows, costs_table
from scenedistill.experiments.results.measurements import read_record, write_record
from scenedistill.metrics.cost import Latency, NetworkCost
from tables import fill


def cost(size: int, *milliseconds: float) -> NetworkCost:
    places = (("cpu", 1), ("cpu", 64), ("cuda", 1))
    latencies = tuple(
        Latency(device, batch, 1.1 * time, time, 1.5 * time, 2 * time, 100)
        for (device, batch), time in zip(places, milliseconds, strict=False)
    )
    return NetworkCost(size * 1_000_000, 4 * size * 1_000_000, size * 200_000_000, latencies)


RESULT = CostResult(
    experiment="table3",
    command="scenedistill cost runs/aid20",
    date="2026-01-31",
    hardware={"cpu": "a processor", "cores": 2, "gpu": "a GPU"},
    versions={"torch": "2.6.0"},
    data="AID",
    pixels=96,
    threads=2,
    precision="fp32",
    rows=(
        *cost_rows("teacher", "resnet101", cost(42, 30.0, 20.0, 8.0), [0.95]),
        *cost_rows("plain", "light", cost(5, 3.0, 1.0, 0.5), []),
        *cost_rows("dkd", "light", cost(5, 3.0, 1.0, 0.5), [0.90, 0.92]),
    ),
    notes="Nothing else ran.",
)


def test_what_is_written_is_read_and_makes_the_table_of_a_page(tmp_path: Path) -> None:
    path = write_record(RESULT, tmp_path / "results" / "table3.json")
    read = read_record(path, CostResult, CostRow)
    assert costs_table(read) == costs_table(RESULT)
    assert read.rows[-1].oa_deviation == pytest.approx(0.014142, abs=1e-6)
    assert costs_table(read) in fill("<!-- table:table3 -->\n<!-- /table -->", path.parent, "page")


def test_the_table_has_a_line_for_each_network() -> None:
    head, rule, *lines = costs_table(RESULT).splitlines()
    times = "ms per image, CPU, batch 1 | ms per image, CPU, batch 64 | ms per image, GPU, batch 1"
    assert head == f"| network | training | parameters (M) | MB | operations (G) | OA (%) | {times} |"
    assert rule.count("---:") == 7
    assert lines[:4] == [
        "| resnet101 | teacher | 42.00 | 168.0 | 8.400 | 95.00 "
        "| 33.00 (30.00, 45.00, 60.00) | 22.00 (20.00, 30.00, 40.00) | 8.80 (8.00, 12.00, 16.00) |",
        "| light | plain | 5.00 | 20.0 | 1.000 | - "
        "| 3.30 (3.00, 4.50, 6.00) | 1.10 (1.00, 1.50, 2.00) | 0.550 (0.500, 0.750, 1.000) |",
        "| light | dkd | 5.00 | 20.0 | 1.000 | 91.00 ± 1.41 "
        "| 3.30 (3.00, 4.50, 6.00) | 1.10 (1.00, 1.50, 2.00) | 0.550 (0.500, 0.750, 1.000) |",
        "",
    ]
    conditions, _, ratios = lines[4:]
    assert conditions.startswith(
        "AID, 96 pixels, fp32, CPU threads: 2; mean time (50th, 90th, 99th percentile) of 100 passes"
    )
    assert conditions.endswith("a GPU, a processor, 2 cores; 2026-01-31. Nothing else ran.")
    assert ratios == (
        "light has 8.4 times fewer parameters and 8.4 times fewer operations than resnet101, and is 10.0 times faster "
        "on the CPU at batch 1, 20.0 times faster on the CPU at batch 64, 16.0 times faster on the GPU at batch 1 "
        "(by the medians)."
    )


def test_one_network_alone_has_no_ratios() -> None:
    alone = CostResult(**{**vars(RESULT), "rows": RESULT.rows[:3]})
    assert "times fewer" not in costs_table(alone)
