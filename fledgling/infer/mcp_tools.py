"""Tools of MCP servers (the Model Context Protocol), for `chat` and the page: listed, asked for, called.

A server is a command that uses the protocol over its standard input and output; the official SDK (`mcp`, the extra of
this name) does. Its answers are untrusted: names that are no identifiers are left out, descriptions and results are
bounded text without control characters, a line is bounded too (runtime/bounded_lines.py), and every wait has a limit.
A call is made only if its tool is allowed or `ask` agrees. A server that has ended is started again by the next call of
one of its tools; the call in which it ended is not repeated, because it may have done something.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
import unicodedata
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import TYPE_CHECKING, Any

from fledgling.config import UserError
from fledgling.infer.tools import Tool
from fledgling.runtime.bounded_lines import describe_end, has_ended
from fledgling.text.turns import normalize_turns

if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal
    from mcp import Client, StdioServerParameters
    from mcp.types import CallToolResult

START_TIMEOUT = 30.0  # seconds until a server has started
START_REQUESTS = 3  # that the SDK sends at most until then, each with a limit of its own
CALL_TIMEOUT = 60.0  # seconds of one call
MAX_TOOLS = 64  # of all servers
MAX_PAGES = 16  # of a server's list
MAX_DESCRIPTION_CHARACTERS = 500
MAX_SCHEMA_CHARACTERS = 4000
MAX_RESULT_CHARACTERS = 2000  # of what the model sees of a result
MAX_REASON_CHARACTERS = 250  # of each part of an error
MAX_CALL_TOKENS = 500  # a longer call is not run
NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
DENIED = "error: the user denied the call"


@dataclass(frozen=True)
class McpTool:
    """A tool as a server describes it."""

    name: str
    description: str
    parameters: dict[str, Any]  # a JSON schema
    server: int  # its number among the commands


def clean_text(text: str, limit: int) -> str:
    """Returns text without control characters, newlines and tabs apart, cut to `limit` characters with a note."""
    kept = "".join(c for c in text[: limit + 1] if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs"))
    return kept if len(text) <= limit else f"{kept[:limit]} ... ({len(text) - limit:,} more characters left out)"


class McpTools:
    """The tools of running servers. `close` ends them.

    Args:
        commands: one for each server, as a shell would read it.
        allowed: names of tools that are called without asking.
        ask: called with a tool's name and arguments; returns whether it may be called.
        log: receives notices for the user.
    """

    def __init__(
        self,
        commands: Sequence[str],
        allowed: Sequence[str] = (),
        ask: Callable[[str, dict[str, Any]], bool] = lambda name, arguments: False,
        log: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.commands, self.allowed, self.ask, self.log = commands, frozenset(allowed), ask, log
        self.tools: dict[str, McpTool] = {}
        self.stack = ExitStack()
        self.servers: list[StdioServerParameters] = []
        self.clients: list[Client | None] = []  # None: has ended, and the next call starts it again
        self.connections = [ExitStack() for _ in commands]  # each holds the client, and its task in the event loop
        self.starting = [Lock() for _ in commands]
        try:
            self.portal = self._start()
        except BaseException:
            self.close()
            raise
        if unknown := sorted(self.allowed - self.tools.keys()):
            self.close()
            raise UserError(f"no tool {unknown[0]} to allow; the servers have: {', '.join(self.tools) or 'none'}")

    def _start(self) -> BlockingPortal:
        try:
            from anyio.from_thread import start_blocking_portal
            from mcp import StdioServerParameters
        except ImportError as error:
            raise UserError(f"MCP servers need the extra: pip install 'fledgling[mcp]' ({error})") from None
        self.reports = Path(self.stack.enter_context(TemporaryDirectory(prefix="fledgling-mcp-")))
        portal = self.stack.enter_context(start_blocking_portal())
        for number, command in enumerate(self.commands):
            try:
                words = shlex.split(command)
            except ValueError as error:
                raise UserError(f"MCP server {command!r}: {error}; expected a command and its arguments") from None
            if not words:
                raise UserError("an MCP server's command is empty; expected a command and its arguments")
            relay = ["-m", "fledgling.runtime.bounded_lines", str(self._report_of(number)), *words]
            self.stack.enter_context(self.connections[number])
            self.servers.append(StdioServerParameters(command=sys.executable, args=relay))
            try:
                self.clients.append(client := self._connect(portal, number))
                self._list_tools(portal, client, number)
            except UserError:
                raise
            except Exception as error:  # whatever the SDK or a server's answer raises
                reason = self._describe_failure(error, number)
                raise UserError(f"MCP server {command!r} did not start or list its tools: {reason}") from None
        return portal

    def _connect(self, portal: BlockingPortal, number: int) -> Client:
        """Starts a server. Raises what the SDK does."""
        from mcp import Client

        client = Client(self.servers[number], read_timeout_seconds=START_TIMEOUT / START_REQUESTS)
        self.connections[number].enter_context(portal.wrap_async_context_manager(client))
        return client

    def _find_client(self, number: int) -> Client:
        """Returns the client of a server, which is started again if it has ended. Raises what the SDK does."""
        with self.starting[number]:
            client = None if has_ended(self._report_of(number)) else self.clients[number]
            if client is None:
                self.clients[number] = None  # as it is if it does not start
                self._report_of(number).unlink(missing_ok=True)
                self.log(f"MCP server {self.commands[number]!r} has ended: it is started again")
                with suppress(Exception):  # whatever the SDK raises at the end of a process that has ended
                    self.connections[number].close()
                client = self.clients[number] = self._connect(self.portal, number)
            return client

    def _report_of(self, number: int) -> Path:
        return self.reports / str(number)

    def _describe_failure(self, error: Exception, number: int) -> str:
        """Returns an error in one line, with a server's exit code and its last line on stderr where it has ended."""
        return "; ".join(
            clean_text(" ".join(text.split()), MAX_REASON_CHARACTERS)
            for text in (describe_cause(error), describe_end(self._report_of(number)))
            if text
        )

    def _list_tools(self, portal: BlockingPortal, client: Client, number: int) -> None:
        cursor = None
        for _ in range(MAX_PAGES):
            page = portal.call(partial(client.list_tools, cursor=cursor))
            for tool in page.tools:
                self._add_tool(tool.name, tool.description or "", tool.input_schema, number)
            cursor = page.next_cursor
            if not cursor:
                return

    def _add_tool(self, name: str, description: str, schema: dict[str, Any], number: int) -> None:
        where = f"MCP server {self.commands[number]!r}"
        if not NAME.fullmatch(name):
            self.log(f"{where}: a tool is left out, its name {clean_text(name, 40)!r} is no identifier")
        elif name in self.tools:
            raise UserError(f"{where} has a tool {name}, as another server does: expected different names")
        elif len(json.dumps(schema)) > MAX_SCHEMA_CHARACTERS:
            self.log(f"{where}: {name} is left out, its parameters have more than {MAX_SCHEMA_CHARACTERS:,} characters")
        elif len(self.tools) >= MAX_TOOLS:
            self.log(f"{where}: {name} is left out, there are {MAX_TOOLS} tools")
        else:
            self.tools[name] = McpTool(name, clean_text(description, MAX_DESCRIPTION_CHARACTERS), schema, number)

    def describe(self) -> list[dict[str, Any]]:
        """Returns the tools in OpenAI's form."""
        keys = ("name", "description", "parameters")
        return [{"type": "function", "function": {k: getattr(tool, k) for k in keys}} for tool in self.tools.values()]

    def add_to_system(self, system: str) -> str:
        """Returns a system message with the descriptions of the tools, as training wrote them."""
        messages = [{"role": "system", "content": system or " "}, {"role": "user", "content": "."}]
        first = normalize_turns(messages, [tool["function"] for tool in self.describe()])[0][0]
        return first["content"] if first["role"] == "system" else system

    def call(self, name: str, arguments: dict[str, Any]) -> str:
        """Calls a tool and returns its text, or "error: ..."; never raises for what a server does."""
        tool = self.tools.get(name)
        if tool is None:
            return f"error: no tool {clean_text(name, 64)}; there are {', '.join(self.tools) or 'none'}"
        client = None
        try:
            client = self._find_client(tool.server)
            result = self.portal.call(partial(client.call_tool, name, arguments, CALL_TIMEOUT))
        except Exception as error:  # whatever the SDK or the server's answer raises
            if is_connection_closed(error) and self.clients[tool.server] is client:
                self.clients[tool.server] = None
            return clean_text(f"error: {self._describe_failure(error, tool.server)}", MAX_RESULT_CHARACTERS)
        return clean_text(read_result(result), MAX_RESULT_CHARACTERS)

    def run(self, text: str) -> str:
        """Runs a call that a model wrote, {"name": ..., "arguments": {...}}, if it is allowed."""
        try:
            call = json.loads(text)
            name, arguments = call["name"], call.get("arguments") or {}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return 'error: expected {"name": NAME, "arguments": {...}}'
        if not isinstance(name, str) or not isinstance(arguments, dict):
            return 'error: expected {"name": NAME, "arguments": {...}}'
        if name in self.tools and name not in self.allowed and not self.ask(name, arguments):
            return DENIED
        return self.call(name, arguments)

    def extend(self, tool: Tool) -> Tool:
        """Returns the tool of an engine that answers calls of these tools, and all others as `tool` does."""

        def run(text: str) -> str:
            return self.run(text) if text.lstrip().startswith("{") else tool.run(text)

        return Tool(run, max(MAX_CALL_TOKENS, tool.max_call_tokens), f"{tool.name}+mcp")

    def close(self) -> None:
        """Ends the servers."""
        self.stack.close()


def is_connection_closed(error: BaseException) -> bool:
    """Returns whether the SDK says that a server's process is gone, even if it left no report."""
    from mcp import MCPError
    from mcp.types import CONNECTION_CLOSED  # servers use this number for errors of their own too

    return isinstance(error, MCPError) and error.code == CONNECTION_CLOSED and error.message == "Connection closed"


def describe_cause(error: BaseException) -> str:
    """Returns an error's text in one line; of a group of errors, as the SDK's tasks raise them, that of its first."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return " ".join(str(error).split()) or type(error).__name__


def read_result(result: CallToolResult) -> str:
    """Returns the text of a result; what is no text is named."""
    parts = [block.text if block.type == "text" else f"[{block.type} left out]" for block in result.content]
    text = "\n".join(parts)
    return f"error: {text}" if result.is_error else text
