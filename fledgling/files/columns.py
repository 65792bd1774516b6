"""The columns of a file whose names differ, written after its path: my.csv?prompt=Frage&answer=Antwort."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from fledgling.config import UserError, did_you_mean, show_name

COLUMNS = ("text", "messages", "system", "prompt", "context", "answer", "tools", "chosen", "rejected", "label")
DOCUMENT_COLUMNS, CONVERSATION_COLUMNS = COLUMNS[:1], COLUMNS[1:7]
JUDGED_COLUMNS = COLUMNS[1:]
PAIR_COLUMNS = tuple(name for name in JUDGED_COLUMNS if name not in ("answer", "label"))
MAX_LISTED = 20  # names in a message
MAX_SEEN = 1000  # names that are kept to compare with


def split_columns(source: str) -> tuple[str, dict[str, str]]:
    """Returns the path of a source, and the file's column for each of `COLUMNS` that it names.

    Raises UserError for another name, or one without a column.
    """
    path, mark, query = source.rpartition("?")
    if not mark or Path(source).exists():
        return source, {}
    columns = dict(parse_qsl(query, keep_blank_values=True))
    for name in columns or {query: ""}:
        if name not in COLUMNS or not columns.get(name):
            raise UserError(
                f"{source}: expected PATH?NAME=COLUMN&..., the NAME one of {', '.join(COLUMNS)}, got {name!r}"
                f"{did_you_mean(name, COLUMNS)}"
            )
    return path, columns


def require_names(source: str | Path, columns: Iterable[str], names: Sequence[str], what: str) -> None:
    """Raises UserError for a name after the path of `source` that is not one of `names`, those of `what` it holds."""
    if other := next((name for name in columns if name not in names), None):
        expected = ", ".join(f"?{name}=" for name in names)
        raise UserError(f"{source}: ?{other}= names no column of {what}; expected {expected}")


def fold_name(name: object) -> str:
    """Returns the name of a column as names are compared: without regard to case, and to space around it."""
    return str(name).strip().lower()


def list_names(names: Iterable[Any]) -> str:
    """Returns the names of columns for a message, "none" for no name."""
    shown = [show_name(name) for name in names]
    more = f" and {len(shown) - MAX_LISTED:,} more" if len(shown) > MAX_LISTED else ""
    return (", ".join(shown[:MAX_LISTED]) or "none") + more


class ColumnMap:
    """Finds the columns that a source names and no row has.

    Args:
        source: a path, for the error.
        columns: the name of a form's column -> the file's.
    """

    def __init__(self, source: str | Path, columns: Mapping[str, str] | None) -> None:
        self.source, self.missing = source, {fold_name(column): name for name, column in (columns or {}).items()}
        self.columns = columns or {}
        self.seen: dict[str, None] = {}

    def add(self, row: Any) -> None:
        """Notes the columns of one row."""
        if self.missing and isinstance(row, Mapping):
            for name in row:
                self.missing.pop(fold_name(name), None)
            self.seen.update(dict.fromkeys(islice(row, MAX_SEEN if len(self.seen) < MAX_SEEN else 0)))

    def require_all(self) -> None:
        """Raises UserError for a column that none of the rows has."""
        if self.seen and self.missing:
            name = next(iter(self.missing.values()))
            column = self.columns[name]
            raise UserError(
                f'{self.source}: no row has the column "{show_name(column)}" that ?{name}= names'
                f"{did_you_mean(column, map(str, self.seen))}; the columns are {list_names(self.seen)}"
            )
