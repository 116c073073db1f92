"""Classification of an uploaded file, which runs in a worker process."""

from __future__ import annotations

import base64
import csv
import io
import json
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from scenedistill.core.errors import UserError
from scenedistill.data.images.read import UnreadableImage, read_image, read_scene
from scenedistill.data.names import as_cell
from scenedistill.inference.model import SceneModel, TorchSceneModel, open_model
from scenedistill.runs.network import Network
from scenedistill.serve.headers import check_size, georeference_kind
from scenedistill.serve.limits import ServeLimits
from scenedistill.serve.networks import ServedNetworks

Answer = dict[str, Any]

PREVIEW = 1024  # pixels, longer side of the preview of an image
GRAD_CAM_CLASSES = 3  # number of most probable classes for which Grad-CAM is shown


class Answerer:
    """Classifier of uploaded files with the networks of the page.

    Args:
        served: the networks.
        limits: limits on the size of a file and of a map; the defaults if None.

    Raises:
        UserError: a network cannot be opened.
    """

    def __init__(self, served: ServedNetworks, limits: ServeLimits | None = None) -> None:
        self.limits = limits or ServeLimits()
        open_one = partial(open_model, device=served.device, threads=served.threads, trust=served.trust)
        self.models = {"student": open_one(served.model)}
        path = str(served.teacher)
        if path == "auto":
            path = find_teacher(self.models["student"].source)
        if path != "none":
            self.models["teacher"] = open_one(path)
        self.grad_cam_problems = {role: grad_cam_problem(model) for role, model in self.models.items()}
        for role, network in self.models.items():  # warm-up: the first forward pass is slower
            side = network.stored_size
            blank = np.zeros((1, side, side, network.card.bands), np.uint8)
            network.predict(blank)
            if self.grad_cam_problems[role] is None:
                grad_cam_maps(network, blank, [0])
        self.seconds_of_window = min(timed(self.models["student"]) for _ in range(2))

    @property
    def on_cpu(self) -> bool:
        """Whether all networks are on the CPU; the driver of a GPU maps far more memory than it uses."""
        for model in self.models.values():
            session = getattr(model, "session", None)  # an ONNX Runtime session
            if session is not None and "CUDAExecutionProvider" in session.get_providers():
                return False
        return not torch.cuda.is_available() or all(
            getattr(model, "device", torch.device("cpu")).type == "cpu" for model in self.models.values()
        )

    def about(self) -> Answer:
        """Return a description of the networks, as JSON values, for the header of the page."""
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
        """Classify a file and write the results to its folder.

        Args:
            upload: path of the file; its suffix gives the format.
            name: name of the file given by the user.
            kind: `scene`, `map`, or `auto`: a map if the file has a georeference.
            window: side of the windows of a map in pixels; by default the image size of the network.
            overlap: share of a window of a map that the next one covers again, from 0 to below 1.

        Returns:
            The results as JSON values for the page.

        Raises:
            UserError: the file cannot be read, or it is too large.
        """
        path = Path(upload)
        width, height = check_size(path, self.limits, kind)
        place = georeference_kind(path) if path.suffix == ".tif" else None
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
        """Classify an image as one scene."""
        start = time.perf_counter()
        try:
            results = {role: self._one(model, path) for role, model in self.models.items()}
            shown = preview(path)
            if (shown.width > shown.height) != (width > height):  # rotated by its EXIF orientation
                width, height = height, width
        except UnreadableImage as problem:
            raise UserError(f"{name}: {problem.reason}.") from problem
        best = [
            name
            for role in results
            for name in results[role]["ranking"][: GRAD_CAM_CLASSES if role == "student" else 1]
        ]
        for role, model in self.models.items():
            self._add_grad_cam(results[role], model, list(dict.fromkeys(best)), self.grad_cam_problems[role])
        files = write_scene(path.parent, name, results)
        for one in results.values():
            one.pop("scene")
        return {
            "kind": "scene",
            "name": name,
            "width": width,
            "height": height,
            "preview": as_uri(shown, "JPEG"),
            "networks": results,
            "seconds": time.perf_counter() - start,
            "files": files,
        }

    def _one(self, model: SceneModel, path: Path) -> Answer:
        """Classify an image with one network."""
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

    def _add_grad_cam(self, results: Answer, model: SceneModel, wanted: list[str], reason: str | None) -> None:
        """Add the Grad-CAM maps of classes to a result, or the reason why there are none."""
        if reason is not None:
            results["looks"], results["no_looks"] = {}, reason
            return
        start = time.perf_counter()
        names = [name for name in wanted if name in model.card.classes]
        maps = grad_cam_maps(model, results["scene"], [model.card.classes.index(name) for name in names])
        results["looks"] = {name: as_uri(heat(one), "PNG") for name, one in zip(names, maps, strict=True)}
        results["seconds"]["looks"] = time.perf_counter() - start


def timed(model: SceneModel, count: int = 16) -> float:
    """Return the seconds per image of a forward pass with `count` images."""
    blank = np.zeros((count, model.stored_size, model.stored_size, model.card.bands), np.uint8)
    start = time.perf_counter()
    model.predict(blank)
    return (time.perf_counter() - start) / count


def find_teacher(student: Path) -> str:
    """Return the path of the teacher in the run of a student's file; `none` if there is no run or no teacher."""
    teacher = Network.at(student.parent).teacher
    return str(teacher.weights) if teacher and teacher.weights.is_file() else "none"


def grad_cam_problem(model: SceneModel) -> str | None:
    """Return why Grad-CAM is not available for a network; None if it is."""
    if not isinstance(model, TorchSceneModel):
        return "Grad-CAM needs gradients, which this file does not give. Serve the run or a .safetensors file."
    if find_spec("pytorch_grad_cam") is None:
        return "Grad-CAM needs `pip install 'scenedistill[report]'`."
    return None


def grad_cam_maps(model: SceneModel, scene: np.ndarray, classes: list[int]) -> np.ndarray:
    """Return the Grad-CAM maps of K classes for one scene.

    Args:
        model: a `TorchSceneModel`.
        scene: uint8 `[1, H, W, bands]`.
        classes: indices of the classes.

    Returns:
        float32 `[K, S, S]`, 0..1.
    """
    from scenedistill.metrics.gradcam import class_activation

    assert isinstance(model, TorchSceneModel)
    images = torch.from_numpy(np.repeat(scene, len(classes), axis=0))
    maps = class_activation(model.net, images, size=model.card.image_size, classes=torch.tensor(classes))
    return maps.numpy()


def heat(activation: np.ndarray) -> Image.Image:
    """Convert a Grad-CAM map in 0..1 to colours whose opacity rises with the value, from transparent at 0."""
    from matplotlib import colormaps

    rgba = colormaps["inferno"](0.3 + 0.65 * activation)
    rgba[..., 3] = np.clip(activation, 0, 1) ** 0.7
    return Image.fromarray(np.rint(rgba * 255).astype(np.uint8))


def preview(path: Path) -> Image.Image:
    """Return an image for display, at most `PREVIEW` pixels a side."""
    try:
        pixels = read_image(path, 3, at_least=PREVIEW)
    except UnreadableImage:  # it has two bands
        pixels = read_image(path, 1, at_least=PREVIEW)
    image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])
    image.thumbnail((PREVIEW, PREVIEW))
    return image


def as_uri(image: Image.Image, kind: str) -> str:
    """Encode an image as a data URI."""
    memory = io.BytesIO()
    image.save(memory, kind, quality=88)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(memory.getvalue()).decode()}"


def write_scene(folder: Path, name: str, results: dict[str, Answer]) -> list[str]:
    """Write `result.json` and `result.csv` of a scene, with one row per network and one column per class."""
    labels = sorted({label for one in results.values() for label in one["ranking"]})
    with (folder / "result.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "network", "class", "confidence", *(f"p_{label}" for label in labels)])
        for role, one in results.items():
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
        for role, one in results.items()
    ]
    (folder / "result.json").write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
    return ["result.csv", "result.json"]
