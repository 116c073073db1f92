"""A stage of a run as a folder: what was asked, whether it is done, and what became of it."""

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
_NAMES = ("fingerprint", "settings", "finished", "record", "files")  # all that a stage.json holds beside its checksum


class Stage:
    """One training and its evaluation, done once for the same settings.

    A stage is done when its `stage.json` says so and carries the fingerprint of the same settings. A folder left by
    other settings is moved aside, never deleted, and taken back when those settings return.

    `stage.json` carries its own checksum and that of every file that a later step reads. A folder from before there
    were checksums is taken as it is.

    Args:
        folder: of the stage; made when it begins.
        settings: everything its outcome depends on, as plain JSON values.
        notes: what its record says besides, such as the sizes of the split.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], notes: Mapping[str, Any] | None = None) -> None:
        self.folder = folder
        self.settings = settings
        self.notes = dict(notes or {})
        self.fingerprint = fingerprint(settings)

    @property
    def done(self) -> bool:
        """Finished before, with the same settings."""
        record = read_stage(self.folder)
        return "record" in record and record.get("finished") is True and record.get("fingerprint") == self.fingerprint

    @property
    def record(self) -> dict[str, Any]:
        """What `finish` was told.

        Raises:
            Damaged: the stage is not finished, or its `stage.json` does not hold what was written.
        """
        record = read_stage(self.folder).get("record")
        if not isinstance(record, dict):
            raise Damaged(f"{self.folder / RECORD} is gone, damaged or unfinished. Give the same command again.")
        return record

    def damage(self) -> str:
        """What is wrong with a file of the finished stage, in words; empty where all are as they were written."""
        files = read_stage(self.folder).get("files") or {}
        return next(filter(None, (file_damage(self.folder / name, kept) for name, kept in files.items())), "")

    def reopen(self) -> None:
        """Take a finished stage as begun, so that it is done again."""
        self._write({"finished": False})

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

        For the process that holds the stage: what another one had half written when it was killed is removed.

        Returns:
            Where a folder of other settings, or with a damaged `stage.json`, was moved to, if there was one.
        """
        moved: Path | None = None
        for folder in (self.folder, self.folder / "checkpoints"):
            clear_parts(folder)
        if self.folder.exists() and not self.begun and not self.damaged and self._empty():
            shutil.rmtree(self.folder)  # a try that ended before its first step left nothing to keep
        if self.folder.exists() and not self.begun and any(self.folder.iterdir()):
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

    def begin_anew(self) -> None:
        """Make the folder empty and begin: for what is quickly made again, and so never moved aside."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.begin()

    @property
    def damaged(self) -> bool:
        """Whether there is a `stage.json` that does not hold what was written."""
        try:
            read_checked(self.folder / RECORD, _NAMES)
        except (OSError, Damaged):
            return True
        return False

    @property
    def begun(self) -> bool:
        """Whether the folder is there and belongs to the same settings."""
        return self._is_of(self.folder)

    def finish(self, record: Mapping[str, Any], files: Sequence[str] = ()) -> None:
        """Mark the stage as done.

        Args:
            record: what is to be known of it.
            files: names of its files that later steps read; their checksums are kept.
        """
        kept = {name: file_hash(self.folder / name) for name in files}
        self._write({"finished": True, "record": {**self.notes, **record}, "files": kept})

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

    def _empty(self) -> bool:
        """Whether nothing but the mark of a training that was begun lies in the folder."""
        unfinished = read_stage(self.folder).get("finished") is False
        return unfinished and [path.name for path in self.folder.iterdir()] == [RECORD]

    def _is_of(self, folder: Path) -> bool:
        return read_stage(folder).get("fingerprint") == self.fingerprint

    def _write(self, content: Mapping[str, Any]) -> None:
        content = {"fingerprint": self.fingerprint, "settings": self.settings, **content}
        write_json(self.folder / RECORD, content, checksum=True)


def _named(holder: Path) -> str:
    try:
        return f" ({holder.read_text(encoding='utf-8')})"
    except (OSError, ValueError):
        return ""


def read_stage(folder: Path) -> dict[str, Any]:
    """What the `stage.json` of a folder holds: `fingerprint`, `settings`, `finished`, and once it is so `record` and
    `files`; nothing where there is none, or a damaged one."""
    try:
        content = read_checked(folder / RECORD, _NAMES) or {}
    except (OSError, Damaged):
        return {}
    kinds = {"fingerprint": str, "settings": dict, "finished": bool, "record": dict, "files": dict}
    return content if all(isinstance(value, kinds[name]) for name, value in content.items()) else {}


def fingerprint(settings: Mapping[str, Any]) -> str:
    """16 hex digits over plain JSON values, whatever the order of their keys."""
    return short_hash(json.dumps(settings, sort_keys=True, ensure_ascii=False, default=str))


def started_from(settings: Mapping[str, Any]) -> str:
    """`none`, or the name of the pretrained weights that a stage's network starts from, by the stage's settings."""
    student, teacher = settings.get("student"), settings.get("teacher")  # a student's teacher is a fingerprint
    network = student or (teacher if isinstance(teacher, Mapping) else {})
    return "none" if network.get("checkpoint") else str(network.get("weights", "none"))


def title_of(folder: Path) -> str:
    """What a student is called in logs: its name and how it is trained, which are its folders."""
    return f"{folder.parent.name} {folder.name}"
