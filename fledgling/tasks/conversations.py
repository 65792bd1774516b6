"""Conversations for supervised training: rows of a user's files in the forms of text/forms.py, or of a public set.

A million conversations need not fit in memory. The files are indexed as blocks (parquet row groups, 1,024 lines of
JSONL); an epoch shuffles the blocks, and the rows of each block, so that sequential reading touches one block at a time
and example i is still a pure function of (seed, i). There is no evaluation: such rows have no right answer.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate
from pathlib import Path

from fledgling.config import UserError
from fledgling.files import (
    ROW_FILES,
    BadRows,
    ColumnMap,
    FileStamps,
    Row,
    RowBlock,
    is_row_file,
    list_folder,
    list_row_blocks,
    require_names,
    stat_files,
)
from fledgling.files.columns import CONVERSATION_COLUMNS
from fledgling.tasks.task import TRAIN, shuffle_indices
from fledgling.text.forms import EXPECTED, parse_conversation

CHANGES = {  # what `parse_conversation` counts
    "assistant first": "of the assistant before the user's first",
    "empty": "empty",
    "joined": "joined to the one before",
    "not answered": "without an answer",
    "system": "of the system among the others",
}


@dataclass(frozen=True)
class ConversationDataset:
    """Conversations in files, each once an epoch, in an order that is shuffled for every epoch."""

    name: str
    list_files: Callable[[], Sequence[Path]]
    contents: str = ""  # what is read of a folder and passed over, and which messages are changed
    columns: Mapping[str, str] | None = None  # the name of a form's column -> the files', where they differ

    def __len__(self) -> int:
        """Returns the conversations of one epoch."""
        return sum(block.row_count for block in _list_blocks(self._stamps))

    def files(self) -> list[Path]:
        """Returns the files. Raises UserError where there are none."""
        return list(self.list_files())

    def get_train_conversation(self, index: int, seed: int) -> dict:
        """Returns conversation `index` of `seed`. Raises UserError with its location for a row that is none."""
        epoch, position = divmod(index, len(self))
        sequence, ends = _shuffle_blocks(self._stamps, self.name, seed, epoch)
        block_position = bisect_right(ends, position)
        block_index = sequence[block_position]
        rows = _read_rows(self._stamps, block_index)
        row_order = shuffle_indices(len(rows), self.name, TRAIN, seed, epoch, block_index)
        value, location = rows[row_order[position - (ends[block_position - 1] if block_position else 0)]]
        return _parse_row(value, location, self.columns)

    @cached_property
    def _stamps(self) -> FileStamps:
        return stat_files(self.files())


@lru_cache(maxsize=8)
def _list_blocks(files: FileStamps) -> tuple[RowBlock, ...]:
    return tuple(block for path, *_ in files for block in list_row_blocks(path))


@lru_cache(maxsize=4)
def _read_rows(files: FileStamps, block_index: int) -> tuple[tuple[Row | UserError, str], ...]:
    return tuple(_list_blocks(files)[block_index].iterate_rows())


@lru_cache(maxsize=8)
def _shuffle_blocks(files: FileStamps, name: str, seed: int, epoch: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the block indices in the order of an epoch, and the cumulative number of rows after each."""
    counts = [block.row_count for block in _list_blocks(files)]
    sequence = shuffle_indices(len(counts), name, TRAIN, seed, epoch, "blocks")
    return sequence, tuple(accumulate(counts[index] for index in sequence))


def load_conversations(path: str | Path, name: str, columns: Mapping[str, str] | None = None) -> ConversationDataset:
    """Returns the user's conversations in a file, or in all files of a folder; empty lines are skipped.

    Every row is parsed, so that bad ones are reported before training starts. They are left out and counted; more than
    one in a hundred, and the first is raised, with file and line. Raises UserError also for a file that is missing,
    corrupt or empty.

    columns: the name of a form's column -> the file's, where they differ.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"cannot read {path}: no such file; expected {ROW_FILES} of conversations")
    folder = list_folder(path, is_row_file) if path.is_dir() else None
    files = folder.files if folder else [path]
    require_names(path, columns or (), CONVERSATION_COLUMNS, "a conversation")
    count, bad, changes, mapped = 0, BadRows(), Counter[str](), ColumnMap(path, columns)
    for file in files:
        for block in list_row_blocks(file):
            for row, location in block.iterate_rows():
                count += 1
                mapped.add(row)
                try:
                    _parse_row(row, location, columns, changes)
                except UserError as error:
                    bad.add(error)
    if not count:
        found = f" ({folder.describe()})" if folder else ""
        raise UserError(f"{path} holds no conversation{found}; expected lines like {EXPECTED}")
    mapped.require_all()
    bad.require_few(count)
    changed = "messages changed: " + ", ".join(f"{n:,} {CHANGES[kind]}" for kind, n in sorted(changes.items()))
    contents = [folder.describe() if folder else "", changed if changes else ""]
    return ConversationDataset(name, lambda: files, "; ".join(filter(None, contents)), columns)


def _parse_row(
    row: Row | UserError, location: str, columns: Mapping[str, str] | None, changes: Counter[str] | None = None
) -> dict:
    """Returns the conversation in a row. Raises UserError with the location (file:line) where it is none."""
    if isinstance(row, UserError):
        raise row
    return parse_conversation(row, location, columns, changes)
