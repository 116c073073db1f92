"""Export of a student as a PyTorch program, which runs without this package."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from timm.utils.model import reparameterize_model
from torch import Tensor, nn
from torch.nn import functional as F

from scenedistill.data.views import evaluation_view
from scenedistill.models.files import NetCard
from scenedistill.models.network import SceneNet
from scenedistill.runs.provenance import as_metadata

#: Metadata of graph nodes that contains file names of this machine.
_NOTES = ("stack_trace", "source_fn_stack", "nn_module_stack", "torch_fn", "from_node")


class _Program(nn.Module):
    """Network from uint8 images `[B, H, W, bands]` to probabilities, embedding and logits."""

    def __init__(self, net: SceneNet, card: NetCard) -> None:
        super().__init__()
        self.net = net
        self.stored, self.size = card.stored_size or card.image_size, card.image_size

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        planes = images.permute(0, 3, 1, 2)
        # on uint8 this equals Pillow's resize in `read_scene`, except for one grey level in a few pixels
        square = F.interpolate(planes, (self.stored, self.stored), mode="bicubic", antialias=True, align_corners=False)
        output = self.net(evaluation_view(square.permute(0, 2, 3, 1), size=self.size), attention=False)
        return output.logits.softmax(1), output.embedding, output.logits


def write_program(net: SceneNet, card: NetCard, about: Mapping[str, Any], path: Path) -> None:
    """Write the network as a program of `torch.export`, for any batch size and image size, on the CPU in float32.

    `torch.export.load(path).module()(images)` takes uint8 `[batch, height, width, bands]` and returns probabilities
    `[batch, K]`, embedding `[batch, D]` and logits `[batch, K]`.

    Args:
        net: network in any mode; it is not changed.
        card: card of the network.
        about: provenance, stored in the file with the card.
        path: file to write.
    """
    plain = cast(SceneNet, reparameterize_model(copy.deepcopy(net).cpu().float().eval())).requires_grad_(False)
    images = torch.zeros(2, 40, 36, card.bands, dtype=torch.uint8)
    sizes = {axis: torch.export.Dim(name, min=1) for axis, name in enumerate(("batch", "height", "width"))}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.no_grad():
            program = torch.export.export(_Program(plain, card), (images,), dynamic_shapes={"images": sizes})
        for node in program.graph.nodes:
            for note in _NOTES:
                node.meta.pop(note, None)
        torch.export.save(program, path, extra_files=as_metadata(card, about))
