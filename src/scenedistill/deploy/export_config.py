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
        images: test images on which every file is checked, drawn at random but always the same; 0 takes all.
        calibration: training images on which the ranges of `int8` are measured, >= 1.
        max_loss: share of the test images that `int8` may name worse than fp32, 0..1; two images more are forgiven.
        repeats: timed passes of one image; of 64 images it is a fifth. 0 leaves the timing out.
        threads: CPU threads while timing; as many as PyTorch takes when not given.
    """

    formats: list[Format] = field(default_factory=lambda: ["safetensors", "onnx", "int8", "pt2"])
    images: int = 1000
    calibration: int = 128
    max_loss: float = 0.01
    repeats: int = 30
    threads: int | None = None
