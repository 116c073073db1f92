"""Names that differ by Unicode form alone are the same; in tables and pages they are text and nothing else."""

from __future__ import annotations

import pytest

from scenedistill.data.names import as_cell, as_markdown, as_path_cell, positions_in, same_names

COMPOSED, DECOMPOSED = "\xc4cker", "A\u0308cker"


def test_names_are_the_same_whatever_their_form() -> None:
    assert positions_in([DECOMPOSED, "river", "b"], ["b", COMPOSED]) == [1, -1, 0]
    assert same_names([COMPOSED, "b"], [DECOMPOSED, "b"])
    assert not same_names([COMPOSED, "b"], ["b", DECOMPOSED])
    assert not same_names([COMPOSED], [COMPOSED, "b"])


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_cells_that_look_like_formulas_are_escaped(text: str) -> None:
    assert as_cell(text) == f"'{text}" and as_path_cell(text) == f"./{text}"


def test_other_cells_are_unchanged() -> None:
    assert as_cell("car park") == "car park" == as_path_cell("car park")


def test_markdown_shows_a_name_as_it_is() -> None:
    assert as_markdown("car park, forêt, table1_resnet") == "car park, forêt, table1_resnet"
    assert as_markdown("<img src=x onerror=alert(1)>\n# a|b") == "&lt;img src=x onerror=alert(1)&gt; \\# a\\|b"
    assert as_markdown("[a](http://b) `c` *d* _e_") == r"\[a\](http://b) \`c\` \*d\* \_e\_"
