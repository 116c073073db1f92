"""What the records of measurements share: how they are written, read and attributed to a machine."""

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
    """What begins the record of every measurement; a kind of measurement adds its settings, its rows and its name.

    Attributes:
        experiment: name; the file is results/<experiment>.json.
        command: what repeats it.
        date: ISO 8601.
        hardware: of `results.hardware`.
        versions: of `results.versions`.
        data: name of the data set.
    """

    experiment: str
    command: str
    date: str
    hardware: dict[str, Scalar]
    versions: dict[str, Scalar]
    data: str


def write_record(record: Any, path: Path) -> Path:
    """Write a dataclass with `rows` of dataclasses as JSON, whole or not at all."""
    content = dataclasses.asdict(record)
    content["rows"] = [{name: tidy(value) for name, value in row.items()} for row in content["rows"]]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, content)
    return path


def read_record(path: Path, kind: type[Record], row: type[Any]) -> Record:
    """Read what `write_record` wrote of a `kind` with rows of a kind of their own.

    Raises:
        UserError: no such file, or no such record.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return kind(**{**content, "rows": tuple(row(**entry) for entry in content["rows"])})
    except FileNotFoundError:
        raise UserError(f"There is no result file {path}.\nRun the measurement that writes it.") from None
    except (ValueError, TypeError, KeyError) as problem:
        raise UserError(f"{path} is no {kind.__name__}: {problem}.\nMeasure again.") from None


def kind_of(path: Path) -> str | None:
    """The kind a result file says it is; None for a table of trained networks, or where there is no such file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content.get("kind") if isinstance(content, dict) else None


def machine_text(hardware: Mapping[str, Scalar]) -> str:
    """A machine in a few words."""
    cores = f"{hardware['cores']} cores" if hardware.get("cores") else None
    parts = [hardware.get("gpu"), hardware.get("cpu"), cores]
    return ", ".join(str(part) for part in parts if part) or "an unnamed machine"
