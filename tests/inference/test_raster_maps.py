"""Maps of a raster are whole, are of what their record says, and nothing of others is lost for them."""

from __future__ import annotations

import errno
import os
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyogrio", reason="needs pyogrio: pip install -e '.[use]'")
pytest.importorskip("rasterio", reason="needs rasterio: pip install -e '.[use]'")

import pyogrio.raw
import rasterio
import rasterio.shutil

from scenedistill.core.errors import UserError
from scenedistill.inference.raster import maps as raster_maps
from scenedistill.inference.raster.config import RasterConfig
from scenedistill.inference.raster.pipeline import map_raster
from scenedistill.inference.raster.progress import DONE, PROBABILITIES

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
Colours = runpy.run_path(str(Path(__file__).with_name("raster_worker.py")))["Colours"]
NOISE = np.random.default_rng(0).integers(0, 256, (3, 60, 60), dtype=np.uint8)


def write(path: Path, bands: np.ndarray = NOISE, **more: Any) -> Path:
    count, height, width = bands.shape
    path.parent.mkdir(exist_ok=True)
    given = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": bands.dtype}
    with rasterio.open(path, "w", **{**given, **more}) as file:
        file.write(bands)
    return path


def stopped(raster: Path, out: Path, config: RasterConfig) -> int:
    """Begin maps and stop in their midst; how many windows are answered."""

    class Stopping(Colours):  # type: ignore[misc, valid-type]
        def _run(self, images: np.ndarray) -> Any:
            if self.seen:
                raise KeyboardInterrupt
            return super()._run(images)

    with pytest.raises(KeyboardInterrupt):
        map_raster(Stopping(), raster, out, config)
    return done(out)


def done(out: Path) -> int:
    return sum((out / "a_scenes.part" / DONE).read_bytes())


def test_every_region_is_written_for_any_chunk_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raster, tables = write(tmp_path / "a.tif"), []
    for chunk in (20_000, 2, 1):
        monkeypatch.setattr(raster_maps, "CHUNK", chunk)
        result = map_raster(Colours(), raster, tmp_path / str(chunk), RasterConfig(window=10, regions=True))
        assert result.regions
        meta, _, shapes, values = pyogrio.raw.read(result.regions, layer="regions")
        fields = dict(zip(meta["fields"], values, strict=True))
        assert fields["cells"].sum() == sum(result.cells.values()) == 36 and len(shapes) > 4
        tables.append((fields["cells"].tolist(), fields["class"].tolist(), [bytes(shape) for shape in shapes]))
    assert tables[0] == tables[1] == tables[2]


def test_checking_finished_maps_keeps_unfinished_work_of_other_settings(tmp_path: Path) -> None:
    raster, model = write(tmp_path / "a.tif"), Colours()
    one, other = RasterConfig(window=10), RasterConfig(window=6, batch_size=50)
    first = map_raster(model, raster, tmp_path, one)
    kept = stopped(raster, tmp_path, other)
    assert kept == 50
    assert map_raster(model, raster, tmp_path, one) == first and done(tmp_path) == kept
    assert map_raster(Colours(), raster, tmp_path, other).resumed == kept


def test_no_record_exists_while_maps_are_replaced(tmp_path: Path) -> None:
    raster, one, other = write(tmp_path / "a.tif"), RasterConfig(window=10), RasterConfig(window=6)
    first = map_raster(Colours(), raster, tmp_path, one)
    assert first.classes
    first.classes.unlink()
    (first.classes / "in the way").mkdir(parents=True)  # stops the work when some maps are in their places
    with pytest.raises(UserError, match="cannot be mapped: Is a directory"):
        map_raster(Colours(), raster, tmp_path, other)
    assert not first.record.exists()
    (first.classes / "in the way").rmdir()
    first.classes.rmdir()
    model = Colours()
    again = map_raster(model, raster, tmp_path, other)
    assert again.resumed == again.windows == 100 and model.seen == 0 and again.record.exists()
    assert map_raster(model, raster, tmp_path, one).windows == model.seen == 36


def test_a_raster_may_have_a_name_too_long_for_a_file(tmp_path: Path) -> None:
    name = f"/vsimem/{300 * 'x'}.tif"  # as the address of a file on a network, with a signature
    with rasterio.open(name, "w", driver="GTiff", count=3, height=60, width=60, dtype="uint8") as file:
        file.write(NOISE)
    result = map_raster(Colours(), name, tmp_path, RasterConfig(window=20))
    assert result.windows == 9 and result.record.name == f"{96 * 'x'}.tif_scenes.json"


def test_unfinished_work_on_another_raster_is_kept(tmp_path: Path) -> None:
    one, two, out = write(tmp_path / "one" / "a.tif"), write(tmp_path / "two" / "a.tif"), tmp_path / "out"
    config = RasterConfig(window=10, batch_size=9)
    kept = stopped(one, out, config)
    for restart in (False, True):
        with pytest.raises(UserError, match=r"unfinished work on another raster, .*one"):
            map_raster(Colours(), two, out, RasterConfig(window=10, restart=restart))
    assert map_raster(Colours(), one, out, config).resumed == kept == 9


def test_a_virtual_raster_has_changed_when_a_file_in_it_has(tmp_path: Path) -> None:
    write(tmp_path / "source.tif")
    for name, source in (("inner.vrt", "source.tif"), ("a.vrt", "inner.vrt")):
        rasterio.shutil.copy(str(tmp_path / source), str(tmp_path / name), driver="VRT")
    model, out, config = Colours(), tmp_path / "out", RasterConfig(window=20)
    for raster in ("inner.vrt", "a.vrt"):
        model.seen = 0
        map_raster(model, tmp_path / raster, out, config)
        assert map_raster(model, tmp_path / raster, out, config).windows == model.seen == 9
        (tmp_path / "source.tif.aux.xml").write_text("<PAMDataset></PAMDataset>")  # as left by a look at it
        map_raster(model, tmp_path / raster, out, config)
        assert model.seen == 9
        stat = (tmp_path / "source.tif").stat()
        os.utime(tmp_path / "source.tif", ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
        map_raster(model, tmp_path / raster, out, config)
        assert model.seen == 18
    stopped(tmp_path / "a.vrt", tmp_path / "other", RasterConfig(window=20, batch_size=4))
    write(tmp_path / "source.tif", NOISE[::-1])
    with pytest.raises(UserError, match="not the same files"):
        map_raster(model, tmp_path / "a.vrt", tmp_path / "other", config)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no disk that is always full")
def test_a_full_disk_is_reported_and_the_work_resumes_later(tmp_path: Path) -> None:
    raster, config = write(tmp_path / "a.tif"), RasterConfig(window=10, batch_size=9)
    kept = stopped(raster, tmp_path, config)
    answers = tmp_path / "a_scenes.part" / PROBABILITIES
    answers.rename(tmp_path / "elsewhere")
    answers.symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"^the disk is full") as caught:
        map_raster(Colours(), raster, tmp_path, config)
    assert isinstance(caught.value.__cause__, OSError) and caught.value.__cause__.errno == errno.ENOSPC
    answers.unlink()
    (tmp_path / "elsewhere").rename(answers)
    assert map_raster(Colours(), raster, tmp_path, config).resumed == kept
