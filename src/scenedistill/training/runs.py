"""Stages of a run: folders with the settings, the state and the record of one training and its evaluation."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from scenedistill.core.disk import clear_parts, file_damage, file_hash, read_checked, short_hash, write_json
from scenedistill.core.errors import Damaged, UserError

RECORD = "stage.json"
ASIDE = ".previous-"
_NAMES = ("fingerprint", "settings", "finished", "record", "files")  # keys of a stage.json beside its checksum


class Stage:
    """One training and its evaluation, done once for the same settings.

    A stage is done if its `stage.json` is marked as finished and has the fingerprint of the same settings. A folder
    with other settings is moved aside rather than deleted, and moved back when those settings are used again.

    `stage.json` contains its own checksum and those of the files that later steps read. Folders of older versions
    without checksums are accepted unchecked.

    Args:
        folder: folder of the stage; created by `begin`.
        settings: everything that the result depends on, as plain JSON values.
        notes: further entries of the record, such as the sizes of the split.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], notes: Mapping[str, Any] | None = None) -> None:
        self.folder = folder
        self.settings = settings
        self.notes = dict(notes or {})
        self.fingerprint = fingerprint(settings)

    @property
    def done(self) -> bool:
        """Whether the stage is finished with the same settings."""
        record = read_stage(self.folder)
        return "record" in record and record.get("finished") is True and record.get("fingerprint") == self.fingerprint

    @property
    def record(self) -> dict[str, Any]:
        """The record that was passed to `finish`, with the notes.

        Raises:
            Damaged: the stage is not finished, or its `stage.json` is damaged.
        """
        record = read_stage(self.folder).get("record")
        if not isinstance(record, dict):
            raise Damaged(f"{self.folder / RECORD} is gone, damaged or unfinished. Give the same command again.")
        return record

    def damage(self) -> str:
        """Return a description of the first damaged file of the finished stage; "" if there is none."""
        files = read_stage(self.folder).get("files") or {}
        return next(filter(None, (file_damage(self.folder / name, kept) for name, kept in files.items())), "")

    def reopen(self) -> None:
        """Mark a finished stage as unfinished, so that it is done again."""
        self._write({"finished": False})

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the stage against other processes. The system releases the lock when this process ends or is killed.

        The lock file is beside the folder, because the folder may be moved aside. On a file system without locks the
        stage is not locked.

        Raises:
            UserError: another process has locked the stage.
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
                    f"{self.folder} is being worked on by another process{_holder_note(holder)}. Give the same command "
                    "again when it has ended, or another run folder with --out."
                ) from problem
            except (OSError, NotImplementedError):  # a read-only folder, a file system without locks
                pass
            yield

    def begin(self) -> Path | None:
        """Create the folder, or reuse that of an earlier attempt with the same settings, moved aside or not.

        The caller must have locked the stage: partial files of killed processes are deleted.

        Returns:
            Where a folder with other settings or a damaged `stage.json` was moved to; None if nothing was moved.
        """
        moved: Path | None = None
        for folder in (self.folder, self.folder / "checkpoints"):
            clear_parts(folder)
        if self.folder.exists() and not self.begun and not self.damaged and self._empty():
            shutil.rmtree(self.folder)  # an attempt that ended before its first step
        if self.folder.exists() and not self.begun and any(self.folder.iterdir()):
            names = (self.folder.with_name(f"{self.folder.name}{ASIDE}{number}") for number in itertools.count(1))
            moved = next(path for path in names if not path.exists())
            self.folder.rename(moved)
        if not self.folder.exists():
            earlier = filter(self._has_fingerprint, self.folder.parent.glob(f"{self.folder.name}{ASIDE}*"))
            if found := next(earlier, None):
                found.rename(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.begun:
            self._write({"finished": False})
        return moved

    def begin_empty(self) -> None:
        """Delete the folder and begin, for results that are quick to compute again."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.begin()

    @property
    def damaged(self) -> bool:
        """Whether there is a damaged `stage.json`."""
        try:
            read_checked(self.folder / RECORD, _NAMES)
        except (OSError, Damaged):
            return True
        return False

    @property
    def begun(self) -> bool:
        """Whether the folder exists and has the same settings."""
        return self._has_fingerprint(self.folder)

    def finish(self, record: Mapping[str, Any], files: Sequence[str] = ()) -> None:
        """Mark the stage as done.

        Args:
            record: results of the stage, as plain JSON values.
            files: names of the files that later steps read; their checksums are stored.
        """
        kept = {name: file_hash(self.folder / name) for name in files}
        self._write({"finished": True, "record": {**self.notes, **record}, "files": kept})

    def wait(self, seconds: float = 3600.0, *, begun: bool = False) -> None:
        """Wait until another process has finished the stage, or only begun it if `begun` is set.

        Raises:
            TimeoutError: this did not happen within `seconds`.
        """
        end = time.monotonic() + seconds
        while not (self.begun if begun else self.done):
            if time.monotonic() > end:
                what = "begun" if begun else "finished"
                raise TimeoutError(f"{self.folder.name} was not {what} by the first process within {seconds:.0f} s")
            time.sleep(0.2)

    def _empty(self) -> bool:
        """Return whether the folder contains only the `stage.json` of an unfinished stage."""
        unfinished = read_stage(self.folder).get("finished") is False
        return unfinished and [path.name for path in self.folder.iterdir()] == [RECORD]

    def _has_fingerprint(self, folder: Path) -> bool:
        return read_stage(folder).get("fingerprint") == self.fingerprint

    def _write(self, content: Mapping[str, Any]) -> None:
        content = {"fingerprint": self.fingerprint, "settings": self.settings, **content}
        write_json(self.folder / RECORD, content, checksum=True)


def _holder_note(holder: Path) -> str:
    try:
        return f" ({holder.read_text(encoding='utf-8')})"
    except (OSError, ValueError):
        return ""


def read_stage(folder: Path) -> dict[str, Any]:
    """Return the content of a folder's `stage.json`: `fingerprint`, `settings`, `finished` and, once finished, `record`
    and `files`; empty if the file is missing or damaged."""
    try:
        content = read_checked(folder / RECORD, _NAMES) or {}
    except (OSError, Damaged):
        return {}
    kinds = {"fingerprint": str, "settings": dict, "finished": bool, "record": dict, "files": dict}
    return content if all(isinstance(value, kinds[name]) for name, value in content.items()) else {}


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Return a hash of plain JSON values, 16 hex digits, independent of the order of their keys."""
    return short_hash(json.dumps(settings, sort_keys=True, ensure_ascii=False, default=str))


def started_from(settings: Mapping[str, Any]) -> str:
    """Return the name of the pretrained weights that a stage's network starts from, or `none`."""
    student, teacher = settings.get("student"), settings.get("teacher")  # the latter is a fingerprint for a student
    network = student or (teacher if isinstance(teacher, Mapping) else {})
    return "none" if network.get("checkpoint") else str(network.get("weights", "none"))


def title_of(folder: Path) -> str:
    """Return the title of a student in logs: its name and its method, which are the names of its folders."""
    return f"{folder.parent.name} {folder.name}"
