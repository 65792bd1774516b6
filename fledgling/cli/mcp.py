"""The MCP servers of `chat` and `serve`: started from their options, and asked for in the terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from fledgling.cli.escape import escape_control_characters
from fledgling.config import UserError

if TYPE_CHECKING:
    from fledgling.infer.mcp_tools import McpTools

MAX_SHOWN_CHARACTERS = 1000  # of a call's arguments


def start_mcp_tools(
    commands: Sequence[str], allowed: Sequence[str], ask: Callable[[str, dict[str, Any]], bool] | None = None
) -> McpTools | None:
    """Starts MCP servers; None without a command. Without `ask` a tool that is not allowed is denied."""
    if not commands:
        if allowed:
            raise UserError(f"--allow-tool {allowed[0]}: there is no MCP server; name one with --mcp COMMAND")
        return None
    from fledgling.infer.mcp_tools import McpTools

    def deny_call(name: str, arguments: dict[str, Any]) -> bool:
        return False

    return McpTools(commands, allowed, ask or deny_call, lambda text: print(text, file=sys.stderr))


def ask_in_terminal(name: str, arguments: dict[str, Any]) -> bool:
    """Shows a call and returns whether the user agrees. Ctrl-C and the end of the input deny."""
    text = json.dumps(arguments, ensure_ascii=False)
    more = f" ... ({len(text):,} characters)" if len(text) > MAX_SHOWN_CHARACTERS else ""
    shown = escape_control_characters(text[:MAX_SHOWN_CHARACTERS]).replace("\n", " ")
    try:
        return input(f"\nCall {name} with {shown}{more}? [y/N] ").strip().lower() in ("y", "yes")
    except (EOFError, KeyboardInterrupt):
        return False
