"""Time and memory of the decoded cache of a folder: `python benchmarks/cache.py FOLDER [SIZE]` prints one JSON line."""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

from scenedistill.data.cache import build_cache
from scenedistill.data.scenes import scan


def main() -> None:
    """Decode once into a temporary folder, then open what was decoded three times."""
    folder, size = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 128
    with tempfile.TemporaryDirectory() as place:
        times = []
        for _ in range(4):
            start = time.perf_counter()
            cache = build_cache(scan(folder), size, folder=Path(place), progress=False)
            times.append(time.perf_counter() - start)
        print(
            json.dumps(
                {
                    "images": len(cache.index),
                    "pixels": size,
                    "build_seconds": round(times[0], 2),
                    "reuse_seconds": round(sorted(times[1:])[1], 3),
                    "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
                }
            )
        )


main()
