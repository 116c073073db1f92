"""What an interrupted prediction has done already, so that it goes on where it was."""

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
    """One image: its probabilities in the order of the classes, or the reason why it could not be read.

    Attributes:
        path: as it is named in the results.
        stamp: size in bytes and time of change of the file, to see whether it is still the same; None if unreadable.
        probabilities: K numbers in 0..1.
        reason: why there are none.
        row: of its embedding.
    """

    path: str
    stamp: tuple[int, int] | None
    probabilities: tuple[float, ...] = ()
    reason: str | None = None
    row: int = -1


class Journal:
    """A file that grows by a line for each image, beside one of embeddings if they are wanted.

    It belongs to one network and one set of settings; another one has another journal in the same folder. A process
    that is killed leaves whole lines and at most one that is cut, which is forgotten. Embeddings are written before the
    lines that name them.

    Args:
        folder: of the results.
        settings: everything a line depends on, as plain JSON values.
        width: D of the embeddings; None when they are not wanted.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], width: int | None) -> None:
        self.path = folder / f"unfinished-{fingerprint(settings)}.jsonl"
        self.done = self.path.with_suffix(".done")  # its name while it is deleted
        self.vectors = self.path.with_suffix(".f32")
        self.width = width
        self.places: dict[str, int] = {}  # where the last line of a path begins
        self.rows = 0
        self._lines: BinaryIO | None = None
        self._numbers: BinaryIO | None = None

    @contextmanager
    def opened(self, *, anew: bool = False) -> Iterator[Journal]:
        """Read what is there, or begin `anew`, and hold it against other processes; it stays unless `remove` is called.

        Raises:
            UserError: another process is at it.
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
            if anew:
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
        """Append entries, with the embeddings `[B, D]` of those that have probabilities, in their order."""
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
        """The last entry of a path.

        Raises:
            KeyError: it has none.
        """
        assert self._lines is not None
        end = self._lines.tell()
        self._lines.seek(self.places[path])
        entry = _entry(self._lines.readline())
        self._lines.seek(end)
        return entry

    def embeddings(self) -> np.ndarray:
        """Float32 `[rows, D]`, read from the disk as they are used."""
        if not self.rows or not self.width:
            return np.zeros((0, self.width or 0), np.float32)
        return np.memmap(self.vectors, np.float32, "r", shape=(self.rows, self.width))

    def remove(self) -> None:
        """Delete it: all is written elsewhere. A kill meanwhile leaves nothing that looks like unfinished work."""
        if self.path.exists():
            self.path.replace(self.done)
        _delete(self.done)

    def _clear(self) -> None:
        """Delete what a kill has left of other journals that were no longer needed."""
        for done in self.path.parent.glob(f"unfinished-*{self.done.suffix}"):
            _delete(done)
        for lock in self.path.parent.glob("unfinished-*.lock"):
            if not lock.with_suffix(self.path.suffix).exists():
                with suppress(Timeout, OSError), FileLock(lock, timeout=0):  # held: another process begins
                    lock.unlink()

    def _read(self) -> None:
        """Find the lines, and cut off what is not whole."""
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
    """Remove a journal that is no longer needed, the file of its embeddings first."""
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
