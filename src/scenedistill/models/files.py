"""A trained network as one safetensors file that says how to build it again."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from scenedistill.disk import whole_file
from scenedistill.errors import UserError
from scenedistill.models.attention import SigmoidAttention
from scenedistill.models.create import build_network
from scenedistill.models.network import SceneNet


@dataclass(frozen=True)
class NetCard:
    """What must be known to build a network again.

    Attributes:
        name: of the student or timm backbone.
        classes: names of the scene classes, in the order of the logits.
        bands: number of input bands.
        image_size: side in pixels at which it was trained.
        dual_attention: whether DA modules follow the stages.
        stride_in_first_convolution: ResNet "v1" blocks, see `models.weights`.
        stored_size: side in pixels at which its images were decoded, before the view was made of them; like
            `image_size` when not known.
    """

    name: str
    classes: tuple[str, ...]
    bands: int
    image_size: int
    dual_attention: bool = True
    stride_in_first_convolution: bool = False
    stored_size: int | None = None


def save_net(net: SceneNet, card: NetCard, path: Path) -> None:
    """Write a network's tensors and card, whole or not at all."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
    with whole_file(path) as file:  # not save_file, which makes a file that only its owner may read
        file.write(save(tensors, metadata={"scenedistill": json.dumps(asdict(card), ensure_ascii=False)}))


def load_net(path: Path) -> tuple[SceneNet, NetCard]:
    """Read a network that `save_net` wrote, in eval mode.

    Raises:
        UserError: no such file, or not one of ours.
    """
    if not path.is_file():
        raise UserError(f"No network at {path}. Expected the weights.safetensors of a finished training.")
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get("scenedistill")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as problem:
        raise UserError(f"{path} cannot be read as a safetensors file: {problem}") from problem
    if text is None:
        raise UserError(
            f"{path} does not say which network it holds. Give a weights.safetensors of a scenedistill run."
        )
    try:
        fields = json.loads(text)
        card = NetCard(**{**fields, "classes": tuple(fields["classes"])})
        net, _ = build_network(
            card.name,
            len(card.classes),
            bands=card.bands,
            image_size=card.image_size,
            dual_attention=card.dual_attention,
            stride_in_first_convolution=card.stride_in_first_convolution,
        )
        if "mean" in tensors:
            net.set_normalisation(tensors["mean"], tensors["std"])
        if card.dual_attention and not any(".attention.pooled_norm." in name for name in tensors):
            for stage, width in zip(net.stages, net.dims.stages, strict=True):
                stage.attention = SigmoidAttention(width)
        net.load_state_dict(tensors)
    except (ValueError, KeyError, TypeError, RuntimeError) as problem:
        reason = str(problem).splitlines()[0][:120]
        raise UserError(f"{path} was written by another version of scenedistill, or damaged: {reason}") from problem
    return net.eval(), card


def weights_hash(module: nn.Module) -> str:
    """16 hex digits over the names, shapes and values of all tensors of a module."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
