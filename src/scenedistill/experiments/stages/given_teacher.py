"""Teachers that the run does not train: a network of an earlier run, or one trained elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from scenedistill.core.errors import UserError
from scenedistill.data.known.catalogue import normalise
from scenedistill.data.names import nfc, same_names
from scenedistill.experiments.context import SeedContext
from scenedistill.experiments.stages.starts import start_record
from scenedistill.models.create import build_with_head
from scenedistill.models.files import NetCard, load_net, weights_hash
from scenedistill.models.network import SceneNet
from scenedistill.training.runs import Stage


def teacher_as_it_is(context: SeedContext, stage: Stage, file: str | None) -> Stage:
    """Load the network of `--teacher.weights` with its own head, its logits in the order of the run's classes.

    Args:
        context: context of the seed.
        stage: stage of the teacher, not done yet.
        file: hash of the file.

    Raises:
        UserError: the file has no complete network of that name with a head, or its classes are not those of the
            images.
    """
    experiment, config, settings = context.experiment, context.config.teacher, context.config
    net, account = build_with_head(
        config.name, config.weights, bands=settings.data.bands, image_size=settings.image_size
    )
    names, logits = read_classes(config.classes), net.dims.classes
    rows = class_rows(experiment.classes, names, logits, config.weights)
    if config.mean and config.std:
        mean, std = (torch.tensor(values).expand(settings.data.bands) for values in (config.mean, config.std))
        net.set_normalisation(mean, std)
    net.set_head(net.head.weight[rows], net.head.bias[rows])
    context.say(f"teacher: {account}")
    told = "named by --teacher.classes" if names else "taken to be in the order of the folders (--teacher.classes)"
    context.say(f"teacher: {len(rows)} of the {logits} classes of its head, {told}")
    record = {"seconds": 0.0, "taken_from": Path(config.weights).name, **start_record(config.weights, account, file)}
    first = account.stride_in_first_convolution
    card = experiment.card(config.name, False, stride_in_first_convolution=first)
    return experiment.folder.finish(stage, net, card, record)


def read_classes(given: Sequence[str] | str | None) -> list[str] | None:
    """Read class names from a list, a text file with one name per line, or comma-separated text.

    Raises:
        UserError: no such file, a file that is not UTF-8 text, or a name twice.
    """
    if given is None:
        return None
    names = list(given)
    if isinstance(given, str):
        try:
            names = Path(given).read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as problem:
            raise UserError(f"--teacher.classes: {given} is not UTF-8 text.") from problem
        except OSError as problem:  # no such file, or a list too long for a path
            names = given.split(",")
            if len(names) == 1:
                raise UserError(
                    f"--teacher.classes: there is no file {given}. Give one with a name a line, or '[a, b, c]'."
                ) from problem
    names = [name.strip() for name in names if name.strip()]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"--teacher.classes names {twice[0]} twice; expected one name for each logit.")
    return names


def class_rows(classes: Sequence[str], names: Sequence[str] | None, logits: int, file: str) -> list[int]:
    """Find the number of the logit of each class of the images; names without an exact match are compared without case,
    spaces and underscores.

    Args:
        classes: class names of the images, in their order.
        names: class names of the head in the order of its logits; None when they are `classes`.
        logits: number of logits of the head.
        file: name of the file for the messages.

    Raises:
        UserError: the numbers of names and logits differ, or the head lacks a class.
    """
    if names is None:
        if logits != len(classes):
            raise UserError(
                f"{file} tells {logits} classes apart and the images have {len(classes)}. Name the classes of its "
                "head, in the order of its logits, with --teacher.classes."
            )
        return list(range(logits))
    if len(names) != logits:
        raise UserError(f"--teacher.classes has {len(names)} names and the head of {file} {logits} logits.")
    known = {name: number for number, name in enumerate(names)}
    alike: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        alike.setdefault(normalise(name), []).append(number)
    rows = [[known[name]] if name in known else alike.get(normalise(name), []) for name in classes]
    if missing := [name for name, found in zip(classes, rows, strict=True) if len(found) != 1]:
        raise UserError(
            f"--teacher.classes does not name {', '.join(missing[:5])}, which the images have; it names "
            f"{', '.join(names[:5])}{', ...' if len(names) > 5 else ''}. Give the names of the folders."
        )
    return [found[0] for found in rows]


def given_teacher(context: SeedContext, checkpoint: Path, stage: Stage) -> Stage:
    """Load the network of an earlier run that `--teacher.checkpoint` names."""
    classes, bands = context.experiment.classes, context.config.data.bands
    net, card = load_net(checkpoint)
    if not same_names(card.classes, classes):
        differing = sorted({*map(nfc, card.classes)} ^ {*map(nfc, classes)})[:5]
        raise UserError(
            f"{checkpoint} was trained for {len(card.classes)} classes and the data has {len(classes)}; both must "
            f"be the same, in name and order. Only one of them has: {', '.join(differing) or '(another order)'}."
        )
    if card.bands != bands:
        raise UserError(f"{checkpoint} takes {card.bands} bands and --data.bands is {bands}; both must be the same.")
    _check_size(context, net, card, checkpoint)
    if stage.done:
        if stage.record["weights_hash"] != weights_hash(net):  # the settings hold only the file name
            raise UserError(
                f"{stage.folder} was taken from another file than {checkpoint}, and what follows was made with "
                "that one. Give another run folder with --out."
            )
        return stage
    return context.experiment.folder.finish(stage, net, card, {"seconds": 0.0, "taken_from": checkpoint.name})


def _check_size(context: SeedContext, net: SceneNet, card: NetCard, checkpoint: Path) -> None:
    """Report a teacher that is used at another image size than it was trained at; refuse one that cannot take it."""
    settings, stored = context.config, card.stored_size or context.config.data.stored_size
    if (card.image_size, stored) == (settings.image_size, settings.data.stored_size):
        return
    try:
        with torch.no_grad():
            net(torch.zeros(1, card.bands, settings.image_size, settings.image_size))
    except (RuntimeError, AssertionError, ValueError) as problem:
        raise UserError(
            f"{checkpoint} is a {card.name} that takes images of {card.image_size} pixels alone, and --image_size is "
            f"{settings.image_size}. Give --image_size {card.image_size} or another teacher."
        ) from problem
    context.say(
        f"{checkpoint.name}: trained on images stored at {stored} pixels and seen at {card.image_size}; "
        f"here they are stored at {settings.data.stored_size} and seen at {settings.image_size}"
    )
