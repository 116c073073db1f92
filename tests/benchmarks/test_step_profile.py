"""A student's step is profiled, and its record becomes a table."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from records.step_profile import REST, StepProfile, StepShare, kind_of_operation
from scenedistill.experiments.results.measurements import read_record
from tables import table_of

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "step_profile.py"


@pytest.mark.slow
def test_the_shares_of_a_step_make_one(tiny_scenes: Path, tmp_path: Path) -> None:
    results = tmp_path / "step_profile.json"
    sizes = ["--pixels", "32", "--batch_sizes", "8", "--teacher", "table1_printed"]
    subprocess.run([sys.executable, str(SCRIPT), str(tiny_scenes), str(results), *sizes], check=True)
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
