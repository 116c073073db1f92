"""A process that starts a run and tells what that took; run by test_growth.py.

    python growth_worker.py IMAGES RUN [OPTIONS OF run ...]

prints as JSON how many image files it opened and how many MiB it took beyond the imports.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from growth import settings_of, start, status


def main() -> None:
    data, run, *more = sys.argv[1:]
    config = settings_of(Path(data), more)
    opened: list[str] = []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and str(arguments[0]).endswith(".png"):
            opened.append(str(arguments[0]))

    sys.addaudithook(watch)
    before = status()["VmRSS"]
    start(Path(data), Path(run), config)
    print(json.dumps({"opened": len(opened), "mib": status()["VmHWM"] - before}))


if __name__ == "__main__":
    main()
