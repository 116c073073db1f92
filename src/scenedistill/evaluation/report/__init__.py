"""One self-contained HTML page for a run or a grid; `page.write_report` makes it."""
