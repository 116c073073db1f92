"""What has been found for the windows of a raster so far, on disk, so that a killed run goes on where it was."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from scenedistill.core.disk import write_json
from scenedistill.core.errors import UserError

PLAN, PROBABILITIES, CELLS, DONE = "plan.json", "probabilities.bin", "cells.bin", "done.bin"


class RasterProgress:
    """A folder with the answers for W windows of K classes, and which cells hold data.

    An answer is on the disk before its window is marked as done, so whatever ends the process, marked windows are
    whole and others are asked again. Several processes may keep different windows at once.

    Args:
        folder: made by `begin`.
        windows: W.
        classes: K.
        cells: rows and columns of cells.
    """

    def __init__(self, folder: Path, windows: int, classes: int, cells: tuple[int, int]) -> None:
        self.folder, self.classes = folder, classes
        self._file = (folder / PROBABILITIES).open("r+b", buffering=0)
        self._done = np.memmap(folder / DONE, np.uint8, "r+", shape=(windows,))
        self._cells = np.memmap(folder / CELLS, np.uint8, "r+", shape=cells)

    @classmethod
    def begin(
        cls,
        folder: Path,
        plan: Mapping[str, Any],
        windows: int,
        classes: int,
        cells: tuple[int, int],
        *,
        restart: bool = False,
    ) -> RasterProgress:
        """Open what an earlier run left in a folder, or begin.

        Args:
            folder: for the files.
            plan: all that the answers depend on, as plain JSON values. What is there may have been begun with fewer
                entries in a dict of it.
            windows: W.
            classes: K.
            cells: rows and columns of cells.
            restart: throw away what is there.

        Raises:
            UserError: what is there was begun with another plan, or the disk has no room.
        """
        known = None if restart else read_plan(folder)
        # as it will be read back: tuples become lists
        wanted = json.loads(json.dumps(plan))
        if known is None:
            _make(folder, wanted, {PROBABILITIES: windows * classes * 4, CELLS: cells[0] * cells[1], DONE: windows})
        elif other := [name for name in {**wanted, **known} if not _holds(known.get(name), wanted.get(name))]:
            raise UserError(
                f"{folder} holds unfinished work, begun otherwise: not the same {', '.join(other)}.\n"
                "Give the same again to go on with it, or --restart true to begin anew."
            )
        elif known != wanted:
            write_json(folder / PLAN, wanted)
        return cls(folder, windows, classes, cells)

    @property
    def remaining(self) -> np.ndarray:
        """Windows not done yet, int64, in order."""
        return np.flatnonzero(self._done == 0)

    @property
    def done(self) -> int:
        """How many windows are done."""
        return int(np.count_nonzero(self._done))

    def keep(self, windows: np.ndarray, probabilities: np.ndarray, cells: list[tuple[slice, slice, Any]]) -> None:
        """Write the answers for some windows, then mark these as done.

        Args:
            windows: their numbers in ascending order, int64 `[n]`.
            probabilities: float32 `[n, K]`; all zeros for a window that was left out.
            cells: rows, columns and whether they hold data, a bool or an array of them.
        """
        for rows, columns, valid in cells:
            self._cells[rows, columns] = valid
        start = 0
        for end in [*(np.flatnonzero(np.diff(windows) > 1) + 1), len(windows)]:
            self._file.seek(int(windows[start]) * self.classes * 4)
            _write_all(self._file, np.ascontiguousarray(probabilities[start:end], dtype="<f4").tobytes())
            start = end
        os.fsync(self._file.fileno())
        self._cells.flush()
        self._done[windows] = 1
        self._done.flush()

    def probabilities(self, first: int, count: int) -> np.ndarray:
        """Those of `count` windows from the first on, float32 `[count, K]`."""
        self._file.seek(first * self.classes * 4)
        content = self._file.read(count * self.classes * 4)
        return np.frombuffer(content, dtype="<f4").reshape(count, self.classes)

    def holds_data(self, row: int) -> np.ndarray:
        """Which cells of a row hold data, bool `[columns]`."""
        found: np.ndarray = self._cells[row] != 0
        return found

    def close(self) -> None:
        """Let go of the files."""
        self._file.close()
        del self._done, self._cells


def read_plan(folder: Path) -> dict[str, Any] | None:
    """The plan of unfinished work; None where there is none that could be gone on with."""
    try:
        plan = json.loads((folder / PLAN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return plan if isinstance(plan, dict) else None


def _make(folder: Path, plan: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
    """Files full of zeros, and last of all the plan, without which a folder counts for nothing."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    free, needed = shutil.disk_usage(folder).free, sum(sizes.values())
    if needed > free:
        raise UserError(
            f"The answers for this raster take {needed / 2**20:,.0f} MiB in {folder.parent}, which has"
            f" {free / 2**20:,.0f} MiB left. Make room, or give a larger window or less overlap."
        ) from OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    try:
        for name, size in sizes.items():
            with (folder / name).open("wb", buffering=0) as file:
                if name == PROBABILITIES:
                    file.truncate(size)
                else:
                    _write_zeros(file, size)
        write_json(folder / PLAN, plan)
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _holds(known: Any, wanted: Any) -> bool:
    """Whether what was begun with one value of a plan may go on with another."""
    if isinstance(known, dict) and isinstance(wanted, dict):
        return all(name in wanted and wanted[name] == value for name, value in known.items())
    return bool(known == wanted)


def _write_zeros(file: Any, size: int) -> None:
    """Room on the disk, not only in its books: where that ends, writing to mapped memory ends the process."""
    for start in range(0, size, 1 << 20):
        _write_all(file, bytes(min(1 << 20, size - start)))
    os.fsync(file.fileno())


def _write_all(file: Any, content: bytes) -> None:
    view = memoryview(content)
    while view:  # a disk that is nearly full takes a part
        view = view[file.write(view) :]
