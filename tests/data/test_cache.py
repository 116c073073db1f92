"""The cache against real files that come, go, change and break, and against processes that die."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pytest
from PIL import Image

from scenedistill.core.disk import read_json, write_json
from scenedistill.core.errors import UserError
from scenedistill.data.cache.build import SceneCache, build_cache, cache_home
from scenedistill.data.cache.files import row_checksum
from scenedistill.data.images.read import read_scene
from scenedistill.data.scenes import SceneIndex, scan

SIZE = 8


def picture(path: Path, seed: int, side: int = 12) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(noise).save(path, compress_level=1)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number in range(10):
        picture(tmp_path / "data" / ("forest" if number % 2 else "river bank") / f"{number}.png", number)
    return tmp_path / "data"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def build(root: Path, folder: Path, **options: Any) -> SceneCache:
    return build_cache(scan(root), SIZE, folder=folder, progress=False, **options)


def check(cache: SceneCache, root: Path) -> None:
    """Row i is path i, decoded as anywhere else, and the folder holds nothing more than it should."""
    assert cache.images.shape == (len(cache.index), cache.size, cache.size, cache.bands)
    for path, row in zip(cache.index.paths, cache.images, strict=True):
        np.testing.assert_array_equal(row, read_scene(root / path, cache.size, cache.bands), err_msg=path)
    assert len(list(cache.folder.glob("images-*.npy"))) == 1
    assert {entry.name for entry in cache.folder.iterdir() if not entry.name.startswith("images-")} <= {
        "manifest.json",
        "build.lock",
    }


def state(folder: Path) -> dict[str, tuple[int, int]]:
    return {entry.name: (entry.stat().st_ino, entry.stat().st_mtime_ns) for entry in folder.iterdir()}


def test_the_first_build_decodes_everything(root: Path, folder: Path) -> None:
    cache = build(root, folder)
    check(cache, root)
    assert isinstance(cache.images, np.memmap) and not cache.images.flags.writeable
    assert cache.report == "10 images: 0 reused, 10 decoded, 0 bad" and cache.folder == folder


def test_a_second_build_touches_nothing(root: Path, folder: Path) -> None:
    build(root, folder)
    before = state(folder)
    again = build(root, folder)
    assert again.report == "10 images: 10 reused, 0 decoded, 0 bad"
    assert state(folder) == before
    check(again, root)


@pytest.mark.parametrize("bands", [1, 3])
def test_other_settings_decode_again(root: Path, folder: Path, bands: int) -> None:
    build(root, folder)
    cache = build_cache(scan(root), 16, bands=bands, folder=folder, progress=False)
    assert cache.report == "10 images: 0 reused, 10 decoded, 0 bad"
    check(cache, root)


def test_only_a_changed_file_is_decoded_again(root: Path, folder: Path) -> None:
    build(root, folder)
    # Rows are marked in the stored array, so that a row that was copied can be told from one that was decoded.
    array = next(folder.glob("images-*.npy"))
    np.load(array, mmap_mode="r+")[:] = 77
    manifest = read_json(folder / "manifest.json")
    manifest["crc32"] = [row_checksum(np.full((SIZE, SIZE, 3), 77, np.uint8))] * 10
    write_json(folder / "manifest.json", manifest, checksum=True)
    picture(root / "forest" / "3.png", 99, side=20)
    cache = build(root, folder)
    assert cache.report == "10 images: 9 reused, 1 decoded, 0 bad"
    changed = cache.index.paths.index("forest/3.png")
    np.testing.assert_array_equal(cache.images[changed], read_scene(root / "forest" / "3.png", SIZE))
    assert (np.delete(np.asarray(cache.images), changed, axis=0) == 77).all()


def test_a_changed_modification_time_alone_decodes_again(root: Path, folder: Path) -> None:
    build(root, folder)
    os.utime(root / "forest" / "3.png", ns=(1, 1))
    assert build(root, folder).report == "10 images: 9 reused, 1 decoded, 0 bad"


def test_deleted_files_are_dropped_and_added_ones_decoded(root: Path, folder: Path) -> None:
    build(root, folder)
    (root / "river bank" / "0.png").unlink()
    (root / "forest" / "9.png").unlink()
    picture(root / "beach" / "new.png", 50)
    cache = build(root, folder)
    assert cache.report == "9 images: 8 reused, 1 decoded, 0 bad"
    check(cache, root)
    (root / "beach" / "new.png").unlink()
    (root / "beach").rmdir()
    cache = build(root, folder)
    assert cache.report == "8 images: 8 reused, 0 decoded, 0 bad"
    assert len(np.load(next(folder.glob("images-*.npy")))) == 8  # what is gone is not kept
    check(cache, root)


def test_a_subset_takes_its_rows_and_leaves_the_rest(root: Path, folder: Path) -> None:
    whole = build(root, folder)
    before = state(folder)
    index = scan(root)
    for keep in (np.array([7, 2, 4]), np.arange(3, 8)):
        part = build_cache(index.subset(keep), SIZE, folder=folder, progress=False)
        np.testing.assert_array_equal(part.images, whole.images[keep])
        assert not part.images.flags.writeable
    assert state(folder) == before
    picture(root / "forest" / "3.png", 99)
    part = build_cache(index.subset(np.array([7, 2])), SIZE, folder=folder, progress=False)
    assert part.report == "2 images: 2 reused, 0 decoded, 0 bad"
    assert build(root, folder).report == "10 images: 9 reused, 1 decoded, 0 bad"


def test_a_rebuild_for_a_subset_costs_the_whole_nothing(root: Path, folder: Path) -> None:
    build(root, folder)
    picture(root / "forest" / "3.png", 99)
    index = scan(root)
    part = build_cache(index.subset(np.array([6, 2])), SIZE, folder=folder, progress=False)
    assert part.index.paths == ("river bank/2.png", "forest/5.png")
    check(part, root)
    build_cache(index.subset(np.array([1])), SIZE, folder=folder, progress=False)
    cache = build(root, folder)
    assert cache.report == "10 images: 10 reused, 0 decoded, 0 bad"
    assert isinstance(cache.images, np.memmap)
    check(cache, root)


@pytest.mark.parametrize(("size", "count"), [(0, 10), (8, 0)])
def test_no_pixels_and_no_images_are_refused(root: Path, folder: Path, size: int, count: int) -> None:
    with pytest.raises(ValueError, match="1 or more"):
        build_cache(scan(root).subset(np.arange(count)), size, folder=folder)


def test_waiting_for_another_builder_is_reported(root: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder.mkdir()
    shown = ""
    with ThreadPoolExecutor(1) as pool:
        with filelock.FileLock(folder / "build.lock"):
            waiting = pool.submit(build_cache, scan(root), SIZE, folder=folder)
            deadline = time.monotonic() + 10
            while "waiting for it" not in shown and time.monotonic() < deadline:
                time.sleep(0.01)
                shown += capsys.readouterr().err
            assert "Another process is building this image cache; waiting for it." in shown and not waiting.done()
        check(waiting.result(timeout=30), root)


def spoil(root: Path) -> None:
    (root / "forest" / "1.png").write_bytes(b"")
    (root / "forest" / "text.jpg").write_text("not an image")
    Image.new("RGB", (64, 64), "green").save(root / "river bank" / "cut.jpg")
    data = (root / "river bank" / "cut.jpg").read_bytes()
    (root / "river bank" / "cut.jpg").write_bytes(data[: len(data) // 2])


def test_bad_images_stop_the_build_and_all_are_named(root: Path, folder: Path) -> None:
    spoil(root)
    for _ in range(2):
        with pytest.raises(UserError) as caught:
            build(root, folder)
        first, second = str(caught.value).splitlines()
        assert first.startswith(f"3 of 12 images in {root} cannot be read: forest/1.png: the file is empty; forest/t")
        assert "river bank/cut.jpg: " in first and "truncated" in first.lower()
        assert "--data.on_bad skip" in second
    # Mended files need no hint: they are tried again, and the good ones were not decoded in vain.
    picture(root / "forest" / "1.png", 1)
    (root / "forest" / "text.jpg").unlink()
    (root / "river bank" / "cut.jpg").unlink()
    cache = build(root, folder)
    assert cache.report == "10 images: 9 reused, 1 decoded, 0 bad"
    check(cache, root)


def test_bad_images_are_left_out_and_remembered(root: Path, folder: Path) -> None:
    spoil(root)
    cache = build(root, folder, on_bad="skip")
    assert cache.report == "12 images: 0 reused, 9 decoded, 3 bad"
    assert [path for path, _ in cache.bad] == ["forest/1.png", "forest/text.jpg", "river bank/cut.jpg"]
    assert dict(cache.bad)["forest/1.png"] == "the file is empty"
    assert len(cache.index) == 9 and cache.index.labels.tolist() == [0] * 4 + [1] * 5
    check(cache, root)
    before = state(folder)
    again = build(root, folder, on_bad="skip")
    assert again.report == "12 images: 9 reused, 0 decoded, 3 bad" and again.bad == cache.bad
    assert state(folder) == before
    with pytest.raises(UserError, match="3 of 12"):
        build(root, folder)
    picture(root / "forest" / "1.png", 1)
    assert build(root, folder, on_bad="skip").report == "12 images: 9 reused, 1 decoded, 2 bad"


def test_many_bad_images_are_counted(root: Path, folder: Path) -> None:
    for number in range(20):
        (root / "forest" / f"x{number:02}.jpg").touch()
    with pytest.raises(UserError, match=r"20 of 30 .*x04\.jpg: the file is empty; and 15 more\.\n"):
        build(root, folder)


def test_nothing_readable_is_an_error_even_when_skipping(root: Path, folder: Path) -> None:
    for path in root.rglob("*.png"):
        path.write_bytes(b"")
    for _ in range(2):
        with pytest.raises(UserError, match=r"10 of 10 images") as caught:
            build(root, folder, on_bad="skip")
        assert "on_bad" not in str(caught.value)


def test_a_file_that_vanished_after_the_scan_is_bad(root: Path, folder: Path) -> None:
    index = scan(root)
    (root / "forest" / "1.png").unlink()
    cache = build_cache(index, SIZE, folder=folder, on_bad="skip", progress=False)
    assert cache.bad == (("forest/1.png", "no such file"),)


def test_a_damaged_array_is_built_again(root: Path, folder: Path) -> None:
    build(root, folder)
    array = next(folder.glob("images-*.npy"))
    os.truncate(array, array.stat().st_size - 1)
    cache = build(root, folder)
    assert cache.report == "10 images: 0 reused, 10 decoded, 0 bad"
    array = next(folder.glob("images-*.npy"))
    array.unlink()
    check(build(root, folder), root)


def test_a_folder_of_something_else_is_left_alone(root: Path, folder: Path) -> None:
    folder.mkdir()
    (folder / "manifest.json").write_text('{"name": "my web page"}')
    with pytest.raises(UserError, match="is not an image cache"):
        build(root, folder)
    assert json.loads((folder / "manifest.json").read_text()) == {"name": "my web page"}


def test_a_place_that_cannot_be_written_is_an_error_with_a_way_out(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"Cannot write the image cache in .*SCENEDISTILL_CACHE"):
        build(root, tmp_path / "file" / "cache")


def test_too_little_space_is_reported_before_decoding(root: Path, folder: Path) -> None:
    with pytest.raises(UserError, match=r"needs 27,9\d\d\.\d GiB"):
        build_cache(scan(root), 1_000_000, folder=folder, progress=False)
    assert not list(folder.glob("images-*"))


def test_the_default_folder_follows_the_environment(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("SCENEDISTILL_CACHE", raising=False)
    assert cache_home() == tmp_path / "xdg" / "scenedistill"
    monkeypatch.setenv("SCENEDISTILL_CACHE", str(tmp_path / "own"))
    index = scan(root)
    folders = {build_cache(index, size, bands=bands, progress=False).folder for size in (4, 8) for bands in (1, 3)}
    assert len(folders) == 4 and {place.parent for place in folders} == {tmp_path / "own" / "scenes"}
    assert build_cache(index, 4, progress=False).report.startswith("10 images: 10 reused")


def test_progress_shows_the_rate(root: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build_cache(scan(root), SIZE, folder=folder, progress=True)
    shown = capsys.readouterr()
    assert "10/10" in shown.err and "images/s" in shown.err and shown.out == ""
    build_cache(scan(root), SIZE, folder=folder, progress=True)
    assert capsys.readouterr().err == ""


WORKER = Path(__file__).with_name("cache_worker.py")


def start_builder(root: Path, folder: Path) -> subprocess.Popen[str]:
    """A process that has imported everything and builds as soon as it gets a line."""
    command = [sys.executable, str(WORKER), str(root), str(folder)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    builder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    assert builder.stdout is not None and builder.stdout.readline() == "ready\n"
    return builder


def go(builder: subprocess.Popen[str]) -> None:
    assert builder.stdin is not None
    builder.stdin.write("\n")
    builder.stdin.flush()


def many(root: Path, count: int) -> SceneIndex:
    for number in range(count):
        picture(root / ("forest" if number % 2 else "river bank") / f"big{number}.png", number, side=256)
    return scan(root)


def kill_while_it_writes(root: Path, folder: Path, known: set[str]) -> None:
    builder = start_builder(root, folder)
    go(builder)
    deadline = time.monotonic() + 30
    while not any(array.stat().st_size > 50_000 for array in folder.glob("images-*.npy") if array.name not in known):
        assert builder.poll() is None and time.monotonic() < deadline, "the builder was not caught in the middle"
        time.sleep(0.002)
    builder.send_signal(signal.SIGKILL)
    out, _ = builder.communicate(timeout=30)
    assert builder.returncode == -signal.SIGKILL and "images" not in out


def test_a_killed_first_build_leaves_no_cache_and_no_litter(root: Path, folder: Path) -> None:
    index = many(root, 150)
    kill_while_it_writes(root, folder, set())
    assert not (folder / "manifest.json").exists()
    assert len(list(folder.glob("images-*.npy"))) == 1  # the torn one
    cache = build_cache(index, 64, folder=folder, progress=False)
    assert cache.report == "160 images: 0 reused, 160 decoded, 0 bad"
    check(cache, root)


def test_a_killed_update_leaves_the_old_cache(root: Path, folder: Path) -> None:
    old_index = scan(root)
    old = build_cache(old_index, 64, folder=folder, progress=False)
    before = state(folder)
    many(root, 150)
    kill_while_it_writes(root, folder, set(before))
    still = build_cache(old_index, 64, folder=folder, progress=False)
    assert still.report == "10 images: 10 reused, 0 decoded, 0 bad"
    np.testing.assert_array_equal(still.images, old.images)
    cache = build_cache(scan(root), 64, folder=folder, progress=False)
    assert cache.report == "160 images: 10 reused, 150 decoded, 0 bad"
    check(cache, root)


def test_two_builders_at_once_share_the_work(root: Path, folder: Path) -> None:
    index = many(root, 60)
    builders = [start_builder(root, folder) for _ in range(2)]
    for builder in builders:
        go(builder)
    reports = sorted(builder.communicate(timeout=60)[0].strip() for builder in builders)
    assert reports == ["70 images: 0 reused, 70 decoded, 0 bad", "70 images: 70 reused, 0 decoded, 0 bad"]
    check(build_cache(index, 64, folder=folder, progress=False), root)


def test_a_reader_keeps_its_images_while_another_rebuilds(root: Path, folder: Path) -> None:
    reader = build(root, folder)
    before = np.array(reader.images)
    picture(root / "forest" / "1.png", 99)
    build(root, folder)
    np.testing.assert_array_equal(reader.images, before)


def test_another_process_gets_the_file_and_not_a_copy_of_the_array(root: Path, tmp_path: Path) -> None:
    cache = build_cache(scan(root), 64, folder=tmp_path / "cache", progress=False)
    sent = pickle.dumps(cache)
    assert len(sent) < cache.images.nbytes
    received = pickle.loads(sent)
    assert isinstance(received.images, np.memmap)
    np.testing.assert_array_equal(received.images, cache.images)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="memory is read from Linux's /proc")
@pytest.mark.parametrize("stays", [True, False])
def test_pages_of_a_large_array_are_unmapped_when_they_were_read(
    stays: bool, root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scenedistill.data.cache.files._MAPPED", 1 << 20 if stays else 0)
    cache = build(root, folder)
    for _ in range(2):
        found = cache.fetch(np.arange(10))
        np.testing.assert_array_equal(found, [read_scene(root / path, SIZE) for path in cache.index.paths])
    read, inside = 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        inside = str(cache.array) in line if "-" in line.split()[0] else inside
        read += int(line.split()[1]) if inside and line.startswith("Rss:") else 0
    assert (read > 0) == stays


def damage(folder: Path, rows: list[int]) -> None:
    """Flip a bit in these rows of the array."""
    array = np.load(next(folder.glob("images-*.npy")), mmap_mode="r+")
    for row in rows:
        array[row, 3, 3, 0] ^= 1
    array.flush()


def test_a_damaged_image_is_decoded_again_when_it_is_used(
    root: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(root, folder)
    damage(folder, [2, 7])
    cache = build(root, folder)
    assert cache.report == "10 images: 10 reused, 0 decoded, 0 bad"
    found = cache.fetch(np.array([7, 1, 2, 7]))
    for row, position in zip(found, (7, 1, 2, 7), strict=True):
        np.testing.assert_array_equal(row, read_scene(root / cache.index.paths[position], SIZE))
    said = capsys.readouterr().err
    assert f"is damaged at {cache.index.paths[7]}" in said and said.count("is damaged") == 1
    check(build(root, folder), root)  # put right on the disk too


def test_a_subset_that_is_copied_into_memory_is_compared_too(root: Path, folder: Path) -> None:
    index = scan(root)
    build(root, folder)
    damage(folder, [4])
    part = build_cache(index.subset(np.array([0, 4, 9])), SIZE, folder=folder, progress=False)
    np.testing.assert_array_equal(part.fetch(np.array([1]))[0], read_scene(root / part.index.paths[1], SIZE))


def test_a_damaged_image_whose_file_has_changed_is_refused_in_a_line(root: Path, folder: Path) -> None:
    cache = build(root, folder)
    damage(folder, [0])
    picture(root / cache.index.paths[0], 99)
    with pytest.raises(UserError, match=r"is damaged in .*images-.*Delete .*manifest\.json") as refused:
        cache.fetch(np.array([0]))
    assert "\n" not in str(refused.value)


def test_a_damaged_image_is_not_copied_into_a_new_array(root: Path, folder: Path) -> None:
    build(root, folder)
    damage(folder, [5])
    picture(root / "forest" / "11.png", 11)
    cache = build(root, folder)
    assert cache.report == "11 images: 9 reused, 2 decoded, 0 bad"
    check(cache, root)


@pytest.mark.parametrize("way", ["cut", "empty", "a list", "another row", "another kind"])
def test_a_damaged_manifest_is_reported_and_all_is_decoded_again(
    way: str, root: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(root, folder)
    path = folder / "manifest.json"
    text = path.read_text(encoding="utf-8")
    changed = {
        "cut": text[: len(text) // 2],
        "empty": "",
        "a list": "[]",
        "another row": text.replace('"row": [0, 1', '"row": [1, 0'),
        "another kind": text.replace("image cache", "image cachf"),
    }[way]
    assert changed != text
    path.write_text(changed, encoding="utf-8")
    cache = build(root, folder)
    assert cache.report == "10 images: 0 reused, 10 decoded, 0 bad"
    assert "manifest.json is damaged: all images are decoded again" in capsys.readouterr().err
    check(cache, root)


def test_a_cache_from_before_there_were_checksums_is_still_used(root: Path, folder: Path) -> None:
    build(root, folder)
    manifest = read_json(folder / "manifest.json")
    del manifest["crc32"]
    write_json(folder / "manifest.json", manifest)
    cache = build(root, folder)
    assert cache.report == "10 images: 10 reused, 0 decoded, 0 bad" and cache.checksums is None
    np.testing.assert_array_equal(cache.fetch(np.arange(10)), cache.images)
