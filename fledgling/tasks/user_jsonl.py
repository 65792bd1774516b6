"""Your own conversations: a JSONL file, one `{"messages": [...]}` a line, as a source of training examples.

The one idea: the file is read whole and checked before training starts, so a bad line is one clear message
with its line number, not a crash an hour later.

What it is not: no evaluation and no practice; nobody but you knows what a right answer would be.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from fledgling.config import UserError
from fledgling.tasks.task import TRAIN, stream

EXPECTED = '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}'
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class UserConversations:
    """Conversations of the user's; `train` draws from them in an order shuffled anew each epoch."""

    name: str
    conversations: tuple[dict, ...]

    def train(self, index: int, seed: int) -> dict:
        """Return conversation `index` of `seed`; every conversation comes once an epoch."""
        epoch, position = divmod(index, len(self.conversations))
        return self.conversations[_order(len(self.conversations), seed, epoch)[position]]


@lru_cache(maxsize=8)
def _order(count: int, seed: int, epoch: int) -> tuple[int, ...]:
    order = list(range(count))
    stream("user_jsonl", TRAIN, seed, epoch).shuffle(order)
    return tuple(order)


def load(path: str | Path) -> UserConversations:
    """Return the conversations of the JSONL file at `path`; empty lines are passed over.

    Raises UserError naming file, line and what was expected, for a file that is missing, empty or not UTF-8
    and for a line that is not a conversation.
    """
    path = Path(path)
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; expected a JSONL file of conversations") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    found = [_conversation(line, f"{path}:{n}") for n, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise UserError(f"{path} holds no conversation; expected lines like {EXPECTED}")
    return UserConversations(f"user_jsonl:{path}", tuple(found))


def _conversation(line: str, where: str) -> dict:
    """Return the conversation in `line`; `where` is file and line number for the message when it is none."""

    def refuse(problem: str) -> UserError:
        return UserError(f"{where}: {problem}; expected {EXPECTED}")

    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise refuse(f"not JSON ({error.msg} at column {error.colno})") from None
    messages = value.get("messages") if isinstance(value, dict) else None
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
