"""Number formats that a device computes in: bf16, fp16 or fp32."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor

Precision = Literal["bf16", "fp16", "fp32"]
TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_precision(wanted: str, device: torch.device) -> Precision:
    """Resolve `auto` to bf16 if the device computes it natively, else fp16 on a GPU or fp32 on a CPU; keep others."""
    if wanted != "auto":
        return wanted  # type: ignore[return-value]
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    native = device.type == "cpu" and getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    return "bf16" if native else "fp32"


def compute_device(accelerator: str) -> torch.device:
    """Return the device of a Lightning accelerator name, for work outside Lightning's Trainer."""
    cuda = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    # with several processes on a machine, each uses its own GPU
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")


def flush_denormals() -> None:
    """Flush float32 denormals (below 1e-38) to zero, in this thread and in those that it starts later.

    A float32 convolution of denormals was measured to take 27 times as long as one of normal numbers, and a vanishing
    gate or gradient produces many of them. Call this before torch starts its threads.
    """
    torch.set_flush_denormal(True)


def allow_compiling() -> None:
    """Allow this process to compile many networks.

    All of them share the same code, and beyond its limit of recompilations torch silently runs them uncompiled.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 256)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """Autocast to a precision on a device; fp32 switches it off."""
    return torch.autocast(device.type, dtype=TYPES.get(precision), enabled=precision in TYPES)


def no_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Switch autocast off; where it is off already, do nothing, so that an exporter sees no operation."""
    return torch.autocast(device.type, enabled=False) if torch.is_autocast_enabled(device.type) else nullcontext()


def at_least_float32(tensor: Tensor) -> Tensor:
    """Convert a tensor of a 16-bit format to float32; return others unchanged."""
    return tensor.float() if tensor.dtype in TYPES.values() else tensor
