"""The training images: labelled ones, unlabelled ones that are added in each view, and mixtures of two (mixup)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from scenedistill.data.batches import SceneBatch, ScenePart
from scenedistill.data.views import ViewConfig, training_view, uniform

#: Used in place of an epoch, and larger than any, so that mixing and choosing draw independent random numbers.
_MIXING, _CHOOSING = 1 << 40, 1 << 41
_REPEATS = 40  # bit of an image's id above which repetitions in a view are counted


class TrainingPart:
    """Labelled images, with unlabelled images and mixup added in each numbered view.

    View number v has M rows: first the N labelled images, then M - N unlabelled images, chosen for each v so that all
    of them are used in turn. In each view a share of the rows is mixed with another row of the same view. Choice,
    partners and amounts are pure functions of (seed, v, image), so the teacher's outputs for a view can be stored.

    Args:
        labelled: N images.
        unlabelled: images without labels; none when not given.
        share: share of unlabelled images in a view, in [0, 1): M = N / (1 - share), rounded.
        mixup: share of the rows that are mixed with another, 0..1.
        seed: seed of the run.
    """

    def __init__(
        self,
        labelled: ScenePart,
        unlabelled: ScenePart | None = None,
        *,
        share: float = 0.5,
        mixup: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.labelled, self.unlabelled, self.mixup, self.seed = labelled, unlabelled, mixup, seed
        self.share = share if unlabelled is not None else 0.0
        self._added = round(len(labelled) * self.share / (1 - self.share))
        self._at: tuple[int, ViewPart] | None = None

    def __len__(self) -> int:
        return len(self.labelled) + self._added

    @property
    def labels(self) -> np.ndarray:
        """Label of every row of a view, int64 `[M]`; -1 for unlabelled images."""
        return np.concatenate([self.labelled.labels, np.full(self._added, -1, np.int64)])

    @property
    def content_hash(self) -> str:
        """16 hex digits over names and content of the images in their order, and 16 of the unlabelled ones."""
        return "-".join(part.content_hash() for part in self._parts)

    def pixel_hash(self) -> str:
        """Return the content hash of earlier versions, for which all pixels are read."""
        return "-".join(part.pixel_hash() for part in self._parts)

    @property
    def _parts(self) -> tuple[ScenePart, ...]:
        return (self.labelled,) if self.unlabelled is None else (self.labelled, self.unlabelled)

    @property
    def some_without_label(self) -> bool:
        """Whether some rows have no label: unlabelled or mixed images."""
        return bool(self._added or self.mixup)

    def at(self, number: int) -> ViewPart:
        """Return the rows of a view, which are the same for all views where nothing is added or mixed."""
        number = number if self.some_without_label else 0
        if self._at is None or self._at[0] != number:
            self._at = number, ViewPart(self, self._chosen(number), number)
        return self._at[1]

    def _chosen(self, number: int) -> np.ndarray:
        """Return the positions of a view's unlabelled images, sorted: the next ones of repeated shuffles of all."""
        if self.unlabelled is None or not self._added:
            return np.zeros(0, np.int64)
        count = len(self.unlabelled)
        first, chosen = number * self._added, np.zeros(0, np.int64)
        while len(chosen) < self._added:
            lap, start = divmod(first + len(chosen), count)
            order = np.random.default_rng((self.seed % 2**64, _CHOOSING, lap)).permutation(count)
            chosen = np.concatenate([chosen, order[start : start + self._added - len(chosen)]])
        return np.sort(chosen)


class ViewPart:
    """The M rows of one view of a `TrainingPart`; the same interface as `ScenePart`."""

    def __init__(self, whole: TrainingPart, chosen: np.ndarray, number: int) -> None:
        self._labelled, self._unlabelled, self._chosen = whole.labelled, whole.unlabelled, chosen
        self.labels = whole.labels
        ids = [whole.labelled.ids]
        if whole.unlabelled is not None:
            # an image that comes several times in a view has another crop each time: the first one its usual
            repeat = np.arange(len(chosen)) - np.searchsorted(chosen, chosen)
            ids.append(whole.unlabelled.ids[chosen] ^ (repeat << _REPEATS))
        self.ids = np.concatenate(ids)
        #: for every row, the row it is mixed with (itself if it is not) and its own share, `[M]` each
        self.partners, self.amounts = np.arange(len(self)), np.ones(len(self), np.float32)
        if whole.mixup:
            draw = uniform(whole.seed, _MIXING + number, torch.from_numpy(self.ids), 3).numpy()
            mixed = draw[:, 0] < whole.mixup
            self.partners[mixed] = (draw[:, 1] * len(self)).astype(np.int64)[mixed]
            self.amounts[mixed] = (0.5 + 0.5 * draw[:, 2])[mixed]  # a row's own image is the larger part
        self.mixes = bool(whole.mixup)

    def __len__(self) -> int:
        return len(self.labels)

    def fetch(self, rows: Sequence[int]) -> SceneBatch:
        """Return the batch of these rows, with their mixup partners."""
        chosen = np.asarray(rows, dtype=np.int64)
        batch = self._single(chosen)
        if not self.mixes:
            return batch
        return batch.mixed(self._single(self.partners[chosen]), torch.from_numpy(self.amounts[chosen]))

    @property
    def image_bytes(self) -> int:
        """Size in bytes of all images and of their mixup partners."""
        return self._labelled.image_bytes // len(self._labelled) * len(self) * (1 + self.mixes)

    def batches(self, batch_size: int, rows: Sequence[int] | None = None) -> Iterator[SceneBatch]:
        """Yield batches of all rows, or of `rows`, in order; the last batch may be smaller."""
        rows = range(len(self)) if rows is None else rows
        for start in range(0, len(rows), batch_size):
            yield self.fetch(rows[start : start + batch_size])

    def _single(self, rows: np.ndarray) -> SceneBatch:
        known = len(self._labelled)
        if self._unlabelled is None:
            return self._labelled.fetch(rows)
        images = np.empty((len(rows), *self._labelled.cache.images.shape[1:]), np.uint8)
        ours, others = rows < known, rows >= known
        images[ours] = self._labelled.fetch(rows[ours]).images
        images[others] = self._unlabelled.fetch(self._chosen[rows[others] - known]).images
        labels, ids = torch.from_numpy(self.labels[rows]), torch.from_numpy(self.ids[rows])
        return SceneBatch(torch.from_numpy(images), labels, ids, torch.from_numpy(rows))


def mixed_view(batch: SceneBatch, *, seed: int, epoch: int, size: int, config: ViewConfig) -> Tensor:
    """Compute the `training_view` of each image of a batch, mixed with the view of its partner if it has one.

    Returns:
        float32 `[B, bands, size, size]` in 0..1, channels-last in memory.
    """
    view = training_view(batch.images, batch.ids, seed=seed, epoch=epoch, size=size, config=config)
    if batch.partner is None or batch.amount is None:
        return view
    other = training_view(batch.partner.images, batch.partner.ids, seed=seed, epoch=epoch, size=size, config=config)
    return torch.lerp(other, view, batch.amount[:, None, None, None])
