"""A process that maps a raster, to be killed or measured; also the network of colours that the tests can work out.

    python raster_worker.py RASTER OUT '{"window": 32}' MODEL

MODEL is a file for `open_model`, or `colours` or `slow colours`.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from scenedistill.inference.model import Predicted, SceneModel
from scenedistill.models.files import NetCard

CLASSES = ("car park", "fields", "forêt", "river")
COLOURS = np.array([(200, 40, 40), (40, 160, 40), (40, 60, 200), (200, 200, 60)])


class Colours(SceneModel):
    """Tells scenes apart by their mean colour: a network whose answers can be worked out by hand."""

    def __init__(self, bands: int = 3, *, seconds: float = 0.0) -> None:
        super().__init__(NetCard("colours", CLASSES, bands, 16, stored_size=16), {}, Path("colours"))
        self.seconds, self.seen = seconds, 0

    def _run(self, images: np.ndarray) -> Predicted:
        time.sleep(self.seconds)
        self.seen += len(images)
        mean = images.reshape(len(images), -1, images.shape[-1]).mean(1)
        score = -np.abs(mean[:, None] - np.resize(COLOURS, (4, images.shape[-1]))).mean(-1) / 20
        power = np.exp(score - score.max(1, keepdims=True))
        found = (power / power.sum(1, keepdims=True), mean, score)
        return Predicted(*(values.astype(np.float32) for values in found))

    def _embedding_width(self) -> int:
        return self.card.bands


def main() -> None:
    """Map, and print the largest memory this process held, in KiB; 0 where there is no /proc."""
    from scenedistill.inference.model import open_model
    from scenedistill.inference.raster.config import RasterConfig
    from scenedistill.inference.raster.pipeline import map_raster

    raster, out, settings, name = sys.argv[1:]
    if name.endswith("colours"):
        model: SceneModel = Colours(seconds=0.02 if name == "slow colours" else 0)
    else:
        model = open_model(name, device="cpu", precision="fp32", threads=1)
    map_raster(model, raster, Path(out), RasterConfig(**json.loads(settings)))
    # not ru_maxrss, which is at least that of whoever started this process
    known = Path("/proc/self/status")
    lines = known.read_text().splitlines() if known.exists() else []
    print(next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0))


if __name__ == "__main__":
    main()
