"""What needs the networks and the images themselves: Grad-CAM side by side, and the map of embeddings."""

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

MOST_DIFFERENT, DRAWN = 8, 4  # images side by side: those that the networks see most differently, and some drawn evenly
PICTURE = 140  # pixels on a side, of an image with its map

Nets = Mapping[str, tuple[SceneNet, NetCard]]


@dataclass(frozen=True)
class Look:
    """One image as the networks see it.

    Attributes:
        path: of the image below the data folder.
        label: number of its true class.
        drawn: taken evenly from all, not for its difference.
        image: uint8 `[PICTURE, PICTURE, bands]`.
        maps: by network: the map, float32 `[PICTURE, PICTURE]` in 0..1, number of the predicted class, agreement with
            the teacher (None for the teacher itself, and for what is not known).
    """

    path: str
    label: int
    drawn: bool
    image: np.ndarray
    maps: dict[str, tuple[np.ndarray, int | None, float | None]]


@dataclass(frozen=True)
class EmbeddingMap:
    """Of one network.

    Attributes:
        places: t-SNE, float32 `[N, 2]`.
        purity: mean share of an image's ten nearest others, by embedding, that are of its class.
    """

    places: np.ndarray
    purity: float


@dataclass
class Seen:
    """What has been found out with the networks and the images; what was left out is empty.

    Attributes:
        looks: images side by side.
        embeddings: by network.
        labels: true classes of the images in the maps of the embeddings, int64 `[N]`.
    """

    looks: list[Look] = field(default_factory=list)
    embeddings: dict[str, EmbeddingMap] = field(default_factory=dict)
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))


class ComparedNetworks:
    """A teacher and its students, or some of them, on the test images of one seed, at the size of their test.

    Args:
        networks: by caption, two or more, all of one seed, so that they have the same test images; the teacher, if
            there is one, under `teacher`. One at least has its outputs kept.
        root: folder of the images.
        device: to compute on.

    Raises:
        UserError: a network's file is missing.
    """

    def __init__(self, networks: Mapping[str, Network], root: Path, device: torch.device) -> None:
        self.networks, self.root, self.device = networks, root, device
        settings = next(iter(networks.values())).settings  # of a given teacher, its card may tell another size
        self.size, self.stored_size = int(settings["image_size"]), int(settings["data"]["stored_size"])
        self.nets: Nets = {name: load_net(network.folder / "weights.safetensors") for name, network in networks.items()}
        self.outputs = {name: network.outputs for name, network in networks.items() if network.outputs is not None}
        known = next(iter(self.outputs))
        self.paths, self.labels = networks[known].test_paths, self.outputs[known].labels

    def sample(self, limit: int) -> np.ndarray:
        """Positions of so many test images, of each class its share."""
        return even_sample(self.labels, limit)

    def part(self, positions: Sequence[int] | np.ndarray) -> ScenePart:
        """These test images, decoded as the networks were given them in the test.

        Raises:
            UnreadableImage: one of them.
        """
        card = next(iter(self.nets.values()))[1]
        paths = tuple(self.paths[i] for i in positions)
        images = np.stack([read_scene(self.root / path, self.stored_size, card.bands) for path in paths])
        index = SceneIndex(self.root, paths, self.labels[np.asarray(positions)], card.classes)
        cache = SceneCache(index, images, self.stored_size, card.bands, (), self.root)
        return ScenePart(cache, np.arange(len(paths)))

    def positions(self) -> dict[str, str]:
        """By network: how many positions its map has, such as `7 x 7`."""
        found = {}
        for name, (net, card) in self.nets.items():
            with torch.inference_mode():
                images = torch.zeros(1, card.bands, self.size, self.size, device=self.device)
                height, width = net.to(self.device)(images, attention=True).attention[-1].energy.shape[-2:]
            found[name] = f"{height} x {width}"
        return found

    def agreements(self, part: ScenePart) -> dict[str, np.ndarray]:
        """By student: agreement with the teacher on each image, float32 `[N]`."""
        if TEACHER not in self.nets:
            return {}
        teacher, _ = self.nets[TEACHER]
        others = {name: net for name, (net, _) in self.nets.items() if name != TEACHER}
        return agreement_with_teacher(teacher, others, part, size=self.size, device=self.device)

    def side_by_side(self) -> list[Look]:
        """Images with each network's map of the evidence for the true class."""
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
        looks = []
        for place, position in enumerate(positions):
            small = _view(batch.images[place])
            seen = {
                name: (
                    _resized(found[place]),
                    int(self.outputs[name].predicted[position]) if name in self.outputs else None,
                    float(scores[name][place]) if name in scores else None,
                )
                for name, found in maps.items()
            }
            label, is_drawn = int(self.labels[position]), place >= len(differing)
            looks.append(Look(self.paths[position], label, is_drawn, small, seen))
        return looks

    def embeddings(self, part: ScenePart) -> dict[str, EmbeddingMap]:
        """By network: where its embeddings of the images lie."""
        found = {}
        for name, (net, _) in self.nets.items():
            wide = embeddings_of(net, part, image_size=self.size, device=self.device, precision="fp32")
            found[name] = EmbeddingMap(embedding_map(wide), neighbour_purity(wide, part.labels))
        return found


def _view(image: torch.Tensor) -> np.ndarray:
    """uint8 `[PICTURE, PICTURE, bands]` of one decoded image."""
    pixels: np.ndarray = (evaluation_view(image[None], size=PICTURE)[0].permute(1, 2, 0).numpy() * 255).round()
    return pixels.astype(np.uint8)


def _resized(heat: torch.Tensor) -> np.ndarray:
    """float32 `[PICTURE, PICTURE]` of a map."""
    size = (PICTURE, PICTURE)
    larger = torch.nn.functional.interpolate(heat[None, None], size, mode="bilinear", align_corners=False)
    resized: np.ndarray = larger[0, 0].clamp(0, 1).numpy()
    return resized
