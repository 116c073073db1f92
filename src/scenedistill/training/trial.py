"""Run one training step of each network of a run on random images, so that errors appear before a long training."""

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
from scenedistill.losses.triplet import triplet_loss
from scenedistill.models.create import build_student, build_teacher
from scenedistill.models.network import SceneNet
from scenedistill.training.fitting import count_devices
from scenedistill.training.frozen_stages import freeze_stages
from scenedistill.training.student import StudentTraining

CLASSES = 3  # number of classes of the trial; it does not affect whether a step succeeds
CPU_IMAGES = 256  # most images of the trial on a CPU: a lack of memory kills the process there without an exception
MANY = 1_000_000  # training images, enough for the largest batch size of a schedule


def try_teacher(config: RunConfig, device: torch.device, precision: Precision) -> None:
    """Run one training step of the teacher on random images, with random weights and the run's batch and image sizes.

    Args:
        config: settings of the run.
        device: device to train on.
        precision: precision of the forward pass.

    Raises:
        UserError: the step fails.
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
        if teacher.frozen_stages:
            freeze_stages(net, teacher.frozen_stages, config.image_size)
        batch, view = _batch(net, images, config, device)
        output = net(view, attention=False)
        loss = F.cross_entropy(output.logits.float(), batch.labels)
        return loss + triplet_loss(output.embedding, batch.labels, margin=teacher.margin, mining=teacher.mining)

    _run_step(step, "teacher", teacher.name, images, config.image_size, device, precision)


def try_student(config: RunConfig, student: StudentConfig, device: torch.device, precision: Precision) -> None:
    """Run one training step of a student with all its losses on random images; the student is its own teacher.

    Args:
        config: settings of the run.
        student: settings of the student.
        device: device to train on.
        precision: precision of the forward pass.

    Raises:
        UserError: the step fails.
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
        weights = student.loss_weights()
        with torch.no_grad():
            statistics = TeacherStatistics.measure(net, [view[:1]])
        net.train()
        size, seed = config.image_size, config.seeds[0]
        training = StudentTraining(net, student.closed(MANY), weights, config.views, image_size=size, seed=seed)
        training.prepare(statistics)
        training.to(device)
        return training.loss_of_batch(batch, view, None)[0]

    _run_step(step, "student", student.name, images, config.image_size, device, precision)


def _images(batch_size: int, config: RunConfig, device: torch.device) -> int:
    """Return a device's share of a batch, on a CPU at most `CPU_IMAGES`."""
    images = batch_size // count_devices(config.machine)
    return min(images, CPU_IMAGES) if device.type == "cpu" else images


def _check_maps(net: SceneNet, view: Tensor) -> None:
    """Check that the finest stage has more than one position for a view `[1, bands, H, W]`; with a single position the
    losses that compare positions would be meaningless."""
    with torch.no_grad():
        finest = net.eval()(view).attention[0].energy[0]
    net.train()
    if finest.numel() < 2:
        raise UserError(
            f"--image_size is {view.shape[-1]}: {type(net.backbone).__name__} then has a single position at its "
            "finest stage, too few for losses that compare positions. Give 32 or more."
        )


def _batch(net: SceneNet, images: int, config: RunConfig, device: torch.device) -> tuple[SceneBatch, Tensor]:
    """Move the network to the device in training mode, and return a random batch and its views."""
    net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    net.train()
    size, numbers = config.image_size, torch.arange(images, device=device)
    view = torch.rand(images, config.data.bands, size, size, device=device)
    _check_maps(net, view[:1])
    return SceneBatch(view, numbers % CLASSES, numbers, numbers), view


def _run_step(
    step: Callable[[], Tensor], who: str, name: str, images: int, size: int, device: torch.device, precision: Precision
) -> None:
    """Run a step and its backward pass, raise a failure as `UserError`, and restore the random state."""
    state = torch.random.get_rng_state()
    try:
        with autocast(device, precision):
            loss = step()
        loss.backward()  # type: ignore[no-untyped-call]
    except UserError:
        raise
    except Exception as problem:  # a backbone may raise anything
        reason = (str(problem).strip().splitlines() or [type(problem).__name__])[0][:200]
        raise UserError(
            f"The {who} {name} cannot take a training step of a batch of {images} at {size} pixels: {reason}. "
            f"Choose another --{who}.fit.batch_size, --image_size or --{who}.name."
        ) from problem
    finally:
        torch.random.set_rng_state(state)
