"""Two-dimensional maps of embeddings (t-SNE), and the class purity of their neighbourhoods."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from scenedistill.core.errors import UserError
from scenedistill.core.precision import autocast
from scenedistill.data.batches import ScenePart
from scenedistill.data.views import evaluation_view
from scenedistill.models.network import SceneNet

COMPONENTS = 50  # principal components kept before t-SNE, as its authors do
FEWEST = 5  # images needed for a map


def embedding_map(embeddings: np.ndarray, *, perplexity: float = 30.0, seed: int = 0) -> np.ndarray:
    """Map embeddings to a plane by scikit-learn's t-SNE (van der Maaten and Hinton, JMLR 2008), initialised by PCA.

    The same embeddings give the same map on the same machine. Only neighbourhoods are meaningful: cluster sizes and
    distances between clusters are not. Takes half a minute for 1500 images on one core.

    Args:
        embeddings: float `[N, D]`, 5 images or more.
        perplexity: effective number of neighbours; lowered where there are few images.
        seed: random seed.

    Returns:
        float32 `[N, 2]` in -1..1; the wider of the two axes spans this range.

    Raises:
        UserError: fewer than 5 images, all embeddings the same, or scikit-learn is not installed.
        ValueError: values that are not finite.
    """
    try:
        from sklearn.decomposition import PCA
        from sklearn.manifold import TSNE
    except ImportError as problem:
        raise UserError(
            f"A map of embeddings needs the package scikit-learn ({problem}).\n"
            "Install it: pip install 'scenedistill[report]'"
        ) from problem
    if embeddings.ndim != 2 or not np.isfinite(embeddings).all():
        raise ValueError(f"embeddings of {list(embeddings.shape)}; expected [N, D], all finite")
    if len(embeddings) < FEWEST:
        raise UserError(f"A map of embeddings needs {FEWEST} images or more, and there are {len(embeddings)}.")
    wide = embeddings.astype(np.float64)
    if not np.ptp(wide, axis=0).any():
        raise UserError("All images have the same embedding: the network tells none of them apart, and has no map.")
    kept = min(COMPONENTS, *wide.shape)
    principal = PCA(kept, svd_solver="full").fit_transform(wide)
    few = min(perplexity, (len(wide) - 1) / 3)
    start = "pca" if kept > 1 else "random"
    placed = TSNE(2, perplexity=few, init=start, learning_rate="auto", random_state=seed).fit_transform(principal)
    placed = placed - (placed.max(0) + placed.min(0)) / 2
    scaled: np.ndarray = (placed / max(np.abs(placed).max(), 1e-12)).astype(np.float32)
    return scaled


def neighbour_purity(embeddings: np.ndarray, labels: np.ndarray, *, neighbours: int = 10) -> float:
    """Compute the mean share, 0..1, of an image's nearest neighbours (by cosine) that are of its class.

    Args:
        embeddings: float `[N, D]`, 2 images or more.
        labels: true classes, int `[N]`.
        neighbours: number of neighbours; all other images where there are fewer.
    """
    if len(embeddings) < 2 or len(embeddings) != len(labels):
        raise ValueError(f"{len(embeddings)} embeddings, {len(labels)} labels; expected as many, 2 or more")
    unit = F.normalize(torch.from_numpy(embeddings).float(), dim=1)
    wanted, classes = min(neighbours, len(unit) - 1), torch.from_numpy(labels)
    shares = []
    for start in range(0, len(unit), 1024):  # avoids the whole N x N matrix
        alike = unit[start : start + 1024] @ unit.T
        own = torch.arange(start, start + len(alike))
        alike[own - start, own] = -torch.inf
        nearest = alike.topk(wanted, dim=1).indices
        shares.append((classes[nearest] == classes[own][:, None]).float().mean(1))
    return float(torch.cat(shares).mean())


def embeddings_of(
    net: SceneNet, part: ScenePart, *, image_size: int, device: torch.device, precision: str, batch_size: int = 100
) -> np.ndarray:
    """Compute the embedding of each image's evaluation view, float32 `[N, D]`, in the order of the part.

    Args:
        net: network; set to eval mode and moved to the device.
        part: N images.
        image_size: side of the evaluation view in pixels.
        device: device of the computation.
        precision: `bf16`, `fp16` or `fp32`.
        batch_size: images of one pass.
    """
    net.eval().to(device)
    found = [torch.zeros(0, net.dims.embedding)]
    with torch.inference_mode(), autocast(device, precision):
        for batch in part.batches(batch_size):
            view = evaluation_view(batch.images.to(device), size=image_size)
            found.append(net(view, attention=False).embedding.float().cpu())
    return torch.cat(found).numpy()


def even_sample(labels: np.ndarray, limit: int) -> np.ndarray:
    """Return the positions of at most `limit` images, stratified by class and evenly spaced, in order, int64.

    Args:
        labels: int `[N]`.
        limit: maximum number of images, 1 or more.
    """
    by_class = np.argsort(labels, kind="stable")
    if len(labels) <= limit:
        return np.arange(len(labels))
    chosen: np.ndarray = np.sort(by_class[np.linspace(0, len(labels) - 1, limit).round().astype(np.int64)])
    return chosen
