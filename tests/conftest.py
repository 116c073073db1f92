"""Fixtures for all tests: real data where it is at hand, and a tiny generated data set everywhere."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

# Under xdist each worker is one core's worth; more threads each would only fight. Alone, two are plenty for tiny tests.
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else min(2, torch.get_num_threads()))


def folder_from(variable: str) -> Path:
    """The folder an environment variable names; the test is skipped, with the reason, where there is none."""
    given = os.environ.get(variable, "")
    if not given:
        pytest.skip(f"{variable} is not set: it names the folder this test reads")
    if not Path(given).is_dir():
        pytest.skip(f"{variable} is {given}, which is not a folder")
    return Path(given).resolve()


@pytest.fixture(scope="session")
def aid_folder() -> Path:
    """The real AID images, one sub-folder for each of the 30 classes. Read only."""
    return folder_from("SCENEDISTILL_TEST_AID")


@pytest.fixture(scope="session")
def weights_folder() -> Path:
    """Pretrained ImageNet weights as safetensors files. Read only."""
    return folder_from("SCENEDISTILL_TEST_WEIGHTS")


TINY_CLASSES = ("car park", "fields", "forêt", "river")
TINY_PER_CLASS = 16
TINY_SIZE = 48  # pixels


@pytest.fixture(scope="session")
def tiny_scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 4 classes x 16 PNG images of 48 x 48 pixels, the same on every machine. Read only: tests share it.

    The classes differ by texture and not by direction, so flips and quarter turns keep them apart; colours overlap a
    little. A small CNN learns them in a few epochs.
    """
    root = tmp_path_factory.mktemp("scenes")
    rng = np.random.default_rng(0)
    for name in TINY_CLASSES:
        (root / name).mkdir()
        for number in range(TINY_PER_CLASS):
            Image.fromarray(draw_scene(name, rng)).save(root / name / f"{number:02d}.png")
    return root


def draw_scene(name: str, rng: np.random.Generator, size: int = TINY_SIZE) -> np.ndarray:
    """One scene, uint8 [size, size, 3]."""
    y, x = np.mgrid[:size, :size].astype(np.float64)
    angle, phase = rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi)
    along = x * np.cos(angle) + y * np.sin(angle)  # distance along a random direction
    if name == "car park":  # bright cars in rows on asphalt
        base, ink = (100, 100, 105), (215, 210, 200)
        share = ((x + 3 * phase) % 8 < 4) & ((y + 3 * phase) % 6 < 3)
    elif name == "fields":  # broad stripes
        base, ink = (150, 130, 70), (110, 150, 60)
        share = (np.sin(2 * np.pi * along / 12 + phase) + 1) / 2
    elif name == "forêt":  # crowns: smooth blobs of noise
        base, ink = (30, 60, 30), (70, 125, 55)
        share = np.kron(rng.random((size // 4, size // 4)), np.ones((4, 4)))
    else:  # one winding band of water through meadows
        base, ink = (105, 150, 75), (45, 80, 125)
        across = -x * np.sin(angle) + y * np.cos(angle)
        share = np.abs(across - across.mean() - 4 * np.sin(along / 8 + phase)) < 6
    image = np.array(base) + (np.array(ink) - np.array(base)) * np.asarray(share, dtype=np.float64)[..., None]
    image = image * rng.uniform(0.85, 1.15) + rng.normal(0, 8, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8)
