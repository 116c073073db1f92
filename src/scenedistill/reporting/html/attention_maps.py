"""Grad-CAM maps side by side and embedding maps, computed from the networks and the images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from scenedistill.data.batches import ScenePart
from scenedistill.data.cache.build import SceneCache
from scenedistill.data.images.read import read_scene
from scenedistill.data.scenes import SceneIndex
from scenedistill.data.views import evaluation_view
from scenedistill.metrics.differences import most_different
from scenedistill.metrics.embedding_map import embedding_map, embeddings_of, even_sample, neighbour_purity
from scenedistill.metrics.gradcam import agreement, agreement_with_teacher, class_activation
from scenedistill.models.files import NetCard, load_net
from scenedistill.models.network import SceneNet
from scenedistill.runs.network import TEACHER, Network

MOST_DIFFERENT, DRAWN = 8, 4  # images side by side: those with the most different outputs, and some drawn evenly
PICTURE = 140  # pixels on a side, of an image with its map

Nets = Mapping[str, tuple[SceneNet, NetCard]]


@dataclass(frozen=True)
class ComparedImage:
    """One image with the maps and predictions of the networks.

    Attributes:
        path: image file relative to the data folder.
        label: index of the true class.
        drawn: whether drawn evenly from all images, not chosen for differing outputs.
        image: uint8 `[PICTURE, PICTURE, bands]`.
        maps: by network, the map, float32 `[PICTURE, PICTURE]` in 0..1; index of the predicted class, None if unknown;
            agreement with the teacher, None if unknown and for the teacher.
    """

    path: str
    label: int
    drawn: bool
    image: np.ndarray
    maps: dict[str, tuple[np.ndarray, int | None, float | None]]


@dataclass(frozen=True)
class EmbeddingMap:
    """Embedding map of one network.

    Attributes:
        places: t-SNE coordinates of N images, float32 `[N, 2]`.
        purity: mean share of an image's ten nearest neighbours, by embedding, that have its class.
    """

    places: np.ndarray
    purity: float


@dataclass
class NetworkMaps:
    """Results of the networks on the images; fields left out are empty.

    Attributes:
        images: images side by side.
        embeddings: embedding map of each network by name.
        labels: true classes of the images in the maps of the embeddings, int64 `[N]`.
    """

    images: list[ComparedImage] = field(default_factory=list)
    embeddings: dict[str, EmbeddingMap] = field(default_factory=dict)
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))


class ComparedNetworks:
    """A teacher and its students, or some of them, run on the test images of one seed at the size of their test.

    Args:
        networks: by caption, two or more, all of one seed, so that they have the same test images; the teacher, if
            there is one, under `teacher`. At least one has kept outputs.
        root: folder of the images.
        device: to compute on.

    Raises:
        UserError: a network's file is missing.
    """

    def __init__(self, networks: Mapping[str, Network], root: Path, device: torch.device) -> None:
        self.networks, self.root, self.device = networks, root, device
        settings = next(iter(networks.values())).settings  # not the card: a given teacher's may hold another size
        self.size, self.stored_size = int(settings["image_size"]), int(settings["data"]["stored_size"])
        self.nets: Nets = {name: load_net(network.weights) for name, network in networks.items()}
        self.outputs = {name: network.outputs for name, network in networks.items() if network.outputs is not None}
        known = next(iter(self.outputs))
        self.paths, self.labels = networks[known].test_paths, self.outputs[known].labels

    def sample(self, limit: int) -> np.ndarray:
        """Return the positions of at most `limit` test images, stratified by class."""
        return even_sample(self.labels, limit)

    def part(self, positions: Sequence[int] | np.ndarray) -> ScenePart:
        """Read test images, decoded as in the networks' test.

        Raises:
            UnreadableImage: an image cannot be read.
        """
        card = next(iter(self.nets.values()))[1]
        paths = tuple(self.paths[i] for i in positions)
        images = np.stack([read_scene(self.root / path, self.stored_size, card.bands) for path in paths])
        index = SceneIndex(self.root, paths, self.labels[np.asarray(positions)], card.classes)
        cache = SceneCache(index, images, self.stored_size, card.bands, (), self.root)
        return ScenePart(cache, np.arange(len(paths)))

    def positions(self) -> dict[str, str]:
        """Return the grid size of each network's map, such as `7 x 7`."""
        found = {}
        for name, (net, card) in self.nets.items():
            with torch.inference_mode():
                images = torch.zeros(1, card.bands, self.size, self.size, device=self.device)
                height, width = net.to(self.device)(images, attention=True).attention[-1].energy.shape[-2:]
            found[name] = f"{height} x {width}"
        return found

    def agreements(self, part: ScenePart) -> dict[str, np.ndarray]:
        """Compute each student's agreement with the teacher on each image, float32 `[N]`."""
        if TEACHER not in self.nets:
            return {}
        teacher, _ = self.nets[TEACHER]
        others = {name: net for name, (net, _) in self.nets.items() if name != TEACHER}
        return agreement_with_teacher(teacher, others, part, size=self.size, device=self.device)

    def side_by_side(self) -> list[ComparedImage]:
        """Return images with each network's Grad-CAM map for the true class."""
        several = len(self.outputs) > 1
        differing = [found.position for found in most_different(self.outputs, limit=MOST_DIFFERENT)] if several else []
        others = [i for i in range(len(self.paths)) if i not in differing]
        drawn = [others[i] for i in even_sample(self.labels[others], DRAWN + 2)[1:-1]] if others else []
        positions = differing + drawn
        part = self.part(positions)
        batch = part.fetch(range(len(part)))
        maps = {
            name: class_activation(net.to(self.device), batch.images, size=self.size, classes=batch.labels)
            for name, (net, _) in self.nets.items()
        }
        scores = {
            name: agreement(maps[TEACHER], found) for name, found in maps.items() if TEACHER in maps and name != TEACHER
        }
        compared = []
        for place, position in enumerate(positions):
            small = _view(batch.images[place])
            by_network = {
                name: (
                    _resized(found[place]),
                    int(self.outputs[name].predicted[position]) if name in self.outputs else None,
                    float(scores[name][place]) if name in scores else None,
                )
                for name, found in maps.items()
            }
            label, is_drawn = int(self.labels[position]), place >= len(differing)
            compared.append(ComparedImage(self.paths[position], label, is_drawn, small, by_network))
        return compared

    def embeddings(self, part: ScenePart) -> dict[str, EmbeddingMap]:
        """Compute each network's embedding map of the images."""
        found = {}
        for name, (net, _) in self.nets.items():
            wide = embeddings_of(net, part, image_size=self.size, device=self.device, precision="fp32")
            found[name] = EmbeddingMap(embedding_map(wide), neighbour_purity(wide, part.labels))
        return found


def _view(image: torch.Tensor) -> np.ndarray:
    """Convert a decoded image to uint8 `[PICTURE, PICTURE, bands]`."""
    pixels: np.ndarray = (evaluation_view(image[None], size=PICTURE)[0].permute(1, 2, 0).numpy() * 255).round()
    return pixels.astype(np.uint8)


def _resized(heat: torch.Tensor) -> np.ndarray:
    """Resize a map to float32 `[PICTURE, PICTURE]`."""
    size = (PICTURE, PICTURE)
    larger = torch.nn.functional.interpolate(heat[None, None], size, mode="bilinear", align_corners=False)
    resized: np.ndarray = larger[0, 0].clamp(0, 1).numpy()
    return resized
