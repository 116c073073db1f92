"""The teacher's training: what a step computes, and that it learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from scenedistill.config import FitConfig, TeacherConfig, TeacherFitConfig
from scenedistill.data.batches import SceneBatch, ScenePart
from scenedistill.data.views import ViewConfig
from scenedistill.losses.triplet import triplet_loss
from scenedistill.metrics.predict import predict
from scenedistill.models.create import build_student
from scenedistill.training.teacher import TeacherTraining

FIT = TeacherFitConfig(epochs=30, batch_size=16, lr=2e-3, fresh_lr_factor=1.0, weight_decay=0.05, warmup_epochs=2)


class RecordingTraining(TeacherTraining):
    """A training that stores what a step reports, without a Trainer."""

    def report(
        self, parts: dict[str, torch.Tensor], logits: torch.Tensor, labels: torch.Tensor, prefix: str = ""
    ) -> None:
        self.parts, self.logits = parts, logits

    @property
    def current_epoch(self) -> int:
        return 3


def step(config: TeacherConfig, batch: SceneBatch, views: ViewConfig) -> tuple[RecordingTraining, torch.Tensor]:
    torch.manual_seed(0)
    module = RecordingTraining(build_student("table1_printed", 4, image_size=32), config, views, image_size=32, seed=1)
    return module, module.training_step(batch, 0)


def test_a_step_is_cross_entropy_plus_lambda_times_triplet(all_images: ScenePart, mild: ViewConfig) -> None:
    batch = all_images.fetch([0, 1, 16, 17, 32, 33, 48, 49])
    module, loss = step(
        TeacherConfig(triplet_weight=0.7, margin=0.3, fit=TeacherFitConfig(**vars(FitConfig()))), batch, mild
    )
    module.eval()  # in train mode the norms would have moved on
    torch.manual_seed(0)
    net = build_student("table1_printed", 4, image_size=32)
    output = net(module.view(batch, 3))
    entropy = F.cross_entropy(output.logits, batch.labels)
    triplet = triplet_loss(output.embedding, batch.labels, margin=0.3, mining="hard")
    assert torch.allclose(loss, entropy + 0.7 * triplet)
    assert set(module.parts) == {"ce", "triplet"}
    assert triplet > 0


def test_without_triplets_a_step_is_smoothed_cross_entropy_alone(all_images: ScenePart, mild: ViewConfig) -> None:
    batch = all_images.fetch([0, 16, 32, 48])
    config = TeacherConfig(triplet_weight=0, fit=TeacherFitConfig(**vars(FitConfig(label_smoothing=0.1))))
    module, loss = step(config, batch, mild)
    assert torch.allclose(loss, F.cross_entropy(module.logits, batch.labels, label_smoothing=0.1))
    assert set(module.parts) == {"ce"}


@pytest.mark.slow
def test_the_teacher_overfits_64_images(all_images: ScenePart, mild: ViewConfig, train: Any) -> None:
    torch.manual_seed(0)
    net = build_student("table1_printed", 4, image_size=32)
    record = train(TeacherTraining(net, TeacherConfig(fit=FIT), mild, image_size=32, seed=0), images_per_class=4)
    found = predict(net, all_images, image_size=32, device=torch.device("cpu"), precision="fp32")
    assert (found == all_images.labels).all(), f"{(found == all_images.labels).mean():.1%} of the training images"
    assert set(record["last_epoch"]) == {"ce", "triplet", "train_oa"}
    assert record["last_epoch"]["train_oa"] > 0.8
