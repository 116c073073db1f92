"""Average of the outputs of one or more teachers, optionally over the eight symmetries of a view."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from scenedistill.core.precision import Precision
from scenedistill.models.files import weights_hash
from scenedistill.models.freeze import FrozenTeacher, freeze
from scenedistill.models.network import SceneNet
from scenedistill.models.output import SceneOutput, StageAttention

SYMMETRIES = 8  # of the square: four quarter turns, and the same after a flip


class Teachers:
    """One or more frozen teachers with averaged outputs.

    With several teachers or with symmetries, the logits are the logarithm of the mean probability over all of them.
    Embedding, attention and features are those of the first teacher; with symmetries they are the mean over the
    symmetries, after the maps are turned back.

    Args:
        nets: teachers with the same classes. They are put into eval mode, and their weights are never changed; the
            forward passes run on fast copies (`freeze`).
        precision: `bf16`, `fp16` or `fp32`.
        image_size: side of the views in pixels.
        symmetries: average the outputs over the eight symmetries of each view.
        compiled: compile the frozen networks.
    """

    def __init__(
        self,
        nets: Sequence[SceneNet],
        *,
        precision: Precision,
        image_size: int,
        symmetries: bool = False,
        compiled: bool = False,
    ) -> None:
        self.nets = [net.eval().requires_grad_(False) for net in nets]
        self.precision, self.image_size, self.symmetries, self.compiled = precision, image_size, symmetries, compiled
        self.hashes = [weights_hash(net) for net in self.nets]
        self._frozen: list[FrozenTeacher] = []
        self._frozen_hashes: list[str] = []

    @property
    def report(self) -> tuple[str, ...]:
        """How the teachers were made fast, one line each; empty before the first forward pass."""
        return tuple(line for frozen in self._frozen for line in frozen.report)

    @property
    def used(self) -> bool:
        """Whether there has been a forward pass."""
        return bool(self._frozen)

    def __call__(self, view: Tensor, attention: bool = True, features: bool = False) -> SceneOutput:
        """Return the averaged output for a batch of views.

        Args:
            view: views `[B, bands, H, W]`, float32 in 0..1.
            attention: return the attention of each stage; without it a pass is faster.
            features: return the feature map of each stage.
        """
        if not self._frozen:
            self._frozen = [self._freeze(net, view.device) for net in self.nets]
            self._frozen_hashes = [frozen.weights_hash() for frozen in self._frozen]
        for frozen in self._frozen:
            if frozen.device != view.device:
                frozen.to(view.device)
        if len(self.nets) == 1 and not self.symmetries:
            return self._frozen[0](view, attention, features)
        turns = range(SYMMETRIES if self.symmetries else 1)
        first = [_back(self._frozen[0](_turned(view, turn), attention, features), turn) for turn in turns]
        logits = [output.logits for output in first]
        logits += [other(_turned(view, turn), False).logits for other in self._frozen[1:] for turn in turns]
        probability = torch.stack([F.softmax(each.float(), 1) for each in logits]).mean(0)
        mean = SceneOutput(*tree_map(lambda *tensors: torch.stack(tensors).mean(0), *(each[:4] for each in first)))
        return mean._replace(logits=probability.clamp(min=torch.finfo(torch.float32).tiny).log())

    def check_untouched(self) -> None:
        """Check that the teachers and their frozen copies still have their initial weights.

        Raises:
            RuntimeError: the weights have changed.
        """
        if [weights_hash(net) for net in self.nets] != self.hashes:
            raise RuntimeError("the teacher's weights changed while it taught")
        if [frozen.weights_hash() for frozen in self._frozen] != self._frozen_hashes:
            raise RuntimeError("the frozen teacher's weights changed while it taught")

    def __getstate__(self) -> dict[str, Any]:
        """Leave the frozen copies out when pickling; other processes make their own."""
        return {**self.__dict__, "_frozen": [], "_frozen_hashes": []}

    def _freeze(self, net: SceneNet, device: torch.device) -> FrozenTeacher:
        size = self.image_size
        return freeze(net, precision=self.precision, device=device, image_size=size, compiled=self.compiled)


def _turned(maps: Tensor, turn: int) -> Tensor:
    """Apply symmetry `turn` (0..7) to maps `[..., H, W]`: a flip for the last four, then `turn % 4` quarter turns."""
    return torch.rot90(maps.flip(-1) if turn >= 4 else maps, turn % 4, (-2, -1))


def _turned_back(maps: Tensor, turn: int) -> Tensor:
    """Undo `_turned`."""
    back = torch.rot90(maps, -(turn % 4), (-2, -1))
    return back.flip(-1) if turn >= 4 else back


def _back(output: SceneOutput, turn: int) -> SceneOutput:
    """Turn the maps of an output for a turned view back."""
    attention = tuple(
        StageAttention(seen.channel, _turned_back(seen.spatial, turn), _turned_back(seen.energy, turn), seen.descriptor)
        for seen in output.attention
    )
    features = tuple(_turned_back(each, turn) for each in output.features)
    return SceneOutput(output.logits, output.embedding, attention, features)
