"""What the teacher says of the views, asked anew each time or kept for a number of views."""

from __future__ import annotations

import torch
from torch import Tensor

from scenedistill.data.module import SceneBatch, ScenePart
from scenedistill.data.views import ViewConfig, evaluation_view, training_view
from scenedistill.losses.base import TeacherStatistics
from scenedistill.models.network import SceneNet
from scenedistill.models.output import SceneOutput
from scenedistill.precision import autocast

#: Images of one teacher pass when knowledge is gathered outside a training step.
BATCH = 100


class Knowledge:
    """The teacher's outputs for the training views.

    With `views` = 0 the teacher is asked for every view of every epoch. With K > 0, epoch e uses view e mod K of each
    image, and the teacher's outputs for a view number are computed once, in the order of the training part (so that a
    resumed run reads the very same numbers), and kept in memory in 16 bits.

    Args:
        teacher: put into eval mode and frozen.
        part: the training images.
        views: K, number of distinct views that the epochs cycle through; 0 for a fresh one in every epoch.
        config: how views vary.
        image_size: side of a view in pixels.
        seed: of the run.
        precision: `bf16`, `fp16` or `fp32`, of the teacher's pass.
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
        precision: str,
    ) -> None:
        self.teacher, self.part, self.views = teacher.eval().requires_grad_(False), part, views
        self.config, self.image_size, self.seed, self.precision = config, image_size, seed, precision
        self._kept: dict[int, SceneOutput] = {}
        self._number = 0

    def view_number(self, epoch: int) -> int:
        """Number of the views that an epoch uses."""
        return epoch % self.views if self.views else epoch

    def open(self, epoch: int, device: torch.device) -> None:
        """Make ready for an epoch: put the teacher on the device, and compute what is kept of a view seen first."""
        self.teacher.to(device)
        self._number = self.view_number(epoch)
        if self.views and self._number not in self._kept:
            outputs = []
            for batch in self.part.batches(BATCH):
                moved = batch.to(device)
                view = training_view(
                    moved.images,
                    moved.ids,
                    seed=self.seed,
                    epoch=self._number,
                    size=self.image_size,
                    config=self.config,
                )
                outputs.append(_compact(self._ask(view)))
            self._kept[self._number] = _stack(outputs)

    def of(self, batch: SceneBatch, view: Tensor) -> SceneOutput:
        """The teacher's output for a batch of this epoch and its view."""
        if not self.views:
            return self._ask(view)
        return self._kept[self._number].map(lambda tensor: tensor[batch.rows])

    def _ask(self, view: Tensor) -> SceneOutput:
        with torch.no_grad(), autocast(view.device, self.precision):
            output: SceneOutput = self.teacher(view)
        return output

    def statistics(self, device: torch.device) -> TeacherStatistics:
        """Means and deviations of the teacher's features over the evaluation views of the training part."""
        self.teacher.to(device)
        outputs = []
        for batch in self.part.batches(BATCH):
            output = self._ask(evaluation_view(batch.to(device).images, size=self.image_size))
            outputs.append((output.embedding.float(), *(stage.descriptor.float() for stage in output.attention)))
        embedding, *descriptors = (torch.cat(column) for column in zip(*outputs, strict=True))
        return TeacherStatistics(
            embedding.mean(0),
            tuple(d.mean(0) for d in descriptors),
            tuple(d.std(0) if len(d) > 1 else torch.ones_like(d[0]) for d in descriptors),
        )


def _compact(output: SceneOutput) -> SceneOutput:
    """16 bits a number; energies in bfloat16, because squares leave the range of float16."""
    half = output.map(lambda tensor: tensor.to(torch.float16))
    stages = zip(half.attention, output.attention, strict=True)
    return half._replace(attention=tuple(h._replace(energy=o.energy.to(torch.bfloat16)) for h, o in stages))


def _stack(outputs: list[SceneOutput]) -> SceneOutput:
    """Outputs of consecutive batches as one."""
    flat = [torch.utils._pytree.tree_flatten(output) for output in outputs]
    columns = [torch.cat(column) for column in zip(*(leaves for leaves, _ in flat), strict=True)]
    stacked: SceneOutput = torch.utils._pytree.tree_unflatten(columns, flat[0][1])
    return stacked
