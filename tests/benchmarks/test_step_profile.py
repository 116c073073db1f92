"""A student's step is profiled, and its record becomes a table."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from records.step_profile import REST, StepProfile, StepShare, kind_of_operation
from scenedistill.experiments.results.measurements import read_record
from step_profile import spent_by_kind
from tables import table_of

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "step_profile.py"


@pytest.mark.slow
def test_the_shares_of_a_step_make_one(tiny_scenes: Path, commands: Any, tmp_path: Path) -> None:
    results = tmp_path / "step_profile.json"
    sizes = ["--pixels", "32", "--batch_sizes", "8", "--teacher", "table1_printed"]
    ended = commands(tiny_scenes, results, *sizes, script=SCRIPT)
    assert ended.code == 0, ended.out + ended.err
    rows = read_record(results, StepProfile, StepShare).rows
    for student in ("table1_printed", "table1_resnet"):
        shares = {row.kind: row.share for row in rows if row.student == student}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-4)
        assert shares["convolutions"] > shares["batch norm"] > 0 and shares[REST] > 0
    assert "| table1_resnet | 32 | 8 |" in table_of(results)


def test_operations_are_known_by_their_names() -> None:
    names = ("aten::convolution_backward", "aten::native_batch_norm", "aten::copy_", "aten::add_")
    assert [kind_of_operation(name) for name in names] == [
        "convolutions",
        "batch norm",
        "copies between formats and layouts",
        REST,
    ]


def test_a_kernel_counts_once_and_for_the_operation_that_launched_it() -> None:
    events = [
        SimpleNamespace(
            key=key, device_type=SimpleNamespace(name=kind), self_cpu_time_total=host, self_device_time_total=device
        )
        for key, kind, host, device in (
            ("aten::cudnn_convolution", "CPU", 2.0, 30.0),
            ("cudaLaunchKernel", "CPU", 5.0, 0.0),
            ("sm90_xmma_fprop_implicit_gemm", "CUDA", 0.0, 30.0),
            ("aten::add_", "CPU", 1.0, 10.0),
            ("vectorized_elementwise_kernel", "CUDA", 0.0, 10.0),
        )
    ]
    assert spent_by_kind(events, torch.device("cuda")) == {"convolutions": 30.0, REST: 10.0}
    assert spent_by_kind(events[:1], torch.device("cpu")) == {"convolutions": 2.0}
