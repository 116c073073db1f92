"""The console of the commands."""

from __future__ import annotations

import io

from rich.table import Table

from scenedistill.terminal import plain_console


def test_no_name_is_markup_or_an_emoji() -> None:
    said = io.StringIO()
    console = plain_console(file=said, width=100)
    name = "runs/weird [/x] [v2] [bold] :car: #1"
    table = Table(title=name)
    table.add_column(name)
    table.add_row(name)
    console.print(f"It lies in {name}")
    console.print(table)
    assert said.getvalue().count(name) == 4
