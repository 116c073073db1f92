"""The files of the page while it runs: uploads until they are worked through, results until they are fetched."""

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

#: What a result may consist of, and its media type. No other file leaves the machine.
DOWNLOADS = {
    "result.json": "application/json",
    "result.csv": "text/csv",
    "classes.gpkg": "application/geopackage+sqlite3",
    "classes.tif": "image/tiff",
}

PREFIX, LOCK = "scenedistill-serve-", ".lock"


class Shelf:
    """A temporary folder that only its owner can read, with a sub-folder for each request.

    A result lies there under a name that cannot be guessed, until `limits.kept` newer ones came, the newer ones take
    `limits.kept_megabytes`, or `limits.minutes` passed. Everything goes with `close`; after a kill with
    the next page that is served.
    """

    def __init__(self, limits: ServeLimits) -> None:
        self.limits = limits
        _remove_orphans()
        self._home = Path(tempfile.mkdtemp(prefix=PREFIX))
        self._lock = FileLock(self._home / LOCK)
        self._lock.acquire()
        self.root = self._home / "requests"
        self.root.mkdir()
        self.results: dict[str, dict[str, Path]] = {}  # oldest first
        self.bytes: dict[str, int] = {}  # of each result

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """An empty folder for one request; removed at the end unless `keep` was told otherwise."""
        folder = self.root / secrets.token_urlsafe(16)
        folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            if folder.name not in self.results:
                shutil.rmtree(folder, ignore_errors=True)

    def keep(self, folder: Path, names: Iterable[str]) -> dict[str, str]:
        """Keep these files of a request's folder for download, and nothing else of it.

        Args:
            folder: from `folder()`.
            names: of files in it, of those in `DOWNLOADS`.

        Returns:
            The address of each, by its name.
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
        """A kept file. The words of a request are only looked up, and never become part of a path.

        Raises:
            Refused: 404, not there, or no longer.
        """
        path = self.results.get(token, {}).get(name)
        if path is None:
            raise Refused(404, "This result is no longer kept. Classify the file again.")
        return path

    def close(self) -> None:
        """Remove everything."""
        self.results.clear()
        self.bytes.clear()
        shutil.rmtree(self._home, ignore_errors=True)
        self._lock.release()

    def _forget(self, token: str) -> None:
        if self.results.pop(token, None) is not None:
            del self.bytes[token]
            shutil.rmtree(self.root / token, ignore_errors=True)


def _remove_orphans() -> None:
    """Remove the folders of pages that were killed, told by a lock that the system has freed."""
    for home in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError, Timeout):
            status = home.lstat()
            own = not hasattr(os, "getuid") or status.st_uid == os.getuid()
            if own and stat.S_ISDIR(status.st_mode) and (home / LOCK).exists():
                with FileLock(home / LOCK, timeout=0):
                    shutil.rmtree(home, ignore_errors=True)


async def receive(chunks: AsyncIterator[bytes], folder: Path, name: str) -> Path:
    """Write an upload into a folder, once its first bytes say that it is an image of a kind that is taken.

    Args:
        chunks: the upload.
        folder: where to put it.
        name: what the sender calls it; for messages only.

    Returns:
        `upload.jpg`, `.png`, `.webp` or `.tif`, by its content.

    Raises:
        Refused: 400, empty; 415, something else.
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
    """The ending that an image's first 12 bytes call for.

    Formats that name other files, such as GDAL's VRT, are text and not among them.

    Raises:
        Refused: see `receive`.
    """
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
    """The last part of a name a browser sent, fit to be shown and to stand in a table."""
    last = given.replace("\\", "/").rpartition("/")[2]
    clean = "".join(letter for letter in last if letter.isprintable())[:100].strip()
    return clean.lstrip("=+-@") or "upload"  # a table program takes a cell that begins so for a formula
