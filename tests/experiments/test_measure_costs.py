"""Table 3 is measured from the folder of a run."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from scenedistill.cli import build_parser
from scenedistill.commands import cost
from scenedistill.core.errors import UserError
from scenedistill.experiments.measure_costs import measure_costs
from scenedistill.experiments.results.costs import CostResult, CostRow
from scenedistill.experiments.results.measurements import read_record
from tables import table_of


@pytest.mark.slow
def test_every_network_of_a_run_is_measured(tiny_run: Path, tmp_path: Path) -> None:
    results, said = tmp_path / "results" / "table3.json", io.StringIO()
    words = ["cost", str(tiny_run), "--beside", "[resnet10t]", "--batch_sizes", "[1, 2]", "--repeats", "2"]
    settings = build_parser().parse_args([*words, "--results", str(results)])
    cost.command(settings["cost"], Console(file=said, width=1000), "scenedistill cost run")
    record = read_record(results, CostResult, CostRow)
    cpu = [row for row in record.rows if row.device == "cpu"]
    assert [row.batch_size for row in cpu] == [1, 2] * (len(cpu) // 2)
    labels = [row.label for row in cpu[::2]]
    assert labels[:2] == ["untrained", "teacher"] and {"plain", "dkd"} <= set(labels)
    assert cpu[0].network == "resnet10t" and cpu[0].oa is None
    by_label = {row.label: row for row in cpu[::2]}
    plain, dkd = by_label["plain"], by_label["dkd"]
    assert plain.p50_ms == dkd.p50_ms and plain.parameters == dkd.parameters, "one architecture is measured once"
    assert dkd.oa is not None and 0 <= dkd.oa <= 1 and dkd.seeds >= 1
    assert (record.experiment, record.command) == ("table3", "scenedistill cost run")
    table = table_of(results)
    assert "resnet10t with random weights" in table and table in said.getvalue()
    assert str(tmp_path) not in results.read_text(encoding="utf-8")


def test_impossible_measurements_are_refused(tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no cell AID-20\. There are: none, it is a run\."):
        measure_costs(tiny_run, cell="AID-20")
    with pytest.raises(UserError, match=r"repeats is 0 and batch_sizes \[1\]"):
        measure_costs(tiny_run, repeats=0, batch_sizes=[1])
    with pytest.raises(UserError, match="threads is -1; expected 1 or more"):
        measure_costs(tiny_run, threads=-1)
    with pytest.raises(UserError, match="resnet11"):
        measure_costs(tiny_run, beside=["resnet11"])
    with pytest.raises(UserError, match="is not a folder"):
        measure_costs(tmp_path / "nowhere")
