"""What the teacher says of the views, asked anew each time or kept for a number of views."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scenedistill.data.batches import SceneBatch, ScenePart, content_hash
from scenedistill.data.cache import cache_home
from scenedistill.data.views import ViewConfig, evaluation_view, training_view
from scenedistill.losses.base import TeacherStatistics
from scenedistill.models.files import weights_hash
from scenedistill.models.freeze import FrozenTeacher, freeze
from scenedistill.models.network import SceneNet
from scenedistill.models.output import SceneOutput
from scenedistill.precision import Precision
from scenedistill.training.distributed import gather_rows, on_every_process, share_of_rows
from scenedistill.training.knowledge_store import KnowledgeStore, Packing

#: Images of one teacher pass when knowledge is gathered outside a training step.
BATCH = 100


class Knowledge:
    """The teacher's outputs for the training views.

    With `views` = 0 the teacher is asked for every view of every epoch. With K > 0, epoch e uses view e mod K of each
    image, and the teacher's outputs for a view number are computed once, in the order of the training part, and kept
    on the disk in 16 bits a number (`KnowledgeStore`): later epochs, other students, other losses and resumed or later
    runs read them. Several processes share out the images of a view among themselves.

    Args:
        teacher: put into eval mode; its weights are never changed, and what is asked is a fast copy (`freeze`).
        part: the training images.
        views: K, number of distinct views that the epochs cycle through; 0 for a fresh one in every epoch.
        config: how views vary.
        image_size: side of a view in pixels.
        seed: of the run.
        precision: `bf16`, `fp16` or `fp32`, of the teacher's pass.
        root: folder of all stores; `knowledge_home()` when not given.
        about: what a list of stores should say of this one.
        compiled: compile the frozen teacher.
    """

    def __init__(
        self,
        teacher: SceneNet,
        part: ScenePart,
        *,
        views: int,
        config: ViewConfig,
        image_size: int,
        seed: int,
        precision: Precision,
        root: Path | None = None,
        about: Mapping[str, Any] | None = None,
        compiled: bool = False,
    ) -> None:
        self.teacher, self.part, self.views = teacher.eval().requires_grad_(False), part, views
        self.config, self.image_size, self.seed, self.precision = config, image_size, seed, precision
        self.compiled = compiled
        self.store: KnowledgeStore | None = None
        if views:
            settings = {
                "teacher": weights_hash(teacher),
                "images": content_hash(part),
                "views": asdict(config),
                "image_size": image_size,
                "seed": seed,
                "precision": precision,
            }
            self.store = KnowledgeStore(root or knowledge_home(), settings, len(part), about)
        self._frozen: FrozenTeacher | None = None
        self._frozen_hash = ""
        self._statistics: tuple[TeacherStatistics, float] | None = None
        self._packing: Packing | None = None
        self._number = -1
        self._rows: Tensor | None = None  # uint8 [N, row_bytes]: what is kept of the current view

    def view_number(self, epoch: int) -> int:
        """Number of the views that an epoch uses."""
        return epoch % self.views if self.views else epoch

    def need(self, epochs: int) -> str:
        """What keeping the views of so many epochs takes, in words; nothing to say when nothing is kept.

        Raises:
            UserError: more than the disk has.
        """
        return self.store.need(min(self.views, epochs), self.packing) if self.store else ""

    def open(self, epoch: int, device: torch.device) -> None:
        """Make ready for an epoch: read what is kept of its views, or ask the teacher and keep it."""
        number = self.view_number(epoch)
        if self.store is None or (number == self._number and self._rows is not None):
            return
        self._rows = None  # before the next ones come
        rows = self.store.read(number, self.packing)
        if not on_every_process(rows is not None, device):
            rows = self._gathered(number, device)
            if int(os.environ.get("LOCAL_RANK", 0)) == 0:  # one process of a machine
                self.store.write(number, rows)
            # another run may have kept the same view, rounded otherwise: all go by the one that a resumed run will read
            kept = self.store.read(number, self.packing)
            if on_every_process(kept is not None, device):
                rows = kept
        assert rows is not None
        self._number, self._rows = number, rows.to(device)

    def of(self, batch: SceneBatch, view: Tensor, attention: bool = True, features: bool = False) -> SceneOutput:
        """The teacher's output for a batch of this epoch and its view; without its attention, where nobody looks at it,
        an answer is quicker to give.

        Raises:
            ValueError: feature maps are wanted where answers are kept: those are too large to be.
        """
        if features and self.views:
            raise ValueError(f"feature maps are not among the kept answers to {self.views} views; ask with views=0")
        if self._rows is None:
            return self._ask(view, attention, features)
        return self.packing.unpack(self._rows.index_select(0, batch.rows))

    def statistics(self, device: torch.device) -> tuple[TeacherStatistics, float]:
        """Means and deviations of the teacher's features over the evaluation views of the training part, and its OA
        on them."""
        if self._statistics is None:
            self._statistics = (self.store.read_statistics() if self.store else None) or self._measured(device)
        return self._statistics

    @property
    def packing(self) -> Packing:
        """How an answer is kept."""
        if self._packing is None:
            bands = self.part.cache.bands
            with torch.no_grad():
                device = next(self.teacher.parameters()).device
                output = self.teacher(torch.zeros(1, bands, self.image_size, self.image_size, device=device))
            self._packing = Packing.of(output)
        return self._packing

    def _measured(self, device: torch.device) -> tuple[TeacherStatistics, float]:
        outputs, right = [], 0
        for batch in self.part.batches(BATCH):
            output = self._ask(evaluation_view(batch.to(device).images, size=self.image_size))
            outputs.append((output.embedding.float(), *(stage.descriptor.float() for stage in output.attention)))
            right += int((output.logits.argmax(1).cpu() == batch.labels).sum())
        embedding, *descriptors = (torch.cat(column).cpu() for column in zip(*outputs, strict=True))
        found = TeacherStatistics(
            embedding.mean(0),
            tuple(d.mean(0) for d in descriptors),
            tuple(d.std(0) if len(d) > 1 else torch.ones_like(d[0]) for d in descriptors),
        )
        oa = right / len(self.part)
        if self.store:
            self.store.write_statistics(found, oa)
        return found, oa

    def _gathered(self, number: int, device: torch.device) -> Tensor:
        """The answers of all processes to a view, uint8 `[N, row_bytes]`."""
        rows = []
        for batch in self.part.batches(BATCH, share_of_rows(len(self.part))):
            moved = batch.to(device)
            view = training_view(
                moved.images, moved.ids, seed=self.seed, epoch=number, size=self.image_size, config=self.config
            )
            rows.append(self.packing.pack(self._ask(view)))
        return gather_rows(torch.cat(rows), len(self.part)).cpu()

    def _ask(self, view: Tensor, attention: bool = True, features: bool = False) -> SceneOutput:
        if self._frozen is None:
            self._frozen = freeze(
                self.teacher,
                precision=self.precision,
                device=view.device,
                image_size=self.image_size,
                compiled=self.compiled,
            )
            self._frozen_hash = self._frozen.weights_hash()
        if self._frozen.device != view.device:
            self._frozen.to(view.device)
        return self._frozen(view, attention, features)

    @property
    def report(self) -> tuple[str, ...]:
        """What was done to make the teacher fast; empty while nobody has asked it."""
        return self._frozen.report if self._frozen else ()

    def check_untouched(self) -> None:
        """Raise unless the teacher that was asked still has the weights it had at first."""
        if self._frozen and self._frozen.weights_hash() != self._frozen_hash:
            raise RuntimeError("the teacher's weights changed while it taught")

    def __getstate__(self) -> dict[str, Any]:
        """Other processes make a frozen teacher of their own."""
        return {**self.__dict__, "_frozen": None, "_rows": None, "_number": -1}


def knowledge_home() -> Path:
    """Where knowledge is kept when no other folder is given."""
    return cache_home() / "knowledge"
