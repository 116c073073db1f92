"""A process that does some work again and again, and is killed (-9) before its first, second, ... change of a name.

    python killed_at.py raster RASTER FOLDER
    python killed_at.py images MODEL IMAGE FOLDER

It prints, as a line of JSON for each kill, what lay in the folder then, what after the same work was done again, and
what after other work on the same was done instead.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from scenedistill.core.errors import UserError

CHANGES = ("unlink", "rmdir", "replace", "rename")


def killed(work: Callable[[], Any], count: int) -> bool:
    """Do the work in a child that is killed instead of its change number `count`; whether it came to that."""
    if pid := os.fork():
        status = os.waitpid(pid, 0)[1]
        assert not os.WIFEXITED(status) or os.WEXITSTATUS(status) == 0, "the work failed"
        return os.WIFSIGNALED(status)
    left = count

    def counted(change: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **more: Any) -> Any:
            nonlocal left
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return change(*given, **more)

        return call

    for name in CHANGES:
        setattr(os, name, counted(getattr(os, name)))
    try:
        work()
        os._exit(0)
    finally:
        os._exit(1)


def listed(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def main() -> None:
    kind, *given, last = sys.argv[1:]
    folder = Path(last)
    same: Callable[[Path], Any]
    other: Callable[[Path], Any]
    if kind == "raster":
        from raster_worker import Colours

        from scenedistill.inference.raster.config import RasterConfig
        from scenedistill.inference.raster.pipeline import map_raster

        def same(out: Path) -> Any:
            return map_raster(Colours(), given[0], out, RasterConfig(window=20))

        def other(out: Path) -> Any:
            return map_raster(Colours(), given[0], out, RasterConfig(window=10))

    else:
        import torch

        from scenedistill.inference.images import ImagesConfig, predict_images
        from scenedistill.inference.model import open_model

        torch.set_num_threads(1)  # threads do not come along into the children
        model = open_model(given[0], device="cpu", precision="fp32", threads=1)

        def same(out: Path) -> Any:
            return predict_images(model, given[1:], out, ImagesConfig(embeddings=True, sheet="none", workers=1))

        def other(out: Path) -> Any:
            return predict_images(model, given[1:], out, ImagesConfig(sheet="none", workers=1))

    count = 0
    while killed(partial(same, folder / f"{count}"), count):
        out, spare = folder / f"{count}", folder / f"{count} other"
        shutil.copytree(out, spare)
        found: dict[str, Any] = {"left": listed(out)}
        same(out)
        found["same"] = listed(out)
        try:
            other(spare)
            found["other"] = listed(spare)
        except UserError as problem:
            found["other"] = str(problem)
        print(json.dumps(found))
        count += 1


if __name__ == "__main__":
    main()
