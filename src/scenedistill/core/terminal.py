"""The console that commands print to, and the format of counts."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console


def plain_console(**options: Any) -> Console:
    """Create a console that prints paths and names literally: `[v2]` and `:x:` are not markup or an emoji.

    Bold text is printed with `style`.

    Args:
        options: arguments of `rich.console.Console`.
    """
    # in a pipe or a file there is no width to keep to
    width = None if "file" in options or options.get("stderr") or sys.stdout.isatty() else 160
    return Console(**{"soft_wrap": True, "width": width, "markup": False, "emoji": False, **options})


def counted(count: int | float, noun: str) -> str:
    """Format a number with its noun: `1 image`, `1,024 images`, `0.5 epochs`, `2 classes`."""
    number = f"{count:,}" if isinstance(count, int) else f"{count:g}"
    ending = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{number} {noun}{ending}"
