"""Temporary files of the page: uploads while they are processed, and results for download."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from scenedistill.serve.limits import Refused, ServeLimits

#: Files of a result and their media types. No other file can be downloaded.
DOWNLOADS = {
    "result.json": "application/json",
    "result.csv": "text/csv",
    "classes.gpkg": "application/geopackage+sqlite3",
    "classes.tif": "image/tiff",
}

PREFIX, LOCK = "scenedistill-serve-", ".lock"


# TemporaryDirectory of the standard library leaves its files after a kill; the caches of cachetools have one limit of
# size each, and notice what is too old only when they are next used
class ResultStore:
    """Temporary folder that only its owner can read, with a subfolder for each request.

    A result has an unguessable name. It is deleted when there are `limits.kept` newer results, when the newer ones
    take `limits.kept_megabytes`, or after `limits.minutes`. `close` deletes all files; after a kill, the next server
    that starts deletes them.
    """

    def __init__(self, limits: ServeLimits) -> None:
        self.limits = limits
        _remove_orphans()
        self._home = Path(tempfile.mkdtemp(prefix=PREFIX))
        self._lock = FileLock(self._home / LOCK)
        self._lock.acquire()
        self.root = self._home / "requests"
        self.root.mkdir()
        self.results: dict[str, dict[str, Path]] = {}  # the oldest first
        self.bytes: dict[str, int] = {}  # size of each result

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """Provide an empty folder for a request; it is removed at the end unless `keep` was called for it."""
        folder = self.root / secrets.token_urlsafe(16)
        folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            if folder.name not in self.results:
                shutil.rmtree(folder, ignore_errors=True)

    def keep(self, folder: Path, names: Iterable[str]) -> dict[str, str]:
        """Keep files of a request's folder for download, and delete the others.

        Args:
            folder: folder from `folder()`.
            names: names of the files to keep; names that are not in `DOWNLOADS` are ignored.

        Returns:
            The relative URL of each file, by its name.
        """
        wanted = {name: folder / name for name in names if name in DOWNLOADS}
        self.results[folder.name] = {
            name: path for name, path in wanted.items() if path.is_file() and not path.is_symlink()
        }
        for path in folder.iterdir():
            if path.name in self.results[folder.name]:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
        self.bytes[folder.name] = sum(path.stat().st_size for path in self.results[folder.name].values())
        most = self.limits.kept_megabytes * 2**20
        while len(self.results) > self.limits.kept or (len(self.results) > 1 and sum(self.bytes.values()) > most):
            self._forget(next(iter(self.results)))
        asyncio.get_running_loop().call_later(60 * self.limits.minutes, self._forget, folder.name)
        return {name: f"results/{folder.name}/{name}" for name in self.results[folder.name]}

    def find(self, token: str, name: str) -> Path:
        """Return the path of a kept file. Token and name are looked up and never become part of a path.

        Raises:
            Refused: 404, there is no such file, or it was deleted.
        """
        path = self.results.get(token, {}).get(name)
        if path is None:
            raise Refused(404, "This result is no longer kept. Classify the file again.")
        return path

    def close(self) -> None:
        """Delete all files."""
        self.results.clear()
        self.bytes.clear()
        shutil.rmtree(self._home, ignore_errors=True)
        self._lock.release()

    def _forget(self, token: str) -> None:
        if self.results.pop(token, None) is not None:
            del self.bytes[token]
            shutil.rmtree(self.root / token, ignore_errors=True)


def _remove_orphans() -> None:
    """Delete the folders of servers that were killed, recognised by their released lock."""
    for home in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError, Timeout):
            status = home.lstat()
            own = not hasattr(os, "getuid") or status.st_uid == os.getuid()
            if own and stat.S_ISDIR(status.st_mode) and (home / LOCK).exists():
                with FileLock(home / LOCK, timeout=0):
                    shutil.rmtree(home, ignore_errors=True)


async def receive(chunks: AsyncIterator[bytes], folder: Path, name: str) -> Path:
    """Write an upload to a folder if its first bytes are those of a supported image format.

    Args:
        chunks: chunks of the upload.
        folder: output folder.
        name: name given by the client; for messages only.

    Returns:
        The file: `upload.jpg`, `.png`, `.webp` or `.tif`, by its content.

    Raises:
        Refused: 400, the upload is empty; 415, the format is not supported.
    """
    head = b""
    async for chunk in chunks:
        head += chunk
        if len(head) >= 12:
            break
    path = folder / f"upload.{image_kind(head, name)}"
    with path.open("xb") as file:
        file.write(head)
        async for chunk in chunks:
            file.write(chunk)
    return path


def image_kind(head: bytes, name: str) -> str:
    """Return the suffix, without a dot, for the first 12 bytes of an image.

    Formats that refer to other files, such as GDAL's VRT, are not supported.

    Raises:
        Refused: see `receive`.
    """
    # Pillow would name the format only after parsing the header, of any of its formats
    if not head:
        raise Refused(400, f"{name} is empty.")
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "tif"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    reason = " A VRT only names other files; give the raster itself." if name.lower().endswith(".vrt") else ""
    raise Refused(415, f"{name} is not a JPEG, PNG, WebP or TIFF image.{reason}")


def shown_name(given: str) -> str:
    """Return the last part of a file name sent by a browser, safe for display and for a CSV table."""
    last = given.replace("\\", "/").rpartition("/")[2]
    clean = "".join(letter for letter in last if letter.isprintable())[:100].strip()
    return clean.lstrip("=+-@") or "upload"  # a spreadsheet would treat such a cell as a formula
