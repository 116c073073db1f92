"""Distil on a data module of torchgeo, with Lightning: batches are dictionaries with "image" and "label".

pip install torchgeo
python examples/torchgeo_data.py
"""

import lightning as L
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from scenedistill.losses import DualAttentionLoss, SpatialStructureLoss, TeacherStatistics
from scenedistill.models import SceneNet, build_student


class Distillation(L.LightningModule):
    """Training of a student by cross-entropy, L_DA and L_SS; the teacher is neither trained nor saved."""

    def __init__(self, student: SceneNet, teacher: SceneNet, statistics: TeacherStatistics) -> None:
        super().__init__()
        self.student = student
        self.teacher = [teacher.eval().requires_grad_(False)]  # in a list, a module is not a submodule
        losses = DualAttentionLoss(student.dims, teacher.dims), SpatialStructureLoss(student.dims, teacher.dims)
        for loss in losses:
            loss.prepare(statistics)
        self.losses = nn.ModuleList(losses)

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        images, labels = batch["image"], batch["label"]
        teacher = self.teacher[0].to(self.device)
        with torch.no_grad():
            target = teacher(images)
        output = self.student(images)
        da, ss = (loss(output, target, labels) for loss in self.losses)
        loss: Tensor = F.cross_entropy(output.logits, labels) + 30 * da + ss  # the weights of the method `dkd`
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 1e-3, weight_decay=0.05)


def distil(data: L.LightningDataModule, network: nn.Module, stages: list[str], *, bands: int, epochs: int) -> SceneNet:
    """Distil the light student on a data module, from a network with its own head.

    The data module normalises its batches on their way to the device (its `aug`), so neither network does.
    """
    teacher = SceneNet.wrap(network, stages, bands=bands)
    student = build_student("table1_resnet", teacher.dims.classes, bands=bands, normalise=False)
    data.setup("fit")
    batches = map(data.aug, data.train_dataloader())  # type: ignore[attr-defined]  # torchgeo's
    statistics = TeacherStatistics.measure(teacher, batches)
    trainer = L.Trainer(max_epochs=epochs, logger=False, enable_checkpointing=False)
    trainer.fit(Distillation(student, teacher, statistics), datamodule=data)
    return student


if __name__ == "__main__":
    from torchgeo.datamodules import EuroSAT100DataModule

    eurosat = EuroSAT100DataModule(root="eurosat", download=True, batch_size=16)
    resnet = torchvision.models.resnet50(num_classes=10)  # load your weights here
    resnet.conv1 = nn.Conv2d(13, 64, 7, stride=2, padding=3, bias=False)
    distil(eurosat, resnet, ["layer1", "layer2", "layer3", "layer4"], bands=13, epochs=30)
