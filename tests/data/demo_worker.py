"""A process that generates the demonstration images, to be killed; run by test_demo.py.

python demo_worker.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from scenedistill.data.synthetic.demo import generate


def main() -> None:
    generate(Path(sys.argv[1]), size=32)


if __name__ == "__main__":
    main()
