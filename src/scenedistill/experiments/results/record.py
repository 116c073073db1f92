"""Record of an experiment, `results/<name>.json`: written by the program and checked when read."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from scenedistill.core.disk import without_checksum, write_text
from scenedistill.core.errors import UserError

Scalar = str | int | float | bool | None
FRACTIONS = ("oa", "aa", "macro_f1")


@dataclass(frozen=True)
class Row:
    """One trained network: a teacher, or a student trained in one way with one seed."""

    variant: str  # "teacher", "plain", "dkd", or the name of a later method
    student: str | None  # the student's name; None for a teacher
    teacher: str | None  # the teacher's name; None for a plain student
    seed: int
    oa: float  # overall accuracy on the test split, 0..1
    aa: float | None = None  # average accuracy, 0..1
    kappa: float | None = None  # -1..1
    macro_f1: float | None = None  # 0..1
    parameters: int | None = None
    milliseconds: float | None = None  # for one image
    more: dict[str, Scalar] = field(default_factory=dict)  # further values; in the file beside the other keys

    @property
    def key(self) -> tuple[str, str, str, int]:
        """Unique key of a row in its result; teachers sort first, then plain students, then methods by name."""
        order = {"teacher": "0", "plain": "1"}.get(self.variant, "2")
        return (self.student or "", order + self.variant, self.teacher or "", self.seed)


@dataclass(frozen=True)
class Result:
    """Result of one experiment, with its settings and environment."""

    experiment: str  # name; the file is results/<experiment>.json
    command: str  # the command that repeats it
    date: str  # ISO 8601, such as 2026-01-31
    hardware: dict[str, Scalar]  # from environment.hardware()
    versions: dict[str, Scalar]  # from environment.versions()
    data: str  # name of the data set
    pixels: int  # side of the network input
    train_ratio: float | None  # 0..1; None when the split came from files without one
    split_hash: str | dict[str, str]  # of the one split, or seed -> hash
    epochs: int | dict[str, int]  # of all networks, or of each, such as {"student": 45, "teacher": 25}
    wall_seconds: float
    rows: tuple[Row, ...]
    notes: str = ""  # further remarks


def write_result(result: Result, path: Path) -> Path:
    """Write the result to `<experiment>.json`, atomically; equal results give equal bytes.

    Rows are sorted, figures rounded to six decimals.

    Raises:
        UserError: the result is not valid (see `read_result`).
    """
    record = to_json(result)
    from_json(record, path)  # nothing is written that could not be read
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return path


def named(result: Result, experiment: str) -> Result:
    """Return the same result under another name of the experiment."""
    return dataclasses.replace(result, experiment=experiment)


def read_result(path: Path) -> Result:
    """Read and check a result file.

    Raises:
        UserError: the file is missing or not JSON, a key is missing, unknown or of the wrong type, a figure is out of
            its range or not finite, two rows are the same network, or the file is not named after the experiment.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"There is no result file {path}.\nRun the experiment that writes it.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}.\nWrite it again with the experiment's command.") from None
    return from_json(without_checksum(record, path), path)


def to_json(result: Result) -> dict[str, Any]:
    """Convert a result to plain dictionaries and lists, in the order of the file."""
    record: dict[str, Any] = {item.name: getattr(result, item.name) for item in dataclasses.fields(result)}
    for name in ("hardware", "versions", "split_hash", "epochs"):
        if isinstance(record[name], dict):
            record[name] = {str(key): record[name][key] for key in sorted(record[name], key=str)}
    record["rows"] = [row_to_json(row) for row in sorted(result.rows, key=lambda row: row.key)]
    if not result.notes:
        del record["notes"]
    return {name: tidy(value) for name, value in record.items()}


def row_to_json(row: Row) -> dict[str, Any]:
    """Convert a row to a dictionary: its known figures, then `more` by name."""
    named = {item.name: getattr(row, item.name) for item in dataclasses.fields(row) if item.name != "more"}
    always = ("variant", "student", "teacher")
    known = {name: value for name, value in named.items() if value is not None or name in always}
    clash = sorted(set(named) & set(row.more))
    if clash:
        raise ValueError(f"more repeats {clash[0]}, which has its own field")
    return {name: tidy(value) for name, value in {**known, **dict(sorted(row.more.items()))}.items()}


def tidy(value: Any) -> Any:
    """Round floats to six decimals (1e-4 points) to drop float32 noise, and convert NumPy scalars to Python's."""
    value = value.item() if isinstance(value, np.generic) else value
    return round(value, 6) if isinstance(value, float) else value


def from_json(record: object, path: Path) -> Result:
    """Convert and check a result; `path` is for the messages and the name. Raises UserError."""
    # not with pydantic: it would be a further required dependency, and names neither the file nor the key that a
    # misspelt one is meant for; putting its errors into these words, and the rules over several fields, would stay here
    known = {item.name: item for item in dataclasses.fields(Result)}
    given = keys(record, "the result", path, set(known), set(known) - {"notes"}, closed=True)
    check(given["experiment"] == path.stem, path, "experiment", given["experiment"], f"{path.stem!r}, the file's name")
    for name in ("command", "date", "data"):
        check(is_text(given[name]), path, name, given[name], "text")
    check(isinstance(given.get("notes", ""), str), path, "notes", given.get("notes"), "text")
    for name in ("hardware", "versions"):
        flat = isinstance(given[name], dict) and all(is_scalar(value) for value in given[name].values())
        check(flat, path, name, given[name], "names with text or numbers")
    check(is_count(given["pixels"]) and given["pixels"] > 0, path, "pixels", given["pixels"], "a whole number above 0")
    ratio = given["train_ratio"]
    check(
        ratio is None or (is_number(ratio) and 0 < ratio <= 1), path, "train_ratio", ratio, "a number in 0..1, or null"
    )
    hashes = given["split_hash"].values() if isinstance(given["split_hash"], dict) else [given["split_hash"]]
    check(bool(hashes) and all(map(is_text, hashes)), path, "split_hash", given["split_hash"], "text, or seed: text")
    epochs = given["epochs"].values() if isinstance(given["epochs"], dict) else [given["epochs"]]
    check(
        bool(epochs) and all(map(is_count, epochs)), path, "epochs", given["epochs"], "a whole number, or name: number"
    )
    wall = given["wall_seconds"]
    check(is_number(wall) and wall >= 0, path, "wall_seconds", wall, "a number of seconds")
    check(
        isinstance(given["rows"], list) and bool(given["rows"]),
        path,
        "rows",
        given["rows"],
        "a list with a row or more",
    )
    rows: dict[tuple[str, str, str, int], Row] = {}
    for number, item in enumerate(given["rows"], start=1):
        row = row_from_json(item, f"row {number}", path)
        check(
            row.key not in rows,
            path,
            f"row {number}",
            "a network of an earlier row",
            "variant, student, teacher, seed new",
        )
        rows[row.key] = row
    return Result(**{**given, "rows": tuple(sorted(rows.values(), key=lambda row: row.key))})


def row_from_json(record: object, where: str, path: Path) -> Row:
    """Convert and check a row. Raises UserError."""
    known = {item.name for item in dataclasses.fields(Row)} - {"more"}
    given = keys(record, where, path, known, {"variant", "student", "teacher", "seed", "oa"}, closed=False)
    check(is_text(given["variant"]), path, f"{where}, variant", given["variant"], "text")
    is_teacher = given["variant"] == "teacher"
    for name, needed in (("student", not is_teacher), ("teacher", is_teacher)):
        fits = is_text(given[name]) or (given[name] is None and not needed)
        check(fits, path, f"{where}, {name}", given[name], "a name" if needed else "a name or null")
    check(not is_teacher or given["student"] is None, path, f"{where}, student", given["student"], "null for a teacher")
    is_plain = given["variant"] == "plain"
    check(
        not is_plain or given["teacher"] is None,
        path,
        f"{where}, teacher",
        given["teacher"],
        "null for a plain student",
    )
    check(is_count(given["seed"]), path, f"{where}, seed", given["seed"], "a whole number, 0 or more")
    for name in FRACTIONS:
        value: Any = given.get(name)
        fits = (value is None and name != "oa") or (is_number(value) and 0 <= value <= 1)
        check(fits, path, f"{where}, {name}", value, "a fraction in 0..1, not percent")
    kappa = given.get("kappa")
    check(kappa is None or (is_number(kappa) and -1 <= kappa <= 1), path, f"{where}, kappa", kappa, "a number in -1..1")
    size, time = given.get("parameters"), given.get("milliseconds")
    check(size is None or is_count(size), path, f"{where}, parameters", size, "a whole number")
    check(time is None or (is_number(time) and time > 0), path, f"{where}, milliseconds", time, "a number above 0")
    more = {name: value for name, value in given.items() if name not in known}
    for name, value in more.items():
        check(is_scalar(value), path, f"{where}, {name}", value, "text, a finite number, true, false or null")
    return Row(**{name: value for name, value in given.items() if name in known}, more=more)


def keys(record: object, where: str, path: Path, known: set[str], needed: set[str], *, closed: bool) -> dict[str, Any]:
    """Check that a record is a dictionary with every needed key and, when closed, no unknown one."""
    check(isinstance(record, dict), path, where, record, "names with values")
    assert isinstance(record, dict)
    missing = sorted(needed - set(record))
    unknown = sorted(set(record) - known)
    for name in missing:
        near = difflib.get_close_matches(name, unknown, n=1)
        hint = f" Is {near[0]!r} meant?" if near else ""
        raise UserError(f"{path}: {where} has no {name!r}.{hint}\nWrite the file again with the experiment's command.")
    if closed and unknown:
        near = difflib.get_close_matches(unknown[0], sorted(known), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known))}."
        raise UserError(f"{path}: {where} has the unknown key {unknown[0]!r}; {hint}")
    return record


def check(fits: bool, path: Path, where: str, found: object, expected: str) -> None:
    """Raise a UserError with the place, the value found and the value expected, unless it fits."""
    if not fits:
        shown = repr(found)
        shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
        raise UserError(f"{path}: {where} is {shown}; expected {expected}.")


def is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def is_scalar(value: object) -> bool:
    return value is None or isinstance(value, str | bool) or is_number(value)
