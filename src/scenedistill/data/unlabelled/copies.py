"""Find copies of images by their content: turned, flipped, resized, or encoded again in another format."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.progress import track
from scipy.spatial import cKDTree  # type: ignore[import-untyped]
from torch import Tensor
from torch.nn import functional as F

from scenedistill.data.cache.files import Images

Fingerprints = npt.NDArray[np.void]  # [N] of `fingerprint_type`
Fetch = Callable[[npt.NDArray[np.int64]], Images]  # rows to uint8 [n, size, size, bands]

#: Cells a side of the grid over which means are taken; cells that a symmetry of the square exchanges are averaged.
CELLS = 8
#: Largest root mean square difference of the means of two copies, in grey levels. On AID, a JPEG of quality 50 differs
#: from its original by at most 1.8, and one image in a hundred has a different image nearer than 2.2.
MAX_RMS = 2.2
#: Side in pixels at which near images are compared, and smallest correlation of copies there after the mean of each
#: band is subtracted. On AID, the correlation of a JPEG of quality 50 with its original is at least 0.92 (0.96 at
#: quality 75), and that of different images at most 0.47.
COMPARE_SIDE, MIN_CORRELATION = 32, 0.85
#: Number of nearest images that each image is compared with.
NEIGHBOURS = 8
_BATCH = 64
#: All that the search depends on besides the images.
MEASURE = f"{CELLS} {MAX_RMS} {COMPARE_SIDE} {MIN_CORRELATION} {NEIGHBOURS}"


def fingerprint_type(bands: int) -> np.dtype[np.void]:
    """Return the data type of an image's fingerprint: `digest`, a hash of 128 bits over its pixels, and `means`, grey
    levels that are invariant under the symmetries of the square."""
    return np.dtype([("digest", "<u8", (2,)), ("means", "<f4", (_ORBITS * bands,))])


def compute_fingerprints(images: Images, *, fetch: Fetch | None = None, progress: bool = False) -> Fingerprints:
    """Compute the fingerprints of images, uint8 `[N, size, size, bands]`, batch by batch.

    Args:
        images: the images.
        fetch: function that reads images by row; indexes `images` when not given.
        progress: show a progress bar.
    """
    rows, fetch = np.arange(len(images)), fetch or images.__getitem__
    fingerprints = np.empty(len(rows), fingerprint_type(images.shape[3]))
    starts = range(0, len(rows), _BATCH)
    hidden = not progress or len(rows) < 50 * _BATCH
    for start in track(starts, "comparing images", console=Console(stderr=True), transient=True, disable=hidden):
        batch = np.ascontiguousarray(fetch(rows[start : start + _BATCH]))
        into = fingerprints[start : start + _BATCH]
        for image, place in zip(batch, into["digest"], strict=True):
            place[:] = digest(image)
        cells = _reduced(batch, CELLS).flatten(2)
        into["means"] = torch.einsum("oc,nbc->nbo", _FOLD, cells).flatten(1).numpy()
    return fingerprints


def digest(image: Images) -> npt.NDArray[np.uint64]:
    """Return 128 bits of a hash over the pixels of an image, uint64 `[2]`."""
    return np.frombuffer(hashlib.sha256(np.ascontiguousarray(image).data).digest()[:16], "<u8")


def copies(fingerprints: Fingerprints, fetch: Fetch, of: Fingerprints, fetch_of: Fetch) -> npt.NDArray[np.int64]:
    """Return pairs of a copy and its original, int64 `[P, 2]`: rows of `fingerprints` and of `of`.

    A copy may be flipped, turned by quarters, resized, or compressed to a JPEG of quality 50 or better: candidates are
    found by their means, and compared under the eight symmetries of the square.

    Args:
        fingerprints: fingerprints of the images that may be copies.
        fetch: function that returns these images by row.
        of: fingerprints of the images that may be originals.
        fetch_of: function that returns those images by row.
    """
    pairs = [np.empty((0, 2), np.int64)]
    if len(fingerprints) and len(of):
        tree = cKDTree(of["means"])
        for start in range(0, len(fingerprints), 4096):
            pairs += list(_copies(start, fingerprints[start : start + 4096], fetch, tree, fetch_of))
    return np.concatenate(pairs)


def _copies(
    start: int, fingerprints: Fingerprints, fetch: Fetch, tree: cKDTree, fetch_of: Fetch
) -> Iterator[npt.NDArray[np.int64]]:
    means = fingerprints["means"]
    count = min(NEIGHBOURS, tree.n)
    limit = MAX_RMS * means.shape[1] ** 0.5
    _, near = tree.query(means, k=count, distance_upper_bound=limit, workers=-1)
    mine, column = np.nonzero(near.reshape(-1, count) < tree.n)
    others = near.reshape(-1, count)[mine, column].astype(np.int64)
    for first in range(0, len(mine), _BATCH):
        here, there = mine[first : first + _BATCH] + start, others[first : first + _BATCH]
        alike = _likeness(fetch(here), fetch_of(there)) >= MIN_CORRELATION
        yield np.stack([here[alike], there[alike]], 1)


def _likeness(images: Images, others: Images) -> npt.NDArray[np.float32]:
    """Return the largest correlation of each pair of images over the eight symmetries, -1..1, float32 `[n]`."""
    ours, theirs = (_centred(batch) for batch in (images, others))
    turned = (torch.rot90(side, quarter, (2, 3)) for side in (ours, ours.flip(3)) for quarter in range(4))
    found: npt.NDArray[np.float32] = torch.stack([(t * theirs).sum((1, 2, 3)) for t in turned]).amax(0).numpy()
    return found


def _centred(images: Images) -> Tensor:
    """Reduce images to bands of mean 0 and to length 1; flat images become equal, as `means` was compared before."""
    small = _reduced(images, COMPARE_SIDE)
    small = small - small.mean((2, 3), keepdim=True)
    spread = small.square().mean((1, 2, 3), keepdim=True).sqrt()
    small = torch.where(spread < 0.5, torch.ones_like(small), small)
    return F.normalize(small.flatten(1)).view_as(small)


def _reduced(images: Images, side: int) -> Tensor:
    """Means over a grid, float32 `[n, bands, side, side]`."""
    return F.adaptive_avg_pool2d(torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float(), side)


def _fold() -> Tensor:
    """Weights `[orbits, CELLS * CELLS]` that average the cells which the symmetries exchange."""
    edge = np.minimum(np.arange(CELLS), np.arange(CELLS)[::-1])
    pair = np.maximum(edge[:, None], edge) * CELLS + np.minimum(edge[:, None], edge)
    orbit = np.unique(pair, return_inverse=True)[1].reshape(-1)
    weights = np.equal(np.arange(orbit.max() + 1)[:, None], orbit).astype(np.float32)
    return torch.from_numpy(weights / weights.sum(1, keepdims=True))


_FOLD = _fold()
_ORBITS = len(_FOLD)
