"""What a run's or a grid's folder holds, read from the stages in it, finished or not."""

from __future__ import annotations

import contextlib
import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from scenedistill.core.disk import file_damage, read_json
from scenedistill.core.errors import Damaged, UserError
from scenedistill.core.yaml_files import read_yaml
from scenedistill.data.names import nfc
from scenedistill.data.splits.draw import split_hash
from scenedistill.metrics.outputs import OUTPUTS, KeptOutputs, load_outputs
from scenedistill.runs.selection import of_grid, of_one_setting
from scenedistill.training.runs import ASIDE, RECORD, read_stage

_SEED = re.compile(r"seed(\d+)")
TEACHER, PLAIN = "teacher", "plain"


@dataclass(frozen=True)
class Network:
    """One trained network: a teacher, or a student trained in one way with one seed.

    Attributes:
        folder: of its stage.
        seed: of the run.
        student: the student's name; None for a teacher.
        label: how it was trained: `teacher`, or the name of the student's last folder, such as `plain` or `dkd`; of a
            grid the method's label.
        stage: content of its stage.json.
        tested: what the test found (`oa`, `aa`, `kappa`, `per_class`, `cost`, ...); empty before the test.
        tuning: one of a grid's tuning runs, which see no test image.
    """

    folder: Path
    seed: int
    student: str | None
    label: str
    stage: dict[str, Any]
    tested: dict[str, Any]
    tuning: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """Everything its outcome depended on."""
        return dict(self.stage.get("settings") or {})

    @property
    def record(self) -> dict[str, Any]:
        """What its training left."""
        return dict(self.stage.get("record") or {})

    @property
    def name(self) -> str:
        """Of the network."""
        return self.student or str(self.record.get("name") or self.settings.get("teacher", {}).get("name", "teacher"))

    @property
    def finished(self) -> bool:
        """Trained and tested; a tuning run is never tested."""
        return bool(self.stage.get("finished")) and ("oa" in self.tested or self.tuning)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the scene classes."""
        return tuple(self.settings.get("data", {}).get("classes", ()))

    @cached_property
    def outputs(self) -> KeptOutputs | None:
        """What it said of each test image, where that was kept."""
        with contextlib.suppress(OSError, Damaged):
            return load_outputs(self.folder / "evaluation" / OUTPUTS)
        return None

    @cached_property
    def confusion(self) -> np.ndarray | None:
        """Counts, int64 `[K, K]`, rows the true class; None where they were not kept."""
        path = self.folder / "evaluation" / "test_confusion.csv"
        if (kept := self.tested.get("files", {}).get(path.name)) and file_damage(path, kept):
            return None
        with contextlib.suppress(OSError, ValueError), path.open(encoding="utf-8", newline="") as file:
            counts = np.array([row[1:] for row in list(csv.reader(file))[1:]], dtype=np.int64)
            if counts.shape == (len(self.classes), len(self.classes)):
                return counts
        return None

    @cached_property
    def test_paths(self) -> tuple[str, ...]:
        """Path of each test image below the data folder, in the order of `outputs`; empty where they do not fit."""
        split = str(self.settings.get("data", {}).get("split", ""))
        paths = _test_paths(_seed_folder(self.folder) / "split.csv", self.classes, split)
        fits = self.outputs is not None and [label for _, label in paths] == self.outputs.labels.tolist()
        return tuple(path for path, _ in paths) if fits else ()


@dataclass(frozen=True)
class Cell:
    """All networks of one data set and ratio: a run, or a part of a grid.

    Attributes:
        folder: that holds `seed0`, `seed1`, ...
        key: its place in the folder of all cells; empty for a run.
        networks: finished ones, teachers first, then each student: plain first, then by label; seeds within.
        settings: the run's settings as they were given.
        summary: the record in its `results.json` or `summary.json`, or in the grid's; empty while there is none.
    """

    folder: Path
    key: str
    networks: tuple[Network, ...]
    settings: dict[str, Any]
    summary: dict[str, Any]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the scene classes."""
        return self.networks[0].classes

    @property
    def ratio(self) -> float | None:
        """Share of the images that train, 0..1; None where a split file was given."""
        if "split" in (record := self.networks[0].record):  # what was done, whatever another run has written since
            return dict(record["split"]).get("train_ratio")
        data = self.settings.get("data") or {}
        return None if data.get("split_file") else data.get("train_ratio")

    def groups(self) -> dict[tuple[str, str], list[Network]]:
        """(network's name, label) to the networks that differ by seed only, in order."""
        found: dict[tuple[str, str], list[Network]] = {}
        for network in self.networks:
            found.setdefault((network.name, network.label), []).append(network)
        return found

    def students(self) -> list[str]:
        """Names of the students, in order."""
        return list(dict.fromkeys(network.student for network in self.networks if network.student))

    def one(self, student: str | None, label: str, seed: int) -> Network | None:
        """The network trained so with this seed."""
        wanted = (student, label, seed)
        return next((n for n in self.networks if (n.student, n.label, n.seed) == wanted), None)

    def seeds(self) -> list[int]:
        """All seeds, in order."""
        return sorted({network.seed for network in self.networks})


@dataclass(frozen=True)
class ReportData:
    """Everything in a folder that a report is made of.

    Attributes:
        folder: that was given.
        root: of all cells: the folder itself, or the one above it for a grid that shares that one with another.
        name: of the experiment.
        cells: with at least one finished network.
        unfinished: trainings that were begun and are not done.
        others: of other settings or another teacher than the rest of their seed, and so not in the cells.
        grid: the grid's resolved configuration; empty for a run.
        tuning: scores and choices of a grid's tuning; empty where there was none.
        failures: cell of a grid to what went wrong.
        damaged: folders of trainings whose record cannot be read.
        unreadable: files of settings that were changed since they were written, or are no YAML.
    """

    folder: Path
    root: Path
    name: str
    cells: tuple[Cell, ...]
    unfinished: tuple[Network, ...] = ()
    others: tuple[Network, ...] = ()
    grid: dict[str, Any] = field(default_factory=dict)
    tuning: dict[str, Any] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    damaged: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()

    @property
    def baseline(self) -> str:
        """Label of the training that gains are over."""
        return str(self.grid.get("baseline") or PLAIN)

    def data_of(self, cell: Cell) -> str:
        """Name of a cell's data set."""
        return cell.key.rpartition("-")[0] or cell.key or str(cell.summary.get("data") or self.name)

    def title_of(self, cell: Cell) -> str:
        """A cell in words."""
        ratio = f", {100 * cell.ratio:g} % training" if cell.ratio else ""
        return self.data_of(cell) + ratio


def collect(folder: Path) -> ReportData:
    """Read a run's or a grid's folder.

    What another run has moved aside is left out, and so are a test of other weights than those that are there, and of
    a grid the cells of others in the same folder.

    Raises:
        UserError: no such folder, or no finished network in it.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; expected that of a run or a grid, which the command wrote to.")
    grid, own, tuning = _yaml(folder / "grid.yaml"), _summary(folder), read_json(folder / "tuning.json")
    shares = grid and not any(folder.glob("*/seed*")) and (folder.parent / "grid.yaml").is_file()
    root = folder.parent if shares else folder
    unreadable = [] if grid or not (folder / "grid.yaml").is_file() else [folder / "grid.yaml"]
    found = ((key, of_grid(network, key, grid, tuning)) for key, network in _networks(root))
    everything = [(key, network) for key, network in found if network]
    by_key: dict[str, list[Network]] = {}
    for key, network in everything:
        if network.finished and not network.tuning:
            by_key.setdefault(key, []).append(network)
    if not by_key:
        begun = f" {len(everything)} were begun and are not done." if everything else ""
        raise UserError(
            f"{folder} holds no trained and tested network.{begun} "
            "Give the folder of a run or a grid, the one with seed0 or grid.yaml in it."
        )
    methods = list(grid.get("methods") or {})
    cells, others = list[Cell](), list[Network]()
    for key, networks in by_key.items():
        kept, strange = of_one_setting(networks)
        others += strange
        file = root / key / "settings.yaml"
        settings = _yaml(file)
        if not settings and file.is_file():
            unreadable.append(file)
        cells.append(
            Cell(
                folder=root / key,
                key=key,
                networks=tuple(sorted(kept, key=lambda network: _order_of(network, methods))),
                settings=settings,
                summary=read_json(folder / key / "results.json") or own or _summary(root / key),
            )
        )
    return ReportData(
        folder=folder,
        root=root,
        name=str(grid.get("name") or own.get("experiment") or folder.resolve().name),
        cells=tuple(cells),
        tuning=tuning if grid.get("tuning") else {},
        unfinished=tuple(network for _, network in everything if not network.finished),
        others=tuple(others),
        grid=grid,
        failures={str(cell): str(reason) for cell, reason in read_json(folder / "failures.json").items()},
        damaged=tuple(path.relative_to(root).as_posix() for path in _places(root) if not read_stage(path)),
        unreadable=tuple(file.relative_to(root).as_posix() for file in unreadable),
    )


def _networks(folder: Path) -> Iterator[tuple[str, Network]]:
    """Every stage below a folder with the key of its cell; none whose record is damaged."""
    for path, place in _places(folder).items():
        seeds = [number for number, part in enumerate(place) if _SEED.fullmatch(part)]
        *cell, seed = place[: seeds[-1] + 1]
        rest = place[seeds[-1] + 1 :]
        if not (stage := read_stage(path)):
            continue
        test = read_stage(path / "evaluation")
        current = test.get("finished") and test.get("settings", {}).get("of") == stage.get("fingerprint")
        student = "/".join(rest[:-1]) or None
        number = int(seed.removeprefix("seed"))
        tested = {**test.get("record", {}), "files": test.get("files", {})} if current else {}
        tuning = place[0] == "tuning"
        yield "/".join(cell), Network(path, number, student, rest[-1], stage, tested, tuning)


def _places(folder: Path) -> dict[Path, tuple[str, ...]]:
    """The folder of every stage below a folder, with the names that lead to it."""
    found = {path.parent: path.parent.relative_to(folder).parts for path in sorted(folder.rglob(RECORD))}
    return {
        path: place
        for path, place in found.items()
        if any(_SEED.fullmatch(part) for part in place[:-1])
        and place[-1] != "evaluation"
        and not any(ASIDE in part for part in place)
    }


def _order_of(network: Network, methods: Sequence[str]) -> tuple[str, int, str, int]:
    """Teachers, then each student: plain, then the methods as the grid has them, then by name."""
    known = [TEACHER, PLAIN, *methods]
    rank = known.index(network.label) if network.label in known else len(known)
    return (network.student or "", rank, network.label, network.seed)


def _seed_folder(folder: Path) -> Path:
    return next(parent for parent in folder.parents if _SEED.fullmatch(parent.name))


def _test_paths(split: Path, classes: Sequence[str], wanted: str) -> list[tuple[str, int]]:
    """Path and label of each test image, in the order of a `SceneIndex`; none where the file is not the split that is
    wanted, which another run may have put there."""
    number = {nfc(name): position for position, name in enumerate(classes)}
    try:
        with split.open(encoding="utf-8", newline="") as file:
            rows = [(row["path"], row["label"], row["split"]) for row in csv.DictReader(file)]
        if wanted != split_hash(rows):
            return []
        found = [(path, number[nfc(label)]) for path, label, part in rows if part == "test"]
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return []
    if any(PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts for path, _ in found):
        return []  # the report shows images below the data folder, whatever a run's folder says
    return sorted(found, key=lambda entry: (entry[1], nfc(entry[0]), entry[0]))


def _summary(folder: Path) -> dict[str, Any]:
    return read_json(folder / "results.json") or read_json(folder / "summary.json")


def _yaml(path: Path) -> dict[str, Any]:
    try:
        return read_yaml(path, unchanged=True)
    except UserError:
        return {}
