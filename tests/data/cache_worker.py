"""A process that builds a cache, to be killed or to build at the same time as another one; run by test_cache.py.

    python cache_worker.py IMAGES CACHE

prints `ready` when it has imported everything, builds when it gets a line, and prints the cache's report.
"""

from __future__ import annotations

import sys
from pathlib import Path

from scenedistill.data.cache.build import build_cache
from scenedistill.data.scenes import scan


def main() -> None:
    images, cache = map(Path, sys.argv[1:])
    print("ready", flush=True)
    sys.stdin.readline()
    print(build_cache(scan(images), 64, folder=cache, workers=1, progress=False).report, flush=True)


if __name__ == "__main__":
    main()
