"""A small MCP server over stdio for the tests: tools that add, echo, fail, and answer in hostile ways."""

import os

from mcp.server.mcpserver import MCPServer

server = MCPServer("tests", log_level="ERROR")


@server.tool()
def add(a: int, b: int) -> str:
    """Adds two numbers."""
    return str(a + b)


@server.tool()
def echo(text: str) -> str:
    """Returns the text."""
    return text


@server.tool()
def fail() -> str:
    """Raises."""
    raise ValueError("no luck")


@server.tool()
def long() -> str:
    """Returns a long text of control characters and markup."""
    return "\x1b[31m<script>alert(1)</script>\u202e" + "x" * 100_000


@server.tool()
def leave() -> str:
    """Ends the server."""
    os._exit(3)


@server.tool(name="<b>bad</b>")
def bad() -> str:
    """Has a name that is no identifier."""
    return ""


@server.tool()
def flood() -> str:
    """Returns a text that is one line of three million bytes."""
    return "x" * 3_000_000


if __name__ == "__main__":
    server.run("stdio")
