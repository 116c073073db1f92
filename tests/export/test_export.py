"""Export of a run's student: what lies in the folder, what is checked, what is not left behind."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from rich.console import Console

from scenedistill.core.errors import Damaged, UserError
from scenedistill.export import run as exporting
from scenedistill.export.check import FileCheck
from scenedistill.export.config import ExportConfig
from scenedistill.export.model_card import model_card
from scenedistill.export.run import export
from scenedistill.inference.exported import PART, check_exported, claim
from scenedistill.inference.model import OnnxSceneModel, open_model
from scenedistill.models.files import NetCard
from scenedistill.runs import images as run_images

pytest.importorskip("onnxscript", reason="needs onnxscript: pip install -e '.[use]'")
QUICK = ExportConfig(formats=["safetensors"], images=8, repeats=0)


@pytest.fixture(scope="module")
def student(tiny_run: Path) -> Path:
    return tiny_run / "seed3" / "table1_printed" / "dkd"


@pytest.fixture
def cached(commands: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The decoded images that the finished run has used."""
    monkeypatch.setenv("SCENEDISTILL_CACHE", str(commands.folder / "cache"))


@pytest.fixture(scope="module")
def exported(tiny_run: Path, commands: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything, by the command. Read only."""
    out = tmp_path_factory.mktemp("export") / "student"
    ended = commands("export", tiny_run, "--out", out, "--repeats", "3", "--threads", "1", "--images", "0")
    assert ended.code == 0, ended.out + ended.err
    assert "Checked on 32 of 32 test images" in ended.out and "model.int8.onnx" in ended.out
    return out


def test_every_file_is_there_checked_and_opens(exported: Path, student: Path) -> None:
    files = {"model.safetensors", "model.onnx", "model.int8.onnx", "model.pt2"}
    assert {path.name for path in exported.iterdir()} == files | {"model.json", "export.json", "README.md"}
    record = json.loads((exported / "export.json").read_text(encoding="utf-8"))
    assert set(record["files"]) == files and record["threads"] == 1
    oa = json.loads((student / "evaluation" / "stage.json").read_text(encoding="utf-8"))["record"]["oa"]
    for name, found in record["files"].items():
        assert found["bytes"] == (exported / name).stat().st_size and found["images"] == 32 and not found["failure"]
        if name != "model.int8.onnx":
            assert found["oa"] == pytest.approx(oa) and found["equal"] == 1.0
            assert found["difference"] <= found["allowed"] < 0.1
        assert set(found["milliseconds"]) == (set() if name == "model.safetensors" else {"1", "64"})
    for name in ("model.onnx", "model.pt2", "model.int8.onnx"):
        own = record["files"][name]
        assert own["from_files"]["images"] == own["other_sizes"]["images"] == 32
        assert name == "model.int8.onnx" or own["from_files"]["equal"] == own["other_sizes"]["equal"] == 1.0
    assert "PyTorch fp32" in record["others"] and any(name.startswith("teacher") for name in record["others"])

    models = [open_model(exported / name, device="cpu", precision="fp32", trust=True) for name in sorted(files)]
    assert len({model.card for model in models}) == 1
    small, exact = models[0].about, models[1].about
    assert all(dict(model.about) == dict(exact) for model in models[1:])
    assert exact["method"] == "dkd" and exact["split_hash"] and exact["oa"] == pytest.approx(oa)
    assert exact["normalisation"] == {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    own = {"oa": record["files"]["model.int8.onnx"]["oa"], "test_images": 32, "oa_of_the_run": exact["oa"]}
    assert small == {**exact, **own}
    assert open_model(exported).source.name == "model.safetensors"
    card = json.loads((exported / "model.json").read_text(encoding="utf-8"))
    assert card["classes"] == list(models[0].card.classes) and card["oa"] == exact["oa"]


def test_the_model_card_is_valid_and_its_code_runs(exported: Path, tiny_scenes: Path, tmp_path: Path) -> None:
    text = (exported / "README.md").read_text(encoding="utf-8")
    _, head, body = text.split("---\n", 2)
    metadata = yaml.safe_load(head)
    assert metadata["pipeline_tag"] == "image-classification" and metadata["license"] == "other"
    assert metadata["model-index"][0]["results"][0]["metrics"][0]["type"] == "accuracy"
    assert "`model.int8.onnx`" in body and "forêt" in body and "hash of the split" in body
    assert str(exported) not in text and str(tiny_scenes) not in text

    for path in exported.iterdir():
        shutil.copy(path, tmp_path)
    picture = next(iter(sorted((tiny_scenes / "forêt").glob("*.png"))))
    Image.open(picture).save(tmp_path / "scene.jpg", quality=95)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(tmp_path)
        pieces = [piece.split("```")[0] for piece in body.split("```python\n")[1:]]
        assert len(pieces) == 3
        named = []
        for piece in pieces:
            names: dict[str, Any] = {"print": lambda *words: named.append(str(words[0]))}
            exec(piece, names)
    assert len(named) == 3 and len(set(named)) == 1 and named[0] in body


def test_the_code_of_the_model_card_takes_images_of_the_networks_bands() -> None:
    found = FileCheck("model.onnx", 10**6, 100, 0.9, 1.0, 1e-4, 1e-2, 0)
    text = model_card([found], {}, NetCard("table1_printed", ("land", "sea"), 4, 64), {})
    assert 'np.load("scene.npy"))[None]  # uint8 [batch, height, width, 4]' in text and "PIL" not in text


def test_a_damaged_export_is_named_when_it_is_opened(exported: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported, tmp_path / "copy"))
    record = json.loads((folder / "export.json").read_text(encoding="utf-8"))
    for name in ("model.onnx", "model.pt2"):
        content = bytearray((folder / name).read_bytes())
        assert record["files"][name]["sha256"] == hashlib.sha256(content).hexdigest()
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)
        with pytest.raises(Damaged, match=f"{name} is damaged: it does not fit its checksum in export.json"):
            open_model(folder / name, device="cpu", trust=True)
    assert open_model(folder / "model.int8.onnx", device="cpu").card.classes
    (folder / PART).mkdir()
    new = {"files": {"model.onnx": {"sha256": hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()}}}
    (folder / PART / "export.json").write_text(json.dumps(new), encoding="utf-8")
    check_exported(folder / "model.onnx")  # an export that replaces another one is at work
    shutil.rmtree(folder / PART)
    changed = (folder / "export.json").read_text(encoding="utf-8").replace('"threads": 1', '"threads": 2')
    (folder / "export.json").write_text(changed, encoding="utf-8")
    with pytest.raises(Damaged, match=r"export\.json is damaged"):
        open_model(folder / "model.int8.onnx", device="cpu")
    (folder / "export.json").unlink()
    open_model(folder / "model.int8.onnx", device="cpu")
    check_exported(folder / "model.onnx")


def earlier_export(folder: Path, *names: str) -> None:
    """What an export of these networks has left."""
    folder.mkdir(exist_ok=True)
    for name in (*names, "model.json", "README.md"):
        (folder / name).write_text("old")
    record = {"about": {}, "files": {name: {"failure": ""} for name in names}}
    (folder / "export.json").write_text(json.dumps(record))


def test_an_earlier_export_is_replaced(student: Path, cached: None, tmp_path: Path) -> None:
    earlier_export(tmp_path, "model.onnx", "model.pt2")
    (tmp_path / "mine.txt").write_text("mine")
    found = export(student, tmp_path, QUICK, console=Console(quiet=True))
    assert [file.name for file in found.files] == ["model.safetensors"] and not found.others
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"model.safetensors", "model.json", "export.json", "README.md", "mine.txt"}
    assert (tmp_path / "README.md").read_text(encoding="utf-8") != "old"


@pytest.mark.parametrize("name", ["README.md", "model.json", "export.json", "model.onnx"])
def test_files_not_written_by_an_export_are_kept(student: Path, cached: None, tmp_path: Path, name: str) -> None:
    if name == "model.onnx":
        earlier_export(tmp_path, "model.pt2")  # which does not know of it
    (tmp_path / name).write_text('{"mine": 1}')
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match=f"holds {name}, which no export has written"):
        export(student, tmp_path, QUICK, console=Console(quiet=True))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_export_that_was_killed_while_it_put_its_files_is_brought_to_its_end(tmp_path: Path) -> None:
    earlier_export(tmp_path, "model.onnx", "model.pt2")
    earlier_export(tmp_path / PART, "model.safetensors", "model.pt2")
    for name in ("model.safetensors", "model.pt2", "model.json", "README.md"):
        (tmp_path / PART / name).write_text("new")
    (tmp_path / PART / "model.safetensors").replace(tmp_path / "model.safetensors")  # as far as it came
    (tmp_path / "README.md").unlink()
    claim(tmp_path)
    networks = {"model.safetensors", "model.pt2"}
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {
        *networks,
        *("model.json", "export.json", "README.md"),
    }
    assert all((tmp_path / name).read_text() == "new" for name in (*networks, "model.json", "README.md"))
    assert set(json.loads((tmp_path / "export.json").read_text())["files"]) == networks


def test_all_test_images_are_checked_unless_that_takes_long(
    student: Path, cached: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = Console(record=True, width=300)
    unsaid = ExportConfig(formats=["safetensors"], repeats=0)
    assert export(student, tmp_path, unsaid, console=said).files[0].images == 32
    assert "Checked on 32 of 32 test images\n" in said.export_text()
    monkeypatch.setattr(exporting, "MOST_SECONDS", 0)  # instead of so many images that checking them takes minutes
    monkeypatch.setattr(run_images, "SAMPLE", 8)
    assert export(student, tmp_path, unsaid, console=said).files[0].images == 8
    assert "Checked on 8 of 32 test images: all would take more" in said.export_text()


def test_a_file_that_fails_is_not_left_behind(
    student: Path, cached: None, exported_nets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def foreign(net: Any, card: Any, about: Any, path: Path) -> None:
        shutil.copy(exported_nets["pt2"], path)  # a whole program, of another network

    monkeypatch.setattr(exporting, "write_program", foreign)  # as of an exporter with a fault
    both = ExportConfig(formats=["pt2", "safetensors"], images=8, repeats=0)
    earlier_export(tmp_path, "model.pt2")
    with pytest.raises(UserError, match=r"model\.pt2 failed its check and was not kept: its logits differ"):
        export(student, tmp_path, both, console=Console(quiet=True))
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"model.safetensors", "model.json", "export.json", "README.md"}
    assert "pt2" not in (tmp_path / "README.md").read_text(encoding="utf-8")
    alone = ExportConfig(formats=["pt2"], images=8, repeats=0)
    for place in (tmp_path, tmp_path / "alone"):  # nothing passed: nothing is taken away
        before = {path.name: path.read_bytes() for path in place.glob("*")}
        with pytest.raises(UserError, match="failed its check"):
            export(student, place, alone, console=Console(quiet=True))
        assert {path.name: path.read_bytes() for path in place.glob("*")} == before


@pytest.mark.parametrize("gone", ["the decoded images", "the note of where they are, which older runs lack"])
def test_images_are_found_or_their_folder_is_requested(
    gone: str, tiny_run: Path, tiny_scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCENEDISTILL_CACHE", str(tmp_path / "cache"))
    copy = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    for path in copy.rglob("stage.json"):
        stage = json.loads(path.read_text(encoding="utf-8"))
        del stage["checksum"]
        if path.parent.name != "evaluation":
            images = stage["record"].pop("images")
            if gone == "the decoded images":
                stage["record"]["images"] = {**images, "cache": str(tmp_path / "nowhere")}
        path.write_text(json.dumps(stage), encoding="utf-8")
    with pytest.raises(UserError, match="Give the folder they come from with --data"):
        export(copy, tmp_path / "out", QUICK, console=Console(quiet=True))
    assert not (tmp_path / "out").exists()
    found = export(copy, tmp_path / "out", QUICK, data=tiny_scenes, console=Console(quiet=True))
    assert found.files[0].images == 8 and found.files[0].equal == 1.0


def test_another_split_is_refused(student: Path, tiny_run: Path, cached: None, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(tiny_run, copy)
    split = copy / "seed3" / "split.csv"
    lines = split.read_text(encoding="utf-8").splitlines()
    swapped = [line.replace(",test", ",train") if number == 1 else line for number, line in enumerate(lines)]
    if swapped == lines:
        swapped = [line.replace(",train", ",test") if number == 1 else line for number, line in enumerate(lines)]
    split.write_text("\n".join(swapped) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match="was trained on"):
        export(copy, tmp_path / "out", QUICK, console=Console(quiet=True))
    split.unlink()
    with pytest.raises(UserError, match="lies in no run"):
        export(copy, tmp_path / "out", QUICK, console=Console(quiet=True))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--formats", "[onxx]"), "onxx"),
        (("--formats", "[]"), "expected one or more of"),
        (("--calibration", "0"), "--calibration is 0; expected 1 or more"),
        (("--images", "-1"), "--images is -1"),
        (("--threads", "-1"), "--threads is -1"),
        (("--push_to", "anna"), "expected USER/NAME"),
    ],
)
def test_wrong_settings_are_refused(
    options: tuple[str, ...], said: str, student: Path, commands: Any, tmp_path: Path
) -> None:
    ended = commands("export", student, "--out", tmp_path / "out", *options)
    assert ended.code in (1, 2) and said in ended.err and "Traceback" not in ended.err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_api_takes_a_weights_file(student: Path, cached: None, tmp_path: Path) -> None:
    weights = student / "weights.safetensors"
    found = export(str(weights), str(tmp_path), ExportConfig(formats=["onnx"], images=8, repeats=0), console=None)
    model = open_model(found.folder / "model.onnx")
    assert isinstance(model, OnnxSceneModel)
    images = np.random.default_rng(0).integers(0, 256, (2, 50, 31, 3), dtype=np.uint8)
    expected = open_model(weights, device="cpu", precision="fp32").predict(images)
    np.testing.assert_allclose(model.predict(images).logits, expected.logits, atol=0.02)


def test_names_are_printed_as_they_are(student: Path, cached: None, commands: Any, tmp_path: Path) -> None:
    out = tmp_path / "runs" / "weird [bold] x[v2] #1"
    given = ("--formats", "[safetensors]", "--images", "8", "--repeats", "0")
    ended = commands("export", student, "--out", out, *given)
    assert ended.code == 0 and f"Written to {out}: model.safetensors" in ended.out
    others = {"teacher [/x] y[v2]": {"bytes": 10**6, "milliseconds": {}}}
    console = Console(record=True, width=200)
    console.print(exporting.table(exporting.Exported(out, (), others)))
    assert "teacher [/x] y[v2]" in console.export_text()
    ended = commands("export", student, "--out", f"{out}/[/x]", *given)
    assert ended.code == 0 and f"Written to {out}/[/x]: model.safetensors" in ended.out


def test_a_folder_whose_name_is_no_utf_8_is_refused_before_the_work(student: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"M\\xfcller: safetensors takes only names in UTF-8"):
        export(student, tmp_path / os.fsdecode(b"M\xfcller"), QUICK)
    assert not list(tmp_path.iterdir())
