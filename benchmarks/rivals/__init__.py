"""The rival distillation loops of the speed benchmark: timm's, torchdistill's and the textbook's, default and tuned."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from .loop import KD_WEIGHT, TEMPERATURE, LogitsOnly, Loop, LoopSettings, Rival, Switches, pace
from .search import tuned
from .textbook import TextbookLoop
from .timm_loop import TimmLoop
from .torchdistill_loop import TorchdistillLoop

LOOPS: tuple[type[Loop], ...] = (TimmLoop, TorchdistillLoop, TextbookLoop)

#: Loops by name: `<library>-default` as its own script or tutorial sets it up, `<library>-tuned` with the
#: switches that make it fast, chosen by a short trial on this machine (minutes, because it compiles).
RIVALS: dict[str, Callable[..., Rival]] = {
    **{f"{loop.name}-default": loop for loop in LOOPS},
    **{f"{loop.name}-tuned": partial(tuned, loop) for loop in LOOPS},
}

__all__ = [
    "KD_WEIGHT",
    "LOOPS",
    "RIVALS",
    "TEMPERATURE",
    "LogitsOnly",
    "Loop",
    "LoopSettings",
    "Rival",
    "Switches",
    "pace",
    "tuned",
]
