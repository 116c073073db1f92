"""Images that a data set holds more than once."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scenedistill.data.cache.build import build_cache
from scenedistill.data.duplicates import duplicates_in_cache, duplicates_in_folder
from scenedistill.data.scenes import scan
from scenedistill.data.splits.draw import assemble, make_split


@pytest.fixture
def scenes(tiny_scenes: Path, tmp_path: Path) -> Path:
    """With two copies within a class, one under another class, and one that was re-encoded in another format."""
    root = Path(shutil.copytree(tiny_scenes, tmp_path / "scenes"))
    for name in ("copy1.png", "copy2.png"):
        shutil.copy(root / "river" / "00.png", root / "river" / name)
    shutil.copy(root / "river" / "01.png", root / "fields" / "stray.png")
    with Image.open(root / "river" / "02.png") as image:
        image.save(root / "river" / "again.tif")
    return root


def test_copies_are_counted_by_what_is_decoded(scenes: Path, tmp_path: Path) -> None:
    index = scan(scenes)
    cached = duplicates_in_cache(build_cache(index, 32, folder=tmp_path / "cache", progress=False))
    read, bad = duplicates_in_folder(index)
    assert bad == ()
    for found in (cached, read):
        assert found.count == 4 and sorted(map(len, found.groups)) == [2, 2, 3]
        (stray,) = found.across_classes
        assert {index.paths[one] for one in stray} == {"fields/stray.png", "river/01.png"}
    text = cached.text()
    assert "4 of 68 images are copies of others" in text
    assert "2 of these images lie under more than one class: fields/stray.png = river/01.png" in text


def test_copies_across_the_split_are_reported(scenes: Path, tmp_path: Path) -> None:
    cache = build_cache(scan(scenes), 32, folder=tmp_path / "cache", progress=False)
    found = duplicates_in_cache(cache)
    part = np.zeros(len(cache.index), np.int8)
    part[[cache.index.paths.index(f"river/{name}") for name in ("copy1.png", "copy2.png", "05.png")]] = 2
    split = assemble(cache.index, part, None, None)
    assert "2 of 3 test images are also trained or validated on" in found.text(split)
    part[:] = 0
    part[cache.index.paths.index("river/05.png")] = 2
    assert "test images" not in found.text(assemble(cache.index, part, None, None))


def test_without_copies_nothing_is_reported(tiny_scenes: Path, tmp_path: Path) -> None:
    cache = build_cache(scan(tiny_scenes), 32, folder=tmp_path / "cache", progress=False)
    assert duplicates_in_cache(cache).text(make_split(cache.index, 0.5, 0)) == ""


def test_what_cannot_be_read_is_named_and_no_copy(scenes: Path) -> None:
    for name in ("bad1.png", "bad2.png"):
        (scenes / "river" / name).write_bytes(b"no image")
    found, bad = duplicates_in_folder(scan(scenes))
    assert [path for path, _ in bad] == ["river/bad1.png", "river/bad2.png"] and found.count == 4
