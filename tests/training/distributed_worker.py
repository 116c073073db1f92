"""One of several processes of a training step, each with its share of the batch; run by test_distributed.py.

    python distributed_worker.py RANK WORLD FOLDER

joins WORLD processes through a file in FOLDER and leaves `RANK.pt` there: loss, gradients and buffers of every case,
and the predicted classes of parts of several sizes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from scenedistill.data.batches import ScenePart
from scenedistill.data.cache.build import SceneCache
from scenedistill.data.scenes import SceneIndex
from scenedistill.losses.base import DistillationLoss, TeacherStatistics
from scenedistill.losses.registry import LOSSES, build_losses
from scenedistill.losses.triplet import Mining, triplet_loss
from scenedistill.metrics.predict import predict
from scenedistill.models.create import build_student
from scenedistill.models.network import SceneNet
from scenedistill.models.output import FeatureDims, SceneOutput, StageAttention
from scenedistill.training.distributed import gather, gather_output, share_batch_norm
from scenedistill.training.student import on_labelled

BATCH, SIZE, CLASSES = 8, 32, 4
TEACHER = FeatureDims(CLASSES, 12, (6, 8, 10, 12))
STATISTICS = TeacherStatistics(
    torch.zeros(TEACHER.embedding),
    tuple(torch.zeros(width) for width in TEACHER.stages),
    tuple(torch.ones(width) for width in TEACHER.stages),
)
#: the images of a class lie in different processes: without the others a process has no positives
LABELS = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])
FEW = torch.tensor([-1, 1, -1, -1, 0, 1, 2, 3])
ONE = torch.tensor([-1, -1, -1, -1, 0, 1, 2, 3])
CASES: dict[str, dict[str, Any]] = {
    "ce": {},
    "da": {"options": {"gates": 1.0}},
    "ss": {"options": {"distance": 1.0, "angle": 1.0}},
    "sp": {},
    "reviewkd": {},
    "hard": {},
    "semihard": {},
    # a loss that needs labels, of which one process has one and the other four
    "ce of few labels": {"labels": FEW},
    "ce of one process": {"labels": ONE},
    "decoupled of few labels": {"labels": FEW},
    "crd of few labels": {"labels": FEW},
    # batch norms that hold their activation; 64 pixels leave more than one position in the last stage
    "ce of mobilenetv3_small_100": {"student": "mobilenetv3_small_100"},
    # what happens to a process that looks at its own images only
    "ce, nothing shared": {"shared": False},
    "ss, nothing gathered": {"gathered": False},
}


class Step(nn.Module):
    """What a training step computes of one process's share: cross-entropy, which trains the head, and a loss."""

    def __init__(
        self, net: SceneNet, loss: DistillationLoss | Mining | None, gathered: bool, unlabelled: bool = False
    ) -> None:
        super().__init__()
        self.net, self.loss, self.unlabelled = net, loss, unlabelled
        self.gather: Callable[[Tensor], Tensor] = gather if gathered else lambda tensor: tensor

    def forward(self, images: Tensor, teacher: SceneOutput, labels: Tensor) -> Tensor:
        output = self.net(images, features=getattr(self.loss, "needs_features", False))
        entropy = nn.functional.cross_entropy(output.logits, labels, ignore_index=-1, reduction="sum") / len(labels)
        if self.loss is None:
            return entropy
        if isinstance(self.loss, str):
            embedding, labels = self.gather(output.embedding), self.gather(labels)
            return entropy + triplet_loss(embedding, labels, margin=1.0, mining=self.loss)
        if self.loss.relational and self.gather is gather:
            output, teacher, labels = gather_output(output), gather_output(teacher), gather(labels)
        if self.unlabelled:
            return entropy + on_labelled(self.loss, output, teacher, labels)
        distance: Tensor = self.loss(output, teacher, labels)
        return entropy + distance


def teacher_output(count: int) -> SceneOutput:
    def normal(*shape: int) -> Tensor:
        return torch.randn(count, *shape, dtype=torch.float64)

    stages = [
        StageAttention(normal(width).sigmoid(), normal(1, side, side).sigmoid(), normal(side, side) ** 2, normal(width))
        for width, side in zip(TEACHER.stages, (8, 4, 2, 1), strict=True)
    ]
    maps = tuple(normal(width, side, side) for width, side in zip(TEACHER.stages, (8, 4, 2, 1), strict=True))
    return SceneOutput(normal(CLASSES), normal(TEACHER.embedding), tuple(stages), maps)


def compute(rank: int, world: int) -> dict[str, Any]:
    """Every case in float64: loss (its mean over the processes), gradients and buffers."""
    found = {}
    mine = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    for case, how in CASES.items():
        torch.manual_seed(0)
        net = build_student(how.get("student", "table1_printed"), CLASSES, image_size=SIZE)
        for name, parameter in net.named_parameters():
            if "expand" in name or "locate" in name:
                nn.init.normal_(parameter, std=0.3)
        name = case.split(",")[0].split()[0]
        loss: DistillationLoss | Mining | None = None
        if name in LOSSES and (name != "ce" or "labels" in how):
            built = build_losses({name: 1.0}, net.dims, TEACHER, {name: how.get("options", {})})
            loss = cast(DistillationLoss, built[name])
            loss.prepare(STATISTICS)
        elif name != "ce":
            loss = cast(Mining, name)
        step = Step(net, loss, how.get("gathered", True), "labels" in how).double()
        images = torch.rand(BATCH, 3, SIZE, SIZE, dtype=torch.float64)
        teacher = teacher_output(BATCH).map(itemgetter(mine))
        module: nn.Module = step
        if world > 1:
            if how.get("shared", True):
                share_batch_norm(step)
            module = DistributedDataParallel(step)
        value = module(images[mine], teacher, how.get("labels", LABELS)[mine])
        value.backward()
        value = value.detach()
        if world > 1:
            dist.all_reduce(value)
            value /= world
        found[case] = {
            "loss": value,
            "gradients": {key: parameter.grad for key, parameter in step.named_parameters()},
            "buffers": {key: buffer.clone() for key, buffer in step.named_buffers()},
        }
    return found


def predictions() -> dict[str, np.ndarray]:
    """Predicted class of each image, and number of images this process looked at, for parts that two processes can and
    cannot share evenly."""
    torch.manual_seed(0)
    net = build_student("table1_printed", CLASSES, image_size=SIZE)
    draw = np.random.default_rng(0)
    index = SceneIndex(Path(), tuple(f"a/{i}.png" for i in range(23)), np.zeros(23, np.int64), ("a",))
    cache = SceneCache(index, draw.integers(0, 256, (23, SIZE, SIZE, 3), np.uint8), SIZE, 3, (), Path())
    with torch.no_grad():  # norms that have seen the images: the classes then differ
        net(torch.from_numpy(cache.images.astype(np.float32)).permute(0, 3, 1, 2) / 255)
    looked: list[int] = []
    net.register_forward_pre_hook(lambda _, given: looked.append(len(given[0])))
    device, found = torch.device("cpu"), {}
    for count in (23, 8, 1, 0):
        part = ScenePart(cache, draw.permutation(23)[:count])
        looked.clear()
        found[f"{count}"] = predict(net, part, image_size=SIZE, device=device, precision="fp32", batch_size=5)
        found[f"{count} looked at"] = np.array(sum(looked))
    return found


def main(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=(folder / "meeting").as_uri(), rank=rank, world_size=world)
    torch.save(compute(rank, world), folder / f"{rank}.pt")
    arrays: dict[str, Any] = {**predictions()}
    np.savez(folder / f"{rank}.npz", **arrays)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
