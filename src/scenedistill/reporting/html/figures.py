"""The report's figures as separate files for a paper."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from scenedistill.data.images.read import UnreadableImage, read_scene
from scenedistill.experiments.results.comparisons import ComparisonRow
from scenedistill.metrics.accuracy import SceneMetrics, scene_metrics
from scenedistill.metrics.differences import class_gains, confused_pairs, confusion_difference
from scenedistill.metrics.plots import confusion_figure
from scenedistill.reporting import drawings
from scenedistill.reporting.forest import forest_figure
from scenedistill.reporting.html.attention_maps import PICTURE, NetworkMaps
from scenedistill.reporting.html.focus import Focus
from scenedistill.reporting.html.sections.details import compared, loss_curves, mean_curves, pooled, summed
from scenedistill.reporting.html.sections.pictures import EXAMPLES, PAIRS
from scenedistill.runs.network import Network

ENDINGS = ("pdf", "svg", "png")


def write_figures(
    focus: Focus,
    comparisons: Sequence[ComparisonRow],
    root: Path | None,
    network_maps: NetworkMaps,
    folder: Path,
    ending: str,
) -> list[Path]:
    """Write every figure for which there are data.

    Args:
        focus: the networks to draw.
        comparisons: comparisons with all other trainings; may be empty.
        root: folder of the images; without it the confused pairs are left out.
        network_maps: Grad-CAM and embedding maps of the networks.
        folder: folder for the files; created if absent.
        ending: one of `ENDINGS`.

    Returns:
        The files written.
    """
    named = [*_matrices(focus), *_images(focus, root, network_maps), *_trainings(focus)]
    if comparisons:
        named.append(("comparison", forest_figure(comparisons)))
    return [drawings.save_drawing(figure, folder / f"{name}.{ending}") for name, figure in named]


def _matrices(focus: Focus) -> Iterator[tuple[str, Figure]]:
    """Yield confusion matrices, their difference and the gain of each class, over all seeds."""
    for label, networks in focus.groups.items():
        counts = summed(networks)
        if counts is not None:
            yield f"confusion-{label}", confusion_figure(_metrics(counts, focus.cell.classes))
    if pair := compared(focus):
        difference = confusion_difference(*pair.counts)
        yield (
            "confusion-difference",
            drawings.confusion_difference_figure(difference, focus.cell.classes, *pair.names),
        )
        yield "class-gains", drawings.class_gains_figure(class_gains(*pair.counts, focus.cell.classes), *pair.names)


def _images(focus: Focus, root: Path | None, network_maps: NetworkMaps) -> Iterator[tuple[str, Figure]]:
    """Yield confused pairs, Grad-CAM maps and embedding maps of one seed."""
    classes, networks = focus.cell.classes, list(focus.of_one_seed().values())
    if networks and root and networks[-1].outputs is not None:
        pairs = confused_pairs(networks[-1].outputs, limit=PAIRS, examples=EXAMPLES)
        if pairs:
            images = _read(networks[-1], root, [place for pair in pairs for place in pair.examples])
            yield "confused-pairs", drawings.confused_pairs_figure(pairs, classes, images)
    if network_maps.images:
        captions = list(network_maps.images[0].maps)
        maps = {name: np.stack([image.maps[name][0] for image in network_maps.images]) for name in captions}
        notes = {name: [_note(image.maps[name], classes) for image in network_maps.images] for name in captions}
        pixels = np.stack([image.image for image in network_maps.images])
        headings = [classes[image.label] for image in network_maps.images]
        yield "gradcam", drawings.activation_figure(pixels, maps, headings, notes)
    if network_maps.embeddings:
        said = {
            name: f"{100 * found.purity:.1f} % of the ten nearest are of the same class"
            for name, found in network_maps.embeddings.items()
        }
        places = {name: found.places for name, found in network_maps.embeddings.items()}
        yield "embeddings", drawings.embedding_figure(places, network_maps.labels, classes, said)


def _trainings(focus: Focus) -> Iterator[tuple[str, Figure]]:
    """Yield learning curves, loss terms and reliability diagrams."""
    curves = {label: found for label, found in mean_curves(focus).items() if label in focus.groups and found.accuracies}
    if curves:
        yield "curves", drawings.learning_figure(curves)
    for label, (seed, found) in loss_curves(focus).items():
        yield f"loss-{label}", drawings.parts_figure(found, f"{label}, seed {seed}")
    known = {label: whole for label, networks in focus.groups.items() if (whole := pooled(networks))}
    if known:
        yield "reliability", drawings.reliability_figure(known)


def _metrics(counts: np.ndarray, classes: Sequence[str]) -> SceneMetrics:
    """Compute the metrics of a confusion matrix."""
    true, named = np.nonzero(counts)
    times = counts[true, named]
    return scene_metrics(np.repeat(named, times), np.repeat(true, times), classes)


def _read(network: Network, root: Path, positions: Sequence[int]) -> dict[int, np.ndarray]:
    """Read images at `PICTURE` pixels; unreadable ones are left out."""
    bands, images = int(network.settings["data"].get("bands", 3)), {}
    for place in positions:
        try:
            images[place] = read_scene(root / network.test_paths[place], PICTURE, bands)
        except UnreadableImage:  # its place is left blank
            continue
    return images


def _note(result: tuple[np.ndarray, int | None, float | None], classes: Sequence[str]) -> str:
    """Return the predicted class and the agreement with the teacher, as far as known."""
    _, named, score = result
    words = [classes[named] if named is not None else "", f"{score:.2f}" if score is not None else ""]
    return "\n".join(filter(None, words))
