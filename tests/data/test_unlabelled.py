"""Images without labels: what is found, what is a copy, and what is kept between runs."""

from __future__ import annotations

import os
import pickle
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from scenedistill.core.errors import UserError
from scenedistill.data.batches import SceneBatches
from scenedistill.data.cache import write as cache_build
from scenedistill.data.cache.build import SceneCache, build_cache
from scenedistill.data.images.read import read_scene, squash
from scenedistill.data.scenes import scan
from scenedistill.data.splits.draw import Split, make_split
from scenedistill.data.unlabelled.copies import compute_fingerprints, copies
from scenedistill.data.unlabelled.pool import UnlabelledImages, collect_unlabelled

pytestmark = [pytest.mark.filterwarnings("ignore:Dataset has no geotransform")]
SIZE = 24


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> SceneCache:
    """64 images of four classes."""
    root, rng = tmp_path_factory.mktemp("scenes"), np.random.default_rng(0)
    for number in range(64):
        Image.fromarray(blobs(rng)).save(_made(root / "abcd"[number % 4]) / f"{number}.png")
    return build_cache(scan(root), SIZE, folder=tmp_path_factory.mktemp("labelled"), progress=False)


@pytest.fixture
def split(labelled: SceneCache) -> Split:
    return make_split(labelled.index, 0.5, 0, val_fraction=0.25)


@pytest.fixture
def more(tmp_path: Path) -> Path:
    """A dozen images in folders of folders, in three formats, that are in no class."""
    rng = np.random.default_rng(7)
    for number in range(12):
        folder = tmp_path / "more" / ("a", "b/c", "")[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        scene = Image.fromarray(blobs(rng))
        scene.save(folder / f"{number}.{('jpg', 'png', 'tif')[number // 4]}")
    (tmp_path / "more" / "notes.txt").write_text("no image")
    return tmp_path / "more"


def blobs(rng: np.random.Generator) -> np.ndarray:
    """Smooth blobs of colour around a mean of their own, uint8 `[48, 48, 3]`: no two are alike."""
    colours = rng.integers(60, 190, 3) + rng.normal(0, 25, (6, 6, 3))
    image = Image.fromarray(np.clip(colours, 0, 255).astype(np.uint8)).resize((48, 48), Image.Resampling.BICUBIC)
    return np.asarray(image)


def collect(labelled: SceneCache, *sources: Path, home: Path, **options: Any) -> UnlabelledImages:
    return collect_unlabelled(sources, labelled, cache_dir=home, progress=False, **options)


def original(labelled: SceneCache, positions: np.ndarray, number: int) -> Image.Image:
    return Image.open(labelled.index.root / labelled.index.paths[positions[number]]).convert("RGB")


def test_every_image_of_any_layout_is_there_once_without_a_label(
    labelled: SceneCache, more: Path, tmp_path: Path
) -> None:
    part = collect(labelled, more, home=tmp_path / "home").part
    files = sorted(path for path in more.rglob("*.*") if path.suffix != ".txt")
    wanted = {read_scene(path, SIZE).tobytes() for path in files}
    batch = part.fetch(range(len(part)))
    assert len(part) == 12 and {image.tobytes() for image in batch.images.numpy()} == wanted
    assert batch.labels.tolist() == [-1] * 12 and batch.rows.tolist() == list(range(12))
    assert len(set(part.ids.tolist())) == 12 and (part.ids >= 0).all()
    assert part.image_bytes == 12 * SIZE * SIZE * 3 and part.bands == 3


def test_unlabelled_images_are_batched_and_pickled_like_a_scene_part(
    labelled: SceneCache, more: Path, tmp_path: Path
) -> None:
    part = collect(labelled, more, home=tmp_path / "home").part
    batches = list(SceneBatches(part, [[3, 1], [0]], torch.device("cpu")))
    assert [batch.rows.tolist() for batch in batches] == [[3, 1], [0]]
    assert (batches[0].images[1] == part.fetch([1]).images[0]).all()
    assert [len(batch) for batch in part.batches(5)] == [5, 5, 2]
    again = pickle.loads(pickle.dumps(part))
    assert again.content_hash() == part.content_hash() and (again.fetch([5]).images == part.fetch([5]).images).all()
    assert len(pickle.dumps(part)) < 5_000  # the arrays are not in it


def test_adding_a_folder_moving_and_renaming_leave_the_others_ids(
    labelled: SceneCache, more: Path, tmp_path: Path
) -> None:
    alone = collect(labelled, more / "a", home=tmp_path / "home").part
    both = collect(labelled, more / "b", more / "a", home=tmp_path / "home").part
    assert both.ids[-len(alone) :].tolist() == alone.ids.tolist()
    (more / "a").rename(tmp_path / "elsewhere")
    assert collect(labelled, tmp_path / "elsewhere", home=tmp_path / "home").part.content_hash() == alone.content_hash()


@pytest.mark.parametrize(
    "change",
    [
        lambda image, path: image.save(path.with_suffix(".png")),
        lambda image, path: image.transpose(Image.Transpose.ROTATE_90).save(path.with_suffix(".png")),
        lambda image, path: image.transpose(Image.Transpose.TRANSVERSE).save(path.with_suffix(".tif")),
        lambda image, path: image.save(path.with_suffix(".jpg"), quality=85, subsampling=0),
        lambda image, path: image.resize((96, 96), Image.Resampling.BICUBIC).save(path.with_suffix(".png")),
    ],
    ids=["png", "turned", "flipped", "jpeg", "resized"],
)
def test_a_copy_of_a_held_out_image_is_found_however_it_was_written(
    labelled: SceneCache, split: Split, more: Path, tmp_path: Path, change: Any
) -> None:
    for number in range(4):
        change(original(labelled, split.test, 7 * number), more / "a" / f"test{number}")
    change(original(labelled, split.val, 0), more / "a" / "val")
    change(original(labelled, split.train, 0), more / "a" / "train")
    images = collect(labelled, more, home=tmp_path / "home")
    strict, open_ = images.pool(split), images.pool(split, transductive=True)
    assert len(images.part) == 18 and len(strict) == 12 and len(open_) == 17
    assert "left out: 5 copies of held-out images, 1 copy of a training image" in strict.report
    assert "5 copies of held-out images (validation or test) among them, for the run is transductive" in open_.report
    assert strict.hash != open_.hash
    assert strict.hash == collect(labelled, more, home=tmp_path / "home").pool(split).hash
    # another seed holds out other images: what a copy is was found once
    other = Split(split.test, split.val, split.train, None, None, "other")
    assert "left out: 2 copies of held-out images, 4 copies of training images" in images.pool(other).report


def test_no_image_is_treated_as_a_copy_of_another(labelled: SceneCache, more: Path, tmp_path: Path) -> None:
    assert not len(collect(labelled, more, home=tmp_path / "home").pairs)
    # of one mean colour and one contrast, told apart by what they show alone
    rng = np.random.default_rng(2)
    images = np.stack([rng.permutation(blobs(rng).reshape(-1, 3)).reshape(48, 48, 3) // 8 + 100 for _ in range(200)])
    images += (104 - images.mean((1, 2))).round().astype(np.uint8)[:, None, None]
    pairs = copies(compute_fingerprints(images), images.__getitem__, compute_fingerprints(images), images.__getitem__)
    assert pairs.tolist() == [[row, row] for row in range(200)]


@pytest.mark.slow
@pytest.mark.shared_data
def test_the_real_images_as_jpeg_and_turned_are_found_and_no_others(aid_folder: Path, tmp_path: Path) -> None:
    cache = build_cache(scan(aid_folder), 64, folder=tmp_path / "cache", progress=False)
    rng = np.random.default_rng(0)
    chosen = np.sort(rng.choice(len(cache.index), 120, replace=False))
    for row in chosen:
        image = Image.open(aid_folder / cache.index.paths[row]).transpose(Image.Transpose(int(rng.integers(0, 7))))
        image.save(_made(tmp_path / "more") / f"{row:05d}.jpg", quality=75)
    images = collect_unlabelled([tmp_path / "more"], cache, cache_dir=tmp_path, progress=False)
    found = {(int(chosen[row]), int(other)) for row, other in images.pairs}
    assert {row for row, _ in found} == set(chosen.tolist())
    # a few of AID's images are twice in it
    assert sum(a != b for a, b in found) <= 2


def test_equal_images_are_there_once(labelled: SceneCache, more: Path, tmp_path: Path) -> None:
    first = next((more / "a").iterdir())
    (more / "b" / f"again{first.suffix}").write_bytes(first.read_bytes())
    images = collect(labelled, more, home=tmp_path / "home")
    assert len(images.part) == 12 and images.left_out == ("1 copy of another",)


def test_a_file_named_twice_is_no_copy(labelled: SceneCache, more: Path, tmp_path: Path) -> None:
    first = next((more / "a").iterdir())
    images = collect(labelled, more, more / "a", first, home=tmp_path / "home")
    assert len(images.part) == 12 and not images.left_out
    assert len(collect(labelled, first, home=tmp_path / "home").part) == 1


def test_an_image_and_its_folder_are_one_source(labelled: SceneCache, more: Path, tmp_path: Path) -> None:
    first = next(path for path in more.iterdir() if path.suffix == ".png")
    images = collect(labelled, first, more, home=tmp_path / "home")
    assert images.found == "12 images from more" and len(images.part.fetch(range(12))) == 12


def test_a_second_call_decodes_nothing_and_a_new_file_alone(
    labelled: SceneCache, more: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = collect(labelled, more, home=tmp_path / "home")
    decoded: list[Path] = []

    def counted(path: Path, *more: Any, **options: Any) -> np.ndarray:
        decoded.append(path)
        return read_scene(path, *more, **options)

    monkeypatch.setattr(cache_build, "read_scene", counted)
    (fingerprints,) = (tmp_path / "home").rglob("marks-*.npy")
    before = fingerprints.stat().st_mtime_ns
    assert collect(labelled, more, home=tmp_path / "home").part.content_hash() == first.part.content_hash()
    assert not decoded and fingerprints.stat().st_mtime_ns == before
    Image.fromarray(blobs(np.random.default_rng(1))).save(more / "new.png")
    assert len(collect(labelled, more, home=tmp_path / "home").part) == 13
    assert decoded == [more / "new.png"]
    folder = fingerprints.parent
    kinds = sorted(file.name.partition("-")[0] for file in folder.iterdir())
    assert kinds == ["build.lock", "images", "manifest.json", "marks"]  # the old ones are gone


def test_damaged_marks_are_made_again(labelled: SceneCache, more: Path, tmp_path: Path) -> None:
    first = collect(labelled, more, home=tmp_path / "home").part.content_hash()
    (fingerprints,) = (tmp_path / "home").rglob("marks-*.npy")
    fingerprints.write_bytes(fingerprints.read_bytes()[:-40])
    assert collect(labelled, more, home=tmp_path / "home").part.content_hash() == first


def test_a_broken_image_stops_or_is_named(labelled: SceneCache, more: Path, tmp_path: Path) -> None:
    (more / "a" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    with pytest.raises(UserError, match=r"1 of 13 images in .*more cannot be read: a/broken\.jpg"):
        collect(labelled, more, home=tmp_path / "home")
    images = collect(labelled, more, home=tmp_path / "home", on_bad="skip")
    assert len(images.part) == 12 and images.left_out == ("1 unreadable one",)
    ((name, reason),) = images.bad
    assert name.endswith("more: a/broken.jpg") and reason


def test_a_wrong_path_an_empty_folder_and_another_file_are_refused(
    labelled: SceneCache, more: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"mroe does not exist\. Did you mean .*more\?"):
        collect(labelled, tmp_path / "mroe", home=tmp_path / "home")
    with pytest.raises(UserError, match=r"No image in --data\.unlabelled .*empty"):
        collect(labelled, _made(tmp_path / "empty"), home=tmp_path / "home")
    with pytest.raises(UserError, match=r"notes\.txt is no image .*--data\.unlabelled_tile"):
        collect(labelled, more / "notes.txt", home=tmp_path / "home")


def test_nothing_left_is_an_error_that_says_why(labelled: SceneCache, split: Split, tmp_path: Path) -> None:
    images = collect(labelled, labelled.index.root, home=tmp_path / "home")
    with pytest.raises(UserError, match=r"no images without labels, of 64 images .* 40 copies of held-out images, 24"):
        images.pool(split)


def raster(path: Path, bands: np.ndarray, placed: bool = True, **more: Any) -> Path:
    """Bands `[C, H, W]` as a GeoTIFF."""
    rasterio = pytest.importorskip("rasterio", reason="needs rasterio: pip install -e '.[use]'")
    if placed:
        more |= {"crs": "EPSG:32633", "transform": rasterio.Affine(1, 0, 500_000, 0, -1, 5_000_000)}
    count, height, width = bands.shape
    given = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": bands.dtype, **more}
    with rasterio.open(_made(path.parent) / path.name, "w", **given) as file:
        file.write(bands)
    return path


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_tiles_have_the_pixels_of_a_slow_loop(labelled: SceneCache, tmp_path: Path, kind: Any) -> None:
    top = 256 if kind is np.uint8 else 4000
    values = np.random.default_rng(3).integers(1, top, (4, 130, 170)).astype(kind)
    values[:, :32, 32:64] = 0  # one tile without data
    values[:, 40, 5] = 0  # a hole in another
    path = raster(tmp_path / "maps" / "scene.tif", values, nodata=0)
    images = collect(labelled, tmp_path / "maps", home=tmp_path / "home", tile=32)
    assert images.found == "19 tiles from scene.tif" and images.left_out == ("1 tile without data",)
    known = (values[:3] != 0).any(0)
    scaled = values[:3].astype(np.float64)
    if kind is np.uint16:
        low, high = np.percentile(scaled[:, known], (2, 98))  # of the whole raster, all bands together
        scaled = np.rint(np.clip((scaled - low) / (high - low), 0, 1) * 255)
    wanted = []
    for y in range(0, 128, 32):
        for x in range(0, 160, 32):
            if known[y : y + 32, x : x + 32].any():
                tile = (scaled * known)[:, y : y + 32, x : x + 32].astype(np.uint8)
                wanted.append(squash(np.ascontiguousarray(tile.transpose(1, 2, 0)), SIZE))
    np.testing.assert_array_equal(images.part.fetch(range(19)).images.numpy(), np.stack(wanted))
    assert collect(labelled, path, home=tmp_path / "home", tile=32).part.content_hash() == images.part.content_hash()


def test_a_raster_is_recognised_by_its_header(labelled: SceneCache, more: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)

    def values(side: int) -> np.ndarray:
        return rng.integers(0, 256, (3, side, side)).astype(np.uint8)

    raster(more / "placed.tif", values(70))  # four tiles of 32
    raster(more / "small.tif", values(20))  # smaller than a tile
    raster(more / "many.tif", values(128), placed=False)  # sixteen tiles
    raster(more / "few.tif", values(96), placed=False)
    images = collect(labelled, more, home=tmp_path / "home", tile=32)
    assert images.found == "16 tiles from many.tif, 4 tiles from placed.tif, 14 images from more"
    assert collect(labelled, more, home=tmp_path / "home").found == "16 images from more"


def test_a_changed_raster_is_cut_again(labelled: SceneCache, tmp_path: Path) -> None:
    values = np.random.default_rng(5).integers(0, 256, (3, 64, 64)).astype(np.uint8)
    path = raster(tmp_path / "scene.tif", values)
    first = collect(labelled, path, home=tmp_path / "home", tile=32).part.content_hash()
    raster(path, values[:, ::-1].copy())
    os.utime(path, ns=(1, 1))
    assert collect(labelled, path, home=tmp_path / "home", tile=32).part.content_hash() != first


def test_rasters_that_cannot_be_cut_say_why(labelled: SceneCache, tmp_path: Path) -> None:
    small = raster(tmp_path / "small.vrt", np.ones((3, 8, 8), np.uint8), driver="GTiff")
    with pytest.raises(UserError, match=r"small\.vrt has 8 x 8 pixels, too few for a tile of 32"):
        collect(labelled, small, home=tmp_path / "home", tile=32)
    grey = raster(tmp_path / "grey.tif", np.ones((1, 64, 64), np.uint8))
    with pytest.raises(UserError, match=r"grey\.tif has 1 band \(without alpha\), expected at least 4"):
        collect(replace(labelled, bands=4), grey, home=tmp_path / "home", tile=32)
    blank = raster(tmp_path / "blank.tif", np.zeros((3, 64, 64), np.uint8), nodata=0)
    with pytest.raises(UserError, match=r"No readable image without label: 0 tiles from blank\.tif"):
        collect(labelled, blank, home=tmp_path / "home", tile=32)


def test_time_grows_with_the_number_of_images_and_memory_hardly(tmp_path: Path) -> None:
    seconds = []
    for count in (2_000, 8_000):
        images = np.random.default_rng(count).integers(0, 256, (count, 8, 8, 3), np.uint8)
        started = time.perf_counter()
        fingerprints = compute_fingerprints(images)
        assert not len(copies(fingerprints, images.__getitem__, fingerprints[:0], images.__getitem__))
        pairs = copies(fingerprints, images.__getitem__, fingerprints, images.__getitem__)
        seconds.append(time.perf_counter() - started)
        assert len(pairs) == count and (pairs[:, 0] == pairs[:, 1]).all()
    assert fingerprints.nbytes == 8_000 * (16 + 4 * 30)  # all that is in memory of an image
    assert seconds[1] < 8 * seconds[0]  # 16 where it were quadratic


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_a_damaged_image_and_damaged_marks_are_noticed(labelled: SceneCache, more: Path, tmp_path: Path) -> None:
    whole = collect(labelled, more, home=tmp_path / "cache").part
    wanted = whole.images(np.arange(len(whole)))
    (fingerprints,) = (tmp_path / "cache").rglob("marks-*.npy")
    content = bytearray(fingerprints.read_bytes())
    content[-40] ^= 1  # a digest or a mean
    fingerprints.write_bytes(content)
    again = collect(labelled, more, home=tmp_path / "cache").part
    np.testing.assert_array_equal(again.ids, whole.ids)
    np.testing.assert_array_equal(again.images(np.arange(len(again))), wanted)
    array = np.load(whole.files[0], mmap_mode="r+")
    array[3, 0, 0, 0] ^= 1
    array.flush()
    spoilt = collect(labelled, more, home=tmp_path / "cache").part
    with pytest.raises(UserError, match=r"is damaged: an image in it is not what was decoded.*Delete .*manifest\.json"):
        spoilt.images(np.arange(len(spoilt)))
    fingerprints.unlink()
    with pytest.raises(UserError, match="is damaged: an image in it is not what was decoded"):
        collect(labelled, more, home=tmp_path / "cache")


def test_a_second_search_for_copies_reads_no_pixels_until_an_image_changes(
    more: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, rng = tmp_path / "scenes", np.random.default_rng(3)
    for number in range(8):
        Image.fromarray(blobs(rng)).save(_made(root / "ab"[number % 2]) / f"{number}.png")
    Image.open(root / "a" / "2.png").rotate(90).save(more / "turned.png")

    def pairs() -> list[list[int]]:
        cache = build_cache(scan(root), SIZE, folder=tmp_path / "labelled", progress=False)
        found: list[list[int]] = collect(cache, more, home=tmp_path / "home").pairs.tolist()
        return found

    found = pairs()
    assert [position for _, position in found] == [1]
    arrays = [*(tmp_path / "labelled").glob("images-*.npy"), *(tmp_path / "home").rglob("images-*.npy")]
    assert len(arrays) == 2
    kept = [array.read_bytes() for array in arrays]
    for array in arrays:
        np.load(array, mmap_mode="r+")[:] = 0
    assert pairs() == found and "damaged" not in capsys.readouterr().err
    for array, content in zip(arrays, kept, strict=True):
        array.write_bytes(content)
    Image.fromarray(blobs(rng)).save(root / "a" / "2.png")
    assert not pairs()
    kinds = sorted(file.name.partition("-")[0] for file in (tmp_path / "labelled").iterdir())
    assert kinds == ["build.lock", "copies", "images", "manifest.json", "marks"]  # the old ones are gone


@pytest.mark.parametrize("kind", ["marks", "copies"])
def test_damaged_files_beside_the_labelled_images_are_made_again(
    labelled: SceneCache, more: Path, tmp_path: Path, kind: str
) -> None:
    original(labelled, np.arange(64), 5).save(more / "copy.png")
    first = collect(labelled, more, home=tmp_path / "home").pairs.tolist()
    (file,) = labelled.folder.glob(f"{kind}-*.npy")
    whole = file.read_bytes()
    for place in (len(whole) - 30, len(whole) - 1):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert collect(labelled, more, home=tmp_path / "home").pairs.tolist() == first != []
    assert file.read_bytes() == whole


def test_a_part_of_the_labelled_images_has_its_own_fingerprints(
    labelled: SceneCache, more: Path, tmp_path: Path
) -> None:
    for number in (9, 40):
        original(labelled, np.arange(64), number).save(more / f"copy{number}.png")
    assert sorted(collect(labelled, more, home=tmp_path / "home").pairs[:, 1].tolist()) == [9, 40]
    index = labelled.index.subset(np.array([3, 40, 7, 9]))
    part = build_cache(index, SIZE, folder=labelled.folder, progress=False)
    assert sorted(collect(part, more, home=tmp_path / "home").pairs[:, 1].tolist()) == [1, 3]
