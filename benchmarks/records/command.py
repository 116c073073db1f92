"""The command of a measurement, for its record."""

from __future__ import annotations

import sys
from pathlib import Path

from scenedistill.commands.parsing import repeatable


def this_command() -> str:
    """Return the command line of this script, with paths outside the working folder cut to their names."""
    return repeatable(sys.argv[1:]).replace("scenedistill", f"python benchmarks/{Path(sys.argv[0]).name}", 1)
