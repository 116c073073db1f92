"""The record of exported students in use: sections kept apart, tables out of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from records.use import keep_section, read_use, use_table
from scenedistill.core.errors import UserError
from tables import fill

HERE: dict[str, Any] = {"hardware": {"cpu": "a processor", "cores": 2}, "date": "2026-01-31", "image_size": 96}


def spread(middle: float) -> dict[str, float]:
    return {"median": middle, "min": 0.5 * middle, "max": 2 * middle}


LATENCY = {
    **HERE,
    "threads": 2,
    "turns": 7,
    "test_images": 8000,
    "rows": [
        {
            "network": "resnet101",
            "form": "PyTorch fp32",
            "bytes": 170_000_000,
            "oa": None,
            "milliseconds": {"1": spread(80.0), "64": spread(40.0)},
        },
        {
            "network": "light",
            "form": "ONNX int8",
            "bytes": 1_200_000,
            "oa": 0.7345,
            "milliseconds": {"1": spread(0.8), "64": spread(0.4)},
        },
    ],
    "targets": [
        {"network": "light", "what": "OA lost by int8, at most", "target": 0.005, "found": 0.0012, "met": True},
        {"network": "light", "what": "int8 times as fast", "target": None, "found": 100.0, "met": None},
    ],
}
PREDICT = {
    **HERE,
    "rows": [
        {
            "network": "light",
            "form": "ONNX int8",
            "runtime_images_per_second": spread(2000.0),
            "predict_images_per_second": spread(1500.0),
            "reading_images_per_second": spread(8000.0),
            "of_runtime": 0.75,
            "of_reading_then_runtime": 0.9375,
            "target": 0.95,
            "met": False,
        }
    ],
}


def test_sections_are_kept_apart_and_make_the_tables_of_a_page(tmp_path: Path) -> None:
    path = tmp_path / "results" / "use.json"
    keep_section(path, "predict", PREDICT)
    keep_section(path, "latency", {"rows": []})
    keep_section(path, "latency", LATENCY)
    assert json.loads(path.read_text(encoding="utf-8"))["experiment"] == "use"
    assert read_use(path) == {"latency": LATENCY, "predict": PREDICT}
    text = fill("<!-- table:use -->\n<!-- /table -->", path.parent, "page")
    assert use_table(read_use(path)) in text
    lines = text.splitlines()
    assert "| resnet101 | PyTorch fp32 | 170.0 | - | 80.00 (40.00 to 160.00) | 40.00 (20.00 to 80.00) |" in lines
    assert "| light | ONNX int8 | 1.2 | 73.45 | 0.800 (0.400 to 1.600) | 0.400 (0.200 to 0.800) |" in lines
    assert "| light | OA lost by int8, at most | 0.12 points | 0.50 points | yes |" in lines
    assert "| light | int8 times as fast | 100.00 | - | - |" in lines
    speeds = "1,500 (750 to 3,000) | 2,000 (1,000 to 4,000) | 8,000 (4,000 to 16,000)"
    assert f"| light | ONNX int8 | {speeds} | 75.0 % | 95.0 % | no | 93.8 % |" in lines
    assert sum("a processor, 2 cores; 2026-01-31." in line for line in lines) == 2


def test_an_invalid_record_is_refused_with_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no result file"):
        read_use(tmp_path / "use.json")
    (tmp_path / "use.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"use\.json is not JSON"):
        read_use(tmp_path / "use.json")
    (tmp_path / "use.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match="has none of the sections latency, predict, mosaic"):
        read_use(tmp_path / "use.json")
    with pytest.raises(UserError, match="A figure is missing from the record: 'targets'"):
        use_table({"latency": {**HERE, "rows": LATENCY["rows"]}})
