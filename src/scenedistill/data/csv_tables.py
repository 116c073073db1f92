"""Read CSV tables as spreadsheets write them, with comma, semicolon or tab as the separator."""

from __future__ import annotations

import csv
from pathlib import Path

from scenedistill.core.errors import UserError

#: What to do with a table in another encoding.
AS_UTF8 = "Save it as UTF-8 (in a spreadsheet: CSV UTF-8)."


def read_table(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Read the column names of a table, and the line number and cells by column of each row that is not empty.

    The separator is the most frequent of `,`, `;` and tab in the first line; if the first line has a blank after it,
    blanks after separators are skipped. Column names are stripped and in lower case; cells are unchanged, and "" where
    a row is too short.

    Raises:
        UserError: the file cannot be read, or is not a CSV table in UTF-8.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            head = file.readline()
            file.seek(0)
            separator = max(",;\t", key=head.count)
            reader = csv.reader(file, delimiter=separator, skipinitialspace=f"{separator} " in head)
            columns = [name.strip().lower() for name in next(reader, [])]
            empty = dict.fromkeys(columns, "")
            rows = [
                (reader.line_num, empty | dict(zip(columns, row, strict=False)))
                for row in reader
                if any(cell.strip() for cell in row)
            ]
    except UnicodeDecodeError as error:
        raise UserError(f"{path} cannot be read as a UTF-8 CSV file: {error}. {AS_UTF8}") from error
    except (OSError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a UTF-8 CSV file: {error}.") from error
    return columns, rows
