"""Prediction of many images: what is found, what is written, what survives a kill, and what is skipped."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from scenedistill.core.disk import shown_path
from scenedistill.core.errors import UserError
from scenedistill.core.terminal import plain_console
from scenedistill.data.images.read import read_scene
from scenedistill.inference.contact_sheet import COLUMNS, ROWS, Shown, draw_sheets, plan
from scenedistill.inference.images import ImagesConfig, ImagesResult, predict_images
from scenedistill.inference.inputs import find_inputs
from scenedistill.inference.journal import Entry, Journal
from scenedistill.inference.model import SceneModel, open_model
from scenedistill.models.create import build_student
from scenedistill.models.files import NetCard, save_net

CLASSES = ("car park", "fields", "forêt", "river")
SIZE = 32


def make_model(folder: Path, bands: int = 3, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    path = folder / f"net{bands}{seed}.safetensors"
    net = build_student("table1_printed", len(CLASSES), bands=bands, image_size=SIZE)
    save_net(net, NetCard("table1_printed", CLASSES, bands, SIZE, stored_size=SIZE), path)
    return path


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("network"))


@pytest.fixture(scope="session")
def model(network: Path) -> SceneModel:
    return open_model(network, device="cpu", precision="fp32")


def draw(path: Path, size: tuple[int, int] = (40, 40), seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def table(out: Path) -> list[dict[str, str]]:
    with (out / "predictions.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


# what is found


def test_folders_files_and_patterns_give_each_image_once_in_order(tmp_path: Path) -> None:
    names = ["b.png", "a b.png", "deep/er/ü.JPG", "x[1].png", ".hidden.png", "__MACOSX/a.png", "notes.txt"]
    for name in names:
        if name.endswith("txt"):
            (tmp_path / name).write_text("no image")
        else:
            draw(tmp_path / name.replace("JPG", "jpg")).rename(tmp_path / name)
    (tmp_path / "again").symlink_to(tmp_path / "deep")  # the same files by another way
    (tmp_path / "deep" / "loop").symlink_to(tmp_path)
    found = find_inputs([tmp_path])
    assert [str(path.relative_to(tmp_path)) for path in found.images] == [
        "a b.png",
        "again/er/ü.JPG",
        "b.png",
        "x[1].png",
    ]
    given: list[Path | str] = [
        tmp_path / "b.png",
        f"{tmp_path}/*.png",
        tmp_path / "x[1].png",
        tmp_path / "deep" / ".." / "b.png",
    ]
    found = find_inputs(given)
    assert [path.name for path in found.images] == ["b.png", "a b.png", "x[1].png"] and found.twice == 3
    for pattern, names in (
        ("**/*.JPG", ["ü.JPG"]),
        ("d*", ["ü.JPG", "a b.png", "b.png", "x[1].png"]),
        ("**", ["a b.png", "b.png", "ü.JPG", "x[1].png"]),
    ):
        assert [path.name for path in find_inputs([f"{tmp_path}/{pattern}"]).images] == names  # and no endless circle
    with pytest.raises(UserError, match=r"nothing at .*nowhere\.png"):
        find_inputs([tmp_path, tmp_path / "nowhere.png"])
    with pytest.raises(UserError, match=r"nothing at .*\*\.webp"):
        find_inputs([f"{tmp_path}/*.webp"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"No image in .*empty"):
        find_inputs([tmp_path / "empty"])


def test_a_file_with_a_georeference_is_a_raster_where_it_is_named_itself(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio", reason="needs rasterio: pip install -e '.[use]'")
    place = rasterio.transform.from_origin(500_000, 5_000_000, 10, 10)
    shape = {"driver": "GTiff", "width": 40, "height": 40, "count": 3, "dtype": "uint8"}
    with rasterio.open(tmp_path / "map.tif", "w", crs="EPSG:32632", transform=place, **shape) as raster:
        raster.write(np.zeros((3, 40, 40), np.uint8))
    tifffile.imwrite(tmp_path / "plain.tif", np.zeros((40, 40, 3), np.uint8))
    (tmp_path / "some.vrt").write_text("<VRTDataset/>")
    draw(tmp_path / "photo.png")
    named = [tmp_path / name for name in ("map.tif", "plain.tif", "some.vrt", "photo.png")]
    found = find_inputs(named)
    assert found.rasters == (str(tmp_path / "map.tif"), str(tmp_path / "some.vrt"))
    assert [path.name for path in found.images] == ["plain.tif", "photo.png"]
    assert [path.name for path in find_inputs([tmp_path]).images] == ["map.tif", "photo.png", "plain.tif"]
    for pattern in (f"{tmp_path}/*.tif", f"{tmp_path}/**/*.tif"):  # georeferenced scenes in thousands
        found = find_inputs([pattern])
        assert not found.rasters and [path.name for path in found.images] == ["map.tif", "plain.tif"]
        assert len(find_inputs([pattern], raster=True).rasters) == 2
    assert find_inputs([f"{tmp_path}/*.vrt"]).rasters == (str(tmp_path / "some.vrt"),)
    assert find_inputs(["/vsimem/x.tif"], raster=True).rasters == ("/vsimem/x.tif",)
    assert len(find_inputs(named, raster=True).rasters) == 4 and len(find_inputs(named, raster=False).images) == 4


def test_without_rasterio_a_georeferenced_tiff_is_not_treated_as_a_photograph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    geokeys = [(34735, "H", 4, (1, 1, 0, 0), False)]
    tifffile.imwrite(tmp_path / "map.tif", np.zeros((40, 40, 3), np.uint8), extratags=geokeys)
    tifffile.imwrite(tmp_path / "plain.tif", np.zeros((40, 40, 3), np.uint8))
    (tmp_path / "broken.tif").write_bytes(b"II*")
    monkeypatch.setitem(sys.modules, "rasterio", None)  # as where it is not installed
    with pytest.raises(UserError, match=r"map\.tif is a raster .*scenedistill\[use\]"):
        find_inputs([tmp_path / "map.tif"])
    assert len(find_inputs([tmp_path / "map.tif"], raster=False).images) == 1
    assert len(find_inputs([tmp_path / "plain.tif", tmp_path / "broken.tif"]).images) == 2


# what is written


def test_the_results_are_those_of_the_network_in_the_order_of_the_inputs(
    tiny_scenes: Path, model: SceneModel, tmp_path: Path
) -> None:
    out = tmp_path / "found"
    result = predict_images(model, [tiny_scenes], out, ImagesConfig(batch_size=7, embeddings=True))
    paths = sorted(tiny_scenes.rglob("*.png"))
    expected = model.predict(np.stack([read_scene(path, SIZE) for path in paths]))
    rows, objects = table(out), lines(out)
    assert [row["path"] for row in rows] == [item["path"] for item in objects] == [str(path) for path in paths]
    assert list(rows[0]) == ["path", "class", "confidence", *(f"p_{name}" for name in CLASSES)]
    for row, item, probabilities in zip(rows, objects, expected.probabilities, strict=True):
        assert row["class"] == item["class"] == CLASSES[probabilities.argmax()]
        assert float(row["confidence"]) == item["confidence"] == pytest.approx(probabilities.max(), abs=2e-6)
        assert [float(row[f"p_{name}"]) for name in CLASSES] == pytest.approx(probabilities.tolist(), abs=2e-6)
        assert list(item["probabilities"]) == list(CLASSES)
        assert sum(item["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    with np.load(out / "embeddings.npz") as kept:
        assert kept["paths"].tolist() == [str(path) for path in paths]
        assert np.allclose(kept["embeddings"], expected.embedding, atol=1e-5)
    assert result.images == len(paths) == sum(result.counts.values()) and not result.skipped and result.before == 0
    assert {file.name for file in result.files} == {file.name for file in out.iterdir()}
    again = predict_images(
        model, [paths[5]], out, ImagesConfig(sheet="none")
    )  # other inputs: the tables hold these alone
    assert len(table(out)) == 1 and again.images == 1 and not list(out.glob("contact_sheet_*"))
    with np.load(out / "embeddings.npz") as kept:  # may have taken hours, and says what it is of
        assert len(kept["paths"]) == len(paths)


def test_odd_images_are_treated_as_in_training_and_bad_ones_named(model: SceneModel, tmp_path: Path) -> None:
    folder = tmp_path / "Überflug 1"
    rng = np.random.default_rng(1)
    deep = rng.integers(0, 4000, (40, 44, 3), dtype=np.uint16)
    draw(folder / "a photo.jpg", (300, 200))
    tifffile.imwrite(folder / "deep.tif", deep)
    tifffile.imwrite(folder / "four.tif", rng.integers(0, 255, (40, 44, 4), dtype=np.uint8), photometric="rgb")
    Image.fromarray(rng.integers(0, 255, (40, 44), dtype=np.uint8)).save(folder / "grey.png")
    (folder / "cut.png").write_bytes(draw(tmp_path / "whole.png").read_bytes()[:900])
    (folder / "no image.jpg").write_text("hello")
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    out = tmp_path / "out"
    result = predict_images(model, [folder], out, ImagesConfig(batch_size=2))
    good = ["a photo.jpg", "deep.tif", "four.tif", "grey.png"]
    assert [Path(row["path"]).name for row in table(out)] == good
    for row in table(out):
        seen = model.predict([read_scene(Path(row["path"]), SIZE)])
        assert row["class"] == CLASSES[seen.probabilities.argmax()]
        assert float(row["confidence"]) == pytest.approx(float(seen.probabilities.max()), abs=2e-6)
    reasons = {Path(path).name: reason for path, reason in result.skipped}
    assert set(reasons) == {"cut.png", "no image.jpg", "gone.png"}
    assert reasons["no image.jpg"] == "not a JPEG, PNG, TIFF or WebP image" and reasons["gone.png"] == "no such file"
    with (out / "skipped.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [["path", "reason"], *map(list, result.skipped)]
    assert "skipped 3" in str(result) and "cut.png" in str(result)
    stretched = predict_images(model, [folder / "deep.tif"], out, ImagesConfig(value_range=(0, 4000), sheet="none"))
    seen = model.predict([read_scene(folder / "deep.tif", SIZE, value_range=(0, 4000))])
    assert float(table(out)[0]["confidence"]) == pytest.approx(float(seen.probabilities.max()), abs=2e-6)
    assert not stretched.skipped and not (out / "skipped.csv").exists()


def test_no_cell_of_a_table_is_a_formula(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("=HYPERLINK(1)", "@b", "-c", "+d")
    net = build_student("table1_printed", 4, image_size=SIZE)
    save_net(net, NetCard("table1_printed", names, 3, SIZE), tmp_path / "net.safetensors")
    for name in ("=1.png", "-a/b.png", "@c.png"):
        draw(tmp_path / name)
    (tmp_path / "+d.png").write_text("no image")
    monkeypatch.chdir(tmp_path)
    given = ["=1.png", "-a", "@c.png", "+d.png"]
    predict_images(open_model("net.safetensors", device="cpu"), given, "out", ImagesConfig(sheet="none"))
    rows = table(tmp_path / "out")
    assert [row["path"] for row in rows] == ["./=1.png", "./-a/b.png", "./@c.png"], "still paths of the same files"
    assert {row["class"] for row in rows} <= {f"'{name}" for name in names}
    for name in ("predictions.csv", "skipped.csv"):
        with (tmp_path / "out" / name).open(encoding="utf-8", newline="") as file:
            assert not [cell for row in csv.reader(file) for cell in row if cell.startswith(("=", "+", "-", "@"))]
    assert [one["path"] for one in lines(tmp_path / "out")] == ["=1.png", "-a/b.png", "@c.png"]
    assert {one["class"] for one in lines(tmp_path / "out")} <= set(names), "programs read the names as they are"


def test_images_with_too_few_bands_are_skipped_even_if_none_remain(tmp_path: Path) -> None:
    four = open_model(make_model(tmp_path, bands=4), device="cpu", precision="fp32")
    tifffile.imwrite(tmp_path / "four.tif", np.full((40, 40, 4), 90, np.uint8), photometric="rgb", extrasamples=[0])
    draw(tmp_path / "three.png")
    result = predict_images(four, [tmp_path / "four.tif", tmp_path / "three.png"], tmp_path / "out")
    assert result.images == 1 and "has 3 bands" in dict(result.skipped)[str(tmp_path / "three.png")]
    nothing = predict_images(four, [tmp_path / "three.png"], tmp_path / "out", ImagesConfig(embeddings=True))
    assert nothing.images == 0 and table(tmp_path / "out") == [] and not list((tmp_path / "out").glob("*.png"))
    with np.load(tmp_path / "out" / "embeddings.npz") as kept:
        assert len(kept["paths"]) == 0 and kept["embeddings"].shape[0] == 0


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux alone")
def test_names_that_are_not_utf8_are_predicted_and_the_result_folder_is_ignored(
    model: SceneModel, tmp_path: Path
) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    draw(odd)
    draw(tmp_path / "new\nline.png", seed=1)
    out = tmp_path / "out"
    for _ in range(2):  # the second time there are pictures in the folder of the results
        result = predict_images(model, [tmp_path], out)
        assert [row["path"] for row in table(out)] == [f"{tmp_path}/caf\\xe9.png", f"{tmp_path}/new\nline.png"]
    assert shown_path(odd) == f"{tmp_path}/caf\\xe9.png" and result.images == 2
    inside = predict_images(model, [tmp_path], tmp_path)  # and where both are the same folder
    assert predict_images(model, [tmp_path], tmp_path).images == inside.images == 3  # with the sheet in `out`


# what survives


def kept_in(journal: Path, options: str = "") -> int:
    """How many images a journal holds; `?immutable=1` reads past the lock of the process that writes it."""
    with contextlib.closing(sqlite3.connect(f"{journal.as_uri()}{options}", uri=True)) as database:
        try:
            return int(database.execute("SELECT count(*) FROM images").fetchone()[0])
        except sqlite3.DatabaseError:  # in the middle of a change
            if not options:
                raise
            return 0


def test_a_killed_prediction_resumes_without_gaps_or_duplicates(
    network: Path, tiny_scenes: Path, tmp_path: Path
) -> None:
    """A process is killed (-9) at work; what is left is what an undisturbed one writes."""
    out, calm = tmp_path / "killed", tmp_path / "calm"
    worker = Path(__file__).with_name("prediction_worker.py")
    command = [sys.executable, str(worker), str(network), str(tiny_scenes), str(out)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment)
    end = time.monotonic() + 120
    while sum(kept_in(file, "?immutable=1") for file in out.glob("unfinished-*.sqlite")) < 12:
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -9
    (left,) = out.glob("unfinished-*.sqlite")
    done = kept_in(left)
    assert 8 <= done < 64 and not (out / "predictions.csv").exists()
    slow = open_model(network, device="cpu", precision="fp32")
    result = predict_images(slow, [tiny_scenes], out, ImagesConfig(batch_size=4, embeddings=True))
    assert result.before == done and result.images == 64
    predict_images(slow, [tiny_scenes], calm, ImagesConfig(batch_size=4, embeddings=True))
    for name in ("predictions.csv", "predictions.jsonl"):
        ours, theirs = (folder / name for folder in (out, calm))
        assert ours.read_text(encoding="utf-8") == theirs.read_text(encoding="utf-8")
    with np.load(out / "embeddings.npz") as one, np.load(calm / "embeddings.npz") as other:
        assert np.array_equal(one["paths"], other["paths"])
        assert np.allclose(one["embeddings"], other["embeddings"], atol=1e-5)
    assert not list(out.glob("unfinished*"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.slow
def test_a_kill_at_any_rename_or_delete_leaves_nothing_permanent(network: Path, tmp_path: Path) -> None:
    own = {"predictions.csv", "predictions.jsonl", "predict.files.json", "embeddings.npz"}
    script = Path(__file__).with_name("killed_at.py")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, script, "images", network, draw(tmp_path / "a.png"), tmp_path / "out"]
    done = subprocess.run([str(word) for word in words], env=environment, capture_output=True, text=True, check=True)
    kills = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(kills) >= 4
    for kill in kills:
        assert set(kill["same"]) == own, kill
        unfinished = {name for name in kill["left"] if name.startswith("unfinished")}
        left = {name for name in kill["other"] if name.startswith("unfinished")}
        assert left == unfinished, kill  # what may still be gone on with, and nothing else


class Interrupted(Exception):
    """Stands for whatever ends a process."""


def interrupted(model: SceneModel, after: int, monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> None:
    """A prediction that ends after some batches."""
    left, answer = after, model.predict

    def some(images: Any) -> Any:
        nonlocal left
        left -= len(images) > 0
        if left < 0:
            raise Interrupted
        return answer(images)

    with monkeypatch.context() as patch:
        patch.setattr(model, "predict", some)
        with pytest.raises(Interrupted):
            predict_images(model, *arguments)


def test_resuming_reads_changed_files_again_and_separates_other_settings(
    model: SceneModel, network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    for number in range(8):
        draw(folder / f"{number}.png", seed=number)
    interrupted(model, 3, monkeypatch, [folder], out, ImagesConfig(batch_size=2))
    draw(folder / "1.png", (50, 50), seed=99)
    (folder / "3.png").unlink()
    draw(folder / "0 new.png", seed=100)
    other = open_model(make_model(tmp_path, seed=1), device="cpu", precision="fp32")
    assert predict_images(other, [folder], tmp_path / "out").before == 0  # another network has nothing to do with it
    assert len(list(out.glob("unfinished-*.sqlite"))) == 1
    interrupted(model, 0, monkeypatch, [folder], tmp_path / "anew", ImagesConfig(batch_size=8))
    interrupted(model, 0, monkeypatch, [folder], out, ImagesConfig(batch_size=2))  # so soon that nothing was added
    result = predict_images(model, [folder], out, ImagesConfig(batch_size=2))
    assert result.before == 4 and result.images == 8  # 0, 2, 4, 5; 1 is new, 3 is gone
    predict_images(model, [folder], tmp_path / "calm")
    assert table(out) == table(tmp_path / "calm")
    interrupted(model, 3, monkeypatch, [folder], out, ImagesConfig(batch_size=2))
    assert predict_images(model, [folder], out, ImagesConfig(restart=True)).before == 0


def test_a_second_process_cannot_write_to_the_same_folder(model: SceneModel, tmp_path: Path) -> None:
    image = draw(tmp_path / "a.png")
    settings = {"network": "x"}
    with Journal(tmp_path, settings).opened() as first:
        for restart in (False, True):
            second = Journal(tmp_path, settings).opened(restart=restart)
            with pytest.raises(UserError, match="another process"):
                second.__enter__()
        first.add([Entry("a", None, reason="no such file")])
        assert first.get("a")
    assert predict_images(model, [image], tmp_path / "out").images == 1


def filled(folder: Path) -> Path:
    """The path of a journal with three entries, two of them with an embedding."""
    with Journal(folder, {}).opened() as journal:
        journal.add([Entry("a", (1, 2), (0.25, 0.75)), Entry("bad", None, reason="no such file")], np.ones((1, 2)))
        journal.add([Entry("b", (3, 4), (0.5, 0.5))], np.full((1, 2), 2.0))
    return journal.path


def test_the_journal_returns_what_was_added(tmp_path: Path) -> None:
    filled(tmp_path)
    with Journal(tmp_path, {}).opened() as journal:
        assert journal.get("a") == Entry("a", (1, 2), (0.25, 0.75)) and journal.get("c") is None
        assert journal.get("bad") == Entry("bad", None, reason="no such file")
        journal.add([Entry("b", (5, 6), (1.0, 0.0))], np.full((1, 2), 3.0))
        assert journal.get("b") == Entry("b", (5, 6), (1.0, 0.0))
        assert [np.frombuffer(journal.embedding(name), "<f4").tolist() for name in "ab"] == [[1, 1], [3, 3]]
        assert not journal.lost
        journal.remove()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["no database", "cut short", "a page", "an entry"])
def test_a_damaged_journal_is_not_resumed(damage: str, tmp_path: Path) -> None:
    path = filled(tmp_path)
    content = path.read_bytes()
    path.write_bytes(
        {
            "no database": b"no database" + content[11:],
            "cut short": content[:5000],
            "a page": content[:4096] + bytes(4096) + content[8192:],
            "an entry": content.replace(b"[[1, 2], [0.25", b"[[1, 2], \xff0.25"),
        }[damage]
    )
    with Journal(tmp_path, {}).opened() as journal:
        assert journal.get("a") is None
        if damage != "an entry":
            assert journal.lost == f"{path} is damaged"
        journal.add([Entry("a", (1, 2), (0.5, 0.5))])
    with Journal(tmp_path, {}).opened() as journal:
        assert journal.get("a") == Entry("a", (1, 2), (0.5, 0.5))


def test_a_journal_of_an_older_version_is_begun_anew(
    model: SceneModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, out, said = draw(tmp_path / "a.png"), tmp_path / "out", io.StringIO()
    interrupted(model, 0, monkeypatch, [image], out)
    (path,) = out.glob("unfinished-*")
    path.rename(path.with_suffix(".jsonl"))
    path.with_suffix(".f32").touch()
    result = predict_images(model, [image], out, console=plain_console(file=said, width=500))
    assert (
        f"{out} holds predictions in the form of an older version: all images are predicted again." in said.getvalue()
    )
    assert result.images == 1 and not list(out.glob("unfinished-*"))


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("batch_size", ImagesConfig(batch_size=-1)),
        ("sheet_pages", ImagesConfig(sheet_pages=-1)),
        ("workers", ImagesConfig(workers=-1)),
    ],
)
def test_numbers_below_one_are_refused(name: str, config: ImagesConfig, model: SceneModel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{name} is -1; expected 1 or more"):
        predict_images(model, [draw(tmp_path / "a.png")], tmp_path / "out", config)
    assert not (tmp_path / "out").exists()


def test_files_of_other_programs_are_kept(model: SceneModel, tmp_path: Path) -> None:
    image, out = draw(tmp_path / "in" / "a.png"), tmp_path / "out"
    out.mkdir()
    for name in ("contact_sheet_02.png", "skipped.csv", "embeddings.npz", "mine.txt"):
        (out / name).write_text("mine")
    predict_images(model, [image], out)
    assert [
        name for name in ("contact_sheet_02.png", "skipped.csv", "embeddings.npz") if not (out / name).exists()
    ] == []
    assert (out / "contact_sheet_01.png").exists()
    (out / "predict.files.json").write_text('{"files": ["../in/a.png", "contact_sheet_01.png"]}')  # and no way out
    predict_images(model, [image], out, ImagesConfig(sheet="none"))
    assert image.exists() and not (out / "contact_sheet_01.png").exists() and (out / "mine.txt").exists()


# the contact sheet


def shown(count: int, label: int, start: float) -> list[Shown]:
    return [Shown(Path(f"{label}-{n}"), f"{label}-{n}", label, start + n / 1000) for n in range(count)]


def test_a_sheet_shows_the_least_sure_and_every_class_when_not_all_fit() -> None:
    few = plan(shown(3, 1, 0.9) + shown(2, 0, 0.5), "class", 1)
    assert [image.name for image in few.shown] == ["0-0", "0-1", "1-0", "1-1", "1-2"] and "5 images" in few.title
    room = COLUMNS * ROWS
    many = shown(5, 0, 0.1) + shown(400, 1, 0.2) + shown(300, 2, 0.3)
    chosen = plan(many, "class", 2)
    counts = [sum(image.label == label for image in chosen.shown) for label in range(3)]
    assert counts[0] == 5 and counts[1] == counts[2] and 2 * room - 2 <= sum(counts) <= 2 * room
    assert max(image.confidence for image in chosen.shown if image.label == 1) < 0.2 + counts[1] / 1000
    doubtful = plan(many, "doubtful", 1)
    assert len(doubtful.shown) == room and doubtful.shown[0].name == "0-0" and f"{room} least sure" in doubtful.title


def test_pages_are_written_and_hold_what_they_should(tmp_path: Path) -> None:
    red = Image.new("RGB", (60, 30), (250, 0, 0))
    red.save(tmp_path / "red.png")
    images = [Shown(tmp_path / "red.png", "a name that is far too long to be printed whole.png", 0, 0.97)]
    images += [Shown(tmp_path / "gone.png", "gone.png", 1, 0.4)] * (COLUMNS * ROWS)
    written = draw_sheets(images, ["forêt 森林 with a very long name indeed", "river"], tmp_path)
    assert [path.name for path in written] == ["contact_sheet_01.png", "contact_sheet_02.png"]
    assert sorted(tmp_path.glob("contact_sheet_*")) == written
    with Image.open(written[0]) as page:
        pixels = np.asarray(page.convert("RGB"))
        is_red = (pixels[..., 0] > 240) & (pixels[..., 1] < 20) & (pixels[..., 2] < 20)
        rows, columns = np.nonzero(is_red)
        assert np.ptp(columns) + 1 == 2 * (np.ptp(rows) + 1) == 144  # proportions kept
    with Image.open(written[1]) as page:
        assert page.width < pixels.shape[1] and page.height < pixels.shape[0]


@pytest.mark.shared_data
def test_real_images_are_predicted_and_shown(aid_folder: Path, model: SceneModel, tmp_path: Path) -> None:
    folder = sorted(path for path in aid_folder.iterdir() if path.is_dir())[0]
    result: ImagesResult = predict_images(model, [f"{folder}/*1.jpg"], tmp_path, ImagesConfig(sheet="doubtful"))
    assert result.images == len(list(folder.glob("*1.jpg"))) > 5 and (tmp_path / "contact_sheet_01.png").is_file()
