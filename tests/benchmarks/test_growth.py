"""The measurement of how a start grows: every stage gives a row, and the images are made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from growth import STAGES, generate, stage

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc")


@pytest.mark.parametrize("unlabelled", [0, 12])
def test_every_stage_has_a_row(unlabelled: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCENEDISTILL_CACHE", str(tmp_path / "cache"))
    data = generate(tmp_path / "labelled", 60, 3, 0)
    generate(tmp_path / "unlabelled", unlabelled, 1, 1)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.jpg")}
    assert len(before) == 60 + unlabelled
    rows = [stage(what, data, []) for what in STAGES]
    assert [(row.what, row.images, row.unlabelled) for row in rows] == [(what, 60, unlabelled) for what in STAGES]
    assert all(row.seconds >= 0 and row.peak_memory_mib >= row.imports_mib for row in rows)
    generate(data, 60, 3, 0)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.jpg")}
