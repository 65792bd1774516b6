"""Conversations to learn from: rows {"messages": [...]} of the user's files, or of a public set such as SmolTalk.

The one idea: a million conversations need not fit in memory. The files are known as blocks (parquet row
groups, a thousand lines of JSONL); an epoch shuffles the blocks, and the rows of each block, so that reading
in order touches one block at a time and example i is still a pure function of (seed, i).

What it is not: no evaluation and no practice; nobody knows what a right answer would be.
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
from fledgling.files import ROW_FILE_SUFFIXES, RowBlock, list_row_blocks, stat_files
from fledgling.tasks.task import TRAIN, shuffle_indices

EXPECTED = '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}'
FileStamps = tuple[tuple[Path, int, int], ...]
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class ConversationDataset:
    """Conversations in files; `train` gives each once an epoch, in an order shuffled anew. `find` names the files."""

    name: str
    list_files: Callable[[], Sequence[Path]]

    def __len__(self) -> int:
        """Return the conversations of one epoch."""
        return sum(block.row_count for block in _blocks(self._stamps))

    def files(self) -> list[Path]:
        """Return the files. Raises UserError where there are none."""
        return list(self.list_files())

    def get_train_example(self, index: int, seed: int) -> dict:
        """Return conversation `index` of `seed`. Raises UserError, naming its place, if the row is none."""
        epoch, position = divmod(index, len(self))
        sequence, ends = _shuffle_blocks(self._stamps, self.name, seed, epoch)
        turn = bisect_right(ends, position)
        number = sequence[turn]
        rows = _rows(self._stamps, number)
        inside = shuffle_indices(len(rows), self.name, TRAIN, seed, epoch, number)
        value, where = rows[inside[position - (ends[turn - 1] if turn else 0)]]
        return parse_conversation(value, where)

    @cached_property
    def _stamps(self) -> FileStamps:
        return stat_files(self.files())


@lru_cache(maxsize=8)
def _blocks(files: FileStamps) -> tuple[RowBlock, ...]:
    return tuple(block for path, *_ in files for block in list_row_blocks(path))


@lru_cache(maxsize=4)
def _rows(files: FileStamps, number: int) -> tuple[tuple[dict[str, Any], str], ...]:
    return tuple(_blocks(files)[number].read_rows())


@lru_cache(maxsize=8)
def _shuffle_blocks(files: FileStamps, name: str, seed: int, epoch: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The blocks in the order of an epoch, and the number of rows up to and with each."""
    counts = [block.row_count for block in _blocks(files)]
    sequence = shuffle_indices(len(counts), name, TRAIN, seed, epoch, "blocks")
    return sequence, tuple(accumulate(counts[number] for number in sequence))


def load_conversations(path: str | Path, name: str) -> ConversationDataset:
    """Return the user's conversations in a file, or in all files of a folder; empty lines are passed over.

    Every row is looked at, so that a bad one is told before training starts. Raises UserError naming file and
    line for a file that is missing, empty or not UTF-8, and for a row that is no conversation.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"cannot read {path}: no such file; expected {' or '.join(ROW_FILE_SUFFIXES)} of conversations")
    inside = (
        sorted(file for file in path.rglob("*") if file.name.endswith(ROW_FILE_SUFFIXES)) if path.is_dir() else [path]
    )
    found = 0
    for file in inside:
        for block in list_row_blocks(file):
            for value, where in block.read_rows():
                parse_conversation(value, where)
                found += 1
    if not found:
        raise UserError(f"{path} holds no conversation; expected lines like {EXPECTED}")
    return ConversationDataset(name, lambda: inside)


def parse_conversation(value: dict[str, Any], where: str) -> dict:
    """Return the conversation in a row; `where` is file and line for the message when it is none."""

    def refuse(problem: str) -> UserError:
        return UserError(f"{where}: {problem}; expected {EXPECTED}")

    messages = value.get("messages")
    if not isinstance(messages, list):
        raise refuse('no list "messages"')
    for message in messages:
        if not isinstance(message, dict) or message.get("role") not in _ROLES:
            raise refuse(f'a message\'s "role" must be one of {", ".join(_ROLES)}')
        if not isinstance(message.get("content"), str) or not message["content"].strip():
            raise refuse('a message\'s "content" must be text that is not empty')
    roles = [message["role"] for message in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if not turns or turns != ["user", "assistant"] * (len(turns) // 2):
        raise refuse(f"the turns are {', '.join(roles) or 'none'}, not user, assistant, user, assistant, ...")
    return {"messages": [{"role": m["role"], "content": m["content"]} for m in messages]}
