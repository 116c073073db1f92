"""Frozen first stages: nothing before their end changes, and no gradient is computed there."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from scenedistill.config import TeacherConfig, TeacherFitConfig
from scenedistill.core.errors import UserError
from scenedistill.data.views import ViewConfig
from scenedistill.models.create import build_student, build_teacher
from scenedistill.training.frozen_stages import freeze_stages, hold_statistics
from scenedistill.training.teacher import TeacherTraining


@pytest.mark.slow
def test_a_training_changes_everything_but_the_frozen_stages(mild: ViewConfig, train: Any) -> None:
    net = build_student("table1_printed", 4, image_size=32)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    config = TeacherConfig(frozen_stages=2, fit=TeacherFitConfig(epochs=2, batch_size=16, warmup_epochs=0))
    train(TeacherTraining(net, config, mild, image_size=32, seed=0), images_per_class=4)
    same = {name for name, tensor in net.state_dict().items() if torch.equal(tensor, before[name])}
    assert same == {
        name for name in before if name.startswith(("backbone.stem.", "backbone.conv2_x.", "backbone.conv3_x."))
    }


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "densenet121"])
def test_every_parameter_before_the_end_of_a_stage_is_frozen(name: str) -> None:
    net = build_teacher(name, 3, image_size=64, weights="none").train()
    freeze_stages(net, 1, 64)
    hold_statistics(net)
    seen: list[torch.Tensor] = []
    net.stages[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
    net(torch.rand(2, 3, 64, 64)).logits.sum().backward()
    assert not seen[0].requires_grad
    trained = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
    assert all(parameter.grad is not None for key, parameter in net.named_parameters() if key in trained)
    assert all(not module.training for module in net.stages[0].modules())
    assert net.training and net.stages[1].training and net.head.training
    if name == "test_vit":
        assert "backbone.pos_embed" not in trained and "backbone.cls_token" not in trained


def test_modes_stay_and_more_stages_than_there_are_are_refused() -> None:
    net = build_student("table1_printed", 3, image_size=32)
    net.backbone.eval()
    freeze_stages(net, 4, 32)
    assert net.training and not net.backbone.training
    assert not any(parameter.requires_grad for parameter in net.stages[3].parameters())
    with pytest.raises(UserError, match="frozen_stages is 5; expected at most the 4 stages"):
        freeze_stages(net, 5, 32)
