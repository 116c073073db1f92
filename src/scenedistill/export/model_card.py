"""The model card of an exported student: accuracy, speed, use and origin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from scenedistill.core.text import markdown_table
from scenedistill.data.names import as_markdown
from scenedistill.export.check import FileCheck
from scenedistill.models.files import NetCard

WHAT = {
    "model.safetensors": "weights, for `scenedistill` and PyTorch",
    "model.onnx": "ONNX, float32",
    "model.int8.onnx": "ONNX, 8-bit integers (QDQ, one scale a channel)",
    "model.pt2": "a program of `torch.export`, for PyTorch alone",
}
HEADINGS = ("MB", "OA (%)", "same class (%)", "largest logit difference", "ms, one image", "ms, 64 at once")

#: Licence identifiers of Hugging Face; any other licence is `other` there. huggingface_hub has no list of them.
LICENCES = frozenset(
    (
        *("mit", "apache-2.0", "cc0-1.0", "odc-by", "odbl", "pddl", "cc-by-3.0", "cc-by-sa-3.0", "cc-by-nc-3.0"),
        *("cc-by-4.0", "cc-by-sa-4.0", "cc-by-nd-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0"),
    )
)

USE_SCENEDISTILL = """
With `pip install scenedistill`:

```python
from pathlib import Path

from scenedistill.data.images.read import read_image
from scenedistill.inference.model import open_model

model = open_model("MODEL")
image = read_image(Path("scene.jpg"), model.card.bands)  # uint8 [height, width, bands]
probabilities = model.predict([image]).probabilities[0]
print(model.card.classes[probabilities.argmax()], probabilities.max())
```

`scenedistill predict MODEL FOLDER` does it for a folder of images or a large GeoTIFF.
"""

USE_ONNX = """
With ONNX Runtime alone; the images of a batch have one size, any size:

```python
import json

import numpy as np
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession("MODEL")
card = json.loads(session.get_modelmeta().custom_metadata_map["scenedistill"])
images = np.asarray(Image.open("scene.jpg").convert("RGB"))[None]  # uint8 [batch, height, width, 3]
probabilities, embedding, logits = session.run(None, {"images": images})
print(card["classes"][probabilities[0].argmax()])
```
"""

USE_TORCH = """
With PyTorch alone, and only where you trust the file, as loading it may run code:

```python
import json

import numpy as np
import torch
from PIL import Image

notes = {"scenedistill": ""}
program = torch.export.load("model.pt2", extra_files=notes).module()
images = torch.from_numpy(np.array(Image.open("scene.jpg").convert("RGB")))[None]  # uint8 [batch, height, width, 3]
probabilities, embedding, logits = program(images)
print(json.loads(notes["scenedistill"])["classes"][probabilities[0].argmax()])
```
"""


def model_card(
    files: Sequence[FileCheck], others: Mapping[str, Mapping[str, Any]], card: NetCard, about: Mapping[str, Any]
) -> str:
    """Return the model card in Markdown, with the YAML header that Hugging Face reads.

    Args:
        files: results of the files that passed their checks.
        others: results of the networks that were timed for comparison, see `Exported`.
        card: card of the network.
        about: provenance from the run; missing entries are left out of the model card.
    """
    parts = [
        f"---\n{yaml.safe_dump(_head(card, about), sort_keys=False, allow_unicode=True)}---",
        f"# {as_markdown(_title(card, about))}\n\n{_what_it_is(card, about)}",
        f"## Files\n\n{_files(files, others)}",
        f"## Use\n\n{_use([file.name for file in files], card.bands)}",
        f"## Classes\n\n{', '.join(map(as_markdown, card.classes))}",
        f"## Images\n\n{_images(files, card, about)}",
        f"## Where it comes from\n\n{_origin(card, about)}",
    ]
    return "\n\n".join(parts) + "\n"


def _title(card: NetCard, about: Mapping[str, Any]) -> str:
    return f"{card.name} for {'scenes of ' + str(about['data']) if 'data' in about else 'remote-sensing scenes'}"


def _head(card: NetCard, about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of the YAML header."""
    # ModelCardData of huggingface_hub would write these keys from as many lines, and it checks no values; its ModelCard
    # fills a template, which has no place for tables of files
    head: dict[str, Any] = {
        "license": _licence(about),
        "pipeline_tag": "image-classification",
        "library_name": "scenedistill",
        "tags": ["remote-sensing", "scene-classification", "knowledge-distillation", "onnx"],
    }
    if "oa" in about:
        name = str(about.get("data", "unnamed"))
        metric = {"type": "accuracy", "name": "overall accuracy (OA)", "value": round(float(about["oa"]), 4)}
        task = {"type": "image-classification"}
        result = {"task": task, "dataset": {"name": name, "type": name.lower(), "split": "test"}, "metrics": [metric]}
        head["model-index"] = [{"name": card.name, "results": [result]}]
    return head


def _licence(about: Mapping[str, Any]) -> str:
    """Return the hub's identifier of the images' licence; `other` if it is unknown or the hub does not list it."""
    name = "-".join(str(about.get("licence", "")).lower().split())
    return name if name in LICENCES else "other"


def _what_it_is(card: NetCard, about: Mapping[str, Any]) -> str:
    """Return a paragraph with the network's task, teacher and accuracy."""
    said = [f"A small network that tells {len(card.classes)} kinds of aerial and satellite scenes apart."]
    if about.get("teacher"):
        teacher, method = as_markdown(about["teacher"]), as_markdown(about.get("method"))
        said.append(f"It was distilled from {teacher} by the method {method}.")
    if "oa" in about:
        count = f" of {about['test_images']:,} images" if "test_images" in about else ""
        with_teacher = f"; its teacher reaches {about['teacher_oa']:.2%}" if "teacher_oa" in about else ""
        said.append(f"Overall accuracy on the test split{count}: **{about['oa']:.2%}**{with_teacher}.")
    return " ".join(said)


def _files(files: Sequence[FileCheck], others: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table of the files and of the networks timed for comparison."""
    said = (
        f"OA and agreement with the network in PyTorch (fp32) on {files[0].images:,} test images; times for an image "
        "on the CPU of the exporting machine, preparation of the image included."
    )
    lines = [[f"`{file.name}`", WHAT[file.name], *figures(file)] for file in files]
    lines += [["", as_markdown(name), *timed(other)] for name, other in others.items()]
    return f"{said}\n\n{markdown_table(['file', 'what', *HEADINGS], lines)}"


def figures(file: FileCheck) -> list[str]:
    """Return the results of a file as table cells for `HEADINGS`."""
    shares = (f"{100 * file.oa:.2f}", f"{100 * file.equal:.2f}", f"{file.difference:.1e}")
    return [f"{file.bytes / 1e6:.1f}", *shares, *_times(file.milliseconds)]


def timed(other: Mapping[str, Any]) -> list[str]:
    """Return the results of a network timed for comparison as table cells for `HEADINGS`."""
    return [f"{other['bytes'] / 1e6:.1f}", "", "", "", *_times(other["milliseconds"])]


def _times(milliseconds: Mapping[str, float]) -> list[str]:
    return [f"{milliseconds[batch]:.2f}" if batch in milliseconds else "" for batch in ("1", "64")]


def _use(names: Sequence[str], bands: int) -> str:
    """Return an example in Python for each kind of file; images of other than three bands come from a NumPy file."""
    shown = [USE_SCENEDISTILL.replace("MODEL", names[0])]
    if onnx := next((name for name in names if name.endswith(".onnx")), None):
        shown.append(USE_ONNX.replace("MODEL", onnx))
    if "model.pt2" in names:
        shown.append(USE_TORCH)
    text = "\n\n".join(text.strip() for text in shown)
    if bands != 3:
        text = text.replace("from PIL import Image\n", "").replace("width, 3]", f"width, {bands}]")
        text = text.replace('Image.open("scene.jpg").convert("RGB")', 'np.load("scene.npy")')
    return text


def _images(files: Sequence[FileCheck], card: NetCard, about: Mapping[str, Any]) -> str:
    """Return the section on the preparation of images, and how closely the files reproduce it."""
    stored = card.stored_size or card.image_size
    normal = about.get("normalisation")
    statistics = f" ({normal['mean']} and {normal['std']})" if normal else ""
    said = [
        f"uint8, {card.bands} band{'s' if card.bands > 1 else ''}, any size. An image is squashed to a square of "
        f"{stored} pixels (bicubic, antialiased), then seen at {card.image_size} pixels in 0..1 (bilinear, "
        f"antialiased), and normalised with the mean and standard deviation the backbone expects{statistics}. The ONNX "
        "files and the program do all of this by themselves, and `open_model` does it for the weights: give plain "
        "pixels. Windows that cover as much ground as the training images did give the best results."
    ]
    for file in files:
        pairs = ((file.from_files, "test files in their own size"), (file.other_sizes, "pictures of another size"))
        for seen, what in pairs:
            if seen:
                said.append(
                    f"`{file.name}` was also given {seen['images']:.0f} {what}: it names {seen['equal']:.1%} as it "
                    f"does when they are prepared for it, and the largest difference of a logit is "
                    f"{seen['difference']:.1e}."
                )
    return "\n\n".join(said)


def _origin(card: NetCard, about: Mapping[str, Any]) -> str:
    """Return the list with the provenance of the network and the licence of the data."""
    licence = about.get("licence")
    facts = {
        "data": about.get("data"),
        "licence of the data": f"{licence}. Whether it also binds a network trained on them is for you to judge."
        if licence
        else "not known to scenedistill; ask the provider of the images.",
        "reference of the data": " ".join(filter(None, (about.get("reference"), _doi(about)))) or None,
        "train ratio": about.get("train_ratio"),
        "seed": about.get("seed"),
        "hash of the split": about.get("split_hash"),
        "hash of the weights": about.get("weights_hash"),
        "network": f"{card.name}, {'with' if card.dual_attention else 'without'} dual attention",
        "started from": f"pretrained weights, {about['started_from']}" if "started_from" in about else None,
        "method": about.get("method"),
        "teacher": about.get("teacher"),
        "tested in": about.get("precision"),
        "made by": f"scenedistill {about['scenedistill']}" if "scenedistill" in about else None,
    }
    return "\n".join(f"- {name}: {as_markdown(value)}" for name, value in facts.items() if value is not None)


def _doi(about: Mapping[str, Any]) -> str | None:
    return f"(doi:{about['doi']})" if about.get("doi") else None
