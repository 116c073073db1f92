"""Atomic file writes, and checksums that detect damaged files."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import time
import uuid
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from scenedistill.core.errors import Damaged

CHECKSUM = "checksum"  # key of the checksum in a JSON file or in a network's metadata
PART = "part"  # ending of a file that is being written


@contextlib.contextmanager
def whole_file(path: Path, *, part: str = PART) -> Iterator[IO[bytes]]:
    """Open a file that replaces `path` once it is completely on the disk.

    A kill, a power cut or a full disk leaves the old file in place. Until then `.{part}` is appended to the name;
    concurrent writers must not use the same `part`.
    """
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
    """Write a UTF-8 text file atomically; concurrent writers of the same file are allowed."""
    with whole_file(path, part=f"{uuid.uuid4().hex}.part") as file:
        file.write(text.encode())


def write_json(path: Path, content: Mapping[str, Any], *, checksum: bool = False) -> None:
    """Write a JSON file atomically; concurrent writers of the same file are allowed.

    Args:
        path: path of the file.
        content: values by name.
        checksum: append a checksum of the content, which `read_json` and `read_checked` verify.
    """
    text = json.dumps(content, indent=1, ensure_ascii=False, default=str)
    if checksum:
        plain = json.loads(text)
        text = json.dumps({**plain, CHECKSUM: content_checksum(plain)}, indent=1, ensure_ascii=False)
    write_text(path, text + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Return the values of a JSON file by name; an empty dict if it is missing, unreadable, damaged or no object."""
    try:
        return read_checked(path) or {}
    except (OSError, Damaged):
        return {}


def read_checked(path: Path, names: Collection[str] = ()) -> dict[str, Any] | None:
    """Return the values of a JSON file by name, without its checksum; None if there is no such file.

    A file without a checksum, from an older version, is accepted.

    Args:
        path: path of the file.
        names: allowed names; any when not given.

    Raises:
        Damaged: the file is not a JSON object, holds a name that is not allowed, or does not match its checksum.
        OSError: the file exists but cannot be read.
    """
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, RecursionError) as problem:
        raise Damaged(f"{path} is damaged: it is not valid JSON.") from problem
    if not isinstance(content, dict):
        raise Damaged(f"{path} is damaged: it holds no names with values.")
    found: dict[str, Any] = without_checksum(content, path)
    if other := [name for name in found if names and name not in names]:
        raise Damaged(f"{path} is damaged: it holds {ascii(other[0])[:40]}, which was never written there.")
    return found


def without_checksum(content: Any, path: Path) -> Any:
    """Verify the checksum in the content of a JSON file, if there is one, and return the content without it.

    Raises:
        Damaged: the content does not match the checksum.
    """
    if not isinstance(content, dict) or CHECKSUM not in content:
        return content
    found = {name: value for name, value in content.items() if name != CHECKSUM}
    if content[CHECKSUM] != content_checksum(found):
        raise Damaged(f"{path} is damaged: its content does not fit its checksum.")
    return found


def content_checksum(content: Any) -> str:
    """Return a checksum of plain JSON values, 16 hex digits, independent of key order and file layout."""
    return short_hash(json.dumps(content, sort_keys=True, ensure_ascii=False))


def short_hash(content: str | bytes | memoryview) -> str:
    """Return the first 16 hex digits of the SHA-256 of a text or of bytes."""
    if isinstance(content, str):
        content = content.encode(errors="surrogatepass")
    return hashlib.sha256(content).hexdigest()[:16]


def file_hash(path: Path) -> str:
    """Return the first 16 hex digits of the `file_sha256` of a file."""
    return file_sha256(path)[:16]


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of the content of a file, 64 hex digits, as `sha256sum` prints it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def shown_path(path: Path | str) -> str:
    """Return a path as valid UTF-8 text; bytes that are not UTF-8 become backslash escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def file_damage(path: Path, checksum: str) -> str:
    """Describe what is wrong with a file that should have the given `file_hash`; empty if nothing is."""
    try:
        return "" if file_hash(path) == checksum else f"{path.name} is damaged: it does not fit its checksum"
    except (FileNotFoundError, NotADirectoryError):
        return f"{path.name} is missing"
    except OSError as problem:
        return f"{path.name} cannot be read: {problem.strerror}"


def archive_damage(path: Path) -> str:
    """Describe what is wrong with a zip archive, such as torch and NumPy write; empty if nothing is.

    The checksum of every entry is verified, which torch does not do when it reads.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
        return f"{path.name} is damaged: its part {bad} does not fit its checksum" if bad else ""
    except FileNotFoundError:
        return f"{path.name} is missing"
    except Exception:  # zipfile raises many kinds of errors for an incomplete archive
        return f"{path.name} is damaged: it is not a whole archive"


def clear_parts(folder: Path, seconds: float = 0.0) -> None:
    """Remove the partial files that killed processes left directly in a folder, if at least `seconds` old.

    A minimum age spares the files that other processes are still writing.
    """
    for part in folder.glob(f"*.{PART}"):
        with contextlib.suppress(OSError):  # gone meanwhile
            if time.time() - part.stat().st_mtime >= seconds and part.is_file():
                part.unlink()


def disk_full(problem: BaseException | None) -> bool:
    """Return whether a full disk, a full quota or a file size limit is among an exception's direct or deeper causes."""
    seen = set[int]()
    waiting = [problem]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, OSError) and one.errno in FULL_DISK:
            return True
        if not isinstance(one, UnicodeError | SyntaxError) and _FULL_TEXT.search(str(one)):
            return True  # some libraries report it only in the message
        if getattr(one, "sqlite_errorname", "") == "SQLITE_IOERR_WRITE":
            return True  # all that sqlite3 reports of a quota or a limit
        waiting += [one.__cause__, one.__context__, *(one.exceptions if isinstance(one, BaseExceptionGroup) else ())]
    return False


FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # EFBIG: a limit of the file system or of the shell (ulimit)
_FULL_TEXT = re.compile("no space left on device|disk is full|disk quota exceeded", re.IGNORECASE)
