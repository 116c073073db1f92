"""Common parts of the records of measurements: fields, writing, reading and the text of the machine."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from scenedistill.core.disk import write_json
from scenedistill.core.errors import UserError
from scenedistill.experiments.results.record import Scalar, tidy

Record = TypeVar("Record")


@dataclasses.dataclass(frozen=True)
class Measurement:
    """First fields of the record of every measurement; a subclass adds its settings, its rows and its kind.

    Attributes:
        experiment: name; the file is results/<experiment>.json.
        command: command that repeats the measurement.
        date: ISO 8601.
        hardware: from `environment.hardware`.
        versions: from `environment.versions`.
        data: name of the data set.
    """

    experiment: str
    command: str
    date: str
    hardware: dict[str, Scalar]
    versions: dict[str, Scalar]
    data: str


def write_record(record: Any, path: Path) -> Path:
    """Write a dataclass with `rows` of dataclasses as JSON, atomically."""
    content = dataclasses.asdict(record)
    content["rows"] = [{name: tidy(value) for name, value in row.items()} for row in content["rows"]]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, content)
    return path


def read_record(path: Path, kind: type[Record], row: type[Any]) -> Record:
    """Read a record of the class `kind` with rows of the class `row`, as `write_record` wrote it.

    Raises:
        UserError: no such file, or another kind of record.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return kind(**{**content, "rows": tuple(row(**entry) for entry in content["rows"])})
    except FileNotFoundError:
        raise UserError(f"There is no result file {path}.\nRun the measurement that writes it.") from None
    except (ValueError, TypeError, KeyError) as problem:
        raise UserError(f"{path} is no {kind.__name__}: {problem}.\nMeasure again.") from None


def kind_of(path: Path) -> str | None:
    """Read the kind of a result file; None for a table of trained networks, or where the file cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content.get("kind") if isinstance(content, dict) else None


def machine_text(hardware: Mapping[str, Scalar]) -> str:
    """Describe a machine in a few words."""
    cores = f"{hardware['cores']} cores" if hardware.get("cores") else None
    parts = [hardware.get("gpu"), hardware.get("cpu"), cores]
    return ", ".join(str(part) for part in parts if part) or "an unnamed machine"
