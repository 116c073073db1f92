"""Draw scenes side by side with each network's energy maps.

python benchmarks/attention_sheet.py IMAGE_FOLDER SHEET.png NAME=weights.safetensors [NAME=...]
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch.nn import functional as F

from scenedistill.core.errors import UserError
from scenedistill.data.images.read import read_scene
from scenedistill.data.names import same_names
from scenedistill.data.scenes import SceneIndex, scan
from scenedistill.data.views import evaluation_view
from scenedistill.models.files import NetCard, load_net
from scenedistill.models.network import SceneNet


def attention_sheet(networks: Mapping[str, tuple[SceneNet, NetCard]], scenes: SceneIndex) -> Figure:
    """Draw one column for each scene and one row for each network.

    A network's map is the mean of its last two stages' energy maps (where squared features are large), each scaled to
    0..1 over the image, laid over the scene; below it the predicted class, with a cross if wrong.

    Args:
        networks: caption to network.
        scenes: a few scenes to draw.
    """
    figure = Figure(figsize=(1.3 * len(scenes), 1.45 * (len(networks) + 1)), layout="constrained", dpi=110)
    axes = figure.subplots(len(networks) + 1, len(scenes), squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    for column, (path, label) in enumerate(zip(scenes.paths, scenes.labels, strict=True)):
        axes[0][column].set_title(scenes.classes[label], fontsize=8)
        for row, (caption, (net, card)) in enumerate(networks.items(), start=1):
            image = read_scene(scenes.root / path, card.image_size, card.bands)
            axes[0][column].imshow(image[..., :3] if card.bands >= 3 else image[..., 0], cmap="gray")
            heat, named = look(net, image)
            axis = axes[row][column]
            axis.imshow(image[..., :3].mean(2), cmap="gray")
            axis.imshow(heat, cmap="inferno", alpha=0.55, vmin=0, vmax=1)
            right = same_names([card.classes[named]], [scenes.classes[label]])
            axis.set_xlabel(
                ("" if right else "✗ ") + card.classes[named], fontsize=7, color="black" if right else "firebrick"
            )
            if column == 0:
                axis.set_ylabel(caption, fontsize=8)
    return figure


def look(net: SceneNet, image: np.ndarray) -> tuple[np.ndarray, int]:
    """Compute a network's energy map of one image, float32 `[H, W]` in 0..1, and the predicted class.

    Args:
        net: in eval mode.
        image: uint8 `[H, W, bands]`.
    """
    size = image.shape[0]
    with torch.inference_mode():
        output = net(evaluation_view(torch.tensor(image)[None], size=size))
    heat = torch.zeros(size, size)
    for stage in output.attention[-2:]:
        energy = F.interpolate(stage.energy[:, None].float(), (size, size), mode="bilinear", align_corners=False)[0, 0]
        heat += (energy - energy.min()) / (energy.max() - energy.min()).clamp(min=1e-9) / 2
    return heat.numpy(), int(output.logits.argmax())


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw one scene of each class of a folder."""
    parser = argparse.ArgumentParser(prog="python benchmarks/attention_sheet.py", description=__doc__)
    parser.add_argument("folder", type=Path, help="one sub-folder for each class")
    parser.add_argument("sheet", type=Path, help="PNG to write")
    parser.add_argument("networks", nargs="+", help="NAME=weights.safetensors")
    parser.add_argument("--number", type=int, default=0, help="which scene of each class, from the first")
    given = parser.parse_args(arguments)
    networks = {}
    for text in given.networks:
        name, equals, path = text.partition("=")
        if not equals:
            raise UserError(f"'{text}' is not NAME=weights.safetensors.")
        networks[name] = load_net(Path(path))
    index = scan(given.folder)
    first = [np.flatnonzero(index.labels == label)[given.number] for label in range(len(index.classes))]
    given.sheet.parent.mkdir(parents=True, exist_ok=True)
    drawn = io.BytesIO()
    attention_sheet(networks, index.subset(np.array(first))).savefig(drawn)
    Image.open(drawn).convert("RGB").quantize(256).save(given.sheet, optimize=True)  # a quarter of the bytes


if __name__ == "__main__":
    main()
