"""What makes training fast does not change what is learnt."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch

from scenedistill.config import FitConfig, StudentConfig
from scenedistill.data.batches import ScenePart
from scenedistill.data.views import ViewConfig
from scenedistill.evaluation.predict import predict
from scenedistill.models.network import SceneNet
from scenedistill.models.student import build_student
from scenedistill.training.knowledge import Knowledge
from scenedistill.training.student import StudentTraining

FIT = FitConfig(epochs=12, batch_size=16, lr=0.02, warmup_epochs=2)
DKD = {"ce": 1.0, "da": 1.0, "ss": 1.0}
CPU = torch.device("cpu")


class Slow(Knowledge):
    """The plain teacher in fp32, asked anew for every view: how it is done without any of our speed."""

    def _ask(self, view: torch.Tensor, *_: bool) -> Any:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            return self.teacher(view)


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 0.001), ("bf16", 0.01)])
def test_fast_and_slow_learn_the_same(
    all_images: ScenePart, mild: ViewConfig, train: Any, tmp_path: Path, precision: str, tolerance: float
) -> None:
    torch.manual_seed(7)
    teacher = build_student("table1_resnet", 4, image_size=32)
    with torch.no_grad():
        for batch in all_images.batches(32):
            teacher(batch.images.permute(0, 3, 1, 2) / 255)

    def learn(kind: type[Knowledge], views: int, folder: str) -> tuple[list[dict[str, float]], SceneNet]:
        knowledge = kind(
            teacher, all_images, views=views, config=mild, image_size=32, seed=0, precision=precision, root=tmp_path
        )
        torch.manual_seed(0)
        net = build_student("table1_printed", 4, image_size=32)
        statistics = knowledge.statistics(CPU)[0]
        module = StudentTraining(
            net, StudentConfig(fit=FIT), DKD, mild, image_size=32, seed=0, knowledge=knowledge, statistics=statistics
        )
        train(module, folder=folder)
        with (tmp_path / folder / "logs" / "attempt_0" / "metrics.csv").open() as file:
            return [{name: float(row[name]) for name in DKD} for row in csv.DictReader(file) if row["ce"]], net

    slow, slow_net = learn(Slow, 0, "slow")
    online, _ = learn(Knowledge, 0, "online")
    stored, stored_net = learn(Knowledge, FIT.epochs, "stored")  # as many views as epochs: the same views
    # a training multiplies the smallest rounding: the first epoch tells whether it is rounding or something else
    for name in DKD:
        for fast in (online, stored):
            assert fast[0][name] == pytest.approx(slow[0][name], rel=tolerance), name
            assert fast[-1][name] == pytest.approx(slow[-1][name], rel=0.3), name

    def oa(net: SceneNet) -> float:
        found = predict(net, all_images, image_size=32, device=CPU, precision="fp32")
        return float((found == all_images.labels).mean())

    assert oa(slow_net) > 0.9
    assert oa(stored_net) == pytest.approx(oa(slow_net), abs=0.05)
