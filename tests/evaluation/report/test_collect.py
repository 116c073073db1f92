"""What is read from a run's and a grid's folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scenedistill.data.scenes import scan
from scenedistill.data.split_files import read_split
from scenedistill.errors import UserError
from scenedistill.evaluation.report.collect import collect


def test_a_run_is_one_cell_with_its_networks_in_order(made: Any) -> None:
    data = collect(made.run)
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
    for network in collect(made.run).cells[0].networks:
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
    networks = collect(copied).cells[0].networks
    assert all(bool(network.test_paths) == (network.seed == 1) for network in networks)


def test_a_test_of_other_weights_and_a_folder_moved_aside_do_not_count(copied: Path) -> None:
    plain = copied / "seed0" / "table1_printed" / "plain"
    shutil.copytree(plain, plain.with_name("plain.previous-1"))
    record = json.loads((plain / "stage.json").read_text(encoding="utf-8"))
    (plain / "stage.json").write_text(json.dumps({**record, "fingerprint": "another"}), encoding="utf-8")
    data = collect(copied)
    assert [(n.label, n.seed) for n in data.cells[0].networks if n.label.startswith("plain")] == [("plain", 1)]
    assert [(n.label, n.seed) for n in data.unfinished] == [("plain", 0)]


def test_a_grid_has_its_cells_tuning_and_failures(grid_folder: Path) -> None:
    data = collect(grid_folder)
    assert data.name == "mine" and [cell.key for cell in data.cells] == ["tiny-25", "tiny-50"]
    assert [data.title_of(cell) for cell in data.cells] == ["tiny, 25 % training", "tiny, 50 % training"]
    labels = list(dict.fromkeys(n.label for n in data.cells[0].networks))
    assert labels == ["teacher", "plain", "kd_hot", "dkd"], "the grid's own order"
    assert data.tuning["factors"] == [0.1, 1] and len(data.failures) == 1
    unfinished = [n.folder.relative_to(grid_folder).as_posix() for n in data.unfinished]
    assert unfinished == ["tiny-50/seed1/table1_printed/kd_hot"], "a tuning run is done without a test"


@pytest.mark.parametrize("what", ["missing", "empty", "a file"])
def test_a_folder_without_a_tested_network_is_a_mistake(what: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    if what == "empty":
        folder.mkdir()
    elif what == "a file":
        folder.write_text("")
    with pytest.raises(UserError, match="is not a folder" if what != "empty" else "no trained and tested network"):
        collect(folder)


def test_damaged_files_are_like_missing_ones(copied: Path) -> None:
    (copied / "summary.json").write_text("{", encoding="utf-8")
    (copied / "settings.yaml").write_text(": [", encoding="utf-8")
    (copied / "seed0" / "teacher" / "stage.json").write_text("[]", encoding="utf-8")
    (copied / "seed1" / "teacher" / "evaluation" / "outputs.npz").write_bytes(b"no")
    (copied / "seed1" / "teacher" / "evaluation" / "test_confusion.csv").write_text("a,b\n", encoding="utf-8")
    data = collect(copied)
    teachers = [n for n in data.cells[0].networks if n.label == "teacher"]
    assert [n.seed for n in teachers] == [1] and teachers[0].outputs is None and teachers[0].confusion is None
    assert data.cells[0].summary == {} and data.name == "copied"
