"""A record of exported students in use: their size, speed and accuracy, and a large mosaic; and its tables."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scenedistill.core.disk import write_json
from scenedistill.core.errors import UserError
from scenedistill.core.text import markdown_table
from scenedistill.experiments.results.measurements import machine_text

KIND = "use"


def keep_section(path: Path, name: str, section: Mapping[str, Any]) -> None:
    """Write one section of the record and keep the others.

    Args:
        path: JSON file; created if absent.
        name: "latency", "predict" or "mosaic".
        section: what was measured, with `hardware` and `date`.
    """
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {**content, "experiment": path.stem, "kind": KIND, name: section})


def read_use(path: Path) -> dict[str, Any]:
    """Read the sections of a record.

    Raises:
        UserError: no such file, or not such a record.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"There is no result file {path}.\nRun the measurement that writes it.") from None
    except ValueError as problem:
        raise UserError(f"{path} is not JSON: {problem}.\nMeasure again.") from None
    if not isinstance(content, dict) or not any(name in content for name in _TABLES):
        raise UserError(f"{path} has none of the sections {', '.join(_TABLES)}.\nMeasure again.")
    return {name: content[name] for name in _TABLES if name in content}


def use_table(sections: Mapping[str, Any]) -> str:
    """Return Markdown: for each section a table with a line on data, settings and machine below it.

    Raises:
        UserError: a section lacks a figure.
    """
    try:
        return _sections(sections)
    except (KeyError, TypeError, IndexError) as problem:
        raise UserError(f"A figure is missing from the record: {problem}.\nMeasure again.") from None


def _sections(sections: Mapping[str, Any]) -> str:
    return "\n\n".join(f"{_TABLES[name](section)}\n\n{_conditions(section)}" for name, section in sections.items())


def _latency(section: Mapping[str, Any]) -> str:
    rows = section["rows"]
    batches = list(rows[0]["milliseconds"])
    head = ["network", "form", "MB", "OA (%)", *(f"ms per image, batch {batch}" for batch in batches)]
    table, targets = [], []
    for row in rows:
        oa = "-" if row["oa"] is None else f"{100 * row['oa']:.2f}"
        times = [_times(row["milliseconds"][batch]) for batch in batches]
        table.append([row["network"], row["form"], f"{row['bytes'] / 1e6:.1f}", oa, *times])
    for target in section["targets"]:
        points = target["what"].startswith("OA")  # a share of the images
        found, wanted = (
            "-" if value is None else f"{100 * value:.2f} points" if points else f"{value:.2f}"
            for value in (target["found"], target["target"])
        )
        targets.append([target["network"], target["what"], found, wanted, _yes(target["met"])])
    met = markdown_table(["network", "what", "found", "target", "met"], targets)
    return f"{markdown_table(head, table)}\n\n{met}"


def _predict(section: Mapping[str, Any]) -> str:
    speeds = ["images/s from files", "of the runtime alone", "of reading alone"]
    head = ["network", "form", *speeds, "share of the runtime's", "target", "met", "share of both in turn"]
    table = []
    for row in section["rows"]:
        found = [_speed(row[f"{name}_images_per_second"]) for name in ("predict", "runtime", "reading")]
        shares = [f"{100 * row[name]:.1f} %" for name in ("of_runtime", "target", "of_reading_then_runtime")]
        table.append([row["network"], row["form"], *found, *shares[:2], _yes(row["met"]), shares[2]])
    return markdown_table(head, table)


def _mosaic(section: Mapping[str, Any]) -> str:
    images = f"{section['images']:,} images"
    agree = min(section[f"agree_{where}"] for where in ("geotiff", "polygons", "files"))
    reached = "met" if section["network_share_reached"] else "not met"
    target = f"target {100 * section['network_share_target']:.0f} %: {reached}"
    lines = [
        ["raster", f"{section['side']:,} x {section['side']:,} pixels, {section['windows']:,} windows"],
        ["network", f"{section['network']}, {section['precision']}, sees {section['image_size']} pixels"],
        ["speed", f"{section['megapixels_per_second']:.1f} megapixels/s ({section['seconds']:.0f} s)"],
        ["share of the time in the network", f"{100 * section['network_share']:.1f} % ({target})"],
        ["waiting for reading; for writing", f"{100 * section['reading']:.0f} %; {100 * section['writing']:.0f} %"],
        ["of the network's speed on images decoded before", f"{100 * section['of_network_alone']:.0f} %"],
        ["peak memory", f"{section['peak_memory_mib']:,} MiB"],
        ["class read back equals that of the image alone", f"{100 * agree:.2f} % of {images}"],
        ["largest difference of a probability", f"{section['largest_difference']:.1e}"],
    ]
    return markdown_table(["mosaic", "measured"], lines)


def _conditions(section: Mapping[str, Any]) -> str:
    """Return the line on data, settings and machine below a table."""
    known = [
        f"{section['test_images']:,} test images" if "test_images" in section else "",
        f"seen at {section['image_size']} pixels",
        f"CPU threads: {section['threads']}" if "threads" in section else "",
        "median (fastest to slowest turn)" if "turns" in section else "",
        machine_text(section["hardware"]),
    ]
    return f"{'; '.join(filter(None, known))}; {section['date']}."


def _times(found: Mapping[str, float]) -> str:
    digits = 2 if found["median"] >= 1 else 3
    return "{:.{n}f} ({:.{n}f} to {:.{n}f})".format(*(found[name] for name in ("median", "min", "max")), n=digits)


def _speed(found: Mapping[str, float]) -> str:
    return "{:,.0f} ({:,.0f} to {:,.0f})".format(*(found[name] for name in ("median", "min", "max")))


def _yes(met: bool | None) -> str:
    return {True: "yes", False: "no", None: "-"}[met]


_TABLES = {"latency": _latency, "predict": _predict, "mosaic": _mosaic}
