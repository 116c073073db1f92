"""Checkpoints as other people's training writes them, and files that are none."""

from __future__ import annotations

import argparse
import collections
import datetime
import pathlib
import pickle
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import timm
import torch
from lightning.fabric.utilities.data import AttributeDict
from torch import Tensor, nn

from scenedistill.core.errors import UserError
from scenedistill.models.weights.checkpoints import DEPTH, read_checkpoint
from scenedistill.models.weights.take import load_weights

Tensors = dict[str, Tensor]


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model("resnet10t", num_classes=4)


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


class Settings(argparse.Namespace):
    """A class of somebody's own."""


HARMLESS: dict[str, object] = {
    "arguments": argparse.Namespace(lr=0.1, data=pathlib.Path("data"), best=np.float64(0.5)),
    "numbers of NumPy": [np.float64(1), np.float32(1), np.int64(1), np.bool_(True), np.arange(3), np.array(["a"])],
    "types": [np.dtype("float32"), torch.float32, torch.device("cpu")],
    "collections": [collections.defaultdict(list, {1: [2]}), collections.Counter("aab"), {1, 2}, range(3), slice(1)],
    "Lightning's settings": AttributeDict(lr=0.1, name="x"),
    "paths": [pathlib.Path("a"), pathlib.PurePosixPath("b"), pathlib.PureWindowsPath("c")],
    "times": [datetime.datetime(2026, 1, 2), datetime.date(2026, 1, 2), datetime.timedelta(3)],
    "a simple namespace": types.SimpleNamespace(a=1),
}


@pytest.mark.parametrize("what", HARMLESS)
def test_settings_beside_the_tensors_are_ignored(what: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "net.pth", {"state_dict": {"w": torch.ones(2)}, "more": HARMLESS[what]})
    found = read_checkpoint(path)
    assert list(found) == ["state_dict"] and torch.equal(found["state_dict"]["w"], torch.ones(2))


def test_omegaconf_settings_are_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its objects pickle as a class with a state; the package itself is not needed to read them."""
    module = types.ModuleType("omegaconf.dictconfig")
    kind = type("DictConfig", (), {"__module__": module.__name__, "__init__": lambda self: setattr(self, "lr", 0.1)})
    module.DictConfig = kind  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "omegaconf", types.ModuleType("omegaconf"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    path = saved(tmp_path / "net.ckpt", {"state_dict": {"w": torch.ones(2)}, "hyper_parameters": kind()})
    monkeypatch.undo()
    assert list(read_checkpoint(path)) == ["state_dict"]


CONTAINERS: dict[str, Callable[[Tensors, Tensors], object]] = {
    "timm": lambda right, other: {"epoch": 3, "arch": "x", "state_dict": other, "state_dict_ema": right, "args": None},
    "an average beside": lambda right, other: {"model": other, "model_ema": {"module": right}, "optimizer": {}},
    "an average alone": lambda right, other: {"ema": right},
    "a pair": lambda right, other: {"student": other, "teacher": right, "epoch": 1},
    "wrapped pair": lambda right, other: {
        "student": {f"module.backbone.{k}": v for k, v in other.items()},
        "teacher": {f"module.backbone.{k}": v for k, v in right.items()},
    },
    "deep": lambda right, other: {"a": {"b": {"c": right}}},
    "prefixed": lambda right, other: {"state_dict": {f"model.{k}": v for k, v in right.items()}, "loops": {"x": 1}},
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_the_network_is_found_and_averaged_weights_come_first(container: str, tmp_path: Path) -> None:
    right, other = network(1).state_dict(), network(2).state_dict()
    path = saved(tmp_path / "model_best.pth.tar", CONTAINERS[container](right, other))
    net = timm.create_model("resnet10t", num_classes=0)
    account = load_weights(net, str(path))
    assert account.share == 1 and torch.equal(net.get_parameter("conv1.0.weight"), right["conv1.0.weight"])


def test_the_account_says_which_of_several_networks_it_was(tmp_path: Path) -> None:
    path = saved(
        tmp_path / "two.pth", {"state_dict": network(1).state_dict(), "state_dict_ema": network(2).state_dict()}
    )
    account = load_weights(timm.create_model("resnet10t", num_classes=0), str(path))
    assert account.source == "two.pth, state_dict_ema"


def test_the_network_that_fits_is_taken_before_the_one_that_is_preferred(tmp_path: Path) -> None:
    teacher = timm.create_model("resnet26", num_classes=4).state_dict()
    path = saved(tmp_path / "pair.pth", {"teacher": teacher, "student": network(1).state_dict()})
    net = timm.create_model("resnet10t", num_classes=0)
    assert load_weights(net, str(path)).source == "pair.pth, student"


class Task(L.LightningModule):
    """As torchgeo keeps a network: under `model.`, beside a criterion with weights of its own."""

    def __init__(self, lr: float, folder: pathlib.Path) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = network(5)
        self.criterion = nn.CrossEntropyLoss(weight=torch.ones(4))

    def training_step(self, batch: Any, _: int) -> Tensor:
        loss: Tensor = self.criterion(self.model(batch[0]), batch[1])
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), self.hparams["lr"])


def test_a_lightning_checkpoint_gives_its_network(tmp_path: Path) -> None:
    data = torch.utils.data.TensorDataset(torch.rand(4, 3, 32, 32), torch.arange(4))
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    task = Task(1e-3, pathlib.Path("data"))
    trainer.fit(task, torch.utils.data.DataLoader(data, batch_size=4))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    net = timm.create_model("resnet10t", num_classes=0)
    account = load_weights(net, str(tmp_path / "last.ckpt"))
    assert account.share == 1 and set(account.unused) == {"fc.weight", "fc.bias", "criterion.weight"}
    assert torch.equal(net.get_parameter("layer1.0.conv1.weight"), task.model.get_parameter("layer1.0.conv1.weight"))


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


class Bomb:
    """Unpickled, it calls something with one argument."""

    def __init__(self, function: Callable[[str], object], argument: str) -> None:
        self.function, self.argument = function, argument

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return self.function, (self.argument,)


def touch(path: str) -> None:
    Path(path).touch()


@pytest.mark.parametrize("place", ["beside", "in a name", "as the whole", "in a list", "in arguments", "plain pickle"])
def test_code_in_a_checkpoint_is_never_run(place: str, tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", tmp_path / "bomb.pth"
    bomb, tensors = Bomb(touch, str(mark)), {"w": torch.ones(2)}
    content: Any = {
        "beside": {"state_dict": tensors, "x": bomb},
        "in a name": {"state_dict": tensors | {"w2": bomb}},
        "as the whole": bomb,
        "in a list": [tensors, [bomb]],
        "in arguments": {"state_dict": tensors, "args": argparse.Namespace(lr=bomb)},
        "plain pickle": {"state_dict": {}, "x": bomb},
    }[place]
    if place == "plain pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path)
    assert "would" in refused(path) and not mark.exists()
    torch.load(path, weights_only=False) if place != "plain pickle" else pickle.loads(path.read_bytes())
    assert mark.exists(), "the bomb is a real one"


@pytest.mark.parametrize("name", ["eval", "exec", "__import__", "getattr", "open"])
def test_functions_of_python_are_not_among_the_harmless(name: str, tmp_path: Path) -> None:
    path = tmp_path / "builtin.pkl"
    path.write_bytes(b"\x80\x02cbuiltins\n" + name.encode() + b"\nX\x01\x00\x00\x001\x85R.")
    refused(path)


def test_an_unknown_pickled_class_is_named(tmp_path: Path) -> None:
    text = refused(saved(tmp_path / "own.pth", {"state_dict": {"w": torch.ones(2)}, "args": Settings(lr=0.1)}))
    assert "Settings. Give a state_dict: torch.save(network.state_dict(), FILE)." in text


def test_a_whole_pickled_network_is_named(tmp_path: Path) -> None:
    assert "loading would run code of " in refused(saved(tmp_path / "whole.pt", network()))


@pytest.mark.filterwarnings("ignore:.*TorchScript archive", "ignore:.*torch.jit")
def test_a_program_of_torchscript_is_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "script.pt")
    refused(tmp_path / "script.pt")


@pytest.mark.parametrize("legacy", [False, True])
def test_damaged_files_are_refused(legacy: bool, tmp_path: Path) -> None:
    whole = tmp_path / "whole.pth"
    torch.save(network().state_dict(), whole, _use_new_zipfile_serialization=not legacy)
    content = whole.read_bytes()
    assert read_checkpoint(whole)
    for name, part in {
        "half": content[: len(content) // 2],
        "without its end": content[:-30] if not legacy else content[: -len(content) // 3],
        "start": content[:10],
        "empty": b"",
        "text": b"no weights at all\n" * 20,
        "a picture": b"\x89PNG\r\n\x1a\n" + bytes(100),
    }.items():
        path = tmp_path / f"{name}.pth"
        path.write_bytes(part)
        refused(path)


def test_what_holds_no_named_tensors_is_refused(tmp_path: Path) -> None:
    deep: object = {"w": torch.ones(1)}
    for _ in range(DEPTH):
        deep = {"deeper": deep}
    cycle: dict[str, object] = {}
    cycle["self"] = cycle
    contents: dict[str, object] = {
        "a list": [torch.zeros(2)],
        "numbers": {"lr": 0.1},
        "a tensor": torch.zeros(3),
        "nothing": None,
        "an optimiser": {"optimizer": {"state": {0: {0: torch.zeros(2)}}}},
        "too deep": deep,
        "cycle": cycle,
    }
    for name, content in contents.items():
        assert "holds no named tensors" in refused(saved(tmp_path / f"{name}.pth", content)), name
