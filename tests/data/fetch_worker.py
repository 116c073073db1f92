"""A process that downloads a file, to be killed; run by test_download.py.

python fetch_worker.py URL SHA256 FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from scenedistill.data.known.catalogue import Source
from scenedistill.data.known.download import fetch


def main() -> None:
    url, sha256, folder = sys.argv[1:]
    fetch(Source(url, "", sha256=sha256), Path(folder), progress=False)


if __name__ == "__main__":
    main()
