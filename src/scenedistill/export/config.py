"""The settings of an export."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Format = Literal["safetensors", "onnx", "int8", "pt2"]


@dataclass
class ExportConfig:
    """What is written, and how it is checked.

    Attributes:
        formats: any of `safetensors`, `onnx`, `int8` (ONNX in 8-bit integers) and `pt2` (a program of torch.export).
        images: test images on which every file is checked, drawn at random but always the same; 0 takes all. When not
            given, all if that takes less than a minute and a GiB, else 1000.
        calibration: training images on which the ranges of `int8` are measured, >= 1.
        max_loss: share of the test images that `int8` may name worse than fp32, 0..1; two images are forgiven where
            that is fewer.
        repeats: timed passes of one image; of 64 images it is a fifth. 0 leaves the timing out.
        threads: CPU threads while timing; as many as PyTorch takes when not given.
    """

    formats: list[Format] = field(default_factory=lambda: ["safetensors", "onnx", "int8", "pt2"])
    images: int | None = None
    calibration: int = 128
    max_loss: float = 0.005
    repeats: int = 30
    threads: int | None = None
