"""The columns of a file whose names differ, written after its path: my.csv?prompt=Frage&answer=Antwort."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qsl

from fledgling.config import UserError, did_you_mean

COLUMNS = ("text", "messages", "system", "prompt", "context", "answer", "tools", "chosen", "rejected", "label")


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
