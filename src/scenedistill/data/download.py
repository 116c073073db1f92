"""Download a data set of the catalogue: resumable, checksummed and safe against hostile servers and archives."""

from __future__ import annotations

import hashlib
import http.client
import json
import lzma
import re
import shutil
import ssl
import stat
import tarfile
import time
import unicodedata
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.message import Message
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from scenedistill.data.catalog import DatasetFacts, Source
from scenedistill.errors import UserError

_CHUNK = 1 << 16
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})  # HTTP statuses worth another try
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, NotImplementedError)


@dataclass(frozen=True)
class Limits:
    """What a download may cost; the defaults are far above any data set of the catalogue and far below a disk.

    `ratio` is the size unpacked over the size packed (images hardly shrink at all; archives made to fill a disk do).
    `attempts` counts failures in a row without a single new byte; `timeout` and `backoff` are in seconds, the wait
    doubles each time.
    """

    download_bytes: int = 50 << 30
    unpacked_bytes: int = 100 << 30
    files: int = 500_000
    ratio: float = 100.0
    attempts: int = 5
    timeout: float = 30.0
    backoff: float = 1.0


def download(
    facts: DatasetFacts, folder: Path, *, url: str | None = None, progress: bool = True, limits: Limits | None = None
) -> Path:
    """Fetch and unpack a data set to `folder/{facts.name}` and return the folder that holds its class folders.

    What is there already is not fetched again. Until all is well everything lies in hidden folders beside it, so that a
    download stopped at any moment continues with the same call, and `folder/{facts.name}` is never half full. The
    sources of the entry are tried in turn; `url` is used in their place. A `url` that is not one of them has no known
    checksum: only its length and the archive's own checks guard it, so look at `catalog.check` afterwards.

    Raises:
        UserError: no stable source (says where to get it), refused or failing server, wrong checksum, disk too full,
            hostile or damaged archive.
    """
    limits = limits or Limits()
    folder = Path(folder).expanduser()
    target = folder / facts.name
    if target.is_dir() and any(target.iterdir()):
        return _class_root(target, facts.sources)
    sources = tuple(s for s in facts.sources if s.url == url) or (Source(url, folder=""),) if url else facts.sources
    if not sources:
        raise UserError(
            f"{facts.name} has no stable public address. Get it by hand at {facts.home} and unpack it so that its "
            f"class folders lie in {target}, or give the address of a copy you trust as url."
        )
    work = folder / f".download-{facts.key}"
    try:
        work.mkdir(parents=True, exist_ok=True)
        for number, source in enumerate(sources, start=1):
            try:
                archive = fetch(source, work, progress=progress, limits=limits)
                break
            except UserError:
                if number == len(sources):
                    raise
        if target.is_dir():
            target.rmdir()  # empty, as was seen above
        try:
            extract(archive, target, limits=limits, progress=progress)
        except UserError:
            if not (source.md5 or source.sha256):
                archive.unlink()  # no checksum vouches for it, so fetch it anew the next time
            raise
    except OSError as error:
        raise UserError(f"Cannot write to {folder}: {error}.") from error
    shutil.rmtree(work, ignore_errors=True)
    return _class_root(target, sources)


def fetch(source: Source, folder: Path, *, progress: bool = True, limits: Limits | None = None) -> Path:
    """Download one file into `folder`, continuing a `.part` file of the same address, and verify its checksum.

    A part is continued only if the server says that the file is still the same (If-Range with a strong ETag or the
    date, and the same total length) or if a checksum will tell; otherwise it starts again.

    Raises:
        UserError: as for `download`.
    """
    limits = limits or Limits()
    _check_url(source.url)
    target = folder / "archive"
    part = _Part(folder, source.url)
    if target.exists() and part.is_of_this_url and not _wrong_checksum(target, source):
        return target
    target.unlink(missing_ok=True)
    with _progress("downloading", progress) as bar:
        task = bar.add_task("", total=None)
        resumed = part.size() > 0
        _fetch_all(source, part, limits, bar, task)
        wrong = _wrong_checksum(part.path, source)
        if wrong and resumed:  # the old bytes may be the reason
            part.discard()
            _fetch_all(source, part, limits, bar, task)
            wrong = _wrong_checksum(part.path, source)
    if wrong:
        part.discard()
        raise UserError(
            f"{source.url}: {wrong}. The file was changed or damaged on its way; it was removed. Try again."
        )
    part.path.replace(target)
    return target


def extract(archive: Path, target: Path, *, limits: Limits | None = None, progress: bool = True) -> None:
    """Unpack a zip or tar file (any compression) to the new folder `target`, all or nothing.

    Only plain files and folders with relative names are accepted; anything else is refused, and nothing of such an
    archive is kept. Permissions and owners are not taken over; macOS's `__MACOSX` is left out.

    Raises:
        UserError: no archive, damaged, encrypted, over the limits, or hostile (absolute or climbing names, links,
            devices, names that clash), or `target` exists.
    """
    limits = limits or Limits()
    if target.exists():
        raise UserError(f"{target} exists already; move it away or choose another folder.")
    temporary = target.parent / f".unpacking-{target.name}"
    try:
        if temporary.exists():
            shutil.rmtree(temporary)  # of a run that was stopped
        temporary.mkdir(parents=True)
        with _progress("unpacking", progress) as bar:
            _unpack(archive, temporary, limits, bar)
        temporary.rename(target)
    except _DAMAGED as error:
        raise UserError(f"{archive} is damaged ({error}); remove it and download it again.") from error
    except OSError as error:
        raise UserError(f"Cannot unpack {archive} to {target}: {error}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


class _Part:
    """A file on its way: its bytes so far, and what the server said of the file they belong to."""

    def __init__(self, folder: Path, url: str) -> None:
        self.path = folder / "archive.part"
        self.notes = folder / "archive.json"
        self.known: dict[str, Any] = {}
        if self.notes.exists():
            try:
                self.known = json.loads(self.notes.read_text(encoding="utf-8"))
            except ValueError:  # half written when the machine went down
                self.known = {}
        self.is_of_this_url = self.known.get("url") == url
        if not self.is_of_this_url:
            self.discard()
            self.known = {"url": url}

    @property
    def validator(self) -> str | None:
        """What If-Range may hold: a strong ETag, or else the date."""
        etag = self.known.get("etag")
        return etag if etag and not etag.startswith("W/") else self.known.get("modified")

    @property
    def total(self) -> int | None:
        return self.known.get("total")

    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)

    def is_same(self, headers: Message, total: int | None) -> bool:
        told = (("etag", headers["ETag"]), ("modified", headers["Last-Modified"]), ("total", total))
        return all(new is None or self.known.get(key) in (None, new) for key, new in told)

    def remember(self, headers: Message, total: int | None) -> None:
        self.known |= {"etag": headers["ETag"], "modified": headers["Last-Modified"], "total": total}
        fresh = self.notes.with_suffix(".new")
        fresh.write_text(json.dumps(self.known), encoding="utf-8")
        fresh.replace(self.notes)


def _fetch_all(source: Source, part: _Part, limits: Limits, bar: Progress, task: TaskID) -> None:
    """Fetch until `part` is complete, through dropped connections and busy servers."""
    furthest, failures = part.size(), 0
    while True:
        wait = 0.0
        try:
            if _fetch_some(source, part, limits, bar, task):
                return
            reason = "the connection broke off"
        except urllib.error.HTTPError as error:
            if error.code not in _PASSING:
                raise UserError(f"{source.url}: the server answered {error.code} {error.reason}.") from error
            reason = f"the server answered {error.code} {error.reason}"
            told = error.headers.get("Retry-After", "")
            wait = min(float(told), 60.0) if told.isdigit() else 0.0
        except (OSError, http.client.HTTPException) as error:
            cause = getattr(error, "reason", error)
            if isinstance(cause, ssl.SSLCertVerificationError):
                raise UserError(f"{source.url}: the server's certificate is not valid ({cause}).") from error
            reason = str(cause) or type(cause).__name__
        size = part.size()
        failures = 0 if size > furthest else failures + 1
        furthest = max(furthest, size)
        if failures >= limits.attempts:
            raise UserError(
                f"{source.url}: gave up after {failures} attempts in a row without a new byte ({reason}). "
                f"{size:,} bytes are kept; run the same again to continue."
            )
        time.sleep(max(wait, min(limits.backoff * 2 ** max(failures - 1, 0), 60.0)))


def _fetch_some(source: Source, part: _Part, limits: Limits, bar: Progress, task: TaskID) -> bool:
    """One request; True when the part is complete, False when the server stopped early or the file has changed."""
    if part.size() and not (part.validator or source.md5 or source.sha256):
        part.discard()  # nothing would tell whether the rest belongs to the beginning
    offset = part.size()
    if offset and offset == part.total:
        return True
    headers = {"User-Agent": "scenedistill", "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
        if part.validator:
            headers["If-Range"] = part.validator
    request = urllib.request.Request(_check_url(source.url), headers=headers)
    try:
        response = urllib.request.build_opener(_Redirects()).open(request, timeout=limits.timeout)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not offset:
            raise
        part.discard()  # longer than the file is now
        return False
    with response:
        if response.status == 206:
            span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers["Content-Range"] or "")
            total = int(span[2]) if span and span[2] != "*" else None
            if span is None or int(span[1]) != offset or not part.is_same(response.headers, total):
                part.discard()
                return False
        else:  # the whole file: the first request, a changed file, or a server without Range
            offset = 0
            part.discard()
            length = response.headers["Content-Length"]
            total = int(length) if length and length.isdigit() else None
        part.remember(response.headers, total)
        _check_size(source.url, part.path.parent, total, offset, limits)
        bar.update(task, completed=offset, total=total)
        with part.path.open("ab") as file:
            while chunk := response.read(_CHUNK):
                try:
                    file.write(chunk)
                    file.flush()
                except OSError as error:  # a full disk is not the server's fault
                    raise UserError(f"Cannot write {part.path}: {error}.") from error
                offset += len(chunk)
                if offset > limits.download_bytes:
                    raise UserError(f"{source.url} sends more than the limit of {limits.download_bytes:,} bytes.")
                bar.update(task, completed=offset)
    return total is None or offset == total


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        _check_url(newurl)
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise UserError(f"{req.full_url}: the server leads on to {newurl}, which is not encrypted; refused.")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_url(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"{url!r} is not a web address; expected http:// or https://.")
    return urllib.parse.quote(url, safe="%/:?#[]@!$&'()*+,;=~")


def _check_size(url: str, folder: Path, total: int | None, offset: int, limits: Limits) -> None:
    if total is None:
        return
    if total > limits.download_bytes:
        raise UserError(f"{url} has {total:,} bytes, more than the limit of {limits.download_bytes:,}.")
    need, free = 2 * total - offset, shutil.disk_usage(folder).free  # the archive, and images about as large again
    if need > free:
        raise UserError(
            f"{folder} has {free:,} bytes free; {url} needs about {need:,}, packed and unpacked. Make room."
        )


def _wrong_checksum(path: Path, source: Source) -> str | None:
    kind, expected = ("sha256", source.sha256) if source.sha256 else ("md5", source.md5)
    if expected is None:
        return None
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()
    return None if found == expected else f"its {kind} is {found}, expected {expected}"


def _unpack(archive: Path, folder: Path, limits: Limits, bar: Progress) -> None:
    packed = archive.stat().st_size
    task = bar.add_task("", total=None)
    names = _Names()
    count = total = 0
    for name, size, is_folder, open_member in _members(archive):
        path = names.accept(name, is_folder)
        count, total = count + 1, total + size
        if count > limits.files or total > limits.unpacked_bytes or total > limits.ratio * packed:
            raise UserError(
                f"{archive} unpacks to more than {limits.files:,} files, {limits.unpacked_bytes:,} bytes or "
                f"{limits.ratio:g} times its size; refused, as it may be made to fill the disk."
            )
        if path is None:
            continue
        place = folder / path
        if is_folder:
            place.mkdir(parents=True, exist_ok=True)
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        with open_member() as source, place.open("xb") as file:
            written = 0
            while chunk := source.read(_CHUNK):
                written += len(chunk)
                if written > size:
                    raise UserError(f"{archive}: {name!r} is longer than the archive says; refused.")
                file.write(chunk)
        bar.update(task, completed=total)


def _members(archive: Path) -> Iterator[tuple[str, int, bool, Callable[[], IO[bytes]]]]:
    """Yield (name, bytes, is a folder, open) of each member; anything but files and folders is refused."""
    with archive.open("rb") as file:
        start = file.read(32)
    if start.startswith(b"PK"):
        with zipfile.ZipFile(archive) as zipped:
            for info in zipped.infolist():
                if info.flag_bits & 1:
                    raise UserError(f"{archive}: {info.filename!r} is encrypted; unpack it by hand.")
                kind = stat.S_IFMT(info.external_attr >> 16)
                if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise UserError(f"{archive}: {info.filename!r} is a link or device; refused as unsafe.")
                # zipfile cuts a name at NUL, so look at what was really written
                yield info.orig_filename, info.file_size, info.is_dir(), partial(zipped.open, info)
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as tar:
            for member in tar:
                if not (member.isreg() or member.isdir()):
                    raise UserError(f"{archive}: {member.name!r} is a link or device; refused as unsafe.")
                yield member.name, member.size, member.isdir(), partial(_open_tar, tar, member)
            if tar.fileobj is not None:
                tar.fileobj.read(1 << 20)  # the end of the stream, where compressors keep their own checksum
    else:
        raise UserError(
            f"{archive} is neither a zip nor a tar file; it begins with {start!r}. If that looks like a web page, the "
            "address leads to a page and not to the file."
        )


def _open_tar(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    file = tar.extractfile(member)
    assert file is not None  # a plain file always opens
    return file


class _Names:
    """Accepts the names of an archive's members one by one, if safe and free of clashes on any file system."""

    def __init__(self) -> None:
        self.files: set[str] = set()
        self.folders: set[str] = set()

    def accept(self, name: str, is_folder: bool) -> PurePosixPath | None:
        """The relative path to write to; None for what is to be left out."""
        path = PurePosixPath(name.replace("\\", "/"))
        odd = any(ord(letter) < 32 for letter in name)
        if odd or ".." in path.parts or PureWindowsPath(name).anchor or not (path.parts or is_folder):
            raise UserError(
                f"The archive holds a file named {name!r}, which leads out of its folder; refused as unsafe."
            )
        if "__MACOSX" in path.parts or path.name == ".DS_Store":
            return None
        key = PurePosixPath(unicodedata.normalize("NFC", str(path)).casefold())
        above = {str(parent) for parent in key.parents}
        clash = str(key) in self.files or above & self.files or (not is_folder and str(key) in self.folders)
        if clash:
            raise UserError(f"The archive holds {name!r} twice, or as a file and as a folder; refused.")
        self.folders |= above
        (self.folders if is_folder else self.files).add(str(key))
        return path


def _class_root(folder: Path, sources: tuple[Source, ...]) -> Path:
    """The folder of class folders in an unpacked archive: where the source says, else below any single folder."""
    for source in sources:
        if source.folder and (folder / source.folder).is_dir():
            return folder / source.folder
    while True:
        inside = [p for p in folder.iterdir() if not p.name.startswith(".")]
        if len(inside) != 1 or not inside[0].is_dir():
            return folder
        folder = inside[0]


def _progress(what: str, show: bool) -> Progress:
    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    return Progress(*columns, disable=not show)
