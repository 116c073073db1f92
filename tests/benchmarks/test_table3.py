"""Table 3 is measured from weights files and written as a record."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

from scenedistill.experiments.costs import CostResult, CostRow
from scenedistill.experiments.records import read_record
from scenedistill.models.files import NetCard, save_net
from scenedistill.models.student import build_student

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "table3.py"
QUICK = ["--repeats", "2", "--batch_sizes", "1", "2"]


@pytest.fixture(scope="module")
def table3() -> ModuleType:
    spec = importlib.util.spec_from_file_location("table3", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def weights(folder: Path, name: str, size: int = 32, oa: float | None = None) -> Path:
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    path = folder / "weights.safetensors"
    classes = ("a", "b", "c")
    save_net(build_student(name, 3, image_size=size), NetCard(name, classes, 3, size), path)
    if oa is not None:
        (folder / "evaluation").mkdir()
        (folder / "evaluation" / "stage.json").write_text(json.dumps({"record": {"oa": oa}}))
    return path


def test_the_record_has_every_network(table3: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run" / "seed0"
    teacher = weights(run / "teacher", "table1_resnet", oa=0.95)
    plain, dkd = (weights(run / "light" / method, "table1_printed", oa=0.7) for method in ("plain", "dkd"))
    out = tmp_path / "table3_aid.json"
    given = [str(out), f"teacher={teacher}", f"plain={plain}", f"dkd={dkd}", "--oa", "dkd=0.8,0.9", *QUICK]
    assert table3.main(given) == 0
    record = read_record(out, CostResult, CostRow)
    cpu = [row for row in record.rows if row.device == "cpu"]
    assert [(row.label, row.network, row.batch_size) for row in cpu] == [
        ("teacher", "table1_resnet", 1), ("teacher", "table1_resnet", 2), ("plain", "table1_printed", 1),
        ("plain", "table1_printed", 2), ("dkd", "table1_printed", 1), ("dkd", "table1_printed", 2),
    ]  # fmt: skip
    assert [row.oa for row in cpu[::2]] == pytest.approx([0.95, 0.7, 0.85])
    assert [row.seeds for row in cpu[::2]] == [1, 1, 2]
    assert cpu[2].p50_ms == cpu[4].p50_ms, "the same architecture is measured once"
    assert (record.experiment, record.pixels, record.kind) == ("table3_aid", 32, "cost")
    assert record.command.startswith(
        "python benchmarks/table3.py results/table3_aid.json teacher=seed0/teacher/weights.safetensors "
    )
    assert str(tmp_path) not in out.read_text()
    assert "| table1_printed | dkd |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("networks", "said"),
    [
        (["teacher"], "'teacher' is not NAME=weights.safetensors."),
        (["teacher=nowhere.safetensors"], "No network at nowhere.safetensors"),
        (["teacher={small}", "--oa", "other=0.9"], "--oa names other, which is not among the networks: teacher."),
        (["teacher={small}", "--oa", "teacher=ninety"], "'ninety' is no OA"),
        (["teacher={small}", "--oa", "teacher=90"], "'90' is no OA"),
        (["teacher={small}", "dkd={large}"], "32 pixels with 3 bands, 64 pixels with 3 bands"),
    ],
)
def test_what_cannot_be_measured_is_said(
    networks: list[str], said: str, table3: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = weights(tmp_path / "small", "table1_printed")
    large = weights(tmp_path / "large", "table1_printed", size=64)
    given = [text.format(small=small, large=large) for text in networks]
    assert table3.main([str(tmp_path / "out.json"), *given, *QUICK]) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()
