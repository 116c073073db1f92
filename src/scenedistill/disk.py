"""Small files: written as a whole or not at all, read whatever is there."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any


@contextlib.contextmanager
def whole_file(path: Path, *, part: str = "part") -> Iterator[IO[bytes]]:
    """A file to write that takes the place of `path` once it is on the disk: a kill, a power cut or a full disk leaves
    what was there. Until then its name has `part` behind it, which several that write at once must not share."""
    beside = path.with_name(f"{path.name}.{part}")
    try:
        with beside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all, whoever else writes it at the same time."""
    with whole_file(path, part=f"{uuid.uuid4().hex}.part") as file:
        file.write(text.encode())


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all, whoever else writes it at the same time."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False, default=str) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """What a JSON file holds by name; nothing where there is no such file, or none with names."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def file_hash(path: Path) -> str:
    """16 hex digits over the content of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def shown_path(path: Path | str) -> str:
    """A path as text that every file can hold: bytes that are no UTF-8 become backslash escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
