"""What the page says of a file: the work behind one request, done in a process of its own."""

from __future__ import annotations

import base64
import csv
import io
import json
import time
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from PIL import Image

from scenedistill.core.errors import UserError
from scenedistill.data.images.read import UnreadableImage, read_image, read_scene
from scenedistill.data.images.tiff_heads import read_page_headers
from scenedistill.data.names import as_cell
from scenedistill.inference.inputs import PIXEL_SCALE, TIE_POINTS, TRANSFORMATION
from scenedistill.inference.model import SceneModel, TorchSceneModel, open_model
from scenedistill.runs.network import Network
from scenedistill.serve.limits import ServeLimits

Answer = dict[str, Any]

PREVIEW = 1024  # pixels, longer side of what the page shows of an image
LOOKS = 3  # classes, from the most probable, for which Grad-CAM is shown

#: Bytes that a file may take in memory, for each pixel of the limit. A scene is decoded as a whole, and a raster by
#: windows; but its blocks may be large.
SCENE_BYTES, RASTER_BYTES = 8, 64
#: Bytes in memory for each byte of a file, where they are more than `MOST_EMPTY`: what was never written, or is one
#: colour all over, takes as long as an image.
MOST_UNPACKED, MOST_EMPTY = 2000, 64 << 20


class Answerer:
    """The networks of the page, and what they say of a file.

    Args:
        model: as `open_model` takes it.
        teacher: the same, `none`, or `auto`: that of the run, if it is there.
        device: see `open_model`.
        threads: see `open_model`.
        trust: see `open_model`.
        limits: fields of `ServeLimits`.

    Raises:
        UserError: a network cannot be opened.
    """

    def __init__(
        self,
        model: str,
        teacher: str = "auto",
        device: str = "auto",
        threads: int | None = None,
        trust: bool = False,
        **limits: Any,
    ) -> None:
        self.limits = ServeLimits(**limits)
        self.models = {"student": open_model(model, device=device, threads=threads, trust=trust)}
        path = find_teacher(self.models["student"].source) if teacher == "auto" else teacher
        if path != "none":
            self.models["teacher"] = open_model(path, device=device, threads=threads, trust=trust)
        self.no_looks = {role: why_no_looks(model) for role, model in self.models.items()}
        for role, network in self.models.items():  # the first pass takes longer, and would be shown as its time
            side = network.stored_size
            blank = np.zeros((1, side, side, network.card.bands), np.uint8)
            network.predict(blank)
            if self.no_looks[role] is None:
                look(network, blank, [0])
        self.seconds_of_window = min(timed(self.models["student"]) for _ in range(2))

    @property
    def on_cpu(self) -> bool:
        """Whether no network is on a GPU, whose driver maps far more memory than it takes."""
        for model in self.models.values():
            session = getattr(model, "session", None)  # of ONNX Runtime
            if session is not None and "CUDAExecutionProvider" in session.get_providers():
                return False
        return not torch.cuda.is_available() or all(
            getattr(model, "device", torch.device("cpu")).type == "cpu" for model in self.models.values()
        )

    def about(self) -> Answer:
        """The networks, for the head of the page."""
        keys = ("oa", "data", "method")
        return {
            role: {
                "name": model.card.name,
                "classes": list(model.card.classes),
                "bands": model.card.bands,
                "file": model.source.name,
                **{key: model.about[key] for key in keys if key in model.about},
            }
            for role, model in self.models.items()
        }

    def answer(
        self, upload: str, name: str, kind: str = "auto", window: int | None = None, overlap: float = 0.0
    ) -> Answer:
        """Look at a file, classify it, and put the results into its folder.

        Args:
            upload: its path; its ending says what it is.
            name: what the user calls it.
            kind: `scene`, `map`, or `auto`: a map when it has a georeference.
            window: side in pixels of a map's windows; that of the network's images when not given.
            overlap: share of a map's window that the next one shows again.

        Raises:
            UserError: cannot be read, or is too large.
        """
        path = Path(upload)
        width, height = check_size(path, self.limits, kind)
        place = placed_by(path) if path.suffix == ".tif" else None
        note = "It has ground control points alone: taken as one scene." if place == "points" else None
        if kind == "map" or (kind == "auto" and place == "transform"):
            from scenedistill.serve.map import map_answer, map_reason

            reason = map_reason()
            if reason is None:
                student, each = self.models["student"], self.seconds_of_window
                return map_answer(student, path, name, self.limits, each, window=window, overlap=overlap)
            if kind == "map":
                raise UserError(reason)
            note = f"Taken as one scene. {reason}"
        check_size(path, self.limits, "scene")
        answer = self._scene(path, name, width, height)
        return {**answer, "note": note}

    def _scene(self, path: Path, name: str, width: int, height: int) -> Answer:
        start = time.perf_counter()
        try:
            said = {role: self._one(model, path) for role, model in self.models.items()}
            shown = preview(path)
            if (shown.width > shown.height) != (width > height):  # a photograph that says it lies on its side
                width, height = height, width
        except UnreadableImage as problem:
            raise UserError(f"{name}: {problem.reason}.") from problem
        best = [name for role in said for name in said[role]["ranking"][: LOOKS if role == "student" else 1]]
        for role, model in self.models.items():
            self._add_looks(said[role], model, list(dict.fromkeys(best)), self.no_looks[role])
        files = write_scene(path.parent, name, said)
        for one in said.values():
            one.pop("scene")
        return {
            "kind": "scene",
            "name": name,
            "width": width,
            "height": height,
            "preview": as_uri(shown, "JPEG"),
            "networks": said,
            "seconds": time.perf_counter() - start,
            "files": files,
        }

    def _one(self, model: SceneModel, path: Path) -> Answer:
        start = time.perf_counter()
        scene = read_scene(path, model.stored_size, model.card.bands)[None]
        read = time.perf_counter()
        probabilities = model.predict(scene).probabilities[0]
        end = time.perf_counter()
        order = np.argsort(-probabilities, kind="stable")
        return {
            "scene": scene,
            "name": model.card.name,
            "ranking": [model.card.classes[k] for k in order],
            "probabilities": [round(float(probabilities[k]), 6) for k in order],
            "seconds": {"reading": read - start, "network": end - read},
        }

    def _add_looks(self, said: Answer, model: SceneModel, wanted: list[str], reason: str | None) -> None:
        if reason is not None:
            said["looks"], said["no_looks"] = {}, reason
            return
        start = time.perf_counter()
        names = [name for name in wanted if name in model.card.classes]
        maps = look(model, said["scene"], [model.card.classes.index(name) for name in names])
        said["looks"] = {name: as_uri(heat(one), "PNG") for name, one in zip(names, maps, strict=True)}
        said["seconds"]["looks"] = time.perf_counter() - start


def timed(model: SceneModel, count: int = 16) -> float:
    """Seconds that a network takes for an image, of some at once."""
    blank = np.zeros((count, model.stored_size, model.stored_size, model.card.bands), np.uint8)
    start = time.perf_counter()
    model.predict(blank)
    return (time.perf_counter() - start) / count


def find_teacher(student: Path) -> str:
    """The teacher's weights in the run that a student's file lies in; `none` where there is no run, or no teacher."""
    teacher = Network.at(student.parent).teacher
    return str(teacher.weights) if teacher and teacher.weights.is_file() else "none"


def why_no_looks(model: SceneModel) -> str | None:
    """Why there can be no Grad-CAM of this network; None where there can be."""
    if not isinstance(model, TorchSceneModel):
        return "Grad-CAM needs gradients, which this file does not give. Serve the run or a .safetensors file."
    if find_spec("pytorch_grad_cam") is None:
        return "Grad-CAM needs `pip install 'scenedistill[report]'`."
    return None


def look(model: SceneModel, scene: np.ndarray, classes: list[int]) -> np.ndarray:
    """Where a network looks for each of K classes in one scene.

    Args:
        model: of PyTorch.
        scene: uint8 `[1, H, W, bands]`.
        classes: their numbers.

    Returns:
        float32 `[K, S, S]` in 0..1.
    """
    from scenedistill.metrics.gradcam import class_activation

    assert isinstance(model, TorchSceneModel)
    images = torch.from_numpy(np.repeat(scene, len(classes), axis=0))
    maps = class_activation(model.net, images, size=model.card.image_size, classes=torch.tensor(classes))
    return maps.numpy()


def heat(activation: np.ndarray) -> Image.Image:
    """A map in 0..1 as colours that are the more opaque the larger the value; nothing where it is 0."""
    from matplotlib import colormaps

    rgba = colormaps["inferno"](0.3 + 0.65 * activation)
    rgba[..., 3] = np.clip(activation, 0, 1) ** 0.7
    return Image.fromarray(np.rint(rgba * 255).astype(np.uint8))


def preview(path: Path) -> Image.Image:
    """What the page shows of an image: at most `PREVIEW` pixels a side."""
    try:
        pixels = read_image(path, 3, at_least=PREVIEW)
    except UnreadableImage:  # two bands
        pixels = read_image(path, 1, at_least=PREVIEW)
    image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])
    image.thumbnail((PREVIEW, PREVIEW))
    return image


def as_uri(image: Image.Image, kind: str) -> str:
    """A picture as a data URI."""
    memory = io.BytesIO()
    image.save(memory, kind, quality=88)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(memory.getvalue()).decode()}"


def check_size(path: Path, limits: ServeLimits, kind: str) -> tuple[int, int]:
    """Width and height from a file's head; nothing is decoded.

    Raises:
        UserError: too many pixels, or too many bytes when decoded; or the head cannot be read.
    """
    try:
        width, height, decoded = measured(path)
    except Exception as problem:  # decoders answer broken files with nearly any exception
        raise UserError(f"{path.name} cannot be read: the file is damaged.") from problem
    if width * height > limits.pixels:
        found = f"{width:,} x {height:,} pixels, {width * height / 1e6:,.1f} million"
        raise UserError(f"{path.name} has {found}; the limit of this page is {limits.megapixels:g} million.")
    largest = limits.pixels * (SCENE_BYTES if kind == "scene" else RASTER_BYTES)
    if decoded > largest:
        raise UserError(
            f"{path.name} takes {decoded / 2**20:,.0f} MiB of memory; "
            f"the limit of this page is {largest / 2**20:,.0f} MiB."
        )
    size = path.stat().st_size
    if decoded > max(MOST_EMPTY, MOST_UNPACKED * size):
        found = f"{size / 1024:,.0f} KiB for {decoded / 2**20:,.0f} MiB of pixels"
        raise UserError(f"{path.name} has {found}: nearly all of it is empty. Cut out the part that is not.")
    return width, height


def measured(path: Path) -> tuple[int, int, int]:
    """Width, height, and bytes in memory when worked on, from a file's head."""
    if path.suffix == ".tif":
        heads = read_page_headers(path)
        first = heads[0]
        # a tile is decoded as a whole, however little of it the image shows; pages may be the bands of one image
        area = sum(head.area for head in (heads if first.samples == 1 else heads[:1]))
        deep = max(8, first.bits // 8) if first.bits > 8 else 1  # stretched in float64
        return first.width, first.height, area * first.samples * deep
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit says it better
        largest, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            with Image.open(path, formats=("JPEG", "PNG", "WEBP")) as image:
                deep = 8 if image.format == "PNG" and _png_depth(path) > 8 else 1
                return *image.size, 4 * image.width * image.height * deep
        finally:
            Image.MAX_IMAGE_PIXELS = largest


def _png_depth(path: Path) -> int:
    """Bits of a sample."""
    with path.open("rb") as file:
        return file.read(25)[24]


def placed_by(path: Path) -> str | None:
    """What puts a TIFF onto a map, with or without a coordinate system: a `transform`, or control `points` alone."""
    with tifffile.TiffFile(path) as tif:
        tags = tif.pages.first.tags
        if PIXEL_SCALE in tags or TRANSFORMATION in tags:
            return "transform"
        return "points" if TIE_POINTS in tags else None


def write_scene(folder: Path, name: str, said: dict[str, Answer]) -> list[str]:
    """`result.json` and `result.csv` of a scene: a line for each network, a column for each class."""
    labels = sorted({label for one in said.values() for label in one["ranking"]})
    with (folder / "result.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "network", "class", "confidence", *(f"p_{label}" for label in labels)])
        for role, one in said.items():
            found = dict(zip(one["ranking"], one["probabilities"], strict=True))
            best = one["ranking"][0]
            writer.writerow([name, role, as_cell(best), found[best], *(found.get(label, "") for label in labels)])
    content = [
        {
            "path": name,
            "network": role,
            "name": one["name"],
            "class": one["ranking"][0],
            "confidence": one["probabilities"][0],
            "probabilities": dict(zip(one["ranking"], one["probabilities"], strict=True)),
            "seconds": one["seconds"],
        }
        for role, one in said.items()
    ]
    (folder / "result.json").write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
    return ["result.csv", "result.json"]
