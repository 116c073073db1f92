"""A process that holds the lock of a stage until it is killed; run by test_runs.py.

    python stage_worker.py STAGE_FOLDER

prints `held` when it has the lock.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from scenedistill.training.runs import Stage


def main() -> None:
    with Stage(Path(sys.argv[1]), {}).locked():
        print("held", flush=True)
        time.sleep(60)


if __name__ == "__main__":
    main()
