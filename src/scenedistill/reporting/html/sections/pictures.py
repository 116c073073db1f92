"""Sections that show images: confusion matrices, confused pairs, Grad-CAM, the map of embeddings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from scenedistill.core.errors import UserError
from scenedistill.core.precision import compute_device
from scenedistill.data.batches import ScenePart
from scenedistill.metrics.differences import confused_pairs
from scenedistill.metrics.gradcam import AGREEMENT
from scenedistill.reporting.html.attention_maps import ComparedNetworks, NetworkMaps
from scenedistill.reporting.html.blocks import Charts, Gallery, MatrixView, Section, Tile
from scenedistill.reporting.html.charts import hue, point_chart
from scenedistill.reporting.html.config import ReportConfig
from scenedistill.reporting.html.focus import Focus
from scenedistill.reporting.html.images import Thumbnails, colours, overlay, picture
from scenedistill.reporting.html.tables import Table, number_entry, text_entry

PAIRS, EXAMPLES = 10, 4  # most confused pairs that are shown, and images of each


def matrix_section(drawn: bool) -> Section:
    """Return the section in which the script draws the matrices."""
    return Section(
        "matrices",
        "Confusion matrices",
        "Rows are true classes, columns predicted ones. Point at an entry for its figures; click it, or go to it with "
        "the arrow keys and press Enter, to see its images.",
        [MatrixView()] if drawn else [],
    )


def pairs(focus: Focus, root: Path | None, thumbnails: Thumbnails) -> Section:
    """Return the section of the class pairs that the focus's last network confuses most, with its surest errors."""
    section = Section("pairs", "Most confused pairs")
    networks = focus.of_one_seed()
    if not networks:
        return section
    name, network = list(networks.items())[-1]
    assert network.outputs is not None
    rows, strips = [], []
    for pair in confused_pairs(network.outputs, limit=PAIRS, examples=EXAMPLES):
        true, named = focus.cell.classes[pair.true], focus.cell.classes[pair.named]
        others = [_count(other.confusion, pair.true, pair.named) for other in networks.values()]
        rows.append(
            (
                text_entry(true),
                text_entry(named),
                *(number_entry(count, "{:.0f}") for count in others),
                number_entry(100 * pair.share),
            )
        )
        tiles = []
        for place in pair.examples:
            path = network.test_paths[place]
            sure = 100 * float(network.outputs.probabilities[place].max())
            small = thumbnails.add(root / path) if root else None
            tiles.append(Tile(f"{true}: {path}", f"{Path(path).name}, {sure:.0f} % sure", thumbnail=small))
        note = f"{pair.images} images, {100 * pair.share:.1f} % of {true}"
        strips.append((f"{true} taken for {named}", note, tiles if root else []))
    section.help = f"Of {name}, seed {network.seed}; the surest mistakes of each pair first."
    head = ("true class", "predicted class", *(f"{caption} (images)" for caption in networks))
    share = f"{name} (% of the true class)"
    section.blocks = [Table("pairs", "Most confused pairs", (*head, share), tuple(rows)), Gallery(strips)]
    return section


def gradcam_and_embedding_sections(
    focus: Focus,
    root: Path | None,
    config: ReportConfig,
    say: Callable[[str], None],
    left_out: list[str],
    network_maps: NetworkMaps,
) -> list[Section]:
    """Return the sections of Grad-CAM and embedding maps; add failures to `left_out` and results to `network_maps`."""
    gradcam, embeddings = Section("gradcam", "Where the networks look"), Section("map", "Map of the embeddings")
    networks = focus.of_one_seed(outputs=False)
    if root is None or not focus.of_one_seed() or not (config.gradcam_images or config.map_images):
        return [gradcam, embeddings]
    try:
        compared = ComparedNetworks(networks, root, compute_device(config.device))
        if config.gradcam_images and len(networks) > 1:
            say(
                f"Grad-CAM of {len(networks)} networks on {min(config.gradcam_images, len(compared.paths))} test images"
            )
            _fill_gradcam(focus, compared, compared.part(compared.sample(config.gradcam_images)), gradcam, network_maps)
        if config.map_images:
            say(f"embeddings of {min(config.map_images, len(compared.paths))} test images")
            _fill_embeddings(focus, compared, compared.sample(config.map_images), embeddings, network_maps)
    except (UserError, ValueError) as problem:  # a damaged file, tests that do not match, a diverged network
        left_out.append(f"Grad-CAM or the map of embeddings: {' '.join(str(problem).split())}")
    return [gradcam, embeddings]


def _fill_gradcam(
    focus: Focus, compared: ComparedNetworks, part: ScenePart, section: Section, network_maps: NetworkMaps
) -> None:
    classes = focus.cell.classes
    section.help = (
        "Grad-CAM: in bright areas the network finds evidence for the true class. The score is the "
        f"{AGREEMENT} of teacher and student: 1 for the same places, 0 for no relation."
    )
    scores = compared.agreements(part)
    rows = []
    for name, values in scores.items():
        figures = (float(f(values)) for f in (np.mean, np.median, np.std))
        rows.append(
            (
                text_entry(name),
                *(number_entry(figure, "{:.3f}") for figure in figures),
                number_entry(len(values), "{:.0f}"),
            )
        )
    seed = next(iter(compared.networks.values())).seed
    grids = ", ".join(f"{name} {grid}" for name, grid in compared.positions().items())
    note = (
        f"Over {len(part)} of {len(compared.paths)} test images of seed {seed}, stratified by class. Positions "
        f"of the maps before they are enlarged: {grids}; with few positions the score is imprecise."
    )
    head = ("student", "mean agreement", "median", "standard deviation", "images")
    if rows:
        section.blocks.append(Table("agreement", "Agreement with the teacher", head, tuple(rows), note=note))
    strips = []
    network_maps.images = compared.side_by_side()
    for compared_image in network_maps.images:
        true = classes[compared_image.label]
        tiles = [Tile(f"{true}: {compared_image.path}", "the image", picture(colours(compared_image.image)))]
        for name, (heat, named, score) in compared_image.maps.items():
            words = name + ("" if named is None else f": {classes[named]}")
            words += "" if score is None else f", agreement {score:.2f}"
            tone = "" if named is None else "right" if named == compared_image.label else "wrong"
            uri = picture(overlay(compared_image.image, heat))
            tiles.append(Tile(f"where {name} finds evidence for {true}", words, uri, tone=tone))
        why = "drawn evenly" if compared_image.drawn else "among the most different"
        strips.append((true, f"{Path(compared_image.path).name}, {why}", tiles))
    caption = (
        "First the images on which the class probabilities of the networks differ most (Jensen-Shannon divergence), "
        "one of a class; then a few drawn evenly, to show ordinary ones. A green frame marks a correct prediction, a "
        "red one a wrong one."
    )
    section.blocks.append(Gallery(strips, caption))


def _fill_embeddings(
    focus: Focus, compared: ComparedNetworks, positions: np.ndarray, section: Section, network_maps: NetworkMaps
) -> None:
    section.help = (
        "Test images placed by t-SNE of their embeddings: neighbours are similar to the network. Sizes of clusters and "
        "distances between them have no meaning."
    )
    classes, labels = focus.cell.classes, compared.labels[positions].tolist()
    charts = []
    network_maps.embeddings, network_maps.labels = (
        compared.embeddings(compared.part(positions)),
        compared.labels[positions],
    )
    for name, found in network_maps.embeddings.items():
        named = compared.outputs[name].predicted[positions].tolist() if name in compared.outputs else labels
        tips = [
            classes[label] + ("" if said == label else f", taken for {classes[said]}")
            for label, said in zip(labels, named, strict=True)
        ]
        places = found.places.astype(float)
        drawn = point_chart(places[:, 0].tolist(), places[:, 1].tolist(), labels, classes, tips)
        charts.append((f"{name}: {100 * found.purity:.1f} % of the ten nearest are of the same class", drawn))
    legend = [(name, "dot", hue(i, len(classes))) for i, name in enumerate(classes)]
    section.blocks.append(Charts(charts, legend, f"{len(positions)} test images; nearest by cosine of the embeddings."))


def _count(confusion: np.ndarray | None, row: int, column: int) -> float | None:
    return None if confusion is None else float(confusion[row, column])
