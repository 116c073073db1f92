"""The schedule and the parameter groups against numbers worked out by hand."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from scenedistill.config import FitConfig, StudentConfig, StudentFitConfig
from scenedistill.data.batches import SceneBatch, ScenePart
from scenedistill.data.views import ViewConfig, training_view
from scenedistill.models.create import build_student
from scenedistill.training.base import Diverged, SceneTraining, parameter_groups, rate
from scenedistill.training.student import StudentTraining
from scenedistill.training.teacher_outputs.knowledge import Knowledge
from scenedistill.training.teacher_outputs.teachers import Teachers

Train = Callable[..., dict[str, Any]]


def test_the_rate_rises_in_a_line_and_falls_in_a_half_cosine() -> None:
    assert [rate(step, 12, 4) for step in range(4)] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert rate(4, 12, 4) == 1
    assert rate(6, 12, 4) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    assert rate(8, 12, 4) == pytest.approx(0.5)
    assert rate(12, 12, 4) == pytest.approx(0)
    assert rate(13, 12, 4) == pytest.approx(0), "a step too many does not rise again"


def test_the_rate_is_defined_with_no_warm_up_and_with_only_warm_up() -> None:
    assert rate(0, 10, 0) == 1
    assert rate(5, 10, 0) == pytest.approx(0.5)
    assert [rate(step, 3, 3) for step in range(3)] == pytest.approx([0.25, 0.5, 0.75])
    assert 0 <= rate(3, 3, 3) <= 1


def training(fit: FitConfig, name: str = "table1_printed") -> SceneTraining:
    return SceneTraining(build_student(name, 4, image_size=32), fit, ViewConfig(), image_size=32, seed=0)


def test_every_parameter_is_in_one_group_with_its_rate_and_decay() -> None:
    module = training(FitConfig(lr=0.1, fresh_lr_factor=3.0, weight_decay=0.05))
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    groups = parameter_groups(module, module.fit)
    found = {names[id(parameter)]: group for group in groups for parameter in group["params"]}
    assert sorted(found) == sorted(names.values())
    assert sum(len(group["params"]) for group in groups) == len(names), "none twice"

    def settings(name: str) -> tuple[float, float]:
        return found[name]["lr"], found[name]["weight_decay"]

    assert settings("net.backbone.stem.0.weight") == (0.1, 0.05)
    assert settings("net.backbone.stem.1.weight") == (0.1, 0.0)  # of a norm
    assert settings("net.head.weight") == pytest.approx((0.3, 0.05))
    assert settings("net.head.bias") == pytest.approx((0.3, 0.0))
    attention = [name for name in found if ".attention." in name]
    assert len(attention) == 40  # ten tensors in each of four DA modules
    assert [settings(name)[0] for name in attention] == pytest.approx([0.3] * 40)


def test_attention_of_the_backbone_itself_is_pretrained() -> None:
    """As in timm's cspnext, which has an `attention` in each of its stages."""
    module = training(FitConfig(lr=0.1, fresh_lr_factor=3.0))
    cast(Any, module.net.backbone).stem.attention = torch.nn.Linear(2, 2)
    rates = {id(each): group["lr"] for group in parameter_groups(module, module.fit) for each in group["params"]}
    assert {rates[id(each)] for each in cast(Any, module.net.backbone).stem.attention.parameters()} == {0.1}


def test_frozen_parameters_are_left_out() -> None:
    module = training(FitConfig())
    module.net.backbone.requires_grad_(False)
    trained = [parameter for group in parameter_groups(module, module.fit) for parameter in group["params"]]
    assert {id(p) for p in trained} == {id(p) for p in module.net.head.parameters()}


def test_a_view_is_that_of_the_seed_the_epoch_and_the_image() -> None:
    module = training(FitConfig())
    images = torch.arange(2 * 40 * 40 * 3).reshape(2, 40, 40, 3).to(torch.uint8)
    batch = SceneBatch(images, torch.tensor([0, 1]), torch.tensor([11, 12]), torch.tensor([5, 6]))
    view = module.view(batch, epoch=4)
    assert view.shape == (2, 3, 32, 32)
    again = training_view(images[1:], batch.ids[1:], seed=0, epoch=4, size=32, config=ViewConfig())
    assert torch.equal(view[1:], again)


def test_the_network_and_the_adapters_are_clipped_each_by_its_own_norm(
    train: Train, all_images: ScenePart, tmp_path: Path
) -> None:
    teacher = build_student("table1_printed", 4, image_size=32)
    knowledge = Knowledge(
        Teachers([teacher], precision="fp32", image_size=32), all_images, views=0, config=ViewConfig(), seed=0
    )
    seen: list[float] = []

    class Watched(StudentTraining):
        def configure_gradient_clipping(
            self,
            optimizer: torch.optim.Optimizer,
            gradient_clip_val: float | None = None,
            gradient_clip_algorithm: str | None = None,
        ) -> None:
            parts = self.net.parameters(), self.losses.parameters()
            before = [[cast(torch.Tensor, p.grad).clone() for p in part] for part in map(list, parts)]
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
            for part, grads in zip((self.net, self.losses), before, strict=True):
                norm = torch.stack([grad.norm() for grad in grads]).norm()
                scale = min(1.0, 6.0 / float(norm))
                seen.append(scale)
                for parameter, grad in zip(part.parameters(), grads, strict=True):
                    torch.testing.assert_close(parameter.grad, scale * grad, rtol=1e-4, atol=1e-9)

    fit = StudentFitConfig(epochs=1, batch_size=8, lr=0.02, clip_norm=6.0)
    knowledge.statistics(torch.device("cpu"))
    module = Watched(
        build_student("table1_printed", 4, image_size=32), StudentConfig(fit=fit), {"ce": 1.0, "da": 3.0}, ViewConfig(),
        image_size=32, seed=0, knowledge=knowledge,
    )  # fmt: skip
    train(module)
    net, adapters = np.array(seen).reshape(-1, 2).T
    assert len(net) == 8 and max(net) < min(adapters) < 1 == max(adapters), "else the test would say little"
    with (tmp_path / "stage" / "logs" / "attempt_0" / "metrics.csv").open() as file:
        logged = {name: float(value) for row in csv.DictReader(file) for name, value in row.items() if value}
    for name, scales in (("net", net), ("adapters", adapters)):
        assert logged[f"clipped_{name}"] == pytest.approx((scales < 1).mean())
        assert logged[f"clipped_{name}_scale"] == pytest.approx(np.sort(scales)[3], rel=1e-3)  # the lower median


class Diverging(SceneTraining):
    """Its part `ss` is lost at step 5, in the second of epochs of four steps."""

    def training_step(self, batch: SceneBatch, batch_idx: int) -> torch.Tensor:
        logits = self.net(self.view(batch, self.current_epoch)).logits
        parts = {"ce": torch.nn.functional.cross_entropy(logits, batch.labels), "ss": logits.sum() * 0}
        if self.global_step >= 5:
            parts["ss"] = parts["ss"] + math.inf - math.inf
        self.report(parts, logits, batch.labels)
        loss: torch.Tensor = parts["ce"] + parts["ss"]
        return loss


def test_a_loss_that_is_no_number_stops_with_its_step_and_part(train: Train, tmp_path: Path) -> None:
    net = build_student("table1_printed", 4, image_size=32)
    fit = FitConfig(epochs=3, batch_size=16, lr=0.02)
    with pytest.raises(Diverged) as stopped:
        train(Diverging(net, fit, ViewConfig(), image_size=32, seed=0))
    said = str(stopped.value)
    assert said.startswith("Part ss of the loss is not a finite number at step 5 (epoch 2)")
    assert "fit.lr is 0.02" in said and "\n" not in said
    kept = torch.load(tmp_path / "stage" / "checkpoints" / "last.ckpt", weights_only=False)["state_dict"]
    assert all(torch.isfinite(tensor).all() for tensor in kept.values()), "the last good epoch is kept"


def test_a_learning_rate_out_of_range_is_named(train: Train) -> None:
    with pytest.raises(Diverged, match=r"fit\.lr is 1e\+30"):
        train(
            StudentTraining(
                build_student("table1_printed", 4, image_size=32),
                StudentConfig(fit=StudentFitConfig(epochs=3, batch_size=16, lr=1e30, warmup_epochs=0, clip_norm=0)),
                {"ce": 1.0},
                ViewConfig(),
                image_size=32,
                seed=0,
            )
        )


class LastStep(SceneTraining):
    """Its last step makes what no later one would notice."""

    def training_step(self, batch: SceneBatch, batch_idx: int) -> torch.Tensor:
        logits = self.net(self.view(batch, self.current_epoch)).logits
        ce = torch.nn.functional.cross_entropy(logits, batch.labels)
        self.report({"ce": ce}, logits, batch.labels)
        return ce * (math.inf if self.global_step == 3 else 1)


def test_weights_that_are_no_numbers_are_not_kept(train: Train, tmp_path: Path) -> None:
    net = build_student("table1_printed", 4, image_size=32)
    with pytest.raises(Diverged, match="The weights are not finite numbers after epoch 1"):
        train(LastStep(net, FitConfig(epochs=1, batch_size=16), ViewConfig(), image_size=32, seed=0))
    assert not (tmp_path / "stage" / "checkpoints" / "last.ckpt").exists()
