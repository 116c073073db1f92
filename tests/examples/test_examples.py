"""Every script of examples/ runs as its head says, on tiny generated images, with real networks and files."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import pytest
import rasterio
import timm
import torch
import torchvision
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from scenedistill.losses import LOSSES
from scenedistill.models.create import build_student
from scenedistill.models.files import NetCard, load_net, save_net

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SOURCE = EXAMPLES.parent / "src"
LOADED_MODULES = Path(__file__).resolve().parents[1] / "loaded_modules.py"
Run = Callable[..., str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a script with arguments, in a folder of its own; gives what it printed."""

    def run(name: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        monkeypatch.chdir(tmp_path)
        torch.manual_seed(0)
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state_dict of torchvision's ResNet-18 for four classes."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("teacher") / "resnet18.pth"
    torch.save(torchvision.models.resnet18(num_classes=4).state_dict(), path)
    return path


SMALL = ("--size", "32", "--batch", "16", "--epochs", "2")


def test_own_loop_distils_our_student_without_command_cache_or_lightning(
    tiny_scenes: Path, resnet: Path, tmp_path: Path
) -> None:
    unwanted = "lightning,scenedistill.cli,scenedistill.data.cache.build,scenedistill.training"
    teacher = (str(resnet), "--architecture", "resnet18")
    script = (str(EXAMPLES / "own_loop.py"), str(tiny_scenes), *teacher, "--student", "table1_printed", *SMALL)
    ended = subprocess.run(
        [sys.executable, LOADED_MODULES, unwanted, "script", *script],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    student = build_student("table1_printed", 4, image_size=32, normalise=False)
    student.load_state_dict(torch.load(tmp_path / "student.pth", weights_only=True))
    losses = [float(line.rpartition(" ")[2]) for line in ended.stdout.splitlines() if line.startswith("epoch")]
    assert len(losses) == 2 and np.isfinite(losses).all()


def test_own_loop_distils_an_own_student_and_keeps_its_parameter_names(
    run: Run, tiny_scenes: Path, resnet: Path, tmp_path: Path
) -> None:
    run("own_loop.py", tiny_scenes, resnet, "--architecture", "resnet18", "--student", "resnet18", *SMALL)
    student = torchvision.models.resnet18(num_classes=4)
    student.load_state_dict(torch.load(tmp_path / "student.pth", weights_only=True))
    assert not torch.equal(student.fc.weight, torch.load(resnet, weights_only=True)["fc.weight"])


@pytest.mark.parametrize("method", ["dkd_plus", "reviewkd"])
def test_a_timm_checkpoint_can_be_the_teacher(method: str, run: Run, tiny_scenes: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(timm.create_model("resnet10t", num_classes=4).state_dict(), tmp_path / "model_best.pth")
    arguments = (tiny_scenes, "resnet10t", "model_best.pth", "--method", method, "--student", "table1_printed")
    said = run("timm_teacher.py", *arguments, *SMALL)
    assert "The teacher is right on" in said and said.count("epoch ") == 2 and "nan" not in said


class DictBatches(L.LightningDataModule):
    """What a data module of torchgeo is from outside: raw values in dictionaries, normalised by `aug` on the device."""

    def __init__(self, bands: int, classes: int) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.images = [10_000 * torch.rand(bands, 96, 96, generator=draw) for _ in range(8)]
        self.classes = classes
        self.normalised = 0

    def aug(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        self.normalised += 1
        return {**batch, "image": batch["image"] / 10_000}

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        samples = [{"image": image, "label": i % self.classes} for i, image in enumerate(self.images)]
        return DataLoader(cast(Dataset[dict[str, Any]], samples), batch_size=4)

    def on_after_batch_transfer(self, batch: dict[str, Tensor], dataloader_idx: int) -> dict[str, Tensor]:
        return self.aug(batch)


def test_a_data_module_of_dictionaries_is_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    example = runpy.run_path(str(EXAMPLES / "torchgeo_data.py"))
    network = torchvision.models.resnet18(num_classes=5)
    network.conv1 = torch.nn.Conv2d(4, 64, 7, stride=2, padding=3, bias=False)
    before, head = {name: tensor.clone() for name, tensor in network.state_dict().items()}, network.fc.weight.clone()
    data = DictBatches(bands=4, classes=5)
    student = example["distil"](data, network, ["layer1", "layer2", "layer3", "layer4"], bands=4, epochs=1)
    assert data.normalised == 4, "twice to measure the teacher, twice to train"
    assert student.dims.classes == 5 and not student.mean.any() and (student.std == 1).all()
    after = {name.replace(".stage.", "."): tensor for name, tensor in network.state_dict().items()}
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items() if name in after)
    assert "fc.weight" not in after and head.shape == (5, 512), "its head is the wrapped network's"


def test_a_data_module_of_torchgeo_is_input() -> None:
    datamodules = pytest.importorskip("torchgeo.datamodules")
    real = datamodules.EuroSAT100DataModule(batch_size=2)
    assert all(
        callable(getattr(real, name)) for name in ("aug", "setup", "train_dataloader", "on_after_batch_transfer")
    )


def test_lightnings_own_trainer_trains_our_modules(run: Run, tiny_scenes: Path, tmp_path: Path) -> None:
    small = ("--size", "32", "--batch", "16", "--epochs", "1")
    said = run(
        "lightning_trainer.py", tiny_scenes, "out", "--teacher", "table1_printed", "--student", "table1_printed", *small
    )
    assert "The teacher is right on" in said
    for name in ("teacher", "student"):
        net, card = load_net(tmp_path / "out" / f"{name}.safetensors")
        assert len(card.classes) == net.dims.classes == 4


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_raster_is_mapped(run: Run, tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_net(
        build_student("table1_printed", 2, image_size=32),
        NetCard("table1_printed", ("a", "b"), 3, 32),
        tmp_path / "s.safetensors",
    )
    place: dict[str, Any] = {"crs": "EPSG:32633", "transform": rasterio.Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000)}
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 96), np.uint8)
    with rasterio.open(
        tmp_path / "r.tif", "w", driver="GTiff", count=3, height=64, width=96, dtype="uint8", **place
    ) as file:
        file.write(pixels)
    said = run("map_raster.py", "s.safetensors", "r.tif", "maps", "--window", 32, "--overlap", 0)
    assert "6 windows" in said and "3 x 2 cells of 16 units, EPSG:32633" in said


def test_a_new_loss_takes_three_places(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOSSES, "ranking", LOSSES["ce"])  # taken out again behind the script
    assert "ranking loss" in run("new_loss.py")
    assert LOSSES["ranking"].__name__ == "Ranking"


def test_every_example_is_short_and_listed() -> None:
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    scripts = sorted(EXAMPLES.glob("*.py"))
    assert len(scripts) == 6
    for script in scripts:
        assert len(script.read_text(encoding="utf-8").splitlines()) < 70, script.name
        assert listed.count(f"[`{script.name}`]({script.name})") == 1, script.name
