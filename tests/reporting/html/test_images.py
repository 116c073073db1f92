"""Small copies of images within their budget, the page's pictures, and where the images are looked for."""

from __future__ import annotations

import base64
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scenedistill.reporting.html.images import THUMBNAIL, Thumbnails, find_data, overlay, picture
from scenedistill.runs.run import Run


def opened(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_a_thumbnail_is_small_and_made_once(tiny_scenes: Path) -> None:
    copies = Thumbnails(10**6)
    path = tiny_scenes / "river" / "00.png"
    assert copies.add(path) == copies.add(path) == 0 and len(copies.uris) == 1
    small = opened(copies.uris[0])
    assert small.format == "WEBP" and max(small.size) <= THUMBNAIL
    there = np.asarray(small.convert("RGB").resize((48, 48)), dtype=float)
    assert np.abs(there - np.asarray(Image.open(path).convert("RGB"), dtype=float)).mean() < 12
    assert copies.spent >= len(copies.uris[0])


def test_a_spent_budget_stops_new_thumbnails_but_keeps_earlier_ones(tiny_scenes: Path) -> None:
    paths = sorted(tiny_scenes.glob("*/*.png"))
    copies = Thumbnails(5000)
    numbers = [copies.add(path) for path in paths]
    made = [number for number in numbers if number is not None]
    assert 1 < len(made) < len(paths) and copies.spent < 5000 + len(copies.uris[-1]) + 4
    assert copies.add(paths[0]) == 0 and copies.add(paths[-1]) is None
    copies.budget = 10**6
    assert copies.add(paths[-1]) == len(made)


def test_thumbnails_take_any_kind_of_image_and_skip_broken_ones(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (300, 100), dtype=np.uint8)).save(tmp_path / "grey.png")
    Image.fromarray(rng.integers(0, 255, (9, 9, 4), dtype=np.uint8)).save(tmp_path / "alpha.png")
    Image.fromarray(rng.integers(0, 255, (9, 9, 2), dtype=np.uint8), "LA").save(tmp_path / "two.png")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    copies = Thumbnails(10**6)
    assert [copies.add(tmp_path / name) for name in ("grey.png", "alpha.png", "two.png")] == [0, 1, 2]
    assert opened(copies.uris[0]).size == (29, THUMBNAIL)
    assert copies.add(tmp_path / "broken.jpg") is None and list(copies.unreadable) == ["broken.jpg"]


def test_an_overlay_is_brighter_where_the_map_is_higher(tmp_path: Path) -> None:
    heat = np.zeros((10, 10), dtype=np.float32)
    heat[:5] = 1
    for bands in (1, 3, 5):
        laid = overlay(np.full((10, 10, bands), 100, dtype=np.uint8), heat)
        assert laid.shape == (10, 10, 3) and laid[:5].mean() > laid[5:].mean() + 50
    assert opened(picture(laid)).size == (10, 10)


def test_the_images_are_found_where_the_user_says(made: Any, tmp_path: Path) -> None:
    data = Run.open(made.run)
    for given in (made.manifest, made.manifest.parent):
        root, _ = find_data(data, data.cells[0], given)
        assert root is not None and root.samefile(made.manifest.parent)
    moved = tmp_path / "outer" / "inner"
    shutil.copytree(made.manifest.parent / "river", moved / "river")
    for name in ("car park", "fields", "forêt"):
        shutil.copytree(made.manifest.parent / name, moved / name)
    assert find_data(data, data.cells[0], tmp_path / "outer")[0] == moved, (
        "a folder's only folder, as an archive has it"
    )
    root, reason = find_data(data, data.cells[0], tmp_path / "nowhere")
    assert root is None and reason == "there is no nowhere"
    root, reason = find_data(data, data.cells[0], moved / "river")
    assert root is None and reason.endswith("is not in river")
    closed = tmp_path / (300 * "x")  # asking for it is an error, as in a folder of another user
    root, reason = find_data(data, data.cells[0], closed)
    assert root is None and reason == f"there is no {closed.name}"


def test_the_images_are_found_where_the_record_says(made: Any, grid_folder: Path, copied: Path) -> None:
    run = Run.open(made.run)
    root, _ = find_data(run, run.cells[0], None)
    assert root is not None and root.samefile(made.manifest.parent)
    grid = Run.open(grid_folder)
    for cell in grid.cells:
        root, _ = find_data(grid, cell, None)
        assert root is not None and root.samefile(made.manifest.parent)
        assert find_data(grid, cell, {"other": made.manifest})[0] is None
        assert find_data(grid, cell, {"tiny": made.manifest})[0] == made.manifest.parent
    elsewhere = Run.open(copied)
    root, _ = find_data(elsewhere, elsewhere.cells[0], None)
    assert root is not None and root.samefile(made.manifest.parent), "a copied run finds them too"
    for path in copied.rglob("stage.json"):  # as before runs noted it
        path.write_text(json.dumps(without_images(json.loads(path.read_text(encoding="utf-8")))), encoding="utf-8")
    old = Run.open(copied)
    root, reason = find_data(old, old.cells[0], None)
    assert root is None and reason == "the data folder is not known"


def without_images(stage: dict[str, Any]) -> dict[str, Any]:
    """A stage's content without what it says of its images, and so without its checksum."""
    content = {name: value for name, value in stage.items() if name in ("fingerprint", "settings", "finished", "files")}
    return content | {"record": {name: value for name, value in stage["record"].items() if name != "images"}}


@pytest.mark.parametrize("what", ["outputs", "split"])
def test_without_outputs_there_are_no_images(what: str, copied: Path, made: Any) -> None:
    for path in copied.rglob("outputs.npz" if what == "outputs" else "split.csv"):
        path.unlink()
    data = Run.open(copied)
    root, reason = find_data(data, data.cells[0], made.manifest)
    assert root is None and "outputs.npz" in reason
