"""What was found is found again, whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from scenedistill.core.errors import UserError
from scenedistill.inference.raster.progress import CELLS, DONE, PLAN, RasterProgress, read_plan

SHAPE = (6, 2, (2, 4))  # windows, classes, cells


def test_another_process_finds_stored_windows_and_the_remaining_ones(tmp_path: Path) -> None:
    first = RasterProgress.begin(tmp_path / "part", {"window": (3, 3)}, *SHAPE)
    answers = np.array([[0.25, 0.75], [1, 0], [0, 0]], np.float32)
    first.keep(np.array([0, 3, 4]), answers, [(slice(0, 1), slice(0, 2), True)])
    first.keep(np.array([1]), answers[:1], [(slice(1, 2), slice(2, 4), np.array([[True, False]]))])
    # not closed: a killed process closes nothing either
    second = RasterProgress.begin(tmp_path / "part", {"window": (3, 3)}, *SHAPE)
    assert second.done == 4 and second.remaining.tolist() == [2, 5]
    assert second.probabilities(0, 5).tolist() == [[0.25, 0.75], [0.25, 0.75], [0, 0], [1, 0], [0, 0]]
    assert second.holds_data(0).tolist() == [True, True, False, False]
    assert second.holds_data(1).tolist() == [False, False, True, False]
    first.close()
    second.close()


def test_other_settings_do_not_mix_and_a_restart_forgets(tmp_path: Path) -> None:
    progress = RasterProgress.begin(tmp_path / "part", {"window": 3, "overlap": 0.5}, *SHAPE)
    progress.keep(np.arange(6), np.ones((6, 2), np.float32), [])
    progress.close()
    with pytest.raises(UserError, match="not the same window"):
        RasterProgress.begin(tmp_path / "part", {"window": 4, "overlap": 0.5}, *SHAPE)
    again = RasterProgress.begin(tmp_path / "part", {"window": 4, "overlap": 0.5}, *SHAPE, restart=True)
    assert again.done == 0 and not again.probabilities(0, 6).any()
    again.close()


def test_a_folder_without_its_plan_is_started_again(tmp_path: Path) -> None:
    progress = RasterProgress.begin(tmp_path / "part", {}, *SHAPE)
    progress.keep(np.arange(6), np.ones((6, 2), np.float32), [])
    progress.close()
    (tmp_path / "part" / PLAN).write_text("{")
    again = RasterProgress.begin(tmp_path / "part", {}, *SHAPE)
    assert again.done == 0
    again.close()


def test_too_little_disk_space_is_reported_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="MiB left"):
        RasterProgress.begin(tmp_path / "part", {}, 10**12, 1000, (2, 2))


@pytest.mark.skipif(not hasattr(os.stat_result, "st_blocks"), reason="this system does not tell what lies on the disk")
def test_memory_mapped_files_reserve_their_disk_space(tmp_path: Path) -> None:
    RasterProgress.begin(tmp_path / "part", {}, 3_000_000, 2, (1500, 2000)).close()
    with (tmp_path / "zeros").open("wb") as file:
        file.write(bytes(3_000_000))
        file.flush()
        os.fsync(file.fileno())
    for name in (DONE, CELLS):
        found = (tmp_path / "part" / name).stat()
        assert found.st_size == 3_000_000 and found.st_blocks >= (tmp_path / "zeros").stat().st_blocks


def test_a_plan_may_gain_entries_of_a_table_and_nothing_else(tmp_path: Path) -> None:
    files = {"a.vrt": [9, 1]}
    RasterProgress.begin(tmp_path / "part", {"files": files}, *SHAPE).close()
    more = {"files": {**files, "was missing.tif": [4, 2]}}
    RasterProgress.begin(tmp_path / "part", more, *SHAPE).close()
    assert read_plan(tmp_path / "part") == more
    for other in (files, {"a.vrt": [9, 2], "was missing.tif": [4, 2]}):
        with pytest.raises(UserError, match="not the same files"):
            RasterProgress.begin(tmp_path / "part", {"files": other}, *SHAPE)
    with pytest.raises(UserError, match="not the same files"):
        RasterProgress.begin(tmp_path / "part", {}, *SHAPE)
