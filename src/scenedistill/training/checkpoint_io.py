"""Checkpoints of a training that survive a kill, a Ctrl-C or a full disk."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from scenedistill.core.disk import disk_full, whole_file

#: Free bytes below which a disk counts as full: a failed write may free this much again.
FULL = 32 << 20


class AtomicCheckpoints(TorchCheckpointIO):
    """Checkpoint writer that replaces the old file atomically, so that a kill or a full disk leaves it intact."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(target) as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as problem:  # raised for an unfinished file, whatever has interrupted the writing
                if isinstance(problem.__context__, KeyboardInterrupt):
                    raise problem.__context__ from None
                if disk_full(problem) or shutil.disk_usage(target.parent).free < FULL:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target)) from problem
                raise

    def load_checkpoint(self, path: Any, *given: Any, **more: Any) -> dict[str, Any]:
        """Load tensors and plain values only: the folder of a run may come from someone else."""
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return state
