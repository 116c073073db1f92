"""The page over the network: right answers, every limit, and nothing of the machine let out."""

from __future__ import annotations

import asyncio
import base64
import csv
import http.client
import io
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from scenedistill.core.errors import UserError
from scenedistill.data.images.read import read_scene
from scenedistill.inference.model import SceneModel, open_model
from scenedistill.runs.find import find_model
from scenedistill.serve import worker as serve_work
from scenedistill.serve.answers import Answerer, find_teacher
from scenedistill.serve.files import ResultStore, image_kind, shown_name
from scenedistill.serve.limits import SECURITY_HEADERS, Guard, Refused, ServeLimits, limited

pytest.importorskip("starlette", reason="needs Starlette: pip install -e '.[use]'")

from scenedistill.serve.networks import ServedNetworks
from scenedistill.serve.server import serve
from scenedistill.serve.worker import Worker, Workers

SRC = Path(__file__).resolve().parents[2] / "src"
COMMAND = (sys.executable, "-u", "-m", "scenedistill.cli", "serve")
PAGE_CLASSES = ("car park", "fields", "forêt", "<b>river</b>", "quarry", "beach")


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    memory = io.BytesIO()
    Image.fromarray(pixels).save(memory, kind)
    return memory.getvalue()


def noise(height: int = 40, width: int = 60, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png_head(width: int, height: int, depth: int = 8) -> bytes:
    """A PNG of a stated size with hardly anything in it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 10)) + chunk(b"IEND", b"")


def tiff_bytes(pixels: np.ndarray, **more: Any) -> bytes:
    memory = io.BytesIO()
    tifffile.imwrite(memory, pixels, **more)
    return memory.getvalue()


def tiff_head(side: int, depth: int, content: bytes, *, inflates: bool = False, tile: int = 0) -> bytes:
    """A grey TIFF of one strip, or of one tile, that may hold anything."""
    place, kind = ((324, 325), (322, 323)) if tile else ((273, 279), ())
    tags = {256: side, 257: side, 258: depth, 259: 8 if inflates else 1, 262: 1, 277: 1}
    tags |= dict.fromkeys(kind, tile) if tile else {278: side}
    tags |= {place[0]: 8 + 2 + 12 * (len(tags) + 2) + 4, place[1]: len(content)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags))
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + struct.pack("<I", 0) + content


# what it answers


@pytest.fixture(scope="module")
def models(page_networks: tuple[Path, Path]) -> dict[str, SceneModel]:
    """The page's networks in this process."""
    return dict(zip(("student", "teacher"), (open_model(path, device="cpu") for path in page_networks), strict=True))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_a_scene_is_classified_as_the_networks_do(
    page: Any, models: dict[str, SceneModel], tmp_path: Path, kind: str
) -> None:
    body = encoded(noise(), kind)
    status, answer, headers = page.call("POST", f"/classify?name=a.{kind}", body)
    assert status == 200 and answer["kind"] == "scene" and (answer["width"], answer["height"]) == (60, 40)
    assert headers["content-type"] == "application/json"
    (tmp_path / "same").write_bytes(body)
    scene = read_scene(tmp_path / "same", 96)
    assert list(answer["networks"]) == ["student", "teacher"]
    for role, model in models.items():
        expected = dict(zip(PAGE_CLASSES, model.predict([scene]).probabilities[0].tolist(), strict=True))
        said = answer["networks"][role]
        assert dict(zip(said["ranking"], said["probabilities"], strict=True)) == pytest.approx(expected, abs=2e-6)
        assert said["probabilities"] == sorted(said["probabilities"], reverse=True)
        assert said["name"] == model.card.name and said["seconds"]["network"] > 0
    assert answer["preview"].startswith("data:image/jpeg;base64,")


def test_both_networks_show_where_they_look_for_the_same_classes(page: Any) -> None:
    answer = page.call("POST", "/classify?name=a.png", encoded(noise()))[1]
    student, teacher = answer["networks"]["student"], answer["networks"]["teacher"]
    assert set(student["looks"]) == set(teacher["looks"]) == {*student["ranking"][:3], teacher["ranking"][0]}
    for uri in student["looks"].values():
        assert uri.startswith("data:image/png;base64,")
    assert student["looks"] != teacher["looks"]


def test_results_are_kept_to_be_fetched(page: Any) -> None:
    answer = page.call("POST", "/classify?name=../../some%20place/b%3Bc.png", encoded(noise()))[1]
    assert answer["name"] == "b;c.png" and set(answer["downloads"]) == {"result.csv", "result.json"}
    status, content, headers = page.call("GET", f"/{answer['downloads']['result.csv']}")
    assert status == 200 and headers["content-disposition"] == 'attachment; filename="scenedistill-result.csv"'
    rows = list(csv.DictReader(io.StringIO(content.decode())))
    assert [(row["path"], row["network"]) for row in rows] == [("b;c.png", "student"), ("b;c.png", "teacher")]
    student = answer["networks"]["student"]
    assert rows[0]["class"] == student["ranking"][0]
    assert float(rows[0][f"p_{student['ranking'][1]}"]) == student["probabilities"][1]
    found = json.loads(page.call("GET", f"/{answer['downloads']['result.json']}")[1])
    assert found[1]["network"] == "teacher" and set(found[1]["probabilities"]) == set(PAGE_CLASSES)
    token = answer["downloads"]["result.csv"].split("/")[1]
    assert sorted(path.name for path in (page.store / token).iterdir()) == ["result.csv", "result.json"]


def test_16_bit_and_grey_images_are_classified_and_two_bands_refused(page: Any) -> None:
    deep = tiff_bytes((noise(seed=1).astype(np.uint16) * 11), photometric="rgb")
    assert page.call("POST", "/classify?name=deep.tif", deep)[0] == 200
    assert page.call("POST", "/classify?name=grey.png", encoded(noise()[:, :, 0]))[0] == 200
    two_bands = tiff_bytes(noise()[:, :, :2], planarconfig="contig", photometric="minisblack", extrasamples=[0])
    status, answer, _ = page.call("POST", "/classify?name=two.tif", two_bands)
    assert status == 422 and "2 bands" in answer["error"]


def test_a_network_without_gradients_says_why_it_shows_no_grad_cam(
    page_networks: tuple[Path, Path], tmp_path: Path
) -> None:
    onnx = pytest.importorskip("onnx", reason="needs onnx: pip install -e '.[use]'")
    pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install -e '.[use]'")
    from scenedistill.export.onnx_graph import build_graph
    from scenedistill.models.files import load_net

    onnx.save(build_graph(*load_net(page_networks[0]), {}), str(tmp_path / "net.onnx"))
    (tmp_path / "upload.png").write_bytes(encoded(noise()))
    answerer = Answerer(ServedNetworks(tmp_path / "net.onnx", "none", "cpu"))
    student = answerer.answer(str(tmp_path / "upload.png"), "a.png")["networks"]["student"]
    assert student["looks"] == {} and "needs gradients" in student["no_looks"]
    assert sum(student["probabilities"]) == pytest.approx(1, abs=1e-4)


@pytest.mark.slow
def test_a_runs_teacher_is_shown_beside(tiny_run: Path, page_networks: tuple[Path, Path]) -> None:
    student = find_model(tiny_run)
    assert Path(find_teacher(student)) == next(tiny_run.glob("seed*/teacher/weights.safetensors"))
    assert list(Answerer(ServedNetworks(tiny_run, device="cpu")).about()) == ["student", "teacher"]
    assert find_teacher(page_networks[0]) == "none"


def test_about_names_networks_and_limits(page: Any) -> None:
    status, about, _ = page.call("GET", "/about")
    assert status == 200 and about["networks"]["student"]["classes"] == list(PAGE_CLASSES)
    assert about["limits"]["bytes"] == 2**20 and list(about["networks"]) == ["student", "teacher"]


# what it refuses


@pytest.mark.parametrize(
    ("name", "body", "status", "said"),
    [
        ("notes.txt", b"just words, and a few more of them", 415, "notes.txt is not a JPEG, PNG, WebP or TIFF image."),
        ("short.png", b"\x89P", 415, "short.png is not"),
        ("empty.png", b"", 400, "empty.png is empty"),
        ("page.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "page.svg is not"),
        ("cut.png", encoded(noise())[:400], 422, "cut.png"),
        ("cut.jpg", encoded(noise(), "JPEG")[:60], 422, "cut.jpg"),
        ("cut.tif", tiff_bytes(noise())[:60], 422, "cut.tif"),
        ("head.tif", b"II*\0" + b"\xff" * 40, 422, "head.tif"),
        ("bomb.png", png_head(100_000, 100_000), 422, "bomb.png has 100,000 x 100,000 pixels"),
        ("flat.png", encoded(np.zeros((1100, 1100, 3), np.uint8)), 422, "limit of this page is 1 million"),
        ("deep.png", png_head(900, 900, 16), 422, "MiB of memory"),
        ("map.vrt", b"<VRTDataset rasterXSize='8' rasterYSize='8'></VRTDataset>", 415, "A VRT only names other files"),
        ("trick.jpg", b"\xff\xd8\xff\xfe<<<VRTDataset rasterXSize='8' rasterYSize='8'></VRTDataset>", 422, "trick.jpg"),
    ],
)
def test_an_unsuitable_image_is_refused_with_one_line(
    page: Any, name: str, body: bytes, status: int, said: str
) -> None:
    before = page.folders()
    found, answer, _ = page.call("POST", f"/classify?name={name}", body)
    assert (found, list(answer)) == (status, ["error"]) and said in answer["error"]
    assert str(page.store) not in answer["error"] and "upload." not in answer["error"]
    assert page.folders() == before


def test_a_tiff_of_many_pages_counts_them_all(page: Any) -> None:
    pages = tiff_bytes(np.zeros((40, 500, 500), np.uint8), photometric="minisblack", compression="zlib")
    status, answer, _ = page.call("POST", "/classify?name=pages.tif", pages)
    assert status == 422 and "MiB of memory" in answer["error"]


def test_a_tiff_with_two_heights_is_not_an_error_of_the_server(page: Any) -> None:
    body = bytearray(tiff_bytes(noise(), photometric="rgb"))
    entry = body.index(struct.pack("<HHI", 257, 4, 1))  # the tag of the height: type long, one value
    struct.pack_into("<II", body, entry + 4, 2, len(body))
    status, _, _ = page.call("POST", "/classify?name=two.tif", bytes(body) + struct.pack("<II", 40, 40))
    assert status in (200, 422)


def test_a_whole_tile_counts_towards_the_memory_limit(page: Any) -> None:
    body = tiff_head(64, 16, bytes(8), tile=30_000)
    status, answer, _ = page.call("POST", "/classify?name=tile.tif", body)
    assert status == 422 and "MiB of memory" in answer["error"]


def chunks(size: int, head: bytes) -> Iterator[bytes]:
    yield head
    for _ in range(size // 65536):
        yield bytes(65536)


def test_a_large_upload_is_refused_while_it_comes(page: Any) -> None:
    before = page.folders()
    status, answer, _ = page.call("POST", "/classify?name=a.png", chunks(3 << 19, encoded(noise())))
    assert status == 413 and answer["error"] == "The file is larger than 1 MiB, the limit of this page."
    assert page.folders() == before
    status, answer, _ = page.call("POST", "/classify?name=a.png", bytes(3 << 19))  # its length said beforehand
    assert status == 413


def test_an_endless_chunked_upload_is_cut_off(page: Any) -> None:
    """A sender that never stops is cut off after a while."""
    with pytest.raises((OSError, http.client.HTTPException)):
        page.call("POST", "/classify?name=a.png", chunks(1 << 30, encoded(noise())))
    assert page.call("GET", "/about")[0] == 200


def test_a_slow_upload_is_given_up() -> None:
    async def slow() -> Any:
        yield b"a"
        await asyncio.sleep(60)
        yield b"b"

    async def read() -> None:
        async for _ in limited(slow(), None, ServeLimits(seconds=0.05)):
            pass

    with pytest.raises(Refused, match=r"longer than 0\.05 seconds") as refused:
        asyncio.run(read())
    assert refused.value.status == 408


@pytest.mark.parametrize("query", ["kind=vrt", "window=0", "window=1e9", "window=-5", "window=٣٣"])
def test_settings_out_of_range_are_refused(page: Any, query: str) -> None:
    from urllib.parse import quote

    status, answer, _ = page.call("POST", f"/classify?name=a.png&{quote(query, safe='=')}", encoded(noise()))
    assert (status == 400 and "expected" in answer["error"]) or "whole number" in answer["error"]


# how many


def begin_upload(page: Any, body: bytes) -> socket.socket:
    """Send all but the last byte of an upload."""
    line = socket.create_connection(("127.0.0.1", page.port), timeout=30)
    head = f"POST /classify?name=a.png HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    line.sendall(head.encode() + body[:-1])
    return line


def test_requests_beyond_the_queue_are_refused_as_busy(page: Any, wait_until: Callable[..., None]) -> None:
    before, body = page.folders(), encoded(noise())
    lines = [begin_upload(page, body) for _ in range(3)]
    wait_until(lambda: len(page.folders()) == len(before) + 3)
    status, answer, headers = page.call("POST", "/classify?name=b.png", body)
    assert status == 503 and answer["error"] == "Busy: 1 at work and 2 waiting. Try again in a moment."
    assert headers["retry-after"] == "2"
    assert page.call("GET", "/about")[0] == 200, "the page itself is still there"
    lines[0].close()  # one goes away in the middle of its upload: its place and its folder are free again
    wait_until(lambda: len(page.folders()) == len(before) + 2)
    status, _, _ = page.call("POST", "/classify?name=b.png", body)
    assert status == 200
    for line in lines[1:]:
        line.sendall(body[-1:])
        assert line.recv(12) == b"HTTP/1.1 200"
        line.close()


def test_many_requests_at_once_are_answered_or_refused_as_busy(page: Any, wait_until: Callable[..., None]) -> None:
    body = encoded(noise())
    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda _: page.call("POST", "/classify?name=a.png", body), range(24)))
    statuses = [status for status, _, _ in found]
    assert set(statuses) <= {200, 503} and 200 in statuses
    answers = [answer["networks"]["student"]["probabilities"] for status, answer, _ in found if status == 200]
    assert all(answer == answers[0] for answer in answers)
    wait_until(lambda: page.call("POST", "/classify?name=a.png", body)[0] == 200)


@pytest.mark.slow
def test_work_is_ended_when_its_client_has_gone(page: Any, wait_until: Callable[..., None]) -> None:
    before, worker, body = page.folders(), page.workers.all[0], encoded(noise())
    pid = worker.process.pid
    os.kill(pid, signal.SIGSTOP)  # work that takes long
    line = begin_upload(page, body)
    line.sendall(body[-1:])
    wait_until(lambda: len(page.folders()) == len(before) + 1)
    line.close()
    wait_until(lambda: worker.process.pid != pid and page.folders() == before)
    assert page.call("POST", "/classify?name=a.png", body)[0] == 200


# processes


@pytest.fixture
def worker(page_networks: tuple[Path, Path]) -> Iterator[Worker]:
    """A process with a network, started."""
    limits = ServeLimits()
    one = Worker(ServedNetworks(page_networks[0], "none", device="cpu", threads=1), limits)
    one.start()
    yield one
    one.stop()


@pytest.mark.slow
def test_a_process_that_hangs_or_dies_is_replaced(worker: Worker, tmp_path: Path) -> None:
    upload = tmp_path / "upload.png"
    upload.write_bytes(encoded(noise()))
    task = {"upload": str(upload), "name": "a.png", "kind": "auto"}
    assert worker.run(task)["files"] == ["result.csv", "result.json"]
    worker.start()  # ready for more
    assert worker.process
    os.kill(worker.process.pid or 0, signal.SIGSTOP)
    worker.limits = ServeLimits(seconds=0.2)
    with pytest.raises(Refused, match=r"Stopped after 0\.2 seconds") as slow:
        worker.run(task)
    assert slow.value.status == 504 and not worker.process.is_alive()
    worker.limits = ServeLimits()
    worker.start()
    os.kill(worker.process.pid or 0, signal.SIGSTOP)
    threading.Timer(0.3, os.kill, (worker.process.pid, signal.SIGKILL)).start()
    with pytest.raises(Refused, match="ended unexpectedly") as died:
        worker.run(task)
    assert died.value.status == 500
    assert worker.run(task)["files"] == ["result.csv", "result.json"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux holds a process to its memory")
def test_a_decompression_bomb_stays_within_the_memory_limit(page_networks: tuple[Path, Path], tmp_path: Path) -> None:
    """A strip of 0.4 MB, and of 384 MiB when it is inflated."""
    packer = zlib.compressobj(9)
    packed = b"".join([*(packer.compress(bytes(2**24)) for _ in range(24)), packer.flush()])
    upload = tmp_path / "upload.tif"
    limits = ServeLimits(memory=0.25)
    one = Worker(ServedNetworks(page_networks[0], "none", device="cpu", threads=1), limits)
    one.start()
    try:
        for content, fits in ((packed, False), (zlib.compress(bytes(2 * 64 * 64)), True)):
            upload.write_bytes(tiff_head(64, 16, content, inflates=True))
            task = {"upload": str(upload), "name": "a.tif", "kind": "auto"}
            if fits:
                assert one.run(task)["kind"] == "scene"
                continue
            with pytest.raises(Refused, match=r"holds more than its size|memory") as refused:
                one.run(task)
            assert refused.value.status in (422, 500)
    finally:
        one.stop()


def test_a_process_that_is_not_ready_in_time_is_ended(
    page_networks: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve_work, "START_SECONDS", 0.01)  # instead of minutes of waiting
    limits = ServeLimits()
    slow = Worker(ServedNetworks(page_networks[0], "none", device="cpu", threads=1), limits)
    with pytest.raises(UserError, match=r"not ready after 0\.01 seconds"):
        slow.start()
    assert slow.process and not slow.process.is_alive()


def test_a_process_that_could_not_be_started_is_started_again(
    page_networks: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    limits, tries = ServeLimits(), list[int]()
    workers = Workers(ServedNetworks(page_networks[0], "none", device="cpu", threads=1), limits)

    def no_room(self: Worker) -> Any:
        tries.append(1)
        raise RuntimeError("can't start new thread")

    async def twice() -> None:
        for _ in range(2):
            with pytest.raises(RuntimeError, match="new thread"):
                await asyncio.wait_for(workers.run({}), 10)

    monkeypatch.setattr(Worker, "start", no_room)  # the machine itself would have to be out of threads
    asyncio.run(twice())
    assert len(tries) >= 3


def test_a_network_that_cannot_be_opened_is_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is nothing at"):
        Worker(ServedNetworks(tmp_path / "none"), ServeLimits()).start()


def test_a_taken_port_is_reported_before_networks_are_opened(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"Cannot listen on 127.0.0.1, port {port}"):
            serve(ServedNetworks(tmp_path / "none"), port=port)


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.slow
def test_the_server_ends_on_a_signal_and_leaves_no_files(
    page_networks: tuple[Path, Path], tmp_path: Path, ending: signal.Signals, wait_until: Callable[..., None]
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(SRC), "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    arguments = [str(page_networks[0]), "--port", "0", "--device", "cpu", "--limits.kept", "3"]
    with subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stdout
        found = next(filter(None, (re.search(r"http://127\.0\.0\.1:(\d+)/", line) for line in server.stdout)))
        connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=60)
        connection.request("POST", "/classify?name=a.png", encoded(noise()))
        answer = json.loads(connection.getresponse().read())
        assert list(answer["networks"]) == ["student"]
        (store,) = tmp_path.glob("scenedistill-serve-*")
        assert store.stat().st_mode & 0o077 == 0, "others could read it"
        connection.close()
        server.send_signal(ending)
        assert server.wait(60) in (0, -ending)
    assert not list(tmp_path.glob("scenedistill-serve-*"))


# who may ask


def ask_guard(guard: Guard, method: str = "GET", **headers: str) -> int:
    """The status that a request with these headers gets; 200 is the guarded application's."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    fields = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    scope = {"type": "http", "method": method, "path": "/", "headers": fields}
    asyncio.run(guard(scope, lambda: None, send))  # type: ignore[arg-type, return-value]
    assert {name.decode(): value.decode() for name, value in sent[0]["headers"]}.items() >= SECURITY_HEADERS.items()
    return int(sent[0]["status"])


async def fine(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


@pytest.mark.parametrize(
    ("listen", "host", "status"),
    [
        ("127.0.0.1", "localhost:8000", 200),
        ("127.0.0.1", "LOCALHOST", 200),
        ("127.0.0.1", "127.0.0.1:9999", 200),
        ("127.0.0.1", "[::1]:8000", 200),
        ("127.0.0.1", "scenes.example:8000", 200),
        ("127.0.0.1", "evil.example", 403),
        ("127.0.0.1", "localhost.evil.example", 403),
        ("127.0.0.1", "127.0.0.1.evil.example", 403),
        ("127.0.0.1", "192.168.1.5:8000", 403),
        ("127.0.0.1", "evil.example@localhost", 403),
        ("127.0.0.1", "localhost/evil", 403),
        ("127.0.0.1", "[::1", 403),
        ("127.0.0.1", "", 403),
        ("0.0.0.0", "192.168.1.5:8000", 200),
        ("0.0.0.0", "evil.example", 403),
        ("", "evil.example@localhost", 403),
    ],
)
def test_only_requests_to_its_own_host_names_are_served(listen: str, host: str, status: int) -> None:
    assert ask_guard(Guard(fine, listen, ("scenes.example",)), host=host) == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),  # a program, not a browser
        ({"origin": "http://localhost:8000", "sec_fetch_site": "same-origin"}, 200),
        ({"origin": "http://localhost:3000"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "file://localhost:8000"}, 403),
        ({"origin": "http://["}, 403),
        ({"sec_fetch_site": "cross-site"}, 403),
        ({"sec_fetch_site": "same-site"}, 403),
    ],
)
def test_only_its_own_page_may_post_to_it(headers: dict[str, str], status: int) -> None:
    assert ask_guard(Guard(fine, "127.0.0.1"), "POST", host="localhost:8000", **headers) == status


@pytest.mark.parametrize(
    "path",
    [
        *("/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/..%2f..%2fetc%2fpasswd", "/index.html"),
        *("/page/app.js", "/serve.py", "/results/", "/results/x/result.csv", "/results/x/..%2f..%2fresult.csv"),
        *("/results/%2e%2e/result.csv", "/results/x/%00", "/docs", "/openapi.json"),
    ],
)
def test_no_other_file_is_reachable(page: Any, path: str) -> None:
    status, answer, headers = page.call("GET", path)
    assert status == 404 and list(answer) == ["error"]
    assert headers.items() >= SECURITY_HEADERS.items() and "access-control-allow-origin" not in headers


def test_a_result_gives_no_other_file_of_its_folder(page: Any) -> None:
    answer = page.call("POST", "/classify?name=a.png", encoded(noise()))[1]
    token = answer["downloads"]["result.csv"].split("/")[1]
    for name in ("upload.png", "../result.csv", "%2e%2e%2f" + token + "%2fresult.csv", "result.csv/", "."):
        assert page.call("GET", f"/results/{token}/{name}")[0] in (307, 404)


def test_the_page_and_its_parts_are_served_as_they_are(page: Any) -> None:
    for path, kind in {"/": "html", "/app.js": "javascript", "/map.js": "javascript", "/style.css": "css"}.items():
        status, content, headers = page.call("GET", path)
        assert status == 200 and kind in headers["content-type"] and content
        assert not re.search(rb"https?://(?!www\.w3\.org)", content), f"{path} names another server"
        assert headers.items() >= SECURITY_HEADERS.items()
    assert page.call("DELETE", "/")[0] == 405


def test_only_own_plain_files_are_kept_and_only_for_a_while() -> None:
    async def use() -> None:
        store = ResultStore(ServeLimits(kept=2, minutes=0.1 / 60))
        try:
            tokens = []
            for _ in range(3):
                with store.folder() as folder:
                    (folder / "result.json").write_text("{}")
                    (folder / "result.csv").symlink_to("/etc/hostname")
                    (folder / "upload.png").write_text("x")
                    (folder / "inner").mkdir()
                    kept = store.keep(folder, ["result.json", "result.csv", "upload.png"])
                assert list(kept) == ["result.json"] and [path.name for path in folder.iterdir()] == ["result.json"]
                tokens.append(folder.name)
            assert sorted(path.name for path in store.root.iterdir()) == sorted(tokens[1:])
            with pytest.raises(Refused, match="no longer kept"):
                store.find(tokens[0], "result.json")
            assert store.find(tokens[2], "result.json").read_text() == "{}"
            await asyncio.sleep(0.3)
            assert not list(store.root.iterdir())
        finally:
            store.close()
        assert not store.root.exists()

    asyncio.run(use())


def test_kept_results_take_no_more_disk_than_they_may() -> None:
    async def use() -> None:
        store = ResultStore(ServeLimits(kept_megabytes=2.5))
        try:
            tokens = []
            for size in (1, 1, 1, 4):
                with store.folder() as folder:
                    (folder / "result.json").write_bytes(bytes(size * 2**20))
                    store.keep(folder, ["result.json"])
                tokens.append(folder.name)
                if len(tokens) == 3:
                    assert list(store.results) == tokens[1:]
            assert [path.name for path in store.root.iterdir()] == tokens[3:], "the newest stays however large"
        finally:
            store.close()

    asyncio.run(use())


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("a b.png", "a b.png"),
        ("C:\\pictures\\a.png", "a.png"),
        ("../../etc/passwd", "passwd"),
        ("", "upload"),
        ("x\r\n\x1b[2J.png", "x[2J.png"),
        ("=cmd()", "cmd()"),
        ("n" * 300, "n" * 100),
    ],
)
def test_names_are_shown_without_paths_or_control_characters(given: str, shown: str) -> None:
    assert shown_name(given) == shown


def test_the_kind_of_an_upload_follows_from_its_content() -> None:
    assert image_kind(encoded(noise())[:12], "a.jpg") == "png"
    assert image_kind(encoded(noise(), "WEBP")[:12], "a") == "webp"
    assert image_kind(tiff_bytes(noise(), bigtiff=True)[:12], "a") == "tif"
    assert image_kind(tiff_bytes(noise(), byteorder=">")[:12], "a") == "tif"


@pytest.mark.parametrize(
    "wrong",
    [
        *({"megabytes": 0}, {"parallel": 0}, {"waiting": -1}, {"seconds": -1.0}),
        *({"megabytes": float("inf")}, {"seconds": float("nan")}),
    ],
)
def test_limits_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"limits.{next(iter(wrong))}: found"):
        ServeLimits(**wrong)


# maps


def geotiff(path: Path, pixels: np.ndarray) -> bytes:
    rasterio = pytest.importorskip("rasterio", reason="needs rasterio: pip install -e '.[use]'")
    height, width, bands = pixels.shape
    place = rasterio.transform.from_origin(500_000, 5_400_000, 2, 2)
    with rasterio.open(
        path, "w", "GTiff", width, height, bands, crs="EPSG:32632", transform=place, dtype="uint8", compress="deflate"
    ) as raster:
        raster.write(np.moveaxis(pixels, -1, 0))
    return path.read_bytes()


def grid_of(answer: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Classes and confidence as the page gets them."""
    shape = (answer["grid"]["rows"], answer["grid"]["columns"])
    labels = np.frombuffer(base64.b64decode(answer["grid"]["classes"]), "<u2").reshape(shape)
    confidence = np.frombuffer(base64.b64decode(answer["grid"]["confidence"]), np.uint8).reshape(shape)
    return labels.astype(int) - 1, confidence / 255


def test_a_geotiff_becomes_a_map_as_predicting_its_windows_does(
    page: Any, models: dict[str, SceneModel], tmp_path: Path
) -> None:
    pixels = np.concatenate([noise(192, 96, seed) // (1 + seed) for seed in range(3)], axis=1)
    status, answer, _ = page.call("POST", "/classify?name=town.tif", geotiff(tmp_path / "a.tif", pixels))
    assert status == 200, answer
    assert answer["kind"] == "map" and (answer["width"], answer["height"]) == (288, 192)
    labels, confidence = grid_of(answer)
    windows = [pixels[row : row + 96, column : column + 96] for row in (0, 96) for column in (0, 96, 192)]
    expected = models["student"].predict(windows).probabilities
    assert labels.ravel().tolist() == expected.argmax(1).tolist()
    assert confidence.ravel() == pytest.approx(expected.max(1), abs=0.006)
    assert (answer["grid"]["cell_width"], answer["grid"]["cell_height"]) == (96, 96)
    assert sum(one["share"] for one in answer["legend"]) == pytest.approx(1)
    assert answer["legend"][0]["name"] == PAGE_CLASSES[np.bincount(labels.ravel()).argmax()]
    assert answer["transform"] == [2, 0, 500_000, 0, -2, 5_400_000] and answer["geographic"] is False
    assert set(answer["downloads"]) == {"classes.gpkg", "classes.tif", "result.csv", "result.json"}
    import pyogrio
    import rasterio

    for name in answer["downloads"]:
        content = page.call("GET", f"/{answer['downloads'][name]}")[1]
        (tmp_path / name).write_bytes(content)
        assert str(page.store).encode() not in content
    with rasterio.open(tmp_path / "classes.tif") as raster:
        assert raster.read(1).ravel().tolist() == labels.ravel().tolist() and raster.crs == "EPSG:32632"
    polygons = pyogrio.raw.read(tmp_path / "classes.gpkg", layer="scenes", columns=["class"])[3][0]
    assert polygons.tolist() == [PAGE_CLASSES[label] for label in labels.ravel()]
    rows = list(csv.DictReader((tmp_path / "result.csv").read_text(encoding="utf-8").splitlines()))
    assert (float(rows[1]["x"]), float(rows[1]["y"])) == (500_000 + 288, 5_400_000 - 96)


def test_window_and_overlap_of_a_map_can_be_chosen(page: Any, tmp_path: Path) -> None:
    body = geotiff(tmp_path / "a.tif", noise(100, 130))
    answer = page.call("POST", "/classify?name=a.tif&window=40&overlap=0.5", body)[1]
    assert (answer["grid"]["rows"], answer["grid"]["columns"]) == (5, 7)  # steps of 20, the last one cut
    assert page.call("POST", "/classify?name=a.tif&kind=scene", body)[1]["kind"] == "scene"
    status, answer, _ = page.call("POST", "/classify?name=a.png&kind=map&window=20", encoded(noise()))
    assert status == 200 and answer["kind"] == "map" and answer["transform"] is None
    assert (answer["grid"]["cell_width"], answer["grid"]["cell_height"]) == (20, 20)
    webp = page.call("POST", "/classify?name=a.webp&kind=map", encoded(noise(), "WEBP"))
    assert webp[0] == 422 and "a.webp cannot be a map" in webp[1]["error"]


def test_a_map_of_too_many_cells_is_refused_before_it_is_made(page: Any) -> None:
    body, before = tiff_bytes(np.zeros((900, 900), np.uint8), compression="zlib"), page.folders()
    status, answer, _ = page.call("POST", "/classify?name=a.tif&kind=map&window=8&overlap=0.75", body)
    assert status == 422 and "would have 202,500 cells; the limit of this page is 100,000" in answer["error"]
    assert page.folders() == before


def test_a_disguised_vrt_is_not_opened_as_a_map(page: Any, tmp_path: Path) -> None:
    """GDAL finds a VRT wherever its first word stands among the first bytes; a JPEG may hold it in a comment."""
    secret = tmp_path / "secret.tif"
    geotiff(secret, noise(64, 64))
    vrt = "<VRTDataset rasterXSize='64' rasterYSize='64'><VRTRasterBand dataType='Byte' band='1'><SimpleSource>"
    vrt += f"<SourceFilename>{secret}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    for head, name in ((b"\xff\xd8\xff\xfe<<", "a.jpg"), (b"II*\0", "a.tif"), (b"\x89PNG\r\n\x1a\n", "a.png")):
        for kind in ("auto", "map"):
            status, answer, _ = page.call("POST", f"/classify?name={name}&kind={kind}", head + vrt.encode())
            assert status == 422 and list(answer) == ["error"], name


def test_holes_of_a_raster_are_left_out_of_the_map(page: Any, tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio", reason="needs rasterio: pip install -e '.[use]'")
    pixels = noise(96, 192) | 1
    pixels[:, 96:] = 0
    geotiff(tmp_path / "a.tif", pixels)
    with rasterio.open(tmp_path / "a.tif", "r+") as raster:
        raster.nodata = 0
    answer = page.call("POST", "/classify?name=a.tif", (tmp_path / "a.tif").read_bytes())[1]
    labels, confidence = grid_of(answer)
    assert labels[0, 0] >= 0 and labels[0, 1] == -1 and confidence[0, 1] == 0
    assert [one["share"] for one in answer["legend"]] == [1]
    picture = Image.open(io.BytesIO(base64.b64decode(answer["preview"].split(",")[1])))
    alpha = np.asarray(picture.convert("RGBA"))[:, :, 3]
    assert alpha[:, :90].min() > 250 and alpha[:, 100:].max() < 5


@pytest.mark.parametrize("kind", ["auto", "scene", "map"])
def test_a_tiff_that_leads_back_to_itself_is_refused_at_once(page: Any, kind: str) -> None:
    sound = bytearray(tiff_bytes(np.zeros((8, 8), np.uint8), photometric="minisblack", metadata=None))
    (first,) = struct.unpack_from("<I", sound, 4)
    (count,) = struct.unpack_from("<H", sound, first)
    struct.pack_into("<I", sound, first + 2 + 12 * count, first)
    started = time.monotonic()
    status, answer, _ = page.call("POST", f"/classify?name=a.tif&kind={kind}", bytes(sound))
    assert status == 422 and "the file is damaged" in answer["error"], answer
    assert time.monotonic() - started < 10
