"""Conversion of a trained network to a fast teacher: merged, folded, half precision, channels-last, compiled."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from scenedistill.core.precision import TYPES, Precision, allow_compiling, autocast
from scenedistill.models.files import weights_hash
from scenedistill.models.fold import NORMS, fold_batch_norms, merge_branches
from scenedistill.models.network import SceneNet
from scenedistill.models.output import SceneOutput

#: Maximum relative change of the float32 outputs by merging or folding: norm of the difference over norm of the output.
MAX_FOLDING_CHANGE = 1e-4
#: Maximum error of half-precision weights, relative to the error of autocast, which keeps some sums in float32.
MAX_HALF_TO_AUTOCAST_ERROR = 1.5
#: Largest activation on the probe images at which float16 (maximum 65504) is used.
MAX_FP16_ACTIVATION = 8192.0
#: A batch shape is compiled after this many consecutive batches, so the shorter last batch of an epoch is not compiled.
COMPILE_AFTER_REPEATS = 3
#: Maximum number of compiled batch shapes; batches of other shapes run uncompiled.
MAX_COMPILED_SHAPES = 3
#: Start of the line of a report that says why the network runs uncompiled.
GIVEN_UP = "compile: given up"


class FrozenTeacher:
    """Inference-only copy of a network, made by `freeze`.

    It is not an `nn.Module`, so that it cannot become part of a student's checkpoint or optimiser.

    Attributes:
        dims: widths of the outputs.
        report: one line per step of `freeze`, with its result or the reason why it was left out. If a compilation
            fails during a call, that call adds a line.
        device: device of the weights.
        head: the linear head, in float32.
    """

    def __init__(
        self, net: SceneNet, report: tuple[str, ...], *, autocast_to: Precision, device: torch.device, compiled: bool
    ) -> None:
        self.dims = net.dims
        self.report = report
        self.head = net.head
        self._net = net
        net.check_images = True  # the check so far was on probe images
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
            view: images `[B, bands, H, W]`, float32 in 0..1, on the teacher's device.
            attention: return the attention of each stage.
            features: return the feature map of each stage.

        Returns:
            The output as described in `SceneNet.forward`, without gradients. A loss may save its tensors for backward.
        """
        view = view.contiguous(memory_format=torch.channels_last)
        # with fp32, this disables an autocast of the student around the call
        with torch.no_grad(), autocast(view.device, self._autocast):
            if self._compiled is not None and self._should_compile(view.shape):
                try:
                    with _compiling(view.device):
                        return self._compiled(view, attention, features)
                except Exception as problem:  # a compiler may fail in any way, which must not end the training
                    self._compiled = None
                    self.report += (f"{GIVEN_UP}: {_reason(problem)}",)
            output: SceneOutput = self._net(view, attention, features)
        return output

    def to(self, device: torch.device) -> FrozenTeacher:
        """Move to a device, in place, and return the teacher; a change of the device discards compiled code."""
        before = self.device
        self._net.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.device = next(self._net.parameters()).device
        if self._compile and self.device != before:
            allow_compiling()
            self._compiled = torch.compile(self._net, dynamic=False)
            self._shapes.clear()
        return self

    def weights_hash(self) -> str:
        """Return a hash of the weights, 16 hex digits."""
        return weights_hash(self._net)

    def _should_compile(self, shape: torch.Size) -> bool:
        self._in_a_row = self._in_a_row + 1 if shape == self._last else 1
        self._last = shape
        if self._in_a_row >= COMPILE_AFTER_REPEATS and len(self._shapes) < MAX_COMPILED_SHAPES:
            self._shapes.add(shape)
        return shape in self._shapes


def freeze(
    net: SceneNet, *, precision: Precision, device: torch.device, image_size: int, compiled: bool = False
) -> FrozenTeacher:
    """Return a fast copy of a network for inference; the network itself does not change.

    Branches are merged if timm supports it (RepVGG and similar networks), batch norms are folded into the convolution
    or linear layer before them, and the backbone's weights are stored in half precision. Normalisation of the images,
    remaining batch norms, energies, descriptors and the head are computed in float32. Merging and folding are left out
    if they change the float32 outputs on random images by more than `MAX_FOLDING_CHANGE`.

    Args:
        net: a trained network.
        precision: precision of the backbone's weights and arithmetic.
        device: device on which the copy runs.
        image_size: side of the images in pixels.
        compiled: compile the copy with `torch.compile` for batch shapes that occur several times in a row. On a CPU,
            compilation takes minutes for a deep network and saves 11 to 15 % of the time of a pass, so it is worthwhile
            from some tens of thousands of images.
    """
    with (
        torch.random.fork_rng(devices=[]),  # modules created here must not use the random numbers of the run
        torch.no_grad(),
        # the first call may come from a training step, under the student's autocast
        autocast(torch.device("cpu"), "fp32"),
        autocast(device, "fp32"),
    ):
        exact = copy.deepcopy(net).cpu().float().eval().requires_grad_(False)
        probe = _probe(net.mean.numel(), image_size)
        expected = exact(probe)
        report = []
        for step in (merge_branches, fold_batch_norms):
            exact, line = _apply_if_equal(step, exact, probe, expected)
            report.append(line)
        fast, autocast_to, line = _in_precision(exact, precision, device, probe, expected)
        report.append(line)
    if compiled:
        report.append("compile: for batch shapes that occur several times in a row")
    return FrozenTeacher(fast, tuple(report), autocast_to=autocast_to, device=device, compiled=compiled)


Step = Callable[[SceneNet, Tensor], str]


@contextmanager
def _compiling(device: torch.device) -> Iterator[None]:
    """Set up compilation: failures raise, and on a CPU the weights become constants (inductor's `freezing`).

    Constant weights are laid out once for the kernels and fused with the following operations. Passing `freezing` as an
    option of `torch.compile` has no effect, because the tracer reads the global setting.
    """
    import torch._dynamo.config as dynamo  # slow to import
    import torch._inductor.config as inductor

    with dynamo.patch(suppress_errors=False), inductor.patch(freezing=device.type == "cpu"):
        yield


def _apply_if_equal(step: Step, net: SceneNet, probe: Tensor, expected: SceneOutput) -> tuple[SceneNet, str]:
    """Return the network after a step and a line for the report; if the step fails or changes the outputs, return the
    network without it."""
    name = step.__name__.replace("_", " ")
    candidate = copy.deepcopy(net)
    try:
        line = step(candidate, probe)
        error = _error(candidate(probe), expected)
    except Exception as problem:  # the backbone may be any code
        return net, f"{name}: left out: {_reason(problem)}"
    if not error <= MAX_FOLDING_CHANGE:  # also true for NaN
        return net, f"{name}: left out: outputs would change by {error:.2g} of their norm"
    return candidate, f"{name}: {line}"


def _in_precision(
    net: SceneNet, precision: Precision, device: torch.device, probe: Tensor, expected: SceneOutput
) -> tuple[SceneNet, Precision, str]:
    """Return the network in a precision, the precision of autocast in its calls, and a line for the report."""
    if precision == "fp32":
        return net, "fp32", "fp32: weights as they are"
    if precision == "fp16" and (largest := _largest_activation(net, probe)) > MAX_FP16_ACTIVATION:
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
        except RuntimeError as problem:  # some backbones require float32 in places
            reason = f" (more would fail: {_reason(problem)})"
            continue
        if found <= MAX_HALF_TO_AUTOCAST_ERROR * usual:
            return half, autocast_to, f"{precision}: {what}{reason}; outputs change by {found:.2g} of their norm"
        reason = f" (more would change outputs by {found:.2g})"
    return net, precision, f"{precision}: by autocast alone{reason}; outputs change by {usual:.2g} of their norm"


def _halve(backbone: nn.Module, kinds: tuple[type[nn.Module], ...], dtype: torch.dtype) -> None:
    """Convert the own parameters and buffers of modules of the given kinds to `dtype`.

    Batch norms stay in float32, because rounding a variance to 16 bits causes a larger error than the arithmetic.
    """

    def half(tensor: Tensor) -> Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    for module in backbone.modules():
        if isinstance(module, kinds) and not isinstance(module, NORMS):
            module._apply(half, recurse=False)  # type: ignore[no-untyped-call]


def _largest_activation(net: SceneNet, images: Tensor) -> float:
    """Return the largest absolute value in the outputs of all modules of the backbone."""
    peaks = [images.new_zeros(())]

    def record(_: nn.Module, __: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            peaks.append(output.abs().max())

    hooks = [module.register_forward_hook(record) for module in net.backbone.modules()]
    net(images)
    for hook in hooks:
        hook.remove()
    return float(torch.stack(peaks).max())


def _probe(bands: int, size: int) -> Tensor:
    """Return two rough and two smooth random images `[4, bands, size, size]`, the same in every call."""
    generator = torch.Generator().manual_seed(0)
    rough = torch.rand(2, bands, size, size, generator=generator)
    smooth = nn.functional.interpolate(torch.rand(2, bands, 4, 4, generator=generator), size=(size, size))
    return torch.cat((rough, smooth))


def _error(output: SceneOutput, expected: SceneOutput) -> float:
    """Return the largest relative error of the tensors of an output: norm of the difference over expected norm."""
    pairs = zip(tree_leaves(output), tree_leaves(expected), strict=True)
    return float(
        torch.stack([(ours.float() - theirs).norm() / theirs.norm().clamp_min(1e-12) for ours, theirs in pairs]).max()
    )


def _reason(problem: Exception) -> str:
    lines = str(problem).strip().splitlines()
    return f"{type(problem).__name__}: {lines[0] if lines else ''}"[:160]
