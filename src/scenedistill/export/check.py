"""Compare an exported file with the network it was made from, and measure its speed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from scenedistill.data.images.read import UnreadableImage, read_image, squash
from scenedistill.inference.model import SceneModel

#: Largest difference of a logit, relative to the largest logit, for files that should be exact.
TOLERANCE = 1e-3
#: Test images that an 8-bit file may always lose: in a small test split a single image is a large share.
TOLERATED_LOSS = 2
#: Least share of images for which a file's own preparation and `read_scene` give the same class; one further image is
#: tolerated. Some images differ by a grey level, and very large ones by the downscaling.
MIN_AGREEMENT = 0.95
#: Images of one pass in the checks, and in the timing of batches.
BATCH = 64
#: Number of original image files that are passed through a file at their own size.
FILES = 64
#: Number of mosaics of six test images that are passed through a file at their own size.
MOSAICS = 32
#: Rounds of the timing over all networks, so that other load on the machine affects all of them.
ROUNDS = 3


@dataclass
class FileCheck:
    """Results of the check of one file.

    Attributes:
        name: name of the file.
        bytes: size of the file in bytes.
        images: number of test images.
        oa: share of the test images that are classified correctly, 0..1.
        equal: share of the test images with the same class as from the network in PyTorch (fp32), 0..1.
        difference: largest absolute difference of a logit from the network's.
        allowed: largest allowed difference; None for 8-bit files, which are judged by `loss`.
        loss: number of images that only the network classifies correctly, minus those that only the file does.
        from_files: for a file that prepares images itself, the check of its preparation on original image files:
            `images`, their number; `equal`, the share with the same class as after `read_scene`; `difference`, the
            largest difference of a logit. Empty if the files are missing.
        other_sizes: the same for mosaics of test images, twice the stored size high and three times wide.
        milliseconds: time for one image, by images in a pass; empty without timing.
        failure: reason of a failed check; "" if the file passes.
    """

    name: str
    bytes: int
    images: int
    oa: float
    equal: float
    difference: float
    allowed: float | None
    loss: int
    from_files: dict[str, float] = field(default_factory=dict)
    other_sizes: dict[str, float] = field(default_factory=dict)
    milliseconds: dict[str, float] = field(default_factory=dict)
    failure: str = ""


def logits_of(model: SceneModel, images: np.ndarray) -> np.ndarray:
    """Return the logits of images uint8 `[N, S, S, bands]`, float32 `[N, K]`."""
    starts = range(0, len(images), BATCH)
    return np.concatenate([model.predict(images[start : start + BATCH]).logits for start in starts])


def check_file(
    model: SceneModel,
    images: np.ndarray,
    labels: np.ndarray,
    expected: np.ndarray,
    *,
    files: Sequence[Path] = (),
    max_loss: float | None = None,
) -> FileCheck:
    """Compare a file with the network it was made from.

    Args:
        model: the opened file.
        images: test images, uint8 `[N, S, S, bands]`.
        labels: labels of the images, int64 `[N]`.
        expected: logits of the network in PyTorch (fp32), `[N, K]`.
        files: original files of the images; missing ones are left out.
        max_loss: largest `loss` of an 8-bit file as a share of the images, 0..1; at least `TOLERATED_LOSS` images are
            allowed. None requires the same logits.
    """
    found = logits_of(model, images)
    top, wanted = found.argmax(1), expected.argmax(1)
    difference = float(np.abs(found - expected).max())
    allowed = TOLERANCE * max(1.0, float(np.abs(expected).max())) if max_loss is None else None
    loss = int((wanted == labels).sum() - (top == labels).sum())
    failure = ""
    if not np.isfinite(found).all():
        failure = "it outputs logits that are not finite"
    elif allowed is not None and difference > allowed:
        failure = f"its logits differ by up to {difference:.2g} from the network's, allowed are {allowed:.2g}"
    elif max_loss is not None and loss > max(max_loss * len(images) + 1e-6, TOLERATED_LOSS):
        failure = f"it names {loss} of {len(images)} test images worse than fp32, allowed is a share of {max_loss:g}"
    from_files, other_sizes = dict[str, float](), dict[str, float]()
    if model.prepares:
        from_files = _compare_preparation(model, ((image, found[row]) for row, image in _originals(model, files)))
        other_sizes = _compare_preparation(model, _mosaics(model, images))
        failure = (
            failure
            or _preparation_failure(from_files, "original files")
            or _preparation_failure(other_sizes, "other sizes")
        )
    return FileCheck(
        name=model.source.name,
        bytes=model.source.stat().st_size,
        images=len(images),
        oa=float((top == labels).mean()),
        equal=float((top == wanted).mean()),
        difference=difference,
        allowed=allowed,
        loss=loss,
        from_files=from_files,
        other_sizes=other_sizes,
        failure=failure,
    )


def _originals(model: SceneModel, files: Sequence[Path]) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the index and the image of readable files, evenly spread over `files`."""
    if not files:
        return
    for row in np.unique(np.linspace(0, len(files) - 1, FILES).round().astype(int)):
        try:
            yield int(row), read_image(files[row], model.card.bands)
        except UnreadableImage:
            continue


def _mosaics(model: SceneModel, images: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield mosaics of six test images, and the model's logits for each after `squash`."""
    size, bands = images.shape[1], images.shape[3]
    for start in range(min(MOSAICS, len(images))):
        six = images[(start + np.arange(6)) % len(images)].reshape(2, 3, size, size, bands)
        picture = six.transpose(0, 2, 1, 3, 4).reshape(2 * size, 3 * size, bands)
        yield picture, model.predict_unresized(squash(picture, size)[None]).logits[0]


def _compare_preparation(model: SceneModel, given: Iterable[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """Compare a file's own preparation with that of `read_scene`, on pairs of an image and its expected logits."""
    found, wanted = [], []
    for image, logits in given:
        found.append(model.predict_unresized(image[None]).logits[0])
        wanted.append(logits)
    if not found:
        return {}
    own, its = np.stack(found), np.stack(wanted)
    return {
        "images": len(own),
        "difference": float(np.abs(own - its).max()),
        "equal": float((own.argmax(1) == its.argmax(1)).mean()),
    }


def _preparation_failure(seen: Mapping[str, float], what: str) -> str:
    """Return why a file's own preparation fails; "" if it passes or was not checked."""
    if not seen or (1 - seen["equal"]) * seen["images"] <= (1 - MIN_AGREEMENT) * seen["images"] + 1 + 1e-6:
        return ""
    return f"of {seen['images']} {what} it names only {seen['equal']:.1%} as it does when they are prepared for it"


def time_models(
    models: Mapping[str, SceneModel], images: np.ndarray, repeats: int, batches: Sequence[int] = (1, BATCH)
) -> dict[str, dict[str, float]]:
    """Measure the time for an image, its preparation included, as the median over passes.

    Args:
        models: networks by name.
        images: images, uint8 `[N, S, S, bands]`; repeated if a pass needs more.
        repeats: number of passes with one image; larger passes take a fifth. The first pass of each round is a warm-up.
        batches: numbers of images in a pass.

    Returns:
        Milliseconds for one image, by name and images in a pass.
    """
    seconds: dict[tuple[str, int], list[float]] = {(name, batch): [] for name in models for batch in batches}
    for _ in range(ROUNDS):
        for name, model in models.items():
            for batch in batches:
                given = np.resize(images, (batch, *images.shape[1:]))
                passes = -(-repeats // (ROUNDS if batch == 1 else 5 * ROUNDS))
                for turn in range(passes + 1):
                    start = time.perf_counter()
                    model.predict(given)
                    if turn:
                        seconds[name, batch].append(time.perf_counter() - start)
    return {
        name: {str(batch): round(statistics.median(seconds[name, batch]) * 1000 / batch, 4) for batch in batches}
        for name in models
    }
