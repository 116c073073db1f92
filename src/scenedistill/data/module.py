"""The LightningDataModule that joins cache, split and batch order."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from scenedistill.data.cache import SceneCache
from scenedistill.data.splits import Split
from scenedistill.errors import UserError


@dataclass
class SceneBatch:
    """Images of one step, before a view is made of them.

    Attributes:
        images: uint8 `[B, H, W, bands]`.
        labels: int64 `[B]`.
        ids: int64 `[B]`, naming each image by its path: what views are drawn from.
        rows: int64 `[B]`, positions in the part (training, validation or test) the batch is from.
    """

    images: Tensor
    labels: Tensor
    ids: Tensor
    rows: Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> SceneBatch:
        """The batch on a device."""
        return SceneBatch(*(t.to(device, non_blocking=non_blocking) for t in self.tensors))

    def pin_memory(self) -> SceneBatch:
        """The batch in page-locked memory, for a fast copy to a GPU."""
        return SceneBatch(*(t.pin_memory() for t in self.tensors))

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The four tensors in their order."""
        return self.images, self.labels, self.ids, self.rows

    def __len__(self) -> int:
        return len(self.labels)


class ScenePart(Dataset[SceneBatch]):
    """The images of one part of a split, fetched a whole batch at a time."""

    def __init__(self, cache: SceneCache, positions: np.ndarray) -> None:
        self.cache = cache
        self.positions = positions
        self.labels = cache.index.labels[positions]
        self.ids = np.array([image_id(cache.index.paths[i]) for i in positions], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, row: int) -> SceneBatch:
        return self.__getitems__([row])

    def __getitems__(self, rows: list[int]) -> SceneBatch:
        """The batch of these rows; torch's DataLoader calls this with all rows of a batch at once."""
        chosen = np.asarray(rows, dtype=np.int64)
        return SceneBatch(
            torch.from_numpy(np.ascontiguousarray(self.cache.images[self.positions[chosen]])),
            torch.from_numpy(self.labels[chosen]),
            torch.from_numpy(self.ids[chosen]),
            torch.from_numpy(chosen),
        )

    def batches(self, batch_size: int) -> Iterator[SceneBatch]:
        """All images in order, the last batch perhaps smaller."""
        for start in range(0, len(self), batch_size):
            yield self.__getitems__(list(range(start, min(start + batch_size, len(self)))))


def image_id(path: str) -> int:
    """A 63-bit number that names an image by its relative path, whatever else is in the folder."""
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big") >> 1


class EpochBatches:
    """The order of the training images as a pure function of (seed, epoch), each process taking its share of a batch.

    The last, smaller batch of an epoch is left out; with shuffled rows that is another rest every epoch.

    Args:
        labels: int64 `[N]`, of the training part.
        batch_size: images of one step over all processes.
        seed: of the run.
        images_per_class: 0 shuffles all images; K puts K images of one class beside each other (P x K batches).
        rank: of this process.
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
            raise UserError(f"A batch of {batch_size} images cannot be shared evenly by {world} devices.")
        group = images_per_class or 1
        if batch_size % group:
            raise UserError(
                f"A batch of {batch_size} images cannot be made of {group} images a class: give a multiple."
            )
        self.labels, self.seed, self.rank, self.world = labels, seed, rank, world
        self.images_per_class = images_per_class
        usable = int(sum(count // group * group for count in np.bincount(labels)))
        whole = group * world // math.gcd(group, world)  # a batch of whole groups in equal shares
        self.batch_size = min(batch_size, usable // whole * whole)
        if self.batch_size == 0:
            raise UserError(
                f"{len(labels)} training images are too few for {world} device(s) and {group} image(s) of a class in "
                f"each batch. Add images{' or lower --teacher.images_per_class' if images_per_class else ''}."
            )
        self.usable = usable
        self.epoch = 0

    def __len__(self) -> int:
        return self.usable // self.batch_size

    @property
    def sampler(self) -> EpochBatches:
        """Itself: where Lightning looks for `set_epoch`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next; Lightning calls this."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        order = self.order(self.epoch)
        share = self.batch_size // self.world
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            begin = start + self.rank * share
            yield order[begin : begin + share].tolist()

    def order(self, epoch: int) -> np.ndarray:
        """Rows of the training part in the order of an epoch, int64 `[usable]`."""
        draw = np.random.default_rng((self.seed % 2**64, epoch))
        if not self.images_per_class:
            return draw.permutation(len(self.labels))
        groups = []
        for label in np.unique(self.labels):
            rows = draw.permutation(np.flatnonzero(self.labels == label))
            whole = len(rows) // self.images_per_class * self.images_per_class
            groups.append(rows[:whole].reshape(-1, self.images_per_class))
        return draw.permutation(np.concatenate(groups)).reshape(-1)


class SceneDataModule(L.LightningDataModule):
    """Training and validation batches for Lightning's Trainer.

    Args:
        cache: the decoded images.
        split: which of them train and validate.
        batch_size: images of one training step over all processes.
        seed: of the run; fixes the order of every epoch.
        images_per_class: see `EpochBatches`.
    """

    def __init__(
        self, cache: SceneCache, split: Split, *, batch_size: int, seed: int, images_per_class: int = 0
    ) -> None:
        super().__init__()
        self.training = ScenePart(cache, split.train)
        self.validation = ScenePart(cache, split.val)
        self.batch_size, self.seed, self.images_per_class = batch_size, seed, images_per_class

    def train_dataloader(self) -> DataLoader[SceneBatch]:
        """Batches in the order of the current epoch."""
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        order = EpochBatches(
            self.training.labels,
            self.batch_size,
            self.seed,
            images_per_class=self.images_per_class,
            rank=rank,
            world=world,
        )
        return DataLoader(self.training, batch_sampler=order, collate_fn=_as_it_is, pin_memory=self._pin)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader[SceneBatch] | list[DataLoader[SceneBatch]]:
        """Every validation image once, shared out without padding; nothing where the split has no validation part."""
        if not len(self.validation):
            return []
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        rows = list(range(rank, len(self.validation), world))
        batches = [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]
        return DataLoader(self.validation, batch_sampler=batches, collate_fn=_as_it_is, pin_memory=self._pin)  # type: ignore[arg-type]

    @property
    def _pin(self) -> bool:
        return torch.cuda.is_available()


def _as_it_is(batch: SceneBatch) -> SceneBatch:
    return batch
