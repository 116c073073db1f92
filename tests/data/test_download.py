"""Downloads from a real local server that misbehaves in every way."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import http.server
import io
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from scenedistill.core.errors import UserError
from scenedistill.data.known.catalogue import CATALOG, DatasetInfo, Source, check
from scenedistill.data.known.download import download, fetch, part_name
from scenedistill.data.known.transfer import Limits
from scenedistill.data.scenes import scan

WORKER = Path(__file__).with_name("fetch_worker.py")
FAST = Limits(attempts=3, timeout=5, backoff=0.001)
BODY = random.Random(0).randbytes(300_000)


class Server(http.server.ThreadingHTTPServer):
    """Serves `body` at any path; the attributes say how badly. `log` keeps (path, Range, If-Range) of each request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.body = BODY
        self.etag: str | None = '"v1"'
        self.modified: str | None = None
        self.ranges = True  # honour Range
        self.honest = True  # heed If-Range
        self.length = True  # send Content-Length
        self.total = True  # say in Content-Range how long the whole is
        self.claim: int | None = None  # lie about Content-Length
        self.drops: list[int] = []  # of each next answer, send only so many bytes
        self.statuses: list[int] = []  # answer the next requests with these
        self.redirect: str | None = None
        self.slow = 0.0  # seconds for each 10 kB
        self.log: list[tuple[str, str | None, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/set.zip"

    def source(self, **checksums: str) -> Source:
        return Source(self.url, folder="", **checksums)


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        asked, condition = self.headers["Range"], self.headers["If-Range"]
        server.log.append((self.path, asked, condition))
        if server.redirect and self.path == "/set.zip":
            self.send_response(302)
            self.send_header("Location", server.redirect)
            self.end_headers()
            return
        if server.statuses:
            self.send_response(server.statuses.pop(0))
            self.send_header("Retry-After", "0")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = 0
        current = condition in (None, server.etag, server.modified) or not server.honest
        if asked and server.ranges and current:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(server.body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(server.body)}")
                self.end_headers()
                return
            self.send_response(206)
            total = len(server.body) if server.total else "*"
            self.send_header("Content-Range", f"bytes {start}-{len(server.body) - 1}/{total}")
        else:
            self.send_response(200)
        if server.etag:
            self.send_header("ETag", server.etag)
        if server.modified:
            self.send_header("Last-Modified", server.modified)
        body = server.body[start:]
        if server.length:
            self.send_header("Content-Length", str(server.claim or len(body)))
        self.end_headers()
        body = body[: server.drops.pop(0)] if server.drops else body
        with contextlib.suppress(ConnectionError):  # the other side may hang up
            for i in range(0, len(body), 10_000):
                self.wfile.write(body[i : i + 10_000])
                time.sleep(server.slow)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def get(server: Server, folder: Path, limits: Limits = FAST, **checksums: str) -> bytes:
    return fetch(server.source(**checksums), folder, progress=False, limits=limits).read_bytes()


def ranges(server: Server) -> list[str | None]:
    return [asked for _, asked, _ in server.log]


# fetching


@pytest.mark.parametrize("kind", ["sha256", "md5"])
def test_a_download_has_the_content_of_the_file(server: Server, tmp_path: Path, kind: str) -> None:
    assert get(server, tmp_path, FAST, **{kind: hashlib.new(kind, BODY).hexdigest()}) == BODY
    assert ranges(server) == [None]
    assert not list(tmp_path.glob("*.part"))


def test_a_finished_file_is_not_fetched_again_unless_it_was_damaged(server: Server, tmp_path: Path) -> None:
    get(server, tmp_path, sha256=sha256(BODY))
    get(server, tmp_path, sha256=sha256(BODY))
    assert len(server.log) == 1
    (tmp_path / part_name(server.url)).write_bytes(BODY[:-1] + b"?")
    assert get(server, tmp_path, sha256=sha256(BODY)) == BODY
    assert len(server.log) == 2


def test_dropped_connections_are_resumed(server: Server, tmp_path: Path) -> None:
    server.drops = [100_000, 0, 50_000]
    assert get(server, tmp_path) == BODY
    assert ranges(server) == [None, "bytes=100000-", "bytes=100000-", "bytes=150000-"]
    assert all(condition == '"v1"' for _, _, condition in server.log[1:])


def test_a_rest_without_a_total_is_resumed_until_the_first_total(server: Server, tmp_path: Path) -> None:
    server.drops, server.total = [100_000, 50_000], False
    assert get(server, tmp_path) == BODY
    assert ranges(server) == [None, "bytes=100000-", "bytes=150000-"]


def test_resume_by_date_where_the_etag_is_weak(server: Server, tmp_path: Path) -> None:
    server.etag, server.modified, server.drops = 'W/"v1"', "Mon, 05 May 2025 10:00:00 GMT", [100_000]
    assert get(server, tmp_path) == BODY
    assert server.log[1][1:] == ("bytes=100000-", "Mon, 05 May 2025 10:00:00 GMT")


def test_without_etag_date_or_checksum_a_download_starts_again(server: Server, tmp_path: Path) -> None:
    server.etag, server.drops = None, [100_000]
    assert get(server, tmp_path) == BODY
    assert ranges(server) == [None, None]


def test_a_checksum_is_enough_to_resume(server: Server, tmp_path: Path) -> None:
    server.etag, server.drops = None, [100_000]
    assert get(server, tmp_path, sha256=sha256(BODY)) == BODY
    assert server.log[1][1:] == ("bytes=100000-", None)


@pytest.mark.parametrize("honest", [True, False])
def test_a_file_changed_in_between_starts_again(server: Server, tmp_path: Path, honest: bool) -> None:
    server.drops = [100_000, 0, 0, 0, 0]
    with pytest.raises(UserError, match=r"100,000 bytes are kept; run the same again to continue"):
        get(server, tmp_path)
    server.body, server.etag, server.honest, server.drops = BODY[::-1], '"v2"', honest, []
    assert get(server, tmp_path) == BODY[::-1]


def test_a_server_without_range_support_sends_the_file_again(server: Server, tmp_path: Path) -> None:
    server.ranges, server.drops = False, [100_000]
    assert get(server, tmp_path) == BODY
    assert ranges(server) == [None, "bytes=100000-"]


def test_a_part_longer_than_the_file_is_discarded(server: Server, tmp_path: Path) -> None:
    server.drops = [200_000, 0, 0, 0, 0]
    with pytest.raises(UserError):
        get(server, tmp_path)
    server.body, server.honest, server.drops = BODY[:1000], False, []
    assert get(server, tmp_path) == BODY[:1000]


def test_a_complete_part_needs_no_request(server: Server, tmp_path: Path) -> None:
    get(server, tmp_path)
    name = part_name(server.url)
    (tmp_path / name).rename(tmp_path / f"{name}.part")
    assert get(server, tmp_path) == BODY
    assert len(server.log) == 1


def test_another_address_does_not_continue_the_part(server: Server, tmp_path: Path) -> None:
    server.drops = [100_000, 0, 0, 0, 0]
    with pytest.raises(UserError):
        get(server, tmp_path)
    server.drops = []
    other = Source(server.url.replace("set", "other"), folder="")
    assert fetch(other, tmp_path, progress=False, limits=FAST).read_bytes() == BODY
    assert server.log[-1][:2] == ("/other.zip", None)


def test_damaged_resume_notes_are_ignored(server: Server, tmp_path: Path) -> None:
    (tmp_path / f"{part_name(server.url)}.json").write_text('{"url": "ht')
    (tmp_path / f"{part_name(server.url)}.part").write_bytes(b"old")
    assert get(server, tmp_path) == BODY


def test_a_damaged_part_is_fetched_afresh(server: Server, tmp_path: Path) -> None:
    server.drops = [100_000, 0, 0, 0, 0]
    with pytest.raises(UserError):
        get(server, tmp_path, sha256=sha256(BODY))
    (tmp_path / f"{part_name(server.url)}.part").write_bytes(bytes(100_000))
    server.drops = []
    assert get(server, tmp_path, sha256=sha256(BODY)) == BODY
    assert ranges(server)[-2:] == ["bytes=100000-", None]


def test_a_wrong_checksum_is_refused_and_the_file_deleted(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"sha256 is {sha256(BODY)}, expected {'0' * 64}"):
        get(server, tmp_path, sha256="0" * 64)
    assert not list(tmp_path.glob("archive*[!n]"))  # nothing but the notes archive.json
    assert len(server.log) == 1


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_refusal_is_not_tried_again(server: Server, tmp_path: Path, status: int) -> None:
    server.statuses = [status]
    with pytest.raises(UserError, match=rf"the server answered {status} \w+"):
        get(server, tmp_path)
    assert len(server.log) == 1


def test_a_busy_server_is_tried_again(server: Server, tmp_path: Path) -> None:
    server.statuses = [503, 429]
    assert get(server, tmp_path) == BODY
    server.statuses = [500] * 3
    (tmp_path / part_name(server.url)).unlink()
    with pytest.raises(UserError, match=r"gave up after 3 attempts .*500 Internal Server Error"):
        get(server, tmp_path)


def test_a_closed_port_is_reported_after_all_attempts(tmp_path: Path) -> None:
    with Server() as closed:
        source = closed.source()
    with pytest.raises(UserError, match=r"gave up after 3 attempts .*refused"):
        fetch(source, tmp_path, progress=False, limits=FAST)


def test_a_silent_server_times_out(server: Server, tmp_path: Path) -> None:
    server.slow = 1.0
    with pytest.raises(UserError, match="timed out"):
        get(server, tmp_path, dataclasses.replace(FAST, timeout=0.1, attempts=1))


def test_a_file_of_unknown_length_is_downloaded_up_to_the_limit(server: Server, tmp_path: Path) -> None:
    server.length = False
    assert get(server, tmp_path) == BODY
    (tmp_path / part_name(server.url)).unlink()
    with pytest.raises(UserError, match="sends more than the limit of 200,000 bytes"):
        get(server, tmp_path, dataclasses.replace(FAST, download_bytes=200_000))


def test_a_file_above_the_limit_or_the_free_space_is_refused(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="300,000 bytes, more than the limit of 299,999"):
        get(server, tmp_path, dataclasses.replace(FAST, download_bytes=299_999))
    server.claim = 1 << 60
    with pytest.raises(UserError, match=r"bytes free; .* needs about"):
        get(server, tmp_path, dataclasses.replace(FAST, download_bytes=1 << 62))


def test_redirects_are_followed_to_web_addresses_only(server: Server, tmp_path: Path) -> None:
    server.redirect = "/mirror/set.zip"
    server.drops = [100_000]
    assert get(server, tmp_path) == BODY
    assert server.log[-1][:2] == ("/mirror/set.zip", "bytes=100000-")
    for elsewhere in ("ftp://example.org/set.zip", "file:///etc/passwd"):
        (tmp_path / part_name(server.url)).unlink(missing_ok=True)
        server.redirect = elsewhere
        with pytest.raises(UserError, match=r"not a web address|not allowed"):
            get(server, tmp_path)
    server.redirect = "http://[::1/set.zip"
    with pytest.raises(UserError, match=r"gave up after 3 attempts .*Invalid IPv6 URL"):
        get(server, tmp_path)


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://a.org/a.zip", "a.zip", "http:///a.zip", "http://[::1/a.zip"]
)
def test_addresses_other_than_http_are_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(UserError, match="not a web address"):
        fetch(Source(url, folder=""), tmp_path, progress=False)


# whole data sets


def zip_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def tiny(server: Server | None) -> DatasetInfo:
    """A made-up catalogue entry of 2 x 2 images, served by `server`."""
    files = {f"Set/Images/{c}/{c}_{i}.jpg": random.Random(f"{c}{i}").randbytes(40_000) for c in "ab" for i in (1, 2)}
    sources: tuple[Source, ...] = ()
    if server:
        server.body = zip_of(files | {"Set/readme.txt": b"hello", "__MACOSX/Set/._readme.txt": b"x"})
        sources = (Source(server.url, "Set/Images", sha256=sha256(server.body)),)
    return dataclasses.replace(CATALOG["aid"], key="tiny", name="Tiny", counts={"a": 2, "b": 2}, sources=sources)


def test_a_data_set_is_downloaded_unpacked_and_not_fetched_again(server: Server, tmp_path: Path) -> None:
    info = tiny(server)
    server.drops = [60_000]
    root = download(info, tmp_path / "new", progress=False, limits=FAST)
    assert root == tmp_path / "new" / "Tiny" / "Set" / "Images"
    assert check(scan(root), info).complete
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["Tiny"]
    assert sorted(p.name for p in (tmp_path / "new" / "Tiny").iterdir()) == ["Set"]
    requests = len(server.log)
    assert download(info, tmp_path / "new", progress=False, limits=FAST) == root
    assert len(server.log) == requests


def test_of_two_downloads_at_once_one_waits_for_the_other(server: Server, tmp_path: Path) -> None:
    info = tiny(server)
    server.slow = 0.02  # 160 kB take 0.3 s
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(download, info, tmp_path, progress=False, limits=FAST) for _ in range(2)]
    assert {each.result() for each in both} == {tmp_path / "Tiny" / "Set" / "Images"}
    assert len(server.log) == 1 and [p.name for p in tmp_path.iterdir()] == ["Tiny"]


def test_the_next_source_is_tried(server: Server, tmp_path: Path) -> None:
    info = tiny(server)
    gone = dataclasses.replace(info.sources[0], url=server.url.replace("set", "gone"))
    server.statuses = [404]
    info = dataclasses.replace(info, sources=(gone, *info.sources))
    assert check(scan(download(info, tmp_path, progress=False, limits=FAST)), info).complete
    assert [path for path, _, _ in server.log] == ["/gone.zip", "/set.zip"]


def test_a_data_set_can_be_downloaded_from_another_address(server: Server, tmp_path: Path) -> None:
    info = dataclasses.replace(tiny(server), sources=())
    root = download(info, tmp_path, url=server.url, progress=False, limits=FAST)
    assert check(scan(root), info).complete


def test_a_copy_that_is_no_archive_is_not_kept(server: Server, tmp_path: Path) -> None:
    info = dataclasses.replace(tiny(server), sources=())
    good, server.body = server.body, b"<html>Sign in first</html>"
    (tmp_path / "Tiny").mkdir()  # an empty folder is no obstacle
    with pytest.raises(UserError, match="neither a zip nor a tar"):
        download(info, tmp_path, url=server.url, progress=False, limits=FAST)
    server.body = good
    assert check(scan(download(info, tmp_path, url=server.url, progress=False, limits=FAST)), info).complete


def test_the_checksum_holds_for_a_known_address_given_by_hand(server: Server, tmp_path: Path) -> None:
    info = tiny(server)
    server.body += b"more"
    with pytest.raises(UserError, match="sha256 is"):
        download(info, tmp_path, url=server.url, progress=False, limits=FAST)
    assert not (tmp_path / "Tiny").exists()


def test_a_data_set_without_a_source_names_its_home_page(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(f"by hand at {CATALOG['aid'].home}")) as error:
        download(CATALOG["aid"], tmp_path / "data", progress=False)
    assert str(tmp_path / "data" / "AID") in str(error.value)
    assert not (tmp_path / "data").exists()


def test_an_existing_data_set_is_not_downloaded(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / "AID" / "AID" / name).mkdir(parents=True)
    assert download(CATALOG["aid"], tmp_path, progress=False) == tmp_path / "AID" / "AID"


def test_a_folder_that_cannot_be_created_is_refused(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="Cannot write to"):
        download(tiny(server), tmp_path / "file", progress=False, limits=FAST)


def test_a_killed_download_is_resumed(server: Server, tmp_path: Path) -> None:
    info = tiny(server)
    server.slow = 0.05  # 160 kB take 0.8 s
    work = tmp_path / ".download-tiny"
    work.mkdir()
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    source = info.sources[0]
    command = [sys.executable, str(WORKER), source.url, str(source.sha256), str(work)]
    child = subprocess.Popen(command, env=env)
    part = work / f"{part_name(source.url)}.part"
    deadline = time.monotonic() + 30
    while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.wait()
    kept = part.stat().st_size
    assert 0 < kept < len(server.body)
    (tmp_path / ".unpacking-Tiny").mkdir()  # and as if one had been killed while unpacking
    (tmp_path / ".unpacking-Tiny" / "half.jpg").write_bytes(b"half")
    server.slow = 0.0
    root = download(info, tmp_path, progress=False, limits=FAST)
    assert ranges(server)[-1] == f"bytes={kept}-"
    assert check(scan(root), info).complete
    assert [p.name for p in tmp_path.iterdir()] == ["Tiny"]
    assert not list(root.rglob("half.jpg"))


def test_a_second_source_leaves_the_bytes_of_the_first(server: Server, tmp_path: Path) -> None:
    server.drops = [100_000, 0, 0, 0, 0]
    with pytest.raises(UserError):
        get(server, tmp_path)
    first = tmp_path / f"{part_name(server.url)}.part"
    kept = first.stat().st_size
    server.drops = [50_000, 0, 0, 0, 0]
    with pytest.raises(UserError):
        fetch(Source(server.url.replace("set", "other"), folder=""), tmp_path, progress=False, limits=FAST)
    assert first.stat().st_size == kept == 100_000
    server.drops = []
    assert get(server, tmp_path) == BODY
    assert ranges(server)[-1] == "bytes=100000-"
