"""First stages of a network that keep their initial weights while the rest is fine-tuned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from scenedistill.core.errors import UserError
from scenedistill.models.network import SceneNet


def freeze_stages(net: SceneNet, count: int, image_size: int) -> None:
    """Freeze all parameters that contribute to the output of the first stages, their DA modules included.

    A training step then computes no gradients below the last of these stages. Call `hold_statistics` in every epoch, so
    that the running statistics and random layers of these stages do not act either.

    Args:
        net: the network; its modules keep their training modes.
        count: number of stages, from 1 to all of them.
        image_size: side in pixels of the images.

    Raises:
        UserError: the network does not have so many stages.
    """
    if not 1 <= count <= len(net.stages):
        raise UserError(
            f"--teacher.frozen_stages is {count}; expected at most the {len(net.stages)} stages of the teacher."
        )
    outputs: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        outputs.append(output)

    modes = {module: module.training for module in net.modules()}
    hook = net.stages[count - 1].register_forward_hook(keep)
    parameters = list(net.backbone.parameters())
    try:
        with torch.enable_grad():
            net.backbone.eval()(torch.zeros(1, len(net.mean), image_size, image_size, device=net.mean.device))
            gradients = torch.autograd.grad(outputs[0].sum(), parameters, allow_unused=True)
    finally:
        hook.remove()
        for module, mode in modes.items():
            module.training = mode
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.requires_grad_(gradient is None)


def hold_statistics(net: SceneNet) -> None:
    """Set the modules whose parameters are all frozen to evaluation mode."""
    for module in net.backbone.modules():
        trained = [parameter.requires_grad for parameter in module.parameters()]
        if trained and not any(trained):
            module.eval()
