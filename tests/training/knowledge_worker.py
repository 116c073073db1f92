"""One of several processes that store a teacher's outputs together; run by test_knowledge.py.

    python knowledge_worker.py RANK WORLD IMAGES FOLDER

reads `teacher.safetensors` in FOLDER, opens three epochs of two views, and leaves the outputs for the last one, packed,
in `rowsWORLD-RANK.pt`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from scenedistill.core.precision import Precision
from scenedistill.data.batches import ScenePart
from scenedistill.data.cache.build import build_cache
from scenedistill.data.scenes import scan
from scenedistill.data.views import ViewConfig
from scenedistill.models.files import load_net
from scenedistill.models.network import SceneNet
from scenedistill.models.output import SceneOutput
from scenedistill.training.teacher_outputs.knowledge import Knowledge
from scenedistill.training.teacher_outputs.teachers import Teachers

IMAGES = 63  # an odd number


class Counted(Teachers):
    """Count the views of every forward pass."""

    def __init__(self, nets: list[SceneNet], *, precision: Precision, image_size: int) -> None:
        super().__init__(nets, precision=precision, image_size=image_size)
        self.seen: list[int] = []

    def __call__(self, view: Tensor, attention: bool = True, features: bool = False) -> SceneOutput:
        self.seen.append(len(view))
        return super().__call__(view, attention, features)


def main() -> None:
    rank, world, scenes, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4])
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    cache = build_cache(scan(scenes), 32, folder=folder / f"cache{rank}", progress=False)
    part = ScenePart(cache, np.arange(IMAGES))
    teacher, _ = load_net(folder / "teacher.safetensors")
    counted = Counted([teacher], precision="fp32", image_size=32)
    kept = Knowledge(
        counted,
        part,
        views=2,
        config=ViewConfig(),
        seed=5,
        root=folder / f"store{world}",
    )
    for epoch in range(3):
        kept.open(epoch, torch.device("cpu"))
    assert sum(counted.seen) == 2 * -(-IMAGES // world), counted.seen
    rows = kept.packing.pack(kept.of(part.fetch(range(IMAGES)), 2))
    assert sum(counted.seen) == 2 * -(-IMAGES // world), "the outputs are those stored"
    torch.save(rows, folder / f"rows{world}-{rank}.pt")


if __name__ == "__main__":
    main()
