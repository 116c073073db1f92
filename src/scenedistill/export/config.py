"""The settings of an export."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Format = Literal["safetensors", "onnx", "int8", "pt2"]


@dataclass
class ExportConfig:
    """The files to write and their checks.

    Attributes:
        formats: any of `safetensors`, `onnx`, `int8` (ONNX in 8-bit integers) and `pt2` (a program of torch.export).
        images: number of test images in the checks, drawn with a fixed seed; 0 takes all. When not given, all if the
            checks then take less than a minute and a GiB, else 1000.
        calibration: number of training images on which the ranges of `int8` are measured, >= 1.
        max_loss: share of the test images that `int8` may lose against fp32, 0..1; two images are always allowed.
        repeats: number of timed passes with one image; passes with 64 images are a fifth of it. 0 skips the timing.
        threads: number of CPU threads in the timing; PyTorch's default when not given.
    """

    formats: list[Format] = field(default_factory=lambda: ["safetensors", "onnx", "int8", "pt2"])
    images: int | None = None
    calibration: int = 128
    max_loss: float = 0.005
    repeats: int = 30
    threads: int | None = None
