"""Published figures: plausible, sourced, found by data set and ratio, and shown with what is not certain."""

from __future__ import annotations

import pytest

from scenedistill.data.known.catalogue import CATALOG
from scenedistill.experiments.results.published import (
    CAUTION,
    PUBLISHED,
    UNVERIFIED,
    notes,
    published,
    published_rows,
    published_table,
)


def test_the_row_of_the_paper_equals_its_published_values() -> None:
    own = {(one.data, one.ratio): one.oa for one in PUBLISHED if one.method.startswith("DKD")}
    assert own == {("aid", 0.2): 0.9521, ("aid", 0.5): 0.9704, ("resisc45", 0.1): 0.9388, ("resisc45", 0.2): 0.9587}


def test_what_was_worked_out_adds_up_and_is_not_called_verified() -> None:
    """OA of the student alone, plus the stated gain, is the OA of DKD."""
    alone = {one.data: one for one in PUBLISHED if one.method == "the source paper's light CNN alone"}
    assert alone["aid"].oa + 0.0769 == pytest.approx(0.9521) and alone["resisc45"].oa + 0.0739 == pytest.approx(0.9587)
    assert all(one.ratio == 0.2 and not one.verified and "Worked out" in one.note for one in alone.values())


def test_every_figure_is_plausible_sourced_and_given_once() -> None:
    keys = [(one.method, one.data, one.ratio, one.source) for one in PUBLISHED]
    assert len(set(keys)) == len(keys)
    for one in PUBLISHED:
        assert one.data in CATALOG and one.ratio in CATALOG[one.data].train_ratios, one
        assert 0.8 < one.oa < 1 and (one.std is None or 0 < one.std < 0.01), one
        assert one.url.startswith("https://"), one
        assert "Table" in one.source or "table" in one.source, f"{one.method}: which table?"
        assert one.verified or one.note, f"{one.method}: what is not verified must say why"
        assert one.parameters is None or one.parameters > 1_000_000


def test_published_accuracy_never_falls_with_more_training_images() -> None:
    """Of each method and data set; a slip of a column would show."""
    for one in PUBLISHED:
        for other in PUBLISHED:
            if (one.method, one.data, one.source) == (other.method, other.data, other.source):
                assert (one.ratio < other.ratio) <= (one.oa < other.oa), (one, other)


def test_published_results_are_found_by_any_spelling_and_sorted() -> None:
    found = published("AID", 0.2)
    assert found == published("aid", 0.2) == published("Aerial Image Dataset", 0.2) and len(found) > 10
    assert all(one.data == "aid" and one.ratio == 0.2 for one in found)
    assert [one.oa for one in found] == sorted((one.oa for one in found), reverse=True)
    assert {one.ratio for one in published("NWPU45")} == {0.1, 0.2}
    assert published("aid", 0.3) == () and published("my own images") == () and published("eurosat", 0.8) == ()


def test_the_table_names_sources_marks_doubt_and_warns() -> None:
    table = published_table("aid", 0.2)
    lines = [line for line in table.split("\n") if line.startswith("|")]
    head = [cell.strip() for cell in lines[0].strip("|").split("|")]
    assert head == ["method", "pretraining or teacher", "OA (%)", "parameters (M)", "source"]
    assert len(lines) == 2 + len(published("aid", 0.2)) and all(line.count(" | ") == 4 for line in lines)
    paper = next(line for line in lines if "DKD" in line)
    assert "| 95.21 |" in paper and "(https://doi.org/10.11999/JEIT221017)" in paper and UNVERIFIED not in paper
    assert f"| 94.17 {UNVERIFIED} |" in next(line for line in lines if "Xu et al." in line)
    assert "| 96.91 ± 0.06 |" in next(line for line in lines if "RSP (ViTAEv2-S)" in line)
    assert table.endswith(CAUTION) and "AID, 20 % training" in table
    assert published_table("own", 0.2) == ""


def test_an_empty_column_is_left_out_and_each_note_appears_once() -> None:
    some = tuple(one for one in published("resisc45", 0.1) if one.method.startswith("RSP"))
    head, lines = published_rows(some)
    assert "parameters (M)" not in head and all(len(line) == len(head) for line in lines)
    (text,) = notes(some)
    assert text.count("five runs") == 1 and UNVERIFIED not in text and text.count("RSP") == 3
    assert notes(tuple(one for one in published("aid") if one.method == "RVSA (ViT-B)")) == []
    heading_slip = next(one for one in published("resisc45", 0.1) if one.method == "SelectiveMAE (ViT-B)")
    assert not heading_slip.verified and "heading" in heading_slip.note
    assert next(one for one in published("aid", 0.2) if one.method == "SelectiveMAE (ViT-B)").verified
