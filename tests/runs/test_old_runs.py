"""A run and an export of 2026-11-23 (commit 0e2b779), before runs noted their images and files their checksums."""

from __future__ import annotations

import io
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from scenedistill.core.errors import UserError
from scenedistill.data.images.read import read_scene
from scenedistill.experiments.measure_costs import measure_costs
from scenedistill.export.config import ExportConfig
from scenedistill.export.run import export
from scenedistill.inference.model import open_model
from scenedistill.reporting.explain import explain, networks_of
from scenedistill.reporting.html.page import write_report
from scenedistill.runs.curves import read_curves
from scenedistill.runs.find import find_network
from scenedistill.runs.run import Run

STUDENT = Path("seed3") / "test_efficientnet"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """The run's folder."""
    with zipfile.ZipFile(Path(__file__).with_name("run_of_2026_11_23.zip")) as archive:
        archive.extractall(tmp_path / "old")
    return tmp_path / "old"


def test_an_old_runs_networks_teacher_and_curves_are_found(old: Path) -> None:
    run = Run.open(old)
    (cell,) = run.cells
    assert [(n.student, n.label, n.seed) for n in cell.networks] == [
        (None, "teacher", 3),
        ("test_efficientnet", "plain", 3),
        ("test_efficientnet", "dkd", 3),
    ]
    assert run.title_of(cell) == "oldscenes, 50 % training" and not (run.unfinished or run.others or run.damaged)
    student = find_network(old)
    assert student.folder == old / STUDENT / "dkd"
    assert student.teacher is not None and student.teacher.folder.samefile(old / "seed3" / "teacher")
    assert student.plain is not None and student.plain.folder.samefile(old / STUDENT / "plain")
    for network in cell.networks:
        assert read_curves(network.folder).epochs.tolist() == list(range(1, 26))


@pytest.mark.parametrize("name", ["", "seed3/teacher", "seed3/test_efficientnet/dkd/export/model.onnx"])
def test_an_old_run_predicts_what_it_recorded(old: Path, tiny_scenes: Path, name: str) -> None:
    if name.endswith(".onnx"):
        pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install -e '.[use]'")
    network = find_network(old if not name.endswith("teacher") else old / name)
    paths, outputs = network.test_paths, network.outputs
    assert outputs is not None and len(paths) == 32
    model = open_model(old / name, device="cpu", precision="fp32")
    images = np.stack([read_scene(tiny_scenes / path, model.stored_size, 3) for path in paths])
    expected = np.exp(outputs.logits - outputs.logits.max(1, keepdims=True))
    expected /= expected.sum(1, keepdims=True)
    assert np.abs(model.predict(images).probabilities - expected).max() < 2e-3, "outputs are kept in half precision"


def test_an_old_runs_images_are_asked_for_and_used(old: Path, tiny_scenes: Path, tmp_path: Path) -> None:
    quick = ExportConfig(formats=["safetensors"], images=8, repeats=0)
    shutil.rmtree(old / STUDENT / "dkd" / "export")
    with pytest.raises(UserError, match="Give the folder they come from with --data"):
        export(old, tmp_path / "out", quick, console=Console(quiet=True))
    exported = export(old, tmp_path / "out", quick, data=tiny_scenes, console=Console(quiet=True))
    assert exported.files[0].equal == 1.0 and exported.files[0].oa == 1.0


@pytest.mark.slow
def test_an_old_run_can_be_reported_explained_and_measured(old: Path, tiny_scenes: Path, tmp_path: Path) -> None:
    for package in ("jinja2", "pytorch_grad_cam", "sklearn"):
        pytest.importorskip(package, reason="needs pip install -e '.[report]'")
    page = write_report(old, tmp_path / "report.html", data=tiny_scenes).read_text(encoding="utf-8")
    assert "OA of the dkd student" in page and "the data folder is not known" not in page
    networks = networks_of(old)
    assert list(networks) == ["teacher", "plain", "dkd"]
    (one,) = explain(networks, [tiny_scenes / "river" / "00.png"])
    assert one.classes[one.named("dkd")] == "river"
    costs = measure_costs(old, batch_sizes=[1], repeats=1)
    assert {row.label for row in costs.rows} == {"teacher", "plain", "dkd"}


@pytest.mark.slow
def test_the_same_folder_takes_a_new_run_and_keeps_the_old_one(old: Path, tiny_scenes: Path) -> None:
    from scenedistill.config import DataConfig, MachineConfig, RunConfig, StudentConfig, StudentFitConfig
    from scenedistill.experiments.run import run

    said = io.StringIO()
    student = StudentConfig(name="test_efficientnet", fit=StudentFitConfig(epochs=1, batch_size=16))
    config = RunConfig(
        image_size=32,
        seeds=[3],
        data=DataConfig(train_ratio=0.5, stored_size=40, cache_dir=old.parent / "cache"),
        student=student,
        machine=MachineConfig(accelerator="cpu", precision="fp32", threads=1),
    )
    run(tiny_scenes, old, config, parts=("plain",), console=Console(file=said, width=200))
    assert "seed3/test_efficientnet/plain: other settings than before" in said.getvalue()
    assert (old / STUDENT / "plain.previous-1" / "weights.safetensors").is_file()
