"""Settings of a report."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class ReportConfig:
    """Networks to look at closely, and numbers of images used; all accuracies are reported in any case.

    Attributes:
        cell: data set and ratio to look at closely, by the name of its folder in a grid such as `AID-20`; the first one
            when not given.
        student: student to look at closely; the first one when not given.
        method: training of that student to look at closely, beside the plain one; when not given `dkd`, and where
            there is none the one with the best mean OA.
        gradcam_images: test images over which the agreement of Grad-CAM maps is taken, drawn evenly from all test
            images, >= 0; 0 leaves the maps out.
        map_images: test images in the map of embeddings, drawn evenly, >= 0; 0 leaves it out.
        device: to compute on: `auto`, `cpu`, `cuda`, ...
    """

    cell: str | None = None
    student: str | None = None
    method: str | None = None
    gradcam_images: int = 300
    map_images: int = 600
    device: str = "auto"
