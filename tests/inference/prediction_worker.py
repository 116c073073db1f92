"""A process that predicts the images of a folder, four every 0.15 s or so, to be killed; run by test_images.py.

python prediction_worker.py NETWORK IMAGES OUT
"""

from __future__ import annotations

import sys
import time
from typing import Any

from scenedistill.inference.images import ImagesConfig, predict_images
from scenedistill.inference.model import open_model


def main() -> None:
    network, images, out = sys.argv[1:]
    model = open_model(network, device="cpu", precision="fp32", threads=1)
    predict = model.predict

    def slowly(given: Any) -> Any:
        time.sleep(0.15)
        return predict(given)

    model.predict = slowly  # type: ignore[method-assign, assignment]
    predict_images(model, [images], out, ImagesConfig(batch_size=4, embeddings=True))


if __name__ == "__main__":
    main()
