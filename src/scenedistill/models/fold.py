"""Removal of branches and batch norms that a trained network does not need for inference."""

from __future__ import annotations

from collections import Counter
from typing import Any

from timm.layers.conv2d_same import Conv2dSame
from timm.layers.norm_act import BatchNormAct2d
from timm.utils.model import reparameterize_model
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from scenedistill.models.attention import AttendedStage
from scenedistill.models.network import SceneNet

#: Classes of layers into which a batch norm can be folded.
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear, Conv2dSame)
#: Classes of batch norms.
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm, BatchNormAct2d)


def merge_branches(net: SceneNet, probe: Tensor) -> str:
    """Merge parallel branches by timm's re-parameterisation, in place (RepVGG and similar networks).

    Args:
        net: a network in eval mode.
        probe: not used; every step of `freeze` has the same signature.

    Returns:
        A phrase that states how many modules were removed.
    """
    # unwrapped first: a wrapper forwards attributes of its stage, so timm would replace the wrapper too
    before = len(list(net.modules()))
    wrappers = {name: module for name, module in net.backbone.named_modules() if isinstance(module, AttendedStage)}
    for name, wrapper in wrappers.items():
        net.backbone.set_submodule(name, wrapper.stage)
    reparameterize_model(net.backbone, inplace=True)
    for name, wrapper in wrappers.items():
        wrapper.stage = net.backbone.get_submodule(name)
        net.backbone.set_submodule(name, wrapper)
    merged = before - len(list(net.modules()))
    return f"{merged} modules fewer" if merged else f"{type(net.backbone).__name__} has none that timm can merge"


def fold_batch_norms(net: SceneNet, probe: Tensor) -> str:
    """Fold batch norms into the convolution or linear layer before them, in place.

    Only batch norms that are the only consumer of a layer's output are folded. Dropout and activation of timm's
    `BatchNormAct2d` stay.

    Args:
        net: a network in eval mode.
        probe: images for one forward pass that finds these pairs, `[B, bands, H, W]`.

    Returns:
        A phrase that states how many batch norms were folded.
    """
    layer_of = _layers_of_norms(net, probe)
    names = [
        (name, module)
        for name, module in net.named_modules(remove_duplicate=False)
        if isinstance(module, NORMS) and ".attention." not in name  # those of DA modules follow no layer
    ]
    if not names:
        return "there are none"
    for norm, layer in layer_of.items():
        fuse = fuse_linear_bn_weights if isinstance(layer, nn.Linear) else fuse_conv_bn_weights
        layer.weight, layer.bias = fuse(
            layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
    for name, norm in names:
        if norm in layer_of:
            rest = nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()
            net.set_submodule(name, rest)
    kept = len(names) - sum(norm in layer_of for _, norm in names)
    reason = f"; {kept} stay: not the only consumer of a layer's output" if kept else ""
    return f"{len(names) - kept} of {len(names)} folded{reason}"


def _layers_of_norms(net: SceneNet, images: Tensor) -> dict[Any, Any]:
    """Map each batch norm that is the only consumer of a layer's output to that layer, as recorded in one forward pass.

    Layers and batch norms that are called more than once in the pass are left out.
    """
    outputs: dict[int, tuple[nn.Module, Tensor]] = {}  # holds the tensors, so that their ids stay unique
    inputs: dict[nn.Module, Tensor] = {}
    calls: Counter[nn.Module] = Counter()
    reads: Counter[int] = Counter()

    class CountReads(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            reads.update(id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
            return func(*args, **(kwargs or {}))

    def after_layer(layer: nn.Module, _: Any, output: Tensor) -> None:
        calls[layer] += 1
        outputs[id(output)] = layer, output
        reads[id(output)] = 0

    def before_norm(norm: nn.Module, args: tuple[Tensor]) -> None:
        calls[norm] += 1
        inputs[norm] = args[0]

    hooks = []
    for module in net.modules():
        # exact types: a subclass may standardise its weights
        if type(module) in LAYERS:
            hooks.append(module.register_forward_hook(after_layer))
        elif type(module) in NORMS and module.running_var is not None:
            hooks.append(module.register_forward_pre_hook(before_norm))
    with CountReads():  # type: ignore[no-untyped-call]
        net(images)
    for hook in hooks:
        hook.remove()
    found = {}
    for norm, tensor in inputs.items():
        layer, _ = outputs.get(id(tensor), (None, None))
        if layer is None or (isinstance(layer, nn.Linear) and tensor.ndim != 2):
            continue
        if calls[norm] == calls[layer] == reads[id(tensor)] == 1:
            found[norm] = layer
    return found
