"""The dual-attention (DA) module: a channel gate followed by a spatial gate."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from scenedistill.models.norm import BatchNorm
from scenedistill.models.output import StageAttention


class DualAttention(nn.Module):
    """Channel gate followed by a spatial gate on a feature map.

    Channel: `c = 1/2 + tanh(MLP(BN(avgpool F)) + MLP(BN(maxpool F))) / 4`, `F' = 2 c F`, one shared MLP
    `C -> max(C/16, 8) -> C`. Spatial: `m = 1/2 + tanh(conv7x7(BN([mean_C F', max_C F']))) / 4`, `F'' = 2 m F'`.

    The last layer of each gate is initialised to 0, so both gates start at 1/2 and the module starts as the identity:
    it does not change a pretrained backbone at first. Li, Nan and Liu (2023) state that the module is dual; the formula
    is ours, after CBAM (Woo et al., ECCV 2018). Unlike in CBAM, the gates are computed from batch-normalised pooled
    features and stay in 1/4..3/4. With sigmoid gates on raw pooled features, SGD at a learning rate of 0.1 drives the
    spatial gates to 0 or 1 within 30 steps, and no gradient passes a gate of 0 (docs/method.md).

    Args:
        channels: number of channels C of the feature map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(channels // 16, 8)
        self.pooled_norm = nn.BatchNorm1d(channels)
        self.reduce = nn.Linear(channels, hidden)
        self.expand = nn.Linear(hidden, channels)
        self.summary_norm = BatchNorm(2)
        self.locate = nn.Conv2d(2, 1, kernel_size=7, padding=3)
        for last in (self.expand, self.locate):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(cast(Tensor, last.bias))

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gate a feature map.

        Args:
            feature: `[B, C, H, W]`.

        Returns:
            The gated feature `[B, C, H, W]`, the channel gates `[B, C]` and the spatial gates `[B, 1, H, W]`, both
            gates in 1/4..3/4.
        """
        # in channels-last order, so that the gradients of the means need no copy to that memory format
        tokens = feature.permute(0, 2, 3, 1)  # [B, H, W, C]
        pooled = torch.cat((tokens.mean((1, 2)), tokens.amax((1, 2))))  # [2 B, C]
        channel = self._gate(
            self.expand(torch.relu(self.reduce(self._norm_pooled(pooled)))).unflatten(0, (2, -1)).sum(0)
        )
        weighted = tokens * (2 * channel)[:, None, None]
        summary = torch.cat((weighted.mean(3, keepdim=True), weighted.amax(3, keepdim=True)), 3)  # [B, H, W, 2]
        spatial = self._gate(self.locate(self._norm_summary(summary.permute(0, 3, 1, 2))))  # [B, 1, H, W]
        gated = weighted * (2 * spatial).permute(0, 2, 3, 1)
        return gated.permute(0, 3, 1, 2), channel, spatial

    def _norm_pooled(self, pooled: Tensor) -> Tensor:
        return cast(Tensor, self.pooled_norm(pooled))

    def _norm_summary(self, summary: Tensor) -> Tensor:
        return cast(Tensor, self.summary_norm(summary))

    def _gate(self, score: Tensor) -> Tensor:
        return 0.5 + torch.tanh(score) / 4


class SigmoidAttention(DualAttention):
    """Sigmoid gates on raw pooled features, for networks that were trained with the first version of the module."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        del self.pooled_norm, self.summary_norm

    def _norm_pooled(self, pooled: Tensor) -> Tensor:
        return pooled

    def _norm_summary(self, summary: Tensor) -> Tensor:
        return summary

    def _gate(self, score: Tensor) -> Tensor:
        return torch.sigmoid(score)


class NoAttention(nn.Module):
    """Replacement of a DA module: returns the feature unchanged with gates of 1/2."""

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `DualAttention.forward`."""
        return feature, torch.full_like(feature[:, :, 0, 0], 0.5), torch.full_like(feature[:, :1], 0.5)


class AttendedStage(nn.Module):
    """A stage of any backbone, followed by a DA module.

    The stage may return any of the three layouts of timm: `[B, C, H, W]`, `[B, H, W, C]`, or tokens `[B, P + H*W, C]`
    with P prefix tokens and a square grid (H = W). The output has the same layout.

    Args:
        stage: module that returns one of the layouts.
        attention: a `DualAttention` or `NoAttention`.
        channels_last: whether outputs of four dimensions are `[B, H, W, C]`.
        prefix_tokens: number of prefix tokens P.

    Attributes:
        watched: whether calls store the attention of the stage for `collect`.
        kept: whether calls store the gated feature for `collect_feature`.
    """

    def __init__(
        self, stage: nn.Module, attention: nn.Module, *, channels_last: bool = False, prefix_tokens: int = 0
    ) -> None:
        super().__init__()
        self.stage = stage
        self.attention = attention
        self.channels_last = channels_last
        self.prefix_tokens = prefix_tokens
        self.watched = self.kept = False
        self._seen: StageAttention | None = None
        self._feature: Tensor | None = None

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        """Run the stage and gate its output."""
        output: Tensor = self.stage(*args, **kwargs)
        if output.ndim == 4:
            if self.channels_last:
                return self._gate(output.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            return self._gate(output)
        side = math.isqrt(output.shape[1] - self.prefix_tokens)
        # CaiT and XCiT add their prefix tokens after the stages, where all tokens form the square
        first = self.prefix_tokens if side**2 == output.shape[1] - self.prefix_tokens else 0
        side = math.isqrt(output.shape[1] - first)
        gated = self._gate(output[:, first:].transpose(1, 2).unflatten(2, (side, side)))  # type: ignore[no-untyped-call]
        return torch.cat((output[:, :first], gated.flatten(2).transpose(1, 2)), 1)

    def collect(self) -> StageAttention:
        """Return the attention of the last call, once; the stage then no longer keeps the graph alive."""
        seen, self._seen = self._seen, None
        assert seen is not None, "nothing was watched since the last collection"
        return seen

    def collect_feature(self) -> Tensor:
        """Return the gated feature of the last call, `[B, C, H, W]`, once."""
        feature, self._feature = self._feature, None
        assert feature is not None, "nothing was kept since the last collection"
        return feature

    def _gate(self, feature: Tensor) -> Tensor:
        gated, channel, spatial = self.attention(feature)
        if self.watched:
            with torch.autocast(gated.device.type, enabled=False):
                exact = gated.dtype if gated.dtype == torch.float64 else torch.float32
                energy: Tensor = _Energy.apply(gated)
                self._seen = StageAttention(channel, spatial, energy, gated.mean((2, 3), dtype=exact))
        if self.kept:
            self._feature = gated
        return gated  # type: ignore[no-any-return]

    def __getattr__(self, name: str) -> Any:
        # some backbones read attributes of their stages (stride, channels), which are forwarded
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("stage"), name)


class _Energy(torch.autograd.Function):
    """Mean square over the channels, `[B, C, H, W]` to `[B, H, W]`, in float32 or float64.

    Only the feature itself is saved for backward, not a float32 copy of it.
    """

    @staticmethod
    def forward(ctx: Any, feature: Tensor) -> Tensor:
        ctx.save_for_backward(feature)
        exact = feature.float() if feature.dtype == torch.float16 else feature  # float16 squares overflow
        kind = torch.float64 if feature.dtype == torch.float64 else torch.float32
        return (exact * exact).mean(1, dtype=kind)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (feature,) = ctx.saved_tensors
        slope = (2 / feature.shape[1] * gradients[0]).to(feature.dtype)
        return cast(Tensor, feature * slope.unsqueeze(1))
