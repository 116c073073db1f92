"""Journal of finished predictions on disk, from which an interrupted prediction resumes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock, Timeout

from scenedistill.core.errors import UserError
from scenedistill.training.runs import fingerprint


@dataclass(frozen=True)
class Entry:
    """Result of one image: its probabilities, or the reason why it cannot be read.

    Attributes:
        path: path of the image as in the results.
        stamp: size of the file in bytes and modification time in nanoseconds, to detect changes; None if unavailable.
        probabilities: K probabilities in the order of the classes, 0..1; empty if the image cannot be read.
        reason: why the image cannot be read; None if it has probabilities.
        row: row of its embedding in the journal; -1 without one.
    """

    path: str
    stamp: tuple[int, int] | None
    probabilities: tuple[float, ...] = ()
    reason: str | None = None
    row: int = -1


class Journal:
    """File with one line per image, and optionally a second file with the embeddings.

    A journal belongs to one network and one set of settings; several journals may share a folder. If the process is
    killed, at most the last line is incomplete, and is discarded. Embeddings are written before the lines that refer
    to them.

    Args:
        folder: output folder of the prediction.
        settings: all values that the predictions depend on, as plain JSON values.
        width: length D of an embedding; None to store no embeddings.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], width: int | None) -> None:
        self.path = folder / f"unfinished-{fingerprint(settings)}.jsonl"
        self.done = self.path.with_suffix(".done")  # name during deletion
        self.vectors = self.path.with_suffix(".f32")
        self.width = width
        self.places: dict[str, int] = {}  # byte offset of the last line of each path
        self.rows = 0
        self._lines: BinaryIO | None = None
        self._numbers: BinaryIO | None = None

    @contextmanager
    def opened(self, *, restart: bool = False) -> Iterator[Journal]:
        """Lock the journal, and read it, or delete it first with `restart`; it is kept unless `remove` is called.

        Raises:
            UserError: another process has locked it.
        """
        lock = self.path.with_suffix(".lock")
        held = FileLock(lock, timeout=0)
        try:
            held.acquire()
        except Timeout as problem:
            raise UserError(
                f"{self.path.parent} is being written by another process. Wait for it, or give another folder with "
                "--out."
            ) from problem
        except NotImplementedError:  # a file system without locks
            pass
        try:
            self._clear()
            if restart:
                self.remove()
            self._read()
            with ExitStack() as files:
                self._lines = files.enter_context(self.path.open("r+b"))
                self._lines.seek(0, os.SEEK_END)
                self._numbers = None if self.width is None else files.enter_context(self.vectors.open("ab"))
                yield self
        finally:
            lock.unlink(missing_ok=True)
            held.release()

    def add(self, entries: Sequence[Entry], embeddings: np.ndarray | None = None) -> None:
        """Append entries, with the embeddings, `[B, D]`, of the entries that have probabilities."""
        assert self._lines is not None
        if self._numbers is not None and embeddings is not None:
            self._numbers.write(np.ascontiguousarray(embeddings, np.float32).tobytes())
            self._numbers.flush()
        place, lines = self._lines.tell(), []
        for entry in entries:
            fields: dict[str, Any] = {"path": entry.path, "stamp": entry.stamp}
            if entry.reason is not None:
                fields["reason"] = entry.reason
            else:
                fields |= {"probabilities": entry.probabilities, "row": self.rows}
                self.rows += 1
            line = json.dumps(fields, ensure_ascii=False).encode() + b"\n"
            self.places[entry.path] = place
            place += len(line)
            lines.append(line)
        self._lines.write(b"".join(lines))
        self._lines.flush()

    def get(self, path: str) -> Entry:
        """Return the last entry of a path.

        Raises:
            KeyError: the path has no entry.
        """
        assert self._lines is not None
        end = self._lines.tell()
        self._lines.seek(self.places[path])
        entry = _entry(self._lines.readline())
        self._lines.seek(end)
        return entry

    def embeddings(self) -> np.ndarray:
        """Return the embeddings, float32 `[rows, D]`, mapped into memory from the file."""
        if not self.rows or not self.width:
            return np.zeros((0, self.width or 0), np.float32)
        return np.memmap(self.vectors, np.float32, "r", shape=(self.rows, self.width))

    def remove(self) -> None:
        """Delete the journal; it is renamed first, so that a kill leaves nothing that looks like unfinished work."""
        if self.path.exists():
            self.path.replace(self.done)
        _delete(self.done)

    def _clear(self) -> None:
        """Delete what is left of other journals whose deletion was interrupted."""
        for done in self.path.parent.glob(f"unfinished-*{self.done.suffix}"):
            _delete(done)
        for lock in self.path.parent.glob("unfinished-*.lock"):
            if not lock.with_suffix(self.path.suffix).exists():
                with suppress(Timeout, OSError), FileLock(lock, timeout=0):  # held by another process that starts
                    lock.unlink()

    def _read(self) -> None:
        """Index the lines, and truncate the files after the last complete entry."""
        for file in (self.path, *([] if self.width is None else [self.vectors])):
            file.touch()
        bytes_of_row = 4 * (self.width or 0)
        whole = self.vectors.stat().st_size // bytes_of_row if bytes_of_row else None
        place = 0
        with self.path.open("rb") as lines:
            for line in lines:
                try:
                    entry = _entry(line)
                except (ValueError, KeyError, TypeError):
                    break
                if not line.endswith(b"\n") or (whole is not None and entry.row >= whole):
                    break
                self.places[entry.path] = place
                self.rows = max(self.rows, entry.row + 1)
                place += len(line)
        with self.path.open("r+b") as lines:
            lines.truncate(place)
        if bytes_of_row:
            with self.vectors.open("r+b") as numbers:
                numbers.truncate(self.rows * bytes_of_row)


def _delete(done: Path) -> None:
    """Delete a renamed journal, its embeddings first."""
    done.with_suffix(".f32").unlink(missing_ok=True)
    done.unlink(missing_ok=True)


def _entry(line: bytes) -> Entry:
    fields = json.loads(line)
    stamp = fields["stamp"]
    return Entry(
        fields["path"],
        None if stamp is None else (stamp[0], stamp[1]),
        tuple(fields.get("probabilities", ())),
        fields.get("reason"),
        fields.get("row", -1),
    )
