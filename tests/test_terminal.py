"""The console of the commands."""

from __future__ import annotations

import io

from rich.table import Table

from scenedistill.core.terminal import counted, plain_console


def test_names_are_printed_without_markup_or_emoji() -> None:
    said = io.StringIO()
    console = plain_console(file=said, width=100)
    name = "runs/weird [/x] [v2] [bold] :car: #1"
    table = Table(title=name)
    table.add_column(name)
    table.add_row(name)
    console.print(f"It lies in {name}")
    console.print(table)
    assert said.getvalue().count(name) == 4


def test_nouns_agree_with_their_numbers() -> None:
    assert [counted(number, "image") for number in (0, 1, 2, 1024)] == [
        "0 images",
        "1 image",
        "2 images",
        "1,024 images",
    ]
    assert (counted(1, "class"), counted(2, "class")) == ("1 class", "2 classes")
    assert (counted(1.0, "epoch"), counted(0.5, "epoch")) == ("1 epoch", "0.5 epochs")
