"""The LightningDataModule that joins cache, split and batch order."""

from __future__ import annotations

import math
from collections.abc import Iterator

import lightning as L
import numpy as np
import torch

from scenedistill.core.errors import UserError
from scenedistill.core.terminal import counted
from scenedistill.data.batches import SceneBatches, ScenePart
from scenedistill.data.cache.build import SceneCache
from scenedistill.data.splits.draw import Split
from scenedistill.data.training_part import TrainingPart
from scenedistill.data.views import view_number


# not with MPerClassSampler of pytorch-metric-learning: it draws from a global generator, not by epoch, and shows some
# images several times in an epoch and others not at all
class EpochBatches:
    """The order of the training images as a pure function of (seed, epoch), each process taking its share of a batch.

    The last, smaller batch of an epoch is dropped; as the rows are shuffled, its images differ from epoch to epoch.

    Args:
        labels: int64 `[N]`, labels of the training part.
        batch_size: images of one step over all processes.
        seed: seed of the run.
        images_per_class: 0 shuffles all images; K puts K images of one class beside each other (P x K batches). A class
            of fewer than K images shows some of them several times.
        rank: rank of this process.
        world: number of processes; must divide the batch size.
    """

    def __init__(
        self,
        labels: np.ndarray,
        batch_size: int,
        seed: int,
        *,
        images_per_class: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if batch_size % world:
            raise UserError(f"A batch of {counted(batch_size, 'image')} cannot be shared evenly by {world} devices.")
        group = images_per_class or 1
        if batch_size % group:
            raise UserError(
                f"A batch of {batch_size} images cannot be made of {group} images a class: give a multiple."
            )
        self.labels, self.seed, self.rank, self.world = labels, seed, rank, world
        self.images_per_class = images_per_class
        counts = np.unique(labels, return_counts=True)[1]
        usable = len(labels) if group == 1 else int(sum(max(count // group, 1) * group for count in counts))
        if group > max(counts, default=0):
            usable = 0  # no class has a group of different images
        whole = group * world // math.gcd(group, world)  # a batch of whole groups in equal shares
        self.batch_size = min(batch_size, usable // whole * whole)
        if self.batch_size == 0:
            raise UserError(
                f"Too few training images ({len(labels)}) for {counted(world, 'device')} and "
                f"{counted(group, 'image')} of a class in each batch. Add images"
                f"{' or lower --teacher.images_per_class' if images_per_class else ''}."
            )
        self.usable = usable
        self.epoch = 0

    def __len__(self) -> int:
        return self.usable // self.batch_size

    @property
    def sampler(self) -> EpochBatches:
        """This object, as Lightning looks for `set_epoch` in `sampler`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration; Lightning calls this."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        order = self.order(self.epoch)
        share = self.batch_size // self.world
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            begin = start + self.rank * share
            yield order[begin : begin + share].tolist()

    def order(self, epoch: int) -> np.ndarray:
        """Return the rows of the training part in the order of an epoch, int64 `[usable]`."""
        draw = np.random.default_rng((self.seed % 2**64, epoch))
        if not self.images_per_class:
            return draw.permutation(len(self.labels))
        groups = []
        for label in np.unique(self.labels):
            rows = draw.permutation(np.flatnonzero(self.labels == label))
            if len(rows) < self.images_per_class:
                rows = np.resize(rows, self.images_per_class)
            whole = len(rows) // self.images_per_class * self.images_per_class
            groups.append(rows[:whole].reshape(-1, self.images_per_class))
        return draw.permutation(np.concatenate(groups)).reshape(-1)


class SceneDataModule(L.LightningDataModule):
    """Training and validation batches for Lightning's Trainer.

    Args:
        cache: the decoded images.
        split: training and validation images.
        batch_size: images of one training step over all processes.
        seed: seed of the run; fixes the order of every epoch.
        images_per_class: see `EpochBatches`.
        training: training part; by default the training images of the split alone.
        views: number of distinct views of `training` that the epochs cycle through; 0 for a new one in every epoch.
    """

    def __init__(
        self,
        cache: SceneCache,
        split: Split,
        *,
        batch_size: int,
        seed: int,
        images_per_class: int = 0,
        training: TrainingPart | None = None,
        views: int = 0,
    ) -> None:
        super().__init__()
        self.training = training or TrainingPart(ScenePart(cache, split.train), seed=seed)
        self.validation = ScenePart(cache, split.val)
        self.batch_size, self.seed, self.images_per_class, self.views = batch_size, seed, images_per_class, views

    def train_dataloader(self) -> SceneBatches:
        """Return the training batches in the order of the current epoch."""
        rank, world = self._place
        order = EpochBatches(
            self.training.labels,
            self.batch_size,
            self.seed,
            images_per_class=self.images_per_class,
            rank=rank,
            world=world,
        )
        return SceneBatches(lambda: self.training.at(view_number(order.epoch, self.views)), order, self._device)

    def val_dataloader(self) -> SceneBatches | list[SceneBatches]:
        """Return every validation image once, shared among processes without padding; an empty list without any."""
        if not len(self.validation):
            return []
        rank, world = self._place
        rows = list(range(rank, len(self.validation), world))
        batches = [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]
        return SceneBatches(self.validation, batches, self._device)

    @property
    def _place(self) -> tuple[int, int]:
        """Rank of this process, and number of processes."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    @property
    def _device(self) -> torch.device:
        return self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
