"""Decoded scenes, memory-mapped and verified when they are first fetched."""

from __future__ import annotations

import contextlib
import mmap
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from scenedistill.core.errors import UserError
from scenedistill.core.terminal import plain_console
from scenedistill.data.cache.decoding import decode_all
from scenedistill.data.cache.files import Images, row_checksum, take_rows
from scenedistill.data.cache.write import SceneReader
from scenedistill.data.scenes import SceneIndex


@dataclass(frozen=True, eq=False)
class SceneCache:
    """Decoded scenes.

    Attributes:
        index: the scenes that could be read; bad ones are left out when `on_bad="skip"`.
        images: uint8 `[N, size, size, bands]`, read-only; row i is `index.paths[i]`. Memory-mapped, except when the
            index is a scattered subset of what the cache holds: then those rows are copied into memory.
        size: side in pixels.
        bands: number of bands of each image.
        bad: (path, reason) of each image that was left out.
        folder: folder of the cache.
        report: what was done, such as "10,000 images: 9,998 reused, 2 decoded, 0 bad".
        checksums: `row_checksum` of each image, uint32 `[N]`; None in a cache of an older version.
        row_indices: row of each image in the file `array`, int64 `[N]`; None for scenes that are not cached.
        array: file of the array.
        reader: decodes an image again where the cache is damaged.
    """

    index: SceneIndex
    images: Images
    size: int
    bands: int
    bad: tuple[tuple[str, str], ...]
    folder: Path
    report: str = ""
    checksums: npt.NDArray[np.uint32] | None = None
    row_indices: npt.NDArray[np.int64] | None = None
    array: Path = Path()
    reader: SceneReader | None = None
    _compared: npt.NDArray[np.bool_] = field(init=False, repr=False)  # images already compared with their checksums
    _mended: dict[int, Images] = field(init=False, repr=False, default_factory=dict)  # by position: decoded again

    def __post_init__(self) -> None:
        object.__setattr__(self, "_compared", np.zeros(len(self.images), bool))

    @cached_property
    def sums(self) -> npt.NDArray[np.uint32]:
        """`checksums`, or those of the pixels as they are where the cache is of an older version and has none."""
        return self.checksums if self.checksums is not None else np.array([*map(row_checksum, self.images)], np.uint32)

    def fetch(self, positions: npt.NDArray[np.int64]) -> Images:
        """Return a copy of the images at these positions, uint8 `[n, size, size, bands]`.

        Each image is compared with its checksum when it is first fetched. A damaged one is decoded again from its file,
        and repaired in the cache if that is writable.

        Raises:
            UserError: an image is damaged, and its file is missing or was changed.
        """
        found = take_rows(self.images, positions)
        if self.checksums is not None:
            for number in np.flatnonzero(~self._compared[positions]):
                position = int(positions[number])
                if position not in self._mended and row_checksum(found[number]) != self.checksums[position]:
                    self._mended[position] = self._decoded_again(position)
                self._compared[position] = True
            for number in np.flatnonzero(np.isin(positions, list(self._mended))) if self._mended else ():
                found[number] = self._mended[int(positions[number])]
        return found

    def _decoded_again(self, position: int) -> Images:
        path = self.index.paths[position]
        if not self._mended:
            plain_console(stderr=True).print(
                f"{self.array} is damaged at {path}. It is decoded again, and so are others that are found."
            )
        assert self.reader is not None
        (scene,) = decode_all([path], self.reader.read, progress=False)
        assert self.checksums is not None and self.row_indices is not None
        if isinstance(scene, str) or row_checksum(scene) != self.checksums[position]:
            raise UserError(
                f"The decoded image of {self.index.root / path} is damaged in {self.array}, and its file now gives "
                f"another one or none. Delete {self.folder / 'manifest.json'} and give the same command again: all "
                "images are then decoded again."
            )
        with contextlib.suppress(OSError, ValueError):  # the cache may be read-only, or replaced by another process
            rows = np.lib.format.open_memmap(self.array, mode="r+")
            rows[self.row_indices[position]] = scene
            rows.flush()
        return scene

    def __getstate__(self) -> dict[str, Any]:
        """Replace the memory-mapped array by its file, so that pickling for other processes does not copy it."""
        state = dict(self.__dict__)
        if isinstance(self.images, np.memmap) and isinstance(self.images.base, mmap.mmap):  # not a slice of one
            state["images"] = Path(str(self.images.filename))
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if isinstance(state["images"], Path):
            try:
                state = {**state, "images": np.load(state["images"], mmap_mode="r")}
            except FileNotFoundError as problem:
                raise UserError(
                    f"Another command has put other images into {state['folder']} meanwhile. Give this one again."
                ) from problem
        self.__dict__.update(state)
