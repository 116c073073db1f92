"""Reading of tensors from checkpoints of other training programs, without running code from the file."""

from __future__ import annotations

import argparse
import collections
import datetime
import pathlib
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scenedistill.core.errors import UserError

#: Maximum nesting depth at which dictionaries of tensors are searched in a checkpoint.
DEPTH = 4
#: Words in the name of a preferred dictionary of tensors, the most preferred first: averaged weights precede those of
#: the last step, and so does the teacher of a {student, teacher} pair, which is such an average.
PREFERRED = ("ema", "average", "teacher")


class Inert:
    """Placeholder for a settings object of any class: accepts all arguments and runs no code."""

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


def _empty(*_: Any) -> dict[Any, Any]:
    """Return an empty dictionary in place of a `defaultdict`."""
    return {}


def read_checkpoint(path: Path) -> dict[str, dict[str, Tensor]]:
    """Read the dictionaries of tensors in a file of `torch.save`: a state_dict, or a checkpoint that contains some.

    Supported are, among others, Lightning's `.ckpt`, timm's `model_best.pth.tar`, `{student, teacher}` pairs and files
    that also hold averaged weights (`state_dict_ema`, `model_ema`, `ema`). Other objects in the file must be of the
    types in `HARMLESS`, none of which runs code from the file.

    Returns:
        Dictionaries of tensors by dotted path in the file (empty for the top level), the preferred ones first.

    Raises:
        UserError: the file is damaged, holds no named tensors, or could only be loaded by running code from it.
    """
    try:
        with torch.serialization.safe_globals(HARMLESS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as problem:
        raise UserError(
            f"{path} is not a file of tensors and settings: damaged, or loading would run code{_of_what(path)}. "
            "Give a state_dict: torch.save(network.state_dict(), FILE)."
        ) from problem
    except Exception as problem:  # a hostile file may fail in any way
        reason = (str(problem) or "it is empty").splitlines()[0][:120]
        raise UserError(f"{path} cannot be read as weights: {reason}") from problem
    found = dict(_dictionaries(content, "", DEPTH))
    if not found:
        raise UserError(f"{path} holds no named tensors (found {type(content).__name__}). Save a state_dict.")
    return dict(sorted(found.items(), key=lambda item: _rank(item[0])))


def _dictionaries(content: Any, place: str, depth: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield each dictionary that maps names to tensors, with its path; states of optimisers have numbers as keys."""
    if not isinstance(content, dict) or not depth:
        return
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if tensors:
        yield place, tensors
    for name, value in content.items():
        if isinstance(name, str):
            yield from _dictionaries(value, f"{place}.{name}" if place else name, depth - 1)


def _rank(place: str) -> int:
    return next((rank for rank, word in enumerate(PREFERRED) if word in place.lower()), len(PREFERRED))


def _of_what(path: Path) -> str:
    """Return the unsupported classes and functions of a file as part of a sentence; empty if they are not known."""
    try:
        with torch.serialization.safe_globals(HARMLESS):
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:
        return ""
    return f" of {', '.join(sorted(names)[:3])}" if names else ""


def _harmless() -> list[Any]:
    """Return the accepted classes and functions, those pickled under another name as pairs with this name."""
    kinds = {type(np.dtype(kind)) for kind in "?bhilqBHILQefdU"}
    # torch fills dictionaries of three classes only, so one of these replaces the other classes
    dictionaries = [
        *("lightning.fabric.utilities.data.AttributeDict", "lightning.pytorch.utilities.parsing.AttributeDict"),
        *("lightning_fabric.utilities.data.AttributeDict", "pytorch_lightning.utilities.parsing.AttributeDict"),
        *("yacs.config.CfgNode", "easydict.EasyDict", "munch.Munch", "addict.addict.Dict"),
    ]
    objects = [
        *("omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig", "omegaconf.base.ContainerMetadata"),
        *("omegaconf.base.Metadata", "types.SimpleNamespace", "typing.Any"),
        *(f"omegaconf.nodes.{kind}Node" for kind in ("Any", "Integer", "Float", "String", "Boolean", "Path", "Bytes")),
    ]
    paths = [(pathlib.PurePosixPath, "PosixPath"), (pathlib.PureWindowsPath, "WindowsPath")]
    basic = (dict, list, tuple, set, int, float, str, complex, slice, range)
    return [
        argparse.Namespace,
        (_empty, "collections.defaultdict"),
        *(datetime.date, datetime.datetime, datetime.timedelta),
        *((kind, f"builtins.{kind.__name__}") for kind in basic),
        *((kind, f"pathlib{part}.{pure}{name}") for kind, name in paths for part in ("", "._local") for pure in _PURE),
        *(np.ndarray, np.dtype, *sorted(kinds, key=lambda kind: kind.__name__)),
        *((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
        *((np.zeros(1).__reduce__()[0], f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
        *((collections.OrderedDict, name) for name in dictionaries),
        *((Inert, name) for name in objects),
    ]


_PURE = ("", "Pure")
#: Accepted types in a checkpoint besides tensors and plain Python values: NumPy arrays, paths, dates and settings.
HARMLESS = _harmless()
