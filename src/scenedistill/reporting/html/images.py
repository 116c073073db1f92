"""Images of a report: finding their folder, and thumbnails within a budget of bytes."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from scenedistill.data.images.read import UnreadableImage, read_image
from scenedistill.runs.run import Cell, Run

THUMBNAIL = 88  # pixels on a side
QUALITY = 60  # of WebP, 0..100


class Thumbnails:
    """Thumbnails of images as data URIs, each made once, until the budget is spent.

    Args:
        budget: bytes of all data URIs together; the last one may exceed it.
    """

    def __init__(self, budget: int) -> None:
        self.budget, self.spent = budget, 0
        self.uris: list[str] = []
        self.unreadable: dict[str, str] = {}
        self._places: dict[Path, int | None] = {}

    def add(self, path: Path) -> int | None:
        """Return the number of the image's thumbnail; None if it cannot be read or the budget is spent."""
        if path not in self._places:
            if self.spent >= self.budget:
                return None  # not stored: the budget may be raised later
            self._places[path] = self._make(path)
        return self._places[path]

    def _make(self, path: Path) -> int | None:
        try:
            pixels = read_image(path, 3, at_least=2 * THUMBNAIL)
        except UnreadableImage as problem:
            try:
                pixels = read_image(path, 1)  # two bands: the first one is shown
            except UnreadableImage:
                self.unreadable[path.name] = problem.reason
                return None
        image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])
        image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BICUBIC, reducing_gap=3.0)
        self.uris.append(picture(np.asarray(image)))
        self.spent += len(self.uris[-1]) + 3
        return len(self.uris) - 1


def picture(pixels: np.ndarray, quality: int = QUALITY) -> str:
    """Encode uint8 `[H, W]` or `[H, W, 3]` as a WebP data URI."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "WEBP", quality=quality, method=4)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def overlay(pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Overlay a map on an image.

    Args:
        pixels: uint8 `[H, W, bands]`.
        heat: float `[H, W]` in 0..1.

    Returns:
        uint8 `[H, W, 3]`.
    """
    import matplotlib

    grey = colours(pixels).mean(2, keepdims=True)
    shown = matplotlib.colormaps["inferno"](heat)[..., :3] * 255
    mixed: np.ndarray = (0.45 * grey + 0.55 * shown).round().astype(np.uint8)
    return mixed


def colours(pixels: np.ndarray) -> np.ndarray:
    """Convert uint8 `[H, W, bands]` to `[H, W, 3]`: the first three bands, or the first one three times."""
    return pixels[..., :3] if pixels.shape[-1] >= 3 else pixels[..., :1].repeat(3, axis=-1)


def find_data(data: Run, cell: Cell, given: Path | Mapping[str, Path] | None) -> tuple[Path | None, str]:
    """Return the folder of a cell's images, or None and the reason.

    The candidates are the user's folder if given, else those in the networks' records and the grid. A folder counts
    only if it holds a test image of the cell.

    Args:
        data: the run or grid of the report.
        cell: cell whose images are looked for.
        given: a folder, or folders by the name of the data set in the grid.
    """
    sample = next((network.test_paths[0] for network in cell.networks if network.test_paths), None)
    if sample is None:
        return None, "what the networks said of each image was not kept (outputs.npz), or does not fit split.csv"
    label = cell.key.rpartition("-")[0]
    if isinstance(given, Mapping):
        places = [Path(given[label])] if label in given else []
    elif given is not None:
        places = [Path(given), Path(given) / label]
    else:
        places = _recorded(data, cell, label)
    looked = list(dict.fromkeys(place.expanduser() for place in places))
    for place in looked:
        if root := _root(place, sample):
            return root, ""
    there = " and ".join(place.name for place in looked if os.path.exists(place))  # noqa: PTH110  (see `_root`)
    if there:
        return None, f"{sample} is not in {there}"
    return None, f"there is no {looked[0].name}" if looked else "the data folder is not known"


def _recorded(data: Run, cell: Cell, label: str) -> list[Path]:
    places = [network.record.get("images", {}).get("root") for network in cell.networks]
    places.append((data.grid.get("datasets") or {}).get(label))
    return [Path(str(place)) for place in places if place]


def _root(place: Path, sample: str) -> Path | None:
    """Return the parent of the class folders: the place itself, the folder of a manifest, or a sub-folder."""
    try:
        base = place.parent if place.is_file() else place
        if (base / sample).is_file():
            return base
        return next((inner for inner in sorted(base.iterdir()) if (inner / sample).is_file()), None)
    except OSError:  # not there, or a folder of another user
        return None
