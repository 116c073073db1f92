"""The switches of a tuned rival, found by a short trial on the machine at hand."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

from scenedistill.core.precision import resolve_precision

from .loop import Loop, LoopSettings, Switches, pace

ROUNDS = 2  # rounds of a trial, each with all candidates in turn


def tuned(
    loop: type[Loop], settings: LoopSettings, switches: Switches | None = None, *, notes: Path | None = None
) -> Loop:
    """Return a loop tuned for this machine: with the switches given, else with those that a trial finds.

    bfloat16 (where the device computes it natively), channels-last and `Switches.tuned` are always on; the number of
    workers, then whether and how to compile, are tried. The result for a library and device is kept in the folder
    `notes`, if given, and used again for any networks and sizes: trials at 64 and 112 pixels chose the same except for
    the workers, 0 or 1.
    """
    return loop(settings, switches or _found(loop, settings, notes))


def _found(loop: type[Loop], settings: LoopSettings, notes: Path | None) -> Switches:
    if notes is None:
        return _search(loop, settings)
    name = f"{loop.name}-{settings.device.type}-{settings.workers}.json"
    if not (notes / name).exists():
        notes.mkdir(parents=True, exist_ok=True)
        (notes / name).write_text(json.dumps(asdict(_search(loop, settings))), encoding="utf-8")
    return Switches(**json.loads((notes / name).read_text(encoding="utf-8")))


def _search(loop: type[Loop], settings: LoopSettings) -> Switches:
    bf16 = resolve_precision("auto", settings.device) == "bf16"
    start = Switches(tuned=True, bf16=bf16, channels_last=True)
    most = settings.workers
    eager = _fastest(loop, settings, [replace(start, workers=n) for n in sorted({0, 1, most})])
    if settings.device.type == "cuda":
        compiled = [replace(eager, compile=mode) for mode in ("default", "reduce-overhead")]
    else:
        compiled = [replace(eager, compile="default", freeze=True)]
    return _fastest(loop, settings, [eager, *compiled])


def _fastest(loop: type[Loop], settings: LoopSettings, candidates: list[Switches]) -> Switches:
    """Return the candidate with the best pace in any round, since other work on the machine only slows a loop down."""
    running = {switches: loop(settings, switches) for switches in candidates}
    paces = dict.fromkeys(candidates, 0.0)
    for _ in range(ROUNDS):
        for switches in list(running):
            try:
                paces[switches] = max(paces[switches], pace(running[switches], settings.device))
            except RuntimeError as problem:
                if not switches.compile:
                    raise
                print(f"{loop.name} without {switches}: {str(problem).splitlines()[0]}", file=sys.stderr)
                del running[switches], paces[switches]
    return max(paces, key=lambda switches: paces[switches])
