"""Download a data set of the catalogue: resumable, checksummed, safe against hostile servers."""

# not left to a library, because an interrupted download could not be resumed: pooch starts again, huggingface_hub 2
# deletes the part (and one source is on Zenodo, not on its hub)

from __future__ import annotations

import contextlib
import hashlib
import http.client
import re
import shutil
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from email.message import Message
from pathlib import Path
from typing import Any

from rich.progress import Progress, TaskID

from scenedistill.core.disk import read_json, write_json
from scenedistill.core.errors import UserError
from scenedistill.core.locks import held
from scenedistill.data.known.archives import extract
from scenedistill.data.known.dataset_info import DatasetInfo, Source
from scenedistill.data.known.transfer import CHUNK, Limits, byte_progress

_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})  # HTTP statuses worth another try


def download(
    info: DatasetInfo, folder: Path, *, url: str | None = None, progress: bool = True, limits: Limits | None = None
) -> Path:
    """Fetch and unpack a data set to `folder/{info.name}` and return the folder that holds its class folders.

    A data set that exists is not fetched again; of several calls at once, one fetches it and the others wait.
    Unfinished data is kept in hidden folders beside it, so that the same call resumes an interrupted download, and
    `folder/{info.name}` is never incomplete. The sources of the entry are tried in turn; `url` is used in their place.
    A `url` that is not one of them has no known checksum: only its length and the archive's own checksums are verified,
    so run `catalogue.check` afterwards.

    Raises:
        UserError: no stable source (says where to get it), refused or failing server, wrong checksum, disk too full,
            hostile or damaged archive.
    """
    limits = limits or Limits()
    folder = Path(folder).expanduser()
    target = folder / info.name
    if _exists(target):
        return _class_root(target, info.sources)
    sources = tuple(s for s in info.sources if s.url == url) or (Source(url, folder=""),) if url else info.sources
    if not sources:
        raise UserError(
            f"{info.name} has no stable public address. Get it by hand at {info.home} and unpack it so that its "
            f"class folders lie in {target}, or give the address of a copy you trust as url."
        )
    work, lock = folder / f".download-{info.key}", folder / f".download-{info.key}.lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with held(lock, "downloading this data set", tell=progress):
            if not _exists(target):  # another process may have fetched it meanwhile
                work.mkdir(exist_ok=True)
                _fetch_and_extract(sources, work, target, progress, limits)
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise UserError(f"Cannot write to {folder}: {error}.") from error
    with contextlib.suppress(OSError):  # another process may have it open, or have removed it
        lock.unlink()
    return _class_root(target, sources)


def _exists(target: Path) -> bool:
    return target.is_dir() and any(target.iterdir())


def _fetch_and_extract(sources: tuple[Source, ...], work: Path, target: Path, progress: bool, limits: Limits) -> None:
    """Fetch the archive of the first source that has it into `work`, and unpack it to `target`."""
    for number, source in enumerate(sources, start=1):
        try:
            archive = fetch(source, work, progress=progress, limits=limits)
            break
        except UserError:
            if number == len(sources):
                raise
    if target.is_dir():
        target.rmdir()  # empty, as checked before
    try:
        extract(archive, target, limits=limits, progress=progress)
    except UserError:
        if not (source.md5 or source.sha256):
            archive.unlink()  # it has no known checksum, so fetch it again the next time
        raise


def fetch(source: Source, folder: Path, *, progress: bool = True, limits: Limits | None = None) -> Path:
    """Download one file into `folder`, continuing a `.part` file of the same address, and verify its checksum.

    A part is continued only if the server confirms that the file is unchanged (If-Range with a strong ETag or the
    date, and the same total length) or if a checksum can verify the result; otherwise the download starts again.

    Raises:
        UserError: as for `download`.
    """
    limits = limits or Limits()
    _check_url(source.url)
    part = _Part(folder, source.url)
    target = folder / part_name(source.url)
    if target.exists() and part.is_of_this_url and not _wrong_checksum(target, source):
        return target
    target.unlink(missing_ok=True)
    with byte_progress("downloading", progress) as bar:
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


def part_name(url: str) -> str:
    """Return the name of an unfinished download, different for each address, so that sources do not mix bytes."""
    return f"archive-{hashlib.sha256(url.encode()).hexdigest()[:8]}"


class _Part:
    """An unfinished download: the bytes received so far, and the headers that identify the file on the server."""

    def __init__(self, folder: Path, url: str) -> None:
        self.path = folder / f"{part_name(url)}.part"
        self.notes = folder / f"{part_name(url)}.json"
        self.known = read_json(self.notes)
        self.is_of_this_url = self.known.get("url") == url
        if not self.is_of_this_url:
            self.discard()
            self.known = {"url": url}

    @property
    def validator(self) -> str | None:
        """Value for If-Range: a strong ETag, or else the date; None if neither is known."""
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
        write_json(self.notes, self.known)


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
            wait = min(float(told), 60.0) if told.isdecimal() else 0.0
        except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: a redirect to no valid address
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
    """Make one request; return True if the part is complete, False if the server stopped or the file changed."""
    if part.size() and not (part.validator or source.md5 or source.sha256):
        part.discard()  # nothing could verify that the rest belongs to the same file
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
            total = int(span[2]) if span and span[2] != "*" else part.total
            if span is None or int(span[1]) != offset or not part.is_same(response.headers, total):
                part.discard()
                return False
        else:  # the whole file: the first request, a changed file, or a server without Range
            offset = 0
            part.discard()
            length = response.headers["Content-Length"]
            total = int(length) if length and length.isdecimal() else None
        part.remember(response.headers, total)
        _check_size(source.url, part.path.parent, total, offset, limits)
        bar.update(task, completed=offset, total=total)
        with part.path.open("ab") as file:
            while chunk := response.read(CHUNK):
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
    with contextlib.suppress(ValueError):  # such as a bracket that is not closed
        parts = urllib.parse.urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname:
            return urllib.parse.quote(url, safe="%/:?#[]@!$&'()*+,;=~")
    raise UserError(f"{url!r} is not a web address; expected http:// or https://.")


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


def _class_root(folder: Path, sources: tuple[Source, ...]) -> Path:
    """Return the folder of class folders in an unpacked archive: as the source says, else below single folders."""
    for source in sources:
        if source.folder and (folder / source.folder).is_dir():
            return folder / source.folder
    while True:
        inside = [p for p in folder.iterdir() if not p.name.startswith(".")]
        if len(inside) != 1 or not inside[0].is_dir():
            return folder
        folder = inside[0]
