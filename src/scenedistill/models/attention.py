"""The dual-attention (DA) module: a channel gate followed by a spatial gate."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scenedistill.models.output import StageAttention


class DualAttention(nn.Module):
    """Weighs the channels, then the positions, of a feature map.

    Channel: `c = sigmoid(MLP(avgpool F) + MLP(maxpool F))`, `F' = 2 c F`, one shared MLP `C -> max(C/16, 8) -> C`.
    Spatial: `m = sigmoid(conv7x7([mean_C F', max_C F']))`, `F'' = 2 m F'`.

    The last layer of each gate starts at zero, so both gates start at 1/2 and the module as the identity: put into a
    pretrained backbone it changes nothing at first. That the module is dual is stated by Li, Nan and Liu (2023); the
    formula is ours, after CBAM (Woo et al., ECCV 2018).

    Args:
        channels: number of channels C of the feature map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(channels // 16, 8)
        self.reduce = nn.Linear(channels, hidden)
        self.expand = nn.Linear(hidden, channels)
        self.locate = nn.Conv2d(2, 1, kernel_size=7, padding=3)
        for last in (self.expand, self.locate):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, feature: Tensor) -> tuple[Tensor, StageAttention]:
        """Gate a feature map.

        Args:
            feature: `[B, C, H, W]`.

        Returns:
            The gated feature `[B, C, H, W]` and what the gates were.
        """
        pooled = torch.stack((feature.mean((2, 3)), feature.amax((2, 3))))  # [2, B, C]
        channel = torch.sigmoid(self.expand(torch.relu(self.reduce(pooled))).sum(0))  # [B, C]
        weighted = feature * (2 * channel)[:, :, None, None]
        summary = torch.cat((weighted.mean(1, keepdim=True), weighted.amax(1, keepdim=True)), 1)  # [B, 2, H, W]
        spatial = torch.sigmoid(self.locate(summary))  # [B, 1, H, W]
        gated = weighted * (2 * spatial)
        return gated, StageAttention(channel, spatial, *_statistics(gated))


class NoAttention(nn.Module):
    """Stands where a DA module would: leaves the feature as it is and reports open gates of 1/2."""

    def forward(self, feature: Tensor) -> tuple[Tensor, StageAttention]:
        """See `DualAttention.forward`."""
        channel = torch.full_like(feature[:, :, 0, 0], 0.5)
        spatial = torch.full_like(feature[:, :1], 0.5)
        return feature, StageAttention(channel, spatial, *_statistics(feature))


def _statistics(feature: Tensor) -> tuple[Tensor, Tensor]:
    """Energy `[B, H, W]` and descriptor `[B, C]` of a feature map, in float32: squares overflow half precision."""
    with torch.autocast(feature.device.type, enabled=False):
        exact = feature.float()
        return exact.square().mean(1), exact.mean((2, 3))


class AttendedStage(nn.Module):
    """A stage of any backbone with a DA module behind it.

    Accepts the three layouts found in timm, `[B, C, H, W]`, `[B, H, W, C]` and tokens `[B, P + H*W, C]` with P prefix
    tokens on a square grid, and returns the same layout. What the gates did in the last call is in `seen`, from where
    `SceneNet` collects it.
    """

    def __init__(self, stage: nn.Module, attention: nn.Module, *, layout: str, prefix_tokens: int = 0) -> None:
        super().__init__()
        self.stage = stage
        self.attention = attention
        self.layout = layout
        self.prefix_tokens = prefix_tokens
        self.seen: StageAttention | None = None

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        """Run the stage, then the gates."""
        output = self.stage(*args, **kwargs)
        if self.layout == "NCHW":
            gated, self.seen = self.attention(output)
            return gated
        if self.layout == "NHWC":
            gated, self.seen = self.attention(output.permute(0, 3, 1, 2))
            return gated.permute(0, 2, 3, 1)
        prefix, tokens = output[:, : self.prefix_tokens], output[:, self.prefix_tokens :]
        side = round(tokens.shape[1] ** 0.5)
        gated, self.seen = self.attention(tokens.transpose(1, 2).unflatten(2, (side, side)))
        return torch.cat((prefix, gated.flatten(2).transpose(1, 2)), 1)

    def __getattr__(self, name: str) -> object:
        # some backbones read attributes of their stages (stride, channels): answer for the stage inside
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("stage"), name)
