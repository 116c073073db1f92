"""Tensors out of the checkpoints that other people's training has written, without running code of theirs."""

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

#: Where the dictionaries of tensors in a checkpoint lie is searched this deep.
DEPTH = 4
#: Words in a dictionary's name, the one that is wanted first at equal fit: averaged weights before those of the last
#: step, and the teacher of a {student, teacher} pair, which is such an average.
PREFERRED = ("ema", "average", "teacher")


class Inert:
    """Stands for an object of settings whose own class is not needed: takes what it is given, and runs nothing."""

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


def _empty(*_: Any) -> dict[Any, Any]:
    """Stands for the maker of a dictionary with defaults."""
    return {}


def read_checkpoint(path: Path) -> dict[str, dict[str, Tensor]]:
    """The dictionaries of tensors in a file of `torch.save`: a state_dict, or a checkpoint that holds some.

    Lightning's `.ckpt`, timm's `model_best.pth.tar`, `{student, teacher}` pairs and files with averaged weights beside
    the last ones (`state_dict_ema`, `model_ema`, `ema`) are read. Of other objects only those of `HARMLESS` are
    accepted, none of which runs code of the file's.

    Returns:
        Dotted place in the file (empty for the file itself) to the tensors there by name; the preferred ones first.

    Raises:
        UserError: damaged, no named tensors in it, or objects that loading would have to run code for.
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
    """Each dictionary in which names stand for tensors; those of an optimiser are numbered, and left out."""
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
    """The classes and functions in a file that are not harmless, as part of a sentence; empty where it does not say."""
    try:
        with torch.serialization.safe_globals(HARMLESS):
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:
        return ""
    return f" of {', '.join(sorted(names)[:3])}" if names else ""


def _harmless() -> list[Any]:
    """Classes and functions, those that pickle under other names too with the name."""
    kinds = {type(np.dtype(kind)) for kind in "?bhilqBHILQefdU"}
    # torch fills dictionaries of three classes alone; to these others one of them will do
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
#: What may stand in a checkpoint beside tensors and plain Python values: numbers of NumPy, paths, dates, settings.
HARMLESS = _harmless()
