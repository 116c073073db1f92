"""A record of times and memory is kept and makes a table."""

from __future__ import annotations

from pathlib import Path

import pytest

from records.figures import Figure, Figures, figures_table
from scenedistill.core.errors import UserError
from scenedistill.experiments.results.measurements import read_record, write_record
from tables import fill

FIGURES = Figures(
    experiment="stages",
    command="python benchmarks/stages.py",
    date="2026-01-31",
    hardware={"cpu": "a processor", "cores": 2, "gpu": None},
    versions={"torch": "2.6.0"},
    data="AID",
    rows=(Figure("decoding", 10_000, 8.61, 512), Figure("taking it again", 10_000, 0.114, 90)),
    notes="Nothing else ran.",
)


def test_what_is_written_is_read_and_makes_the_table_of_a_page(tmp_path: Path) -> None:
    path = write_record(FIGURES, tmp_path / "results" / "stages.json")
    assert read_record(path, Figures, Figure) == FIGURES
    assert figures_table(FIGURES).splitlines() == [
        "| what | images | seconds | images/s | peak memory (MiB) |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| decoding | 10,000 | 8.6 | 1,161 | 512 |",
        "| taking it again | 10,000 | 0.11 | 87,719 | 90 |",
        "",
        "AID; a processor, 2 cores; 2026-01-31. Nothing else ran.",
    ]
    page = fill("<!-- table:stages -->\n<!-- /table -->", path.parent, "page")
    assert figures_table(FIGURES) in page


def test_an_invalid_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no result file"):
        read_record(tmp_path / "x.json", Figures, Figure)
    (tmp_path / "x.json").write_text('{"kind": "figures", "rows": [{"what": "?"}]}')
    with pytest.raises(UserError, match="is no Figures"):
        read_record(tmp_path / "x.json", Figures, Figure)
