"""Result files: the same bytes for the same result, whole or absent, and a clear message for every wrong one."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scenedistill.core.errors import UserError
from scenedistill.experiments.results.environment import hardware, versions
from scenedistill.experiments.results.record import Result, Row, read_result, write_result


def example() -> Result:
    return Result(
        experiment="aid20",
        command="scenedistill run AID --config configs/aid20.yaml",
        date="2026-01-31",
        hardware={"cpu": "Some CPU", "cores": 2, "memory_gib": 15.5, "gpu": None},
        versions={"python": "3.11.7", "torch": "2.6.0"},
        data="AID",
        pixels=128,
        train_ratio=0.2,
        split_hash={"1": "b" * 16, "0": "a" * 16},
        epochs={"student": 45, "teacher": 25},
        wall_seconds=1234.56789012,
        rows=(
            Row("dkd", "table1_resnet", "resnet101", 0, oa=0.8, more={"alpha": 1.0, "view": "same"}),
            Row("plain", "table1_resnet", None, 1, oa=0.71, aa=0.7, kappa=0.69, macro_f1=0.7, parameters=5_000_000),
            Row("plain", "table1_resnet", None, 0, oa=0.7, milliseconds=3.25),
            # NumPy's numbers are taken too
            Row("teacher", None, "resnet101", 0, oa=np.float32(0.9)),  # type: ignore[arg-type]
        ),
    )


def test_read_gives_what_was_written_sorted(tmp_path: Path) -> None:
    path = write_result(example(), tmp_path / "new" / "aid20.json")
    result = read_result(path)
    assert [(row.variant, row.seed) for row in result.rows] == [("teacher", 0), ("plain", 0), ("plain", 1), ("dkd", 0)]
    assert result.rows[0].oa == 0.9  # six decimals, no noise of float32
    assert result.rows[3].more == {"alpha": 1.0, "view": "same"}
    assert result.wall_seconds == 1234.56789
    given = example()
    assert dataclasses.replace(result, rows=(), wall_seconds=0) == dataclasses.replace(given, rows=(), wall_seconds=0)
    assert sorted(dataclasses.replace(row, oa=0).key for row in given.rows) == [row.key for row in result.rows]


def test_equal_results_give_equal_bytes_whatever_their_order(tmp_path: Path) -> None:
    first = write_result(example(), tmp_path / "aid20.json").read_bytes()
    turned = dataclasses.replace(
        example(),
        rows=example().rows[::-1],
        epochs={"teacher": 25, "student": 45},
        split_hash={0: "a" * 16, 1: "b" * 16},  # type: ignore[dict-item]  # seeds as numbers
    )
    assert write_result(turned, tmp_path / "aid20.json").read_bytes() == first
    assert write_result(read_result(tmp_path / "aid20.json"), tmp_path / "aid20.json").read_bytes() == first
    assert list(tmp_path.iterdir()) == [tmp_path / "aid20.json"]
    assert first.endswith(b"}\n")


def test_the_file_has_the_documented_keys(tmp_path: Path) -> None:
    record = json.loads(write_result(example(), tmp_path / "aid20.json").read_text(encoding="utf-8"))
    assert list(record) == [
        *("experiment", "command", "date", "hardware", "versions", "data", "pixels", "train_ratio", "split_hash"),
        *("epochs", "wall_seconds", "rows"),
    ]
    assert record["rows"][0] == {"variant": "teacher", "student": None, "teacher": "resnet101", "seed": 0, "oa": 0.9}
    assert record["rows"][3]["alpha"] == 1.0


def test_a_wrong_result_leaves_the_old_file(tmp_path: Path) -> None:
    path = write_result(example(), tmp_path / "aid20.json")
    before = path.read_bytes()
    wrong = dataclasses.replace(example(), rows=(Row("plain", "s", None, 0, oa=float("nan")),))
    with pytest.raises(UserError, match="row 1, oa is nan"):
        write_result(wrong, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_replacement_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "aid20.json").mkdir()  # a folder cannot be replaced by a file
    with pytest.raises(OSError):
        write_result(example(), tmp_path / "aid20.json")
    assert list(tmp_path.iterdir()) == [tmp_path / "aid20.json"]


def test_extra_entries_cannot_replace_a_field(tmp_path: Path) -> None:
    wrong = dataclasses.replace(example(), rows=(Row("plain", "s", None, 0, oa=0.5, more={"oa": 0.9}),))
    with pytest.raises(ValueError, match="more repeats oa"):
        write_result(wrong, tmp_path / "aid20.json")


def rename(key: str, new: str) -> Callable[[dict[str, Any]], None]:
    return lambda record: record.update({new: record.pop(key)})


def put(key: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda record: record.update({key: value})


def put_in_row(key: str, value: object, row: int = 1) -> Callable[[dict[str, Any]], None]:
    return lambda record: record["rows"][row].update({key: value})  # row 1 is plain, seed 0


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (rename("wall_seconds", "wall_second"), "has no 'wall_seconds'. Is 'wall_second' meant"),
        (put("note", "x"), "unknown key 'note'; did you mean 'notes'"),
        (put("zzzz", "x"), "unknown key 'zzzz'; known are command"),
        (put("experiment", "other"), "experiment is 'other'; expected 'aid20', the file's name"),
        (put("command", " "), "command is ' '; expected text"),
        (put("notes", 3), "notes is 3"),
        (put("hardware", {"gpu": ["a"]}), "hardware is"),
        (put("pixels", 0), "pixels is 0; expected a whole number above 0"),
        (put("pixels", True), "pixels is True"),
        (put("train_ratio", 20), "train_ratio is 20"),
        (put("split_hash", {}), "split_hash is {}"),
        (put("epochs", {"student": 1.5}), "epochs is"),
        (put("wall_seconds", -1), "wall_seconds is -1"),
        (put("rows", []), "rows is \\[\\]"),
        (put("rows", [3]), "row 1 is 3; expected names with values"),
        (put_in_row("oa", 70.0), "row 2, oa is 70.0; expected a fraction in 0..1, not percent"),
        (put_in_row("oa", None), "row 2, oa is None"),
        (put_in_row("oa", float("nan")), "row 2, oa is nan"),
        (put_in_row("kappa", -2), "row 2, kappa is -2"),
        (put_in_row("aa", "0.7"), "row 2, aa is '0.7'"),
        (put_in_row("parameters", 1.5), "row 2, parameters is 1.5"),
        (put_in_row("milliseconds", 0), "row 2, milliseconds is 0"),
        (put_in_row("seed", "0"), "row 2, seed is '0'"),
        (put_in_row("student", None), "row 2, student is None; expected a name"),
        (put_in_row("teacher", "resnet101"), "row 2, teacher is 'resnet101'; expected null for a plain student"),
        (put_in_row("student", "s", row=0), "row 1, student is 's'; expected null for a teacher"),
        (put_in_row("losses", [1, 2]), "row 2, losses is \\[1, 2\\]"),
        (put_in_row("seed", 1), "row 3 is 'a network of an earlier row'"),
        (lambda record: record["rows"][1].pop("oa"), "row 2 has no 'oa'"),
    ],
)
def test_every_invalid_result_is_refused(tmp_path: Path, spoil: Callable[[dict[str, Any]], None], message: str) -> None:
    path = write_result(example(), tmp_path / "aid20.json")
    record = json.loads(path.read_text(encoding="utf-8"))
    spoil(record)
    path.write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        read_result(path)
    assert "aid20.json" in str(caught.value)
    assert str(caught.value).count("\n") <= 1


@pytest.mark.parametrize(("text", "message"), [(None, "no result file"), ("{", "not valid JSON"), ("[]", "is \\[\\]")])
def test_a_missing_file_or_one_that_is_no_json_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "aid20.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_result(path)


def test_hardware_and_versions_name_no_machine(tmp_path: Path) -> None:
    found, libraries = hardware(), versions()
    assert list(found) == ["cpu", "cores", "memory_gib", "gpu"]
    assert found["cpu"] and isinstance(found["cores"], int) and found["cores"] >= 1
    assert (found["gpu"] is None) == (not torch.cuda.is_available())
    assert libraries["python"] == platform.python_version()
    assert str(libraries["torch"]).split("+")[0] == torch.__version__.split("+")[0]
    assert set(libraries) == {"python", "torch", "torchvision", "timm", "lightning", "scenedistill"}
    words = json.dumps([found, libraries])
    assert platform.node() not in words.replace('"', " ").split()
    assert str(Path.home()) not in words
    write_result(dataclasses.replace(example(), hardware=found, versions=libraries), tmp_path / "aid20.json")
