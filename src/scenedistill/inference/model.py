"""A network in use: uint8 images in, probabilities out, whatever file it comes from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from scenedistill.core.errors import UserError
from scenedistill.core.precision import autocast, compute_device, resolve_precision
from scenedistill.data.images.read import squash
from scenedistill.data.views import evaluation_view
from scenedistill.inference.exported import check_exported
from scenedistill.models.files import NetCard, load_net
from scenedistill.models.network import SceneNet
from scenedistill.runs.find import find_model
from scenedistill.runs.network import Network
from scenedistill.runs.provenance import find_provenance, read_provenance, with_stored_size

if TYPE_CHECKING:
    import onnxruntime

Images = Sequence[np.ndarray] | np.ndarray

#: `read_scene` averages boxes of pixels first where an image is this many times as large as wanted.
BOX_FROM = 6


class Predicted(NamedTuple):
    """What a network says of B images of K classes.

    Attributes:
        probabilities: softmax of the logits, float32 `[B, K]`.
        embedding: pooled feature before the head, float32 `[B, D]`.
        logits: class scores before the softmax, float32 `[B, K]`.
    """

    probabilities: np.ndarray
    embedding: np.ndarray
    logits: np.ndarray


class SceneModel(ABC):
    """A network that answers, and what is known of it.

    Images are prepared as in a run's test: squashed to a square of `card.stored_size` pixels as `read_scene` does, then
    to `card.image_size` as `evaluation_view` does. Several threads may call `predict` at once.

    Attributes:
        card: classes in the order of the probabilities, bands, sizes.
        about: what the file says of itself (`oa`, `split_hash`, `data`, `licence`, `teacher`, `method`, ...); may be
            empty.
        source: the file it comes from.
        prepares: whether the file itself takes images of any size.
    """

    prepares: ClassVar[bool] = False

    def __init__(self, card: NetCard, about: Mapping[str, Any], source: Path) -> None:
        self.card = card
        self.about = about
        self.source = source

    @property
    def stored_size(self) -> int:
        """Side in pixels to which an image is squashed first."""
        return self.card.stored_size or self.card.image_size

    def predict(self, images: Images) -> Predicted:
        """Classify images.

        Args:
            images: uint8 `[H, W, bands]` each, of any and of different sizes; one array `[B, H, W, bands]` is taken as
                it is, without a copy where its sides are `stored_size`. None at all is fine.

        Raises:
            ValueError: not uint8, or another number of bands than the network's.
        """
        for image in images if not isinstance(images, np.ndarray) else [images]:
            deep = 4 if image is images else 3
            if image.dtype != np.uint8 or image.ndim != deep or image.shape[-1] != self.card.bands:
                raise ValueError(
                    f"found {image.dtype} {list(image.shape)}, expected uint8 [H, W, {self.card.bands}] for each image"
                )
        if len(images) == 0:
            empty = np.zeros((0, len(self.card.classes)), np.float32)
            return Predicted(empty, np.zeros((0, self._width()), np.float32), empty)
        return self._answer(self._prepared(images))

    def unaided(self, images: np.ndarray) -> Predicted:
        """What the file itself makes of images `[B, H, W, bands]`, B >= 1, of any size where it `prepares`."""
        return self._answer(images)

    def _prepared(self, images: Images) -> np.ndarray:
        """One array `[B, S, S, bands]` of the stored size."""
        size = self.stored_size
        if isinstance(images, np.ndarray) and images.shape[1:3] == (size, size):
            return images
        return np.stack([squash(image, size) for image in images])

    @abstractmethod
    def _answer(self, images: np.ndarray) -> Predicted:
        """The network's word on `[B, H, W, bands]`, B >= 1."""

    @abstractmethod
    def _width(self) -> int:
        """D of the embedding."""


class TorchSceneModel(SceneModel):
    """A network of PyTorch.

    Args:
        net: put into eval mode and onto the device, in place.
        card: of the net.
        about: see `SceneModel`.
        source: its file.
        device: to compute on.
        precision: `bf16`, `fp16` or `fp32`.
    """

    def __init__(
        self,
        net: SceneNet,
        card: NetCard,
        about: Mapping[str, Any],
        source: Path,
        *,
        device: torch.device,
        precision: str,
    ) -> None:
        super().__init__(card, about, source)
        self.net: SceneNet = net.eval().requires_grad_(False)
        self.net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.device, self.precision = device, precision

    def _answer(self, images: np.ndarray) -> Predicted:
        with torch.inference_mode(), autocast(self.device, self.precision):
            view = evaluation_view(_tensor(images).to(self.device), size=self.card.image_size)
            output = self.net(view, attention=False)
        return _arrays(output.logits.float().softmax(1), output.embedding, output.logits)

    def _width(self) -> int:
        return self.net.dims.embedding


class OnnxSceneModel(SceneModel):
    """A network in ONNX Runtime, whose file prepares images itself; `session` is the runtime's own."""

    prepares = True

    def __init__(self, path: Path, *, device: str = "auto", threads: int | None = None) -> None:
        try:
            import onnxruntime as ort
        except ImportError as problem:
            raise UserError(f"{path} needs ONNX Runtime. `pip install 'scenedistill[use]'` brings it.") from problem
        options = ort.SessionOptions()
        options.log_severity_level = 3
        if threads:
            options.intra_op_num_threads = threads
        there = ort.get_available_providers()
        wanted = ["CUDAExecutionProvider"] if device != "cpu" and "CUDAExecutionProvider" in there else []
        try:
            self.session: onnxruntime.InferenceSession = ort.InferenceSession(
                str(path), options, providers=[*wanted, "CPUExecutionProvider"]
            )
        except Exception as problem:  # the runtime has classes of errors of its own, with no common base
            raise UserError(f"{path} cannot be read as an ONNX file: {str(problem)[:150]}") from problem
        try:
            notes = self.session.get_modelmeta().custom_metadata_map
        except UnicodeDecodeError as problem:
            raise UserError(f"{path} cannot be read as an ONNX file: its notes are damaged.") from problem
        card, about = read_provenance(notes, path)
        super().__init__(card, about, path)

    def _prepared(self, images: Images) -> np.ndarray:
        # the graph resizes like `squash`, to one grey level in few pixels, unless the image is very large
        sizes = {image.shape[:2] for image in images}
        if len(sizes) > 1 or max(max(size) for size in sizes) >= BOX_FROM * self.stored_size:
            return super()._prepared(images)
        return images if isinstance(images, np.ndarray) else np.stack(images)

    def _answer(self, images: np.ndarray) -> Predicted:
        outputs: Any = self.session.run(list(Predicted._fields), {"images": images})
        return Predicted(*outputs)

    def _width(self) -> int:
        shapes = {output.name: output.shape for output in self.session.get_outputs()}
        return int(shapes["embedding"][1])


class ProgramSceneModel(SceneModel):
    """A network as an exported program of PyTorch, which prepares images itself; it computes where it was exported, on
    the CPU in fp32.

    Opening it runs whatever code the file holds: PyTorch's loader unpickles weights that say they are pickled, and
    evaluates the sizes of the graph as expressions. Only a file that its user trusts may come here.
    """

    prepares = True

    def __init__(self, path: Path) -> None:
        files = {"scenedistill": "", "about": ""}
        try:
            program = torch.export.load(path, extra_files=files)
        except Exception as problem:  # a zip archive with anything in it
            raise UserError(f"{path} cannot be read as an exported program: {str(problem)[:150]}") from problem
        card, about = read_provenance(files, path)
        super().__init__(card, about, path)
        self.program = program.module()

    def _answer(self, images: np.ndarray) -> Predicted:
        with torch.inference_mode():
            return _arrays(*self.program(_tensor(images)))

    def _width(self) -> int:
        with torch.inference_mode():
            side = self.stored_size
            return int(self.program(torch.zeros(1, side, side, self.card.bands, dtype=torch.uint8))[1].shape[1])


def open_model(
    path: Path | str, *, device: str = "auto", precision: str = "auto", threads: int | None = None, trust: bool = False
) -> SceneModel:
    """Open a network for use.

    Args:
        path: a run's folder (its distilled student), the folder of one training in it, a folder of exports, or a file:
            .safetensors, .onnx or .pt2.
        device: `auto`, `cpu` or `cuda`; a .pt2 computes on the CPU.
        precision: `bf16`, `fp16`, `fp32` or `auto` of a .safetensors; the other files have their own.
        threads: CPU threads; as PyTorch or ONNX Runtime choose when not given. PyTorch's holds for the whole process.
        trust: open a .pt2, which may run any code. The other files cannot.

    Raises:
        Damaged: the file does not fit its own checksum, or that in the `export.json` beside it.
        UserError: nothing there, several candidates (their paths are listed), a file that cannot be read, or a .pt2
            that nobody says is trusted.
    """
    file = find_model(Path(path))
    check_exported(file)
    if file.suffix == ".onnx":
        return OnnxSceneModel(file, device=device, threads=threads)
    if threads:
        torch.set_num_threads(threads)
    if file.suffix == ".pt2":
        if not trust:
            raise UserError(
                f"{file} is a program: opening it runs whatever code was put into it. Give the model.safetensors or "
                "model.onnx of the same export, or --trust true (from Python: trust=True) if you know who made it."
            )
        return ProgramSceneModel(file)
    net, card = load_net(file)
    card, about = with_stored_size(card, Network.at(file.parent)), find_provenance(file)
    place = compute_device(device)
    return TorchSceneModel(net, card, about, file, device=place, precision=resolve_precision(precision, place))


def _tensor(images: np.ndarray) -> Tensor:
    """Without a copy where torch can; a read-only array it would only warn about."""
    return torch.from_numpy(images if images.flags.writeable else images.copy())


def _arrays(*outputs: Tensor) -> Predicted:
    return Predicted(*(output.float().cpu().numpy() for output in outputs))
