"""The networks that the page classifies with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ServedNetworks:
    """The networks of the page, and how each process opens them; see `open_model`.

    Attributes:
        model: path of the network.
        teacher: path of a second network; `none` for none, `auto` for the teacher of the run if its file exists.
        device: `auto`, `cpu` or `cuda`.
        threads: number of CPU threads of each process; by default PyTorch or ONNX Runtime chooses it.
        trust: allow opening a .pt2 file, which can run any code.
    """

    model: Path | str
    teacher: Path | str = "auto"
    device: str = "auto"
    threads: int | None = None
    trust: bool = False
