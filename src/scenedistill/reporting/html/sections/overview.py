"""Sections made from the records alone: summary, settings, results, cost, tuning, and what is missing."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from scenedistill.core.text import duration, interval_text
from scenedistill.data.scenes import PARTS
from scenedistill.experiments.results.measurements import machine_text
from scenedistill.reporting.html.blocks import Block, Code, Properties, Section, Text, Tiles
from scenedistill.reporting.html.focus import Focus
from scenedistill.reporting.html.tables import (
    Table,
    cost_table,
    gain_over,
    mean_entry,
    number_entry,
    published_tables,
    results_table,
    seeds_table,
    text_entry,
)
from scenedistill.reporting.html.tuning_table import tuning_table
from scenedistill.runs.network import Network
from scenedistill.runs.run import Cell, Run


def in_short(data: Run, focus: Focus) -> Section:
    """Return the summary: OA of teacher, plain and distilled student, and the gain with its interval."""
    tiles = []
    for name, networks in focus.groups.items():
        cost = networks[0].tested.get("cost") or {}
        size = f", {cost['parameters'] / 1e6:.2f} M parameters" if cost else ""
        role = "teacher" if networks[0].student is None else f"{name} student"
        oa = mean_entry([n.tested["oa"] for n in networks], "{:.2f} %", 100).text.replace(" % ±", " ±")
        tiles.append((f"OA of the {role}", oa, f"{networks[0].name}{size}"))
    blocks: list[Block] = [Tiles(tiles)]
    last = list(focus.groups.values())[-1]
    if gain := gain_over(focus.cell, last, data.baseline):
        name = list(focus.groups)[-1]
        seeds = f"mean over {gain.n} seeds" if gain.n > 1 else "with one seed"
        side = "ahead of" if gain.mean >= 0 else "behind"
        said = f"{name} is {abs(gain.mean):.2f} points of OA {side} {data.baseline}, {seeds}."
        if gain.low is None:
            said += " One seed gives no measure of the spread."
        else:
            verdict = "excludes 0" if gain.clear else "includes 0: these seeds do not show a difference"
            said += f" The 95 % interval is {interval_text(gain.low, gain.high)} and {verdict}."
        blocks.append(Text(said))
    if focus.note:
        blocks.append(Text(focus.note))
    if len(data.cells) > 1 or len(focus.cell.groups()) > len(focus.groups):
        blocks.append(
            Text(
                f"Looked at closely below: {data.title_of(focus.cell)}, student {focus.student}, "
                f"{' and '.join(list(focus.groups)[1:])}. Choose others with --cell, --student and --method."
            )
        )
    return Section("short", "In short", blocks=blocks)


def what_was_run(data: Run) -> Section:
    """Return the section of settings, data, splits, versions, hardware and command."""
    blocks: list[Block] = []
    for summary in _distinct([cell.summary for cell in data.cells]):
        took = summary.get("wall_seconds")
        properties = [
            ("data", summary.get("data") if len(data.cells) > 1 else None),
            ("command", summary.get("command")),
            ("date", summary.get("date")),
            ("hardware", machine_text(summary.get("hardware") or {})),
            ("versions", _listed(summary.get("versions"))),
            ("epochs", _listed(summary.get("epochs"))),
            ("training and tests took", duration(took) if isinstance(took, int | float) else None),
            ("notes", summary.get("notes")),
        ]
        blocks.append(Properties([(name, str(value)) for name, value in properties if value]))
    rows = []
    for cell in data.cells:
        for seed in cell.seeds():
            networks = [n for n in cell.networks if n.seed == seed]
            settings = networks[0].settings
            parts = _parts(cell, seed, networks[0])
            hashes = dict.fromkeys(str(n.settings.get("data", {}).get("split", "-")) for n in networks)
            pixels = f"{settings.get('image_size', '-')} / {settings.get('data', {}).get('stored_size', '-')}"
            counts = [
                number_entry(float(count), "{:.0f}") for count in (*(parts[name] for name in PARTS), len(cell.classes))
            ]
            rows.append(
                (
                    text_entry(data.title_of(cell)),
                    text_entry(seed),
                    text_entry(", ".join(hashes)),
                    *counts,
                    text_entry(pixels),
                )
            )
    head = ("data", "seed", "split hash", "training", "validation", "test", "classes", "pixels seen / stored")
    note = "Splits with the same hash are the same split. Every network of a seed was tested on the same images."
    blocks.append(Table("splits", "Images and splits", head, tuple(rows), note=note))
    if data.grid:
        blocks.append(Code("The grid's settings", settings_text(data.grid)))
    for cell in data.cells:
        if cell.settings:
            blocks.append(Code(f"Settings: {data.title_of(cell)}", settings_text(cell.settings)))
    return Section("run", "What was run", blocks=blocks)


def results(data: Run) -> Section:
    """Return the section of the accuracies of every cell and of published ones."""
    blocks: list[Block] = []
    for cell in data.cells:
        if len(data.cells) > 1:
            blocks.append(Text(f"{data.title_of(cell)}:"))
        blocks += [results_table(cell, data.baseline), seeds_table(cell)]
    known = [(str(cell.summary.get("data") or data.data_of(cell)), cell.ratio) for cell in data.cells]
    blocks += published_tables([(name, ratio) for name, ratio in known if ratio])
    return Section(
        "results",
        "Results",
        "OA is the share of all test images that are classified correctly, AA the mean over the classes, kappa the "
        "agreement beyond chance. Click a heading to sort.",
        blocks,
    )


def cost(data: Run) -> Section:
    """Return the section of parameters, bytes, operations and time."""
    tables = [table for cell in data.cells if (table := cost_table(cell)).rows]
    return Section("cost", "Cost", "Size, operations and time of each network.", [*tables])


def tuning(data: Run) -> Section:
    """Return the section of scores on validation images."""
    known = {"factors", "chosen", "val_fraction", "seed", "epochs"} <= set(data.tuning)
    return Section("tuning", "Tuning", blocks=[tuning_table(data.tuning)] if known else [])


def missing(data: Run, left_out: Sequence[str]) -> Section:
    """Return the section of failures, unfinished trainings, and what the report leaves out."""
    blocks: list[Block] = [Text(line, "warn") for line in left_out]
    if data.others:
        names = [network.folder.relative_to(data.root).as_posix() for network in data.others]
        blocks.append(
            Text(
                "Left out, because they have other settings than the teacher of their seed, or another teacher: "
                f"{', '.join(names)}. The same command trains them again.",
                "warn",
            )
        )
    if data.failures:
        rows = tuple((text_entry(where), text_entry(why)) for where, why in data.failures.items())
        blocks.append(Table("failures", "Failures", ("cell", "what went wrong"), rows))
    if data.damaged:
        blocks.append(Text(f"{damaged_text(data)} The same command trains them again.", "warn"))
    if data.unreadable:
        blocks.append(Text(unreadable_text(data), "warn"))
    if data.unfinished:
        names = [network.folder.relative_to(data.root).as_posix() for network in data.unfinished]
        blocks.append(Text(f"Not finished or not tested: {', '.join(names)}. The same command goes on with them."))
    return Section("missing", "What is missing", blocks=blocks)


def damaged_text(data: Run) -> str:
    """Return a line naming the trainings left out because their record is damaged."""
    return f"Left out, for their stage.json is damaged: {', '.join(data.damaged)}."


def unreadable_text(data: Run) -> str:
    """Return a line naming the settings files not shown because they are damaged or were changed."""
    return f"Not shown, for it is damaged or was changed since it was written: {', '.join(data.unreadable)}."


def settings_text(settings: dict[str, Any]) -> str:
    """Return settings as YAML, with absolute paths cut to their names."""
    return yaml.safe_dump(_without_folders(settings), sort_keys=False, allow_unicode=True)


def _without_folders(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_folders(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_without_folders(entry) for entry in value]
    if isinstance(value, str) and (Path(value).is_absolute() or value.startswith("~")):
        return Path(value).name
    return value


def _distinct(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record for number, record in enumerate(records) if record and record not in records[:number]]


def _parts(cell: Cell, seed: int, network: Network) -> Counter[str]:
    """Count the images in each part of a split, from the training's record or, for older ones, from `split.csv`."""
    if noted := network.record.get("split"):
        return Counter({part: int(noted.get(part, 0)) for part in PARTS})
    try:
        with (cell.folder / f"seed{seed}" / "split.csv").open(encoding="utf-8", newline="") as file:
            return Counter(row["split"] for row in csv.DictReader(file))
    except (OSError, KeyError, csv.Error):
        return Counter()


def _listed(values: object) -> str:
    if not isinstance(values, dict):
        return ""
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)
