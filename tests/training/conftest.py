"""The tiny scenes as a cache and as splits, and the shortest way to train on them."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.callbacks import Callback
from rich.console import Console

from scenedistill.config import MachineConfig
from scenedistill.data.batches import ScenePart
from scenedistill.data.cache.build import SceneCache, build_cache
from scenedistill.data.module import SceneDataModule
from scenedistill.data.scenes import scan
from scenedistill.data.splits.draw import Split, assemble
from scenedistill.data.views import ViewConfig
from scenedistill.training.base import SceneTraining
from scenedistill.training.fitting import fit

Train = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def tiny_cache(tiny_scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> SceneCache:
    """The 64 tiny scenes, decoded at 32 pixels."""
    return build_cache(scan(tiny_scenes), 32, folder=tmp_path_factory.mktemp("cache") / "32", progress=False)


@pytest.fixture(scope="session")
def all_train(tiny_cache: SceneCache) -> Split:
    """Every image trains."""
    return assemble(tiny_cache.index, np.zeros(len(tiny_cache.index), np.int8), None, None)


@pytest.fixture(scope="session")
def all_images(tiny_cache: SceneCache) -> ScenePart:
    return ScenePart(tiny_cache, np.arange(len(tiny_cache.index)))


@pytest.fixture(scope="session")
def mild() -> ViewConfig:
    """Views that vary little: what is to be learnt by heart is then seen nearly as it is."""
    return ViewConfig(scale=(0.8, 1.0), brightness=0.1, contrast=0.1, saturation=0.1)


PLAIN = MachineConfig(accelerator="cpu", precision="fp32")


@pytest.fixture(scope="session")
def train_in(tiny_cache: SceneCache, all_train: Split) -> Train:
    """Runs `fit` on the tiny scenes in a folder, on one CPU in fp32 by itself; gives its record and what it printed."""

    def run(
        folder: Path,
        module: SceneTraining,
        *,
        split: Split = all_train,
        machine: MachineConfig = PLAIN,
        callbacks: Sequence[Callback] = (),
        **batches: Any,
    ) -> dict[str, Any]:
        said = io.StringIO()
        data = SceneDataModule(tiny_cache, split, batch_size=module.fit.batch_size, seed=module.seed, **batches)
        console = Console(file=said, width=200)
        record = fit(module, data, folder, machine, title="tiny", console=console, callbacks=callbacks)
        return {**record, "said": said.getvalue()}

    return run


@pytest.fixture
def train(train_in: Train, tmp_path: Path) -> Train:
    """The same in a sub-folder of the test's own."""
    return lambda module, *, folder="stage", **more: train_in(tmp_path / folder, module, **more)
