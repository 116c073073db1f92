"""Journal of finished predictions on disk, from which an interrupted prediction resumes."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scenedistill.core.errors import UserError
from scenedistill.training.runs import fingerprint

_OLDER = (".jsonl", ".f32", ".done", ".lock")  # files of a journal before it was a database


@dataclass(frozen=True)
class Entry:
    """Result of one image: its probabilities, or the reason why it cannot be read.

    Attributes:
        path: path of the image as in the results.
        stamp: size of the file in bytes and modification time in nanoseconds, to detect changes; None if unavailable.
        probabilities: K probabilities in the order of the classes, 0..1; empty if the image cannot be read.
        reason: why the image cannot be read; None if it has probabilities.
    """

    path: str
    stamp: tuple[int, int] | None
    probabilities: tuple[float, ...] = ()
    reason: str | None = None


class Journal:
    """SQLite database with one row per image: its entry, and its embedding where these are wanted.

    A journal belongs to one network and one set of settings; several journals may share a folder. Each batch is one
    transaction: a killed process loses at most the batch that it was adding.

    Args:
        folder: output folder of the prediction.
        settings: all values that the predictions depend on, as plain JSON values.

    Attributes:
        lost: why an earlier journal cannot be resumed; empty if there is none, or it can be.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.path = folder / f"unfinished-{fingerprint(settings)}.sqlite"
        self.lost = ""

    @contextmanager
    def opened(self, *, restart: bool = False) -> Iterator[Journal]:
        """Lock and open the journal, emptied first with `restart`; it is kept unless `remove` is called.

        Raises:
            UserError: another process has locked it.
        """
        self.path.touch()  # where this fails, the error names the file; SQLite's does not
        if not self._connect():
            self.lost = f"{self.path} is damaged"
            self.remove()
            self._connect()
        with closing(self._images):
            for file in filter(Path.exists, map(self.path.with_suffix, _OLDER)):
                self.lost = f"{self.path.parent} holds predictions in the form of an older version"
                file.unlink()
            if restart:
                with self._images:
                    self._images.execute("DELETE FROM images")
            yield self

    def add(self, entries: Sequence[Entry], embeddings: np.ndarray | None = None) -> None:
        """Add entries, with the embeddings, `[B, D]`, of the entries that have probabilities."""
        vectors = iter(() if embeddings is None else np.asarray(embeddings, "<f4"))
        with self._images:
            for entry in entries:
                vector = next(vectors).tobytes() if embeddings is not None and entry.reason is None else None
                content = json.dumps([entry.stamp, entry.probabilities, entry.reason]).encode()
                self._images.execute("INSERT OR REPLACE INTO images VALUES (?, ?, ?)", (entry.path, content, vector))

    def get(self, path: str) -> Entry | None:
        """Return the entry of a path; None if it has none, or a damaged one."""
        row = self._images.execute("SELECT entry FROM images WHERE path = ?", (path,)).fetchone()
        try:
            stamp, probabilities, reason = json.loads(row[0])
            return Entry(path, None if stamp is None else (stamp[0], stamp[1]), tuple(probabilities), reason)
        except (TypeError, ValueError):
            return None

    def embedding(self, path: str) -> bytes:
        """Return the embedding of a path that has one: D float32 numbers, little-endian."""
        found: tuple[bytes] = self._images.execute("SELECT embedding FROM images WHERE path = ?", (path,)).fetchone()
        return found[0]

    def remove(self) -> None:
        """Close and delete the journal."""
        self._images.close()
        for ending in ("", "-journal"):  # the second is SQLite's, which stays beside a damaged database
            self.path.with_name(self.path.name + ending).unlink(missing_ok=True)

    def _connect(self, options: str = "") -> bool:
        """Open the database, lock it until it is closed, and return whether it is whole.

        Raises:
            UserError: another process has locked it.
        """
        place = f"{self.path.resolve().as_uri()}{options}" if options else self.path
        self._images = sqlite3.connect(place, timeout=0, uri=bool(options))
        try:
            self._images.execute("PRAGMA locking_mode = EXCLUSIVE")
            with self._images:
                self._images.execute("BEGIN EXCLUSIVE")
                self._images.execute(
                    "CREATE TABLE IF NOT EXISTS images (path TEXT PRIMARY KEY, entry BLOB, embedding BLOB)"
                )
            return bool(self._images.execute("PRAGMA quick_check").fetchone() == ("ok",))
        except sqlite3.DatabaseError as problem:
            self._images.close()
            kind = problem.sqlite_errorname
            if kind.startswith("SQLITE_BUSY"):
                raise UserError(
                    f"{self.path.parent} is being written by another process. Wait for it, or give another folder "
                    "with --out."
                ) from problem
            if kind == "SQLITE_IOERR_LOCK" and not options:  # a file system without locks
                return self._connect("?nolock=1")
            if kind.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
                return False
            raise
