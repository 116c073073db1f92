"""One training step of every network that a run will train, before anything that takes long."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from scenedistill.config import RunConfig, StudentConfig
from scenedistill.core.errors import UserError
from scenedistill.core.precision import Precision, autocast
from scenedistill.data.batches import SceneBatch
from scenedistill.losses.base import TeacherStatistics
from scenedistill.losses.registry import resolve_weights
from scenedistill.losses.triplet import triplet_loss
from scenedistill.models.create import build_student, build_teacher
from scenedistill.models.network import SceneNet
from scenedistill.training.fitting import count_devices
from scenedistill.training.student import StudentTraining

CLASSES = 3  # of the trial: no network cares
CPU_IMAGES = 256  # of the trial on a CPU: where the memory of a larger batch does not suffice, nothing is raised
MANY = 1_000_000  # training images: batches are then as large as they come


def try_teacher(config: RunConfig, device: torch.device, precision: Precision) -> None:
    """Take one step of the teacher, with fresh weights and random images, at the run's batch size and image size.

    Raises:
        UserError: it cannot be trained so.
    """
    teacher = config.teacher
    images = _images(teacher.schedule(MANY).batch_size, config, device)

    def step() -> Tensor:
        net = build_teacher(
            teacher.name,
            CLASSES,
            bands=config.data.bands,
            image_size=config.image_size,
            dual_attention=teacher.dual_attention,
        )
        batch, view = _batch(net, images, config, device)
        output = net(view, attention=False)
        loss = F.cross_entropy(output.logits.float(), batch.labels)
        return loss + triplet_loss(output.embedding, batch.labels, margin=teacher.margin, mining=teacher.mining)

    _try(step, "teacher", teacher.name, images, config.image_size, device, precision)


def try_student(config: RunConfig, student: StudentConfig, device: torch.device, precision: Precision) -> None:
    """Take one step of a student with all its losses, itself being the teacher.

    Raises:
        UserError: it cannot be trained so.
    """
    images = _images(student.schedule(MANY).batch_size, config, device)

    def step() -> Tensor:
        net = build_student(
            student.name,
            CLASSES,
            bands=config.data.bands,
            image_size=config.image_size,
            dual_attention=student.dual_attention,
        )
        batch, view = _batch(net, images, config, device)
        weights = resolve_weights(student.method, student.losses)
        with torch.no_grad():
            statistics = TeacherStatistics.of([net.eval()(view[:1])])
        net.train()
        size, seed = config.image_size, config.seeds[0]
        training = StudentTraining(
            net, student.closed(MANY), weights, config.views, image_size=size, seed=seed, statistics=statistics
        ).to(device)
        return training.lesson(batch, view, None)[0]

    _try(step, "student", student.name, images, config.image_size, device, precision)


def _images(batch_size: int, config: RunConfig, device: torch.device) -> int:
    """A device's share of a batch, on a CPU at most `CPU_IMAGES`: training takes no more than there are images, and the
    system ends a program that asks for too much memory without a word."""
    images = batch_size // count_devices(config.machine)
    return min(images, CPU_IMAGES) if device.type == "cpu" else images


def _check_maps(net: SceneNet, view: Tensor) -> None:
    """Refuse a view `[1, bands, H, W]` of which the finest stage has one position: the network would train, and the
    losses that compare positions would compare nothing."""
    with torch.no_grad():
        finest = net.eval()(view).attention[0].energy[0]
    net.train()
    if finest.numel() < 2:
        raise UserError(
            f"--image_size is {view.shape[-1]}: {type(net.backbone).__name__} then sees a single position at its "
            "finest stage, and nothing of where things are. Give 32 or more."
        )


def _batch(net: SceneNet, images: int, config: RunConfig, device: torch.device) -> tuple[SceneBatch, Tensor]:
    """Random images of the size that training has them, and the network made ready as training does."""
    net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    net.train()
    size, numbers = config.image_size, torch.arange(images, device=device)
    view = torch.rand(images, config.data.bands, size, size, device=device)
    _check_maps(net, view[:1])
    return SceneBatch(view, numbers % CLASSES, numbers, numbers), view


def _try(
    step: Callable[[], Tensor], who: str, name: str, images: int, size: int, device: torch.device, precision: Precision
) -> None:
    state = torch.random.get_rng_state()
    try:
        with autocast(device, precision):
            loss = step()
        loss.backward()  # type: ignore[no-untyped-call]
    except UserError:
        raise
    except Exception as problem:  # of whatever a backbone does
        reason = (str(problem).strip().splitlines() or [type(problem).__name__])[0][:200]
        raise UserError(
            f"The {who} {name} cannot take a training step of a batch of {images} at {size} pixels: {reason}. "
            f"Choose another --{who}.fit.batch_size, --image_size or --{who}.name."
        ) from problem
    finally:
        torch.random.set_rng_state(state)
