"""Files of small sound kinds with bytes changed: each reader ends in a result or in a `UserError`, soon and small.

The seed of each file is its number, so that a failure can be made again.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import resource
import signal
import struct
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from safetensors.torch import save
from torch import nn

from scenedistill.core.errors import UserError
from scenedistill.data.images.read import UnreadableImage, read_image
from scenedistill.data.images.tiff_heads import check_decoded_size, read_page_headers
from scenedistill.data.scenes import SceneIndex, scan
from scenedistill.data.splits.draw import make_split
from scenedistill.data.splits.files import read_split, write_split
from scenedistill.models.create import build_student
from scenedistill.models.files import NetCard, load_net, save_net
from scenedistill.models.weights.take import load_weights

#: Bounds of one file: seconds, and bytes beyond what the process holds before it. Images have `PIXELS` at most.
SECONDS, BYTES, PIXELS = 20.0, 600 << 20, 4_000_000
NUMBERS = (0, 1, 2, 127, 255, 256, 32_767, 65_535, 2**31 - 1, 2**31, 2**32 - 1)


def changed(sound: bytes, seed: int) -> bytes:
    """A file with one to four changes, half of them in its first bytes, where the sizes stand."""
    random, data = np.random.default_rng(seed), bytearray(sound)
    for _ in range(int(random.integers(1, 5))):
        end = len(data) if random.random() < 0.5 else min(len(data), 256)
        at = int(random.integers(0, max(end, 1)))
        kind = int(random.integers(0, 7))
        if kind == 0:
            data[at : at + 1] = bytes([int(random.integers(0, 256))])
        elif kind == 1:
            data[at : at + 4] = struct.pack(random.choice(["<I", ">I"]), NUMBERS[int(random.integers(len(NUMBERS)))])
        elif kind == 2:
            data[at : at + 2] = struct.pack(random.choice(["<H", ">H"]), NUMBERS[int(random.integers(8))])
        elif kind == 3:
            del data[at:]
        elif kind == 4:
            del data[at : at + int(random.integers(1, 40))]
        elif kind == 5:
            data[at:at] = bytes(random.integers(0, 256, int(random.integers(1, 40)), dtype=np.uint8))
        else:
            data[at:at] = data[at : at + int(random.integers(1, 200))]
    return bytes(data)


class TooLong(BaseException):
    """No reader may take it for a damaged file."""


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Seconds and memory of a block are bounded; what goes beyond them fails the test."""

    def end(signum: int, frame: object) -> None:
        raise TooLong(f"more than {SECONDS:g} seconds")

    before = signal.signal(signal.SIGALRM, end)
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    held = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (held + BYTES, limits[1]))
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_DATA, limits)
        signal.signal(signal.SIGALRM, before)


def outcomes(
    sound: bytes, path: Path, count: int, read: Callable[[Path], object], error: type[Exception] = UserError
) -> int:
    """How many of so many changed files were refused; the reader may raise nothing but `error`."""
    refused = 0
    for seed in range(count):
        path.write_bytes(changed(sound, seed))
        try:
            with bounded():
                read(path)
        except error as problem:
            assert "memory" not in str(problem).lower(), f"file {seed}: {problem}"
            assert len(str(problem).splitlines()) <= 2, f"file {seed}: {problem}"
            refused += 1
        except BaseException as problem:
            raise AssertionError(f"file {seed} ends in {type(problem).__name__}: {problem}") from problem
    return refused


pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="measures its memory in /proc")
RIGHT = np.add.outer(np.arange(24) * 5, np.arange(36) * 3)
COLOUR = np.stack([RIGHT, RIGHT.T.reshape(RIGHT.shape), 255 - RIGHT], -1).astype(np.uint8)


def by_pillow(kind: str, pixels: np.ndarray = COLOUR, **options: Any) -> bytes:
    memory = io.BytesIO()
    Image.fromarray(pixels).save(memory, kind, **options)
    return memory.getvalue()


def by_tifffile(pixels: np.ndarray, **options: Any) -> bytes:
    memory = io.BytesIO()
    tifffile.imwrite(memory, pixels, **options)
    return memory.getvalue()


TIFFS = {
    "deflate": by_pillow("TIFF", compression="tiff_adobe_deflate"),
    "lzw": by_pillow("TIFF", compression="tiff_lzw"),
    "fax": by_pillow("TIFF", RIGHT > 100, compression="group4"),
    "deep": by_tifffile(COLOUR.astype(np.uint16), photometric="rgb", compression="deflate"),
    "tiles": by_tifffile(COLOUR.astype(np.uint16), photometric="rgb", tile=(16, 16), compression="deflate"),
    "pages": by_tifffile(np.moveaxis(COLOUR, -1, 0).astype(np.int16), photometric="minisblack"),
    "real": by_tifffile(RIGHT.astype(np.float32), photometric="miniswhite", compression="lzma"),
    "big": by_tifffile(COLOUR, photometric="rgb", bigtiff=True, byteorder=">", planarconfig="contig"),
}
IMAGES = {
    "jpeg": by_pillow("JPEG"),
    "progressive jpeg": by_pillow("JPEG", progressive=True),
    "png": by_pillow("PNG"),
    "deep png": by_pillow("PNG", RIGHT.astype(np.uint16)),
    "webp": by_pillow("WEBP"),
    **{f"{name} tiff": data for name, data in TIFFS.items()},
}


@pytest.mark.parametrize("name", IMAGES)
def test_damaged_images_are_read_or_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", PIXELS)
    (tmp_path / "sound").write_bytes(IMAGES[name])
    assert read_image(tmp_path / "sound").shape == (24, 36, 3)
    refused = outcomes(IMAGES[name], tmp_path / "a", 60, read_image, UnreadableImage)
    assert refused > 10, "the changes are felt"


@pytest.mark.parametrize("name", TIFFS)
def test_damaged_tiff_headers_are_read_or_refused(name: str, tmp_path: Path) -> None:
    def read(path: Path) -> None:
        check_decoded_size(read_page_headers(path), PIXELS)

    read_heads_only = outcomes(TIFFS[name], tmp_path / "a", 150, read, ValueError)
    assert read_heads_only > 20


@pytest.mark.parametrize("layout", ["csv", "torchgeo", "rsp"])
def test_damaged_split_files_are_read_or_refused(layout: str, tmp_path: Path) -> None:
    classes = ("Äcker", "b", "c")
    paths = tuple(f"{name}/{name}_{number}.jpg" for name in classes for number in range(8))
    index = SceneIndex(Path("/data/toy"), paths, np.repeat([0, 1, 2], 8), classes)
    written = write_split(make_split(index, 0.5, 0), index, tmp_path, layout)  # type: ignore[arg-type]
    sound = written[0].read_bytes()
    assert len(read_split(written[0], index).train) == 12
    assert outcomes(sound, written[0], 250, lambda path: read_split(path, index)) > 50


@pytest.mark.parametrize("separator", [",", ";"])
def test_damaged_manifests_are_read_or_refused(separator: str, tmp_path: Path) -> None:
    text = io.StringIO()
    rows = [(f"{name}/{number}.jpg", name) for name in ("Äcker", "b") for number in range(6)]
    for path, _ in rows:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(b"x")
    csv.writer(text, delimiter=separator).writerows([("path", "label"), *rows])
    (tmp_path / "a.csv").write_text(text.getvalue(), encoding="utf-8")
    assert len(scan(tmp_path / "a.csv")) == 12
    assert outcomes(text.getvalue().encode(), tmp_path / "a.csv", 250, scan) > 50


class Small(nn.Module):
    """A backbone of few bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_damaged_weights_are_loaded_or_refused(ending: str, tmp_path: Path) -> None:
    tensors = Small().state_dict()
    memory = io.BytesIO()
    torch.save({"state_dict": tensors}, memory)
    sound = save(tensors) if ending == "safetensors" else memory.getvalue()
    path = tmp_path / f"a.{ending}"
    path.write_bytes(sound)
    assert load_weights(Small(), str(path)).share == 1
    assert outcomes(sound, path, 150, lambda file: load_weights(Small(), str(file))) > 50


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("network") / "a.safetensors"
    net = build_student("table1_printed", 2, image_size=32)
    save_net(net, NetCard("table1_printed", ("a", "b"), 3, 32), path)
    return path


def test_damaged_network_files_are_loaded_or_refused(network: Path, tmp_path: Path) -> None:
    assert load_net(network)[1].classes == ("a", "b")
    assert outcomes(network.read_bytes(), tmp_path / "a.safetensors", 60, load_net) > 10


VALUES: tuple[object, ...] = (
    None,
    True,
    -1,
    0,
    1,
    2.5,
    1e300,
    10**4,
    10**9,
    10**30,
    "",
    "resnet18",
    "a" * 10**5,
    [],
    ["a"] * 10**5,
    [1],
    {},
)


def test_wrong_values_in_a_network_card_are_loaded_or_refused(network: Path, tmp_path: Path) -> None:
    data = network.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    head = json.loads(data[8 : 8 + length])
    card = json.loads(head["__metadata__"]["scenedistill"])
    started = time.monotonic()
    for key in (*card, "unheard"):
        for value in VALUES:
            fields = {**card, key: value}
            head["__metadata__"]["scenedistill"] = json.dumps(fields)
            text = json.dumps(head).encode()
            (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
            try:
                with bounded():
                    load_net(tmp_path / "a.safetensors")
            except UserError as problem:
                assert "memory" not in str(problem), f"{key}: {value!r:.40}"
            except BaseException as problem:
                raise AssertionError(f"{key}: {value!r:.40} ends in {type(problem).__name__}: {problem}") from problem
    assert time.monotonic() - started < 6 * SECONDS


def test_damaged_onnx_files_are_opened_or_refused(exported_onnx: bytes, tmp_path: Path) -> None:
    from scenedistill.inference.model import open_model

    outcomes(exported_onnx, tmp_path / "a.onnx", 40, open_model)


@pytest.fixture(scope="module")
def exported_onnx() -> bytes:
    """A network as small as the runtime takes it, with the notes of ours."""
    onnx = pytest.importorskip("onnx", reason="needs onnx: pip install -e '.[use]'")
    pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install -e '.[use]'")
    given = onnx.helper.make_tensor_value_info("images", 1, ["b", "h", "w", 3])
    names = ("probabilities", "embedding", "logits")
    wanted = [onnx.helper.make_tensor_value_info(name, 1, ["b", 1, 1, 3]) for name in names]
    nodes = [onnx.helper.make_node("Identity", ["images"], [name]) for name in names]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "g", [given], wanted),
        opset_imports=[onnx.helper.make_opsetid("", 18)],
        ir_version=10,
    )
    entry = model.metadata_props.add()
    entry.key = "scenedistill"
    entry.value = json.dumps({"name": "table1_printed", "classes": ["a", "b"], "bands": 3, "image_size": 32})
    return bytes(model.SerializeToString())


@pytest.mark.parametrize("kind", ["tiles", "strips", "vrt"])
def test_damaged_rasters_are_read_or_refused(kind: str, tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio", reason="needs rasterio: pip install -e '.[use]'")
    from scenedistill.data.raster.read import open_raster, raster_info, read_pixels

    more = {"tiled": True, "blockxsize": 16, "blockysize": 16} if kind == "tiles" else {}
    made = {"driver": "GTiff", "width": 36, "height": 24, "count": 3, "dtype": "uint16", "compress": "deflate"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(tmp_path / "a.tif", "w", **made, **more) as file:
            file.write(np.moveaxis(COLOUR, -1, 0).astype(np.uint16))
    path = tmp_path / ("a.vrt" if kind == "vrt" else "b.tif")
    if kind == "vrt":
        from rasterio.shutil import copy

        copy(str(tmp_path / "a.tif"), str(path), driver="VRT")

    def read(path: Path) -> None:
        with open_raster(path) as raster:
            source = raster_info(raster, 3, stretch="0,255")
            read_pixels(raster, source, 0, 0, min(24, raster.height), min(36, raster.width))

    sound = (path if kind == "vrt" else tmp_path / "a.tif").read_bytes()
    assert outcomes(sound, path, 120, read) > 20
