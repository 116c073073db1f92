"""The plain PyTorch loop of the tutorials and of mdistiller: ImageFolder, torchvision's transforms, a loss by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from .loop import CROP_SCALE, JITTER, KD_WEIGHT, TEMPERATURE, Loop, LoopSettings, Switches


class TextbookLoop(Loop):
    """Loop with two workers, as in PyTorch's tutorial on distillation and mdistiller, and the loss written out."""

    name = "textbook"
    own_workers = 2
    switched_on = "teacher in inference mode, fused SGD, uint8 tensor transforms (v2), persistent workers"

    def __init__(self, settings: LoopSettings, switches: Switches | None = None) -> None:
        super().__init__(settings, switches)
        self._folder = fast_folder(settings) if self.switches.tuned else plain_folder(settings)
        self._teacher, self._student = self.compiled(self.teacher), self.compiled(self.student)
        self.optimizer = torch.optim.SGD(
            self.student.parameters(),
            lr=settings.lr,
            momentum=0.9,
            weight_decay=settings.weight_decay,
            nesterov=True,
            fused=self.switches.tuned or None,
        )

    def batches(self) -> Iterable[tuple[Tensor, Tensor]]:
        """See `Loop.batches`."""
        return DataLoader(
            self._folder,
            self.given.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=self.workers,
            pin_memory=self.pinned,
            persistent_workers=self.switches.tuned and self.workers > 0,
        )

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """See `Loop.loss`."""
        with torch.inference_mode() if self.switches.tuned else torch.no_grad():
            taught = self._teacher(images)
        logits = self._student(images).float()
        soft = F.softmax(taught.clone().float() / TEMPERATURE, 1)  # a clone can be saved for backward
        divergence = F.kl_div(F.log_softmax(logits / TEMPERATURE, 1), soft, reduction="batchmean")
        return F.cross_entropy(logits, labels) + KD_WEIGHT * TEMPERATURE**2 * divergence

    def update(self, loss: Tensor) -> None:
        """See `Loop.update`."""
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def plain_folder(settings: LoopSettings) -> ImageFolder:
    """Return images as the tutorials read them: decoded by Pillow, float32, with torchvision's v1 transforms."""
    views = [
        transforms.RandomResizedCrop(settings.pixels, scale=CROP_SCALE),
        transforms.RandomHorizontalFlip(),
        transforms.RandomVerticalFlip(),
        transforms.ColorJitter(JITTER, JITTER, JITTER),
        transforms.ToTensor(),
    ]
    return ImageFolder(settings.data, transforms.Compose(views))


def fast_folder(settings: LoopSettings) -> ImageFolder:
    """Return images as torchvision reads them fastest on a CPU: uint8 tensors, converted to float on the device.

    Large JPEG files are decoded at a half, a quarter or an eighth of their size (libjpeg's draft mode), as long as no
    crop is then smaller than its view.
    """
    views = [
        v2.RandomResizedCrop(settings.pixels, scale=CROP_SCALE),
        v2.RandomHorizontalFlip(),
        v2.RandomVerticalFlip(),
        v2.ColorJitter(JITTER, JITTER, JITTER),
    ]
    folder = ImageFolder(settings.data)
    shortest_crop = (CROP_SCALE[0] * 3 / 4) ** 0.5  # of the image's side, at the narrowest ratio
    enough = int(settings.pixels / shortest_crop) + 1
    with Image.open(folder.samples[0][0]) as first:
        drafted = first.format == "JPEG" and min(first.size) >= 2 * enough
    reader: Callable[[str], object] = _Draft(enough) if drafted else _decode
    return ImageFolder(settings.data, v2.Compose([v2.PILToTensor()] * drafted + views), loader=reader)


def _decode(path: str) -> Tensor:
    return decode_image(path, ImageReadMode.RGB)


class _Draft:
    def __init__(self, side: int) -> None:
        self.side = side

    def __call__(self, path: str) -> Image.Image:
        with Image.open(Path(path)) as image:
            image.draft("RGB", (self.side, self.side))
            return image.convert("RGB")
