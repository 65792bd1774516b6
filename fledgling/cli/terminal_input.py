"""Reading messages from the terminal: of one line or several, with a history over conversations.

A message is one line. A line that ends in a backslash continues on the next; one that begins with three double quotes
continues until three more; pasted text stays together, where the terminal marks it.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

PROMPT, CONTINUATION_PROMPT = "\n> ", ". "  # before a message, and before its further lines
FENCE = '"""'
HISTORY_LINES = 1000


def read_message(ask: Callable[[str], str] | None = None) -> str:
    """Returns the next message, stripped. Raises EOFError or KeyboardInterrupt when the user quits.

    Ctrl-C or Ctrl-D within a message of several lines drops that message: an empty one is returned.

    ask: reads a line after showing its argument; None: `input`.
    """
    ask = ask or input
    line = ask(PROMPT).strip()
    try:
        if line.startswith(FENCE):
            return _read_until_fence(line.removeprefix(FENCE), ask)
        lines = [line]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            lines.append(ask(CONTINUATION_PROMPT).rstrip())
        return "\n".join(lines).strip()
    except (EOFError, KeyboardInterrupt):
        print()
        return ""


def _read_until_fence(line: str, ask: Callable[[str], str]) -> str:
    lines = []
    while not line.rstrip().endswith(FENCE):
        lines.append(line)
        line = ask(CONTINUATION_PROMPT)
    return "\n".join([*lines, line.rstrip().removesuffix(FENCE)]).strip()


@contextlib.contextmanager
def input_history(file: Path | None = None) -> Iterator[None]:
    """Within this context the terminal edits lines and offers those of earlier conversations, where the platform can.

    file: holds the history, readable by its owner alone; None: chat-history in the user's state folder. If the folder
    cannot be written, there is no history.
    """
    try:
        import readline
    except ImportError:
        yield
        return
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    file = file or state / "fledgling" / "chat-history"
    if "libedit" not in (readline.__doc__ or ""):
        readline.parse_and_bind("set enable-bracketed-paste on")
    with contextlib.suppress(OSError):
        readline.read_history_file(file)
    try:
        yield
    finally:
        readline.set_history_length(HISTORY_LINES)
        try:
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            file.touch(mode=0o600)
            readline.write_history_file(file)
        except OSError as error:
            print(f"the chat history is not saved: {file}: {error.strerror}", file=sys.stderr)
