"""Classification metrics: OA, AA, kappa, macro F1, per-class accuracy and the confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_cohen_kappa,
    multiclass_confusion_matrix,
    multiclass_f1_score,
)

from scenedistill.core.errors import UserError


@dataclass(frozen=True)
class SceneMetrics:
    """Accuracies of one classifier on one set of scenes; C is the number of classes.

    All fractions lie in 0..1, kappa in -1..1. A class is *present* when at least one image has it as its true class.
    AA and macro F1 are means over the present classes only, and `per_class` holds only these; images of present
    classes that are predicted as an absent one still count as errors.
    """

    oa: float  # overall accuracy: correct images / all images
    aa: float  # average accuracy: mean of the present classes' accuracies
    kappa: float  # Cohen's kappa; 0 where it is undefined (all labels and predictions are of one class)
    macro_f1: float  # mean of the present classes' F1
    per_class: dict[str, float]  # accuracy (recall) of each present class
    confusion: np.ndarray  # int64 [C, C]; rows the true class, columns the predicted one
    classes: tuple[str, ...]  # names of the rows and columns

    @property
    def images(self) -> int:
        """Number of images."""
        return int(self.confusion.sum())


def scene_metrics(
    predictions: ArrayLike | torch.Tensor, labels: ArrayLike | torch.Tensor, classes: Sequence[str]
) -> SceneMetrics:
    """Compare predicted with true classes.

    Args:
        predictions: predicted classes, integers `[N]` in 0..C-1, a tensor on any device or array-like.
        labels: true classes, in the same form.
        classes: the C class names, in the order of the integers.

    Raises:
        UserError: there are no images.
        ValueError: lengths, types or ranges do not fit.

    Examples:
        >>> from scenedistill.metrics.accuracy import scene_metrics
        >>> found = scene_metrics([0, 0, 1, 1], [0, 1, 1, 1], classes=["forest", "river"])
        >>> found.oa, round(found.aa, 3), found.kappa
        (0.75, 0.833, 0.5)
        >>> found.confusion
        array([[1, 0],
               [1, 2]])
    """
    predicted, true = class_numbers(predictions, "predictions", classes), class_numbers(labels, "labels", classes)
    if predicted.shape != true.shape:
        raise ValueError(f"{len(predicted)} predictions for {len(true)} labels")
    if not len(true):
        raise UserError(
            "There are no images to evaluate: the test part of the split is empty.\n"
            "Give a smaller train ratio, or a split with a test part."
        )
    count = max(2, len(classes))  # torchmetrics wants at least two classes; a second, empty one changes nothing
    confusion = multiclass_confusion_matrix(predicted, true, count)[: len(classes), : len(classes)]
    present = confusion.sum(dim=1) > 0
    accuracy = multiclass_accuracy(predicted, true, count, average="none")[: len(classes)]
    f1 = multiclass_f1_score(predicted, true, count, average="none")[: len(classes)]
    kappa = float(multiclass_cohen_kappa(predicted, true, count))
    return SceneMetrics(
        oa=float(multiclass_accuracy(predicted, true, count, average="micro")),
        aa=float(accuracy[present].mean()),
        kappa=0.0 if np.isnan(kappa) else kappa,
        macro_f1=float(f1[present].mean()),
        per_class={name: float(accuracy[i]) for i, name in enumerate(classes) if present[i]},
        confusion=confusion.numpy().astype(np.int64),
        classes=tuple(classes),
    )


def class_numbers(given: ArrayLike | torch.Tensor, what: str, classes: Sequence[str]) -> torch.Tensor:
    """Convert class numbers to int64 `[N]` on the CPU; raise ValueError where one is no class."""
    numbers = given.detach().cpu() if isinstance(given, torch.Tensor) else torch.as_tensor(np.asarray(given))
    if numbers.ndim != 1:
        raise ValueError(f"{what} have shape {list(numbers.shape)}; expected [N], one class number for each image")
    if numbers.numel() and (numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool):
        raise ValueError(f"{what} are {numbers.dtype}; expected integers, the class numbers")
    numbers = numbers.to(torch.int64)
    outside = numbers[(numbers < 0) | (numbers >= len(classes))]
    if len(outside):
        raise ValueError(
            f"{what} hold {int(outside[0])}; expected 0..{len(classes) - 1}: there are {len(classes)} classes"
        )
    return numbers
