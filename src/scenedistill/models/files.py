"""Storage of a trained network in one safetensors file, with the description needed to build it again."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from scenedistill.core.disk import CHECKSUM, content_checksum, short_hash, whole_file
from scenedistill.core.errors import Damaged, UserError
from scenedistill.models.attention import SigmoidAttention
from scenedistill.models.create import build_network, move_stride
from scenedistill.models.network import SceneNet

#: Maximum number of bands, and maximum side in pixels, in a card.
LONGEST_SIDE = 4096


@dataclass(frozen=True)
class NetCard:
    """Description of a network from which it can be built again.

    Attributes:
        name: name of the student or timm backbone.
        classes: names of the scene classes, in the order of the logits.
        bands: number of input bands.
        image_size: side in pixels of the training images.
        dual_attention: whether DA modules follow the stages.
        stride_in_first_convolution: whether the ResNet blocks are "v1" blocks, see `move_stride`.
        stored_size: side in pixels to which images were decoded before views were cut from them; None if it is not
            known, which means `image_size`.
    """

    name: str
    classes: tuple[str, ...]
    bands: int
    image_size: int
    dual_attention: bool = True
    stride_in_first_convolution: bool = False
    stored_size: int | None = None

    def __post_init__(self) -> None:
        """Validate the fields, because a card may come from an untrusted file.

        Raises:
            ValueError: a field has another type, or a number is so large that the network would exhaust the memory.
        """
        sizes = [self.bands, self.image_size, *([] if self.stored_size is None else [self.stored_size])]
        if any(type(size) is not int or not 1 <= size <= LONGEST_SIDE for size in sizes):
            raise ValueError(f"bands and sizes are {sizes}, expected whole numbers from 1 to {LONGEST_SIDE:,}")
        if not isinstance(self.name, str) or not self.classes or not all(isinstance(one, str) for one in self.classes):
            raise ValueError("expected a name and names of classes")


def save_net(net: SceneNet, card: NetCard, path: Path) -> None:
    """Write a network's tensors, its card and a checksum of both, atomically."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
    metadata = with_checksum({"scenedistill": json.dumps(asdict(card), ensure_ascii=False)}, tensors)
    with whole_file(path) as file:  # not save_file, whose files are readable by their owner only
        file.write(save(tensors, metadata=metadata))


def with_checksum(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the metadata of a safetensors file with an additional checksum of the other entries and the tensors."""
    return {**metadata, CHECKSUM: _checksum(metadata, tensors)}


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors and metadata of a safetensors file and verify its checksum, if it has one.

    Raises:
        Damaged: the content does not match the checksum.
        UserError: the file cannot be read as a safetensors file.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as problem:
        raise UserError(f"{path} cannot be read as a safetensors file: {problem}") from problem
    written = metadata.pop(CHECKSUM, None)
    if written is not None and written != _checksum(metadata, tensors):
        raise Damaged(f"{path} is damaged: its content does not fit its checksum. Create it again or restore a copy.")
    return tensors, metadata


def load_net(path: Path) -> tuple[SceneNet, NetCard]:
    """Load a network that `save_net` wrote.

    Args:
        path: a `weights.safetensors` file.

    Returns:
        The network in eval mode, on the CPU, and its card.

    Raises:
        Damaged: the content of the file has changed since it was written.
        UserError: the file does not exist, or `save_net` did not write it.
    """
    if not path.is_file():
        raise UserError(f"No network at {path}. Expected the weights.safetensors of a finished training.")
    foreign = (
        "Expected the weights.safetensors of a scenedistill run. "
        "Other weights start the training of a teacher: give them with --teacher.weights."
    )
    try:
        tensors, metadata = read_tensors(path)
    except Damaged:
        raise
    except UserError as problem:
        raise UserError(f"{problem}. {foreign}") from problem
    text = metadata.pop("scenedistill", None)
    if text is None:
        raise UserError(f"{path} does not say which network it holds. {foreign}")
    if other := [name for name in metadata if name != "about"]:
        raise Damaged(f"{path} is damaged: its metadata hold {ascii(other[0])[:40]}, which was never written there.")
    try:
        fields = json.loads(text)
        card = NetCard(**{**fields, "classes": tuple(fields["classes"])})
        # checked against the tensors before a network of the stated size is built
        if len(tensors["head.weight"]) != len(card.classes):
            raise ValueError(f"{len(card.classes)} classes, and the head has {len(tensors['head.weight'])}")
        if not any(tensor.ndim == 4 and tensor.shape[1] == card.bands for tensor in tensors.values()):
            raise ValueError(f"{card.bands} bands, and no convolution has them")
        net, _ = build_network(
            card.name,
            len(card.classes),
            bands=card.bands,
            image_size=card.image_size,
            dual_attention=card.dual_attention,
        )
        if card.stride_in_first_convolution:
            move_stride(net)
        if "mean" in tensors:
            net.set_normalisation(tensors["mean"], tensors["std"])
        if card.dual_attention and not any(".attention.pooled_norm." in name for name in tensors):
            for stage, width in zip(net.stages, net.dims.stages, strict=True):
                stage.attention = SigmoidAttention(width)
        net.load_state_dict(tensors)
    except (UserError, ValueError, KeyError, TypeError, RuntimeError, AttributeError) as problem:
        reason = str(problem).splitlines()[0][:120]
        raise UserError(f"{path} was written by another version of scenedistill, or damaged: {reason}") from problem
    return net.eval(), card


def weights_hash(module: nn.Module) -> str:
    """Return a hash of the names, shapes and values of all tensors of a module, 16 hex digits."""
    return tensors_hash(module.state_dict())


def layers_hash(module: nn.Module) -> str:
    """Return a hash of what a network's output depends on beside its weights: its layers with their settings, and the
    tensors that are not in its `state_dict`, such as the mean and deviation of its input; 16 hex digits."""
    saved = module.state_dict()
    others = {name: tensor for name, tensor in module.named_buffers() if name not in saved}
    layers = re.sub(r" at 0x[0-9a-f]+", "", str(module))  # addresses of functions
    return short_hash(f"{layers} {tensors_hash(others)}")


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """Return a hash of the names, shapes, types and values of tensors, 16 hex digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _checksum(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    return content_checksum([dict(metadata), tensors_hash(tensors)])
