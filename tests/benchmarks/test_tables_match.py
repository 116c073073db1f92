"""README and docs show the figures of the result files and no others."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from scenedistill.experiments.results.record import Result, Row, write_result
from tables import END, fill, main, names_in, table_of

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results"
DOCUMENTS = [path for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))] if path.is_file()]
MARKERS = [(path, name) for path in DOCUMENTS for name in names_in(path.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.name)
def test_every_result_file_is_valid(path: Path) -> None:
    assert len(table_of(path).splitlines()) > 4
    assert json.loads(path.read_text(encoding="utf-8"))["experiment"] == path.stem


@pytest.mark.parametrize(("document", "name"), MARKERS, ids=lambda value: getattr(value, "name", value))
def test_tables_equal_their_results(document: Path, name: str) -> None:
    text = document.read_text(encoding="utf-8")
    assert part(text, name) == part(fill(text, RESULTS, document.name), name), f"{document.name}: run make tables"


def test_every_result_is_shown_in_a_document() -> None:
    """Keeps the test above from passing because the markers were lost."""
    assert MARKERS or not list(RESULTS.glob("*.json")), "results/ has files, but no document has a table of them"


def part(text: str, name: str) -> str:
    """What stands between the markers of one table."""
    return text.split(f"<!-- table:{name} -->\n", 1)[1].split(END, 1)[0]


def test_a_figure_changed_by_hand_is_found(tmp_path: Path) -> None:
    """On a copy of the repository's documents and results, or on a made-up pair while there are none."""
    if MARKERS:
        document, name = tmp_path / MARKERS[0][0].name, MARKERS[0][1]
        shutil.copy(MARKERS[0][0], document)
        shutil.copytree(RESULTS, tmp_path / "results")
    else:
        document, name = tmp_path / "README.md", "made_up"
        rows = (Row("plain", "light", None, 0, oa=0.7345),)
        fields: dict[str, Any] = {
            "hardware": {},
            "versions": {},
            "data": "d",
            "pixels": 8,
            "train_ratio": 0.2,
            "split_hash": "0",
            "epochs": 1,
        }
        made = Result(name, "made up", "2026-01-31", wall_seconds=1.0, rows=rows, **fields)
        write_result(made, tmp_path / "results" / f"{name}.json")
        document.write_text(f"<!-- table:{name} -->\n{END}\n", encoding="utf-8")
    command = [str(document), "--results", str(tmp_path / "results")]
    assert main(command) == 0
    assert main([*command, "--check"]) == 0
    text = document.read_text(encoding="utf-8")
    start = text.index(f"<!-- table:{name} -->")
    figure = re.compile(r"\d\d\.\d\d").search(text, start)  # the first OA
    assert figure
    edited = f"{float(figure.group()) + 0.01:.2f}"  # better by a hundredth of a point
    document.write_text(text[: figure.start()] + edited + text[figure.end() :], encoding="utf-8")
    assert main([*command, "--check"]) == 1
