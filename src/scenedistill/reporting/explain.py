"""Predictions and Grad-CAM maps of a run's teacher, plain and distilled student for single images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from scenedistill.core.errors import UserError
from scenedistill.data.images.read import read_scene
from scenedistill.data.names import positions_in, same_names
from scenedistill.data.views import evaluation_view
from scenedistill.metrics.gradcam import AGREEMENT, agreement, class_activation
from scenedistill.models.files import NetCard, load_net
from scenedistill.models.network import SceneNet
from scenedistill.runs.find import find_network
from scenedistill.runs.network import PLAIN, TEACHER, Network


@dataclass(frozen=True)
class Explanation:
    """Prediction and Grad-CAM map of one network for one image.

    Attributes:
        probabilities: of the K classes, float32 `[K]`.
        heat: Grad-CAM map for the class `Explained.asked`, float32 `[S, S]` in 0..1.
        agreement: of `heat` with the teacher's map, -1..1; None for the teacher, without one, or if the sizes differ.
    """

    probabilities: np.ndarray
    heat: np.ndarray
    agreement: float | None = None


@dataclass(frozen=True)
class Explained:
    """One image with the result of every network.

    Attributes:
        path: image file.
        pixels: the image as read for the networks, uint8 `[H, W, bands]`.
        classes: names of the K classes.
        asked: index of the class that the Grad-CAM maps explain.
        truth: index of the class that the image's folder is named after; None for any other folder.
        explanations: result of each network by name, the teacher first.
    """

    path: Path
    pixels: np.ndarray
    classes: tuple[str, ...]
    asked: int
    truth: int | None
    explanations: Mapping[str, Explanation]

    def named(self, network: str) -> int:
        """Return the index of the class that a network predicts."""
        return int(self.explanations[network].probabilities.argmax())


def networks_of(run: Path) -> dict[str, Path]:
    """Return the weight files to compare by name: `teacher`, `plain` and the distilled student's method.

    Networks that the run lacks are left out.

    Args:
        run: a run with one distilled student, or the folder of one of its students.

    Raises:
        UserError: no network there, or several distilled students (their folders are listed).
    """
    student = find_network(run)
    if student.method is None:  # a teacher's own folder
        return {TEACHER: student.weights}
    found: dict[str, Path] = {}
    teacher = student.teacher or (Network.at(student.seed_folder / TEACHER) if student.seed_folder else None)
    if teacher is not None and teacher.weights.is_file():
        found[TEACHER] = teacher.weights
    if plain := student.plain:
        found[PLAIN] = plain.weights
    if student.method != PLAIN:
        found[student.label] = student.weights
    return found


def explain(
    networks: Mapping[str, Path], images: Sequence[Path], *, asked: str | None = None, batch_size: int = 16
) -> list[Explained]:
    """Classify and explain every image with every network, on the CPU in float32.

    All Grad-CAM maps of an image explain the same class, so that they can be compared: `asked`, or else the class that
    the teacher (without a teacher, the last network) predicts.

    Args:
        networks: name to weights, as `networks_of` gives them; all of the same classes.
        images: a few image files.
        asked: name of the class to explain.
        batch_size: images in one forward pass.

    Raises:
        UserError: an image that cannot be read, networks of different classes, or no such class.
    """
    opened = {name: load_net(path) for name, path in networks.items()}
    classes = _same_classes({name: card for name, (_, card) in opened.items()})
    if asked is not None and positions_in([asked], classes) == [-1]:
        raise UserError(f"There is no class {asked}. There are: {', '.join(classes)}.")
    done: list[Explained] = []
    for start in range(0, len(images), batch_size):
        done += _explain(opened, classes, images[start : start + batch_size], asked)
    return done


def as_text(explained: Sequence[Explained]) -> str:
    """Format the results as text: for each image a table of the likeliest classes, with a column for each network."""
    return "\n\n".join(map(_text, explained)) + f"\n\nagreement: {AGREEMENT}, -1 to 1\n"


def likeliest(one: Explained, each: int = 3, most: int = 6) -> list[int]:
    """Return the classes to show: the `each` likeliest of every network, the likeliest first, at most `most` in all."""
    chances = np.stack([explanation.probabilities for explanation in one.explanations.values()])
    wanted = {int(label) for row in chances for label in row.argsort()[::-1][:each]}
    return sorted(wanted, key=lambda label: -chances[:, label].max())[:most]


def _same_classes(cards: Mapping[str, NetCard]) -> tuple[str, ...]:
    first = next(iter(cards.values())).classes
    for name, card in cards.items():
        if not same_names(card.classes, first):
            raise UserError(f"{name} knows other classes than {next(iter(cards))}; they cannot be compared.")
    return first


def _explain(
    opened: Mapping[str, tuple[SceneNet, NetCard]], classes: tuple[str, ...], paths: Sequence[Path], asked: str | None
) -> list[Explained]:
    scenes, chances = dict[str, torch.Tensor](), dict[str, torch.Tensor]()
    for name, (net, card) in opened.items():
        size = card.stored_size or card.image_size
        scenes[name] = torch.from_numpy(np.stack([read_scene(path, size, card.bands) for path in paths]))
        with torch.inference_mode():
            view = evaluation_view(scenes[name], size=card.image_size)
            chances[name] = net(view, attention=False).logits.float().softmax(1)
    leader = TEACHER if TEACHER in opened else list(opened)[-1]
    wanted = chances[leader].argmax(1) if asked is None else torch.full((len(paths),), *positions_in([asked], classes))
    heats = {
        name: class_activation(net, scenes[name], size=card.image_size, classes=wanted)
        for name, (net, card) in opened.items()
    }
    found = []
    for number, path in enumerate(paths):
        explanations = {}
        for name, maps in heats.items():
            score = None
            if name != TEACHER and TEACHER in heats and maps.shape == heats[TEACHER].shape:
                pair = (maps[number : number + 1], heats[TEACHER][number : number + 1])
                score = float(agreement(*pair)[0])
            explanations[name] = Explanation(chances[name][number].numpy(), maps[number].numpy(), score)
        (number_of_folder,) = positions_in([path.resolve().parent.name], classes)
        truth = None if number_of_folder < 0 else number_of_folder
        pixels = scenes[leader][number].numpy()
        found.append(Explained(path, pixels, classes, int(wanted[number]), truth, explanations))
    return found


def _text(one: Explained) -> str:
    classes = one.classes
    lines = [str(one.path) + (f"  (in the folder {classes[one.truth]})" if one.truth is not None else "")]
    shown = likeliest(one)
    first = max(len("agreement with the teacher"), *(len(classes[label]) for label in shown))
    names = [classes[one.named(name)] for name in one.explanations]
    widths = [max(len(network), len(name), 7) for network, name in zip(one.explanations, names, strict=True)]

    def line(head: str, cells: Sequence[str]) -> str:
        padded = (f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        return f"  {head:<{first}}  {'  '.join(padded)}".rstrip()

    lines.append(line("", list(one.explanations)))
    for label in shown:
        lines.append(
            line(
                classes[label],
                [f"{100 * explanation.probabilities[label]:.1f} %" for explanation in one.explanations.values()],
            )
        )
    lines.append(line("names", names))
    scores = [
        "" if explanation.agreement is None else f"{explanation.agreement:.2f}"
        for explanation in one.explanations.values()
    ]
    if any(scores):
        lines.append(line("agreement with the teacher", scores))
        lines.append(f"  Grad-CAM for {classes[one.asked]}")
    return "\n".join(lines)
