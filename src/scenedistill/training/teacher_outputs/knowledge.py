"""The teacher's outputs for the training views, computed in every step or stored for a number of views."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scenedistill.data.batches import SceneBatch, ScenePart
from scenedistill.data.cache.build import cache_home
from scenedistill.data.training_part import TrainingPart, mixed_view
from scenedistill.data.views import ViewConfig, evaluation_view, view_number
from scenedistill.losses.base import TeacherStatistics, head_tensors
from scenedistill.models.files import layers_hash
from scenedistill.models.output import SceneOutput
from scenedistill.training.distributed import gather_rows, on_every_process, share_of_rows
from scenedistill.training.teacher_outputs.store import LAYERS, KnowledgeStore, Packing
from scenedistill.training.teacher_outputs.teachers import Teachers

#: Images of one teacher pass outside a training step.
BATCH = 100


class Knowledge:
    """The teacher's outputs for the training views.

    With `views` = 0 the teacher runs on every view of every epoch. With K > 0 views, epoch e uses view e mod K of each
    image. The teacher's outputs for a view number are then computed once and stored on the disk with 16 bits a number
    (`KnowledgeStore`), where later epochs, other students and losses, and later runs read them. Several processes
    divide the images of a view among them.

    Args:
        teachers: the teacher and how it is run.
        part: training images, with the images that are mixed into them.
        views: K, number of distinct views that the epochs cycle through; 0 for a new view in every epoch.
        config: ranges of the random views.
        seed: seed of the run.
        root: folder of all stores; `knowledge_home()` when not given.
        about: description of the store, for lists of stores.
    """

    def __init__(
        self,
        teachers: Teachers,
        part: TrainingPart | ScenePart,
        *,
        views: int,
        config: ViewConfig,
        seed: int,
        root: Path | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        part = part if isinstance(part, TrainingPart) else TrainingPart(part, seed=seed)
        self.teachers, self.teacher, self.part, self.views = teachers, teachers.nets[0], part, views
        self.config, self.seed = config, seed
        self.store: KnowledgeStore | None = None
        if views:
            settings = {
                "teacher": "-".join(teachers.hashes),
                LAYERS: "-".join(map(layers_hash, teachers.nets)),
                "content": part.content_hash,
                "views": asdict(config),
                "image_size": teachers.image_size,
                "seed": seed,
                "precision": teachers.precision,
            }
            # left out at their defaults, so that stores of versions without these settings remain valid
            extra = {"symmetries": teachers.symmetries, "mixup": part.mixup, "share": part.share}
            extra["distinct"] = bool(part.share)  # an image that comes twice in a view is no longer seen alike
            settings |= {name: value for name, value in extra.items() if value}
            self.store = KnowledgeStore(root or knowledge_home(), settings, len(part), about, part.pixel_hash)
        self._statistics: tuple[TeacherStatistics, float] | None = None
        self._packing: Packing | None = None
        self._number = -1
        self._rows: Tensor | None = None  # uint8 [M, row_bytes]: packed outputs of the current view

    def view_number(self, epoch: int) -> int:
        """Return the number of the view that an epoch uses."""
        return view_number(epoch, self.views)

    def need(self, epochs: int) -> str:
        """Return a description of the disk space for a training of this many epochs; "" if nothing is stored.

        Raises:
            UserError: the disk has too little space.
        """
        return self.store.need(min(self.views, epochs), self.packing) if self.store else ""

    def open(self, epoch: int, device: torch.device) -> None:
        """Load the stored outputs of an epoch's view, or compute and store them.

        Args:
            epoch: epoch, counted from 0.
            device: device for the outputs and the teacher's passes.
        """
        number = self.view_number(epoch)
        if self.store is None or (number == self._number and self._rows is not None):
            return
        self._rows = None  # frees the memory first
        rows = self.store.read(number, self.packing)
        if not on_every_process(rows is not None, device):
            rows = self._gathered(number, device)
            if int(os.environ.get("LOCAL_RANK", 0)) == 0:  # one process on each machine
                self.store.write(number, rows)
            # another run may have stored the same view with other rounding: use the file that a resumed run will read
            kept = self.store.read(number, self.packing)
            if on_every_process(kept is not None, device):
                rows = kept
        assert rows is not None
        self._number, self._rows = number, rows.to(device)

    def of(
        self,
        batch: SceneBatch,
        epoch: int,
        view: Tensor | None = None,
        attention: bool = True,
        features: bool = False,
    ) -> SceneOutput:
        """Return the teacher's output for a batch's views of an epoch.

        Args:
            batch: batch of this epoch, whose view number was passed to `open` if outputs are stored.
            epoch: epoch, counted from 0.
            view: the student's views `[B, bands, image_size, image_size]`, used if the teacher's have the same size;
                else the views are made from the batch.
            attention: return the attention of each stage; without it a teacher pass is faster.
            features: return the feature map of each stage.

        Raises:
            ValueError: `features` is set and outputs are stored, which do not include the large feature maps.
        """
        if features and self.views:
            raise ValueError(f"feature maps are not among the kept outputs for {self.views} views; use views=0")
        if self._rows is None:
            if view is None or view.shape[-1] != self.teachers.image_size:
                view = self._view(batch, self.view_number(epoch))
            return self.teachers(view, attention, features)
        return self.packing.unpack(self._rows.index_select(0, batch.rows))

    def statistics(self, device: torch.device) -> tuple[TeacherStatistics, float]:
        """Return the statistics of the teacher's features over the evaluation views of the labelled training images,
        and its OA on them, 0..1. They are computed once, and stored on the disk if outputs are.

        Args:
            device: device of the teacher's passes.
        """
        if self._statistics is None:
            found, oa = (self.store.read_statistics() if self.store else None) or self._measured(device)
            labels = torch.as_tensor(self.part.labelled.labels)
            self._statistics = found._replace(labels=labels, head=head_tensors(self.teacher.head)), oa
        return self._statistics

    @property
    def teacher_statistics(self) -> TeacherStatistics | None:
        """Statistics of the teacher's features; None until `statistics` has computed or read them."""
        return self._statistics[0] if self._statistics else None

    @property
    def packing(self) -> Packing:
        """The layout of a stored output."""
        if self._packing is None:
            bands, size = self.part.labelled.bands, self.teachers.image_size
            with torch.no_grad():
                device = next(self.teacher.parameters()).device
                output = self.teacher(torch.zeros(1, bands, size, size, device=device))
            self._packing = Packing.of(output)
        return self._packing

    def _measured(self, device: torch.device) -> tuple[TeacherStatistics, float]:
        right, part = [0], self.part.labelled

        def outputs() -> Iterator[SceneOutput]:
            for batch in part.batches(BATCH):
                output = self.teachers(evaluation_view(batch.to(device).images, size=self.teachers.image_size))
                right.append(int((output.logits.argmax(1).cpu() == batch.labels).sum()))
                yield output

        found = TeacherStatistics.of(outputs())
        oa = sum(right) / len(part)
        if self.store:
            self.store.write_statistics(found, oa)
        return found, oa

    def _gathered(self, number: int, device: torch.device) -> Tensor:
        """Compute the packed outputs for a view on all processes together, uint8 `[N, row_bytes]`."""
        rows, part = [], self.part.at(number)
        for batch in part.batches(BATCH, share_of_rows(len(part))):
            rows.append(self.packing.pack(self.teachers(self._view(batch.to(device), number))))
        return gather_rows(torch.cat(rows), len(part)).cpu()

    def _view(self, batch: SceneBatch, number: int) -> Tensor:
        return mixed_view(batch, seed=self.seed, epoch=number, size=self.teachers.image_size, config=self.config)

    @property
    def report(self) -> tuple[str, ...]:
        """How the teachers were made fast, one line each; empty before the first forward pass."""
        return self.teachers.report

    def check_untouched(self) -> None:
        """Check that the teachers still have their initial weights.

        Raises:
            RuntimeError: the weights have changed.
        """
        self.teachers.check_untouched()

    def __getstate__(self) -> dict[str, Any]:
        """Leave the loaded outputs out when pickling; other processes load their own."""
        return {**self.__dict__, "_rows": None, "_number": -1}


def knowledge_home() -> Path:
    """Return the default folder of all stores."""
    return cache_home() / "knowledge"
