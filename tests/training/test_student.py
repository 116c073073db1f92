"""Algorithm 1: what a step computes, that it learns, and that the teacher stays outside and untouched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from scenedistill.config import FitConfig, StudentConfig, StudentFitConfig
from scenedistill.data.batches import ScenePart
from scenedistill.data.training_part import TrainingPart
from scenedistill.data.views import ViewConfig
from scenedistill.losses import ReusedClassifier
from scenedistill.losses.registry import LOSSES
from scenedistill.metrics.predict import predict
from scenedistill.models.create import build_student
from scenedistill.models.files import weights_hash
from scenedistill.models.network import SceneNet
from scenedistill.training.student import StudentTraining
from scenedistill.training.teacher_outputs.knowledge import Knowledge
from scenedistill.training.teacher_outputs.teachers import Teachers

FIT = FitConfig(epochs=30, batch_size=16, lr=0.02, warmup_epochs=2)
DKD = {"ce": 1.0, "da": 1.0, "ss": 1.0}


@pytest.fixture(scope="module")
def teacher(all_images: ScenePart) -> SceneNet:
    """A network with norms that have seen the images; what it knows does not matter here."""
    torch.manual_seed(7)
    net = build_student("table1_resnet", 4, image_size=32)
    with torch.no_grad():
        for batch in all_images.batches(32):
            net(batch.images.permute(0, 3, 1, 2) / 255)
    return net.eval().requires_grad_(False)


def knowledge_of(teacher: SceneNet, part: ScenePart, config: ViewConfig, views: int = 0) -> Knowledge:
    return Knowledge(Teachers([teacher], precision="fp32", image_size=32), part, views=views, config=config, seed=0)


class RecordingTraining(StudentTraining):
    """A training that stores what a step reports, without a Trainer."""

    def report(self, parts: dict[str, Tensor], logits: Tensor, labels: Tensor, prefix: str = "") -> None:
        self.seen = parts

    @property
    def current_epoch(self) -> int:
        return 2


def student(
    weights: dict[str, float],
    views: ViewConfig,
    knowledge: Knowledge | None = None,
    *,
    kind: type[StudentTraining] = StudentTraining,
    **fit: Any,
) -> StudentTraining:
    torch.manual_seed(0)
    config = StudentConfig(fit=StudentFitConfig(**{**vars(FIT), **fit}))
    net = build_student("table1_printed", 4, image_size=32)
    if knowledge:
        knowledge.statistics(torch.device("cpu"))
    return kind(net, config, weights, views, image_size=32, seed=0, knowledge=knowledge)


def right(net: SceneNet, part: ScenePart) -> float:
    found = predict(net, part, image_size=32, device=torch.device("cpu"), precision="fp32")
    return float((found == part.labels).mean())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["plain", "dkd"])
def test_a_student_overfits_64_images(
    method: str, all_images: ScenePart, teacher: SceneNet, mild: ViewConfig, train: Any
) -> None:
    knowledge = knowledge_of(teacher, all_images, mild) if method == "dkd" else None
    module = student(DKD if method == "dkd" else {"ce": 1.0}, mild, knowledge)
    before = right(module.net, all_images)
    record = train(module)
    assert before < 0.5
    assert right(module.net, all_images) == 1
    assert set(record["last_epoch"]) == {*(DKD if method == "dkd" else ["ce"]), "train_oa"}


def test_the_teacher_is_untouched_and_in_no_part_of_the_student(
    all_images: ScenePart, teacher: SceneNet, mild: ViewConfig, train: Any, tmp_path: Path
) -> None:
    module = student(DKD, mild, knowledge_of(teacher, all_images, mild), epochs=2)
    before = weights_hash(teacher)
    train(module)
    assert weights_hash(teacher) == before
    assert not any(part.training for part in teacher.modules())
    assert all(parameter.grad is None for parameter in teacher.parameters())

    teachers = {id(tensor) for tensor in (*teacher.parameters(), *teacher.buffers())}
    assert not teachers & {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
    checkpoint = torch.load(tmp_path / "stage" / "checkpoints" / "last.ckpt", weights_only=False)
    assert all(name.startswith(("net.", "losses.", "validation_oa.")) for name in checkpoint["state_dict"])
    trained = [index for group in checkpoint["optimizer_states"][0]["param_groups"] for index in group["params"]]
    assert len(trained) == len(list(module.parameters()))
    stored = sum(tensor.numel() for tensor in checkpoint["state_dict"].values())
    own = sum(tensor.numel() for tensor in (*module.net.state_dict().values(), *module.losses.state_dict().values()))
    assert stored == own


def test_a_step_is_the_weighted_sum_of_its_losses_on_the_same_view(
    all_images: ScenePart, teacher: SceneNet, mild: ViewConfig
) -> None:
    weights = {"ce": 0.5, "da": 2.0, "ss": 0.25}
    knowledge = knowledge_of(teacher, all_images, mild)
    module = student(weights, mild, knowledge, kind=RecordingTraining)
    assert isinstance(module, RecordingTraining)
    knowledge.open(2, torch.device("cpu"))
    batch = all_images.fetch([0, 1, 16, 17, 32, 48])
    loss, seen = module.training_step(batch, 0), module.seen

    torch.manual_seed(0)
    net = build_student("table1_printed", 4, image_size=32)
    view = module.view(batch, 2)
    ours, theirs = net(view), teacher(view)._replace(rows=(batch.rows,))
    for name, part in module.losses.items():
        assert torch.allclose(seen[name], part(ours, theirs, batch.labels), rtol=1e-4), name
    assert torch.allclose(seen["ce"], F.cross_entropy(ours.logits, batch.labels))
    assert torch.allclose(loss, sum((weights[name] * seen[name] for name in weights), torch.zeros(())))


def test_a_loss_on_feature_maps_trains(all_images: ScenePart, teacher: SceneNet, mild: ViewConfig, train: Any) -> None:
    record = train(student({"ce": 1.0, "reviewkd": 0.5}, mild, knowledge_of(teacher, all_images, mild), epochs=2))
    assert set(record["last_epoch"]) == {"ce", "reviewkd", "train_oa"} and record["last_epoch"]["reviewkd"] > 0


def test_the_reused_classifier_is_in_the_trained_students_head(
    all_images: ScenePart, teacher: SceneNet, mild: ViewConfig, train: Any
) -> None:
    module = student({"simkd": 1.0}, mild, knowledge_of(teacher, all_images, mild), epochs=2)
    record = train(module)
    assert set(record["last_epoch"]) == {"simkd", "train_oa"}
    loss = module.losses["simkd"].eval()
    assert isinstance(loss, ReusedClassifier)
    embedding = torch.randn(5, module.net.dims.embedding)
    with torch.no_grad():
        wanted = teacher.head(loss.norm(loss.layer(embedding)[:, :, None, None]).flatten(1))
        torch.testing.assert_close(module.net.head(embedding), wanted, rtol=1e-4, atol=1e-4)


def test_a_plain_student_does_not_run_a_teacher(mild: ViewConfig) -> None:
    module = student({"ce": 1.0}, mild)
    assert module.knowledge is None
    assert not list(module.losses.parameters())


@pytest.mark.parametrize("name", [name for name, kind in LOSSES.items() if kind.needs_labels])
def test_a_loss_that_needs_labels_never_sees_an_image_without_one(
    name: str, all_images: ScenePart, teacher: SceneNet, mild: ViewConfig
) -> None:
    labelled, others = (ScenePart(all_images.cache, np.arange(first, 64, 4)) for first in (0, 1))
    part = TrainingPart(labelled, others, share=0.5, mixup=0.5, seed=0)
    knowledge = Knowledge(Teachers([teacher], precision="fp32", image_size=32), part, views=0, config=mild, seed=0)
    module = student({name: 1.0, "kd": 1.0}, mild, knowledge)
    batch = part.at(0).fetch(range(32))
    view = module.view(batch, 0)
    output, target = module.net(view), knowledge.of(batch, 0, view)
    parts = module.parts(output, target, batch.labels)
    known = torch.tensor([row for row in range(32) if batch.labels[row] >= 0])
    assert 0 < len(known) < 16, "some labelled images are mixed"
    alone = module.losses[name](
        output.map(lambda tensor: tensor[known]), target.map(lambda tensor: tensor[known]), batch.labels[known]
    )
    assert torch.allclose(parts[name], alone)
    assert torch.allclose(parts["kd"], module.losses["kd"](output, target, batch.labels)), "this one sees all"
    none = module.parts(output, target, torch.full_like(batch.labels, -1))[name]
    assert none == 0 and none.requires_grad


def test_the_losses_receive_the_progress_of_the_training(
    all_images: ScenePart, teacher: SceneNet, mild: ViewConfig, train: Any
) -> None:
    seen: list[float] = []
    module = student({"ce": 1.0, "decoupled": 1.0}, mild, knowledge_of(teacher, all_images, mild), epochs=4)
    module.losses["decoupled"].register_forward_pre_hook(lambda loss, _: seen.append(loss.progress))
    train(module)
    assert sorted(set(seen)) == [0.25, 0.5, 0.75, 1.0] and seen == sorted(seen)
