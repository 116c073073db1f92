"""A raster is read alone: no address is asked, no other file is read, unless its user says so."""

from __future__ import annotations

import http.server
import multiprocessing
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from queue import Empty
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from scenedistill.core.errors import UserError
from scenedistill.data.images.read import read_image

rasterio = pytest.importorskip("rasterio", reason="needs rasterio: pip install -e '.[use]'")

from rasterio.shutil import copy as copy_raster
from rasterio.vrt import WarpedVRT

from scenedistill.data.raster.read import open_raster, raster_info, read_pixels
from scenedistill.data.raster.sources import safe_drivers

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
GREY = (np.add.outer(np.arange(40) * 3, np.arange(48) * 2) % 256).astype(np.uint8)


def write(path: Path, pixels: np.ndarray = GREY, **more: Any) -> Path:
    height, width = pixels.shape
    given = {"driver": "GTiff", "count": 1, "height": height, "width": width, "dtype": pixels.dtype, **more}
    with rasterio.open(path, "w", **given) as file:
        file.write(pixels, 1)
    return path


def vrt(path: Path, source: str, *, band: str = "", relative: int = 1, inside: str = "", root: str = "") -> Path:
    """A VRT of one band by hand."""
    named = f'<SourceFilename relativeToVRT="{relative}">{source}</SourceFilename>'
    simple = f"<SimpleSource>{named}<SourceBand>1</SourceBand></SimpleSource>" if not band else named
    path.write_text(
        f'<VRTDataset rasterXSize="48" rasterYSize="40"{root}>{inside}'
        f'<VRTRasterBand dataType="Byte" band="1"{band}>{simple}</VRTRasterBand></VRTDataset>'
    )
    return path


class _Counted(http.server.BaseHTTPRequestHandler):
    asked: Any

    def do_GET(self) -> None:
        self.asked.put(self.path)
        self.send_error(404)

    do_HEAD = do_GET

    def log_message(self, *given: Any) -> None:
        pass


def _serve(port: Any, asked: Any) -> None:
    _Counted.asked = asked
    with http.server.HTTPServer(("127.0.0.1", 0), _Counted) as server:
        port.put(server.server_port)
        server.serve_forever()


@pytest.fixture(scope="module")
def network() -> Iterator[tuple[int, Any]]:
    """A port of this machine and the paths it is asked for; in a process of its own, as GDAL holds on to this one."""
    context = multiprocessing.get_context("spawn")
    port, asked = context.Queue(), context.Queue()
    process = context.Process(target=_serve, args=(port, asked), daemon=True)
    process.start()
    yield port.get(timeout=60), asked
    process.terminate()
    process.join()


def asked_of(asked: Any) -> list[str]:
    found = []
    while True:
        try:
            found.append(asked.get(timeout=0.3))
        except Empty:
            return found


WMS = (
    '<GDAL_WMS><Service name="TMS"><ServerUrl>http://127.0.0.1:{port}/${{z}}</ServerUrl></Service><DataWindow>'
    "<UpperLeftX>-2e7</UpperLeftX><UpperLeftY>2e7</UpperLeftY><LowerRightX>2e7</LowerRightX><LowerRightY>-2e7"
    "</LowerRightY><SizeX>48</SizeX><SizeY>40</SizeY><TileLevel>0</TileLevel></DataWindow><BandsCount>1</BandsCount>"
    "<MaxConnections>1</MaxConnections><Timeout>2</Timeout></GDAL_WMS>"
)


@pytest.mark.parametrize("kind", ["vsicurl", "http", "streaming", "inner", "tif", "wms", "wms source", "wms in a tif"])
def test_no_network_address_is_opened(tmp_path: Path, network: tuple[int, Any], kind: str) -> None:
    port, asked = network
    address = f"http://127.0.0.1:{port}/{kind.replace(' ', '')}.tif"
    write(tmp_path / "sound.tif")
    path = tmp_path / "a.vrt"
    if kind == "wms":
        path = tmp_path / "a.xml"
        path.write_text(WMS.format(port=port))
    elif kind == "wms source":
        (tmp_path / "b.tif").write_text(WMS.format(port=port))
        vrt(path, "b.tif")
    elif kind == "wms in a tif":
        path = tmp_path / "a.tif"
        path.write_text(WMS.format(port=port))
    elif kind == "inner":
        vrt(tmp_path / "b.vrt", f"/vsicurl/{address}", relative=0)
        vrt(path, "b.vrt")
    elif kind == "tif":
        path = vrt(tmp_path / "a.tif", f"/vsicurl/{address}", relative=0)
    else:
        prefix = {"vsicurl": "/vsicurl/", "http": "", "streaming": "/vsicurl_streaming/"}[kind]
        vrt(path, f"{prefix}{address}", relative=0)
    with pytest.raises(UserError) as caught:
        open_raster(path)
    assert len(str(caught.value).splitlines()) == 1
    if kind in ("vsicurl", "http", "streaming", "inner"):
        assert "--vrt_sources '[any]'" in str(caught.value)
    assert asked_of(asked) == []


def test_the_source_any_allows_network_addresses(tmp_path: Path, network: tuple[int, Any]) -> None:
    port, asked = network
    path = vrt(tmp_path / "a.vrt", f"/vsicurl/http://127.0.0.1:{port}/wanted.tif", relative=0)
    with open_raster(path, (), ["any"]) as raster, pytest.raises(UserError):
        read_pixels(raster, raster_info(raster, 3), 0, 0, 40, 48)
    assert "/wanted.tif" in asked_of(asked)


RAW = ' subClass="VRTRawRasterBand"'
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a raw band": ({"band": RAW}, "has a VRTRawRasterBand"),
    "a raw band within a mask": (
        {"inside": f"<MaskBand><VRTRasterBand{RAW}><SourceFilename>a.tif</SourceFilename></VRTRasterBand></MaskBand>"},
        "has a VRTRawRasterBand",
    ),
    "a processed dataset": ({"root": ' subClass="VRTProcessedDataset"'}, "has a VRTProcessedDataset"),
    "code": ({"inside": "<PixelFunctionCode>import os</PixelFunctionCode>"}, "has a PixelFunctionCode"),
    "geolocation": (
        {"inside": '<Metadata domain="GEOLOCATION"><MDI key="X_DATASET">/etc/passwd</MDI></Metadata>'},
        "has the entry X_DATASET",
    ),
    "overviews": (
        {"inside": '<Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">/etc/passwd</MDI></Metadata>'},
        "has the entry OVERVIEW_FILE",
    ),
    "a part of a file": ({"source": "GTIFF_DIR:1:a.tif"}, "names 'GTIFF_DIR:1:a.tif', which is no file"),
    "memory": ({"source": "MEM:::DATAPOINTER=1,PIXELS=4,LINES=4"}, "which is no file"),
    "another VRT as text": ({"source": "&lt;VRTDataset/&gt;"}, "which is no file"),
    "another VRT as a name": ({"source": "vrt://a.tif"}, "which is no file"),
    "an archive": ({"source": "/vsizip/a.zip/a.tif"}, "which is no file"),
    "nothing": ({"source": ""}, "which is no file"),
    "text": ({"source": "notes.txt"}, "which may name further files"),
    # GDAL compares names whatever their case, knows no namespaces, and takes an element for an attribute of its name
    "a raw band in lower case": ({"band": ' subclass="VRTRawRasterBand"'}, "has a VRTRawRasterBand"),
    "a raw band as an element": ({"inside": "<subClass>VRTRawRasterBand</subClass>"}, "has a subClass"),
    "a file in capitals": (
        {"inside": '<SOURCEFILENAME relativetovrt="1">/vsicurl/http://a/b.tif</SOURCEFILENAME>'},
        "which is no file",
    ),
    "names in a namespace": ({"root": ' xmlns="x"', "source": "/vsicurl/http://a/b.tif"}, "which is no file"),
    "neither relative nor not": ({"relative": 2}, "relativeToVRT='2'"),
    "text that is not ASCII": ({"source": "service.xml"}, "which may name further files"),
    "an index of tiles": ({"source": "index.gti.gpkg"}, "which may name further files"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_vrt_reads_no_more_than_rasters(tmp_path: Path, name: str) -> None:
    more, reason = REFUSED[name]
    write(tmp_path / "a.tif")
    (tmp_path / "notes.txt").write_text("DATA = /etc/passwd\n")
    (tmp_path / "service.xml").write_text("<GDAL_WMS><!-- é --><Service/></GDAL_WMS>", encoding="utf-8")
    (tmp_path / "index.gti.gpkg").write_bytes(b"SQLite format 3\0" + bytes(100))
    vrt(tmp_path / "a.vrt", **{"source": "a.tif", **more})
    with pytest.raises(UserError, match=re.escape(reason)) as caught:
        open_raster(tmp_path / "a.vrt")
    assert str(caught.value).endswith("If you trust it, give --vrt_sources '[any]'.")
    assert safe_drivers(tmp_path / "a.vrt", ["any"]) == ("VRT",)


@pytest.mark.parametrize("way", ["up", "absolute", "link", "inner", "warped"])
def test_a_vrt_names_files_below_its_folder_and_those_of_its_user(tmp_path: Path, way: str) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    write(outside / "b.tif")
    path = inside / "a.vrt"
    if way == "up":
        vrt(path, "../outside/b.tif")
    elif way == "absolute":
        vrt(path, str(outside / "b.tif"), relative=0)
    elif way == "link":
        (inside / "c.tif").symlink_to(outside / "b.tif")
        vrt(path, "c.tif")
    elif way == "inner":
        vrt(inside / "b.vrt", "../outside/b.tif")
        vrt(path, "b.vrt")
    else:
        place = rasterio.Affine(1, 0, 0, 0, -1, 0)
        write(outside / "b.tif", crs="EPSG:32632", transform=place)
        with rasterio.open(outside / "b.tif") as source, WarpedVRT(source) as warped:
            copy_raster(warped, path, driver="VRT")
        assert "VRTWarpedDataset" in path.read_text()
    with pytest.raises(UserError, match=r"which lies outside its folder. If that is meant: --vrt_sources"):
        open_raster(path)
    with open_raster(path, (), [str(outside)]) as raster:
        np.testing.assert_array_equal(raster.read(1), GREY)


@pytest.mark.parametrize("way", ["below", "nested", "of copies"])
def test_a_mosaic_of_files_below_is_opened(tmp_path: Path, way: str) -> None:
    (tmp_path / "tiles").mkdir()
    write(tmp_path / "tiles" / "b.tif")
    if way == "nested":
        vrt(tmp_path / "tiles" / "b.vrt", "b.tif")
    if way == "of copies":
        copy_raster(str(tmp_path / "tiles" / "b.tif"), str(tmp_path / "a.vrt"), driver="VRT")
    else:
        vrt(tmp_path / "a.vrt", "tiles/b.vrt" if way == "nested" else "tiles/b.tif")
    with open_raster(tmp_path / "a.vrt") as raster:
        np.testing.assert_array_equal(raster.read(1), GREY)


def test_vrts_that_refer_to_each_other_are_refused(tmp_path: Path) -> None:
    vrt(tmp_path / "a.vrt", "b.vrt")
    vrt(tmp_path / "b.vrt", "a.vrt")
    with pytest.raises(UserError, match="more than 8 deep"):
        open_raster(tmp_path / "a.vrt")


@pytest.mark.parametrize(
    "text", ["", "<VRTDataset", "<VRTDataset>" * 2000, '<!DOCTYPE a [<!ENTITY b "c">]><VRTDataset>&b;&c;']
)
def test_a_damaged_vrt_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.vrt").write_text(text)
    with pytest.raises(UserError, match=r"a\.vrt"):
        open_raster(tmp_path / "a.vrt")


def test_nested_xml_entities_are_refused_quickly(tmp_path: Path) -> None:
    lines = ['<!ENTITY a0 "xxxxxxxxxx">', *(f'<!ENTITY a{n + 1} "{f"&a{n};" * 10}">' for n in range(12))]
    (tmp_path / "a.vrt").write_text(f"<!DOCTYPE V [{''.join(lines)}]><VRTDataset><b>&a12;</b></VRTDataset>")
    started = time.monotonic()
    with pytest.raises(UserError, match="cannot be read as a VRT"):
        open_raster(tmp_path / "a.vrt")
    assert time.monotonic() - started < 5


def test_the_driver_is_the_one_of_the_content(tmp_path: Path) -> None:
    shutil.copy(write(tmp_path / "a.tif"), tmp_path / "a.png")
    assert safe_drivers(tmp_path / "a.png") == ("GTiff",)
    vrt(tmp_path / "b.tif", "a.tif")
    with pytest.raises(UserError, match=r"b\.tif is a VRT, which only names other files, under another ending"):
        open_raster(tmp_path / "b.tif")
    with open_raster(write(tmp_path / "a.img", driver="HFA")) as raster:
        assert raster.driver == "HFA"
    (tmp_path / "a.ers").write_text("DatasetHeader Begin\nDataFile = /etc/passwd\nDatasetHeader End\n")
    with pytest.raises(UserError, match="cannot be opened as a raster"):
        open_raster(tmp_path / "a.ers")


def test_an_imagine_file_takes_its_pixels_from_its_own_raw_file_alone(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    file = write(tmp_path / "sub" / "a.img", driver="HFA", USE_SPILL="YES")
    with open_raster(file) as raster:
        assert [Path(name).name for name in raster.files] == ["a.img", "a.ige"] and (raster.read(1) == GREY).all()
    (tmp_path / "s").write_bytes(b"secret" * 10_000)
    (tmp_path / "sub" / "b.ie").write_bytes(b"secret" * 10_000)
    for other in (b"../s\0", b"b.ie\0"):
        changed = tmp_path / "sub" / "changed.img"
        changed.write_bytes(file.read_bytes().replace(b"a.ige", other))
        with pytest.raises(
            UserError, match=r"changed\.img names .*, which is not called after it.*--vrt_sources '\[any\]'"
        ):
            open_raster(changed)
    open_raster(changed, (), ["any"]).close()
    with pytest.raises(UserError, match="which may name further files"):
        open_raster(vrt(tmp_path / "b.vrt", "sub/changed.img"))


@pytest.mark.parametrize("before", [b"", b"\0" * 512, b"<HDF_UserBlock>"])
def test_hdf5_which_may_name_further_files_is_refused(tmp_path: Path, before: bytes) -> None:
    (tmp_path / "a.nc").write_bytes(before + b"\x89HDF\r\n\x1a\n" + b"\0" * 100)
    with pytest.raises(UserError, match=r"a\.nc is HDF5 .*--vrt_sources '\[any\]'"):
        open_raster(tmp_path / "a.nc")
    with pytest.raises(UserError, match="which may name further files"):
        open_raster(vrt(tmp_path / "a.vrt", "a.nc"))
    with pytest.raises(UserError, match="cannot be opened as a raster"):
        open_raster(tmp_path / "a.nc", (), ["any"])


def test_netcdf_of_before_hdf5_is_read(tmp_path: Path) -> None:
    copy_raster(write(tmp_path / "a.tif"), tmp_path / "a.nc", driver="netCDF", FORMAT="NC")
    with open_raster(tmp_path / "a.nc") as raster:
        assert raster.driver == "netCDF" and raster.read(1).shape == GREY.shape


@pytest.mark.parametrize("key", ["OVERVIEW_FILE", "overview_file"])  # GDAL ignores case
@pytest.mark.parametrize("drivers", [(), ("GTiff",)])
def test_overviews_are_not_taken_from_another_file(tmp_path: Path, key: str, drivers: tuple[str, ...]) -> None:
    file, other = write(tmp_path / "a.tif"), write(tmp_path / "other.tif", GREY[::2, ::2])
    named = f'<MDI key="{key}">{other}</MDI>'
    (tmp_path / "a.tif.aux.xml").write_text(f'<PAMDataset><Metadata domain="OVERVIEWS">{named}</Metadata></PAMDataset>')
    with pytest.raises(UserError, match=r"a\.tif names .*other\.tif' for its overviews"):
        open_raster(file, drivers)


def test_an_image_in_one_huge_tile_is_refused_before_it_is_read(tmp_path: Path) -> None:
    write(tmp_path / "a.tif", tiled=True, blockxsize=64, blockysize=64, compress="DEFLATE")
    data = bytearray((tmp_path / "a.tif").read_bytes())
    for code in (322, 323):
        place = data.index(code.to_bytes(2, "little") + b"\x03\0\x01\0\0\0")
        data[place + 2 : place + 12] = b"\x04\0" + (1).to_bytes(4, "little") + (40_128).to_bytes(4, "little")
    (tmp_path / "a.tif").write_bytes(data)
    with pytest.raises(UserError, match=r"blocks of 40,128 x 40,128 pixels, 1,536 MiB, and each is read as a whole"):
        open_raster(tmp_path / "a.tif")


def files_of_one_answer(folder: Path) -> dict[str, Path]:
    deep, signed = GREY.astype(np.uint16) * 100, GREY.astype(np.int16) * 200 - 20_000
    negative: dict[str, Any] = {"photometric": "miniswhite"}
    tifffile.imwrite(folder / "negative8.tif", GREY, **negative)
    tifffile.imwrite(folder / "negative16.tif", deep, **negative)
    tifffile.imwrite(folder / "negative signed.tif", signed, **negative)
    tifffile.imwrite(folder / "negative real.tif", GREY.astype(np.float32), **negative)
    Image.fromarray(GREY > 100).save(folder / "one bit.tif")
    Image.fromarray(GREY > 100).save(folder / "fax.tif", compression="group4")
    Image.fromarray(GREY).quantize(16).save(folder / "palette.tif")
    Image.fromarray(np.stack([GREY, GREY.T.reshape(GREY.shape), 255 - GREY], -1)).convert("CMYK").save(
        folder / "cmyk.tif"
    )
    write(folder / "four bits.tif", GREY // 16, NBITS=4)
    write(folder / "two bits.tif", GREY // 64, NBITS=2)
    write(folder / "negative four bits.tif", GREY // 16, NBITS=4, photometric="MINISWHITE")
    write(folder / "negative twelve bits.tif", deep // 8, NBITS=12, photometric="MINISWHITE")
    return {path.stem: path for path in folder.iterdir()}


@pytest.mark.parametrize("bands", [1, 3])
def test_a_file_gives_one_answer_as_an_image_and_as_a_raster(tmp_path: Path, bands: int) -> None:
    for name, path in files_of_one_answer(tmp_path).items():
        with open_raster(path) as raster:
            pixels, _ = read_pixels(raster, raster_info(raster, bands), 0, 0, raster.height, raster.width)
        difference = np.abs(pixels.astype(int) - read_image(path, bands))
        assert difference.max() <= 2, name


def test_the_values_of_a_stretch_mean_the_same_in_a_negative(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", GREY.astype(np.uint16) * 100, photometric="miniswhite")
    with open_raster(tmp_path / "a.tif") as raster:
        source = raster_info(raster, 1, stretch="42000,60000")
        pixels, _ = read_pixels(raster, source, 0, 0, 40, 48)
    np.testing.assert_array_equal(pixels, read_image(tmp_path / "a.tif", 1, value_range=(42_000, 60_000)))
