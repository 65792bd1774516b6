"""Prints a table to the terminal without cutting a word or a figure, however narrow the terminal is."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

COLUMN_SPACE = 3  # of a column: a space on both sides, and one between columns


def print_table(table: Table) -> None:
    """Prints a table as wide as the terminal, or as its longest words need.

    rich makes a column narrower than its words where a table is too wide, and cuts what is left over without a sign:
    200 becomes 20.
    """
    from rich.console import Console

    console = Console()
    cells = [[str(column.header), *map(str, column.cells)] for column in table.columns]
    widths = [max((len(word) for cell in column for word in cell.split()), default=0) for column in cells]
    whole = [max((len(line) for cell in column for line in cell.splitlines()), default=0) for column in cells]
    total = max(console.width, sum(widths) + COLUMN_SPACE * len(widths) + 1)
    spare = total - sum(widths) - COLUMN_SPACE * len(widths) - 1
    for column, width, longest in zip(table.columns, widths, whole, strict=True):
        extra = min(spare, max(0, longest - width))
        column.width, spare = width + extra, spare - extra
    Console(width=total).print(table)
