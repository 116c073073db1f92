"""The folder of a run or a grid as one object, with its finished and unfinished networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scenedistill.core.disk import read_json
from scenedistill.core.errors import UserError
from scenedistill.core.yaml_files import read_yaml
from scenedistill.runs.network import PLAIN, SEED, TEACHER, Network
from scenedistill.runs.selection import of_grid, of_one_setting
from scenedistill.training.runs import ASIDE, RECORD


@dataclass(frozen=True)
class Cell:
    """All networks of one data set and ratio: a run, or a part of a grid.

    Attributes:
        folder: folder of `seed0`, `seed1`, ...
        key: path below the folder of all cells; empty for a run.
        networks: finished networks: teachers first, then each student, plain first, then by label; seeds within.
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
        """Training ratio, 0..1; None where a split file was given."""
        if "split" in (record := self.networks[0].record):  # the settings may be of a later run
            return dict(record["split"]).get("train_ratio")
        data = self.settings.get("data") or {}
        return None if data.get("split_file") else data.get("train_ratio")

    def groups(self) -> dict[tuple[str, str], list[Network]]:
        """Group the networks that differ only by seed, by (name of the network, label), in order."""
        found: dict[tuple[str, str], list[Network]] = {}
        for network in self.networks:
            found.setdefault((network.name, network.label), []).append(network)
        return found

    def students(self) -> list[str]:
        """List the names of the students, in order."""
        return list(dict.fromkeys(network.student for network in self.networks if network.student))

    def one(self, student: str | None, label: str, seed: int) -> Network | None:
        """Find the network of a student, label and seed; None if there is none."""
        wanted = (student, label, seed)
        return next((n for n in self.networks if (n.student, n.label, n.seed) == wanted), None)

    def seeds(self) -> list[int]:
        """List all seeds, in order."""
        return sorted({network.seed for network in self.networks})


@dataclass(frozen=True)
class Run:
    """A run's or a grid's folder, read when it is opened.

    Attributes:
        folder: the given folder.
        root: folder of all cells: the folder itself, or its parent for a grid that shares the parent with another grid.
        name: name of the experiment.
        cells: cells with at least one finished network.
        unfinished: trainings that were begun and are not done.
        others: networks with other settings or another teacher than the rest of their seed; they are not in the cells.
        grid: the grid's resolved configuration; empty for a run.
        tuning: scores and choices of a grid's tuning; empty where there was none.
        failures: reason of failure by cell of a grid.
        damaged: folders of trainings whose record cannot be read.
        unreadable: settings files that were changed since they were written, or are not YAML.
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
        """Label of the method over which gains are computed."""
        return str(self.grid.get("baseline") or PLAIN)

    def cell(self, key: str | None = None) -> Cell:
        """Find a cell by its key; the first one when not given.

        Raises:
            UserError: there is no such cell.
        """
        found = [cell for cell in self.cells if key in (None, cell.key)]
        if not found:
            keys = ", ".join(cell.key for cell in self.cells if cell.key) or "none, it is a run"
            raise UserError(f"{self.folder} has no cell {key}. There are: {keys}.")
        return found[0]

    def data_of(self, cell: Cell) -> str:
        """Return the name of a cell's data set."""
        return cell.key.rpartition("-")[0] or cell.key or str(cell.summary.get("data") or self.name)

    def title_of(self, cell: Cell) -> str:
        """Return the title of a cell: data set and training ratio."""
        ratio = f", {100 * cell.ratio:g} % training" if cell.ratio else ""
        return self.data_of(cell) + ratio

    @classmethod
    def open(cls, folder: Path | str) -> Run:
        """Read a run's or a grid's folder.

        Stages that another run moved aside are left out, and so are tests of other weights than the present ones and,
        for a grid, the cells of other grids in the same folder.

        Raises:
            UserError: no such folder, or no finished network in it.
        """
        return _open(Path(folder).expanduser())


def _open(folder: Path) -> Run:
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; expected that of a run or a grid, which the command wrote to.")
    grid, own, tuning = _yaml(folder / "grid.yaml"), _summary(folder), read_json(folder / "tuning.json")
    shares = grid and not any(folder.glob("*/seed*")) and (folder.parent / "grid.yaml").is_file()
    root = folder.parent if shares else folder
    unreadable = [] if grid or not (folder / "grid.yaml").is_file() else [folder / "grid.yaml"]
    by_path = {path: Network.at(path, tuning=place[0] == "tuning") for path, place in _places(root).items()}
    keyed = [(_key(path.relative_to(root).parts), network) for path, network in by_path.items() if network.stage]
    found = ((key, of_grid(network, key, grid, tuning)) for key, network in keyed)
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
    return Run(
        folder=folder,
        root=root,
        name=str(grid.get("name") or own.get("experiment") or folder.resolve().name),
        cells=tuple(cells),
        tuning=tuning if grid.get("tuning") else {},
        unfinished=tuple(network for _, network in everything if not network.finished),
        others=tuple(others),
        grid=grid,
        failures={str(cell): str(reason) for cell, reason in read_json(folder / "failures.json").items()},
        damaged=tuple(path.relative_to(root).as_posix() for path, network in by_path.items() if not network.stage),
        unreadable=tuple(file.relative_to(root).as_posix() for file in unreadable),
    )


def _key(place: Sequence[str]) -> str:
    """Return the key of the cell of a network at these parts of a path below the folder of all cells."""
    return "/".join(place[: max(number for number, part in enumerate(place) if SEED.fullmatch(part))])


def _places(folder: Path) -> dict[Path, tuple[str, ...]]:
    """Find the folder of every stage below a folder, with the parts of its relative path."""
    found = {path.parent: path.parent.relative_to(folder).parts for path in sorted(folder.rglob(RECORD))}
    return {
        path: place
        for path, place in found.items()
        if any(SEED.fullmatch(part) for part in place[:-1])
        and place[-1] != "evaluation"
        and not any(ASIDE in part for part in place)
    }


def _order_of(network: Network, methods: Sequence[str]) -> tuple[str, int, str, int]:
    """Return the sort key: teachers, then each student: plain, the methods in the grid's order, then others by name."""
    known = [TEACHER, PLAIN, *methods]
    rank = known.index(network.label) if network.label in known else len(known)
    return (network.student or "", rank, network.label, network.seed)


def _summary(folder: Path) -> dict[str, Any]:
    return read_json(folder / "results.json") or read_json(folder / "summary.json")


def _yaml(path: Path) -> dict[str, Any]:
    try:
        return read_yaml(path, unchanged=True)
    except UserError:
        return {}
