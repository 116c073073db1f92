"""The paper's light student of Table 1, in two readings."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from scenedistill.core.precision import at_least_float32

Widths = tuple[tuple[int, int], ...]

#: Widths of the two 3x3 convolutions of each stage. Table 1 prints 64 as the second width of every stage. This is
#: either intended or a misprint of the widths of a ResNet with one basic block per stage, so both are available.
TABLE1_PRINTED: Widths = ((64, 64), (128, 64), (256, 64), (512, 64))
TABLE1_RESNET: Widths = ((64, 64), (128, 128), (256, 256), (512, 512))

#: Constructors of the package's own students by name, called with the number of bands; other names are timm models.
STUDENTS: dict[str, Callable[[int], nn.Module]] = {
    "table1_printed": lambda bands: Table1Backbone(TABLE1_PRINTED, bands),
    "table1_resnet": lambda bands: Table1Backbone(TABLE1_RESNET, bands),
}


class Table1Backbone(nn.Module):
    """The paper's light CNN: a 7x7/2 stem, a 3x3/2 max pool and four stages of one residual block each.

    The residual blocks, the stem and the batch norms are ours. Table 1 lists the convolutions and the pool only; the
    output sizes in it require a stem of stride 2.

    Args:
        widths: widths of the two 3x3 convolutions of each stage.
        bands: number of input bands.
    """

    def __init__(self, widths: Widths, bands: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(bands, 64, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        self.conv2_x = ResidualBlock(64, *widths[0], stride=1)
        self.conv3_x = ResidualBlock(widths[0][1], *widths[1], stride=2)
        self.conv4_x = ResidualBlock(widths[1][1], *widths[2], stride=2)
        self.conv5_x = ResidualBlock(widths[2][1], *widths[3], stride=2)
        self.num_features = widths[3][1]
        self.feature_info = [
            {"module": f"conv{i + 2}_x", "num_chs": widths[i][1], "reduction": 4 * 2**i} for i in range(4)
        ]
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Map images `[B, bands, H, W]` to embeddings `[B, num_features]`."""
        feature = self.stem(images)
        feature = self.conv5_x(self.conv4_x(self.conv3_x(self.conv2_x(feature))))
        return at_least_float32(feature).mean((2, 3))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm and a shortcut, which is a 1x1 convolution if the shape changes.

    Source: the basic block of He et al., CVPR 2016; here the widths of the two convolutions may differ.

    Args:
        inputs: number of input channels.
        middle: number of channels between the two convolutions.
        outputs: number of output channels.
        stride: stride of the first convolution.
    """

    def __init__(self, inputs: int, middle: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, middle, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, feature: Tensor) -> Tensor:
        """Map `[B, inputs, H, W]` to `[B, outputs, H / stride, W / stride]`."""
        residual = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(feature)))))
        activated: Tensor = self.relu(residual + self.shortcut(feature))
        return activated
