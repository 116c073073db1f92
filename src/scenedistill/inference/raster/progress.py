"""Probabilities of the windows classified so far, on disk, from which an interrupted call resumes."""

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

# plain bytes, not NumPy's .npy files: NumPy writes parts of these only through mapped memory, where a full disk kills
# the process; the plan has their shapes already, and work that an older version began can be resumed
PLAN, PROBABILITIES, CELLS, DONE = "plan.json", "probabilities.bin", "cells.bin", "done.bin"


class RasterProgress:
    """Folder with the probabilities of W windows for K classes, and the cells that have data.

    Probabilities are flushed to disk before their window is marked as done. However the process ends, marked windows
    are therefore complete, and the others are classified again. Several processes may save different windows at once.

    Args:
        folder: folder created by `begin`.
        windows: W.
        classes: K.
        cells: number of rows and columns of cells.
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
        """Open the unfinished work in a folder, or create the folder.

        Args:
            folder: folder for the files.
            plan: all values that the probabilities depend on, as plain JSON values. The plan of unfinished work may
                lack entries in the dicts within it.
            windows: W.
            classes: K.
            cells: number of rows and columns of cells.
            restart: discard unfinished work.

        Raises:
            UserError: the unfinished work has another plan, or the disk has too little space.
        """
        known = None if restart else read_plan(folder)
        # as read back from JSON: tuples become lists
        wanted = json.loads(json.dumps(plan))
        if known is None:
            _make(folder, wanted, {PROBABILITIES: windows * classes * 4, CELLS: cells[0] * cells[1], DONE: windows})
        elif other := [name for name in {**wanted, **known} if not _holds(known.get(name), wanted.get(name))]:
            raise UserError(
                f"{folder} holds unfinished work, begun otherwise: not the same {', '.join(other)}.\n"
                "Give the same again to go on with it, or --restart true to start from scratch."
            )
        elif known != wanted:
            write_json(folder / PLAN, wanted)
        return cls(folder, windows, classes, cells)

    @property
    def remaining(self) -> np.ndarray:
        """Indices of the windows not done yet, int64, ascending."""
        return np.flatnonzero(self._done == 0)

    @property
    def done(self) -> int:
        """Number of windows done."""
        return int(np.count_nonzero(self._done))

    def keep(self, windows: np.ndarray, probabilities: np.ndarray, cells: list[tuple[slice, slice, Any]]) -> None:
        """Write the probabilities of n windows, then mark these as done.

        Args:
            windows: indices of the windows, ascending, int64 `[n]`.
            probabilities: float32 `[n, K]`; all zeros for a window that was left out.
            cells: rows, columns, and whether these cells have data, as a bool or a bool array.
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
        """Return the probabilities of `count` windows from index `first` on, float32 `[count, K]`."""
        self._file.seek(first * self.classes * 4)
        content = self._file.read(count * self.classes * 4)
        return np.frombuffer(content, dtype="<f4").reshape(count, self.classes)

    def holds_data(self, row: int) -> np.ndarray:
        """Return which cells of a row have data, bool `[columns]`."""
        found: np.ndarray = self._cells[row] != 0
        return found

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        del self._done, self._cells


def read_plan(folder: Path) -> dict[str, Any] | None:
    """Return the plan of unfinished work; None if there is none that can be resumed."""
    try:
        plan = json.loads((folder / PLAN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return plan if isinstance(plan, dict) else None


def _make(folder: Path, plan: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
    """Create files of zeros, then the plan; a folder without a plan is ignored."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    free, needed = shutil.disk_usage(folder).free, sum(sizes.values())
    if needed > free:
        raise UserError(
            f"The probabilities for this raster take {needed / 2**20:,.0f} MiB in {folder.parent}, which has"
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
    """Return whether work begun with the value `known` of a plan can be resumed with the value `wanted`."""
    if isinstance(known, dict) and isinstance(wanted, dict):
        return all(name in wanted and wanted[name] == value for name, value in known.items())
    return bool(known == wanted)


def _write_zeros(file: Any, size: int) -> None:
    """Write zeros to allocate the blocks: on a full disk, a later write to mapped memory would kill the process."""
    for start in range(0, size, 1 << 20):
        _write_all(file, bytes(min(1 << 20, size - start)))
    os.fsync(file.fileno())


def _write_all(file: Any, content: bytes) -> None:
    view = memoryview(content)
    while view:  # a nearly full disk accepts a part
        view = view[file.write(view) :]
