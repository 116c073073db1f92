"""Files written as a whole or not at all, and the checksums that tell whether they still hold what was written."""

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

CHECKSUM = "checksum"  # the entry of a JSON file, or of a network's metadata, that holds its own checksum
PART = "part"  # ending of a file that is being written


@contextlib.contextmanager
def whole_file(path: Path, *, part: str = PART) -> Iterator[IO[bytes]]:
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


def write_json(path: Path, content: Mapping[str, Any], *, checksum: bool = False) -> None:
    """Write a JSON file, whole or not at all, whoever else writes it at the same time.

    Args:
        path: of the file.
        content: by name.
        checksum: add the content's checksum as the last entry, which `read_json` and `read_checked` compare.
    """
    text = json.dumps(content, indent=1, ensure_ascii=False, default=str)
    if checksum:
        written = {**json.loads(text), CHECKSUM: content_checksum(json.loads(text))}
        text = json.dumps(written, indent=1, ensure_ascii=False)
    write_text(path, text + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """What a JSON file holds by name; nothing where there is no such file, none with names, or a damaged one."""
    try:
        return read_checked(path) or {}
    except (OSError, Damaged):
        return {}


def read_checked(path: Path, names: Collection[str] = ()) -> dict[str, Any] | None:
    """What a JSON file holds by name, without its checksum; None where there is no such file.

    A file from before there were checksums is taken as it is.

    Args:
        path: of the file.
        names: all that it may hold; anything when not given.

    Raises:
        Damaged: it is not JSON with names, holds another name, or its content does not fit its checksum.
        OSError: it is there and cannot be read.
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
    """What a JSON file holds, once it is compared with the checksum in it, if there is one.

    Raises:
        Damaged: it does not fit.
    """
    if not isinstance(content, dict) or CHECKSUM not in content:
        return content
    found = {name: value for name, value in content.items() if name != CHECKSUM}
    if content[CHECKSUM] != content_checksum(found):
        raise Damaged(f"{path} is damaged: its content does not fit its checksum.")
    return found


def content_checksum(content: Any) -> str:
    """16 hex digits over plain JSON values, whatever the order of their names and the file's layout."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return short_hash(text)


def short_hash(content: str | bytes | memoryview) -> str:
    """16 hex digits over a text or bytes."""
    if isinstance(content, str):
        content = content.encode(errors="surrogatepass")
    return hashlib.sha256(content).hexdigest()[:16]


def file_hash(path: Path) -> str:
    """16 hex digits over the content of a file: the first of its `file_sha256`."""
    return file_sha256(path)[:16]


def file_sha256(path: Path) -> str:
    """SHA-256 of the content of a file, 64 hex digits, as `sha256sum` prints it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def shown_path(path: Path | str) -> str:
    """A path as text that every file can hold: bytes that are no UTF-8 become backslash escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def file_damage(path: Path, checksum: str) -> str:
    """What is wrong with a file whose content should have a `file_hash`, in words; empty where nothing is."""
    try:
        return "" if file_hash(path) == checksum else f"{path.name} is damaged: it does not fit its checksum"
    except (FileNotFoundError, NotADirectoryError):
        return f"{path.name} is missing"
    except OSError as problem:
        return f"{path.name} cannot be read: {problem.strerror}"


def archive_damage(path: Path) -> str:
    """What is wrong with a zip archive, such as torch and NumPy write, in words; empty where nothing is.

    Every entry carries a checksum, which torch does not compare when it reads.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
        return f"{path.name} is damaged: its part {bad} does not fit its checksum" if bad else ""
    except FileNotFoundError:
        return f"{path.name} is missing"
    except Exception:  # zipfile has a dozen errors for what is no whole archive
        return f"{path.name} is damaged: it is not a whole archive"


def clear_parts(folder: Path, seconds: float = 0.0) -> None:
    """Remove what processes that were killed have left half written, directly in a folder, and at least so many seconds
    ago where others may write there."""
    for part in folder.glob(f"*.{PART}"):
        with contextlib.suppress(OSError):  # gone meanwhile
            if time.time() - part.stat().st_mtime >= seconds and part.is_file():
                part.unlink()


def disk_full(problem: BaseException | None) -> bool:
    """Whether the cause of an exception, or the cause of the cause, is a full disk, a full quota or a file that may
    not grow."""
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
            return True  # libraries beneath tell it in words alone
        waiting += [one.__cause__, one.__context__, *(one.exceptions if isinstance(one, BaseExceptionGroup) else ())]
    return False


FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # EFBIG: a limit of the file system or of the shell (ulimit)
_FULL_TEXT = re.compile("no space left on device|disk is full|disk quota exceeded", re.IGNORECASE)
