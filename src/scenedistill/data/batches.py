"""Batches of decoded images, on the device of the training step and fetched ahead."""

from __future__ import annotations

import hashlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from scenedistill.core.disk import short_hash
from scenedistill.data.cache.build import SceneCache

#: Share of a GPU's free memory that the images of a part may occupy; larger parts are copied batch by batch.
RESIDENT_SHARE = 0.25
#: Number of batches fetched ahead of the current step.
AHEAD = 3
#: Number of images copied to a GPU at once when a whole part is kept there.
_PIECE = 512


@dataclass
class SceneBatch:
    """Images of one step, before a view is made of them.

    Attributes:
        images: uint8 `[B, H, W, bands]`.
        labels: int64 `[B]`; -1 for an image that has none, or is mixed with another.
        ids: int64 `[B]`, identifier of each image, from which its views are drawn; see `image_id`.
        rows: int64 `[B]`, positions in the part (training, validation or test) the batch is from.
        partner: images whose views are mixed into the views of these; None without mixup.
        amount: float32 `[B]`, share of each image in its own view, 1 if it is not mixed; None without mixup.
    """

    images: Tensor
    labels: Tensor
    ids: Tensor
    rows: Tensor
    partner: SceneBatch | None = None
    amount: Tensor | None = None

    def mixed(self, partner: SceneBatch, amount: Tensor) -> SceneBatch:
        """Return the same images, each to be mixed with the image of its row in another batch."""
        labels = torch.where(amount < 1, -1, self.labels)
        return SceneBatch(self.images, labels, self.ids, self.rows, partner, amount)

    def put(self, start: int, batch: SceneBatch) -> None:
        """Copy a batch of the same kind, on any device, into the rows from `start` on."""
        rows = slice(start, start + len(batch))
        for name in ("images", "labels", "ids", "rows", "amount"):
            if (own := getattr(self, name)) is not None:
                own[rows] = getattr(batch, name)
        if self.partner is not None and batch.partner is not None:
            self.partner.put(start, batch.partner)

    def to(self, device: torch.device, non_blocking: bool = False) -> SceneBatch:
        """The batch on a device."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> SceneBatch:
        """The batch in page-locked memory, for a fast copy to a GPU."""
        return self.map(Tensor.pin_memory)

    def map(self, function: Callable[[Tensor], Tensor]) -> SceneBatch:
        """The same batch with `function(tensor) -> tensor` applied to every tensor in it."""
        return SceneBatch(
            function(self.images),
            function(self.labels),
            function(self.ids),
            function(self.rows),
            None if self.partner is None else self.partner.map(function),
            None if self.amount is None else function(self.amount),
        )

    def __len__(self) -> int:
        return len(self.labels)


class ScenePart:
    """The images of one part of a split, fetched a whole batch at a time."""

    def __init__(self, cache: SceneCache, positions: np.ndarray) -> None:
        self.cache = cache
        self.positions = positions
        self.labels = cache.index.labels[positions]
        self.ids = cache.index.ids[positions]

    def __len__(self) -> int:
        return len(self.positions)

    def fetch(self, rows: Sequence[int] | np.ndarray) -> SceneBatch:
        """The batch of these rows."""
        chosen = np.asarray(rows, dtype=np.int64)
        return SceneBatch(
            torch.from_numpy(np.ascontiguousarray(self.cache.fetch(self.positions[chosen]))),
            torch.from_numpy(self.labels[chosen]),
            torch.from_numpy(self.ids[chosen]),
            torch.from_numpy(chosen),
        )

    @property
    def bands(self) -> int:
        """Number of bands of each image."""
        return self.cache.bands

    @property
    def image_bytes(self) -> int:
        """Bytes of all images."""
        return int(self.cache.images[:1].nbytes * len(self))

    def batches(self, batch_size: int, rows: Sequence[int] | None = None) -> Iterator[SceneBatch]:
        """Yield batches of all images, or of `rows`, in order; the last batch may be smaller."""
        rows = range(len(self)) if rows is None else rows
        for start in range(0, len(rows), batch_size):
            yield self.fetch(rows[start : start + batch_size])

    def content_hash(self) -> str:
        """Return 16 hex digits over the names and the checksums of the images in their order, without reading pixels.

        Another image under the same name changes it, except for one in 4 billion. `SceneCache.fetch` compares the
        pixels with the same checksums when they are used.
        """
        sums = self.cache.sums[self.positions].astype("<u4")
        return short_hash(self.ids.tobytes() + sums.tobytes())

    def pixel_hash(self) -> str:
        """Return the content hash of earlier versions, 16 hex digits over the names and all pixels of the images."""
        digest = hashlib.sha256(np.ascontiguousarray(self.ids).data)
        for batch in self.batches(512):
            digest.update(batch.images.numpy().data)
        return digest.hexdigest()[:16]


class Rows(Protocol):
    """Images that are fetched by their rows: a `ScenePart`, or a view of a `TrainingPart`."""

    @property
    def image_bytes(self) -> int: ...

    def fetch(self, rows: Sequence[int]) -> SceneBatch: ...

    def __len__(self) -> int: ...


class BatchOrder(Protocol):
    """Rows of each batch of an epoch."""

    def __iter__(self) -> Iterator[list[int]]: ...

    def __len__(self) -> int: ...


# not with torch's DataLoader: it fetches ahead only in other processes, out of which every batch would be copied, and
# it keeps no images on a GPU
class SceneBatches:
    """Iterator over the batches of a part in a given order, on a device.

    On a CPU a batch is one gather from the decoded cache. On a GPU the whole part is kept in GPU memory if it fits
    (`RESIDENT_SHARE`), and a batch is a gather there; otherwise a thread fetches batches ahead into page-locked memory,
    and the host does not wait for the copy.

    Args:
        part: the images; or a function, called when an epoch begins, that returns the images of the epoch.
        order: rows of each batch; Lightning finds its `set_epoch` through `batch_sampler`.
        device: device of the batches.
    """

    def __init__(self, part: Rows | Callable[[], Rows], order: BatchOrder, device: torch.device) -> None:
        self._part_of_epoch = part if callable(part) else lambda: part
        self.batch_sampler, self.device = order, device
        self.waited = 0.0  # seconds that steps have waited for batches
        self._resident: tuple[Rows, SceneBatch] | None = None

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[SceneBatch]:
        part = self._part_of_epoch()
        if self._fits(part):
            source = self._from_device(part)
        elif self.device.type == "cuda":
            source = self._ahead(part)
        else:
            source = (part.fetch(rows) for rows in self.batch_sampler)
        while True:
            started = time.perf_counter()
            batch = next(source, None)
            self.waited += time.perf_counter() - started
            if batch is None:
                return
            yield batch

    def _fits(self, part: Rows) -> bool:
        if self.device.type != "cuda" or (self._resident and self._resident[0] is part):
            return self.device.type == "cuda"
        self._resident = None  # freed before the free memory is measured
        return part.image_bytes <= RESIDENT_SHARE * torch.cuda.mem_get_info(self.device)[0]

    def _copied(self, part: Rows) -> SceneBatch:
        """Copy a part to the device, piece by piece: the whole is never in the memory of the host."""
        whole: SceneBatch | None = None
        for start in range(0, len(part), _PIECE):
            piece = part.fetch(range(start, min(start + _PIECE, len(part))))
            if whole is None:
                whole = piece.map(lambda one: one.new_empty((len(part), *one.shape[1:]), device=self.device))
            whole.put(start, piece)
        return whole or part.fetch(range(0))

    def _from_device(self, part: Rows) -> Iterator[SceneBatch]:
        if self._resident is None:
            self._resident = part, self._copied(part)
        whole = self._resident[1]
        batches = list(self.batch_sampler)
        # the order of the whole epoch is copied once, so that no step waits for a copy
        order = torch.tensor([row for rows in batches for row in rows]).to(self.device)
        start = 0
        for rows in batches:
            chosen = order[start : start + len(rows)]
            start += len(rows)
            yield whole.map(lambda tensor, chosen=chosen: tensor.index_select(0, chosen))  # type: ignore[misc]

    def _ahead(self, part: Rows) -> Iterator[SceneBatch]:
        ready: queue.Queue[SceneBatch | Exception | None] = queue.Queue(AHEAD)
        left = threading.Event()

        on_gpu = self.device.type == "cuda"

        def fetch() -> None:
            try:
                # the device is per thread; without it, pinning would open another GPU
                with torch.cuda.device(self.device) if on_gpu else nullcontext():
                    for rows in self.batch_sampler:
                        batch = part.fetch(rows)
                        if not _put(ready, batch.pin_memory() if on_gpu else batch, left):
                            return
                _put(ready, None, left)
            except Exception as problem:  # raised again in the consumer
                _put(ready, problem, left)

        threading.Thread(target=fetch, daemon=True).start()
        try:
            while (batch := ready.get()) is not None:
                if isinstance(batch, Exception):
                    raise batch
                yield batch.to(self.device, non_blocking=True)
        finally:
            left.set()


def _put(ready: queue.Queue[SceneBatch | Exception | None], entry: object, left: threading.Event) -> bool:
    """Put an entry into the queue; return whether that succeeded before the reader left."""
    while not left.is_set():
        try:
            ready.put(entry, timeout=0.1)  # type: ignore[arg-type]
        except queue.Full:
            continue
        return True
    return False
