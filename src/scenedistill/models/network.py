"""Scene classifier: any backbone with dual attention after its stages and a linear head."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from scenedistill.core.errors import UserError
from scenedistill.core.precision import no_autocast
from scenedistill.models.attention import AttendedStage, DualAttention, NoAttention
from scenedistill.models.output import FeatureDims, SceneOutput
from scenedistill.models.wrap import StageLayout, described_stages, embedding_width, take_apart

#: Range of the values of images that a network normalises: 0..1 with a margin for overshoots of interpolation. Nearly
#: every batch of normalised images has a value below it, and nearly every batch of bytes or reflectances one above it.
LOWEST, HIGHEST = -0.25, 1.25

#: Mean and standard deviation of each band, for images in 0..1, with which images are normalised.
Normalisation = tuple[Sequence[float], Sequence[float]]


class SceneNet(nn.Module):
    """A backbone that maps images to a pooled embedding, with a DA module after each of its stages and a linear head.

    Args:
        backbone: module that maps `[B, bands, H, W]` to an embedding `[B, D]`. Its stage modules are wrapped in place.
            Without `stages`, it needs timm's `feature_info` (a list of dicts with `module`, `num_chs`, `reduction`).
        classes: number of scene classes K.
        normalisation: mean and standard deviation of each band, see `Normalisation`.
        dual_attention: add a DA module after each stage; otherwise the stages are only observed.
        image_size: side in pixels of the image that measures the width of the embedding.
        stages: stages of the backbone, finest first; by default those described by timm.

    Attributes:
        dims: widths of the outputs.
        check_images: whether the range of the next batch is checked; initially True, so that the first batch is.

    Raises:
        UserError: the backbone lacks a stage, does not call its stages as modules, or returns no embedding `[B, D]`.
    """

    mean: Tensor
    std: Tensor
    head: nn.Linear

    def __init__(
        self,
        backbone: nn.Module,
        classes: int,
        *,
        normalisation: Normalisation,
        dual_attention: bool = True,
        image_size: int = 96,
        stages: Sequence[StageLayout] | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.check_images = True
        self._own_head = ""  # name of the head in a wrapped network
        self._stage_names = []
        widths = []
        first = next(backbone.parameters(), torch.empty(0))  # new modules have its device, and DA modules its type
        for stage in described_stages(backbone) if stages is None else stages:
            attention = DualAttention(stage.channels).to(first) if dual_attention else NoAttention()
            backbone.set_submodule(stage.module, _attended(backbone, stage, attention))
            self._stage_names.append(stage.module)
            widths.append(stage.channels)
        for name, values in zip(("mean", "std"), normalisation, strict=True):
            self.register_buffer(
                name, torch.tensor(tuple(values), dtype=torch.float32)[:, None, None], persistent=False
            )
        bands = len(normalisation[0])
        try:
            width = embedding_width(backbone, bands, image_size)
        except UserError as problem:
            raise self._refusal(problem, bands, image_size) from problem
        self.head = nn.Linear(width, classes)
        self.dims = FeatureDims(classes, width, tuple(widths))
        self.to(first.device)

    def _refusal(self, problem: UserError, bands: int, image_size: int) -> UserError:
        """Return the error of a failed pass: `problem`, or another one if the pass works without wrapped stages."""
        for name in self._stage_names:  # one by one: stages of the same name are wrapped in each other
            self.backbone.set_submodule(name, cast(AttendedStage, self.backbone.get_submodule(name)).stage)
        try:
            embedding_width(self.backbone, bands, image_size)
        except UserError:
            return problem
        names = ", ".join(dict.fromkeys(self._stage_names))
        return UserError(
            f"{type(self.backbone).__name__} does not call its stages ({names}) as modules of one feature map, so "
            "none can be observed or followed by a DA module, regardless of dual_attention. Choose another backbone."
        )

    @classmethod
    def wrap(
        cls,
        module: nn.Module,
        stages: Sequence[str] | None = None,
        *,
        head: str | nn.Linear | None = None,
        normalisation: Normalisation | None = None,
        dual_attention: bool = False,
        bands: int = 3,
        image_size: int = 96,
    ) -> SceneNet:
        """Wrap any network as a student or a teacher, with its weights and its head.

        The module is modified in place: its stages are wrapped and its head is moved. `unwrapped` returns a copy with
        the original names. In eval mode the logits equal those of the module.

        Args:
            module: module that maps `[B, bands, H, W]` to logits `[B, K]`. A transformer with several tokens before
                those of the image states their number as its attribute `num_prefix_tokens`, as timm's do.
            stages: names of the submodules whose outputs are the stages, finest first, such as
                `["layer1", "layer2", "layer3", "layer4"]`; an empty list if no loss compares stages. It can be omitted
                for timm networks.
            head: name of the last linear layer, which is detected by default; or a linear layer, if the module returns
                an embedding `[B, D]`.
            normalisation: mean and standard deviation of each band, for images in 0..1, if the network is to normalise
                its images. By default images must be normalised as the module expects.
            dual_attention: add a new DA module after each stage; it starts as the identity.
            bands: number of input bands; ignored if `normalisation` is given.
            image_size: side in pixels of the images of a test pass.

        Returns:
            The network, in the mode and on the device of the module.

        Raises:
            UserError: a stage or the head is missing or unsuitable, or `normalisation` has more means than standard
                deviations or fewer.
        """
        if normalisation is None:
            normalisation = (0.0,) * bands, (1.0,) * bands
        bands = len(normalisation[0])
        if len(normalisation[1]) != bands:
            raise UserError(
                f"The normalisation has {bands} means and {len(normalisation[1])} stds; give as many of both."
            )
        layouts: Sequence[StageLayout] = ()
        if stages is None:
            if not hasattr(module, "feature_info"):
                raise UserError(
                    f"Name the submodules of {type(module).__name__} whose outputs are its stages, such as "
                    f"stages=[{', '.join(repr(name) for name, _ in module.named_children())}], or stages=[] for none."
                )
            layouts = described_stages(module)
        before = dict(module.named_modules())
        parts = take_apart(module, stages or (), head=head, bands=bands, image_size=image_size)
        wrapped = layouts or parts.stages
        try:
            net = cls(
                module,
                1,
                normalisation=normalisation,
                dual_attention=dual_attention,
                image_size=image_size,
                stages=wrapped,
            )
        except UserError:  # restore the caller's module
            for name in {parts.head_name, *(stage.module for stage in wrapped)} & before.keys() - {""}:
                module.set_submodule(name, before[name])
            raise
        net.head, net._own_head = parts.head, parts.head_name
        net.dims = net.dims._replace(classes=parts.head.out_features)
        if not module.training:
            net.eval()
        return net.to(net.mean.device)

    def unwrapped(self) -> nn.Module:
        """Return a copy of the wrapped network with its original parameter names, its trained weights and its own head.

        Raises:
            UserError: the network has DA modules, which the original network cannot hold.
        """
        if any(not isinstance(stage.attention, NoAttention) for stage in self.stages):
            raise UserError("The network has dual attention, so the backbone alone has other outputs. Keep it.")
        module = copy.deepcopy(self.backbone)
        for name in self._stage_names:
            module.set_submodule(name, cast(AttendedStage, module.get_submodule(name)).stage)
        if self._own_head:
            module.set_submodule(self._own_head, copy.deepcopy(self.head))
        return module

    def set_head(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Replace the head.

        Args:
            weight: weight of the linear layer, `[K, D]`.
            bias: bias, `[K]`; zeros by default.
        """
        self.head = nn.Linear(weight.shape[1], weight.shape[0], device=self.mean.device)
        with torch.no_grad():
            self.head.weight.copy_(weight)
            self.head.bias.copy_(torch.zeros(len(weight)) if bias is None else bias)
        self.dims = self.dims._replace(classes=len(weight))

    def set_normalisation(self, mean: Tensor, std: Tensor) -> None:
        """Normalise images with other statistics than those of the backbone; they are stored with the weights.

        Args:
            mean: mean of each band, for images in 0..1, `[bands]`.
            std: standard deviation of each band, `[bands]`.
        """
        self.check_images = True
        for name, values in (("mean", mean), ("std", std)):
            own = values.detach().to(self.mean.device, torch.float32, copy=True)
            self.register_buffer(name, own.reshape(-1, 1, 1), persistent=True)

    @property
    def stages(self) -> list[AttendedStage]:
        """The wrapped stages, finest first."""
        return [cast(AttendedStage, self.backbone.get_submodule(name)) for name in self._stage_names]

    def forward(self, images: Tensor, attention: bool = True, features: bool = False) -> SceneOutput:
        """Classify a batch.

        Args:
            images: images `[B, bands, H, W]`, float in 0..1, or normalised images if the network does not normalise.
            attention: return the attention of each stage; without it a pass is cheaper.
            features: return the gated feature map of each stage.

        Returns:
            Logits `[B, K]` and embedding `[B, D]`, in float32 regardless of autocast, and the requested attention and
            feature maps.

        Raises:
            UserError: the network normalises its images, and values of the first batch are out of range.
        """
        if self.check_images and not torch.compiler.is_compiling():
            self._check_range(images)
        stages = self.stages
        for stage in stages:
            stage.watched, stage.kept = attention, features
        normal = (images - self.mean) / self.std
        # the backbone of a frozen teacher may be in half precision, its head is not
        dtype = next(self.backbone.parameters(), normal).dtype
        embedding = self.backbone(normal.to(dtype)).to(self.head.weight.dtype)
        # without autocast: in 16 bits the two largest logits of up to 2 % of the images are equal
        with no_autocast(embedding.device):
            logits = self.head(embedding)
        seen = tuple(stage.collect() for stage in stages) if attention else ()
        maps = tuple(stage.collect_feature() for stage in stages) if features else ()
        return SceneOutput(logits, embedding, seen, maps)

    def _check_range(self, images: Tensor) -> None:
        """Reject images that are normalised already or not scaled to 0..1."""
        self.check_images = False  # the check synchronises a GPU, and one batch is enough
        if not (self.mean.any() or (self.std != 1).any()):
            return
        low, high = float(images.min()), float(images.max())
        if low < LOWEST or high > HIGHEST:
            raise UserError(
                f"The network normalises images itself and expects values in 0..1; these go from {low:.2f} to "
                f"{high:.2f}. Leave normalising out of your transforms, or turn it off in the network "
                "(normalise=False, or SceneNet.wrap without normalisation)."
            )


def _attended(backbone: nn.Module, stage: StageLayout, attention: nn.Module) -> AttendedStage:
    try:
        module = backbone.get_submodule(stage.module)
    except AttributeError as problem:
        raise UserError(
            f"{type(backbone).__name__} has no single module for its stage '{stage.module}' that dual attention could "
            "follow. Choose another backbone."
        ) from problem
    return AttendedStage(module, attention, channels_last=stage.channels_last, prefix_tokens=stage.prefix_tokens)
