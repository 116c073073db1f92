"""A trained teacher made fast for inference: merged, folded, in half precision, channels-last, compiled."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.norm_act import BatchNormAct2d
from timm.utils.model import reparameterize_model
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from scenedistill.core.precision import TYPES, Precision, allow_compiling, autocast
from scenedistill.models.attention import AttendedStage
from scenedistill.models.files import weights_hash
from scenedistill.models.network import SceneNet
from scenedistill.models.output import SceneOutput

#: What merging and folding may change, in float32: norm of an output's difference over the output's norm.
TOLERANCE = 1e-4
#: Weights in half precision throughout may be this much less exact than autocast, which keeps some sums in float32.
WORSE = 1.5
#: Largest activation on the probe images for which float16, which ends at 65504, is trusted on others.
FP16_LIMIT = 8192.0
#: A batch shape is compiled when it comes this often in a row: the short last batch of an epoch never is.
ROW = 3
#: Batch shapes compiled at most; the rest run as they are.
SHAPES = 3

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear, Conv2dSame)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm, BatchNormAct2d)


class FrozenTeacher:
    """A network that only answers, made by `freeze`.

    Not a module, so that it cannot slip into a student's checkpoint or optimiser.

    Attributes:
        dims: widths of the outputs.
        report: one line a step: what was done, or why it does not apply. A failing compilation adds its line when it
            fails, which is in a call.
    """

    def __init__(
        self, net: SceneNet, report: tuple[str, ...], *, autocast_to: Precision, device: torch.device, compiled: bool
    ) -> None:
        self.dims = net.dims
        self.report = report
        self._net = net
        net.check_images = True  # what was seen until now were probe images
        self.device: torch.device | None = None
        self._autocast = autocast_to
        self._compile = compiled
        self._compiled: Callable[[Tensor, bool, bool], SceneOutput] | None = None
        self._shapes: set[torch.Size] = set()
        self._last: torch.Size | None = None
        self._in_a_row = 0
        self.to(device)

    def __call__(self, view: Tensor, attention: bool = True, features: bool = False) -> SceneOutput:
        """Classify a batch.

        Args:
            view: `[B, bands, H, W]`, float32 in 0..1, on the teacher's device.
            attention: report the attention of each stage.
            features: report the feature map of each stage.

        Returns:
            As `SceneNet` gives it, in tensors without gradients that a loss may save for backward.
        """
        view = view.contiguous(memory_format=torch.channels_last)
        # autocast also to switch off a student's around this call
        with torch.no_grad(), autocast(view.device, self._autocast):
            if self._compiled is not None and self._is_usual(view.shape):
                try:
                    with _compiling(view.device):
                        return self._compiled(view, attention, features)
                except Exception as problem:  # compilers fail in many ways, and none of them is worth a training
                    self._compiled = None
                    self.report += (f"compile: given up: {_reason(problem)}",)
            output: SceneOutput = self._net(view, attention, features)
        return output

    def to(self, device: torch.device) -> FrozenTeacher:
        """Move to a device, in place; nothing is compiled anew where it is there already."""
        before = self.device
        self._net.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.device = next(self._net.parameters()).device
        if self._compile and self.device != before:
            allow_compiling()
            self._compiled = torch.compile(self._net, dynamic=False)
            self._shapes.clear()
        return self

    def weights_hash(self) -> str:
        """16 hex digits over its weights, to see that they stay."""
        return weights_hash(self._net)

    def _is_usual(self, shape: torch.Size) -> bool:
        self._in_a_row = self._in_a_row + 1 if shape == self._last else 1
        self._last = shape
        if self._in_a_row >= ROW and len(self._shapes) < SHAPES:
            self._shapes.add(shape)
        return shape in self._shapes


def freeze(
    net: SceneNet, *, precision: Precision, device: torch.device, image_size: int, compiled: bool = False
) -> FrozenTeacher:
    """A fast copy of a network for inference; the network itself is left as it is.

    Branches are merged where timm knows how (RepVGG and the like), batch norms are folded into the convolution or
    linear layer before them, and the backbone's weights are stored in half precision; normalisation of the images,
    batch norms that stay, energies, descriptors and the head compute in float32. Merging and folding are checked on
    the outputs in float32 (`TOLERANCE`) and left out where they would change them.

    Args:
        net: trained.
        precision: of the backbone's weights and arithmetic.
        device: where it will run.
        image_size: side in pixels of the images that will come.
        compiled: also `torch.compile` it, for shapes that come several times in a row. On a CPU that takes minutes
            for a deep network and saves 11 to 15 % of its time: it pays from some tens of thousands of images
            on.
    """
    with (
        torch.random.fork_rng(devices=[]),  # modules made anew draw weights: not from the run's seed
        torch.no_grad(),
        # a training may be the first to ask, in the middle of its step
        autocast(torch.device("cpu"), "fp32"),
        autocast(device, "fp32"),
    ):
        exact = copy.deepcopy(net).cpu().float().eval().requires_grad_(False)
        probe = _probe(net.mean.numel(), image_size)
        expected = exact(probe)
        report = []
        for step in (_merge_branches, _fold_batch_norms):
            exact, line = _if_equal(step, exact, probe, expected)
            report.append(line)
        fast, autocast_to, line = _in_precision(exact, precision, device, probe, expected)
        report.append(line)
    if compiled:
        report.append("compile: for batch shapes that come several times in a row")
    return FrozenTeacher(fast, tuple(report), autocast_to=autocast_to, device=device, compiled=compiled)


Step = Callable[[SceneNet, Tensor], str]


@contextmanager
def _compiling(device: torch.device) -> Iterator[None]:
    """Has a failing compilation raised, whatever a student's training has set, and on a CPU lets what is compiled take
    the weights for constants, laid out once for its kernels and fused with what follows them. As an option of
    `torch.compile` that has no effect: the tracer asks the setting too."""
    import torch._dynamo.config as dynamo  # here: slow to import
    import torch._inductor.config as inductor

    with dynamo.patch(suppress_errors=False), inductor.patch(freezing=device.type == "cpu"):
        yield


def _if_equal(step: Step, net: SceneNet, probe: Tensor, expected: SceneOutput) -> tuple[SceneNet, str]:
    """The network after a step, which says what it did; or as it was, with the reason, where the step changes what it
    computes or does not work."""
    name = step.__name__.strip("_").replace("_", " ")
    candidate = copy.deepcopy(net)
    try:
        line = step(candidate, probe)
        error = _error(candidate(probe), expected)
    except Exception as problem:  # the backbone is anybody's code
        return net, f"{name}: left out: {_reason(problem)}"
    if not error <= TOLERANCE:  # nor where it is not a number
        return net, f"{name}: left out: outputs would change by {error:.2g} of their norm"
    return candidate, f"{name}: {line}"


def _merge_branches(net: SceneNet, probe: Tensor) -> str:
    """timm's own re-parameterisation, with the stages out of their wrappers: those answer for the stage inside, and
    would be replaced by it."""
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


def _fold_batch_norms(net: SceneNet, probe: Tensor) -> str:
    """Into the layer that alone feeds them; what else they do (timm's hold their activation) stays."""
    layer_of = _layers_of_norms(net, probe)
    names = [
        (name, module)
        for name, module in net.named_modules(remove_duplicate=False)
        if isinstance(module, _NORMS) and ".attention." not in name  # a DA module's read summaries, not layers
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
    reason = f"; {kept} stay, which no convolution alone feeds" if kept else ""
    return f"{len(names) - kept} of {len(names)} folded{reason}"


def _layers_of_norms(net: SceneNet, images: Tensor) -> dict[Any, Any]:
    """Each batch norm that reads the output of a layer that nothing else reads, with that layer; found by watching one
    forward pass. Both are called once in it."""
    outputs: dict[int, tuple[nn.Module, Tensor]] = {}  # the tensors are held, so that an id stays theirs
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
        if type(module) in _LAYERS:
            hooks.append(module.register_forward_hook(after_layer))
        elif type(module) in _NORMS and module.running_var is not None:
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


def _in_precision(
    net: SceneNet, precision: Precision, device: torch.device, probe: Tensor, expected: SceneOutput
) -> tuple[SceneNet, Precision, str]:
    """The network in a precision, the precision to autocast to when it runs, and what was done."""
    if precision == "fp32":
        return net, "fp32", "fp32: weights as they are"
    if precision == "fp16" and (largest := _largest_activation(net, probe)) > FP16_LIMIT:
        return net, "fp32", f"fp16: left out, fp32 instead: activations reach {largest:.2g} on random images"

    def error(candidate: SceneNet, autocast_to: Precision) -> float:
        with autocast(device, autocast_to):
            output = candidate.to(device)(probe.to(device)).map(lambda tensor: tensor.cpu())
        return _error(output._replace(attention=()), expected._replace(attention=()))

    usual = error(copy.deepcopy(net), precision)
    reason = ""
    attempts: tuple[tuple[str, tuple[type[nn.Module], ...], Precision], ...] = (
        ("weights of the backbone", (nn.Module,), "fp32"),
        ("weights of convolutions and linear layers, the rest by autocast", (nn.Conv2d, nn.Linear), precision),
    )
    for what, kinds, autocast_to in attempts:
        half = copy.deepcopy(net)
        _halve(half.backbone, kinds, TYPES[precision])
        try:
            found = error(half, autocast_to)
        except RuntimeError as problem:  # a backbone that insists on float32 somewhere
            reason = f" (more would fail: {_reason(problem)})"
            continue
        if found <= WORSE * usual:
            return half, autocast_to, f"{precision}: {what}{reason}; outputs change by {found:.2g} of their norm"
        reason = f" (more would change outputs by {found:.2g})"
    return net, precision, f"{precision}: by autocast alone{reason}; outputs change by {usual:.2g} of their norm"


def _halve(backbone: nn.Module, kinds: tuple[type[nn.Module], ...], dtype: torch.dtype) -> None:
    """Convert what modules of some kinds hold themselves. Batch norms stay: a variance in 16 bits would be off by more
    than the arithmetic."""

    def half(tensor: Tensor) -> Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    for module in backbone.modules():
        if isinstance(module, kinds) and not isinstance(module, _NORMS):
            module._apply(half, recurse=False)  # type: ignore[no-untyped-call]


def _largest_activation(net: SceneNet, images: Tensor) -> float:
    """Over the outputs of all modules."""
    peaks = [images.new_zeros(())]

    def look(_: nn.Module, __: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            peaks.append(output.abs().max())

    hooks = [module.register_forward_hook(look) for module in net.backbone.modules()]
    net(images)
    for hook in hooks:
        hook.remove()
    return float(torch.stack(peaks).max())


def _probe(bands: int, size: int) -> Tensor:
    """Random images, `[4, bands, size, size]`, rough and smooth; the same each time."""
    generator = torch.Generator().manual_seed(0)
    rough = torch.rand(2, bands, size, size, generator=generator)
    smooth = nn.functional.interpolate(torch.rand(2, bands, 4, 4, generator=generator), size=(size, size))
    return torch.cat((rough, smooth))


def _error(output: SceneOutput, expected: SceneOutput) -> float:
    """Largest over the tensors of an output: norm of the difference over norm of what is expected."""
    pairs = zip(tree_leaves(output), tree_leaves(expected), strict=True)
    return float(
        torch.stack([(ours.float() - theirs).norm() / theirs.norm().clamp_min(1e-12) for ours, theirs in pairs]).max()
    )


def _reason(problem: Exception) -> str:
    lines = str(problem).strip().splitlines()
    return f"{type(problem).__name__}: {lines[0] if lines else ''}"[:160]
