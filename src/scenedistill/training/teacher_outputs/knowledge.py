"""What the teacher says of the views, asked anew each time or kept for a number of views."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scenedistill.core.precision import Precision
from scenedistill.data.batches import SceneBatch, ScenePart
from scenedistill.data.cache.build import cache_home
from scenedistill.data.training_part import TrainingPart, mixed_view
from scenedistill.data.views import ViewConfig, evaluation_view, view_number
from scenedistill.losses.base import TeacherStatistics
from scenedistill.models.network import SceneNet
from scenedistill.models.output import SceneOutput
from scenedistill.training.distributed import gather_rows, on_every_process, share_of_rows
from scenedistill.training.teacher_outputs.store import KnowledgeStore, Packing
from scenedistill.training.teacher_outputs.teachers import Teachers

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
        part: the images that train, with what is mixed into them.
        views: K, number of distinct views that the epochs cycle through; 0 for a fresh one in every epoch.
        config: how views vary.
        image_size: side of the student's view in pixels.
        seed: of the run.
        precision: `bf16`, `fp16` or `fp32`, of the teacher's pass.
        ask_size: side in pixels of the teacher's view, which is the student's view sampled finer; `image_size` when not
            given.
        symmetries: average the answers over the eight symmetries of a view.
        others: further teachers of the same classes, whose probabilities are averaged with the first one's.
        root: folder of all stores; `knowledge_home()` when not given.
        about: what a list of stores should say of this one.
        compiled: compile the frozen teacher.
    """

    def __init__(
        self,
        teacher: SceneNet,
        part: TrainingPart | ScenePart,
        *,
        views: int,
        config: ViewConfig,
        image_size: int,
        seed: int,
        precision: Precision,
        ask_size: int | None = None,
        symmetries: bool = False,
        others: Sequence[SceneNet] = (),
        root: Path | None = None,
        about: Mapping[str, Any] | None = None,
        compiled: bool = False,
    ) -> None:
        part = part if isinstance(part, TrainingPart) else TrainingPart(part, seed=seed)
        self.teacher, self.part, self.views = teacher, part, views
        self.config, self.image_size, self.seed = config, image_size, seed
        self.ask_size = ask_size or image_size
        self.teachers = Teachers(
            [teacher, *others],
            precision=precision,
            image_size=self.ask_size,
            symmetries=symmetries,
            compiled=compiled,
        )
        self.store: KnowledgeStore | None = None
        if views:
            settings = {
                "teacher": "-".join(self.teachers.hashes),
                "images": part.content_hash,
                "views": asdict(config),
                "image_size": self.ask_size,
                "seed": seed,
                "precision": precision,
            }
            # left out where they change nothing, so that what was kept before there were such settings still serves
            extra = {"symmetries": symmetries, "mixup": part.mixup, "share": part.share}
            settings |= {name: value for name, value in extra.items() if value}
            self.store = KnowledgeStore(root or knowledge_home(), settings, len(part), about)
        self._statistics: tuple[TeacherStatistics, float] | None = None
        self._packing: Packing | None = None
        self._number = -1
        self._rows: Tensor | None = None  # uint8 [M, row_bytes]: what is kept of the current view

    def view_number(self, epoch: int) -> int:
        """Number of the views that an epoch uses."""
        return view_number(epoch, self.views)

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

    def of(
        self,
        batch: SceneBatch,
        epoch: int,
        view: Tensor | None = None,
        attention: bool = True,
        features: bool = False,
    ) -> SceneOutput:
        """The teacher's output for a batch's views of an epoch.

        Args:
            batch: of the rows of this epoch.
            epoch: counted from 0.
            view: the student's, where it is at hand: it is not made anew where the teacher sees the same.
            attention: report the attention of each stage; without it an answer is quicker to give.
            features: report the feature map of each stage.

        Raises:
            ValueError: feature maps are wanted where answers are kept: those are too large to be.
        """
        if features and self.views:
            raise ValueError(f"feature maps are not among the kept answers to {self.views} views; ask with views=0")
        if self._rows is None:
            if view is None or view.shape[-1] != self.ask_size:
                view = self._view(batch, self.view_number(epoch))
            return self.teachers(view, attention, features)
        return self.packing.unpack(self._rows.index_select(0, batch.rows))

    def statistics(self, device: torch.device) -> tuple[TeacherStatistics, float]:
        """Means and deviations of the teacher's features over the evaluation views of the training part, and its OA
        on them."""
        if self._statistics is None:
            found, oa = (self.store.read_statistics() if self.store else None) or self._measured(device)
            self._statistics = found._replace(labels=torch.as_tensor(self.part.labelled.labels)), oa
        return self._statistics

    @property
    def packing(self) -> Packing:
        """How an answer is kept."""
        if self._packing is None:
            bands = self.part.labelled.bands
            with torch.no_grad():
                device = next(self.teacher.parameters()).device
                output = self.teacher(torch.zeros(1, bands, self.ask_size, self.ask_size, device=device))
            self._packing = Packing.of(output)
        return self._packing

    def _measured(self, device: torch.device) -> tuple[TeacherStatistics, float]:
        right, part = [0], self.part.labelled

        def outputs() -> Iterator[SceneOutput]:
            for batch in part.batches(BATCH):
                output = self.teachers(evaluation_view(batch.to(device).images, size=self.ask_size))
                right.append(int((output.logits.argmax(1).cpu() == batch.labels).sum()))
                yield output

        found = TeacherStatistics.of(outputs())
        oa = sum(right) / len(part)
        if self.store:
            self.store.write_statistics(found, oa)
        return found, oa

    def _gathered(self, number: int, device: torch.device) -> Tensor:
        """The answers of all processes to a view, uint8 `[N, row_bytes]`."""
        rows, part = [], self.part.at(number)
        for batch in part.batches(BATCH, share_of_rows(len(part))):
            rows.append(self.packing.pack(self.teachers(self._view(batch.to(device), number))))
        return gather_rows(torch.cat(rows), len(part)).cpu()

    def _view(self, batch: SceneBatch, number: int) -> Tensor:
        return mixed_view(batch, seed=self.seed, epoch=number, size=self.ask_size, config=self.config)

    @property
    def report(self) -> tuple[str, ...]:
        """What was done to make the teacher fast; empty while nobody has asked it."""
        return self.teachers.report

    def check_untouched(self) -> None:
        """Raise unless the teachers that were asked still have the weights they had at first."""
        self.teachers.check_untouched()

    def __getstate__(self) -> dict[str, Any]:
        """Other processes read what is kept themselves."""
        return {**self.__dict__, "_rows": None, "_number": -1}


def knowledge_home() -> Path:
    """Where knowledge is kept when no other folder is given."""
    return cache_home() / "knowledge"
