"""Whether an exported file says what the network says, and how fast it says it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from scenedistill.data.images.read import UnreadableImage, read_image, squash
from scenedistill.inference.model import SceneModel

#: Largest difference of a logit, over the largest logit, in a file that should be exact.
TOLERANCE = 1e-3
#: Test images that an 8-bit file may lose where the share is fewer: one image is much in a small test split.
FORGIVEN = 2
#: Share of images that a file must name alike whether it prepares them itself or `read_scene` does; one more is
#: forgiven. A few differ in a grey level, and very large ones in how they are made small.
ALIKE = 0.95
#: Images of one pass, while checking and in the timing of many.
BATCH = 64
#: Original files that are put through a file as they are.
FILES = 64
#: Pictures of another size, each of six test images, that are put through a file as they are.
MOSAICS = 32
#: The timing goes round this often: what else the machine does then hits all networks alike.
ROUNDS = 3


@dataclass
class FileCheck:
    """What was found of one file.

    Attributes:
        name: of the file.
        bytes: its size.
        images: test images it was asked about.
        oa: share of them that it names rightly.
        equal: share that it names like the network in PyTorch, fp32.
        difference: largest difference of a logit from the network's.
        allowed: largest difference that lets it pass; None for 8 bits, which `loss` decides.
        loss: images named rightly by the network and not by the file, less the reverse.
        from_files: of a file that prepares images itself: `images`, a number of original files in their own size;
            `equal`, the share that it names as it does when `read_scene` prepares them; `difference`, the largest of a
            logit. Empty where the files are gone.
        other_sizes: the same for pictures of twice and three times the stored size, made of test images, which are
            always there.
        milliseconds: for one image, by images in a pass; empty where nothing was timed.
        failure: why it fails, in a few words; "" when it passes.
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
    """Logits of all images, float32 `[N, K]`."""
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
        labels: int64 `[N]`.
        expected: logits of the network in PyTorch, fp32, `[N, K]`.
        files: the originals of the images; those that are gone are left out.
        max_loss: share of the images that an 8-bit file may name worse, or `FORGIVEN` where that is fewer; None asks
            for the same logits.
    """
    found = logits_of(model, images)
    top, wanted = found.argmax(1), expected.argmax(1)
    difference = float(np.abs(found - expected).max())
    allowed = TOLERANCE * max(1.0, float(np.abs(expected).max())) if max_loss is None else None
    loss = int((wanted == labels).sum() - (top == labels).sum())
    failure = ""
    if not np.isfinite(found).all():
        failure = "it gives logits that are no numbers"
    elif allowed is not None and difference > allowed:
        failure = f"its logits differ by up to {difference:.2g} from the network's, allowed are {allowed:.2g}"
    elif max_loss is not None and loss > max(max_loss * len(images) + 1e-6, FORGIVEN):
        failure = f"it names {loss} of {len(images)} test images worse than fp32, allowed is a share of {max_loss:g}"
    from_files, other_sizes = dict[str, float](), dict[str, float]()
    if model.prepares:
        from_files = _alike(model, ((image, found[row]) for row, image in _originals(model, files)))
        other_sizes = _alike(model, _mosaics(model, images))
        failure = failure or _misprepared(from_files, "original files") or _misprepared(other_sizes, "other sizes")
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
    """Files of all classes that can be read, with their number."""
    if not files:
        return
    for row in np.unique(np.linspace(0, len(files) - 1, FILES).round().astype(int)):
        try:
            yield int(row), read_image(files[row], model.card.bands)
        except UnreadableImage:
            continue


def _mosaics(model: SceneModel, images: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pictures of six test images each, and the logits of the file when they are made small for it."""
    size, bands = images.shape[1], images.shape[3]
    for start in range(min(MOSAICS, len(images))):
        six = images[(start + np.arange(6)) % len(images)].reshape(2, 3, size, size, bands)
        picture = six.transpose(0, 2, 1, 3, 4).reshape(2 * size, 3 * size, bands)
        yield picture, model.unaided(squash(picture, size)[None]).logits[0]


def _alike(model: SceneModel, given: Iterable[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """The file's own preparation of whole images, against `read_scene`'s: images, and logits of those prepared."""
    found, wanted = [], []
    for image, logits in given:
        found.append(model.unaided(image[None]).logits[0])
        wanted.append(logits)
    if not found:
        return {}
    own, its = np.stack(found), np.stack(wanted)
    return {
        "images": len(own),
        "difference": float(np.abs(own - its).max()),
        "equal": float((own.argmax(1) == its.argmax(1)).mean()),
    }


def _misprepared(seen: Mapping[str, float], what: str) -> str:
    """Why a file's own preparation fails; "" when it passes, or was not asked."""
    if not seen or (1 - seen["equal"]) * seen["images"] <= (1 - ALIKE) * seen["images"] + 1 + 1e-6:
        return ""
    return f"of {seen['images']} {what} it names only {seen['equal']:.1%} as it does when they are prepared for it"


def time_models(
    models: Mapping[str, SceneModel], images: np.ndarray, repeats: int, batches: Sequence[int] = (1, BATCH)
) -> dict[str, dict[str, float]]:
    """Milliseconds for an image of each network, by images in a pass: the median of its passes, images prepared within.

    Args:
        models: by name.
        images: uint8 `[N, S, S, bands]`; repeated where a pass needs more.
        repeats: passes of one image; of more images a fifth. The first of each round is thrown away.
        batches: images in a pass.
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
