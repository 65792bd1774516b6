"""What a person types: a line, or several; remembered from one conversation to the next.

The one idea: a text is one line unless it says otherwise. A line that ends in a backslash goes on in the next; one that
begins with three double quotes goes on until three more; what is pasted stays together, where the terminal marks it.

It knows no commands and no model: chat.py does.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

PROMPT, CONTINUATION_PROMPT = "\n> ", ". "  # what stands before a text, and before its further lines
FENCE = '"""'
HISTORY_LINES = 1000  # lines


def read_message(ask: Callable[[str], str] | None = None) -> str:
    """The next text, stripped; raises EOFError or KeyboardInterrupt when the person leaves.

    Ctrl-C or Ctrl-D within a text of several lines drops that text, and is no leaving: the text is then empty.
    """
    ask = ask or input
    line = ask(PROMPT).strip()
    try:
        if line.startswith(FENCE):
            return _fenced(line.removeprefix(FENCE), ask)
        lines = [line]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            lines.append(ask(CONTINUATION_PROMPT).rstrip())
        return "\n".join(lines).strip()
    except (EOFError, KeyboardInterrupt):
        print()
        return ""


def _fenced(line: str, ask: Callable[[str], str]) -> str:
    lines = []
    while not line.rstrip().endswith(FENCE):
        lines.append(line)
        line = ask(CONTINUATION_PROMPT)
    return "\n".join([*lines, line.rstrip().removesuffix(FENCE)]).strip()


@contextlib.contextmanager
def input_history(file: Path | None = None) -> Iterator[None]:
    """Within it the terminal edits lines and offers those of earlier times, where the platform can.

    file: where they are kept, readable by nobody else; default: chat-history in the user's state folder. A folder that
    cannot be written costs the memory and nothing else.
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
        except OSError as problem:
            print(f"what was typed is not remembered: {file}: {problem.strerror}", file=sys.stderr)
