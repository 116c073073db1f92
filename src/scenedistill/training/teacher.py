"""Training of the teacher in the triplet Siamese framework."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from scenedistill.config import TeacherConfig
from scenedistill.data.batches import SceneBatch
from scenedistill.data.views import ViewConfig
from scenedistill.losses.triplet import triplet_loss
from scenedistill.models.network import SceneNet
from scenedistill.training.base import SceneTraining
from scenedistill.training.distributed import gather
from scenedistill.training.frozen_stages import freeze_stages, hold_statistics


class TeacherTraining(SceneTraining):
    """Training of the teacher with cross-entropy plus lambda times the triplet loss on the embedding.

    Li, Nan and Liu (2023) use three branches with shared weights. Here they are one pass over a batch of P classes x K
    images, from which the triplets are mined.

    Args:
        net: the teacher.
        config: weight, margin and mining of the triplet loss, and the training schedule.
        views: ranges of the random views.
        image_size: side of the views in pixels.
        seed: seed of the run.
    """

    def __init__(self, net: SceneNet, config: TeacherConfig, views: ViewConfig, *, image_size: int, seed: int) -> None:
        super().__init__(net, config.schedule(), views, image_size=image_size, seed=seed)
        self.config = config
        if config.frozen_stages:
            freeze_stages(net, config.frozen_stages, image_size)

    def on_train_epoch_start(self) -> None:
        """Hold the frozen stages in evaluation mode."""
        super().on_train_epoch_start()
        hold_statistics(self.net)

    def training_step(self, batch: SceneBatch, batch_idx: int) -> Tensor:
        """Return the loss on a batch; the triplets are mined from the batches of all processes together."""
        output = self.net(self.resized_for_epoch(self.view(batch, self.current_epoch)), attention=False)
        smoothing = self.config.fit.label_smoothing
        entropy = F.cross_entropy(output.logits.float(), batch.labels, label_smoothing=smoothing)
        parts = {"ce": entropy}
        loss = entropy
        if self.config.triplet_weight > 0:
            triplet = triplet_loss(
                gather(output.embedding), gather(batch.labels), margin=self.config.margin, mining=self.config.mining
            )
            parts["triplet"] = triplet
            loss = loss + self.config.triplet_weight * triplet
        self.report(parts, output.logits, batch.labels)
        return loss
