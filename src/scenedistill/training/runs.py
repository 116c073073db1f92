"""A stage of a run as a folder: what was asked, whether it is done, and what became of it."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import platform
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from scenedistill.disk import read_json, write_json
from scenedistill.errors import UserError

RECORD = "stage.json"
ASIDE = ".previous-"


class Stage:
    """One training and its evaluation, done once for the same settings.

    A stage is done when its `stage.json` says so and carries the fingerprint of the same settings. A folder left by
    other settings is moved aside, never deleted, and taken back when those settings return.

    Args:
        folder: of the stage; made when it begins.
        settings: everything its outcome depends on, as plain JSON values.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        self.settings = settings
        self.fingerprint = fingerprint(settings)

    @property
    def done(self) -> bool:
        """Finished before, with the same settings."""
        record = _read(self.folder)
        return bool(record.get("finished")) and record.get("fingerprint") == self.fingerprint

    @property
    def record(self) -> dict[str, Any]:
        """What `finish` was told."""
        return dict(_read(self.folder)["record"])

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep all other processes out of the stage. The system lets go of it when this process dies, however it dies.

        The lock lies beside the folder, which may be moved aside. Where the file system has no locks, none is held.

        Raises:
            UserError: another process holds it.
        """
        lock, holder = (self.folder.with_name(f".{self.folder.name}.{what}") for what in ("lock", "holder"))
        with contextlib.ExitStack() as leaving:
            try:
                lock.parent.mkdir(parents=True, exist_ok=True)
                leaving.enter_context(FileLock(lock, timeout=0))
                holder.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
                leaving.callback(holder.unlink, missing_ok=True)
            except Timeout as problem:
                raise UserError(
                    f"{self.folder} is being worked on by another process{_named(holder)}. Give the same command again "
                    "when it has ended, or another run folder with --out."
                ) from problem
            except (OSError, NotImplementedError):  # a read-only folder, a file system without locks
                pass
            yield

    def begin(self) -> Path | None:
        """Make the folder, or go on in the one left by an earlier try with the same settings, moved aside or not.

        Returns:
            Where a folder of other settings was moved to, if there was one.
        """
        moved: Path | None = None
        if self.folder.exists() and not self.begun:
            places = (self.folder.with_name(f"{self.folder.name}{ASIDE}{number}") for number in itertools.count(1))
            moved = next(place for place in places if not place.exists())
            self.folder.rename(moved)
        if not self.folder.exists():
            earlier = filter(self._is_of, self.folder.parent.glob(f"{self.folder.name}{ASIDE}*"))
            if found := next(earlier, None):
                found.rename(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.begun:
            self._write({"finished": False})
        return moved

    @property
    def begun(self) -> bool:
        """Whether the folder is there and belongs to the same settings."""
        return self._is_of(self.folder)

    def finish(self, record: Mapping[str, Any]) -> None:
        """Mark the stage as done, with what is to be known of it."""
        self._write({"finished": True, "record": dict(record)})

    def wait(self, seconds: float = 3600.0, *, begun: bool = False) -> None:
        """Until another process has finished the stage, or only `begun` it.

        Raises:
            TimeoutError: it has not after `seconds`.
        """
        end = time.monotonic() + seconds
        while not (self.begun if begun else self.done):
            if time.monotonic() > end:
                what = "begun" if begun else "finished"
                raise TimeoutError(f"{self.folder.name} was not {what} by the first process within {seconds:.0f} s")
            time.sleep(0.2)

    def _is_of(self, folder: Path) -> bool:
        return _read(folder).get("fingerprint") == self.fingerprint

    def _write(self, content: Mapping[str, Any]) -> None:
        write_json(self.folder / RECORD, {"fingerprint": self.fingerprint, "settings": self.settings, **content})


def _named(holder: Path) -> str:
    try:
        return f" ({holder.read_text(encoding='utf-8')})"
    except (OSError, ValueError):
        return ""


def _read(folder: Path) -> dict[str, Any]:
    return read_json(folder / RECORD)


def fingerprint(settings: Mapping[str, Any]) -> str:
    """16 hex digits over plain JSON values, whatever the order of their keys."""
    text = json.dumps(settings, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def started_from(settings: Mapping[str, Any]) -> str:
    """`none`, or the name of the pretrained weights that a stage's network starts from, by the stage's settings."""
    student, teacher = settings.get("student"), settings.get("teacher")  # a student's teacher is a fingerprint
    network = student or (teacher if isinstance(teacher, Mapping) else {})
    return "none" if network.get("checkpoint") else str(network.get("weights", "none"))


def title_of(folder: Path) -> str:
    """What a student is called in logs: its name and how it is trained, which are its folders."""
    return f"{folder.parent.name} {folder.name}"
