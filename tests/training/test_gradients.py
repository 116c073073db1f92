"""How hard each loss pulls at the student is measured rightly, now and then, and changes nothing of what is learnt."""

from __future__ import annotations

import copy
import csv
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from scenedistill.config import MachineConfig, StudentConfig, StudentFitConfig
from scenedistill.data.batches import ScenePart
from scenedistill.data.module import SceneDataModule
from scenedistill.data.splits.draw import Split
from scenedistill.data.views import ViewConfig
from scenedistill.models.create import build_student
from scenedistill.models.files import weights_hash
from scenedistill.models.network import SceneNet
from scenedistill.training.fitting import fit
from scenedistill.training.gradients import due, gradient_norms
from scenedistill.training.student import StudentTraining
from scenedistill.training.teacher_outputs.knowledge import Knowledge
from scenedistill.training.teacher_outputs.teachers import Teachers

WEIGHTS = {"ce": 1.0, "da": 0.5, "ss": 2.0}


class Unmeasured(StudentTraining):
    """Measures in no epoch."""

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self.measures = False

    def gradient_norms(self, *_: Any) -> dict[str, float]:
        pytest.fail("measured")


class Measured(StudentTraining):
    """Measures in every epoch, and counts how often."""

    counted = 0

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self.measures = True

    def gradient_norms(self, *given: Any) -> dict[str, float]:
        self.counted += 1
        return super().gradient_norms(*given)


class Alone(Measured):
    """Measures in every epoch, but for the gradients, of which there must be no question."""

    def gradient_norms(self, *_: Any) -> dict[str, float]:
        pytest.fail("measured")


def build(
    all_images: ScenePart,
    views: ViewConfig,
    weights: dict[str, float] = WEIGHTS,
    kind: type[StudentTraining] = StudentTraining,
) -> StudentTraining:
    """A student with dropout, so that a random number drawn in between would show."""
    torch.manual_seed(7)
    teacher = build_student("table1_printed", 4, image_size=32).eval()
    knowledge = Knowledge(
        Teachers([teacher], precision="fp32", image_size=32), all_images, views=0, config=views, seed=0
    )
    torch.manual_seed(0)
    net: SceneNet = build_student("table1_printed", 4, image_size=32)
    net.head = nn.Sequential(nn.Dropout(0.5), net.head)  # type: ignore[assignment]
    net.head.weight = net.head[1].weight  # type: ignore[index]  # whose type a SceneNet asks for
    knowledge.statistics(torch.device("cpu"))
    return kind(
        net, StudentConfig(fit=StudentFitConfig(epochs=3, batch_size=16, lr=0.02, warmup_epochs=1)), weights, views,
        image_size=32, seed=0, knowledge=knowledge,
    )  # fmt: skip


def test_each_norm_is_that_of_the_loss_alone(all_images: ScenePart, mild: ViewConfig) -> None:
    module = build(all_images, mild)
    module.net.head[0].p = 0.0  # type: ignore[index]
    assert module.knowledge is not None
    module.knowledge.open(0, torch.device("cpu"))
    batch = all_images.fetch(range(0, 64, 8))
    view = module.view(batch, 0)
    target = module.knowledge.of(batch, 0, view)._replace(rows=(batch.rows,))
    found = module.gradient_norms(batch, view, target)
    assert list(found) == list(WEIGHTS)
    assert all(parameter.grad is None for parameter in module.parameters())
    for name, weight in WEIGHTS.items():
        alone = copy.deepcopy(module.net)
        (weight * module.losses[name](alone(view), target, batch.labels)).backward()
        squares = [(value.grad**2).sum() for value in alone.parameters() if value.grad is not None]
        assert found[name] == pytest.approx(float(torch.stack(squares).sum().sqrt()), rel=1e-4), name
        assert found[name] > 0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_measuring_gradients_does_not_change_the_weights(
    precision: Any, all_images: ScenePart, all_train: Split, mild: ViewConfig, tmp_path: Path
) -> None:
    machine = MachineConfig(accelerator="cpu", precision=precision)
    data = SceneDataModule(all_images.cache, all_train, batch_size=16, seed=0)
    hashes = {}
    for measured, kind in ((False, Unmeasured), (True, Measured)):
        module = build(all_images, mild, kind=kind)
        record = fit(module, data, tmp_path / str(measured), machine, title="tiny", console=Console(quiet=True))
        hashes[measured] = weights_hash(module)
        assert set(record["last_epoch"]) == {*WEIGHTS, "train_oa"}
    assert hashes[True] == hashes[False]
    assert isinstance(module, Measured) and module.counted == 3, "once an epoch and no oftener"
    with (tmp_path / "True" / "logs" / "attempt_0" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["gradient_ss"]]
    assert [int(row["epoch"]) for row in rows] == [0, 1, 2]
    assert all(float(row[f"gradient_{name}"]) > 0 for row in rows for name in WEIGHTS)
    assert all(0 < float(row["embedding_spread"]) < 1 and 0 < float(row["gate_spatial_5"]) < 1 for row in rows)


def test_a_student_with_one_answer_for_every_image_is_reported(
    all_images: ScenePart, all_train: Split, mild: ViewConfig, tmp_path: Path
) -> None:
    data = SceneDataModule(all_images.cache, all_train, batch_size=16, seed=0)
    said = {}
    for broken in (False, True):
        module = build(all_images, mild)
        if broken:
            with torch.no_grad():  # a last stage that puts out its bias alone
                for name, tensor in module.net.backbone.named_parameters():
                    if name.startswith("conv5_x"):
                        tensor.fill_(1.0 if name.endswith("bn2.bias") else 0.0)
                        tensor.requires_grad_(False)
        console = Console(file=io.StringIO(), width=300)
        fit(module, data, tmp_path / str(broken), MachineConfig(accelerator="cpu", precision="fp32"), title="tiny",
            console=console)  # fmt: skip
        said[broken] = console.file.getvalue()  # type: ignore[attr-defined]
    assert "the student has collapsed: its embeddings" in said[True]
    assert "collapsed" not in said[False]


def test_one_loss_alone_is_not_measured(all_images: ScenePart, mild: ViewConfig, train: Any) -> None:
    train(build(all_images, mild, {"ce": 1.0}, Alone))


@pytest.mark.parametrize(
    ("epochs", "steps", "expected"),
    [(3, 200, [0, 1, 2]), (10, 37, [0, 3, 6, 9]), (5, 4, [4]), (1, 1, [0])],
)
def test_gradients_are_measured_every_hundred_steps_and_at_the_end(
    epochs: int, steps: int, expected: list[int]
) -> None:
    assert [epoch for epoch in range(epochs) if due(epoch, epochs, steps)] == expected


def test_a_constant_loss_term_has_gradient_norm_zero() -> None:
    net = nn.Linear(2, 1)
    parts = {"still": torch.ones(()), "moving": net(torch.ones(1, 2)).sum()}
    assert gradient_norms(net, net, lambda: parts) == pytest.approx({"still": 0.0, "moving": 3**0.5})
