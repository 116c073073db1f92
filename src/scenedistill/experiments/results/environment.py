"""Machine and libraries on which a result was measured."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from scenedistill.core.machine import usable_cores
from scenedistill.experiments.results.record import Scalar

LIBRARIES = ("torch", "torchvision", "timm", "lightning", "scenedistill")


def measured_here(**libraries: str | None) -> dict[str, Any]:
    """Return the fields `date`, `hardware` and `versions` of a result of today on this machine.

    Args:
        libraries: versions, by name, of libraries in use that `versions` does not know.
    """
    today = datetime.date.today().isoformat()
    return {"date": today, "hardware": hardware(), "versions": {**versions(), **libraries}}


def hardware() -> dict[str, Scalar]:
    """Describe the machine: CPU name, usable cores, memory in GiB, GPU name or None. No host name, no path."""
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    many = f"{len(gpus)} x " if len(gpus) > 1 else ""
    gpu = many + gpus[0] if gpus else None
    return {"cpu": cpu_name(), "cores": usable_cores(), "memory_gib": memory_gib(), "gpu": gpu}


def cpu_name() -> str:
    """Return the name of the processor where the system provides it, else its architecture."""
    system = platform.system()
    if system == "Linux" and Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name" and value.strip():
                return " ".join(value.split())
    if system == "Darwin":
        asked = subprocess.run(
            ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False
        )
        if asked.stdout.strip():
            return asked.stdout.strip()
    return platform.processor() or platform.machine() or "unknown"


def memory_gib() -> float | None:
    """Return the machine's memory in GiB, or None where it is unknown."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def versions() -> dict[str, Scalar]:
    """Return the versions of Python and of the libraries that affect results; None for a missing library."""
    found: dict[str, Scalar] = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = getattr(sys.modules.get(name), "__version__", None)  # run from source, not installed
    return found
