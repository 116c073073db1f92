"""Inference with a network from a .safetensors, .onnx or .pt2 file: uint8 images in, probabilities out."""

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

#: `read_scene` averages blocks of pixels first if an image is at least this many times larger than the target size.
BOX_FROM = 6


class Predicted(NamedTuple):
    """Output of a network with K classes for B images.

    Attributes:
        probabilities: softmax of the logits, float32 `[B, K]`.
        embedding: pooled features before the classification head, float32 `[B, D]`.
        logits: class scores before the softmax, float32 `[B, K]`.
    """

    probabilities: np.ndarray
    embedding: np.ndarray
    logits: np.ndarray


class SceneModel(ABC):
    """A network for inference with its metadata.

    Images are prepared as in the test of a run: resized to a square of `card.stored_size` pixels as by `read_scene`,
    then to `card.image_size` as by `evaluation_view`. `predict` is thread-safe.

    Attributes:
        card: classes in the order of the probabilities, bands, sizes.
        about: metadata of the file (`oa`, `split_hash`, `data`, `licence`, `teacher`, `method`, ...); may be empty.
        source: the file of the network.
        prepares: whether the network in the file accepts images of any size and resizes them.
    """

    prepares: ClassVar[bool] = False

    def __init__(self, card: NetCard, about: Mapping[str, Any], source: Path) -> None:
        self.card = card
        self.about = about
        self.source = source

    @property
    def stored_size(self) -> int:
        """Side in pixels of the square to which an image is resized first."""
        return self.card.stored_size or self.card.image_size

    def predict(self, images: Images) -> Predicted:
        """Classify images.

        Args:
            images: B images, each uint8 `[H, W, bands]` of any size, or one array `[B, H, W, bands]`, which is not
                copied if its sides are `stored_size`. B may be 0.

        Raises:
            ValueError: an image is not uint8, or has another number of bands than the network.
        """
        for image in images if not isinstance(images, np.ndarray) else [images]:
            deep = 4 if image is images else 3
            if image.dtype != np.uint8 or image.ndim != deep or image.shape[-1] != self.card.bands:
                raise ValueError(
                    f"found {image.dtype} {list(image.shape)}, expected uint8 [H, W, {self.card.bands}] for each image"
                )
        if len(images) == 0:
            empty = np.zeros((0, len(self.card.classes)), np.float32)
            return Predicted(empty, np.zeros((0, self._embedding_width()), np.float32), empty)
        return self._run(self._prepared(images))

    def predict_unresized(self, images: np.ndarray) -> Predicted:
        """Run the network in the file on images `[B, H, W, bands]`, B >= 1, without resizing them here first."""
        return self._run(images)

    def _prepared(self, images: Images) -> np.ndarray:
        """Resize images to one array `[B, S, S, bands]` of the stored size."""
        size = self.stored_size
        if isinstance(images, np.ndarray) and images.shape[1:3] == (size, size):
            return images
        return np.stack([squash(image, size) for image in images])

    @abstractmethod
    def _run(self, images: np.ndarray) -> Predicted:
        """Run the network on uint8 images `[B, H, W, bands]`, B >= 1."""

    @abstractmethod
    def _embedding_width(self) -> int:
        """Return the length D of the embedding."""


class TorchSceneModel(SceneModel):
    """Inference with a PyTorch network.

    Args:
        net: the network; set to eval mode and moved to the device in place.
        card: card of the network.
        about: see `SceneModel`.
        source: the file of the network.
        device: device to compute on.
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

    def _run(self, images: np.ndarray) -> Predicted:
        with torch.inference_mode(), autocast(self.device, self.precision):
            view = evaluation_view(_tensor(images).to(self.device), size=self.card.image_size)
            output = self.net(view, attention=False)
        return _arrays(output.logits.float().softmax(1), output.embedding, output.logits)

    def _embedding_width(self) -> int:
        return self.net.dims.embedding


class OnnxSceneModel(SceneModel):
    """Inference with an ONNX file in ONNX Runtime; its graph also resizes the images.

    Args:
        path: the file.
        device: `auto`, `cpu` or `cuda`; the CPU is used if ONNX Runtime has no CUDA.
        threads: number of CPU threads; by default ONNX Runtime chooses it.

    Attributes:
        session: the session of ONNX Runtime.

    Raises:
        UserError: the file cannot be read, or ONNX Runtime is not installed.
    """

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
        except Exception as problem:  # the errors of ONNX Runtime have no common base class
            raise UserError(f"{path} cannot be read as an ONNX file: {str(problem)[:150]}") from problem
        try:
            notes = self.session.get_modelmeta().custom_metadata_map
        except UnicodeDecodeError as problem:
            raise UserError(f"{path} cannot be read as an ONNX file: its notes are damaged.") from problem
        card, about = read_provenance(notes, path)
        super().__init__(card, about, path)

    def _prepared(self, images: Images) -> np.ndarray:
        # the graph resizes like `squash` (few pixels differ, by one grey level) except for very large images
        sizes = {image.shape[:2] for image in images}
        if len(sizes) > 1 or max(max(size) for size in sizes) >= BOX_FROM * self.stored_size:
            return super()._prepared(images)
        return images if isinstance(images, np.ndarray) else np.stack(images)

    def _run(self, images: np.ndarray) -> Predicted:
        outputs: Any = self.session.run(list(Predicted._fields), {"images": images})
        return Predicted(*outputs)

    def _embedding_width(self) -> int:
        shapes = {output.name: output.shape for output in self.session.get_outputs()}
        return int(shapes["embedding"][1])


class ProgramSceneModel(SceneModel):
    """Inference with an exported PyTorch program on the CPU in fp32; the program also resizes the images.

    Opening the file can run any code in it: the loader of PyTorch unpickles weights that are declared as pickled, and
    evaluates sizes in the graph as expressions. Open only files that the user trusts.

    Args:
        path: the file.

    Raises:
        UserError: the file cannot be read.
    """

    prepares = True

    def __init__(self, path: Path) -> None:
        files = {"scenedistill": "", "about": ""}
        try:
            program = torch.export.load(path, extra_files=files)
        except Exception as problem:  # a zip archive with any content
            raise UserError(f"{path} cannot be read as an exported program: {str(problem)[:150]}") from problem
        card, about = read_provenance(files, path)
        super().__init__(card, about, path)
        self.program = program.module()

    def _run(self, images: np.ndarray) -> Predicted:
        with torch.inference_mode():
            return _arrays(*self.program(_tensor(images)))

    def _embedding_width(self) -> int:
        with torch.inference_mode():
            side = self.stored_size
            return int(self.program(torch.zeros(1, side, side, self.card.bands, dtype=torch.uint8))[1].shape[1])


def open_model(
    path: Path | str, *, device: str = "auto", precision: str = "auto", threads: int | None = None, trust: bool = False
) -> SceneModel:
    """Open a network for use.

    Args:
        path: folder of a run (opens its distilled student), of one training in a run, or of an export; or a file:
            .safetensors, .onnx or .pt2.
        device: `auto`, `cpu` or `cuda`; a .pt2 file always runs on the CPU.
        precision: `bf16`, `fp16`, `fp32` or `auto` for a .safetensors file; the other files have a fixed precision.
        threads: number of CPU threads; by default PyTorch or ONNX Runtime chooses it. For PyTorch it applies to the
            whole process.
        trust: allow opening a .pt2 file, which can run any code. The other files cannot.

    Raises:
        Damaged: the file does not match its checksum, in the file itself or in `export.json` beside it.
        UserError: there is no network, there are several candidates (their paths are listed), the file cannot be read,
            it is a .pt2 file and `trust` is false, or `threads` is negative.
    """
    if threads is not None and threads < 0:
        raise UserError(f"--threads {threads}: expected 1 or more.")
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
    """Convert to a tensor, without a copy unless the array is read-only or not contiguous (BGR turned to RGB)."""
    return torch.from_numpy(np.require(images, requirements=["C", "W"]))


def _arrays(*outputs: Tensor) -> Predicted:
    """Convert probabilities, embedding and logits to float32 arrays."""
    return Predicted(*(output.float().cpu().numpy() for output in outputs))
