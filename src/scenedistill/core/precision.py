"""Which number format a device computes in."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor

Precision = Literal["bf16", "fp16", "fp32"]
TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_precision(wanted: str, device: torch.device) -> Precision:
    """`auto` as bf16 where the device computes it natively, else fp16 on a GPU or fp32 on a CPU; others as they are."""
    if wanted != "auto":
        return wanted  # type: ignore[return-value]
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    native = device.type == "cpu" and getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    return "bf16" if native else "fp32"


def compute_device(accelerator: str) -> torch.device:
    """The device that Lightning's accelerator name stands for, for work outside its Trainer."""
    cuda = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    # of several processes on a machine each has a GPU of its own
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")


def flush_denormals() -> None:
    """Count float32 numbers below 1e-38 as zero, in this thread and in those that it starts later.

    A float32 convolution of such numbers took 27 times as long as one of others where it was measured, and a training
    in which a gate or a gradient vanishes is full of them. To be called before torch starts its threads.
    """
    torch.set_flush_denormal(True)


def allow_compiling() -> None:
    """Let this process compile many networks: all of them come from the same lines of code, and past its limit torch
    silently runs them as they are."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 256)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """Autocast to a precision on a device; fp32 switches it off."""
    return torch.autocast(device.type, dtype=TYPES.get(precision), enabled=precision in TYPES)


def no_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Compute in the tensors' own formats; nothing to see for an exporter where autocast is off anyway."""
    return torch.autocast(device.type, enabled=False) if torch.is_autocast_enabled(device.type) else nullcontext()


def at_least_float32(tensor: Tensor) -> Tensor:
    """A tensor of a 16-bit format in float32; others as they are."""
    return tensor.float() if tensor.dtype in TYPES.values() else tensor
