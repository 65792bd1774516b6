"""Conversations for supervised training: rows {"messages": [...]} of a user's files, or of a public set like SmolTalk.

A million conversations need not fit in memory. The files are indexed as blocks (parquet row groups, 1,024 lines of
JSONL); an epoch shuffles the blocks, and the rows of each block, so that sequential reading touches one block at a time
and example i is still a pure function of (seed, i). There is no evaluation: such rows have no right answer.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from fledgling.config import UserError
from fledgling.files import ROW_FILES, FileStamps, RowBlock, is_row_file, list_folder, list_row_blocks, stat_files
from fledgling.tasks.task import TRAIN, shuffle_indices

EXPECTED = '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}'
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class ConversationDataset:
    """Conversations in files, each once an epoch, in an order that is shuffled for every epoch."""

    name: str
    list_files: Callable[[], Sequence[Path]]
    contents: str = ""  # of a folder: the files that are read and those that are passed over

    def __len__(self) -> int:
        """Returns the conversations of one epoch."""
        return sum(block.row_count for block in _blocks(self._stamps))

    def files(self) -> list[Path]:
        """Returns the files. Raises UserError where there are none."""
        return list(self.list_files())

    def get_train_example(self, index: int, seed: int) -> dict:
        """Returns conversation `index` of `seed`. Raises UserError with its location for a row that is none."""
        epoch, position = divmod(index, len(self))
        sequence, ends = _shuffle_blocks(self._stamps, self.name, seed, epoch)
        block_position = bisect_right(ends, position)
        block_index = sequence[block_position]
        rows = _rows(self._stamps, block_index)
        row_order = shuffle_indices(len(rows), self.name, TRAIN, seed, epoch, block_index)
        value, location = rows[row_order[position - (ends[block_position - 1] if block_position else 0)]]
        return parse_conversation(value, location)

    @cached_property
    def _stamps(self) -> FileStamps:
        return stat_files(self.files())


@lru_cache(maxsize=8)
def _blocks(files: FileStamps) -> tuple[RowBlock, ...]:
    return tuple(block for path, *_ in files for block in list_row_blocks(path))


@lru_cache(maxsize=4)
def _rows(files: FileStamps, block_index: int) -> tuple[tuple[dict[str, Any], str], ...]:
    return tuple(_blocks(files)[block_index].read_rows())


@lru_cache(maxsize=8)
def _shuffle_blocks(files: FileStamps, name: str, seed: int, epoch: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the block indices in the order of an epoch, and the cumulative number of rows after each."""
    counts = [block.row_count for block in _blocks(files)]
    sequence = shuffle_indices(len(counts), name, TRAIN, seed, epoch, "blocks")
    return sequence, tuple(accumulate(counts[index] for index in sequence))


def load_conversations(path: str | Path, name: str) -> ConversationDataset:
    """Returns the user's conversations in a file, or in all files of a folder; empty lines are skipped.

    Every row is parsed, so that a bad one is reported before training starts. Raises UserError with file and line for a
    file that is missing, empty or not UTF-8, and for a row that is no conversation.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"cannot read {path}: no such file; expected {ROW_FILES} of conversations")
    folder = list_folder(path, is_row_file) if path.is_dir() else None
    files = folder.files if folder else [path]
    count = 0
    for file in files:
        for block in list_row_blocks(file):
            for value, location in block.read_rows():
                parse_conversation(value, location)
                count += 1
    if not count:
        found = f" ({folder.describe()})" if folder else ""
        raise UserError(f"{path} holds no conversation{found}; expected lines like {EXPECTED}")
    return ConversationDataset(name, lambda: files, folder.describe() if folder else "")


def parse_conversation(value: dict[str, Any], location: str) -> dict:
    """Returns the conversation in a row. Raises UserError with the location (file:line) where it is none."""

    def make_error(problem: str) -> UserError:
        return UserError(f"{location}: {problem}; expected {EXPECTED}")

    messages = value.get("messages")
    if not isinstance(messages, list):
        raise make_error('no list "messages"')
    for message in messages:
        if not isinstance(message, dict) or message.get("role") not in _ROLES:
            raise make_error(f'a message\'s "role" must be one of {", ".join(_ROLES)}')
        if not isinstance(message.get("content"), str) or not message["content"].strip():
            raise make_error('a message\'s "content" must be text that is not empty')
    roles = [message["role"] for message in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if not turns or turns != ["user", "assistant"] * (len(turns) // 2):
        raise make_error(f"the turns are {', '.join(roles) or 'none'}, not user, assistant, user, assistant, ...")
    return {"messages": [{"role": m["role"], "content": m["content"]} for m in messages]}
