"""A small real run over two seeds, and a grid's folder made out of it, with a class name that is HTML."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from scenedistill import RunConfig, run
from scenedistill.config import (
    DataConfig,
    FitConfig,
    MachineConfig,
    StudentConfig,
    StudentFitConfig,
    TeacherConfig,
    TeacherFitConfig,
)
from scenedistill.core.disk import read_json, write_json
from scenedistill.reporting.html.config import ReportConfig
from scenedistill.reporting.html.page import write_report

#: Class folder of the tiny scenes to the name it has in the manifest.
NAMES = {"car park": '</script><script>document.title="x"</script>', "fields": 'a "b" & <i>c</i>'}
CLOSELY = ReportConfig(gradcam_images=8, map_images=12, device="cpu")


@dataclass(frozen=True)
class Made:
    """Folders: of the images' manifest, of the run."""

    manifest: Path
    run: Path


@pytest.fixture(scope="session")
def made(tiny_scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A finished run of two seeds on images listed in a manifest. Read only: tests share it."""
    home = tmp_path_factory.mktemp("report")
    manifest = home / "scenes.csv"
    with manifest.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label"])
        for path in sorted(tiny_scenes.glob("*/*.png")):
            target = home / path.parent.name / path.name
            target.parent.mkdir(exist_ok=True)
            shutil.copy(path, target)
            writer.writerow([f"{path.parent.name}/{path.name}", NAMES.get(path.parent.name, path.parent.name)])
    fit = FitConfig(epochs=2, batch_size=16, lr=0.02, warmup_epochs=0)
    config = RunConfig(
        image_size=32,
        seeds=[0, 1],
        data=DataConfig(train_ratio=0.5, stored_size=40, cache_dir=home / "cache"),
        teacher=TeacherConfig(name="table1_printed", weights="none", min_oa=0.0, fit=TeacherFitConfig(**vars(fit))),
        student=StudentConfig(name="table1_printed", knowledge_views=0, fit=StudentFitConfig(**vars(fit))),
        machine=MachineConfig(accelerator="cpu", precision="fp32"),
    )
    run(manifest, home / "run", config, command="scenedistill run scenes.csv --out run", console=Console(quiet=True))
    return Made(manifest, home / "run")


@pytest.fixture
def copied(made: Made, tmp_path: Path) -> Path:
    """A copy of the run's folder, away from its images."""
    return Path(shutil.copytree(made.run, tmp_path / "copied"))


@pytest.fixture(scope="session")
def grid_folder(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `scenedistill grid` leaves it: two ratios, tuning, a failure, a cell that is not done; and beside its
    own cells those of a grid without tuning."""
    out = tmp_path_factory.mktemp("grid") / "mine"
    for block in ("tiny-50", "tiny-25"):
        shutil.copytree(made.run, out / block)
        shutil.copytree(out / block / "seed0/table1_printed/dkd", out / block / "seed0/table1_printed/kd_hot")
        (out / block / "summary.json").rename(out / block / "results.json")
    for seed in ("seed0", "seed1"):
        folder = out / "tiny-50" / seed / "table1_printed"
        shutil.copytree(folder / "dkd", folder / "dkd@0.1")
        shutil.copytree(folder / "dkd", folder / "sp")
    settings = yaml.safe_load((out / "tiny-25" / "settings.yaml").read_text(encoding="utf-8"))
    settings["data"]["train_ratio"] = 0.25
    (out / "tiny-25" / "settings.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    for path in (out / "tiny-25").rglob("stage.json"):
        content = read_json(path)
        if "split" in content["record"]:
            content["record"]["split"]["train_ratio"] = 0.25
            write_json(path, content, checksum=True)
    trial = out / "tuning" / "tiny-50" / "seed0" / "table1_printed" / "dkd@0.1"
    shutil.copytree(made.run / "seed0/table1_printed/dkd", trial, ignore=shutil.ignore_patterns("evaluation"))
    stage = out / "tiny-50" / "seed1" / "table1_printed" / "kd_hot" / "stage.json"
    stage.parent.mkdir()
    stage.write_text(json.dumps({"fingerprint": "0", "settings": {}, "finished": False}), encoding="utf-8")
    grid = {
        "name": "mine",
        "datasets": {"tiny": str(made.manifest)},
        "methods": {"plain": {}, "kd_hot": {}, "dkd": {}},
        "baseline": "plain",
        "tuning": {"factors": [0.1, 1]},
    }
    (out / "grid.yaml").write_text(yaml.safe_dump(grid, sort_keys=False), encoding="utf-8")
    tried = {"factor": 0.1, "validation_oa": {"0.1": 0.5, "1": None}}
    same, none = {**tried, "factor": 1}, {"factor": None, "validation_oa": {"0.1": None, "1": None}}
    chosen = {
        "tiny-25": {"table1_printed": {"dkd": same, "kd_hot": same, "wild": none}},
        "tiny-50": {"table1_printed": {"dkd": tried, "kd_hot": same}},
    }
    tuning = {"val_fraction": 0.2, "seed": 0, "epochs": 2, "factors": [0.1, 1], "chosen": chosen}
    (out / "tuning.json").write_text(json.dumps(tuning), encoding="utf-8")
    failure = {"tiny-25/seed1/table1_printed/kd_hot": "the loss is not finite at step 3 <nan>"}
    (out / "failures.json").write_text(json.dumps(failure), encoding="utf-8")
    return out


@pytest.fixture(scope="session")
def page(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the run, with everything. Read only."""
    pytest.importorskip("pytorch_grad_cam", reason="needs grad-cam: pip install -e '.[report]'")
    pytest.importorskip("sklearn", reason="needs scikit-learn: pip install -e '.[report]'")
    return write_report(made.run, tmp_path_factory.mktemp("page") / "run.html", data=made.manifest, config=CLOSELY)


@pytest.fixture(scope="session")
def grid_page(grid_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the grid, without what needs the networks. Read only."""
    config = ReportConfig(gradcam_images=0, map_images=0)
    return write_report(grid_folder, tmp_path_factory.mktemp("page") / "grid.html", config=config)
