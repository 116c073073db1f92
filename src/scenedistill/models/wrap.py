"""Detection of the stages, the embedding and the head of any network by observing one forward pass."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from timm.layers.adaptive_avgmax_pool import SelectAdaptivePool2d
from torch import Tensor, nn

from scenedistill.core.errors import UserError
from scenedistill.core.precision import at_least_float32
from scenedistill.core.terminal import counted

STRIDES = (4, 8, 16, 32)


class StageLayout(NamedTuple):
    """Submodule whose output is the feature of a stage, and the layout of this feature.

    Attributes:
        module: name of the submodule in the network.
        channels: number of channels C.
        channels_last: True for `[B, H, W, C]`, False for `[B, C, H, W]` or tokens `[B, P + H*W, C]`.
        prefix_tokens: number of prefix tokens P.
    """

    module: str
    channels: int
    channels_last: bool = False
    prefix_tokens: int = 0


class Parts(NamedTuple):
    """Parts of a network, as found by `take_apart`.

    Attributes:
        stages: the named stages with their layouts.
        head_name: name of the linear layer that returns the logits; empty if the caller gave a head.
        head: this layer, or the given head.
    """

    stages: tuple[StageLayout, ...]
    head_name: str
    head: nn.Linear


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Switch a module to eval mode; on exit, restore the mode of every submodule."""
    modes = {each: each.training for each in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for each, mode in modes.items():
            each.training = mode


def probe_images(module: nn.Module, bands: int, size: int, count: int = 1) -> Tensor:
    """Return random images in 0..1, `[count, bands, size, size]`, with the device and type of the module's parameters.

    The images are the same in every call.
    """
    images = torch.rand(count, bands, size, size, generator=torch.Generator().manual_seed(0))
    first = next(module.parameters(), images)
    return images.to(first.device, first.dtype)


def probe_error(module: nn.Module, size: int, problem: Exception) -> UserError:
    """Return the error to raise if a module fails on probe images."""
    reason = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
    return UserError(
        f"{type(module).__name__} does not take images of {size} x {size} pixels ({reason}). Choose another "
        "image_size or backbone."
    )


def take_apart(
    module: nn.Module,
    stages: Sequence[str],
    *,
    head: str | nn.Linear | None,
    bands: int,
    image_size: int,
) -> Parts:
    """Find the stages and the head of a network, and replace its own head by an identity, in place.

    Args:
        module: module that maps `[B, bands, H, W]` to logits `[B, K]`, or to an embedding `[B, D]` if a head is given.
        stages: names of submodules, finest first.
        head: see `SceneNet.wrap`.
        bands: number of input bands.
        image_size: side in pixels of the images of the pass.

    Raises:
        UserError: a name is unknown, an output has an unsupported shape, or no head is found.
    """
    images = probe_images(module, bands, image_size, count=2)
    with evaluating(module), torch.no_grad():
        output, features, linear = _watched(module, stages, images)
        if not isinstance(output, Tensor) or output.ndim != 2:
            raise UserError(
                f"{type(module).__name__} gives {_shown(output)}; expected one tensor [B, classes]. Put it into a "
                "module whose forward returns its logits alone."
            )
        found = tuple(_layout(module, name, features[name]) for name in stages)
        _check_order(stages, features, found)
        if isinstance(head, nn.Linear):
            if head.in_features != output.shape[1]:
                raise UserError(
                    f"The head takes {head.in_features} values and {type(module).__name__} gives {output.shape[1]}. "
                    "Give a head over its embedding, or None where it has its own."
                )
            return Parts(found, "", head)
        name = _head_name(module, head, output, linear)
        own = module.get_submodule(name)
        assert isinstance(own, nn.Linear)
        module.set_submodule(name, nn.Identity())
        try:
            unchanged = torch.allclose(own(module(images)), output, rtol=1e-3, atol=1e-4 * float(output.abs().max()))
        except Exception:  # a network may fail in any way without its last layer
            unchanged = False
        if not unchanged:
            module.set_submodule(name, own)
            raise UserError(
                f"'{name}' is not the last thing that {type(module).__name__} does with an embedding. Give a network "
                "that gives its embedding, and head=nn.Linear(...)."
            )
    return Parts(found, name, own)


def described_stages(backbone: nn.Module) -> list[StageLayout]:
    """Return the stages of a backbone as described by timm's `feature_info`.

    They are the last features at those of the strides 4, 8, 16 and 32 that the backbone has. If it has fewer than two
    of these strides, as a plain transformer does, they are four features evenly spaced over its depth.

    Raises:
        UserError: the backbone has fewer than two of these strides and fewer than four features.
    """
    info = [dict(entry) for entry in backbone.feature_info]  # type: ignore[union-attr]
    by_stride = {entry["reduction"]: entry for entry in info}
    chosen = [by_stride[stride] for stride in STRIDES if stride in by_stride]
    if len(chosen) < 2:
        if len(info) < 4:
            raise UserError(
                f"{type(backbone).__name__} describes {counted(len(info), 'stage')}, and dual attention needs at least "
                f"two strides of {STRIDES} or four blocks. Choose another backbone."
            )
        chosen = [info[(len(info) * (i + 1)) // 4 - 1] for i in range(4)]
    form = getattr(backbone, "output_fmt", "NCHW")
    channels_last = getattr(form, "value", form) == "NHWC"  # timm's Format enumeration
    prefix = getattr(backbone, "num_prefix_tokens", 0)
    return [StageLayout(str(entry["module"]), int(entry["num_chs"]), channels_last, prefix) for entry in chosen]


def embedding_width(backbone: nn.Module, bands: int, size: int) -> int:
    """Return the width of the embedding, measured in a forward pass because timm's value is wrong for some backbones.

    A pooling layer whose output is the embedding computes in float32 from then on. Other pooling layers keep their
    precision, because layers in half precision that follow them accept no wider input.

    Raises:
        UserError: the pass fails, or its output is not an embedding `[B, D]`.
    """
    pooled: dict[SelectAdaptivePool2d, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda module, _, output: pooled.update({module: output}))
        for module in backbone.modules()
        if isinstance(module, SelectAdaptivePool2d)
    ]
    try:
        with evaluating(backbone), torch.no_grad():
            embedding = backbone(probe_images(backbone, bands, size))
    except Exception as problem:  # a backbone may fail in any way, for example by reading attributes of its stages
        raise probe_error(backbone, size, problem) from problem
    finally:
        for hook in hooks:
            hook.remove()
    if embedding.ndim != 2:
        raise UserError(f"{type(backbone).__name__} gives {tuple(embedding.shape)}, not a pooled embedding [B, D].")
    for module, output in pooled.items():
        if torch.equal(output.flatten(1), embedding):
            module.register_forward_pre_hook(_widen)
    return int(embedding.shape[1])


def _watched(
    module: nn.Module, stages: Sequence[str], images: Tensor
) -> tuple[object, dict[str, object], dict[str, Tensor]]:
    """Return the output of a pass, the outputs of the stages and the outputs of all linear layers, by name."""
    named = dict(module.named_modules())
    if unknown := [name for name in stages if not name or name not in named]:
        raise UserError(
            f"{type(module).__name__} has no submodule '{unknown[0]}'. Name those whose outputs are the stages, finest "
            f"first; at its top are {', '.join(name for name, _ in module.named_children())}."
        )
    for outer in stages:
        if inner := [name for name in stages if name.startswith(f"{outer}.") or stages.count(name) > 1]:
            raise UserError(f"The stages name '{inner[0]}' twice, or inside of '{outer}'. Name each once.")
    features: dict[str, object] = {}
    calls = dict.fromkeys(stages, 0)
    linear: dict[str, Tensor] = {}

    def watch(name: str, output: object) -> None:
        if name in calls:
            features[name] = output.detach().clone() if isinstance(output, Tensor) else output
            calls[name] += 1
        elif isinstance(output, Tensor):
            linear[name] = output.detach().clone()

    hooks = [
        part.register_forward_hook(lambda _, __, output, name=name: watch(name, output))
        for name, part in named.items()
        if name in calls or (name and isinstance(part, nn.Linear))
    ]
    try:
        output = module(images)
    except Exception as problem:
        raise probe_error(module, images.shape[-1], problem) from problem
    finally:
        for hook in hooks:
            hook.remove()
    if other := [name for name, count in calls.items() if count != 1]:
        raise UserError(
            f"{type(module).__name__} calls its submodule '{other[0]}' {calls[other[0]]} times for a batch; a stage is "
            "called once. Name another submodule."
        )
    return output, features, linear


def _widen(_: nn.Module, given: tuple[Tensor]) -> tuple[Tensor]:
    return (at_least_float32(given[0]),)


def _layout(module: nn.Module, name: str, feature: object) -> StageLayout:
    """Return the layout of a stage's feature, inferred from its shape for square images.

    The number of prefix tokens is that of the module's attribute `num_prefix_tokens`; without it, 0 if the tokens form
    a square and 1 otherwise.
    """
    problem = UserError(
        f"The submodule '{name}' of {type(module).__name__} gives {_shown(feature)}; expected a feature map "
        "[B, C, H, W] or [B, H, W, C], or tokens [B, P + H*W, C] with P the module's num_prefix_tokens. "
        "Name another submodule."
    )
    if not isinstance(feature, Tensor) or feature.ndim not in (3, 4) or len(feature) != 2:
        raise problem
    shape = tuple(feature.shape)
    if feature.ndim == 4:
        if shape[2] == shape[3]:
            return StageLayout(name, shape[1])
        if shape[1] == shape[2]:
            return StageLayout(name, shape[3], channels_last=True)
        raise problem
    prefix_tokens = int(getattr(module, "num_prefix_tokens", 0 if _is_square(shape[1]) else 1))
    if not _is_square(shape[1] - prefix_tokens):
        raise problem
    return StageLayout(name, shape[2], prefix_tokens=prefix_tokens)


def _check_order(names: Sequence[str], features: dict[str, object], layouts: Sequence[StageLayout]) -> None:
    sizes = []
    for name, layout in zip(names, layouts, strict=True):
        feature = features[name]
        assert isinstance(feature, Tensor)
        sizes.append(feature.numel() // layout.channels)
    if sizes != sorted(sizes, reverse=True):
        raise UserError(f"The stages {', '.join(names)} are not in order; name them from the finest to the coarsest.")


def _head_name(module: nn.Module, given: str | None, output: Tensor, linear: dict[str, Tensor]) -> str:
    if given is not None:
        if given not in linear:
            raise UserError(
                f"{type(module).__name__} has no linear layer '{given}' for a head; it has {_some(linear) or 'none'}."
            )
        return given
    found = [name for name, seen in linear.items() if seen.shape == output.shape and torch.equal(seen, output)]
    if not found:
        raise UserError(
            f"No linear layer gives the output of {type(module).__name__}, so its head is not known. Name it "
            f"(head='...'; there are {_some(linear) or 'none'}), or give one where the network gives an embedding: "
            f"head=nn.Linear({output.shape[1]}, classes)."
        )
    return found[-1]


def _some(linear: dict[str, Tensor]) -> str:
    return ", ".join([*linear][-3:])


def _is_square(count: int) -> bool:
    return count > 0 and math.isqrt(count) ** 2 == count


def _shown(output: object) -> str:
    return str(list(output.shape)) if isinstance(output, Tensor) else f"a {type(output).__name__}"
