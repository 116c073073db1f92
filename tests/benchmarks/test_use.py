"""The benchmark of exported students, small: every figure is there, and the other sections stay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from records.use import read_use, use_table

pytest.importorskip("onnxscript", reason="needs onnxscript: pip install -e '.[use]'")
SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "use.py"


@pytest.mark.slow
def test_figures_and_targets_of_a_run(tiny_run: Path, tiny_scenes: Path, commands: Any, tmp_path: Path) -> None:
    results = tmp_path / "use.json"
    results.write_text('{"other": 1}')
    options = ["--turns", "2", "--seconds", "0.01", "--files", "12", "--threads", "1"]
    ended = commands(tiny_scenes, results, tiny_run, "--out", tmp_path / "out", *options, script=SCRIPT)
    assert ended.code == 0, ended.out + ended.err
    content = json.loads(results.read_text(encoding="utf-8"))
    assert content["other"] == 1 and content["experiment"] == "use"
    rows = {(row["network"], row["form"]): row for row in content["latency"]["rows"]}
    forms = {("table1_printed", form) for form in ("PyTorch fp32", "ONNX fp32", "ONNX int8")}
    assert {("resnet101", "PyTorch fp32")} | forms <= set(rows)
    for row in rows.values():
        assert row["bytes"] > 1e5 and set(row["milliseconds"]) == {"1", "64"}
        for found in row["milliseconds"].values():
            assert 0 < found["min"] <= found["median"] <= found["max"]
    summary = json.loads((tiny_run / "summary.json").read_text(encoding="utf-8"))
    (oa,) = {row["oa"] for row in summary["rows"] if row["variant"] == "dkd"}
    assert rows["table1_printed", "ONNX fp32"]["oa"] == pytest.approx(oa, abs=1e-4)
    assert content["latency"]["test_images"] == 32
    for target in content["latency"]["targets"]:
        assert target["found"] is not None and target["target"] > 0 and target["met"] in (True, False)
    assert len(content["latency"]["targets"]) == 5
    for row in content["predict"]["rows"]:
        assert row["images"] == 12 and row["of_runtime"] > 0 and row["predict_images_per_second"]["min"] > 0
    assert use_table(read_use(results)).count("| table1_printed | ONNX int8 |") == 2
