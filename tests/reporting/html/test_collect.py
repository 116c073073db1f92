"""What is read from a run's and a grid's folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from scenedistill.core.errors import UserError
from scenedistill.data.scenes import scan
from scenedistill.data.splits.files import read_split
from scenedistill.reporting.html.page import write_report
from scenedistill.runs.run import Run


def test_a_run_is_one_cell_with_its_networks_in_order(made: Any) -> None:
    data = Run.open(made.run)
    (cell,) = data.cells
    assert data.name == "run" and cell.key == "" and cell.seeds() == [0, 1] and cell.ratio == 0.5
    assert [(n.student, n.label, n.seed) for n in cell.networks] == [
        (None, "teacher", 0),
        (None, "teacher", 1),
        ("table1_printed", "plain", 0),
        ("table1_printed", "plain", 1),
        ("table1_printed", "dkd", 0),
        ("table1_printed", "dkd", 1),
    ]
    assert data.title_of(cell) == "scenes.csv, 50 % training"
    assert not data.unfinished and not data.failures and data.baseline == "plain"


def test_the_test_images_are_those_of_the_split_in_the_order_of_the_outputs(made: Any) -> None:
    index = scan(made.manifest)
    for network in Run.open(made.run).cells[0].networks:
        split = read_split(made.run / f"seed{network.seed}" / "split.csv", index)
        assert list(network.test_paths) == [index.paths[i] for i in split.test]
        assert network.outputs is not None and network.confusion is not None
        counted = np.zeros_like(network.confusion)
        np.add.at(counted, (network.outputs.labels, network.outputs.predicted), 1)
        assert (counted == network.confusion).all()
        assert network.confusion.trace() / network.confusion.sum() == pytest.approx(network.tested["oa"])


def test_paths_that_do_not_fit_the_outputs_are_not_used(copied: Path) -> None:
    split = copied / "seed0" / "split.csv"
    lines = split.read_text(encoding="utf-8").splitlines()
    gone = next(line for line in lines if line.endswith(",test"))
    split.write_text("\n".join(line for line in lines if line != gone), encoding="utf-8")
    networks = Run.open(copied).cells[0].networks
    assert all(bool(network.test_paths) == (network.seed == 1) for network in networks)


def test_a_test_of_other_weights_and_a_folder_moved_aside_do_not_count(copied: Path) -> None:
    plain = copied / "seed0" / "table1_printed" / "plain"
    shutil.copytree(plain, plain.with_name("plain.previous-1"))
    record = json.loads((plain / "stage.json").read_text(encoding="utf-8"))
    (plain / "stage.json").write_text(json.dumps({**unsealed(record), "fingerprint": "another"}), encoding="utf-8")
    data = Run.open(copied)
    assert [(n.label, n.seed) for n in data.cells[0].networks if n.label.startswith("plain")] == [("plain", 1)]
    assert [(n.label, n.seed) for n in data.unfinished] == [("plain", 0)]


def test_a_grid_has_its_cells_tuning_and_failures(grid_folder: Path) -> None:
    data = Run.open(grid_folder)
    assert data.name == "mine" and [cell.key for cell in data.cells] == ["tiny-25", "tiny-50"]
    assert [data.title_of(cell) for cell in data.cells] == ["tiny, 25 % training", "tiny, 50 % training"]
    labels = list(dict.fromkeys(n.label for n in data.cells[0].networks))
    assert labels == ["teacher", "plain", "kd_hot", "dkd"], "the grid's own order"
    tuned = [n.folder.name for n in data.cells[1].networks if n.label == "dkd"]
    assert tuned == ["dkd@0.1"] * 2, "nor the untuned one, nor the other grid's sp"
    assert not data.others
    assert data.tuning["factors"] == [0.1, 1] and len(data.failures) == 1
    unfinished = [n.folder.relative_to(grid_folder).as_posix() for n in data.unfinished]
    assert unfinished == ["tiny-50/seed1/table1_printed/kd_hot"], "a tuning run is done without a test"


@pytest.mark.parametrize("what", ["missing", "empty", "a file"])
def test_a_folder_without_a_tested_network_is_refused(what: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    if what == "empty":
        folder.mkdir()
    elif what == "a file":
        folder.write_text("")
    with pytest.raises(UserError, match="is not a folder" if what != "empty" else "no trained and tested network"):
        Run.open(folder)


def test_damaged_files_are_treated_as_missing(copied: Path) -> None:
    (copied / "summary.json").write_text("{", encoding="utf-8")
    (copied / "settings.yaml").write_text(": [", encoding="utf-8")
    (copied / "seed0" / "teacher" / "stage.json").write_text("[]", encoding="utf-8")
    (copied / "seed1" / "teacher" / "evaluation" / "outputs.npz").write_bytes(b"no")
    (copied / "seed1" / "teacher" / "evaluation" / "test_confusion.csv").write_text("a,b\n", encoding="utf-8")
    data = Run.open(copied)
    teachers = [n for n in data.cells[0].networks if n.label == "teacher"]
    assert [n.seed for n in teachers] == [1] and teachers[0].outputs is None and teachers[0].confusion is None
    assert data.cells[0].summary == {} and data.name == "copied"


def test_a_second_grid_of_the_same_folder_shows_its_own_cells(grid_folder: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(grid_folder, tmp_path / "both"))
    second = {"name": "second", "datasets": {"tiny": "x"}, "ratios": [0.5], "seeds": [1]}
    second["methods"] = {"plain": {}, "sp": {}}
    (out / "second").mkdir()
    (out / "second" / "grid.yaml").write_text(yaml.safe_dump(second), encoding="utf-8")
    (out / "second" / "results.json").write_text(json.dumps({"data": "its own"}), encoding="utf-8")
    data = Run.open(out / "second")
    (cell,) = data.cells
    assert (data.name, cell.key, cell.summary) == ("second", "tiny-50", {"data": "its own"})
    assert [(n.label, n.seed) for n in cell.networks] == [("teacher", 1), ("plain", 1), ("sp", 1)]
    assert not data.tuning and not data.failures and not data.unfinished
    assert Run.open(out).name == "mine" and [cell.key for cell in Run.open(out).cells] == ["tiny-25", "tiny-50"]


def unsealed(record: dict[str, Any]) -> dict[str, Any]:
    """Without the checksum, which would tell of the change."""
    return {name: value for name, value in record.items() if name != "checksum"}


def change(stage: Path, **settings: Any) -> None:
    """Other settings and another fingerprint, tested as they were."""
    record = json.loads((stage / "stage.json").read_text(encoding="utf-8"))
    record["settings"].update(settings)
    record["fingerprint"] = f"{record['fingerprint']}-changed"
    (stage / "stage.json").write_text(json.dumps(unsealed(record)), encoding="utf-8")
    test = json.loads((stage / "evaluation" / "stage.json").read_text(encoding="utf-8"))
    test["settings"]["of"] = record["fingerprint"]
    (stage / "evaluation" / "stage.json").write_text(json.dumps(unsealed(test)), encoding="utf-8")


def test_networks_of_other_settings_or_another_teacher_are_left_out_and_named(copied: Path) -> None:
    change(copied / "seed0" / "table1_printed" / "plain", image_size=64)
    change(copied / "seed1" / "teacher")
    data = Run.open(copied)
    assert [(n.label, n.seed) for n in data.others] == [("plain", 0), ("dkd", 1)]
    left = [(n.label, n.seed) for n in data.cells[0].networks]
    assert left == [("teacher", 0), ("teacher", 1), ("plain", 1), ("dkd", 0)]
    (copied / "seed1" / "teacher" / "stage.json").unlink()
    assert [(n.label, n.seed) for n in Run.open(copied).others] == [("plain", 0)], "no teacher is there to differ from"
    assert [n.label for n in Run.open(copied).cells[0].networks if n.seed == 1] == ["plain", "dkd"]


def test_a_training_whose_record_is_damaged_is_named(copied: Path) -> None:
    record = copied / "seed0" / "table1_printed" / "plain" / "stage.json"
    record.write_bytes(record.read_bytes()[:40])
    data = Run.open(copied)
    assert data.damaged == ("seed0/table1_printed/plain",)
    assert [(n.label, n.seed) for n in data.cells[0].networks if n.label == "plain"] == [("plain", 1)]
    said: list[str] = []
    page = write_report(copied, say=said.append)
    assert said[0] == "Left out, for their stage.json is damaged: seed0/table1_printed/plain."
    assert said[0] in page.read_text(encoding="utf-8")


def test_settings_that_were_changed_are_named(copied: Path) -> None:
    assert Run.open(copied).unreadable == ()
    settings = copied / "settings.yaml"
    settings.write_bytes(settings.read_bytes().replace(b"train_ratio: 0.5", b"train_ratio: 0.7"))
    said: list[str] = []
    page = write_report(copied, say=said.append)
    assert said[0] == "Not shown, for it is damaged or was changed since it was written: settings.yaml."
    assert said[0] in page.read_text(encoding="utf-8")
    settings.unlink()
    assert Run.open(copied).unreadable == (), "a run without settings is one from before there were any"
