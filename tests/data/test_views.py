"""Views are a pure function of (seed, epoch, image), and vary as the settings say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from scenedistill.data.names import image_id
from scenedistill.data.views import ViewConfig, _grid, evaluation_view, training_view, uniform

WHOLE = ViewConfig(scale=(1, 1), ratio=(1, 1), turns=False, brightness=0, contrast=0, saturation=0, erasing=0)
EVERYTHING = ViewConfig(erasing=0.5)
MASK = 2**64 - 1
GAMMA = 0x9E3779B97F4A7C15


def vary(**changes: object) -> ViewConfig:
    """One thing varied, everything else held still."""
    return ViewConfig(**{**vars(WHOLE), **changes})


def noise(count: int, size: int = 24, bands: int = 3, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, size, size, bands), dtype=torch.uint8, generator=draw)


def names(count: int) -> Tensor:
    return torch.tensor([image_id(f"class/{i}.jpg") for i in range(count)])


def view(images: Tensor, ids: Tensor, config: ViewConfig, *, seed: int = 0, epoch: int = 0, size: int = 24) -> Tensor:
    return training_view(images, ids, seed=seed, epoch=epoch, size=size, config=config)


# --- the counter-based generator ---


def loop_mix(number: int) -> int:
    """The finaliser of SplitMix64, in Python's own integers."""
    z = (number + 1) * GAMMA & MASK
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
    return z ^ z >> 31


def loop_uniform(seed: int, epoch: int, name: int, column: int) -> float:
    key = loop_mix(loop_mix(seed & MASK) + epoch & MASK)
    return (loop_mix(loop_mix(key + name & MASK) + column & MASK) >> 40) / 2**24


def test_the_reference_finaliser_is_splitmix64() -> None:
    # the first five numbers of the generator seeded with 1234567, as published with many implementations of it
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    inverse = pow(GAMMA, -1, 2**64)
    for step, expected in enumerate(published, start=1):
        state = 1234567 + step * GAMMA
        assert loop_mix((state * inverse - 1) & MASK) == expected


@pytest.mark.parametrize("seed", [0, 1, 2**31, -1, -(2**63), 2**63, 2**64 - 1, 10**30])
def test_uniform_equals_a_loop(seed: int) -> None:
    ids = [0, 1, 2**62 + 5, 2**63 - 1]
    found = uniform(seed, 7, torch.tensor(ids), 5)
    assert found.dtype == torch.float32
    assert found.tolist() == [[loop_uniform(seed, 7, name, column) for column in range(5)] for name in ids]


def test_uniform_is_uniform_in_every_column() -> None:
    rows, bins = 20_000, 64
    draws = uniform(3, 1, torch.arange(rows), 14)
    assert draws.min() >= 0 and draws.max() < 1
    for column in draws.unbind(1):
        counts = torch.histc(column, bins, 0, 1)
        chi_square = float((counts - rows / bins).square().sum() / (rows / bins))
        assert abs(chi_square - (bins - 1)) < 5 * math.sqrt(2 * (bins - 1))


def test_columns_neighbours_epochs_and_seeds_are_independent() -> None:
    rows = 20_000
    ids = torch.arange(rows)
    draws = [uniform(seed, epoch, ids, 6) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    draws.append(draws[0].roll(1, 0))
    table = torch.cat(draws, 1).double()
    correlation = torch.corrcoef(table.T) - torch.eye(table.shape[1])
    assert correlation.abs().max() < 5 / math.sqrt(rows)


# --- a view is a pure function ---


def test_a_view_does_not_depend_on_the_batch() -> None:
    images, ids = noise(16), names(16)
    together = view(images, ids, EVERYTHING, seed=5, epoch=3)
    alone = torch.cat([view(images[i : i + 1], ids[i : i + 1], EVERYTHING, seed=5, epoch=3) for i in range(16)])
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    shuffled = view(images[order], ids[order], EVERYTHING, seed=5, epoch=3)
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-5)
    torch.testing.assert_close(shuffled, together[order], rtol=0, atol=1e-5)
    assert torch.equal(view(images, ids, EVERYTHING, seed=5, epoch=3), together)


def test_no_other_random_state_matters() -> None:
    images, ids = noise(4), names(4)
    expected = view(images, ids, EVERYTHING)
    torch.manual_seed(12345)
    before = torch.get_rng_state()
    assert torch.equal(view(images, ids, EVERYTHING), expected)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("seed", "epoch"), [(1, 0), (0, 1), (-1, 0), (2**63, 0)])
def test_another_seed_or_epoch_gives_other_views(seed: int, epoch: int) -> None:
    images, ids = noise(8), names(8)
    difference = (view(images, ids, EVERYTHING) - view(images, ids, EVERYTHING, seed=seed, epoch=epoch)).abs()
    assert (difference.mean((1, 2, 3)) > 0.01).all()


def test_images_of_a_batch_are_viewed_differently() -> None:
    views = view(noise(1).expand(8, -1, -1, -1), names(8), EVERYTHING)
    assert all((views[i] - views[j]).abs().mean() > 0.01 for i in range(8) for j in range(i))


@pytest.mark.parametrize("bands", [1, 3, 4, 13])
def test_a_view_has_the_documented_shape_type_and_range(bands: int) -> None:
    images = noise(3, bands=bands)
    before = images.clone()
    found = view(images, names(3), EVERYTHING, size=10)
    assert found.shape == (3, bands, 10, 10) and found.dtype == torch.float32
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert found.min() >= 0 and found.max() <= 1
    assert torch.equal(images, before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_makes_the_same_views() -> None:
    images, ids = noise(16), names(16)
    assert torch.equal(uniform(7, 3, ids.cuda(), 14).cpu(), uniform(7, 3, ids, 14))
    there = view(images.cuda(), ids.cuda(), EVERYTHING, seed=5, epoch=3).cpu()
    torch.testing.assert_close(there, view(images, ids, EVERYTHING, seed=5, epoch=3), rtol=0, atol=1e-4)


# --- what varies, and how much ---


def test_a_view_without_variation_is_the_image() -> None:
    images = noise(4)
    torch.testing.assert_close(view(images, names(4), WHOLE), images.permute(0, 3, 1, 2) / 255, rtol=0, atol=1e-4)


def test_all_eight_symmetries_occur_alike_and_exactly() -> None:
    count = 800
    pattern = noise(1, size=6)
    square = pattern[0].permute(2, 0, 1) / 255
    symmetries = torch.stack([torch.rot90(side, k, (1, 2)) for side in (square, square.flip(2)) for k in range(4)])
    views = view(pattern.expand(count, -1, -1, -1), names(count), vary(turns=True), size=6)
    distance = (views[:, None] - symmetries[None]).abs().amax((2, 3, 4))
    assert distance.amin(1).max() < 1e-4
    counts = distance.argmin(1).bincount(minlength=8)
    assert float((counts - 100).square().sum() / 100) < 7 + 5 * math.sqrt(14)  # chi-square, 7 degrees of freedom


def crops(config: ViewConfig, count: int = 300, size: int = 32) -> Tensor:
    """Left, top, width and height of crops, as shares of the image: read off images of coordinates. `[count, 4]`."""
    y, x = torch.meshgrid(torch.arange(256), torch.arange(256), indexing="ij")
    ramps = torch.stack((x, y, torch.zeros_like(x)), 2).to(torch.uint8)
    views = view(ramps.expand(count, -1, -1, -1), names(count), config, size=size) * 255
    middle, quarter = size // 2, size // 4  # away from the rim, where the coordinates are reflected
    step = torch.stack(
        [
            (v[:, -quarter - 1] - v[:, quarter]) / (size - 2 * quarter - 1)
            for v in (views[:, 0, middle], views[:, 1, :, middle])
        ],
        1,
    )
    first = torch.stack((views[:, 0, middle, quarter], views[:, 1, quarter, middle]), 1) - (quarter + 0.5) * step
    return torch.cat(((first + 0.5) / 256, step * size / 256), 1)


@pytest.mark.parametrize(
    ("scale", "ratio"), [((0.25, 1.0), (0.75, 4 / 3)), ((0.1, 0.3), (0.5, 2.0)), ((0.5, 0.5), (1, 1))]
)
def test_crops_lie_in_the_image_and_have_the_area_and_shape_asked_for(
    scale: tuple[float, float], ratio: tuple[float, float]
) -> None:
    left, top, width, height = crops(vary(scale=scale, ratio=ratio)).unbind(1)
    slack = 2e-3
    for start, side in ((left, width), (top, height)):
        assert start.min() > -slack and (start + side).max() < 1 + slack
    area = width * height
    assert area.min() > scale[0] - slack and area.max() < scale[1] + slack
    shape = width / height
    assert shape.min() > ratio[0] - 0.02 and shape.max() < ratio[1] + 0.02
    if scale[0] < scale[1]:  # the whole range is used
        assert area.min() < scale[0] + 0.1 * (scale[1] - scale[0]) and area.max() > scale[1] - 0.15 * (
            scale[1] - scale[0]
        )
    room = 1 - width
    wide = room > 0.1
    assert (left[wide] / room[wide]).min() < 0.05 and (left[wide] / room[wide]).max() > 0.95


def test_a_crop_of_the_whole_area_is_the_whole_image_whatever_its_ratio() -> None:
    left, top, width, height = crops(vary(scale=(1, 1), ratio=(0.5, 2.0))).unbind(1)
    for found, expected in ((left, 0), (top, 0), (width, 1), (height, 1)):
        assert torch.allclose(found, torch.full_like(found, expected), atol=0.02)
    _, _, width, height = crops(vary(scale=(0.9, 0.9), ratio=(0.5, 2.0))).unbind(1)
    assert torch.allclose(width * height, torch.full_like(width, 0.9), atol=0.04)


def test_brightness_is_one_factor_for_an_image_within_its_bounds() -> None:
    images = noise(300, size=8) // 2 + 20  # never clipped
    factors = view(images, names(300), vary(brightness=0.3), size=8) / (images.permute(0, 3, 1, 2) / 255)
    assert (factors.amax((1, 2, 3)) - factors.amin((1, 2, 3))).max() < 1e-3
    means = factors.mean((1, 2, 3))
    assert 0.7 - 1e-3 < means.min() < 0.75 and 1.25 < means.max() < 1.3 + 1e-3


def test_contrast_is_about_the_mean_of_the_image() -> None:
    images = noise(300, size=8) // 2 + 64
    before, after = images.permute(0, 3, 1, 2) / 255, view(images, names(300), vary(contrast=0.3), size=8)
    torch.testing.assert_close(after.mean((1, 2, 3)), before.mean((1, 2, 3)), rtol=0, atol=1e-4)
    factors = after.std((1, 2, 3)) / before.std((1, 2, 3))
    assert 0.7 - 1e-3 < factors.min() < 0.75 and 1.25 < factors.max() < 1.3 + 1e-3


def test_saturation_keeps_the_grey_and_scales_the_colour() -> None:
    images = noise(300, size=8) // 4 + 96
    before, after = images.permute(0, 3, 1, 2) / 255, view(images, names(300), vary(saturation=0.3), size=8)
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    grey_before, grey_after = (before * weights).sum(1, keepdim=True), (after * weights).sum(1, keepdim=True)
    torch.testing.assert_close(grey_after, grey_before, rtol=0, atol=1e-4)
    factors = (after - grey_after).flatten(1).norm(dim=1) / (before - grey_before).flatten(1).norm(dim=1)
    assert 0.7 - 1e-3 < factors.min() < 0.75 and 1.25 < factors.max() < 1.3 + 1e-3


@pytest.mark.parametrize("bands", [1, 2, 4])
def test_saturation_is_for_three_bands_only(bands: int) -> None:
    images = noise(4, bands=bands)
    after = view(images, names(4), vary(saturation=0.9))
    torch.testing.assert_close(after, images.permute(0, 3, 1, 2) / 255, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("probability", "low", "high"), [(1.0, 300, 300), (0.4, 90, 150)])
def test_erasing_puts_one_rectangle_of_the_mean(probability: float, low: int, high: int) -> None:
    count, size = 300, 40
    images = noise(count, size=size)
    before, after = (
        view(images, names(count), WHOLE, size=size),
        view(images, names(count), vary(erasing=probability), size=size),
    )
    changed = (before != after).any(1)  # [B, H, W]
    erased = changed.flatten(1).any(1)
    assert low <= int(erased.sum()) <= high
    areas = []
    for image in torch.nonzero(erased).flatten().tolist():
        rows, columns = changed[image].any(1).nonzero().flatten(), changed[image].any(0).nonzero().flatten()
        hole = (slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
        assert changed[image][hole].float().mean() > 0.99  # a full rectangle (a pixel may have had the mean before)
        mean = before[image].mean((1, 2))[:, None, None]
        torch.testing.assert_close(after[image][:, *hole], mean.expand_as(after[image][:, *hole]), rtol=0, atol=1e-6)
        areas.append(changed[image].sum().item() / size**2)
    assert min(areas) > 0.01 and max(areas) < 0.28 and max(areas) > 0.2


# --- the evaluation view ---


@pytest.mark.parametrize("size", [17, 24, 40])
def test_the_evaluation_view_is_an_antialiased_resize(size: int) -> None:
    y, x = np.mgrid[:48, :48]
    waves = [127 + 100 * np.sin(x / 3 + k) * np.cos(y / 5) for k in range(3)]
    image = np.stack(waves, 2).astype(np.uint8)
    expected = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR), dtype=np.float32)
    found = evaluation_view(torch.from_numpy(image)[None], size=size)
    assert found.shape == (1, 3, size, size) and found.is_contiguous(memory_format=torch.channels_last)
    assert np.abs(found[0].permute(1, 2, 0).numpy() * 255 - expected).max() <= 1.01  # Pillow rounds, twice


def test_the_evaluation_view_at_the_stored_size_is_the_image() -> None:
    images = noise(2, bands=4)
    assert torch.equal(evaluation_view(images, size=24), images.permute(0, 3, 1, 2) / 255)


@pytest.mark.parametrize("size", [1, 5, 64])
def test_the_sampling_grid_equals_torchs(size: int) -> None:
    theta = torch.randn(7, 2, 3, generator=torch.Generator().manual_seed(0))
    expected = F.affine_grid(theta, [7, 3, size, size], align_corners=False)
    torch.testing.assert_close(_grid(theta, size), expected, rtol=1e-5, atol=1e-5)
