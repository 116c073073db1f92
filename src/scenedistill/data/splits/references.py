"""Find the image of a data set that a line of a split file refers to."""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from functools import cached_property
from pathlib import PurePosixPath

from scenedistill.core.errors import UserError
from scenedistill.data.known.catalogue import normalise
from scenedistill.data.names import nfc
from scenedistill.data.scenes import SceneIndex
from scenedistill.data.walk import IMAGE_SUFFIXES


class ImageFinder:
    """Find the position in the index of an image that a split file refers to."""

    def __init__(self, index: SceneIndex) -> None:
        self.index = index
        self.spelt = {p: i for i, p in enumerate(index.paths)}

    @cached_property
    def paths(self) -> dict[str, int]:
        """Positions by path in Unicode form NFC."""
        return {nfc(p): i for i, p in enumerate(self.index.paths)}

    @cached_property
    def names(self) -> dict[str, list[int]]:
        """Positions by base name, and by base name without suffix."""
        names: dict[str, list[int]] = defaultdict(list)
        for i, path in enumerate(self.index.paths):
            name = PurePosixPath(nfc(path))
            names[name.name].append(i)
            if name.stem != name.name:
                names[name.stem].append(i)
        return names

    def __call__(self, image: str, place: str) -> int:
        found = self.candidates(image)
        if len(found) == 1:
            return found[0]
        if found:
            some = ", ".join(repr(self.index.paths[i]) for i in found[:3])
            raise UserError(f"{place}: {image!r} is ambiguous, it may be {some}. Write the path from the data folder.")
        known = self.paths if "/" in image else {PurePosixPath(path).name: None for path in self.paths}
        close = difflib.get_close_matches(image, known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise UserError(f"{place}: no image {image!r} in {self.index.root}.{hint}")

    def candidates(self, image: str) -> list[int]:
        """Return the positions that `image` may mean: a path from the root, the end of one, or a name with any suffix.

        It is tried as written, then with back-slashes as slashes, then without blanks at its ends."""
        if image in self.spelt:
            return [self.spelt[image]]
        return next((found for text in (image, image.strip()) if (found := self._like(text))), [])

    def _like(self, image: str) -> list[int]:
        if nfc(image) in self.paths:
            return [self.paths[nfc(image)]]
        reference = PurePosixPath(nfc(image))
        if len(reference.parts) == 1 and reference.name in self.names:
            return self.names[reference.name]
        reference = PurePosixPath(nfc(image.replace("\\", "/")))
        if str(reference) in self.paths:
            return [self.paths[str(reference)]]
        is_image = reference.suffix.lower() in IMAGE_SUFFIXES
        # torchgeo lists EuroSAT's GeoTIFFs as .jpg, so the base name without its suffix is tried last
        same = self.names.get(reference.name) or (self.names.get(reference.stem, []) if is_image else [])
        if len(reference.parts) == 1:
            return same
        return [i for i in same if _same_folder(reference, PurePosixPath(nfc(self.index.paths[i])))]

    def with_class(self, text: str, place: str) -> tuple[int, str | None]:
        """Return position and class name of RSP's "image class" or "image", either of which may hold spaces."""
        cuts = [(text, None), *((text[: m.start()], text[m.end() :]) for m in re.finditer(r"\s+", text))]
        for image, given in cuts:
            found = self.candidates(image)
            if given is not None and len(found) > 1:  # the class tells equal base names apart
                label = normalise(given)
                found = [i for i in found if normalise(self.index.classes[self.index.labels[i]]) == label] or found
            if len(found) == 1:
                return found[0], given
        return self(next((image for image, _ in cuts if self.candidates(image)), cuts[-1][0]), place), None

    def check_label(self, position: int, given: str, place: str) -> None:
        own = self.index.classes[self.index.labels[position]]
        if nfc(given) != nfc(own) and (not normalise(own) or normalise(given) != normalise(own)):
            raise UserError(
                f"{place}: label {given!r} disagrees with the folder; {self.index.paths[position]!r} is of {own!r}."
            )


def _same_folder(a: PurePosixPath, b: PurePosixPath) -> bool:
    """Whether the folders of two paths agree as far as the shorter one goes, counted from the file upwards."""
    pairs = list(zip(reversed(a.parent.parts), reversed(b.parent.parts), strict=False))
    return all(x == y for x, y in pairs)
