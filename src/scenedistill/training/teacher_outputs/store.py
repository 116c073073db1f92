"""Files with the teacher's outputs for numbered views of the training images, shared by all runs."""

from __future__ import annotations

import contextlib
import math
import re
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from scenedistill.core.disk import clear_parts, content_checksum, read_json, short_hash, write_json
from scenedistill.core.errors import Damaged, UserError
from scenedistill.core.terminal import plain_console
from scenedistill.losses.base import TeacherStatistics
from scenedistill.models.files import read_tensors, with_checksum
from scenedistill.models.output import SceneOutput, StageAttention

#: Version of the files; increased when the views or the packing of the same settings change.
FORMAT = 1
LARGEST = torch.finfo(torch.float16).max
SPARE_BYTES = 256 << 20  # disk space left free
LAYERS = "layers"  # setting that earlier versions lack
ABOUT, _STATISTICS = "about.json", "statistics.safetensors"
VIEW = re.compile(r"view-(\d{5})-([0-9a-f]{16})\.npy")


@dataclass(frozen=True)
class Packing:
    """Layout of the output for one image as a row of bytes: tensor after tensor, with 16 bits a number.

    Energies are bfloat16, because they are squares that can exceed the range of float16; all other tensors are float16,
    clamped to its range.

    Attributes:
        shapes: shape of each tensor of the output without the batch dimension, in flattening order.
        types: data type of each tensor.
        spec: structure of the tensors in a `SceneOutput`.
    """

    shapes: tuple[torch.Size, ...]
    types: tuple[torch.dtype, ...]
    spec: TreeSpec

    @staticmethod
    def of(output: SceneOutput) -> Packing:
        """Return the layout of outputs with the shapes of this one."""
        leaves, spec = tree_flatten(output[:3])  # neither features nor rows
        narrow, wide = torch.float16, torch.bfloat16
        stage = StageAttention(channel=narrow, spatial=narrow, energy=wide, descriptor=narrow)  # type: ignore[arg-type]
        types = tree_flatten((narrow, narrow, (stage,) * len(output.attention)))[0]
        return Packing(tuple(leaf.shape[1:] for leaf in leaves), tuple(types), spec)

    @property
    def row_bytes(self) -> int:
        """Bytes of the output for one image."""
        return sum(2 * shape.numel() for shape in self.shapes)

    def pack(self, output: SceneOutput) -> Tensor:
        """Pack the output for a batch into uint8 `[B, row_bytes]`."""
        leaves = (
            leaf.flatten(1).to(kind) if kind == torch.bfloat16 else leaf.flatten(1).clamp(-LARGEST, LARGEST).to(kind)
            for leaf, kind in zip(tree_flatten(output[:3])[0], self.types, strict=True)
        )
        return torch.cat([leaf.contiguous().view(torch.uint8) for leaf in leaves], 1)

    def unpack(self, rows: Tensor) -> SceneOutput:
        """Return the output in rows uint8 `[B, row_bytes]`, as views of the same memory."""
        leaves, start = [], 0
        for shape, kind in zip(self.shapes, self.types, strict=True):
            end = start + 2 * shape.numel()
            leaves.append(rows[:, start:end].view(kind).unflatten(1, shape))  # type: ignore[no-untyped-call]
            start = end
        return SceneOutput(*tree_unflatten(leaves, self.spec))


class KnowledgeStore:
    """Folder with one teacher's outputs for the views of one training part.

    Each view is a file with its checksum in the name, written atomically. Several runs can therefore fill a folder
    together and be killed at any moment.

    Args:
        root: folder of all stores.
        settings: everything that the outputs depend on, as plain JSON values.
        images: number N of training images.
        about: further entries of the folder's description, as plain JSON values.
        pixel_hash: function that returns the hash by which earlier versions named the images; their folders are not
            looked for when not given.
    """

    def __init__(
        self,
        root: Path,
        settings: Mapping[str, Any],
        images: int,
        about: Mapping[str, Any] | None = None,
        pixel_hash: Callable[[], str] | None = None,
    ) -> None:
        settings = {"format": FORMAT, **settings}
        self.folder = root / content_checksum(settings)
        if pixel_hash and not self.folder.exists():
            self.folder = _earlier(self.folder, settings, cache(pixel_hash)) or self.folder
        self.images = images
        self._verified: set[str] = set()  # names of the files that this process has verified
        self._about = {**(about or {}), "images": images, "settings": settings}

    def kept(self) -> set[int]:
        """Return the numbers of the stored views."""
        return set(self._views())

    def read(self, number: int, packing: Packing) -> Tensor | None:
        """Return the packed outputs for a view, uint8 `[N, row_bytes]`, memory-mapped; None if missing or damaged."""
        file = self._views().get(number)
        if file is None:
            return None
        try:
            rows = np.load(file, mmap_mode="c")  # copy-on-write, because torch needs writable memory
        except OSError:  # no permission, too many open files or just replaced: not damaged
            return None
        except (ValueError, EOFError):
            rows = np.zeros((0, 0), np.uint8)
        whole = rows.shape == (self.images, packing.row_bytes) and rows.dtype == np.uint8
        if whole and (file.name in self._verified or _checksum(rows) in file.name):
            self._verified.add(file.name)
            return torch.from_numpy(rows)
        self._print_notice(f"{file} is damaged; the teacher's outputs are computed again")
        file.unlink(missing_ok=True)
        return None

    def write(self, number: int, rows: Tensor) -> None:
        """Store the packed outputs for a view, uint8 `[N, row_bytes]`.

        Raises:
            UserError: the folder cannot be written.
        """
        self._make()
        array = rows.numpy()
        self._put(f"view-{number:05d}-{_checksum(array)}.npy", lambda file: _save(file, array))

    def read_statistics(self) -> tuple[TeacherStatistics, float] | None:
        """Return the teacher's statistics and its OA on the training images, 0..1; None if missing or damaged."""
        path = self.folder / _STATISTICS
        if not path.is_file():
            return None
        try:
            tensors, metadata = read_tensors(path)
            if set(metadata) != {"oa"}:
                raise Damaged(f"{path} is damaged: its metadata are not those that were written.")
            if "embeddings" not in tensors:  # written by an earlier release
                return None
            names, oa = sorted(tensors), float(metadata["oa"])
            means = tuple(tensors[name] for name in names if name.startswith("descriptor_mean"))
            deviations = tuple(tensors[name] for name in names if name.startswith("descriptor_std"))
            embeddings = tensors["embeddings"].float()
            return TeacherStatistics(tensors["embedding_mean"], means, deviations, embeddings), oa
        except (UserError, KeyError, ValueError):
            self._print_notice(f"{path} is damaged; the teacher's statistics are computed again")
            return None

    def write_statistics(self, statistics: TeacherStatistics, oa: float) -> None:
        """Store the teacher's statistics and its OA on the training images.

        Raises:
            UserError: the folder cannot be written.
        """
        self._make()
        tensors = {"embedding_mean": statistics.embedding_mean, "embeddings": statistics.embeddings.half()}
        for name in ("descriptor_mean", "descriptor_std"):
            tensors |= {f"{name}_{i:02d}": tensor for i, tensor in enumerate(getattr(statistics, name))}
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        content = save(tensors, with_checksum({"oa": repr(oa)}, tensors))
        self._put(_STATISTICS, lambda file: file.write(content))

    def need(self, views: int, packing: Packing) -> str:
        """Return a description of the disk space for views 0 to `views` - 1.

        Raises:
            UserError: the disk has too little space, or the folder cannot be written.
        """
        missing = len(set(range(views)) - self.kept())
        needed = missing * self.images * packing.row_bytes
        self._make()
        clear_parts(self.folder, 3600)  # younger ones may be of a run that is writing
        free = shutil.disk_usage(self.folder).free
        if needed and needed + SPARE_BYTES > free:
            raise UserError(
                f"The teacher's knowledge of {missing} more views of {self.images:,} images takes {size_text(needed)}, "
                f"and {self.folder} has {size_text(free)} free. Make room, lower --student.knowledge_views (0 keeps "
                "nothing), or give another --data.cache_dir."
            )
        whole = views * self.images * packing.row_bytes
        return (
            f"knowledge of {views} views x {self.images:,} images: {size_text(whole)}, "
            f"{views - missing} of them kept before ({self.folder.name})"
        )

    def _print_notice(self, what: str) -> None:
        plain_console(stderr=True).print(what)

    def _views(self) -> dict[int, Path]:
        found: dict[int, Path] = {}
        with contextlib.suppress(OSError):
            for file in self.folder.iterdir():
                if match := VIEW.fullmatch(file.name):
                    number = int(match[1])
                    found[number] = min(file, found.get(number, file))  # two runs may have stored it at the same time
        return found

    def _make(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not read_json(self.folder / ABOUT):  # missing or damaged
                write_json(self.folder / ABOUT, self._about, checksum=True)
        except OSError as problem:
            raise UserError(
                f"The teacher's knowledge cannot be kept in {self.folder}: {problem.strerror}. Give another "
                "--data.cache_dir, or --student.knowledge_views 0 to keep nothing."
            ) from problem

    def _put(self, name: str, write: Any) -> None:
        """Write a file atomically, also if another process writes it at the same time."""
        part = self.folder / f"{name}.{uuid.uuid4().hex}.part"
        try:
            with part.open("wb") as file:
                write(file)
            part.replace(self.folder / name)
        finally:
            part.unlink(missing_ok=True)


def _earlier(folder: Path, settings: Mapping[str, Any], pixel_hash: Callable[[], str]) -> Path | None:
    """Return the folder that an earlier version made for these settings; None if there is none.

    Its settings lack the hash of the teacher's layers. Those of the earliest ones have, in place of `content`,
    `images`: a hash over all pixels, which is computed only where the others are equal. It is then noted in the folder
    that it was found, so that the pixels are read once.
    """
    without = {name: value for name, value in settings.items() if name != LAYERS}
    for file in sorted(folder.parent.glob(f"*/{ABOUT}")):
        about = read_json(file)
        kept = dict(about["settings"]) if isinstance(about.get("settings"), dict) else {}
        images = kept.pop("images", None)
        others = {name: value for name, value in without.items() if name != "content" or images is None}
        if content_checksum(kept) != content_checksum(others):
            continue
        if images is None or about.get("found_as") == folder.name:
            return file.parent
        if images == pixel_hash():
            with contextlib.suppress(OSError):
                write_json(file, {**about, "found_as": folder.name}, checksum=True)
            return file.parent
    return None


def size_text(count: float) -> str:
    """Return a number of bytes in decimal units, such as "1.5 MB"."""
    if count < 1000:
        return f"{count:.0f} bytes"
    power = min(int(math.log10(count) / 3), 4)
    value = count / 1000**power
    return f"{value:.{0 if value >= 100 else 1}f} {('kB', 'MB', 'GB', 'TB')[power - 1]}"


def _save(file: Any, array: np.ndarray) -> None:
    """Write an array as np.save does, but raise the file's own error on a full disk."""
    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
    file.write(np.ascontiguousarray(array).data)


def _checksum(rows: np.ndarray) -> str:
    return short_hash(np.ascontiguousarray(rows).data)
